//! The command line.

pub mod args;
pub(crate) mod check;
pub(crate) mod cleanup;
pub mod error;
pub(crate) mod fix;
mod hidden_token;
mod joining;
mod leaving;
pub mod network_lock;
pub(crate) mod output;
mod rejoin;
pub mod render;
mod resolver;
mod running;
pub mod verbs;
