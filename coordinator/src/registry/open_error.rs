//! Why a registry cannot be opened.

use crate::store::StoreError;

/// Why a registry cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record does not read.
    #[error(
        "the stored record {table}/{key} does not read: {detail}; restore a backup (mesh-coordinator restore), or run the version of mesh-coordinator that wrote it"
    )]
    Record {
        /// The record's table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The log of operations was altered, or lost a part.
    #[error(
        "the log of operations does not verify at entry {seq}: {detail}; somebody altered the store, or the disk did: restore a backup (mesh-coordinator restore), and compare the two with mesh-coordinator log"
    )]
    Log {
        /// The number of the first entry that is not as it was written.
        seq: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// The stored services.toml is not understood.
    #[error(
        "the last accepted services.toml, as stored, is not understood: {0}; run the version of mesh-coordinator that accepted it"
    )]
    Services(String),
}
