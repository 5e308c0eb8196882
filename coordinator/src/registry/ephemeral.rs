//! Ephemeral nodes: members that vanish when nobody heard of them for a while.
//!
//! When a coordinator last heard of one is stored every minute, so that neither a restart nor another
//! coordinator of the same store takes a node that is there for one that is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_proto::id::NodeName;
use mesh_proto::world::{NodeRecord, UnixTime};

use super::state::State;

/// How long after its last contact an ephemeral node vanishes.
pub(super) const GONE: Duration = Duration::from_secs(600);
/// How old the stored contact of a connected one may become.
const NOTED: Duration = Duration::from_secs(60);

impl State {
    /// Notes which ephemeral nodes are connected, and takes those out that were not for `GONE`, or
    /// up to `NOTED` longer. Returns what vanished.
    pub(super) fn tend(&mut self, connected: &BTreeSet<NodeName>, now: UnixTime) -> Vec<NodeName> {
        let ephemeral = self.world.nodes.iter().filter_map(|(name, node)| Some((name.clone(), node.contact?)));
        let mut vanished = Vec::new();
        for (name, contact) in ephemeral.collect::<Vec<_>>() {
            let is_old = |span| now >= contact + span;
            if connected.contains(&name) {
                if is_old(NOTED) {
                    self.touch(&name, now);
                }
            } else if is_old(GONE + NOTED) {
                self.remove(&name, now);
                vanished.push(name);
            }
        }
        vanished
    }

    /// Notes that an ephemeral node was heard of.
    pub(super) fn touch(&mut self, name: &NodeName, now: UnixTime) {
        let Some(known) = self.world.nodes.get(name).filter(|node| node.contact.is_some_and(|at| at < now)) else {
            return;
        };
        let record = NodeRecord { contact: Some(now), ..NodeRecord::clone(known) };
        std::sync::Arc::make_mut(&mut self.world).insert_node(name.clone(), record);
    }
}
