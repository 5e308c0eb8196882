//! Copies of the store: one each hour by itself, and whenever the journal got long, of which the newest 24 are kept.
//!
//! ```text
//!   snapshot ─▶ DRAFT ─▶ synced ─▶ renamed ─▶ too old copies go ─▶ what the journal tells twice goes
//! ```
//! Whoever is cut off between two of these steps has a newest copy that the journal continues to the last commit.
//! A copy is made of what the registry holds at one moment and written beside it, so that changes do not wait.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::base::blocking::blocking;
use crate::core::Core;
use crate::core::backup_files::{draft, drafts, list, name};
use crate::core::status_snapshot::StatusSnapshot;
use crate::store::{self, StoreError, journal};
use mesh_host::clock::unix as now;
use mesh_host::files;

/// How often the store is copied, if it changed.
const EVERY: Duration = Duration::from_secs(3600);
/// How often it is looked how long the journal is.
const LOOK: Duration = Duration::from_secs(1);
/// How often a copy is tried again that could not be written.
const AGAIN: Duration = Duration::from_secs(60);
/// Most copies kept; the oldest go.
const KEPT: usize = 24;

/// What is copied, and where to.
pub(crate) struct Backups {
    /// The registry, and what it published.
    pub(crate) core: Arc<Core>,
    /// Where the copies are.
    pub(crate) dir: PathBuf,
    /// The journal of the store, which begins at one of the copies.
    pub(crate) journal: PathBuf,
    /// What the status shows.
    pub(crate) shown: watch::Sender<StatusSnapshot>,
}

/// Copies the store each hour, and when the journal got long, for ever.
pub(crate) async fn keep_backups(backups: Backups) {
    let Backups { core, dir, journal, shown } = &backups;
    // A journal that begins after the newest copy has nothing to continue, nor has one of a store that went back.
    let newest = list(dir).pop().map(|backup| backup.revision);
    let begins = journal::begins(journal);
    let mut due = newest.is_none() || begins > newest || newest > Some(core.world().revision);
    loop {
        if !due {
            until_due(journal).await;
        }
        due = match copy(&backups).await {
            Ok(()) => {
                if journal::length(journal) >= journal::MOST {
                    // The clock went back, and an older copy passes for the newest.
                    sleep(AGAIN).await;
                }
                false
            }
            Err(error) => {
                tracing::error!("no backup could be made: {error}");
                sleep(AGAIN).await;
                true
            }
        };
        shown.send_modify(|shown| shown.backup_failed = due);
    }
}

/// Waits for the end of an hour, or until the journal is as long as it may be.
async fn until_due(journal: &Path) {
    let end = Instant::now() + EVERY;
    while Instant::now() < end && journal::length(journal) < journal::MOST {
        sleep(LOOK).await;
    }
}

/// Copies the store if it changed since the newest copy, and removes what is too old.
async fn copy(Backups { core, dir, journal, .. }: &Backups) -> Result<(), StoreError> {
    let (dir, journal) = (dir.clone(), journal.clone());
    let newest = list(&dir).pop().map(|backup| backup.revision);
    let (revision, writes) = core.with(|registry| registry.snapshot()).await?;
    let is_held = newest == Some(revision);
    let written = blocking(move || {
        let at = |source| StoreError::io("write", &dir, source);
        if is_held {
            return shed(&dir, &journal);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at)?;
        let path = dir.join(name(now(), revision));
        let draft = draft(&path);
        for unfinished in drafts(&dir) {
            fs::remove_file(unfinished).map_err(at)?;
        }
        store::copy(&draft, revision, &writes)?;
        fs::rename(&draft, &path).and_then(|()| files::sync(&dir)).map_err(at)?;
        let backups = list(&dir);
        for old in backups.iter().rev().skip(KEPT) {
            fs::remove_file(&old.path).map_err(at)?;
        }
        tracing::info!(%revision, "the store was copied");
        shed(&dir, &journal)
    });
    written.await
}

/// Removes what the journal tells although copies hold it.
fn shed(dir: &Path, journal: &Path) -> Result<(), StoreError> {
    if !journal.exists() {
        return Ok(());
    }
    let held: Vec<_> = list(dir).into_iter().map(|backup| backup.revision).collect();
    journal::shed(journal, &held, journal::MOST).map_err(|source| StoreError::io("write", journal, source))
}
