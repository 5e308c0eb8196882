//! Ephemeral nodes: members that vanish when nobody heard of them for a while.
//!
//! ```text
//!   connected here ─▶ its contact is stored anew every minute ─▶ others that share the store see that it is new
//!   not connected ──▶ no new contact for 11 minutes by this coordinator's own clock ─▶ it vanishes
//! ```
//! A contact is a sign, not a time to judge by: another coordinator's clock may be wrong, and nobody wrote one while
//! no coordinator ran or the store was silent. Each coordinator counts from when it saw the sign itself, and
//! anew after any break in its looking.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::NodeName;
use mesh_proto::world::{NodeRecord, World};

use super::change::Sighting;
use super::state::State;

/// How long after its last contact an ephemeral node vanishes.
pub(super) const GONE: Duration = Duration::from_secs(600);
/// How old the stored contact of a connected one may become.
const NOTED: Duration = Duration::from_secs(60);
/// How long may be between two looks of one run: three times as long as there should be.
const BREAK: Duration = Duration::from_secs(60);

/// What one coordinator has seen of ephemeral nodes, in a run of looks without a break. Never larger than the mesh.
#[derive(Debug, Default)]
pub struct Sightings {
    seen: BTreeMap<NodeName, Sighting>,
    looked: Option<UnixTime>,
}

impl Sightings {
    /// Looks at the stored contacts, and returns since when each is the newest.
    pub fn look(&mut self, world: &World, now: UnixTime) -> BTreeMap<NodeName, Sighting> {
        if self.looked.is_none_or(|looked| now < looked || now >= looked + BREAK) {
            self.seen.clear();
        }
        self.looked = Some(now);
        let contacts = world.nodes.iter().filter_map(|(name, node)| Some((name, node.contact?)));
        let sighted = contacts.map(|(name, contact)| {
            let known = self.seen.get(name).filter(|known| known.contact == contact);
            (name.clone(), known.copied().unwrap_or(Sighting { contact, since: now }))
        });
        self.seen = sighted.collect();
        self.seen.clone()
    }

    /// Begins a new run: what would have been a sign could not be stored.
    pub fn interrupt(&mut self) {
        self.looked = None;
    }
}

impl State {
    /// Notes which ephemeral nodes are connected, and takes those out that gave no sign for `GONE`, or
    /// up to `NOTED` longer.
    pub(super) fn tend(&mut self, connected: &BTreeSet<NodeName>, seen: &BTreeMap<NodeName, Sighting>, now: UnixTime) {
        for (name, sighting) in seen {
            let contact = self.world.nodes.get(name).and_then(|node| node.contact);
            // Another contact was stored meanwhile.
            if contact != Some(sighting.contact) {
                continue;
            }
            let is_old = |span| now >= sighting.since + span;
            if connected.contains(name) {
                if is_old(NOTED) {
                    self.touch(name, now);
                }
            } else if is_old(GONE + NOTED) {
                self.remove(name, now);
            }
        }
    }

    /// Notes that an ephemeral node was heard of, in place of what another clock said.
    fn touch(&mut self, name: &NodeName, now: UnixTime) {
        let Some(known) = self.world.nodes.get(name) else { return };
        let record = NodeRecord { contact: Some(now), ..NodeRecord::clone(known) };
        Arc::make_mut(&mut self.world).insert_node(name.clone(), record);
    }
}
