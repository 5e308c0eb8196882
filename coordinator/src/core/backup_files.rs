//! The names of copies of the store, and where a restore finds them.
//!
//! ```text
//!   backups/20261122T204500Z-r42.redb    a store as it was at revision 42
//!   backups/….part                       one that is being written
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use mesh_host::clock::utc_text;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::Revision;

/// How a copy ends that is being written.
const DRAFT: &str = "part";

/// A copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackupFile {
    /// Its file.
    pub(crate) path: PathBuf,
    /// The revision that it is of.
    pub(crate) revision: Revision,
}

/// Lists the copies in a directory, oldest first; none if there is no such directory.
pub(crate) fn list(dir: &Path) -> Vec<BackupFile> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let backup = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".redb")?;
        let revision = Revision(name.rsplit_once("-r")?.1.parse().ok()?);
        Some(BackupFile { path, revision })
    };
    let mut backups: Vec<_> = entries.filter_map(|entry| backup(entry.path())).collect();
    backups.sort_by(|a, b| a.path.cmp(&b.path));
    backups
}

/// Returns the name of a copy of a revision, made now.
pub(crate) fn name(now: UnixTime, revision: Revision) -> String {
    format!("{}-r{revision}.redb", utc_text(now.0).replace(['-', ':'], ""))
}

/// Returns what a copy is called until it is whole.
pub(crate) fn draft(path: &Path) -> PathBuf {
    path.with_extension(DRAFT)
}

/// Lists what was begun and is not whole.
pub(crate) fn drafts(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == DRAFT)).collect()
}
