//! The tunnels of a lane.

pub(crate) mod sessions;
pub(crate) mod timing;
