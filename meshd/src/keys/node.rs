//! The node's own keys: made once with the operating system's entropy, kept for ever, never sent.

use std::time::Duration;
use std::{fmt, fs};

use data_encoding::BASE64URL_NOPAD;
use mesh_host::identity::Identity;
use mesh_proto::base::id::IdentityKey;
use mesh_proto::trust::signed_record::Signature;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::base::entropy::entropy;
use crate::base::files::{
    FIRST_TUNNEL_KEY, FORMER_TUNNEL_KEY, IDENTITY_KEY, NEXT_IDENTITY_KEY, PRESHARED_KEYS, REFUSED_IDENTITY_KEY,
    StateFile, TUNNEL_KEY,
};
use crate::base::state_dir::{State, StateError};
use crate::base::ways_back;
use crate::keys::encoding::sum;
use crate::keys::lanes::LaneKeys;

/// The node's secrets. Prints as `[redacted]`.
pub struct NodeKeys {
    tunnel: StaticSecret,
    former: Option<StaticSecret>,
    first: Option<StaticSecret>,
    identity: Identity,
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({:?}, [redacted])", self.identity())
    }
}

/// Says that the identity is gone, and how the machine comes back without it.
fn lost(state: &State) -> StateError {
    let way = match state.enrolment() {
        Ok(Some(enrolment)) => ways_back::as_another(&enrolment.node, &enrolment.site),
        Ok(None) | Err(_) => "run `meshd leave`, and join again".to_owned(),
    };
    StateError::Lost { path: state.path(IDENTITY_KEY), way }
}

impl NodeKeys {
    /// Reads the keys of a node that has joined. A lost tunnel key is made anew, for the node vouches for it; a lost
    /// identity is not, for nobody would vouch for that.
    ///
    /// # Errors
    /// `StateError::Lost` if the identity is, and otherwise as `load_or_make`.
    pub fn load(state: &State) -> Result<Self, StateError> {
        match state.secret(IDENTITY_KEY)? {
            Some(_) => Self::load_or_make(state),
            None => Err(lost(state)),
        }
    }

    /// Looks whether the keys of a node that has joined are there and whole, and makes none.
    ///
    /// # Errors
    /// As `load`.
    pub fn look(state: &State) -> Result<(), StateError> {
        if identity(state, IDENTITY_KEY)?.is_none() {
            return Err(lost(state));
        }
        [TUNNEL_KEY, FORMER_TUNNEL_KEY, FIRST_TUNNEL_KEY].into_iter().try_for_each(|file| secret(state, file).map(drop))
    }

    /// Reads the keys, and makes those that are missing.
    ///
    /// # Errors
    /// `StateError` if a file cannot be read or written, is damaged, or may be read by others.
    pub fn load_or_make(state: &State) -> Result<Self, StateError> {
        let identity = match identity(state, IDENTITY_KEY)? {
            Some(identity) => identity,
            None => make_identity(state, IDENTITY_KEY)?,
        };
        Self::with_identity(state, identity)
    }

    fn with_identity(state: &State, identity: Identity) -> Result<Self, StateError> {
        let tunnel = match secret(state, TUNNEL_KEY)? {
            Some(secret) => secret,
            None => make(state)?,
        };
        // A rotation that was killed between its two writes left the same key twice.
        let former = secret(state, FORMER_TUNNEL_KEY)?.filter(|former| former.to_bytes() != tunnel.to_bytes());
        Ok(Self { tunnel, former, first: secret(state, FIRST_TUNNEL_KEY)?, identity })
    }

    /// Makes new keys in place of those of an identity that the mesh expelled.
    ///
    /// # Errors
    /// `StateError` if a file cannot be removed or written.
    pub fn renew(state: &State) -> Result<Self, StateError> {
        for file in [
            NEXT_IDENTITY_KEY,
            REFUSED_IDENTITY_KEY,
            IDENTITY_KEY,
            TUNNEL_KEY,
            FORMER_TUNNEL_KEY,
            FIRST_TUNNEL_KEY,
            PRESHARED_KEYS,
        ] {
            state.remove(file)?;
        }
        Self::load_or_make(state)
    }

    /// Reads the keys with the identity that is to be the next; `None` if the present one stays.
    ///
    /// # Errors
    /// `StateError` if the next one cannot be read, is damaged, or may be read by others.
    pub fn next(state: &State) -> Result<Option<Self>, StateError> {
        identity(state, NEXT_IDENTITY_KEY)?.map(|next| Self::with_identity(state, next)).transpose()
    }

