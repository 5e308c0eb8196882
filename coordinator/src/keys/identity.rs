//! The coordinator's identity: one Ed25519 key in one file that only its owner reads.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use mesh_proto::base::id::IdentityKey;
use mesh_proto::trust::signed_record::{Epoch, Signature};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

const FILE: &str = "identity.key";
/// The key that takes its place, once all nodes know it.
const NEXT: &str = "identity.next";
/// The key before.
const FORMER: &str = "identity.former";
/// A PKCS#8 Ed25519 key takes 48 or 83 bytes; more is no such key.
const MAX_FILE: u64 = 512;

/// The coordinator's own key pair. `Debug` hides the private half.
pub struct Identity {
    public: IdentityKey,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("public", &self.public).field("pkcs8", &"[redacted]").finish()
    }
}

/// Says why there is no identity key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none yet.
    #[error("there is no identity key in {0}; make one with `mesh-coordinator init --name NAME --public HOST:PORT`")]
    Missing(PathBuf),
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
    #[error("{0} is not an Ed25519 key; restore it from a backup: nodes trust this key alone")]
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

impl Identity {
    /// Reads the key of a state directory.
    ///
    /// # Errors
    /// `KeyError` if there is none, if others could read it, or if it is damaged.
    pub fn load(state_dir: &Path) -> Result<Self, KeyError> {
        let found = Self::load_file(&state_dir.join(FILE));
        if matches!(found, Err(KeyError::NoFile(_))) {
            return Err(KeyError::Missing(state_dir.to_owned()));
        }
        found
    }

    /// Reads a key from a file.
    ///
    /// # Errors
    /// `KeyError` if there is none, if others could read it, or if it is damaged.
    pub fn load_file(path: &Path) -> Result<Self, KeyError> {
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
        Self::from_pkcs8(pkcs8).ok_or_else(|| KeyError::Damaged(path.to_owned()))
    }

    /// Reads the key of a state directory, or makes directory and key; says whether it made the key.
    ///
    /// # Errors
    /// `KeyError` if the directory is shared, the key cannot be written, or the present one not be read.
    pub fn load_or_create(state_dir: &Path) -> Result<(Self, bool), KeyError> {
        prepare(state_dir)?;
        match Self::load(state_dir) {
            Err(KeyError::Missing(_)) => {}
            found => return found.map(|identity| (identity, false)),
        }
        let fresh = Self::generate()?;
        // Written whole under another name, then linked: the key file is complete from its first moment,
        // and of two that race only one wins.
        let path = state_dir.join(FILE);
        let draft = state_dir.join(format!("{FILE}.{}", std::process::id()));
        let linked = write_new(&draft, &fresh.pkcs8).and_then(|()| fs::hard_link(&draft, &path));
        let _ = fs::remove_file(&draft);
        match linked {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok((Self::load(state_dir)?, false)),
            Err(source) => Err(io_error(&path, source)),
            Ok(()) => {
                File::open(state_dir).and_then(|dir| dir.sync_all()).map_err(|source| io_error(state_dir, source))?;
                Ok((fresh, true))
            }
        }
    }

    /// Writes the key into a new file that only its owner reads.
    ///
    /// # Errors
    /// `KeyError` if the file exists or cannot be written.
    pub fn save_new(&self, path: &Path) -> Result<(), KeyError> {
        write_new(path, &self.pkcs8).map_err(|source| io_error(path, source))
    }

    /// Reads the next key of a state directory, or makes one.
    ///
    /// # Errors
    /// `KeyError` if it cannot be written, or the present one not be read.
    pub fn next(state_dir: &Path) -> Result<Self, KeyError> {
        let path = state_dir.join(NEXT);
        let found = Self::load_file(&path);
        if !matches!(found, Err(KeyError::NoFile(_))) {
            return found;
        }
        let fresh = Self::generate()?;
        fresh.save_new(&path)?;
        sync(state_dir)?;
        Ok(fresh)
    }

    /// Puts the next key of a state directory in the place of the present one, which is kept as the former.
    ///
    /// # Errors
    /// `KeyError` if the next one is not there or another one, or a file cannot be renamed; the present one is then in
    /// its place.
    pub fn commit_next(state_dir: &Path, expected: &IdentityKey) -> Result<(), KeyError> {
        let [present, next, former] = [FILE, NEXT, FORMER].map(|name| state_dir.join(name));
        if Self::load_file(&next)?.public() != *expected {
            return Err(KeyError::Damaged(next));
        }
        let _ = fs::remove_file(&former);
        // There is a key under its name at every moment: a coordinator does not start without one.
        fs::hard_link(&present, &former).map_err(|source| io_error(&former, source))?;
        fs::rename(&next, &present).map_err(|source| io_error(&present, source))?;
        sync(state_dir)
    }

    /// Makes a key that lies nowhere yet.
    ///
    /// # Errors
    /// `KeyError::Entropy` if the machine has none.
    pub fn generate() -> Result<Self, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Entropy)?;
        Self::from_pkcs8(Zeroizing::new(document.as_ref().to_vec())).ok_or(KeyError::Entropy)
    }

    /// Returns the public half, which join tokens carry as the pin.
    pub fn public(&self) -> IdentityKey {
        self.public
    }

    /// Signs a message.
    ///
    /// # Panics
    /// Never: the key was read when the value was made.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let pair = Ed25519KeyPair::from_pkcs8(&self.pkcs8).expect("it was read before");
        Signature(pair.sign(message).as_ref().try_into().expect("an Ed25519 signature is 64 bytes"))
    }

    /// Signs for another epoch, which nodes follow although its revisions may be lower.
    pub fn epoch(&self, number: u64) -> Epoch {
        Epoch { number, signature: Some(self.sign(&Epoch::message(number))) }
    }

    /// Returns the private half in the form that TLS takes.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }

    fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).ok()?;
        let public = IdentityKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { public, pkcs8 })
    }
}

/// Says whether a signature over a message is that of an identity.
pub fn verify(identity: &IdentityKey, message: &[u8], signature: &Signature) -> bool {
    UnparsedPublicKey::new(&ED25519, identity.0).verify(message, &signature.0).is_ok()
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
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| io_error(dir, source))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
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

        let (made, fresh) = Identity::load_or_create(&state).unwrap();
        let (found, again) = Identity::load_or_create(&state).unwrap();

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
        Identity::load_or_create(dir.path()).unwrap();

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(KeyError::Exposed(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&path, dir.path().join("else")).unwrap();
        std::os::unix::fs::symlink("else", &path).unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(KeyError::Io { .. })));
        fs::remove_file(&path).unwrap();
        write_new(&path, b"rubbish").unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(KeyError::Damaged(_))));
    }

    #[test]
    fn a_flipped_bit_in_the_key_file_is_noticed_or_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (made, _) = Identity::load_or_create(&state).unwrap();
        let path = state.join(FILE);
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            let loaded = Identity::load(&state);
            assert!(loaded.is_err() || loaded.is_ok_and(|key| key.public() == made.public()), "bit {bit}");
        }
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("letter"), "").unwrap();
        assert!(matches!(Identity::load_or_create(dir.path()), Err(KeyError::Shared(_))));
        fs::remove_file(dir.path().join("letter")).unwrap();
        assert!(Identity::load_or_create(dir.path()).is_ok());
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn debug_hides_the_private_half() {
        let identity = Identity::generate().unwrap();
        assert!(format!("{identity:?}").contains("[redacted]"));
    }
}
