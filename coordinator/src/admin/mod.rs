//! What the operator asks over the control socket.

pub(crate) mod export;
pub(crate) mod issuers;
pub(crate) mod rotate_key;
pub mod socket;
pub(crate) mod status;
