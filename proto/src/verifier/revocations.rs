//! Who was expelled, and is in no map any more whatever the coordinator says.

use std::collections::BTreeSet;

use crate::base::id::IdentityKey;
use crate::model::netmap::Peer;

/// Returns the identity of a peer that was expelled: its present or a former one, for who was expelled names no next.
pub(super) fn revoked(expelled: &BTreeSet<IdentityKey>, peer: &Peer) -> Option<IdentityKey> {
    let proof = peer.proof.as_ref()?;
    let mut keys = std::iter::once(proof.identity).chain(proof.lineage.iter().map(|link| link.from));
    keys.find(|key| expelled.contains(key))
}
