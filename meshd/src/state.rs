//! What survives a restart: the enrolment, the last map, and which peers were active.
//!
//! ```text
//! state_dir/            0700
//!   tunnel.key          the node's WireGuard secret (keys.rs)
//!   identity.key        the node's identity on the control channel (keys.rs)
//!   enrolment.json      which mesh it belongs to
//!   netmap.json         the last map, with a checksum   ┐ a torn or lost file falls back
//!   netmap.previous     the map before it               ┘ to the one before
//!   activity.json       peers active lately and where they answered
//! ```
//! Every file is replaced as a whole: written beside, synced, renamed, and the directory synced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use mesh_proto::addr::{BlockMap, Flat, MeshRange};
use mesh_proto::id::{IdentityKey, MeshName, NodeId, NodeName, SiteName};
use mesh_proto::netmap::NetMap;
use mesh_proto::wire::JoinResponse;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

const ENROLMENT: &str = "enrolment.json";
const NETMAP: &str = "netmap.json";
const PREVIOUS: &str = "netmap.previous";
const LOCK: &str = "lock";
const ACTIVITY: &str = "activity.json";
/// Largest file that is read back, in bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// Most peers that are remembered as active.
const MAX_ACTIVE: usize = 1024;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refuses.
    #[error("cannot {verb} {}: {error}; run as root, or set `state_dir` in meshd.toml", path.display())]
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
    #[error("another meshd uses {}; stop it first (systemctl stop meshd), or set another `state_dir`", .0.display())]
    Locked(PathBuf),
    /// The file says something else than was written.
    #[error("{} is damaged ({why}); restore it from a backup, or run `meshd leave` and join again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Holds the state directory for one daemon, until it is dropped.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

/// Which mesh the node belongs to, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The version of this file.
    pub version: u16,
    /// Addresses of coordinators, as `host:port`.
    pub coordinators: Vec<String>,
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
}

impl Enrolment {
    /// Takes what a coordinator answered to a join.
    pub fn new(response: &JoinResponse) -> Self {
        Self {
            version: 1,
            coordinators: response.coordinators.clone(),
            pins: response.pins.clone(),
            node: response.node.clone(),
            id: response.id,
            site: response.site.clone(),
            mesh: response.mesh.clone(),
            range: response.range,
            address: response.address,
            blocks: response.blocks.clone(),
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
        Ok(Self { dir: dir.into() })
    }

    /// Takes the directory for one daemon; the kernel gives it back when the process ends.
    ///
    /// # Errors
    /// `StateError::Locked` if another daemon has it.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.path(LOCK);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|error| failed("open", &path, error))?;
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        locked.map_err(|_| StateError::Locked(self.dir.clone()))?;
        Ok(StateLock(file))
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads the enrolment; `None` if the node has not joined.
    ///
    /// # Errors
    /// `StateError` if there is one that cannot be read.
    pub fn enrolment(&self) -> Result<Option<Enrolment>, StateError> {
        let Some(bytes) = self.read(ENROLMENT)? else {
            return Ok(None);
        };
        let damaged = |why: String| StateError::Damaged { path: self.path(ENROLMENT), why };
        // One of an older version is not sealed.
        let body = match bytes.starts_with(b"{") {
            true => &bytes[..],
            false => unseal(&bytes).ok_or_else(|| damaged("its sum is that of another text".into()))?,
        };
        serde_json::from_slice(body).map(Some).map_err(|error| damaged(error.to_string()))
    }

    /// Stores the enrolment.
    ///
    /// # Errors
    /// `StateError` if it cannot be written.
    pub fn save_enrolment(&self, enrolment: &Enrolment) -> Result<(), StateError> {
        self.replace(ENROLMENT, &seal(&json(enrolment)))
    }

    /// Forgets the mesh; the node's keys stay, so that it may join again as itself.
    ///
    /// # Errors
    /// `StateError` if a file cannot be removed.
    pub fn forget(&self) -> Result<(), StateError> {
        [ENROLMENT, NETMAP, PREVIOUS, ACTIVITY].into_iter().try_for_each(|name| self.remove(name))?;
        self.sync()
    }

    /// Removes a file, if it exists.
    pub(crate) fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &path, error)),
        }
    }

    /// Reads the last map that is whole.
    pub fn netmap(&self) -> Option<NetMap> {
        [NETMAP, PREVIOUS].into_iter().find_map(|name| {
            let bytes = match self.read(name) {
                Ok(bytes) => bytes?,
                Err(error) => {
                    tracing::warn!(%error, "cached map not read");
                    return None;
                }
            };
            let netmap = open_sealed(&bytes);
            if netmap.is_none() {
                tracing::warn!(file = name, "cached map is torn; falling back to the one before");
            }
            netmap
        })
    }

    /// Stores a map; the one before stays as the fallback.
    ///
    /// # Errors
    /// `StateError` if it cannot be written.
    pub fn save_netmap(&self, netmap: &NetMap) -> Result<(), StateError> {
        let beside = self.write_beside(NETMAP, &seal(&json(netmap)))?;
        let (current, previous) = (self.path(NETMAP), self.path(PREVIOUS));
        if self.read(NETMAP).ok().flatten().is_some_and(|b| open_sealed(&b).is_some()) {
            fs::rename(&current, &previous).map_err(|error| failed("rename", &current, error))?;
        }
        fs::rename(&beside, &current).map_err(|error| failed("rename", &beside, error))?;
        self.sync()
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
    /// `StateError` if it cannot be written.
    pub fn save_activity(&self, active: &[Active]) -> Result<(), StateError> {
        self.replace(ACTIVITY, &json(&active[..active.len().min(MAX_ACTIVE)]))
    }

    /// Reads a secret; `None` if there is none yet.
    pub(crate) fn secret(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name);
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        let metadata = fs::metadata(&path).map_err(|error| failed("look at", &path, error))?;
        let mode = metadata.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(StateError::Open { path, mode: mode & 0o7777, wanted: "600" });
        }
        Ok(Some(bytes))
    }

    /// Replaces a file; readable by its owner only.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let beside = self.write_beside(name, bytes)?;
        let path = self.path(name);
        fs::rename(&beside, &path).map_err(|error| failed("rename", &beside, error))?;
        self.sync()
    }

    fn write_beside(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, StateError> {
        let path = self.path(&format!("{name}.tmp"));
        let _ = fs::remove_file(&path);
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|error| failed("write", &path, error))?;
        Ok(path)
    }

    fn sync(&self) -> Result<(), StateError> {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| failed("sync", &self.dir, error))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(m) if m.len() > MAX_FILE => Err(StateError::Damaged { path, why: format!("{} bytes", m.len()) }),
            Ok(_) => fs::read(&path).map(Some).map_err(|error| failed("read", &path, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, error)),
        }
    }
}

