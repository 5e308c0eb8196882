//! Which nodes are gone: members whose control channel ended, or never came.
//!
//! A node that dials anew is not gone. What this coordinator cannot know it does not say: while another one may have the
//! node's channel, nobody is gone, nor until nodes had time to come after a start.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::NodeName;
use mesh_proto::world::World;

use crate::core::watches::Watches;
use crate::registry::LiveNode;

/// How long a channel may be away before its node is gone: longer than dialling anew takes.
const AWAY: Duration = Duration::from_secs(2);
/// How long nodes may take to come after a start; they try at least once a second at first, and each 15 s later.
const COMING: Duration = Duration::from_secs(30);

/// What says whether a node is gone.
pub(super) struct Gone<'a> {
    /// The open channels.
    pub(super) watches: &'a Watches,
    /// What is known of nodes that were heard of since the start.
    pub(super) notes: &'a BTreeMap<NodeName, LiveNode>,
    /// When the coordinator started.
    pub(super) started: Instant,
    /// The time of the notes.
    pub(super) now: UnixTime,
    /// Whether no other coordinator can have a node's channel.
    pub(super) is_alone: bool,
}

impl Gone<'_> {
    /// Says whether there is no other coordinator that may have a node's channel.
    pub(super) fn is_alone(world: &World) -> bool {
        world.mesh.coordinators.len() <= 1
    }

    /// Says whether a node is gone. One that is no member but a static one has no channel, and never is.
    pub(super) fn is(&self, name: &NodeName, is_member: bool) -> bool {
        if !is_member || !self.is_alone || self.watches.is_open(name) {
            return false;
        }
        match self.notes.get(name) {
            Some(note) => self.now.since(note.last_seen) >= AWAY,
            None => self.started.elapsed() >= COMING,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_node_is_gone_once_its_channel_is_away_for_longer_than_dialling_anew_takes() {
        let watches = Arc::new(Watches::default());
        let name: NodeName = "a".parse().unwrap();
        let seen = |at| BTreeMap::from([(name.clone(), LiveNode { last_seen: UnixTime(at), ..LiveNode::default() })]);
        let (notes, never) = (seen(100), BTreeMap::new());
        let gone = |now, is_alone, notes| Gone {
            watches: &watches,
            notes,
            started: Instant::now(),
            now: UnixTime(now),
            is_alone,
        };
        assert!(!gone(101, true, &notes).is(&name, true));
        assert!(gone(102, true, &notes).is(&name, true));
        assert!(!gone(102, false, &notes).is(&name, true), "another coordinator may have it");
        assert!(!gone(102, true, &notes).is(&name, false), "a static node has no channel");
        assert!(!gone(102, true, &never).is(&name, true), "it may still come");
        let open = watches.open(name.clone());
        assert!(!gone(102, true, &notes).is(&name, true));
        drop(open);
        assert!(gone(102, true, &notes).is(&name, true));
    }
}
