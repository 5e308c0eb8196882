//! Measuring the way to another node: frames on the reserved port between nodes, and both ends' decisions.
//!
//! ```text
//! sender                                                     receiver
//! Sender ── Data: run, stream, sequence, clock, padding ──▶ Runs: counts, never delivers, never sends data
//!    ▲                                                          │
//!    └────────── Report: what arrived, when, CPU time ◀─────────┘ when asked, rarely, no larger than a Data
//! ```
//!
//! A *run* is one phase of one measurement; each lane of the sender is a *stream* of it with a window of its own,
//! which grows while reports come in time and without loss, and which stops the stream when they stop. The receiver
//! keeps a bounded table and answers a frame with at most one that is no larger: nobody can make it send a flood.

mod echoes;
mod frame;
mod runs;
mod sender;
mod window;

pub use echoes::Echoes;
pub use frame::{BODY, Data, Frame, Report};
pub(crate) use frame::{MAGIC, VERSION};
pub use runs::{Runs, STREAMS, STREAMS_PER_PEER};
pub use sender::{Burst, Sender, Tally};