fn failed(verb: &'static str, path: &Path, error: io::Error) -> StateError {
    StateError::Io { verb, path: path.into(), error }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types have string keys and no failing parts")
}

fn open_sealed(bytes: &[u8]) -> Option<NetMap> {
    serde_json::from_slice(unseal(bytes)?).ok()
}

/// Puts a text's sum above it.
fn seal(body: &[u8]) -> Vec<u8> {
    let sum = HEXLOWER.encode(digest(&SHA256, body).as_ref());
    [b"sha256 ", sum.as_bytes(), b"\n", body].concat()
}

/// Returns the text if the sum above it is its own.
fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|&b| b == b'\n')?;
    let sum = bytes[..end].strip_prefix(b"sha256 ")?;
    let body = &bytes[end + 1..];
    (HEXLOWER.encode(digest(&SHA256, body).as_ref()).as_bytes() == sum).then_some(body)
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use mesh_proto::id::Revision;
    use mesh_proto::netmap::{Mesh, OwnNode};

    use super::*;

    pub(crate) fn netmap(revision: u64) -> NetMap {
        NetMap {
            revision: Revision(revision),
            mesh: Mesh {
                name: "boutique".parse().unwrap(),
                range: MeshRange::default(),
                domains: vec!["mesh.internal".parse().unwrap()],
                coordinators: Vec::new(),
            },
            node: OwnNode {
                id: NodeId(1),
                name: "n1".parse().unwrap(),
                site: "c1".parse().unwrap(),
                address: Flat([241, 1, 0, 1].into()),
                blocks: Vec::new(),
                guarded: true,
            },
            peers: BTreeMap::new(),
            services: BTreeMap::new(),
            names: Default::default(),
            rules: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn enrolment() -> Enrolment {
        Enrolment {
            version: 1,
            coordinators: vec!["192.0.2.1:7700".into()],
            pins: vec![IdentityKey([1; 32])],
            node: "n1".parse().unwrap(),
            id: NodeId(1),
            site: "c1".parse().unwrap(),
            mesh: "boutique".parse().unwrap(),
            range: MeshRange::default(),
            address: Flat([241, 1, 0, 1].into()),
            blocks: Vec::new(),
        }
    }

    #[test]
    fn an_enrolment_is_read_as_it_was_written_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        assert_eq!(state.enrolment().unwrap(), None);

        state.save_enrolment(&enrolment()).unwrap();
        state.save_netmap(&netmap(1)).unwrap();
        assert_eq!(state.enrolment().unwrap(), Some(enrolment()));
        let mode = fs::metadata(state.path(ENROLMENT)).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);

        state.forget().unwrap();
        assert_eq!(state.enrolment().unwrap(), None);
        assert_eq!(state.netmap(), None);
    }

    #[test]
    fn a_torn_map_falls_back_to_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        state.save_netmap(&netmap(1)).unwrap();
        state.save_netmap(&netmap(2)).unwrap();
        assert_eq!(state.netmap(), Some(netmap(2)));

        let whole = fs::read(state.path(NETMAP)).unwrap();
        for cut in [0, 5, 40, 80, whole.len() / 2, whole.len() - 1] {
            fs::write(state.path(NETMAP), &whole[..cut]).unwrap();
            assert_eq!(state.netmap(), Some(netmap(1)), "cut at {cut}");
        }

        state.save_netmap(&netmap(3)).unwrap();
        assert_eq!(state.netmap(), Some(netmap(3)));
        fs::remove_file(state.path(NETMAP)).unwrap();
        assert_eq!(state.netmap(), Some(netmap(1)), "a torn map never becomes the fallback");
    }

    #[test]
    fn a_flipped_bit_in_a_cache_or_key_file_is_noticed_or_harmless() {
        use crate::keys::Keys;

        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        state.save_netmap(&netmap(1)).unwrap();
        state.save_netmap(&netmap(2)).unwrap();
        state.save_enrolment(&enrolment()).unwrap();
        let keys = Keys::load_or_make(&state).unwrap();
        let told = |keys: &Keys| (keys.tunnel().to_bytes(), keys.identity());
        let mut noticed = 0;
        let mut flips = 0;
        for name in [NETMAP, ENROLMENT, "tunnel.key", "identity.key"] {
            let whole = fs::read(state.path(name)).unwrap();
            for bit in 0..whole.len() * 8 {
                let mut bytes = whole.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                fs::write(state.path(name), &bytes).unwrap();
                let (is_good, is_noticed) = match name {
                    NETMAP => {
                        let map = state.netmap();
                        (map == Some(netmap(2)), map == Some(netmap(1)))
                    }
                    ENROLMENT => {
                        let enrolled = state.enrolment();
                        (enrolled.as_ref().is_ok_and(|e| *e == Some(enrolment())), enrolled.is_err())
                    }
                    _ => {
                        let loaded = Keys::load_or_make(&state);
                        (loaded.as_ref().is_ok_and(|k| told(k) == told(&keys)), loaded.is_err())
                    }
                };
                assert!(is_good || is_noticed, "bit {bit} of {name} alters it unnoticed");
                noticed += usize::from(is_noticed);
                flips += 1;
            }
            fs::write(state.path(name), whole).unwrap();
        }
        assert!(flips > 5000 && noticed * 100 > flips * 95, "{noticed} of {flips} noticed");
    }

    #[test]
    fn what_an_older_version_wrote_without_sums_is_read() {
        use crate::keys::Keys;

        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        state.replace(ENROLMENT, &json(&enrolment())).unwrap();
        assert_eq!(state.enrolment().unwrap(), Some(enrolment()));
        let keys = Keys::load_or_make(&state).unwrap();
        for name in ["tunnel.key", "identity.key"] {
            let text = fs::read_to_string(state.path(name)).unwrap();
            let (key, _) = text.split_once(' ').unwrap();
            state.replace(name, format!("{key}\n").as_bytes()).unwrap();
        }
        let again = Keys::load_or_make(&state).unwrap();
        assert_eq!((again.tunnel().to_bytes(), again.identity()), (keys.tunnel().to_bytes(), keys.identity()));
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = State::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn one_daemon_at_a_time_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let held = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StateError::Locked(_))));
        drop(held);
        assert!(state.lock().is_ok());
    }

    #[test]
    fn activity_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let active = vec![Active { peer: "n2".parse().unwrap(), endpoint: "192.0.2.2:51820".parse().unwrap() }];
        state.save_activity(&active).unwrap();
        assert_eq!(state.activity(), active);
    }
}