    /// Makes the identity that is to be the next, unless there is one already, and reads the keys with it.
    ///
    /// # Errors
    /// As `next`, and if it cannot be written.
    pub fn make_next(state: &State) -> Result<Self, StateError> {
        match Self::next(state)? {
            Some(keys) => Ok(keys),
            None => Self::with_identity(state, make_identity(state, NEXT_IDENTITY_KEY)?),
        }
    }

    /// Puts the next identity in the place of the present one, which is gone.
    ///
    /// # Errors
    /// `StateError` if its file cannot be renamed; the present one is then in its place.
    pub fn adopt_next(state: &State) -> Result<(), StateError> {
        match read(state, NEXT_IDENTITY_KEY)? {
            Some(_) => state.rename(NEXT_IDENTITY_KEY, IDENTITY_KEY),
            // It was renamed, and not synced.
            None => state.sync(),
        }
    }

    /// Forgets the identity that was to be the next.
    ///
    /// # Errors
    /// `StateError` if its file cannot be removed.
    pub fn drop_next(state: &State) -> Result<(), StateError> {
        state.keep_absent(NEXT_IDENTITY_KEY)
    }

    /// Puts the identity that was to be the next aside, where nobody offers it again.
    ///
    /// # Errors
    /// `StateError` if its file cannot be renamed.
    pub fn set_next_aside(state: &State) -> Result<(), StateError> {
        state.rename(NEXT_IDENTITY_KEY, REFUSED_IDENTITY_KEY)
    }

    /// Makes another tunnel key; the present one becomes the former, and the former is gone.
    ///
    /// # Errors
    /// `StateError` if a file cannot be written; the keys are then as they were.
    pub fn rotate(state: &State) -> Result<(), StateError> {
        let present = Self::load_or_make(state)?.tunnel;
        if state.secret(FIRST_TUNNEL_KEY)?.is_none() {
            write(state, FIRST_TUNNEL_KEY, present.as_bytes())?;
        }
        write(state, FORMER_TUNNEL_KEY, present.as_bytes())?;
        make(state).map(|_| ())
    }

    /// Forgets the former tunnel key.
    ///
    /// # Errors
    /// `StateError` if its file cannot be removed.
    pub fn forget_former(state: &State) -> Result<(), StateError> {
        state.remove(FORMER_TUNNEL_KEY)
    }

    /// Returns how old the tunnel key is; `None` if that cannot be told.
    pub fn age(state: &State) -> Option<Duration> {
        fs::metadata(state.path(TUNNEL_KEY)).and_then(|m| m.modified()).ok()?.elapsed().ok()
    }

    /// Returns the keys of the lanes; calls by the former key where there is one.
    pub fn lanes(&self, lanes: usize) -> LaneKeys {
        let keys = LaneKeys::derive(&self.tunnel, lanes).with_former(self.former.as_ref(), true);
        match &self.first {
            Some(first) => keys.with_flow_seed_of(first),
            None => keys,
        }
    }

    /// Returns lane 0's secret, from which the other lanes' are derived.
    pub fn tunnel(&self) -> &StaticSecret {
        &self.tunnel
    }

    /// Returns the public half of the identity.
    pub fn identity(&self) -> IdentityKey {
        self.identity.public()
    }

    /// Signs a message with the identity.
    pub fn sign(&self, message: &[u8]) -> Signature {
        self.identity.sign(message)
    }

    /// Returns the identity, for TLS.
    pub(crate) fn own(&self) -> &Identity {
        &self.identity
    }
}

/// Makes a tunnel key.
fn make(state: &State) -> Result<StaticSecret, StateError> {
    let mut bytes = Zeroizing::new([0; 32]);
    entropy(&mut *bytes);
    write(state, TUNNEL_KEY, &*bytes)?;
    Ok(StaticSecret::from(*bytes))
}

fn secret(state: &State, file: StateFile) -> Result<Option<StaticSecret>, StateError> {
    let Some(bytes) = read(state, file)? else { return Ok(None) };
    let bytes = <[u8; 32]>::try_from(&bytes[..]).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| damaged(state, file, "not 32 bytes"))?;
    Ok(Some(StaticSecret::from(*bytes)))
}

