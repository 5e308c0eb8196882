//! The coordinator from outside: real connections on loopback, real files, the real admin socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod abuse;
mod channel;
mod common;
mod files;
mod issuer;
mod replicas;
mod verbs;
mod workload;
