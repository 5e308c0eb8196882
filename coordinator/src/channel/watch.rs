//! `GET /v1/watch`: a line for each revision that the node has time for, the newest only.
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

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use futures_util::Stream;
use futures_util::stream::unfold;
use mesh_host::clock::unix;
use mesh_host::http::{Stop, stopped};
use mesh_proto::base::id::{IdentityKey, NodeName, Revision};
use mesh_proto::plan::{self, PlanIndex};
use mesh_proto::wire::{ErrorCode, WatchEvent};
use mesh_proto::world::World;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

use crate::channel::context::Context;
use crate::channel::peer::Requester;
use crate::core::failure::{Rejection, words};
use crate::core::watches::WatchGuard;
use crate::core::{Core, map_cache};
use crate::registry::Refused;

/// How often a node is told that all is well.
const ALIVE: Duration = Duration::from_secs(5);
/// From how many bytes on the part of a line that nodes share is not copied for each of them.
const SHARED: usize = 4096;

/// From where on a node goes on.
#[derive(Deserialize)]
pub(crate) struct Resume {
    revision: Option<u64>,
    epoch: Option<u64>,
}

/// Opens the watch of a member.
pub(crate) async fn watch(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
    resume: Result<Query<Resume>, QueryRejection>,
) -> Result<Response, Rejection> {
    let Resume { revision, epoch } = words(resume, "/v1/watch?revision=N&epoch=N")?;
    context.shared.catch_up(&context.core).await;
    // Revisions of another epoch are of another history.
    let revision = revision.filter(|_| epoch.is_none_or(|epoch| epoch == context.core.world().epoch.number));
    let node = context.member(&peer).await?;
    if context.shared.is_shared() && revision.is_some_and(|held| held > context.core.world().revision.0) {
        let message = "this coordinator is behind the one that the node was connected to, since its store does not answer; try another, or again in a few seconds";
        return Err(Refused::new(ErrorCode::Busy, message).into());
    }
    // Another coordinator may be of another version, so that only a snapshot is sure to fit what the node has.
    let held = revision.map(Revision).filter(|_| !context.shared.is_shared());
    let stream = WatchStream::open(context.core, peer.identity, node, held, context.stop).await;
    let body = Body::from_stream(stream.into_stream());
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// A node's open watch. Its end is noted in the registry.
pub(crate) struct WatchStream {
    core: Arc<Core>,
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

impl WatchStream {
    /// Opens the watch of a member that holds revision `held`, unless a snapshot has to be sent whatever it holds.
    pub(crate) async fn open(
        core: Arc<Core>,
        identity: IdentityKey,
        node: NodeName,
        held: Option<Revision>,
        stop: Stop,
    ) -> Self {
        let least = core.world().revision;
        let guard = core.watches().open(node.clone());
        core.note_presence(node.clone()).await;
        let known = match held.filter(|held| *held > core.first()) {
            Some(held) => core.with(move |registry| registry.world_at(held)).await,
            None => None,
        };
        let known = known.filter(|world| world.member(&identity) == Some(&node));
        let held = held.zip(known.and_then(|world| core.maps().like(&world)));
        let held = held.map(|(revision, settled)| Held { revision, settled });
        Self {
            core,
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
        unfold(self, |mut stream| async move {
            let piece = stream.next().await?;
            Some((Ok(piece), stream))
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
    async fn chart(&self) -> Arc<PlanIndex> {
        loop {
            let chart = self.core.chart().await;
            if self.core.right_until(&chart) >= self.least {
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
        let newest = self.core.maps().newest();
        if !self.is_member(newest.world()) {
            return None;
        }
        if newest.revision() < held.revision {
            // What came since is not drawn yet, or was no news.
            self.holds(held);
            return Some(None);
        }
        let way = self.core.maps().way(held.settled);
        let told = way.as_ref().and_then(|way| way.get()).and_then(|way| Some((way.to(), way.rest(&self.node)?)));
        let Some((to, rest)) = told else { return self.snapshot(&newest).map(Some) };
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

    fn snapshot(&mut self, chart: &PlanIndex) -> Option<Bytes> {
        let mut netmap = Box::new(plan::netmap(chart, &self.node)?);
        netmap.revision = self.core.right_until(chart);
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
        let (log, time) = (Some(self.core.world().log_position()), Some(unix()));
        line(&WatchEvent::Alive { revision: held.revision, log, time })
    }

    fn is_member(&self, world: &World) -> bool {
        world.member(&self.identity) == Some(&self.node)
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        if self.guard.close()
            && let Ok(runtime) = Handle::try_current()
        {
            let (core, node) = (Arc::clone(&self.core), self.node.clone());
            runtime.spawn(async move { core.note_presence(node).await });
        }
    }
}

fn line(event: &WatchEvent) -> Option<Bytes> {
    let mut line = serde_json::to_vec(event).ok()?;
    line.push(b'\n');
    Some(line.into())
}
