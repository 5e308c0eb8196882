//! The node of the mesh: the hands and feet of `mesh_proto`.
//!
//! `daemon` is the only file that sees everybody. The data path (`dataplane`) runs one thread per lane; a
//! `lane` composes engine and `tunnels` without a syscall, a `worker` moves its packets between `tun` and
//! `udp`. Everything else is control: it may be slow, and nothing in the data path waits for it.

pub mod agreement;
pub mod api;
pub mod base;
pub mod bench;
pub mod board;
pub mod cli;
pub mod client;
mod cmsg;
pub mod commands;
pub mod config;
mod control;
pub mod daemon;
pub mod datagrams;
pub mod dataplane;
mod detour;
pub mod dns;
#[cfg(test)]
mod evil;
pub mod facts;
mod handover;
mod heard;
pub mod identity;
pub mod io;
pub mod join;
pub mod kernel;
pub mod keys;
mod lane;
pub mod lane_keys;
mod lease;
pub mod link;
pub mod linux;
pub mod locking;
mod mailbox;
pub mod member;
pub mod metrics;
pub mod names;
pub mod node;
pub mod offers;
#[cfg(feature = "virtual-time")]
#[path = "../../tests/outage/simulation.rs"]
pub mod outage;
pub mod packets;
mod path;
mod peers;
pub mod psk;
mod records;
pub mod render;
mod resume;
mod rotation;
mod sessions;
pub mod splice;
pub mod stance;
pub mod state;
pub mod stats;
pub mod status;
mod steering;
pub mod tun;
mod tunnels;
pub mod udp;
pub mod vault;
mod wireguard;
mod worker;