fn identity(state: &State, file: StateFile) -> Result<Option<Identity>, StateError> {
    let identity = read(state, file)?.map(Identity::from_pkcs8).transpose();
    identity.map_err(|error| damaged(state, file, &error.to_string()))
}

/// Makes an identity.
fn make_identity(state: &State, file: StateFile) -> Result<Identity, StateError> {
    let made = generate();
    write(state, file, made.pkcs8())?;
    Ok(made)
}

fn generate() -> Identity {
    Identity::generate().expect("the operating system has entropy")
}

fn read(state: &State, file: StateFile) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let Some(text) = state.secret(file)?.map(Zeroizing::new) else { return Ok(None) };
    // A key of an older version has no sum.
    let mut words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (key, told) = (words.next().unwrap_or_default(), words.next());
    let bytes = BASE64URL_NOPAD.decode(key).map(Zeroizing::new);
    let bytes = bytes.map_err(|e| damaged(state, file, &e.to_string()))?;
    if told.is_some_and(|told| sum(&bytes).as_bytes() != told) || words.next().is_some() {
        return Err(damaged(state, file, "its sum is that of another key"));
    }
    Ok(Some(bytes))
}

fn write(state: &State, file: StateFile, bytes: &[u8]) -> Result<(), StateError> {
    let text = Zeroizing::new(format!("{} {}\n", *Zeroizing::new(BASE64URL_NOPAD.encode(bytes)), sum(bytes)));
    state.replace(file, text.as_bytes())
}

fn damaged(state: &State, file: StateFile, why: &str) -> StateError {
    StateError::Damaged { path: state.path(file), why: why.into() }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let made = NodeKeys::load_or_make(&state).unwrap();
        let read = NodeKeys::load_or_make(&state).unwrap();

        assert_eq!(made.identity(), read.identity());
        assert_eq!(made.tunnel().to_bytes(), read.tunnel().to_bytes());
        let secret = BASE64URL_NOPAD.encode(&made.tunnel().to_bytes());
        assert!(!format!("{made:?}").contains(&secret));
        for file in [TUNNEL_KEY, IDENTITY_KEY] {
            let mode = fs::metadata(state.path(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn renewed_keys_are_new_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let old = NodeKeys::load_or_make(&state).unwrap();

        let new = NodeKeys::renew(&state).unwrap();

        assert_ne!(new.identity(), old.identity());
        assert_ne!(new.tunnel().to_bytes(), old.tunnel().to_bytes());
        assert_eq!(NodeKeys::load_or_make(&state).unwrap().identity(), new.identity());
    }

    #[test]
    fn a_rotated_key_leaves_its_former_until_that_is_forgotten_and_flows_keep_their_seed() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let lanes = || NodeKeys::load_or_make(&state).unwrap().lanes(2);
        let before = lanes();
        assert!(before.former_publics().is_empty());

        NodeKeys::rotate(&state).unwrap();
        let during = lanes();
        assert_eq!(during.former_publics(), before.publics());
        assert!(during.publics().iter().all(|key| !before.publics().contains(key)));
        NodeKeys::rotate(&state).unwrap();
        assert_eq!(lanes().former_publics(), during.publics(), "of two former ones only the last is good");
        NodeKeys::forget_former(&state).unwrap();
        assert!(lanes().former_publics().is_empty());
        assert_eq!(lanes().flow_seed(), before.flow_seed(), "or connections would not survive the next restart");

        write(&state, FORMER_TUNNEL_KEY, NodeKeys::load_or_make(&state).unwrap().tunnel().as_bytes()).unwrap();
        assert!(lanes().former_publics().is_empty(), "killed between its writes");
    }

    #[test]
    fn keys_that_others_may_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        NodeKeys::load_or_make(&state).unwrap();
        fs::set_permissions(state.path(TUNNEL_KEY), fs::Permissions::from_mode(0o644)).unwrap();

        let error = NodeKeys::load_or_make(&state).unwrap_err().to_string();

        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_damaged_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        NodeKeys::load_or_make(&state).unwrap();
        fs::write(state.path(IDENTITY_KEY), "AAAA\n").unwrap();

        assert!(NodeKeys::load_or_make(&state).is_err());
        assert_eq!(fs::read(state.path(IDENTITY_KEY)).unwrap(), b"AAAA\n");
    }
}
