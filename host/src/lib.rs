//! What both daemons need of the machine that they run on, written once.
//!
//! It knows `mesh_proto` and neither daemon: what differs between them is an argument, and no part has a choice that
//! only one of them makes.

#![forbid(unsafe_code)]

// Layer 0: what the machine gives.
pub mod clock;
pub mod files;
pub mod identity;
pub mod log;
pub mod output;
pub mod sums;
pub mod table;
pub mod toml_reader;
pub mod watched_file;
// Layer 1: who is spoken to.
pub mod client;
pub mod http;
pub mod socket;
pub mod tls;
