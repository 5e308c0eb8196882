//! The preshared keys of tunnels.

pub mod preshared;
