//! What may follow what: a node's records only go forward, and keys of expelled nodes never come back.

use mesh_proto::base::id::NodeName;
use mesh_proto::wire::{ErrorCode, NodeFacts};

use super::change::Refused;
use super::state::State;
use super::state::keys::tunnel_keys;

impl State {
    /// Refuses a record that is older than the one that is stored, or another of the same number.
    pub(super) fn check_renewal(&self, name: &NodeName, facts: &NodeFacts) -> Result<(), Refused> {
        let Some(known) = self.world.nodes.get(name).map(|node| &node.facts) else { return Ok(()) };
        let (Some(old), new) = (&known.signed, &facts.signed) else { return Ok(()) };
        let is_forward =
            facts.sequence > known.sequence || (facts.sequence == known.sequence && new.as_ref() == Some(old));
        if new.is_some() && is_forward {
            return Ok(());
        }
        let text = format!(
            "node `{name}` sent its record number {}, but number {} is known: was this machine brought back from a snapshot, or does a copy of it run? It signs a new one by itself when it has the newest map",
            facts.sequence, known.sequence
        );
        Err(Refused { record: Some(Box::new(old.clone())), ..Refused::new(ErrorCode::Record, text) })
    }

    /// Refuses tunnel keys that an expelled node had.
    pub(super) fn check_keys(&self, facts: &NodeFacts) -> Result<(), String> {
        let keys = tunnel_keys(facts);
        let mut expelled = self.revoked.values().filter(|revoked| revoked.tunnels.iter().any(|key| keys.contains(key)));
        match expelled.next() {
            None => Ok(()),
            Some(revoked) => Err(format!(
                "the node uses a tunnel key of `{}`, which was revoked; run `meshd leave` there, which removes it, and join again",
                revoked.name
            )),
        }
    }
}
