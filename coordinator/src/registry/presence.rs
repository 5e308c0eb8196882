//! What is known of the nodes' connections: true while the coordinator runs, and not stored.

use std::collections::BTreeMap;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{NodeName, Revision};
use mesh_proto::world::World;

/// What is known of every node that was heard of since the start.
#[derive(Debug, Default)]
pub struct Presence(BTreeMap<NodeName, LiveNode>);

/// What is known of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LiveNode {
    /// Whether it has a watch open.
    pub connected: bool,
    /// The revision that it last reported to have in force.
    pub applied: Revision,
    /// When it was last heard of.
    pub last_seen: UnixTime,
    /// The sentences of its last report for the operator of the mesh.
    pub warnings: Vec<String>,
}

impl Presence {
    /// Notes that a node opened or closed its watch.
    pub fn connected(&mut self, node: &NodeName, connected: bool, now: UnixTime) {
        let entry = self.0.entry(node.clone()).or_default();
        entry.connected = connected;
        entry.last_seen = now;
    }

    /// Notes what a node reported.
    pub fn reported(&mut self, node: &NodeName, applied: Revision, warnings: Vec<String>, now: UnixTime) {
        let entry = self.0.entry(node.clone()).or_default();
        entry.applied = applied;
        entry.warnings = warnings;
        entry.last_seen = now;
    }

    /// Returns what is known of all nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeName, &LiveNode)> {
        self.0.iter()
    }

    /// Forgets nodes that are gone, so that the table is never larger than the mesh.
    pub(super) fn retain(&mut self, world: &World) {
        self.0.retain(|name, _| world.nodes.contains_key(name));
    }
}
