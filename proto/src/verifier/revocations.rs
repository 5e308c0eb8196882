//! Who was expelled, and is in no map any more whatever the coordinator says.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Verifier;
use crate::base::id::IdentityKey;
use crate::model::netmap::{NetMap, Peer};

impl Verifier {
    /// Leaves out who has one of these identities, from the next map on. Says whether that concerns the last one, which
    /// is then to be judged again.
    pub fn expel(&mut self, expelled: Arc<BTreeSet<IdentityKey>>) -> bool {
        self.expelled = expelled;
        for known in self.known.values_mut() {
            let said = known.said.as_ref().and_then(|(_, peer)| revoked(&self.expelled, peer));
            if said.is_some() || known.identity.is_some_and(|identity| self.expelled.contains(&identity)) {
                (known.said, known.good) = (None, None);
            }
        }
        self.last.as_ref().is_some_and(|last| last.peers.values().any(|peer| self.revoked(peer).is_some()))
    }

    /// Returns what came of the last map.
    pub fn last(&self) -> Option<Arc<NetMap>> {
        self.last.clone()
    }

    /// Returns the identity of a peer that was expelled: its present or a former one, for who was expelled names no next.
    pub(super) fn revoked(&self, peer: &Peer) -> Option<IdentityKey> {
        revoked(&self.expelled, peer)
    }
}

fn revoked(expelled: &BTreeSet<IdentityKey>, peer: &Peer) -> Option<IdentityKey> {
    let proof = peer.proof.as_ref()?;
    let mut keys = std::iter::once(proof.identity).chain(proof.lineage.iter().map(|link| link.from));
    keys.find(|key| expelled.contains(key))
}
