//! What only the status shows: plain values, which tasks replace and nobody waits for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use crate::core::file_report::FileReport;

/// How the coordinator is at one moment, apart from what the registry holds.
#[derive(Debug, Clone)]
pub(crate) struct StatusSnapshot {
    /// When the coordinator started.
    pub(crate) started: Instant,
    /// Where the control channel listens.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where metrics should be served and cannot be.
    pub(crate) unserved: Option<SocketAddr>,
    /// The store's file, or where its etcd is.
    pub(crate) store: PathBuf,
    /// Where copies of the store are written.
    pub(crate) backups: PathBuf,
    /// Whether the last of them could not be made.
    pub(crate) backup_failed: bool,
    /// What is wrong with the addresses of `public`, in sentences.
    pub(crate) public: Vec<String>,
    /// What is known of services.toml.
    pub(crate) file: FileReport,
}
