//! The brain of the mesh.
//!
//! ```text
//!              intended state                    one snapshot                     packets
//! services.toml ─┐
//! enrolments ────┤                                        ┌─▶ engine   which fate?  (vip · translate · policy · flow)
//! serve offers ──┼─▶ registry ──plan()──▶ NetMap ──link──▶├─▶ tunnels  which key?   (boringtun)
//! endpoints ─────┘   (apply one   (pure)  revision 42     └─▶ zone     which name?  (DNS)
//!                     Change)
//! ```
//!
//! Sans-IO: no sockets, files, environment, clocks or entropy; `now` and seeds are arguments, private keys
//! never enter. Modules form layers and import lower layers only (`tests/tidy.rs`).
#![forbid(unsafe_code)]

// Layer 0: words.
pub mod addr;
pub mod clock;
mod hash;
pub mod id;
mod lenient;
pub mod limiter;
pub mod lpm;
pub mod packet;
pub mod sealed;
pub mod segment;
// Layer 1: what is true.
pub mod allocate;
pub mod chain;
pub mod lock;
pub mod mark;
pub mod netmap;
pub mod policy;
pub mod record;
pub mod services;
pub mod status;
pub mod succession;
pub mod world;
// Layer 2: what to do.
pub mod access;
pub mod bench;
pub mod flow;
pub mod jwt;
pub mod lease;
pub mod plan;
pub mod token;
pub mod translate;
pub mod verify;
pub mod vip;
pub mod wire;
pub mod zone;
// Layer 3: the pipeline.
pub mod engine;
pub mod explain;
pub mod verdict;
pub mod view;

#[cfg(test)]
mod fixture;
