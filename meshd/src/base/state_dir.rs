//! What survives a restart: the enrolment, the last map, and which peers were active.
//! `base::files` names its files. Every file is replaced as a whole: written beside, synced, renamed, and the directory
//! synced. What is true whether or not the disk takes it is kept (`keep`, and `base::unstored`): it waits for the disk.
//! What counts only once it is stored is replaced (`replace`), and whoever wrote it gives up.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt as _, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mesh_host::files;
use mesh_host::sums::{seal, unseal};
use mesh_proto::base::addr::{Flat, MeshRange};
use mesh_proto::base::block_map::BlockMap;
use mesh_proto::base::id::{Domain, IdentityKey, MeshName, NodeId, NodeName, SiteName};
use mesh_proto::model::netmap::NetMap;
use mesh_proto::wire::JoinResponse;
use rustix::fs::{FlockOperation, StatVfsMountFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use crate::base::files::{
    ACTIVITY, ALL_OF_MACHINE, ALL_OF_MESH, ALL_OF_NODE, ENROLMENT, HANDSHAKE_TIME, LOCK, LOCK_KEY, NETMAP,
    NETMAP_ASIDE, PREVIOUS_NETMAP, StateFile, TRIAL,
};
use crate::base::runtime::aside;
use crate::base::unstored::{Content, LONGEST, Shelf, TURN, Unstored};

/// Largest file that is read back, in bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// Most peers that are remembered as active.
const MAX_ACTIVE: usize = 1024;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refuses.
    #[error("cannot {verb} {}: {error}; {}", path.display(), advice(error, path, "run as root, or set `state_dir` in meshd.toml"))]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others could read a secret or replace a file.
    #[error("{} may be used by others (mode {mode:o}); run `chmod {wanted} {}`", path.display(), path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode to set.
        wanted: &'static str,
    },
    /// Another daemon uses it.
    #[error(
        "another meshd{} uses {}; stop it first (systemctl stop meshd), or set another `state_dir`",
        process.map(|id| format!(" (process {id})")).unwrap_or_default(), dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The other's process, as it knows itself; none if it did not write it down.
        process: Option<u32>,
    },
    /// Without it nobody would know this node.
    #[error("{} is lost, though this node has joined a mesh that knows it by it; restore it from a backup, or {way}", path.display())]
    Lost {
        /// The file.
        path: PathBuf,
        /// What else helps.
        way: String,
    },
    /// The file says something else than was written.
    #[error("{} is damaged ({why}); restore it from a backup, or run `meshd leave` and join again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Says what helps where the operating system refuses a file: what its disk needs, else what `usual` says.
pub(crate) fn advice(error: &io::Error, path: &Path, usual: &str) -> String {
    let dir = path.parent().unwrap_or(path).display();
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT) => {
            format!("its disk is full: make room there (`df -h {dir}` and `df -i {dir}` show how much there is)")
        }
        Some(Errno::ROFS) => format!(
            "its file system is read-only: see in the kernel's log whether the disk fails (`dmesg`), and then run `mount -o remount,rw` on the mount that `findmnt -T {dir}` shows; a unit that was started meanwhile needs `systemctl restart meshd` after that"
        ),
        Some(Errno::IO) => "its disk fails: see the kernel's log (`dmesg`)".to_owned(),
        Some(_) | None => usual.to_owned(),
    }
}

impl StateError {
    /// Says whether what the node trusts, or is trusted by, is gone or in doubt: starting again does not cure it.
    pub fn is_of_trust(&self) -> bool {
        match self {
            Self::Open { .. } | Self::Lost { .. } | Self::Damaged { .. } => true,
            Self::Io { .. } | Self::Locked { .. } => false,
        }
    }
}

/// Holds the state directory for one daemon, until it is dropped.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

