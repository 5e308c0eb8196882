//! One node's watch: a line for each revision that the node has time for, the newest only.
//!
//! ```text
//! opened ─▶ Snapshot, or Alive / Delta if the node's revision is still known
//!        ─▶ Delta on each change of this node's map · Alive every 5 s
//!        ─▶ Fenced when the node watches anew elsewhere; Leaving when we stop; the end when it is revoked
//! ```
//! The next line is made when the connection has room for it, so nothing queues for a slow node: it skips
//! revisions, and if it skips too many it gets a snapshot.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use mesh_proto::base::id::{IdentityKey, NodeName, Revision};
use mesh_proto::plan::{self, Chart};
use mesh_proto::wire::WatchEvent;
use mesh_proto::world::World;
use tokio::time::{Instant, sleep_until};

use crate::base::stop::{Stop, stopped};
use crate::core::map_cache;
use crate::core::{Hub, WatchGuard};

/// How often a node is told that all is well.
const ALIVE: Duration = Duration::from_secs(5);
/// From how many bytes on the part of a line that nodes share is not copied for each of them.
const SHARED: usize = 4096;

/// A node's open watch.
pub(crate) struct Feed {
    hub: Arc<Hub>,
    identity: IdentityKey,
    node: NodeName,
    stop: Stop,
    guard: WatchGuard,
    /// The least revision that a map is sent of. The node may have followed another coordinator as far.
    least: Revision,
    progress: Progress,
    /// The rest of the line that was begun.
    rest: Option<Bytes>,
    /// When the node was last told that all is well.
    alive: Instant,
}

/// What the node holds.
enum Progress {
    /// Nothing was sent yet; the node holds this map, if it is still known.
    Opened(Option<Held>),
    /// The node was sent this map.
    At(Held),
    /// Nothing more will be sent.
    Over,
}

/// A map that a node holds.
#[derive(Clone, Copy)]
struct Held {
    /// Its revision.
    revision: Revision,
    /// The revision of the newest chart that it is right for.
    settled: Revision,
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
        let least = hub.world().revision;
        let guard = hub.open_watch(node.clone()).await;
        // Another coordinator may be of another version, so that only a snapshot is sure to fit what the node has.
        let known = match held.filter(|held| *held > hub.first && !hub.is_shared()) {
            Some(held) => hub.with(move |registry| registry.world_at(held)).await,
            None => None,
        };
        let known = known.filter(|world| world.member(&identity) == Some(&node));
        let held = held.zip(known.and_then(|world| hub.charts.like(&world)));
        let held = held.map(|(revision, settled)| Held { revision, settled });
        Self {
            hub,
            identity,
            node,
            stop,
            guard,
            least,
            progress: Progress::Opened(held),
            rest: None,
            alive: Instant::now(),
        }
    }

    /// Turns the watch into the lines of an NDJSON body.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        unfold(self, |mut feed| async move {
            let piece = feed.next().await?;
            Some((Ok(piece), feed))
        })
    }

    /// Returns the next line, or the rest of one.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if let Some(rest) = self.rest.take() {
            return Some(rest);
        }
        match std::mem::replace(&mut self.progress, Progress::Over) {
            Progress::Over => None,
            Progress::Opened(held) => {
                let chart = self.chart().await;
                if !self.is_member(chart.world()) {
                    return None;
                }
                match held {
                    None => self.snapshot(&chart),
                    Some(held) => self.news(held)?.or_else(|| self.alive(held)),
                }
            }
            Progress::At(held) => self.change(held).await,
        }
    }

    /// Waits for a chart that is right up to the least revision: one that is drawn or due by then, if it was news.
    async fn chart(&self) -> Arc<Chart> {
        loop {
            let chart = self.hub.chart().await;
            if self.hub.right_until(&chart) >= self.least {
                return chart;
            }
        }
    }

    /// Waits for the next line. A change that leaves the node's map as it is, is none to it.
    async fn change(&mut self, mut held: Held) -> Option<Bytes> {
        let silence = sleep_until(self.alive + ALIVE);
        tokio::pin!(silence);
        loop {
            tokio::select! {
                biased;
                ended = &mut self.guard.fenced => {
                    return line(if ended.is_err() { &WatchEvent::Fenced } else { &WatchEvent::Leaving });
                }
                () = stopped(&mut self.stop) => return line(&WatchEvent::Leaving),
                () = self.guard.bell.notified() => {
                    if let Some(line) = self.news(held)? {
                        return Some(line);
                    }
                    if let Progress::At(now) = self.progress {
                        held = now;
                    }
                }
                () = &mut silence => {
                    self.progress = Progress::At(held);
                    return self.alive(held);
                }
            }
        }
    }

    /// Makes the line that leads from what the node holds to the newest chart; the inner option is none if there
    /// is nothing to tell, the outer if the node is no member any more.
    #[expect(clippy::option_option, reason = "the end of the watch is something else than silence")]
    fn news(&mut self, held: Held) -> Option<Option<Bytes>> {
        let newest = self.hub.charts.newest();
        if !self.is_member(newest.world()) {
            return None;
        }
        if newest.revision() < held.revision {
            // What came since is not drawn yet, or was no news.
            self.holds(held);
            return Some(None);
        }
        let way = self.hub.charts.way(held.settled);
        let told = way.as_ref().and_then(|way| way.get()).and_then(|way| Some((way.to(), way.rest(&self.node)?)));
        let Some((to, rest)) = told else {
            return self.snapshot(&newest).map(Some);
        };
        if rest.is_empty() {
            self.holds(Held { settled: to, ..held });
            return Some(None);
        }
        self.holds(Held { revision: to, settled: to });
        let head = map_cache::head(held.revision);
        if rest.len() < SHARED {
            return Some(Some([head, rest].concat().into()));
        }
        self.rest = Some(rest);
        Some(Some(head))
    }

    fn snapshot(&mut self, chart: &Chart) -> Option<Bytes> {
        let mut netmap = Box::new(plan::netmap(chart, &self.node)?);
        netmap.revision = self.hub.right_until(chart);
        self.holds(Held { revision: netmap.revision, settled: chart.revision() });
        line(&WatchEvent::Snapshot { netmap })
    }

    /// Notes what the node holds from now on.
    fn holds(&mut self, held: Held) {
        self.guard.settled(held.revision, held.settled);
        self.progress = Progress::At(held);
    }

    /// Says that all is well, and what the last entry of the log is: every 5 s, whatever else there is to tell.
    fn alive(&mut self, held: Held) -> Option<Bytes> {
        self.alive = Instant::now();
        line(&WatchEvent::Alive { revision: held.revision, log: Some(self.hub.world().told()) })
    }

    fn is_member(&self, world: &World) -> bool {
        world.member(&self.identity) == Some(&self.node)
    }
}

fn line(event: &WatchEvent) -> Option<Bytes> {
    let mut line = serde_json::to_vec(event).ok()?;
    line.push(b'\n');
    Some(line.into())
}
