//! The coordinator from outside: real connections on loopback, real files, the real admin socket.

#![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test fails by panicking")]

mod abuse;
mod channel;
mod common;
mod files;
mod flood;
mod full;
mod growing;
mod hygiene;
mod idle_words;
mod issuer;
mod keeping;
mod kills;
mod locking;
mod logging;
mod lost_store;
mod reloading;
mod renewing;
mod restoring;
mod rotating;
mod verbs;
mod witness;
mod workload;
mod wrongs;
