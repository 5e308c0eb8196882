//! `restore`: puts a backup in the place of the store, while no coordinator runs.
//!
//! ```text
//!   restore FILE   the backup, and nothing later
//!   restore        the newest good backup, and what the journal tells of the time since
//!                  with etcd: what etcd holds after it was restored by its own means, in a new epoch
//! ```
//! What the old store, or the journal where it is spoilt, knows of revocations and used tokens is carried over.
//! The new store is made beside the old one, read as a coordinator reads it, and raised to the next epoch:
//! nodes refuse a coordinator that went back, unless the epoch is a new one. The old store is kept under
//! another name.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{fs, io};

use mesh_host::clock::unix as now;
use mesh_host::clock::utc_text;
use mesh_host::files;
use mesh_proto::base::id::Revision;

use crate::base::noted_epoch::{NoteError, note, noted};
use crate::base::state_files::{JOURNAL, STORE};
use crate::config::{Config, ConfigError};
use crate::core::backup_files;
use crate::core::earlier_mesh::load_identity;
use crate::core::open_store::{open_etcd, setup};
use crate::keys::identity::KeyError;
use crate::registry::{Actor, Change, OpenError, Refused, Registry, Withdrawn};
use crate::store::{self, StoreError, StoreFile, StoreTable, Write, journal};

/// Why nothing was restored; the old store is where it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The backup holds what this version does not understand, or was altered.
    #[error("{file} cannot be used: {source}")]
    Backup {
        /// The backup.
        file: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// The new epoch cannot be stored.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A coordinator runs.
    #[error("a coordinator uses {0}; stop it first: `systemctl stop mesh-coordinator`")]
    Running(PathBuf),
    /// The mesh is not kept here.
    #[error(
        "the mesh is kept in etcd, which takes no file of ours: restore etcd with `etcdctl snapshot restore`, then run mesh-coordinator restore without a file, which begins a new epoch"
    )]
    Etcd,
    /// What etcd holds cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no usable identity key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is nothing to restore.
    #[error("there is no good backup in {0}; name a file that mesh-coordinator backup wrote")]
    None(PathBuf),
    /// The new epoch cannot be noted.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// A file cannot be copied or moved.
    #[error("cannot write {path}: {source}; check its disk and permissions, and run restore again")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// All records of a store, the log included.
type Stored = BTreeMap<(StoreTable, String), Vec<u8>>;

/// Restores a backup, or the newest with the journal. Says in lines what it did.
///
/// # Errors
/// `RestoreError` if nothing was restored.
pub fn restore(config: &Path, file: Option<&Path>) -> Result<Vec<String>, RestoreError> {
    let config = Config::load(config)?;
    if config.etcd.is_some() {
        return if file.is_some() { Err(RestoreError::Etcd) } else { renew(&config) };
    }
    let state = &config.state_dir;
    let place = state.join(STORE);
    refuse_running(&config)?;
    let old = present(&config, &place)?;
    let old_epoch = old.as_ref().map_or(0, Registry::epoch);
    let lock = old.as_ref().and_then(Registry::lock);
    let mut since = old.map(|old| old.withdrawn());
    let (source, revision, stored) = match file {
        Some(file) => {
            let (revision, stored) = read(file, state)?;
            (file.display().to_string(), revision, stored)
        }
        None => newest(&config)?,
    };
    // A journal that cannot be read is no reason to restore nothing.
    let leads_to = journal::leads_to(&state.join(JOURNAL)).ok().flatten();
    let is_behind = leads_to > since.as_ref().map(Withdrawn::revision);
    if file.is_some() && (since.is_none() || is_behind) {
        since = [since, journalled(&config)].into_iter().flatten().reduce(Withdrawn::newer);
    }

    let draft = state.join("store.redb.restored");
    let mut registry = build(&draft, revision, stored, &config)?;
    let epoch = registry.epoch().max(old_epoch).max(noted(state)) + 1;
    let is_told = match file {
        Some(_) => since.as_ref().is_some_and(|since| registry.is_behind(since)),
        None => since.is_some() || journal::begins(&state.join(JOURNAL)).is_some(),
    };
    let until = registry.last_entry();
    let nodes = registry.world().nodes.len();
    let change = Change::Restored { epoch, source: source.clone(), since };
    let applied = registry.apply(change, operator(), now())?;
    let gone = nodes - registry.world().nodes.len();
    let lock = lock.filter(|lock| registry.lock() != Some(*lock));
    drop(registry);

    // Noted first: a restore that is repeated never comes to the same epoch.
    note(state, epoch)?;
    let mut said = Vec::new();
    let mut keep = |name: &str, keep: fn(&Path, &Path) -> io::Result<()>| {
        let path = state.join(name);
        let aside = state.join(format!("{name}.before-epoch-{epoch}"));
        if path.exists() {
            keep(&path, &aside).map_err(|source| RestoreError::Io { path: aside.clone(), source })?;
            said.push(format!("kept the old {name} as {}", aside.display()));
        }
        Ok::<(), RestoreError>(())
    };
    // There is a store under its name at every moment, and the journal goes last: whoever is cut off here can repeat it.
    keep(STORE, |path, aside| fs::hard_link(path, aside))?;
    let moved = fs::rename(&draft, &place).and_then(|()| files::sync(state));
    moved.map_err(|source| RestoreError::Io { path: place, source })?;
    keep(JOURNAL, |path, aside| fs::rename(path, aside))?;
    files::sync(state).map_err(|source| RestoreError::Io { path: state.clone(), source })?;
    said.push(format!("restored {source}: revision {}, epoch {epoch}", applied.revision));
    if is_told {
        said.push(format!("what was revoked or used since stays so; {gone} nodes of the backup are expelled"));
    } else {
        let until = until.map_or_else(|| "the backup".into(), |at| utc_text(at.0));
        said.push(format!(
            "warning: nothing here tells what was revoked after {until}: nodes and tokens that you revoked since are good again; repeat mesh-coordinator revoke and mesh-coordinator token revoke at once"
        ));
    }
    if let Some(lock) = lock {
        said.push(format!(
            "warning: nodes hold to the lock {lock}, of which the backup does not know; when the coordinator runs, run mesh-coordinator lock init --key FILE (or lock replace) with that key"
        ));
    }
    said.push("next: start the coordinator: `systemctl start mesh-coordinator`".into());
    Ok(said)
}

