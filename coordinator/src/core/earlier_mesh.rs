//! Whether a store without commits is that of a new mesh, or all that is left of an earlier one.
//!
//! ```text
//!   store           traces of a mesh   journal of the store   verdict
//!   not committed   none               –                      begins
//!   not committed   any                –                      empty: refused
//!   at r            –                  leads to r or less     goes on
//!   at r            –                  leads further than r   behind: refused
//! ```
//! Traces are lines of the journal, backups, the marker, and an epoch that only a restore begins. Looking for them
//! alters nothing.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_host::identity::Identity;
use mesh_proto::base::id::Revision;

use crate::base::noted_epoch::noted;
use crate::base::state_files::{EPOCH, FOUNDED, JOURNAL, NAME, STORE};
use crate::config::Config;
use crate::core::backup_files;
use crate::keys::identity::{self, KeyError};
use crate::store::{StoreError, StoreFile, journal, peek};

/// What tells of an earlier mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Traces {
    /// The journal, and the revision that its last good line leads to.
    journal: Option<(PathBuf, Revision)>,
    /// The newest backup.
    backup: Option<PathBuf>,
    /// The marker.
    marker: Option<PathBuf>,
    /// The note of an epoch, and which.
    epoch: Option<(PathBuf, u64)>,
}

/// What a store is, given what lies around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing was ever kept here.
    Begins,
    /// It is the store of the mesh.
    GoesOn,
    /// It holds nothing, and a mesh was kept here.
    IsEmpty,
    /// The journal tells of commits that it lacks.
    IsBehind,
}

/// Judges a store at a revision, 0 if nothing was committed; `journal` is where the journal of this very store leads.
fn judge(store: Revision, journal: Option<Revision>, has_traces: bool) -> Verdict {
    match store {
        Revision(0) if has_traces => Verdict::IsEmpty,
        Revision(0) => Verdict::Begins,
        at if journal.is_some_and(|journal| journal > at) => Verdict::IsBehind,
        _ => Verdict::GoesOn,
    }
}

/// Refuses an embedded store that lost the mesh that was kept in it. Alters nothing.
///
/// # Errors
/// `StoreError::Lost` if it did; others if store or journal cannot be read.
pub(crate) fn refuse_lost(config: &Config) -> Result<(), StoreError> {
    let traces = Traces::find(config)?;
    let has_traces = !traces.sentence().is_empty();
    if !has_traces {
        return Ok(());
    }
    let path = config.state_dir.join(STORE);
    let found = peek(&path)?;
    let at = match found {
        StoreFile::Missing | StoreFile::Empty => Revision(0),
        StoreFile::At(at) => at,
    };
    let journal = traces.journal.as_ref().map(|(_, to)| *to);
    let what = match (judge(at, journal, has_traces), found) {
        (Verdict::Begins | Verdict::GoesOn, _) => return Ok(()),
        (Verdict::IsEmpty, StoreFile::Missing) => format!("{} is missing", path.display()),
        (Verdict::IsEmpty, StoreFile::Empty) => format!("{} has 0 bytes", path.display()),
        (Verdict::IsEmpty, StoreFile::At(_)) => format!("{} holds nothing", path.display()),
        (Verdict::IsBehind, _) => format!("{} is at revision {at} only", path.display()),
    };
    let restore = match traces.journal.is_some() || traces.backup.is_some() {
        true => "run `mesh-coordinator restore`",
        false => "run `mesh-coordinator restore FILE` with a backup that is kept elsewhere",
    };
    Err(traces.lost(what, restore))
}

/// Refuses an etcd whose prefix lost the mesh that was kept there: it is at this revision. Alters nothing.
///
/// # Errors
/// `StoreError::Lost` if it did; others if the journal of an earlier store here cannot be read.
pub(crate) fn refuse_lost_etcd(config: &Config, at: Revision, shown: &Path) -> Result<(), StoreError> {
    let traces = Traces::find(config)?;
    // No journal is kept of what is in etcd: one that is here is of a store before.
    match judge(at, None, !traces.sentence().is_empty()) {
        Verdict::Begins | Verdict::GoesOn | Verdict::IsBehind => Ok(()),
        Verdict::IsEmpty => {
            let what = format!("{} holds nothing", shown.display());
            Err(traces.lost(what, "restore etcd (etcdctl snapshot restore), then run `mesh-coordinator restore`"))
        }
    }
}

