//! The command line.

pub mod args;
pub(crate) mod check;
pub(crate) mod cleanup;
pub mod error;
mod hidden_token;
mod joining;
mod leaving;
pub mod network_lock;
pub(crate) mod output;
mod rejoin;
pub mod render;
pub mod verbs;
