//! Streams that are carried outside of the tunnel.

pub mod loopback;
