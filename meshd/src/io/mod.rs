//! The interface and the sockets.

pub mod offloads;