/// Which mesh the node belongs to, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The version of this file.
    pub version: u16,
    /// Addresses of coordinators, as `host:port`, that the newest map or token names.
    pub coordinators: Vec<String>,
    /// Those by which one was reached, the newest first; none where an older version joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worked: Vec<String>,
    /// Keys of coordinators.
    pub pins: Vec<IdentityKey>,
    /// The node's name.
    pub node: NodeName,
    /// The node's durable number.
    pub id: NodeId,
    /// Its site.
    pub site: SiteName,
    /// The mesh.
    pub mesh: MeshName,
    /// The mesh range.
    pub range: MeshRange,
    /// The node's address.
    pub address: Flat,
    /// Its pod blocks and their images.
    pub blocks: Vec<BlockMap>,
    /// The domains whose names never leave this node, with or without a map; none where an older version joined.
    #[serde(default)]
    pub domains: Vec<Domain>,
}

impl Enrolment {
    /// Takes what a coordinator answered to a join.
    pub fn new(response: &JoinResponse) -> Self {
        Self {
            version: 1,
            coordinators: response.coordinators.clone(),
            worked: Vec::new(),
            pins: response.pins.clone(),
            node: response.node.clone(),
            id: response.id,
            site: response.site.clone(),
            mesh: response.mesh.clone(),
            range: response.range,
            address: response.address,
            blocks: response.blocks.clone(),
            domains: response.netmap.mesh.domains.clone(),
        }
    }
}

/// A peer that was active in the last 10 minutes, with its last good endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Active {
    /// The peer.
    pub peer: NodeName,
    /// Where it answered.
    pub endpoint: SocketAddr,
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct State {
    dir: PathBuf,
    /// What waits for the disk.
    shelf: Shelf,
}

