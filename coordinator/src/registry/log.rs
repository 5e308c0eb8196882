//! The log of operations: who altered what, when, and from which revision.
//!
//! ```text
//!   key   0000000000000042                  one entry for each alteration, in the same transaction
//!   value HASH BODY                         HASH = SHA-256( hash of entry 41 ‖ BODY ), in hexadecimal digits
//! ```
//! The body is JSON and is hashed as it lies there, so that entries of a newer version verify too. Whoever
//! alters an entry must alter all after it and the head; nodes remember heads. At most `MAX_ENTRIES` are kept:
//! above, the oldest `STEP` go, and the anchor keeps number and hash of the last that went, from where
//! the rest still verifies.

use mesh_host::sums::link;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, NodeName, Revision, TunnelKey};
use mesh_proto::trust::audit_log::RawEntry;
use serde::{Deserialize, Serialize};

use super::open_error::OpenError;
use crate::store::{Store, StoreError, StoreTable, Write};

/// Most entries kept, about 20 MB.
pub(super) const MAX_ENTRIES: u64 = 50_000;
/// How many go at once when there are too many.
const STEP: u64 = 1000;
/// Entries read from the store at a time.
pub(super) const PAGE: usize = 1000;
/// Longest sentence of an entry, in bytes.
const MAX_TEXT: usize = 1024;

pub use mesh_proto::trust::audit_log::{LogHash, LogHead};

/// What is stored of the log apart from its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Ends {
    /// The last entry.
    pub(super) head: LogHead,
    /// The last entry that was dropped.
    pub(super) anchor: LogHead,
}

/// One entry, as it is hashed. Fields are only ever added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number.
    pub seq: u64,
    /// When it happened.
    pub at: UnixTime,
    /// Who did it, as `Actor` prints.
    pub who: String,
    /// What it is, as a word for programs.
    pub kind: String,
    /// What happened, as a sentence.
    pub text: String,
    /// The node that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// The public half of the join token that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The identity that it admits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityKey>,
    /// The identity that this one takes the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<IdentityKey>,
    /// The tunnel keys of the static nodes that it admits; at most 4096, and nodes warn of others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statics: Vec<TunnelKey>,
    /// The identities that it expels for good; at most 1024, the rest is told by the roll of the epoch that begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expels: Vec<IdentityKey>,
    /// The revision that it was decided on.
    pub from: Revision,
    /// The revision that it led to.
    pub to: Revision,
}

/// An entry with its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// The entry.
    #[serde(flatten)]
    pub entry: Entry,
    /// The hash of it and all before it.
    pub hash: LogHash,
}

impl Entry {
    /// Makes an entry that gets its number and revisions when it is committed.
    pub(super) fn new(
        at: UnixTime,
        who: String,
        kind: String,
        text: String,
        node: Option<NodeName>,
        token: Option<String>,
    ) -> Self {
        Self { at, who, kind, text, node, token, ..Self::default() }
    }
}

impl Ends {
    /// Numbers an entry, chains it to the last, and returns what is to be written of it.
    pub(super) fn append(&mut self, mut entry: Entry) -> Result<Write, String> {
        entry.seq = self.head.seq + 1;
        let end = entry.text.floor_char_boundary(MAX_TEXT);
        entry.text.truncate(end);
        let body = serde_json::to_string(&entry).map_err(|error| format!("log/{}: {error}", entry.seq))?;
        let hash = link(&self.head.hash, body.as_bytes());
        self.head = LogHead { seq: entry.seq, hash };
        let value = Some(format!("{hash} {body}").into_bytes());
        Ok(Write { table: StoreTable::Log, key: key(entry.seq), value })
    }

    /// Moves the anchor when there are too many entries, and returns what is to be deleted.
    pub(super) fn compact(&mut self, store: &dyn Store, most: u64) -> Result<Vec<Write>, StoreError> {
        if self.head.seq - self.anchor.seq <= most {
            return Ok(Vec::new());
        }
        let last = self.anchor.seq + STEP.min(most);
        let found = store.scan(StoreTable::Log, &key(last), 1)?;
        let Some(hash) = found.iter().find(|(k, _)| *k == key(last)).and_then(|(_, value)| Some(split(value)?.0))
        else {
            return Ok(Vec::new());
        };
        let gone = self.anchor.seq + 1..=last;
        self.anchor = LogHead { seq: last, hash };
        Ok(gone.map(|seq| Write { table: StoreTable::Log, key: key(seq), value: None }).collect())
    }

    /// Checks every entry from the anchor to the head. In a store that others use too, there may be more by now.
    pub(super) fn verify(&self, store: &dyn Store) -> Result<(), OpenError> {
        let broken = |seq: u64, what: &str| Err(OpenError::Log { seq, detail: what.to_owned() });
        let mut last = self.anchor;
        let is_shared = store.follow().is_some();
        loop {
            let page = store.scan(StoreTable::Log, &key(last.seq + 1), PAGE)?;
            for (found, value) in &page {
                let seq = last.seq + 1;
                if is_shared && last == self.head {
                    return Ok(());
                }
                if *found != key(seq) {
                    return broken(seq, "it is missing");
                }
                let Some((hash, body)) = split(value) else { return broken(seq, "it is no entry") };
                if link(&last.hash, body) != hash {
                    return broken(seq, "its hash is not that of its text and the entries before it");
                }
                last = LogHead { seq, hash };
            }
            if page.len() < PAGE {
                break;
            }
        }
        match last == self.head {
            true => Ok(()),
            false => broken(last.seq + 1, &format!("the log ends there, and should end with {}", self.head.seq)),
        }
    }
}

/// Reads entries from a number on, at most `PAGE`.
pub(super) fn page(store: &dyn Store, from: u64) -> Result<Vec<Logged>, StoreError> {
    read_page(store, from, |hash, body| Some(Logged { entry: serde_json::from_slice(body).ok()?, hash }))
}

/// Reads entries from a number on as they are hashed, at most `PAGE`.
pub(super) fn raw_page(store: &dyn Store, from: u64) -> Result<Vec<RawEntry>, StoreError> {
    read_page(store, from, |hash, body| Some(RawEntry { hash, body: String::from_utf8(body.to_vec()).ok()? }))
}

fn read_page<T>(
    store: &dyn Store,
    from: u64,
    read: impl Fn(LogHash, &[u8]) -> Option<T>,
) -> Result<Vec<T>, StoreError> {
    let page = store.scan(StoreTable::Log, &key(from), PAGE)?;
    let entries = page.iter().filter_map(|(_, value)| split(value));
    Ok(entries.filter_map(|(hash, body)| read(hash, body)).collect())
}

/// Returns the key of an entry: keys sort as numbers do.
fn key(seq: u64) -> String {
    format!("{seq:016}")
}

fn split(value: &[u8]) -> Option<(LogHash, &[u8])> {
    let (hash, rest) = value.split_at_checked(64)?;
    let hash = std::str::from_utf8(hash).ok()?.parse().ok()?;
    Some((hash, rest.strip_prefix(b" ")?))
}
