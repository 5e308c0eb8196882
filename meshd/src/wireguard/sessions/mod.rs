//! All tunnels of one lane.

pub(crate) mod outcome;
