//! The control socket: what is asked of a running meshd.

pub mod names;
pub mod openmetrics;
pub mod server;
pub mod status;
