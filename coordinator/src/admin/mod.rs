//! What the operator asks over the control socket.

pub(crate) mod backup;
pub(crate) mod context;
pub(crate) mod coordinators;
pub(crate) mod export;
mod gone;
pub(crate) mod issuers;
pub(crate) mod log;
pub(crate) mod network_lock;
pub(crate) mod rotate_key;
pub(crate) mod services_file;
pub mod socket;
pub(crate) mod status;