/// Begins a new epoch on what etcd holds: nodes follow into it although its revision went back.
fn renew(config: &Config) -> Result<Vec<String>, RestoreError> {
    refuse_running(config)?;
    let key = load_identity(config)?.public();
    let (mut registry, at) = open_etcd(config, key)?;
    let epoch = registry.epoch().max(noted(&config.state_dir)) + 1;
    let until = registry.last_entry().map_or_else(|| "its snapshot".into(), |at| utc_text(at.0));
    let change = Change::Restored { epoch, source: "etcd by its own means".into(), since: None };
    note(&config.state_dir, epoch)?;
    let applied = registry.apply(change, operator(), now())?;
    let others = registry.coordinators().filter(|(other, _)| **other != key).count();
    Ok(vec![
        format!("took what {} holds, as of {until}: revision {}, epoch {epoch}", at.display(), applied.revision),
        "warning: if etcd went back, repeat what was revoked since: mesh-coordinator revoke, mesh-coordinator token revoke".into(),
        format!("next: start this coordinator: `systemctl start mesh-coordinator`, and restart the other {others} that use this etcd"),
    ])
}

/// Refuses while a coordinator runs here.
fn refuse_running(config: &Config) -> Result<(), RestoreError> {
    match UnixStream::connect(&config.admin_socket) {
        Ok(_) => Err(RestoreError::Running(config.admin_socket.clone())),
        Err(_) => Ok(()),
    }
}

/// Returns the present store, if it can be read and holds anything.
fn present(config: &Config, place: &Path) -> Result<Option<Registry>, RestoreError> {
    match store::peek(place) {
        Ok(StoreFile::Missing | StoreFile::Empty) => return Ok(None),
        // What is wrong with it comes out when it is opened.
        Ok(StoreFile::At(_)) | Err(_) => {}
    }
    match open(place, config) {
        Ok(registry) => Ok(Some(registry).filter(|registry| registry.world().revision > Revision(0))),
        Err(OpenError::Store(StoreError::Locked { path })) => Err(RestoreError::Running(path.into())),
        // That it cannot be read is why it is to be restored.
        Err(_) => Ok(None),
    }
}

/// Returns what the newest backup and the journal tell of revocations and used tokens, in place of a spoilt store.
fn journalled(config: &Config) -> Option<Withdrawn> {
    let (_, revision, stored) = newest(config).ok()?;
    let draft = config.state_dir.join("store.redb.journalled");
    let withdrawn = build(&draft, revision, stored, config).map(|registry| registry.withdrawn());
    let _ = fs::remove_file(&draft);
    withdrawn.ok()
}

/// Makes a new store of records, and opens it.
fn build(draft: &Path, revision: Revision, stored: Stored, config: &Config) -> Result<Registry, RestoreError> {
    remove(draft)?;
    let writes = stored.into_iter().map(|((table, key), value)| Write { table, key, value: Some(value) });
    store::copy(draft, revision, &writes.collect::<Vec<_>>())?;
    open(draft, config).map_err(|source| RestoreError::Backup { file: draft.to_owned(), source })
}

fn operator() -> Actor {
    Actor::Operator { uid: rustix::process::getuid().as_raw() }
}

fn open(path: &Path, config: &Config) -> Result<Registry, OpenError> {
    Registry::open(store::open_embedded(path)?, setup(config))
}

/// Reads a backup. A copy is opened, because opening writes.
fn read(file: &Path, state: &Path) -> Result<(Revision, Stored), RestoreError> {
    let draft = state.join("store.redb.read");
    remove(&draft)?;
    let copied = fs::copy(file, &draft).map_err(|source| RestoreError::Io { path: file.to_owned(), source });
    let read = copied.and_then(|_| {
        let store = store::open_embedded(&draft)?;
        let loaded = store.load()?;
        let mut stored = loaded.records;
        for (key, value) in store.scan(StoreTable::Log, "", usize::MAX)? {
            stored.insert((StoreTable::Log, key), value);
        }
        Ok((loaded.revision, stored))
    });
    remove(&draft)?;
    read
}

/// Returns the newest backup that is good, with the commits that the journal tells of since, or what a whole journal
/// tells if there is none.
fn newest(config: &Config) -> Result<(String, Revision, Stored), RestoreError> {
    for backup in backup_files::list(&config.backups).into_iter().rev() {
        let Ok((from, mut stored)) = read(&backup.path, &config.state_dir) else { continue };
        let to = journal::replay(&config.state_dir.join(JOURNAL), from, &mut stored)?;
        let commits = to.0 - from.0;
        let source = format!("{} and {commits} commits of the journal", backup.path.display());
        return Ok((source, to, stored));
    }
    // A journal that begins with the mesh needs no backup.
    let mut stored = Stored::new();
    let to = journal::replay(&config.state_dir.join(JOURNAL), Revision(0), &mut stored)?;
    if to == Revision(0) {
        return Err(RestoreError::None(config.backups.clone()));
    }
    Ok((format!("{} commits of the journal", to.0), to, stored))
}

fn remove(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RestoreError::Io { path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
