//! How two nodes make the preshared key of their tunnels: by ML-KEM-768, in a WireGuard tunnel between their agreement
//! keys that carries nothing else. Whoever records all of it and one day breaks X25519 still lacks that key, and no
//! coordinator ever has it.
//!
//! ```text
//!   proposer                                        answerer
//!      │ ── Offer: a fresh encapsulation key ──────────▶ │ encapsulates
//!      │ ◀────────── Answer: ciphertext, proof ───────── │
//!   has the key │ ── Confirm: proof ───────────────────▶ │ has the key
//!      │ ◀──────────────────────────────────── Done ──── │
//! ```
//! Each step is repeated until the next one comes. The key is bound to both nodes, both agreement keys and every byte of
//! Offer and Answer. Of two offers that cross, the one of the lesser node goes on: also where they cross in two tunnels,
//! while a node that changes its keys has two agreement keys. That depends on nothing of which the two may know different
//! things.

mod exchange;
mod frame;
mod kem;

pub(crate) use exchange::{Exchange, Progress};
pub(crate) use frame::{MAX_PACKET, PskFrame};
pub(crate) use kem::KemKeypair;

pub use crate::psk::preshared::PresharedKey;

pub mod preshared;
#[cfg(test)]
mod tests;
