//! Whose identities are expelled for good, as the log and the roll tell nodes: they remember it, so that whoever
//! takes the coordinator brings nobody back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_proto::chain::{MAX_EXPELLED, Roll};
use mesh_proto::id::IdentityKey;
use mesh_proto::world::World;

use super::Registry;
use super::state::{Revoked, State};

/// Most identities in one entry: only a restore expels more, and begins an epoch, whose roll tells of them.
const MAX_EXPELS: usize = 1024;

/// Who belongs to the mesh and who was expelled, at one revision.
#[derive(Debug, Clone)]
pub struct Expelled {
    world: Arc<World>,
    revoked: Arc<BTreeMap<IdentityKey, Revoked>>,
}

impl Expelled {
    /// Returns what a node is told that begins to follow the log; of those expelled the newest `MAX_EXPELLED`.
    pub fn roll(&self) -> Roll {
        Roll { expelled: newest(&self.revoked, MAX_EXPELLED), ..self.world.roll() }
    }
}

impl Registry {
    /// Returns who was expelled until now.
    pub fn expelled(&self) -> Expelled {
        Expelled { world: self.world(), revoked: Arc::clone(&self.state.revoked) }
    }
}

impl State {
    /// Returns the identities that were expelled since another state; at most 1024.
    pub(super) fn expels(&self, before: &Self) -> Vec<IdentityKey> {
        if Arc::ptr_eq(&self.revoked, &before.revoked) {
            return Vec::new();
        }
        let is_new =
            |identity: &&IdentityKey| is_expelled(&self.revoked, identity) && !is_expelled(&before.revoked, identity);
        self.revoked.keys().filter(is_new).take(MAX_EXPELS).copied().collect()
    }
}

/// Says whether a member was expelled that has, or had, this identity. One that a member only replaced names those
/// after it, and is in no list of keys that nodes keep out.
fn is_expelled(revoked: &BTreeMap<IdentityKey, Revoked>, identity: &IdentityKey) -> bool {
    let chain = std::iter::successors(revoked.get(identity), |entry| revoked.get(&entry.succession?.to));
    chain.take(revoked.len()).any(|entry| entry.succession.is_none())
}

/// Returns those that were expelled last.
fn newest(revoked: &BTreeMap<IdentityKey, Revoked>, most: usize) -> BTreeSet<IdentityKey> {
    let mut all: Vec<_> = revoked.iter().filter(|(identity, _)| is_expelled(revoked, identity)).collect();
    if all.len() > most {
        all.select_nth_unstable_by_key(most, |(_, revoked)| Reverse(revoked.at));
        all.truncate(most);
    }
    all.into_iter().map(|(identity, _)| *identity).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use mesh_proto::wire::MAX_LOG;
    use mesh_proto::world::UnixTime;

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
}
