//! Where the registry keeps what must not be lost.
//!
//! A store holds small JSON records in named tables, and one revision for all of them. A commit states the
//! revision it was decided on; it is taken whole or not at all, and only if nobody else was quicker. What a
//! commit acknowledged survives a power cut.

mod disk;
mod embedded;
pub mod etcd;
pub mod journal;
mod marked;
#[cfg(test)]
mod memory;
mod peek;
mod reserve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use mesh_proto::base::id::Revision;

use tokio::sync::watch;

pub use embedded::{Embedded, copy, open_embedded};
pub use etcd::Etcd;
pub(crate) use marked::Marked;
#[cfg(test)]
pub(crate) use memory::Memory;
pub use peek::{StoreFile, peek};
pub(crate) use reserve::RESERVE;

/// A table of records. Names are part of the stored format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoreTable {
    /// One record each on the format, the pool of addresses.
    Meta,
    /// The accepted services.toml.
    Services,
    /// Nodes by name.
    Nodes,
    /// VIPs by service.
    Vips,
    /// Join tokens by their public half.
    Tokens,
    /// Revoked identities by key.
    Revoked,
    /// Issuers' keys that were pushed, by the name of their `[[trust]]`.
    Trust,
    /// Issuers' tokens that were used, by their digest.
    Spent,
    /// The coordinators by their keys.
    Coordinators,
    /// Addresses and blocks that rest, by their nets.
    Freed,
    /// The log of operations by number, in digits that sort as the numbers do.
    Log,
}

impl StoreTable {
    /// The tables that are read whole: all but the log.
    pub const ALL: [Self; 10] = [
        Self::Meta,
        Self::Services,
        Self::Nodes,
        Self::Vips,
        Self::Tokens,
        Self::Revoked,
        Self::Trust,
        Self::Spent,
        Self::Coordinators,
        Self::Freed,
    ];

    /// Returns the name that the table is stored by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Services => "services",
            Self::Nodes => "nodes",
            Self::Vips => "vips",
            Self::Tokens => "tokens",
            Self::Revoked => "revoked",
            Self::Trust => "trust",
            Self::Spent => "spent",
            Self::Coordinators => "coordinators",
            Self::Freed => "freed",
            Self::Log => "log",
        }
    }

    /// Returns the table that is stored by a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain([Self::Log]).find(|table| table.name() == name)
    }
}

/// One alteration of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The table.
    pub table: StoreTable,
    /// The record's key.
    pub key: String,
    /// The record's new value, or `None` to delete it.
    pub value: Option<Vec<u8>>,
}

