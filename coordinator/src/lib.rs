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
/// What everything else stands on.
pub mod base {
    pub(crate) mod clock;
    pub(crate) mod read_file;
    pub mod state_files;
    pub(crate) mod stop;
    pub(crate) mod sync;
    pub(crate) mod text_time;
    pub mod words;
}
/// What nodes ask, and what they are answered.
mod channel {
    pub(crate) mod context;
    pub(crate) mod peer;
}
mod charts;
pub mod cli;
pub mod client;
pub mod config;
/// What all tasks of the coordinator share.
mod core {
    pub(crate) mod counters;
    pub(crate) mod failure;
    pub(crate) mod file_report;
    pub(crate) mod open_store;
}
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
