//! The node of the mesh: the hands and feet of `mesh_proto`.
//!
//! `daemon` is the only file that sees everybody. The data path (`dataplane`) runs one thread per lane; a
//! `lane` composes engine and `tunnels` without a syscall, a `worker` moves its packets between `tun` and
//! `udp`. Everything else is control: it may be slow, and nothing in the data path waits for it.

pub mod cli;
pub mod config;
pub mod dataplane;
pub mod dns;
pub mod kernel;
pub mod keys;
pub mod lane_keys;
pub mod link;
pub mod state;
pub mod stats;
