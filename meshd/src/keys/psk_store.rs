//! The preshared keys that this node made with its peers: in memory for the lanes, and in the state directory, so that
//! later starts wait for nothing.
//!
//! ```text
//!   preshared.keys      one line per peer: its number, the key, a sum of both
//! ```
//! A key that is lost or damaged is as one that never was: the two make another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use mesh_proto::base::id::NodeId;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::base::files::PRESHARED_KEYS;
use crate::base::state_dir::{State, StateError};
use crate::keys::encoding::sum;
use crate::keys::psk_policy::PskMode;
use crate::psk::PresharedKey;

/// Most keys; of more the oldest is given up.
const MAX: usize = 16_384;
/// Keys made within this time share one write.
const PAUSE: Duration = Duration::from_millis(100);

/// The preshared keys of this node.
#[derive(Debug, Default)]
pub struct PskStore {
    keys: Mutex<Keys>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Keys {
    by_peer: BTreeMap<NodeId, (u64, PresharedKey)>,
    /// The number of the newest key; grows with each.
    newest: u64,
    /// Whether the file says something else.
    unsaved: bool,
    mode: PskMode,
}

impl PskStore {
    /// Reads the keys that were stored. What cannot be read is left out, with a warning.
    pub fn load(state: &State) -> Self {
        let bytes = state.secret(PRESHARED_KEYS).unwrap_or_else(|error| {
            tracing::warn!(%error, "preshared keys not read; new ones are made");
            None
        });
        let bytes = Zeroizing::new(bytes.unwrap_or_default());
        let vault = Self::default();
        let mut bad = 0usize;
        let mut keys = vault.keys();
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match parse(line).filter(|_| keys.by_peer.len() < MAX) {
                Some((peer, key)) => drop(keys.put(peer, key)),
                None => bad += 1,
            }
        }
        if bad > 0 {
            tracing::warn!(
                lines = bad,
                file = PRESHARED_KEYS.name(),
                "damaged preshared keys are left out; new ones are made"
            );
        }
        keys.unsaved = bad > 0;
        drop(keys);
        vault
    }

    /// Returns how this node stands to preshared keys.
    pub(crate) fn mode(&self) -> PskMode {
        self.keys().mode
    }

    /// Says how this node stands from now on. Who speaks plain WireGuard with everybody forgets all keys.
    pub(crate) fn set_mode(&self, mode: PskMode) {
        self.keys().mode = mode;
        if mode == PskMode::Off {
            self.retain(|_| false);
        }
    }

    /// Returns the key with a peer, and its number.
    pub(crate) fn get(&self, peer: NodeId) -> Option<(u64, PresharedKey)> {
        self.keys().by_peer.get(&peer).cloned()
    }

    /// Returns the number of the key with a peer; 0 if there is none.
    pub(crate) fn number(&self, peer: NodeId) -> u64 {
        self.keys().by_peer.get(&peer).map_or(0, |(number, _)| *number)
    }

    /// Takes a new key with a peer, and returns its number; 0 if no keys are wanted any more.
    pub(crate) fn put(&self, peer: NodeId, key: PresharedKey) -> u64 {
        let number = {
            let mut keys = self.keys();
            if keys.mode == PskMode::Off {
                return 0;
            }
            keys.put(peer, key)
        };
        self.changed.notify_one();
        number
    }

    /// Forgets the keys with nodes that are no peers any more.
    pub(crate) fn retain(&self, mut is_peer: impl FnMut(NodeId) -> bool) {
        let mut keys = self.keys();
        let before = keys.by_peer.len();
        keys.by_peer.retain(|&peer, _| is_peer(peer));
        if keys.by_peer.len() < before {
            keys.unsaved = true;
            self.changed.notify_one();
        }
    }