/// Reads the coordinator's identity key.
///
/// # Errors
/// `KeyError::Lost` if it is gone and a mesh is kept here, `KeyError::Missing` if there is neither; others if it cannot be
/// used.
pub(crate) fn load_identity(config: &Config) -> Result<Identity, KeyError> {
    match identity::load(&config.state_dir) {
        Err(missing @ KeyError::Missing(_)) => Err(lost_identity(config).unwrap_or(missing)),
        found => found,
    }
}

/// Returns how to go on without the identity key of a mesh that is kept here; none if there is a key, or no mesh.
pub(crate) fn lost_identity(config: &Config) -> Option<KeyError> {
    let path = identity::path(&config.state_dir);
    let store = config.state_dir.join(STORE);
    let is_kept = config.etcd.is_none() && store.metadata().is_ok_and(|found| found.len() > 0);
    // A journal that cannot be read is a trace, too.
    let traces = Traces::find(config).map_or_else(|error| error.to_string(), |traces| traces.sentence());
    let store = is_kept.then(|| format!("the store is {}", store.display()));
    let traces: Vec<String> = store.into_iter().chain(Some(traces).filter(|traces| !traces.is_empty())).collect();
    if path.symlink_metadata().is_ok() || traces.is_empty() {
        return None;
    }
    let name = fs::read_to_string(config.state_dir.join(NAME)).unwrap_or_default();
    let name = Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or("mesh");
    let mut anew = format!("mesh-coordinator init --new-identity --name {name}");
    config.public.iter().for_each(|public| anew.push_str(&format!(" --public {public}")));
    Some(KeyError::Lost { path, traces: traces.join(", "), anew })
}

impl Traces {
    fn find(config: &Config) -> Result<Self, StoreError> {
        let state = &config.state_dir;
        let journal = state.join(JOURNAL);
        let marker = state.join(FOUNDED);
        let mut backups = backup_files::list(&config.backups).into_iter();
        let epoch = noted(state);
        Ok(Self {
            journal: journal::leads_to(&journal)?.map(|to| (journal, to)),
            backup: backups.rfind(|backup| backup.revision > Revision(0)).map(|backup| backup.path),
            marker: marker.symlink_metadata().is_ok().then_some(marker),
            // The first is noted before anything is committed.
            epoch: (epoch > 1).then(|| (state.join(EPOCH), epoch)),
        })
    }

    /// Names what is there; nothing if there are no traces.
    fn sentence(&self) -> String {
        let Self { journal, backup, marker, epoch } = self;
        let named = [
            journal.as_ref().map(|(path, to)| format!("the journal {} leads to revision {to}", path.display())),
            backup.as_ref().map(|path| format!("the newest backup is {}", path.display())),
            marker.as_ref().map(|path| format!("the marker is {}", path.display())),
            epoch.as_ref().map(|(path, epoch)| format!("{} notes epoch {epoch}", path.display())),
        ];
        named.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn lost(&self, what: String, restore: &str) -> StoreError {
        StoreError::Lost { what, traces: self.sentence(), restore: restore.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where store and journal may be.
    const REVISIONS: [u64; 4] = [0, 3, 5, 7];

    #[test]
    fn every_combination_of_store_and_traces_is_judged() {
        let mut seen = 0;
        for store in REVISIONS {
            for journal in [None, Some(3), Some(5), Some(7)] {
                for bits in 0..8 {
                    let path = |bit: u32| (bits >> bit & 1 == 1).then(|| PathBuf::from(format!("trace-{bit}")));
                    let traces = Traces {
                        journal: journal.map(|to| (PathBuf::from("journal"), Revision(to))),
                        backup: path(0),
                        marker: path(1),
                        epoch: path(2).map(|path| (path, 2)),
                    };
                    let has_traces = journal.is_some() || bits != 0;
                    let sentence = traces.sentence();
                    assert_eq!(sentence.is_empty(), !has_traces, "{traces:?}");
                    assert_eq!(sentence.contains("the journal journal leads"), journal.is_some());
                    for bit in 0..3 {
                        assert_eq!(sentence.contains(&format!("trace-{bit}")), path(bit).is_some(), "{sentence}");
                    }
                    let wanted = match (store, journal) {
                        (0, _) if has_traces => Verdict::IsEmpty,
                        (0, _) => Verdict::Begins,
                        (3, Some(5 | 7)) | (5, Some(7)) => Verdict::IsBehind,
                        _ => Verdict::GoesOn,
                    };
                    let verdict = judge(Revision(store), journal.map(Revision), has_traces);
                    assert_eq!(verdict, wanted, "store at {store}, {traces:?}");
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 128);
    }
}
