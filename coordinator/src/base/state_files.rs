//! The names of the files inside the state directory that more than one module knows.

/// The store's file.
pub const STORE: &str = "store.redb";
/// The directory that keeps the journal of the store.
pub const JOURNAL: &str = "journal";
/// The file whose space is given up when the disk is full.
pub const RESERVED: &str = "reserve";
/// The file that notes the epoch of the last restore.
pub const EPOCH: &str = "epoch";
/// The file that says that a mesh was kept here.
pub const FOUNDED: &str = "founded";
/// The file that keeps the name given at `init`.
pub const NAME: &str = "name";
/// The file that says which services.toml was last taken from this machine.
pub const TAKEN: &str = "services.taken";
