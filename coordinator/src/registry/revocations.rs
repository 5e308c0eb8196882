//! Whose identities are expelled for good, as the log and the roll tell nodes: they remember it, so that whoever
//! takes the coordinator brings nobody back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, NodeName};
use mesh_proto::trust::audit_log::{MAX_EXPELLED, Roll};
use mesh_proto::trust::identity_rotation::MAX_LINEAGE;
use mesh_proto::wire::ErrorCode;
use mesh_proto::world::World;

use super::change::Refused;
use super::state::State;
use super::state::keys::{Revoked, tunnel_keys};

/// Most identities in one entry: only a restore expels more, and begins an epoch, whose roll tells of them.
const MAX_EXPELS: usize = 1024;

/// Who belongs to the mesh and who was expelled, at one revision.
#[derive(Debug, Clone)]
pub struct Expelled {
    pub(super) world: Arc<World>,
    pub(super) revoked: Arc<BTreeMap<IdentityKey, Revoked>>,
}

impl Expelled {
    /// Returns what a node is told that begins to follow the log; of those expelled the newest `MAX_EXPELLED`.
    pub fn roll(&self) -> Roll {
        Roll { expelled: newest(&self.revoked, MAX_EXPELLED), ..self.world.roll() }
    }
}

impl State {
    /// Expels a member.
    pub(super) fn revoke(&mut self, name: &NodeName, now: UnixTime) -> Result<(), Refused> {
        let Some(record) = self.world.nodes.get(name) else {
            let text = format!("there is no node `{name}`; see mesh-coordinator nodes");
            return Err(Refused::new(ErrorCode::UnknownNode, text));
        };
        let Some(identity) = record.identity else {
            let text = format!("`{name}` is a [[node]] of {}; remove it there to expel it", self.world.file);
            return Err(Refused::new(ErrorCode::UnknownNode, text));
        };
        let tunnels = tunnel_keys(&record.facts).into_iter().collect();
        let entry = Revoked { name: name.clone(), at: now, tunnels, succession: None };
        Arc::make_mut(&mut self.revoked).insert(identity, entry);
        self.remove(name, now);
        Ok(())
    }

    /// Returns the identities that were expelled since another state, at most 1024: the present ones of those nodes, then
    /// former ones.
    pub(super) fn expels(&self, before: &Self) -> Vec<IdentityKey> {
        if Arc::ptr_eq(&self.revoked, &before.revoked) {
            return Vec::new();
        }
        let new = self.revoked.iter().filter(|(identity, _)| !before.revoked.contains_key(*identity));
        let present: Vec<_> = new.filter(|(_, entry)| entry.succession.is_none()).map(|(key, _)| *key).collect();
        let former = former(&self.revoked, &present);
        present.into_iter().chain(former).take(MAX_EXPELS).collect()
    }
}

/// Returns those that were expelled last, then former identities of theirs. One that a member only replaced is none.
fn newest(revoked: &BTreeMap<IdentityKey, Revoked>, most: usize) -> BTreeSet<IdentityKey> {
    let mut present: Vec<_> = revoked.iter().filter(|(_, entry)| entry.succession.is_none()).collect();
    if present.len() > most {
        present.select_nth_unstable_by_key(most, |(_, revoked)| Reverse(revoked.at));
        present.truncate(most);
    }
    let present: Vec<_> = present.into_iter().map(|(identity, _)| *identity).collect();
    let former = former(revoked, &present);
    present.into_iter().chain(former).take(most).collect()
}

/// Returns the identities that led to these, of each at most `MAX_LINEAGE`: nobody believes in a longer lineage.
fn former(revoked: &BTreeMap<IdentityKey, Revoked>, present: &[IdentityKey]) -> Vec<IdentityKey> {
    if present.is_empty() {
        return Vec::new();
    }
    let links = revoked.values().filter_map(|entry| entry.succession);
    let before: BTreeMap<_, _> = links.map(|link| (link.to, link.from)).collect();
    let of = |key: &IdentityKey| {
        let chain = std::iter::successors(before.get(key), |former| before.get(*former));
        chain.take(MAX_LINEAGE).copied().collect::<Vec<_>>()
    };
    present.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use mesh_proto::base::clock::UnixTime;
    use mesh_proto::trust::identity_rotation::Succession;
    use mesh_proto::trust::signed_record::Signature;
    use mesh_proto::wire::MAX_LOG;

    use super::*;

    #[test]
    fn the_roll_of_the_largest_mesh_and_the_longest_entry_fit_an_answer() {
        let key = |n: usize| {
            let mut key = [250; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            IdentityKey(key)
        };
        let members = (0..20_000).map(key).collect();
        let roll = Roll { members, expelled: (0..MAX_EXPELLED).map(key).collect(), ..Roll::default() };
        let length = serde_json::to_vec(&roll).unwrap().len();
        assert!(length < MAX_LOG / 2, "{length} bytes");
        let expels: Vec<_> = (0..MAX_EXPELS).map(key).collect();
        let length = serde_json::to_vec(&expels).unwrap().len();
        assert!(length < MAX_LOG / 16, "{length} bytes");
    }

    #[test]
    fn of_too_many_the_newest_are_told() {
        let revoked = |n: u64| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            (
                IdentityKey(key),
                Revoked { name: "n".parse().unwrap(), at: UnixTime(n), tunnels: Vec::new(), succession: None },
            )
        };
        let all: BTreeMap<_, _> = (0..300).map(revoked).collect();
        assert_eq!(newest(&all, 300).len(), 300);
        let told = newest(&all, 100);
        assert_eq!(told, (200..300).map(|n| revoked(n).0).collect());
    }
    #[test]
    fn who_changed_its_identity_often_is_told_of_by_the_present_and_a_few_former_ones() {
        let key = |n: usize| {
            // The present one comes last in order.
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            IdentityKey(key)
        };
        let signature = Signature([0; 64]);
        let link = |n| Succession { from: key(n), to: key(n + 1), signature, accepted: signature };
        let entry =
            |succession| Revoked { name: "n".parse().unwrap(), at: UnixTime(1), tunnels: Vec::new(), succession };
        let most = 20_000;
        let mut all: BTreeMap<_, _> = (0..most).map(|n| (key(n), entry(Some(link(n))))).collect();
        assert_eq!(newest(&all, MAX_EXPELLED), BTreeSet::new(), "who only changed is not expelled");
        all.insert(key(most), entry(None));
        all.insert(IdentityKey([255; 32]), entry(None));
        let told = newest(&all, MAX_EXPELLED);
        let expected = (most - MAX_LINEAGE..=most).map(key).chain([IdentityKey([255; 32])]);
        assert_eq!(told, expected.collect());
        assert_eq!(newest(&all, 2), [key(most), IdentityKey([255; 32])].into(), "present ones first");
    }
}