impl State {
    /// Opens the directory, and makes it where it is missing.
    ///
    /// # Errors
    /// `StateError` if it cannot be made, or others may write to it.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| failed("make", dir, error))?;
        let mode = fs::metadata(dir).map_err(|error| failed("look at", dir, error))?.mode();
        if mode & 0o022 != 0 {
            return Err(StateError::Open { path: dir.into(), mode: mode & 0o7777, wanted: "700" });
        }
        Ok(Self { dir: dir.into(), shelf: Shelf::default() })
    }

    /// Has it told what waits for the disk.
    #[must_use]
    pub fn telling(self, unstored: watch::Sender<Unstored>) -> Self {
        Self { shelf: self.shelf.telling(unstored), ..self }
    }

    /// Takes the directory for one daemon; the kernel gives it back when the process ends. On a read-only file system it
    /// is the file as it lies there, or the directory itself, for what is locked need not be written.
    ///
    /// # Errors
    /// `StateError::Locked` if another daemon has it.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.path(LOCK);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = match file {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::ROFS) => {
                File::open(&path).or_else(|_| File::open(&self.dir))
            }
            file => file,
        };
        let file = file.map_err(|error| failed("open", &path, error))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let process = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            return Err(StateError::Locked { dir: self.dir.clone(), process });
        }
        // Only so that others can say whom they wait for: a full disk is no reason not to run.
        // Of one length, so that nothing is left of a longer number.
        let _ = file.write_all_at(format!("{:<10}\n", std::process::id()).as_bytes(), 0);
        Ok(StateLock(file))
    }

    /// Returns the path of a file in the directory.
    pub(crate) fn path(&self, file: StateFile) -> PathBuf {
        self.dir.join(file.name())
    }

    /// Reads the enrolment; `None` if the node has not joined.
    ///
    /// # Errors
    /// `StateError` if there is one that cannot be read.
    pub fn enrolment(&self) -> Result<Option<Enrolment>, StateError> {
        let Some(bytes) = self.read(ENROLMENT)? else { return Ok(None) };
        let damaged = |why: String| StateError::Damaged { path: self.path(ENROLMENT), why };
        // One of an older version is not sealed.
        let body = match bytes.starts_with(b"{") {
            true => &bytes[..],
            false => unseal(&bytes).ok_or_else(|| damaged("its sum is that of another text".into()))?,
        };
        let enrolment: Enrolment = serde_json::from_slice(body).map_err(|error| damaged(error.to_string()))?;
        if enrolment.pins.is_empty() {
            return Err(damaged("it names no key of a coordinator".into()));
        }
        Ok(Some(enrolment))
    }

    /// Stores the enrolment.
    ///
    /// # Errors
    /// `StateError` if it cannot be written.
    pub fn save_enrolment(&self, enrolment: &Enrolment) -> Result<(), StateError> {
        self.replace(ENROLMENT, &seal(&json(enrolment)))
    }

    /// Stores the enrolment of a node that has joined: it holds whether or not the disk takes it.
    ///
    /// # Errors
    /// As `keep`.
    pub(crate) fn keep_enrolment(&self, enrolment: &Enrolment) -> Result<(), StateError> {
        self.keep(ENROLMENT, &seal(&json(enrolment)))
    }

    /// Forgets the mesh, what waits of it, and the node's keys: the machine joins again as somebody new. The lock's key is
    /// the operator's, and stays.
    ///
    /// # Errors
    /// `StateError` if a file cannot be removed.
    pub fn forget(&self) -> Result<(), StateError> {
        // The keys go last: a node that belongs to a mesh has them.
        ALL_OF_MESH.iter().chain(ALL_OF_NODE).try_for_each(|&file| self.remove(file))?;
        self.sync()
    }

    /// Forgets everything, the node's keys included, and removes the directory; says what of others lies there, for then
    /// it stays.
    ///
    /// # Errors
    /// `StateError` if a file cannot be removed.
    pub(crate) fn erase(&self) -> Result<Vec<String>, StateError> {
        ALL_OF_MESH.iter().chain(ALL_OF_NODE).chain(ALL_OF_MACHINE).try_for_each(|&file| self.remove(file))?;
        let entries = fs::read_dir(&self.dir).map_err(|error| failed("read", &self.dir, error))?;
        let left: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect();
        if left.is_empty() {
            fs::remove_dir(&self.dir).map_err(|error| failed("remove", &self.dir, error))?;
        }
        Ok(left)
    }

    /// Returns where the key of the network lock lies, if an operator put it here.
    pub(crate) fn lock_key(&self) -> Option<PathBuf> {
        Some(self.path(LOCK_KEY)).filter(|path| path.exists())
    }

    /// Removes a file, if it exists, and what waits for its place.
    pub(crate) fn remove(&self, file: StateFile) -> Result<(), StateError> {
        self.settle(file, || self.write(file, &Content::Absent))
    }

    /// Removes a file, if it exists. If the disk refuses, it is tried again until it is gone.
    ///
    /// # Errors
    /// As `keep`.
    pub(crate) fn keep_absent(&self, file: StateFile) -> Result<(), StateError> {
        self.keep_content(file, Content::Absent)
    }

    /// Reads the last map that is whole.
    pub fn netmap(&self) -> Option<NetMap> {
        [NETMAP, PREVIOUS_NETMAP].into_iter().find_map(|file| {
            let bytes = match self.read(file) {
                Ok(bytes) => bytes?,
                Err(error) => {
                    tracing::warn!(%error, "cached map not read");
                    return None;
                }
            };
            let netmap = open_sealed(&bytes);
            if netmap.is_none() {
                tracing::warn!(file = file.name(), "cached map is torn; falling back to the one before");
            }
            netmap
        })
    }

    /// Stores a map; the one before stays as the fallback.
    ///
    /// # Errors
    /// `StateError` if it cannot be written.
    pub fn save_netmap(&self, netmap: &NetMap) -> Result<(), StateError> {
        self.replace(NETMAP, &seal(&json(netmap)))
    }

    /// Stores a map that is in force, whether or not the disk takes it.
    ///
    /// # Errors
    /// As `keep`.
    pub(crate) fn keep_netmap(&self, netmap: &NetMap) -> Result<(), StateError> {
        self.keep(NETMAP, &seal(&json(netmap)))
    }

    /// Says when the cached map was written, by the clock of then.
    pub(crate) fn netmap_written(&self) -> Option<SystemTime> {
        fs::metadata(self.path(NETMAP)).and_then(|found| found.modified()).ok()
    }

    /// Says whether there is a map, good or bad.
    pub(crate) fn has_netmap(&self) -> bool {
        [NETMAP, PREVIOUS_NETMAP].iter().any(|&file| self.path(file).exists())
    }

    /// Puts the stored maps out of use, and returns where the last of them is kept for those who want to know why.
    ///
    /// # Errors
    /// `StateError` if a file cannot be renamed or removed.
    pub(crate) fn set_netmap_aside(&self) -> Result<PathBuf, StateError> {
        let (current, aside) = (self.path(NETMAP), self.path(NETMAP_ASIDE));
        match fs::rename(&current, &aside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("rename", &current, error)),
        }
        self.remove(PREVIOUS_NETMAP)?;
        self.sync()?;
        Ok(aside)
    }

    /// Reads which peers were active before the restart; nothing if the file is older than 10 minutes.
    pub fn activity(&self) -> Vec<Active> {
        let fresh = fs::metadata(self.path(ACTIVITY))
            .and_then(|m| m.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() < 600));
        let bytes = self.read(ACTIVITY).ok().flatten().filter(|_| fresh);
        let mut list: Vec<Active> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        list.truncate(MAX_ACTIVE);
        list
    }

    /// Stores which peers are active; at most 1024.
    ///
    /// # Errors
    /// As `keep`.
    pub fn save_activity(&self, active: &[Active]) -> Result<(), StateError> {
        self.keep(ACTIVITY, &json(&active[..active.len().min(MAX_ACTIVE)]))
    }

    /// Reads a secret; `None` if there is none yet.
    pub(crate) fn secret(&self, file: StateFile) -> Result<Option<Vec<u8>>, StateError> {
        read_secret(&self.path(file))
    }

    /// Puts a file in the place of another.
    pub(crate) fn rename(&self, from: StateFile, to: StateFile) -> Result<(), StateError> {
        let (path, target) = (self.path(from), self.path(to));
        self.settle(from, || fs::rename(&path, &target).map_err(|error| failed("rename", &path, error)))?;
        self.sync()
    }

    /// Replaces a file; readable by its owner only. What waits for its place is given up.
    pub(crate) fn replace(&self, file: StateFile, bytes: &[u8]) -> Result<(), StateError> {
        let content = Content::Bytes(Zeroizing::new(bytes.to_vec()));
        self.settle(file, || self.write(file, &content))
    }

    /// Stores what holds whether or not the disk takes it. What it refuses is shown, and tried again until it is stored,
    /// or until there is something newer.
    ///
    /// # Errors
    /// `StateError` if it could not be written now.
    pub(crate) fn keep(&self, file: StateFile, bytes: &[u8]) -> Result<(), StateError> {
        self.keep_content(file, Content::Bytes(Zeroizing::new(bytes.to_vec())))
    }

    fn keep_content(&self, file: StateFile, content: Content) -> Result<(), StateError> {
        aside(|| {
            let mut waiting = self.shelf.lock();
            let written = self.write(file, &content);
            match &written {
                Ok(()) => {
                    waiting.remove(&file);
                    self.shelf.stored(file);
                }
                Err(error) => {
                    waiting.insert(file, content);
                    self.shelf.refused(file, &error.to_string());
                }
            }
            written
        })
    }

    /// Does what counts only if it works; then nothing waits for that file any more.
    fn settle(&self, file: StateFile, work: impl FnOnce() -> Result<(), StateError>) -> Result<(), StateError> {
        aside(|| {
            let mut waiting = self.shelf.lock();
            work()?;
            waiting.remove(&file);
            self.shelf.stored(file);
            Ok(())
        })
    }

    /// Tries once to store all that waits.
    pub(crate) fn store_waiting(&self) {
        aside(|| {
            let mut waiting = self.shelf.lock();
            waiting.retain(|&file, content| match self.write(file, content) {
                Ok(()) => {
                    if self.shelf.stored(file) {
                        tracing::info!(file = file.name(), "stored after all");
                    }
                    false
                }
                Err(error) => {
                    self.shelf.refused(file, &error.to_string());
                    true
                }
            });
        });
    }

    /// Looks whether the file system is read-only, which is told before anything is lost by it.
    fn look_at_directory(&self) {
        let flags = rustix::fs::statvfs(&self.dir).map(|found| found.f_flag);
        let is_read_only = flags.is_ok_and(|flags| flags.contains(StatVfsMountFlags::RDONLY));
        self.shelf.directory(is_read_only.then(|| {
            let dir = self.dir.display();
            let advice = advice(&Errno::ROFS.into(), &self.path(LOCK), "");
            format!(
                "the state directory {dir} takes nothing, so that a restart does not know what this node learns meanwhile, of removed permissions too: {advice}"
            )
        }));
    }

    /// Tries again and again to store what waits, and looks at the directory, until the task is dropped.
    pub(crate) async fn tend(self) {
        let mut pause = TURN;
        let mut due = Instant::now() + pause;
        loop {
            let is_due = !self.shelf.is_empty() && Instant::now() >= due;
            let state = self.clone();
            let turn = tokio::task::spawn_blocking(move || {
                state.look_at_directory();
                if is_due {
                    state.store_waiting();
                }
            });
            // It ends early only with the runtime.
            let _ = turn.await;
            if self.shelf.is_empty() {
                pause = TURN;
                due = Instant::now();
            } else if is_due {
                pause = (pause * 2).min(LONGEST);
                due = Instant::now() + pause;
            }
            sleep(TURN).await;
        }
    }

    fn write(&self, file: StateFile, content: &Content) -> Result<(), StateError> {
        let path = self.path(file);
        match content {
            Content::Bytes(bytes) if file == NETMAP => self.write_netmap(bytes),
            // It has to outlive the process, not the machine.
            Content::Bytes(bytes) if [HANDSHAKE_TIME, TRIAL].contains(&file) => {
                files::replace_unsynced(&path, bytes).map_err(|error| failed("write", &path, error))
            }
            Content::Bytes(bytes) => files::replace(&path, bytes).map_err(|error| failed("write", &path, error)),
            Content::Absent => match fs::remove_file(&path) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                // A read-only file system says so before it looks.
                Err(error) if fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) => {
                    tracing::debug!(%error, file = file.name(), "nothing to remove");
                    Ok(())
                }
                Err(error) => Err(failed("remove", &path, error)),
            },
        }
    }

    fn write_netmap(&self, bytes: &[u8]) -> Result<(), StateError> {
        let (current, previous) = (self.path(NETMAP), self.path(PREVIOUS_NETMAP));
        let beside = files::write_beside(&current, bytes).map_err(|error| failed("write", &current, error))?;
        if self.read(NETMAP).ok().flatten().is_some_and(|b| open_sealed(&b).is_some()) {
            fs::rename(&current, &previous).map_err(|error| failed("rename", &current, error))?;
        }
        fs::rename(&beside, &current).map_err(|error| failed("rename", &beside, error))?;
        files::sync(&self.dir).map_err(|error| failed("sync", &self.dir, error))
    }

    /// Makes sure that what was renamed or removed stays so.
    pub(crate) fn sync(&self) -> Result<(), StateError> {
        aside(|| files::sync(&self.dir)).map_err(|error| failed("sync", &self.dir, error))
    }

    fn read(&self, file: StateFile) -> Result<Option<Vec<u8>>, StateError> {
        read(&self.path(file))
    }
}

/// Reads a secret that may lie anywhere; `None` if there is none.
///
/// # Errors
/// `StateError` if it cannot be read, is too large, or may be read by others.
pub(crate) fn read_secret(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let metadata = fs::metadata(path).map_err(|error| failed("look at", path, error))?;
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(StateError::Open { path: path.into(), mode: mode & 0o7777, wanted: "600" });
    }
    Ok(Some(bytes))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match fs::metadata(path) {
        Ok(m) if m.len() > MAX_FILE => {
            Err(StateError::Damaged { path: path.into(), why: format!("{} bytes", m.len()) })
        }
        Ok(_) => fs::read(path).map(Some).map_err(|error| failed("read", path, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path, error)),
    }
}

fn failed(verb: &'static str, path: &Path, error: io::Error) -> StateError {
    StateError::Io { verb, path: path.into(), error }
}

pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types have string keys and no failing parts")
}

fn open_sealed(bytes: &[u8]) -> Option<NetMap> {
    serde_json::from_slice(unseal(bytes)?).ok()
}

#[cfg(test)]
pub(crate) mod tests;
