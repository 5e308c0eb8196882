//! Tunnels: peers and their endpoints, handshakes and sessions, what a lane borrows of lane 0.

pub(crate) mod endpoint_race;
pub(crate) mod lane0_fallback;
pub(crate) mod peers;
pub(crate) mod seqlock;
pub(crate) mod sessions;
pub(crate) mod timing;
pub(crate) mod tunnel;