    /// Stores the keys, if they changed since.
    ///
    /// # Errors
    /// `StateError` if they cannot be written now; they wait for the disk then.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let text = {
            let mut keys = self.keys();
            if !std::mem::replace(&mut keys.unsaved, false) {
                return Ok(());
            }
            keys.text()
        };
        let saved = state.keep(PRESHARED_KEYS, text.as_bytes());
        if saved.is_err() {
            self.keys().unsaved = true;
        }
        saved
    }

    /// Stores the keys whenever they changed, until the task is dropped.
    pub(crate) async fn keep(self: Arc<Self>, state: State) {
        loop {
            let (vault, state) = (Arc::clone(&self), state.clone());
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || vault.save(&state)).await {
                tracing::error!(%error, "preshared keys not stored; a restart makes new ones");
            }
            tokio::time::sleep(PAUSE).await;
            self.changed.notified().await;
        }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn put(&mut self, peer: NodeId, key: PresharedKey) -> u64 {
        self.newest += 1;
        self.unsaved = true;
        self.by_peer.insert(peer, (self.newest, key));
        if self.by_peer.len() > MAX {
            let oldest = self.by_peer.iter().min_by_key(|(_, (number, _))| *number).map(|(&peer, _)| peer);
            oldest.and_then(|oldest| self.by_peer.remove(&oldest));
        }
        self.newest
    }

    fn text(&self) -> Zeroizing<String> {
        // At once as long as it gets: a longer one would leave its beginning behind in memory.
        let mut text = Zeroizing::new(String::with_capacity(self.by_peer.len() * 80));
        for (peer, (_, key)) in &self.by_peer {
            let encoded = Zeroizing::new(BASE64URL_NOPAD.encode(key.bytes()));
            for word in [&*peer.0.to_string(), " ", &encoded, " ", &line_sum(*peer, key), "\n"] {
                text.push_str(word);
            }
        }
        text
    }
}

fn parse(line: &[u8]) -> Option<(NodeId, PresharedKey)> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (peer, key, told) = (words.next()?, words.next()?, words.next()?);
    let peer = NodeId(peer.parse().ok()?);
    let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(key.as_bytes()).ok()?);
    let key = PresharedKey::new(bytes[..].try_into().ok()?);
    (words.next().is_none() && line_sum(peer, &key) == told).then_some((peer, key))
}

fn line_sum(peer: NodeId, key: &PresharedKey) -> String {
    sum(&Zeroizing::new([&peer.0.to_be_bytes()[..], key.bytes()].concat()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(byte: u8) -> PresharedKey {
        PresharedKey::new([byte; 32])
    }

    fn stored(keys: u32) -> (tempfile::TempDir, State) {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let vault = PskStore::load(&state);
        for peer in 1..=keys {
            vault.put(NodeId(peer), key(peer as u8));
        }
        vault.save(&state).unwrap();
        (dir, state)
    }

    #[test]
    fn keys_outlive_a_restart_and_are_for_their_owner_alone() {
        let (_dir, state) = stored(3);
        let vault = PskStore::load(&state);
        assert_eq!(
            (1..=4).map(|n| vault.get(NodeId(n)).map(|k| k.1)).collect::<Vec<_>>(),
            [Some(key(1)), Some(key(2)), Some(key(3)), None]
        );
        let mode = std::fs::metadata(state.path(PRESHARED_KEYS)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{vault:?}").contains("1, 1, 1"), "{vault:?}");
        let secret = BASE64URL_NOPAD.encode(&[1; 32]);
        assert!(!format!("{vault:?}").contains(&secret));

        state.forget().unwrap();
        assert!(PskStore::load(&state).get(NodeId(1)).is_none(), "left the mesh");
    }

    #[test]
    fn a_node_that_is_no_peer_any_more_is_forgotten_and_there_are_never_too_many() {
        let (_dir, state) = stored(3);
        let vault = PskStore::load(&state);
        vault.retain(|peer| peer == NodeId(2));
        vault.save(&state).unwrap();
        let vault = PskStore::load(&state);
        assert_eq!([1, 2, 3].map(|n| vault.number(NodeId(n)) > 0), [false, true, false]);

        for peer in 10..10 + MAX as u32 {
            vault.put(NodeId(peer), key(1));
        }
        assert_eq!(vault.keys().by_peer.len(), MAX);
        assert_eq!(vault.number(NodeId(2)), 0, "the oldest went");
    }

    #[test]
    fn any_flipped_bit_costs_at_most_the_keys_of_its_line_and_none_turns_into_another() {
        let (_dir, state) = stored(3);
        let good = std::fs::read(state.path(PRESHARED_KEYS)).unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                std::fs::write(state.path(PRESHARED_KEYS), &bytes).unwrap();
                let vault = PskStore::load(&state);
                let read: Vec<_> = (1..=3).filter_map(|n| vault.get(NodeId(n)).map(|(_, read)| (n, read))).collect();
                assert!(!read.is_empty() && read.iter().all(|(n, read)| *read == key(*n as u8)), "byte {at} bit {bit}");
                let all = vault.keys().by_peer.len();
                assert_eq!(all, read.len(), "byte {at} bit {bit}");
            }
        }
        for length in 0..good.len() {
            std::fs::write(state.path(PRESHARED_KEYS), &good[..length]).unwrap();
            assert!(PskStore::load(&state).keys().by_peer.len() <= 3);
        }
    }
}
