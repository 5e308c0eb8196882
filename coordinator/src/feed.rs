//! One node's watch: a line for each revision that the node has time for, the newest only.
//!
//! ```text
//! opened ─▶ Snapshot, or Alive / Delta if the node's revision is still known
//!        ─▶ Delta on each change of this node's map · Alive after 5 s without one
//!        ─▶ Fenced when the node watches anew elsewhere; Leaving when we stop; the end when it is revoked
//! ```
//! The next line is made when the connection has room for it, so nothing queues for a slow node: it skips
//! revisions.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use mesh_proto::id::{IdentityKey, NodeName, Revision};
use mesh_proto::netmap::{Delta, NetMap};
use mesh_proto::plan::plan;
use mesh_proto::wire::WatchEvent;
use mesh_proto::world::World;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::hub::{Hub, WatchGuard};
use crate::server::{Stop, stopped};

/// How long a watch may be silent.
const ALIVE: Duration = Duration::from_secs(5);

/// A node's open watch.
pub(crate) struct Feed {
    identity: IdentityKey,
    node: NodeName,
    worlds: watch::Receiver<Arc<World>>,
    stop: Stop,
    guard: WatchGuard,
    sent: Progress,
}

/// What the node holds.
enum Progress {
    /// Nothing was sent yet; the node holds this map, if any that is still known.
    Opened(Option<NetMap>),
    /// The node was sent this map.
    At(NetMap),
    /// Nothing more will be sent.
    Over,
}

impl Feed {
    /// Opens the watch of a member that holds revision `held`.
    pub(crate) async fn open(
        hub: Arc<Hub>,
        identity: IdentityKey,
        node: NodeName,
        held: Option<Revision>,
        stop: Stop,
    ) -> Self {
        let guard = hub.open_watch(node.clone()).await;
        let worlds = hub.worlds();
        // Another coordinator may be of another version, so that only a snapshot is sure to fit what the node has.
        let known = match held.filter(|held| *held > hub.first && !hub.is_shared()) {
            Some(held) => hub.with(move |registry| registry.world_at(held)).await,
            None => None,
        };
        let same = |world: &Arc<World>| world.member(&identity) == Some(&node);
        let base = known.filter(same).and_then(|world| plan(&world, &node));
        Self { identity, node, worlds, stop, guard, sent: Progress::Opened(base) }
    }

    /// Turns the watch into the lines of an NDJSON body.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        unfold(self, |mut feed| async move {
            let event = feed.next().await?;
            let mut line = serde_json::to_vec(&event).ok()?;
            line.push(b'\n');
            Some((Ok(Bytes::from(line)), feed))
        })
    }

    async fn next(&mut self) -> Option<WatchEvent> {
        match std::mem::replace(&mut self.sent, Progress::Over) {
            Progress::Over => None,
            Progress::Opened(base) => {
                let netmap = self.current()?;
                let event = match &base {
                    Some(base) => unless_alike(base, &netmap).unwrap_or_else(|| alive(base)),
                    None => WatchEvent::Snapshot { netmap: Box::new(netmap.clone()) },
                };
                let settled = netmap.revision;
                let held = base.filter(|_| matches!(event, WatchEvent::Alive { .. })).unwrap_or(netmap);
                self.holds(held, settled);
                Some(event)
            }
            Progress::At(sent) => self.change(sent).await,
        }
    }

    /// Waits for the next line to a node that holds `sent`. A change that leaves its map as it is, is none to it.
    async fn change(&mut self, sent: NetMap) -> Option<WatchEvent> {
        let silence = sleep(ALIVE);
        tokio::pin!(silence);
        loop {
            tokio::select! {
                biased;
                ended = &mut self.guard.fenced => {
                    return Some(if ended.is_err() { WatchEvent::Fenced } else { WatchEvent::Leaving });
                }
                () = stopped(&mut self.stop) => return Some(WatchEvent::Leaving),
                Ok(()) = self.worlds.changed() => {
                    let netmap = self.current()?;
                    let settled = netmap.revision;
                    match unless_alike(&sent, &netmap) {
                        Some(event) => {
                            self.holds(netmap, settled);
                            return Some(event);
                        }
                        None => self.guard.settled(sent.revision, settled),
                    }
                }
                () = &mut silence => {
                    let event = alive(&sent);
                    self.sent = Progress::At(sent);
                    return Some(event);
                }
            }
        }
    }

    /// Notes what the node holds, which is right for it up to a revision.
    fn holds(&mut self, netmap: NetMap, settled: Revision) {
        self.guard.settled(netmap.revision, settled);
        self.sent = Progress::At(netmap);
    }

    /// Plans the present map; none if the node is no member any more.
    fn current(&mut self) -> Option<NetMap> {
        let world = Arc::clone(&self.worlds.borrow_and_update());
        if world.member(&self.identity) != Some(&self.node) {
            return None;
        }
        plan(&world, &self.node)
    }
}

fn alive(netmap: &NetMap) -> WatchEvent {
    WatchEvent::Alive { revision: netmap.revision }
}

/// Returns what leads from one map to another; none if they differ by their revision alone.
fn unless_alike(old: &NetMap, new: &NetMap) -> Option<WatchEvent> {
    let delta = Delta::between(old, new);
    (!delta.is_empty()).then(|| WatchEvent::Delta { delta: Box::new(delta) })
}
