//! Who was expelled, and is in no map any more whatever the coordinator says.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Verifier;
use crate::id::IdentityKey;
use crate::netmap::{NetMap, Peer};

impl Verifier {
    /// Leaves out who has one of these identities, from the next map on. Says whether that concerns the last one, which
    /// is then to be judged again.
    pub fn expel(&mut self, expelled: Arc<BTreeSet<IdentityKey>>) -> bool {
        self.expelled = expelled;
        for known in self.known.values_mut() {
            let said = known.said.as_ref().and_then(|(_, peer)| peer.proof.as_ref()).map(|proof| proof.identity);
            if known.identity.into_iter().chain(said).any(|identity| self.expelled.contains(&identity)) {
                (known.said, known.good) = (None, None);
            }
        }
        self.last.as_ref().is_some_and(|last| last.peers.values().any(|peer| self.revoked(peer).is_some()))
    }

    /// Returns what came of the last map.
    pub fn last(&self) -> Option<Arc<NetMap>> {
        self.last.clone()
    }

    /// Returns the identity of a peer that was expelled.
    pub(super) fn revoked(&self, peer: &Peer) -> Option<IdentityKey> {
        let identity = peer.proof.as_ref()?.identity;
        self.expelled.contains(&identity).then_some(identity)
    }
}
