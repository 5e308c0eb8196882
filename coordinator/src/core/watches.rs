//! Who waits for which revision: the open watches, one of each node, and what each was sent.
//!
//! ```text
//!   a chart concerns n1, n4 ─▶ wake ─▶ their bells ring ─▶ each makes its next line ─▶ settled
//! ```
//! At most one watch of a node, so that there are never more than nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mesh_proto::base::id::{NodeName, Revision};
use tokio::sync::{Notify, oneshot};

use crate::base::sync::lock;

/// The open watches, by node.
#[derive(Default)]
pub(crate) struct Watches {
    open: Mutex<BTreeMap<NodeName, Watching>>,
    next: AtomicU64,
}

/// A node's open watch. Dropping `fence` ends it for a newer one of the same node; a word over it ends it quietly.
struct Watching {
    number: u64,
    fence: Option<oneshot::Sender<()>>,
    /// The revision of the map that it was sent last.
    sent: Revision,
    /// The newest revision that this map is right for.
    settled: Revision,
    /// The last revision that concerned this node.
    due: Revision,
    /// Rung when there is something for it.
    bell: Arc<Notify>,
}

/// Says that a watch is open for as long as it lives, or until it is closed.
pub(crate) struct WatchGuard {
    watches: Arc<Watches>,
    node: NodeName,
    number: u64,
    /// Ends when a newer watch of the same node has taken over.
    pub(crate) fenced: oneshot::Receiver<()>,
    /// Rung when a new chart concerns the node.
    pub(crate) bell: Arc<Notify>,
}

impl Watches {
    /// Opens a watch of a node and ends the one it had.
    pub(crate) fn open(self: &Arc<Self>, node: NodeName) -> WatchGuard {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (fence, fenced) = oneshot::channel();
        let bell = Arc::new(Notify::new());
        let watching = Watching {
            number,
            fence: Some(fence),
            sent: Revision(u64::MAX),
            settled: Revision(0),
            due: Revision(0),
            bell: Arc::clone(&bell),
        };
        lock(&self.open).insert(node.clone(), watching);
        WatchGuard { watches: Arc::clone(self), node, number, fenced, bell }
    }

    /// Rings the watches of the nodes that a revision concerns; of all if it is not said of which.
    pub(crate) fn wake(&self, concerned: Option<&BTreeSet<NodeName>>, revision: Revision) {
        let mut open = lock(&self.open);
        let ring = |watching: &mut Watching| {
            watching.due = revision;
            watching.bell.notify_one();
        };
        match concerned {
            None => open.values_mut().for_each(ring),
            Some(nodes) => nodes.iter().for_each(|node| open.get_mut(node).into_iter().for_each(ring)),
        }
    }

    /// Ends all watches, so that nodes go to another coordinator.
    pub(crate) fn end_all(&self) {
        for watching in lock(&self.open).values_mut() {
            if let Some(fence) = watching.fence.take() {
                let _ = fence.send(());
            }
        }
    }

    /// Returns how many watches are open.
    pub(crate) fn count(&self) -> usize {
        lock(&self.open).len()
    }

    /// Says whether a node has a watch open.
    pub(crate) fn is_open(&self, node: &NodeName) -> bool {
        lock(&self.open).contains_key(node)
    }

    /// Says whether a node was sent all that concerned it, and has it in force, given the revision that it last reported.
    pub(crate) fn is_told(&self, node: &NodeName, applied: Revision) -> bool {
        let is_told = |watching: &Watching| watching.settled >= watching.due && applied >= watching.sent;
        lock(&self.open).get(node).is_some_and(is_told)
    }
}

impl WatchGuard {
    /// Notes that the node was sent the map of revision `sent`, which is right up to revision `settled`.
    pub(crate) fn settled(&self, sent: Revision, settled: Revision) {
        if let Some(watching) = lock(&self.watches.open).get_mut(&self.node).filter(|w| w.number == self.number) {
            (watching.sent, watching.settled) = (sent, settled);
        }
    }

    /// Ends the watch; false if a newer one of the same node has taken over, or if it was closed already.
    pub(crate) fn close(&self) -> bool {
        let mut open = lock(&self.watches.open);
        let is_ours = open.get(&self.node).is_some_and(|watching| watching.number == self.number);
        if is_ours {
            open.remove(&self.node);
        }
        is_ours
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.close();
    }
}
