//! The brain of the mesh.
//!
//! ```text
//!              intended state                    one snapshot                     packets
//! services.toml ─┐
//! enrolments ────┤                                        ┌─▶ engine   which fate?  (balancer · translate · rules · flow)
//! serve offers ──┼─▶ registry ──plan()──▶ NetMap ──link──▶├─▶ tunnels  which key?   (boringtun)
//! endpoints ─────┘   (apply one   (pure)  revision 42     └─▶ zone     which name?  (DNS)
//!                     Change)
//! ```
//!
//! Sans-IO: no sockets, files, environment, clocks or entropy; `now` and seeds are arguments, private keys
//! never enter. Modules form layers and import lower layers only (`tests/tidy`).
#![forbid(unsafe_code)]

// Layer 0: words.
pub mod base;
// Layer 1: bytes of packets.
pub mod packet;
// Layer 2: who says so.
pub mod trust;
// Layer 3: what a node is told.
pub mod model;
// Layer 4: texts, messages, documents and names.
pub mod dns;
pub mod ops;
pub mod services;
pub mod wire;
// Layer 5: what is true, and what is believed of it.
pub mod verifier;
pub mod world;
// Layer 6: what follows.
pub mod dataplane;
pub mod plan;

#[cfg(test)]
mod fixture;
