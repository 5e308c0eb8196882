//! What is known of the nodes' connections: true while the coordinator runs, and not stored.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{NodeName, Revision};
use mesh_proto::world::World;

/// How long the operator is told that two machines have one identity.
const COPIED: Duration = Duration::from_secs(24 * 3600);

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
    /// When, and from where, one of two machines with its identity told of the other last.
    pub copied: Option<(UnixTime, IpAddr)>,
}

impl LiveNode {
    /// Says that two machines have the node's identity, if one told so in the last day.
    pub fn copy_warning(&self, now: UnixTime) -> Option<String> {
        let (_, from) = self.copied.filter(|(at, _)| now.since(*at) < COPIED)?;
        Some(format!(
            "two machines have this node's identity: the one at {from} found a newer record than its own, which it did not sign, and stopped; see which is the copy, run `meshd leave` there, and let it join anew"
        ))
    }
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

    /// Notes that a machine found another one with its identity.
    pub fn copied(&mut self, node: &NodeName, from: IpAddr, now: UnixTime) {
        self.0.entry(node.clone()).or_default().copied = Some((now, from));
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
