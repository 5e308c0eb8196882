//! Copies of the store: one each hour by itself, and where a restore finds them.
//!
//! ```text
//!   backups/20261122T204500Z-r42.redb    a store as it was at revision 42; the newest 24 are kept
//!   backups/….part                       one that is being written
//! ```
//! A copy is made of what the registry holds at one moment and written beside it, so that changes do not wait.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::id::Revision;
use tokio::time::sleep;

use crate::base::clock::now;
use crate::base::state_files::JOURNAL;
use crate::base::text_time::time;
use crate::core::Hub;
use crate::store::{self, StoreError, journal};

/// How often the store is copied, if it changed.
const EVERY: Duration = Duration::from_secs(3600);
/// How often a copy is tried again that could not be written.
const AGAIN: Duration = Duration::from_secs(60);
/// Most copies kept; the oldest go.
const KEPT: usize = 24;

/// A copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backup {
    /// Its file.
    pub(crate) path: PathBuf,
    /// The revision that it is of.
    pub(crate) revision: Revision,
}

/// Lists the copies in a directory, oldest first; none if there is no such directory.
pub(crate) fn list(dir: &Path) -> Vec<Backup> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let backup = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".redb")?;
        let revision = Revision(name.rsplit_once("-r")?.1.parse().ok()?);
        Some(Backup { path, revision })
    };
    let mut backups: Vec<_> = entries.filter_map(|entry| backup(entry.path())).collect();
    backups.sort_by(|a, b| a.path.cmp(&b.path));
    backups
}

/// Copies the store each hour, for ever.
pub(crate) async fn keep(hub: Arc<Hub>) {
    // A journal that begins after the newest copy has nothing to continue, nor has one of a store that went back.
    let newest = list(&hub.config.backups).pop().map(|backup| backup.revision);
    let journal = journal::begins(&hub.config.state_dir.join(JOURNAL));
    let mut due = newest.is_none() || journal > newest || newest > Some(hub.world().revision);
    loop {
        if !due {
            sleep(EVERY).await;
        }
        due = match copy(&hub).await {
            Ok(()) => false,
            Err(error) => {
                tracing::error!("no backup could be made: {error}");
                sleep(AGAIN).await;
                true
            }
        };
        hub.note_backup(!due);
    }
}

/// Copies the store if it changed since the newest copy, and removes what is too old.
async fn copy(hub: &Arc<Hub>) -> Result<(), StoreError> {
    let dir = hub.config.backups.clone();
    let journal = hub.config.state_dir.join(JOURNAL);
    let newest = list(&dir).pop().map(|backup| backup.revision);
    let (revision, writes) = hub.with(|registry| registry.snapshot()).await?;
    if newest == Some(revision) {
        return Ok(());
    }
    let stamp = time(now().0).replace(['-', ':'], "");
    let written = tokio::task::spawn_blocking(move || {
        let at = |source: io::Error| StoreError::Io {
            doing: "write",
            path: dir.display().to_string(),
            source: source.into(),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at)?;
        let path = dir.join(format!("{stamp}-r{revision}.redb"));
        let draft = path.with_extension("part");
        let _ = fs::remove_file(&draft);
        store::copy(&draft, revision, &writes)?;
        fs::rename(&draft, &path).and_then(|()| fs::File::open(&dir)?.sync_all()).map_err(at)?;
        let backups = list(&dir);
        for old in backups.iter().rev().skip(KEPT) {
            fs::remove_file(&old.path).map_err(at)?;
        }
        match list(&dir).first() {
            Some(oldest) if journal.exists() => journal::prune(&journal, oldest.revision).map_err(at),
            _ => Ok(()),
        }
    });
    match written.await {
        Ok(written) => written.inspect(|()| tracing::info!(%revision, "the store was copied")),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
