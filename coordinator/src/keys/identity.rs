//! The coordinator's identity: one Ed25519 key in one file that only its owner reads.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use mesh_host::files;
use mesh_host::identity::Identity;
use mesh_proto::base::id::IdentityKey;
use zeroize::Zeroizing;

const FILE: &str = "identity.key";
/// The key that takes its place, once all nodes know it.
const NEXT: &str = "identity.next";
/// The key before.
const FORMER: &str = "identity.former";
/// A PKCS#8 Ed25519 key takes 48 or 83 bytes; more is no such key.
const MAX_FILE: u64 = 512;
/// Nobody but its owner reads a key.
const MODE: u32 = 0o600;

/// Says why there is no identity key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none yet.
    #[error("there is no identity key in {0}; make one with `mesh-coordinator init --name NAME --public HOST:PORT`")]
    Missing(PathBuf),
    /// It is gone, though a mesh is kept here.
    #[error(
        "{path} is gone, and the mesh that knows this coordinator by it is kept here ({traces}): put the file back from where you keep it, for no backup of mesh-coordinator holds it. Only if it is nowhere any more, `{anew}` makes another key, which no node trusts: each has to run `meshd leave` then, and to join anew"
    )]
    Lost {
        /// Where it belongs.
        path: PathBuf,
        /// What tells of the mesh.
        traces: String,
        /// The command that makes another.
        anew: String,
    },
    /// There is no such key file.
    #[error("there is no key in {0}; name the file that holds it")]
    NoFile(PathBuf),
    /// The file system refused.
    #[error("{path}: {source}; check that the directory exists and belongs to the user of mesh-coordinator")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than the owner could read the key.
    #[error("{0} can be read by others; run `chmod 600 {0}`, and make new keys if that has been so for long")]
    Exposed(PathBuf),
    /// The file holds something else.
    #[error(
        "{0} is not an Ed25519 key; put it back from where you keep it: nodes trust this key alone, and no backup holds it"
    )]
    Damaged(PathBuf),
    /// The state directory is shared with other things.
    #[error(
        "{0} is open to other users and holds other files; give the coordinator a directory of its own with --state-dir"
    )]
    Shared(PathBuf),
    /// The machine gave no entropy.
    #[error("the machine gives no random numbers; try again when it has booted")]
    Entropy,
}

/// Returns where the key of a state directory is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Reads the key of a state directory.
///
/// # Errors
/// `KeyError` if there is none, if others could read it, or if it is damaged.
pub fn load(state_dir: &Path) -> Result<Identity, KeyError> {
    match load_file(&state_dir.join(FILE)) {
        Err(KeyError::NoFile(_)) => Err(KeyError::Missing(state_dir.to_owned())),
        found => found,
    }
}

/// Reads a key from a file.
///
/// # Errors
/// `KeyError` if there is none, if others could read it, or if it is damaged.
pub fn load_file(path: &Path) -> Result<Identity, KeyError> {
    let at = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            KeyError::NoFile(path.to_owned())
        } else {
            io_error(path, source)
        }
    };
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(no_follow).open(path).map_err(at)?;
    let mode = file.metadata().map_err(at)?.mode();
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed(path.to_owned()));
    }
    let mut pkcs8 = Zeroizing::new(Vec::with_capacity(128));
    file.take(MAX_FILE).read_to_end(&mut pkcs8).map_err(at)?;
    Identity::from_pkcs8(pkcs8).map_err(|_| KeyError::Damaged(path.to_owned()))
}

/// Reads the key of a state directory, or makes directory and key; says whether it made the key.
///
/// # Errors
/// `KeyError` if the directory is shared, the key cannot be written, or the present one not be read.
pub fn load_or_create(state_dir: &Path) -> Result<(Identity, bool), KeyError> {
    prepare(state_dir)?;
    match load(state_dir) {
        Err(KeyError::Missing(_)) => {}
        found => return found.map(|identity| (identity, false)),
    }
    let fresh = generate()?;
    let path = state_dir.join(FILE);
    let made = files::create(&path, fresh.pkcs8(), MODE).and_then(|made| files::sync(state_dir).map(|()| made));
    match made.map_err(|source| io_error(&path, source))? {
        true => Ok((fresh, true)),
        false => Ok((load(state_dir)?, false)),
    }
}

