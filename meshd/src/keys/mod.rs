//! The keys of a node: its identity, its lanes, those it shares with peers.

pub(crate) mod encoding;
pub mod handshake_clock;
pub mod lanes;
pub mod node;
pub mod psk_policy;
pub mod psk_store;
