//! The control plane of the mesh: who belongs to it, which names exist, and who may call whom.
//!
//! ```text
//!                        hands                    decides                    hands
//! services.toml ─ watch ──┐
//! verbs ───────── admin ──┼─▶ hub ─ Change ─▶ registry ─▶ store ─ World ─▶ charts ─▶ feed ─▶ nodes
//! nodes ─ tls ─ server ───┘                   (durable before visible)       (Snapshot, then Deltas)
//! ```
//! It never carries a packet and never holds a node's private key.

#![forbid(unsafe_code)]

mod about;
pub mod admin;
pub mod api;
mod audit;
mod backups;
mod charts;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
mod enrol;
mod export;
mod feed;
mod hub;
pub mod init;
pub mod keys;
mod limits;
mod locking;
mod metrics;
pub mod registry;
pub mod render;
mod renewing;
mod report;
pub mod restore;
mod rotating;
mod server;
mod session;
mod sharing;
mod signed;
pub mod store;
mod tending;
pub mod tls;
mod trust;
pub mod verbs;
mod watch;
mod witness;
