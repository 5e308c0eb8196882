//! The command line.

pub mod args;
pub(crate) mod backup;
pub mod init;
pub(crate) mod log;
pub(crate) mod network_lock;
pub mod outcome;
pub mod render;
pub mod restore;
pub(crate) mod services_file;
pub mod verbs;
