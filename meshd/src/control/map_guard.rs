//! What stands between the coordinator's words and the data path: the high-water mark, the lock, who was expelled, and
//! the check of every part.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::Ipv4Net;
use mesh_host::identity::verify;
use mesh_host::sums::{seal, unseal};
use mesh_proto::base::id::{IdentityKey, Revision};
use mesh_proto::model::netmap::NetMap;
use mesh_proto::trust::high_water_mark::{Mark, WentBack};
use mesh_proto::verifier::{Admitted, Verifier};
use serde::{Deserialize, Serialize};

use crate::base::files::MARK;
use crate::base::runtime::aside;
use crate::base::state_dir::{State, StateError, json};
use crate::control::roll_file;

/// Follows one coordinator's history forward, and checks what it brings.
#[derive(Debug)]
pub struct MapGuard {
    verifier: Verifier,
    stored: Stored,
    /// Where the mark outlives the process.
    state: Option<State>,
}

/// The mark as it is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    mark: Mark,
    /// Whether something of the map was refused, so that the cached one is no base for a delta.
    #[serde(default)]
    partial: bool,
    /// The lock that this node holds to.
    lock: Option<IdentityKey>,
}

impl MapGuard {
    /// Takes up the mark of a state directory, and who was expelled; without one they last as long as the process.
    pub fn new(state: Option<State>) -> Self {
        let stored = state.as_ref().and_then(read).unwrap_or_default();
        let mut verifier = Verifier::new(verify).held_to(stored.lock);
        if let Some(roll) = state.as_ref().and_then(roll_file::read) {
            verifier.expel(Arc::new(roll.expelled));
        }
        Self { verifier, stored, state }
    }

    /// Holds maps to the pod blocks that this node claims.
    pub fn claiming(self, pods: Vec<Ipv4Net>) -> Self {
        Self { verifier: self.verifier.claiming(pods), ..self }
    }

    /// Checks the map of the cache. Says as well whether it may be continued with a delta.
    pub fn resume(&mut self, map: Arc<NetMap>) -> (Admitted, bool) {
        let own = Mark { epoch: map.epoch.number, revision: map.revision };
        // Of a version that kept no mark, or of a mark that was lost.
        if (own.epoch, own.revision) > (self.stored.mark.epoch, self.stored.mark.revision) {
            self.stored.mark = own;
        }
        let admitted = aside(|| self.verifier.admit(map));
        self.stored.lock = self.verifier.held();
        let whole = !self.stored.partial && admitted.refused.is_empty();
        (admitted, whole)
    }

    /// Follows to a map: what it brings may be acted on once this returns, for the mark is stored.
    ///
    /// # Errors
    /// `WentBack` if the map lies behind the mark.
    pub async fn admit(&mut self, map: Arc<NetMap>, pins: &[IdentityKey]) -> Result<Admitted, WentBack> {
        let mark = self.stored.mark.advance(&map.epoch, map.revision, pins, verify)?;
        let admitted = aside(|| self.verifier.admit(map));
        let lock = self.verifier.held();
        self.store(Stored { mark, partial: !admitted.refused.is_empty(), lock }).await;
        Ok(admitted)
    }

    /// Holds maps to those who were expelled. Judges the map in force again if one of them is in it: as the coordinator
    /// sent it, where that is known.
    pub async fn expel(
        &mut self,
        expelled: Arc<BTreeSet<IdentityKey>>,
        current: Option<&Arc<NetMap>>,
    ) -> Option<Admitted> {
        if !self.verifier.expel(expelled) {
            return None;
        }
        let map = current.cloned().or_else(|| self.verifier.last())?;
        let admitted = aside(|| self.verifier.admit(map));
        self.store(Stored { partial: true, ..self.stored }).await;
        Some(admitted)
    }

    /// Takes note of a revision that brought nothing new.
    ///
    /// # Errors
    /// `WentBack` if it lies behind the mark.
    pub fn hears(&mut self, revision: Revision) -> Result<(), WentBack> {
        self.stored.mark.reach(revision).map(|_| ())
    }

    /// Returns the key that has to have signed for every peer, if this node ever saw one.
    pub fn lock(&self) -> Option<IdentityKey> {
        self.verifier.held()
    }

    /// Returns how many records were refused since the start.
    pub fn refused(&self) -> u64 {
        self.verifier.refused()
    }

    async fn store(&mut self, stored: Stored) {
        if stored == self.stored {
            return;
        }
        self.stored = stored;
        let Some(state) = self.state.clone() else { return };
        let kept = tokio::task::spawn_blocking(move || state.keep(MARK, &seal(&json(&stored)))).await;
        if let Ok(Err(error)) = kept {
            // A revocation must not wait for a full disk.
            tracing::error!(%error, "the high-water mark is not stored; a restart could follow an older coordinator");
        }
    }
}

/// Stores the mark of a first map.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn begin(state: &State, map: &NetMap) -> Result<(), StateError> {
    let mark = Mark { epoch: map.epoch.number, revision: map.revision };
    let lock = map.mesh.lock.as_ref().and_then(|lock| lock.key);
    save(state, Stored { mark, partial: false, lock })
}

/// Lets go of the lock without a word of its key, and returns it.
///
/// # Errors
/// If the mark cannot be written.
pub(crate) fn forget_lock(state: &State) -> Result<Option<IdentityKey>, StateError> {
    let Some(stored) = read(state).filter(|stored| stored.lock.is_some()) else { return Ok(None) };
    // The cached map names the lock that was held to, and would bring it back.
    if let Some(mut map) = state.netmap() {
        map.mesh.lock = None;
        state.save_netmap(&map)?;
    }
    // It may have been refused in parts: a snapshot is asked for.
    save(state, Stored { lock: None, partial: true, ..stored })?;
    Ok(stored.lock)
}

fn save(state: &State, stored: Stored) -> Result<(), StateError> {
    state.replace(MARK, &seal(&json(&stored)))
}

fn read(state: &State) -> Option<Stored> {
    let bytes = state.secret(MARK).unwrap_or_else(|error| {
        tracing::warn!(%error, "the high-water mark is not read; the cached map's revision stands in for it");
        None
    })?;
    // One of an older version is not sealed.
    let body = if bytes.starts_with(b"{") { Some(&bytes[..]) } else { unseal(&bytes) };
    let stored = body.and_then(|body| serde_json::from_slice(body).ok());
    Some(stored.unwrap_or_else(|| {
        tracing::warn!("the high-water mark is damaged; the cached map's revision and lock stand in for it");
        // Nobody knows whether the cached map is all that the coordinator sent.
        Stored { partial: true, ..Stored::default() }
    }))
}