/// Reads a key from a file, or makes one that is in the file before anybody relies on it. Says whether it made it.
///
/// # Errors
/// `KeyError` if it cannot be written, or the present one not be read.
pub fn load_or_make(path: &Path) -> Result<(Identity, bool), KeyError> {
    match load_file(path) {
        Err(KeyError::NoFile(_)) => {}
        found => return found.map(|key| (key, false)),
    }
    let fresh = generate()?;
    files::write_new(path, fresh.pkcs8(), MODE).map_err(|source| io_error(path, source))?;
    Ok((fresh, true))
}

/// Reads the next key of a state directory, or makes one.
///
/// # Errors
/// `KeyError` if it cannot be written, or the present one not be read.
pub fn next(state_dir: &Path) -> Result<Identity, KeyError> {
    let (next, _) = load_or_make(&state_dir.join(NEXT))?;
    sync(state_dir)?;
    Ok(next)
}

/// Puts the next key of a state directory in the place of the present one, which is kept as the former.
///
/// # Errors
/// `KeyError` if the next one is not there or another one, or a file cannot be renamed; the present one is then in
/// its place.
pub fn commit_next(state_dir: &Path, expected: &IdentityKey) -> Result<(), KeyError> {
    let [present, next, former] = [FILE, NEXT, FORMER].map(|name| state_dir.join(name));
    if load_file(&next)?.public() != *expected {
        return Err(KeyError::Damaged(next));
    }
    let _ = fs::remove_file(&former);
    // There is a key under its name at every moment: a coordinator does not start without one.
    fs::hard_link(&present, &former).map_err(|source| io_error(&former, source))?;
    fs::rename(&next, &present).map_err(|source| io_error(&present, source))?;
    sync(state_dir)
}

fn generate() -> Result<Identity, KeyError> {
    Identity::generate().map_err(|_| KeyError::Entropy)
}

/// Makes the state directory for its owner alone. One that exists is closed to others if it is empty or
/// ours already, and refused otherwise: closing somebody else's directory would break what lives there.
fn prepare(dir: &Path) -> Result<(), KeyError> {
    let at = |source| io_error(dir, source);
    DirBuilder::new().mode(0o700).recursive(true).create(dir).map_err(at)?;
    let mode = fs::metadata(dir).map_err(at)?.mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let ours = dir.join(FILE).exists() || fs::read_dir(dir).map_err(at)?.next().is_none();
    if !ours {
        return Err(KeyError::Shared(dir.to_owned()));
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(at)
}

fn sync(dir: &Path) -> Result<(), KeyError> {
    files::sync(dir).map_err(|source| io_error(dir, source))
}

fn io_error(path: &Path, source: io::Error) -> KeyError {
    KeyError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/state");

        let (made, fresh) = load_or_create(&state).unwrap();
        let (found, again) = load_or_create(&state).unwrap();

        assert!(fresh && !again);
        assert_eq!(made.public(), found.public());
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(state.join(FILE)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn an_exposed_damaged_or_linked_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        load_or_create(dir.path()).unwrap();

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(dir.path()), Err(KeyError::Exposed(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&path, dir.path().join("else")).unwrap();
        std::os::unix::fs::symlink("else", &path).unwrap();
        assert!(matches!(load(dir.path()), Err(KeyError::Io { .. })));
        fs::remove_file(&path).unwrap();
        files::write_new(&path, b"rubbish", MODE).unwrap();
        assert!(matches!(load(dir.path()), Err(KeyError::Damaged(_))));
    }

    #[test]
    fn a_flipped_bit_in_the_key_file_is_noticed_or_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (made, _) = load_or_create(&state).unwrap();
        let path = state.join(FILE);
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            let loaded = load(&state);
            assert!(loaded.is_err() || loaded.is_ok_and(|key| key.public() == made.public()), "bit {bit}");
        }
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("letter"), "").unwrap();
        assert!(matches!(load_or_create(dir.path()), Err(KeyError::Shared(_))));
        fs::remove_file(dir.path().join("letter")).unwrap();
        assert!(load_or_create(dir.path()).is_ok());
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    }
}