/// All that a store holds, but for the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// The revision of the last commit; 0 for a new store.
    pub revision: Revision,
    /// The records, by table and key.
    pub records: BTreeMap<(StoreTable, String), Vec<u8>>,
}

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else committed first.
    #[error(
        "the store is at revision {found}, but the change was decided on revision {expected}; nothing was written, try again"
    )]
    Conflict {
        /// The revision that the change was decided on.
        expected: Revision,
        /// The revision that the store is at.
        found: Revision,
    },
    /// The file cannot be opened, read or written.
    #[error(
        "cannot {doing} {path}: {source}; check the disk's space, health and permissions, and start the coordinator again"
    )]
    Io {
        /// What was being done: `open`, `read`, `write`.
        doing: &'static str,
        /// The file.
        path: String,
        /// What the system says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The disk has no room; nothing was written, and nothing is lost.
    #[error("the disk of {path} is full; nothing was written: make room there")]
    Full {
        /// The file.
        path: String,
    },
    /// The file of a copy exists already.
    #[error("{path} exists and is not overwritten; name another file, or move it away")]
    Exists {
        /// The file.
        path: String,
    },
    /// Another process has the file open.
    #[error(
        "{path} is open in another process; stop the mesh-coordinator that runs (systemctl stop mesh-coordinator), or set another `state_dir`"
    )]
    Locked {
        /// The file.
        path: String,
    },
    /// The file is torn or was written by something else.
    #[error(
        "{path} is damaged: {detail}; run `systemctl stop mesh-coordinator; mesh-coordinator restore`, which takes the newest good backup and what the journal tells since"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// It held a mesh once, and holds less of it now, or nothing.
    #[error(
        "{what}, but a mesh was kept here: {traces}; nothing was changed: {restore}, or, to begin a new mesh, move these away"
    )]
    Lost {
        /// The store, and what is wrong with it.
        what: String,
        /// What tells of the mesh.
        traces: String,
        /// How to bring it back.
        restore: String,
    },
    /// It went back while it was used.
    #[error(
        "the store went back from revision {from} to {to} while it was used; nothing was changed: restore etcd (etcdctl snapshot restore), then stop the coordinator and run mesh-coordinator restore"
    )]
    WentBack {
        /// The revision that was seen.
        from: Revision,
        /// The revision that the store is at.
        to: Revision,
    },
    /// Etcd cannot be reached, or refuses.
    #[error("cannot {doing} {at}: {detail}; {advice}")]
    Etcd {
        /// What was being done: `open`, `read`, `write`, `watch`, `use`.
        doing: &'static str,
        /// The member, file or key.
        at: String,
        /// What it says.
        detail: String,
        /// What to do.
        advice: String,
    },
    /// The commit is larger than etcd takes.
    #[error(
        "the change is larger than etcd takes in one transaction ({detail}); nothing was written: make it in smaller steps, or raise --max-request-bytes and --max-txn-ops of every member of etcd"
    )]
    TooLarge {
        /// What etcd says.
        detail: String,
    },
    /// The answer to a commit was lost, and etcd is not there to be asked again.
    #[error(
        "it is not known whether the change was written: {detail}; when the store answers again, look whether the change is there before you repeat it"
    )]
    Unknown {
        /// What happened.
        detail: String,
    },
}

impl StoreError {
    /// Says what the system refused to do with a file.
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.display().to_string(), source: source.into() }
    }

    /// Says whether the store is not to be trusted after a commit that failed so: what a disk could not sync may
    /// be lost although reading still shows it.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Damaged { .. } => true,
            Self::Conflict { .. }
            | Self::Full { .. }
            | Self::Exists { .. }
            | Self::Locked { .. }
            | Self::Lost { .. }
            | Self::WentBack { .. }
            | Self::Etcd { .. }
            | Self::TooLarge { .. }
            | Self::Unknown { .. } => false,
        }
    }
}

/// What is known of a store that others write to as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreState {
    /// The newest revision that was seen.
    pub revision: Revision,
    /// Why the store does not answer, if it does not.
    pub error: Option<String>,
}

/// A place for records, with one revision for all of them.
pub trait Store: Send {
    /// Reads everything but the log.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged.
    fn load(&self) -> Result<Records, StoreError>;

    /// Reads at most `limit` records of one table, in the order of their keys, from `from` on.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged.
    fn scan(&self, table: StoreTable, from: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Writes all of `writes` and moves from revision `expected` to `next`, or does nothing. Returns after
    /// the writes are durable.
    ///
    /// # Errors
    /// `Conflict` if the store is not at `expected`; others if it cannot be written.
    fn commit(&mut self, expected: Revision, next: Revision, writes: &[Write]) -> Result<(), StoreError>;

    /// Says why only what takes rights away should be written now, if so: there is little room left.
    fn shortage(&mut self) -> Option<String> {
        None
    }

    /// Returns what is seen of others' commits; none if nobody else can write to the store.
    fn follow(&self) -> Option<watch::Receiver<StoreState>> {
        None
    }

    /// Asks for the revision of the last commit, whoever made it; none if nobody else can write to the store.
    ///
    /// # Errors
    /// If the store does not answer.
    fn newest(&self) -> Result<Option<Revision>, StoreError> {
        Ok(None)
    }
}
