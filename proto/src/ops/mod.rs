//! What people who run a mesh read: the documents of status.

pub mod bench;
pub mod status;
