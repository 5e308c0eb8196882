//! The control plane of the mesh: who belongs to it, which names exist, and who may call whom.
//!
//! ```text
//!                        hands                    decides                    hands
//! services.toml ─ tasks ──┐
//! verbs ───────── admin ──┼─▶ core ─ Change ─▶ registry ─▶ store ─ World ─▶ map_cache ─▶ watch ─▶ nodes
//! nodes ─ tls ─ channel ──┘                    (durable before visible)          (Snapshot, then Deltas)
//! ```
//! It never carries a packet and never holds a node's private key.

#![forbid(unsafe_code)]

// Layer 0: what everything stands on.
pub mod base;
// Layer 1: what is kept, and keys.
pub mod keys;
pub mod store;
// Layer 2: what decides, and how it is set.
pub mod config;
pub mod registry;
// Layer 3: whom else we believe.
pub(crate) mod oidc;
// Layer 4: what all tasks share.
pub mod core;
// Layer 5: who asks, and what goes on by itself.
pub(crate) mod channel;
pub(crate) mod tasks;
// Layer 6: what the operator asks.
pub mod admin;
// Layer 7: what is printed and measured.
pub mod cli;
pub(crate) mod telemetry;
// Layer 8: where everything meets.
pub mod daemon;
