//! The core: where the hands meet. One registry behind one lock, and the world it last published.
//!
//! Changes wait for the disk and hence run on blocking threads, a bounded number at a time. Readers take the
//! published world and never the lock. Who asks the core holds it; the core holds none of those who ask.

pub(crate) mod backup_files;
mod commit_queue;
pub(crate) mod coordinator_list;
pub(crate) mod counters;
pub mod documents;
pub(crate) mod earlier_mesh;
pub(crate) mod failure;
pub(crate) mod file_report;
pub(crate) mod file_requests;
pub(crate) mod limits;
pub(crate) mod lock_members;
pub(crate) mod map_cache;
pub(crate) mod open_store;
pub(crate) mod pushed_keys;
pub(crate) mod rate_limits;
pub(crate) mod shared_store;
pub(crate) mod status_snapshot;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod watches;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use mesh_proto::base::id::{NodeName, Revision};
use mesh_proto::plan::PlanIndex;
use mesh_proto::world::World;
use tokio::sync::{oneshot, watch};

use crate::base::blocking::blocking;
use crate::base::sync::lock;
use crate::core::map_cache::MapCache;
use crate::core::watches::Watches;
use crate::registry::{Actor, Applied, Change, Refused, Registry};
use commit_queue::{Job, Queue};
use mesh_host::clock::unix as now;
use mesh_proto::wire::ErrorCode;

/// The longest rest after a drawing. It is as long as the drawing took, so that a storm of changes does not become
/// one of charts.
const REST: Duration = Duration::from_millis(50);

/// The registry behind its lock, what it last published, and who waits for that.
pub(crate) struct Core {
    registry: Mutex<Registry>,
    queue: Mutex<Queue>,
    world: watch::Sender<Arc<World>>,
    /// The revision at the start.
    first: Revision,
    /// The last revision that altered any node's map.
    due: AtomicU64,
    maps: MapCache,
    watches: Arc<Watches>,
    failure: watch::Sender<Option<String>>,
}

impl Core {
    /// Begins with what a registry holds.
    pub(crate) fn new(registry: Registry) -> Arc<Self> {
        let world = registry.world();
        Arc::new(Self {
            registry: Mutex::new(registry),
            queue: Mutex::default(),
            first: world.revision,
            due: AtomicU64::new(world.revision.0),
            maps: MapCache::new(Arc::clone(&world)),
            world: watch::Sender::new(world),
            watches: Arc::default(),
            failure: watch::Sender::default(),
        })
    }

    /// Returns the world in force.
    pub(crate) fn world(&self) -> Arc<World> {
        Arc::clone(&self.world.borrow())
    }

    /// Returns the revision at the start. What a node holds from then or earlier may have been planned by another
    /// version of this program, so that only younger maps are continued with a delta.
    pub(crate) fn first(&self) -> Revision {
        self.first
    }

    /// Returns the world as it is planned from.
    pub(crate) fn maps(&self) -> &MapCache {
        &self.maps
    }

    /// Returns who waits for which revision.
    pub(crate) fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }

    /// Makes a change, whoever asks for it.
    pub(crate) async fn apply(self: &Arc<Self>, change: Change, by: Actor) -> Result<Applied, Refused> {
        let (answer, answered) = oneshot::channel();
        let has_worker = lock(&self.queue).push(Job { change, by, answer });
        if !has_worker {
            let core = Arc::clone(self);
            tokio::task::spawn_blocking(move || Worker(&core).work());
        }
        answered.await.unwrap_or_else(|_| {
            let message = "the coordinator failed at this change; see its log, and try again";
            Err(Refused::new(ErrorCode::Internal, message))
        })
    }

    /// Runs something on the registry, and publishes what it led to.
    pub(crate) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut Registry) -> T + Send + 'static,
    ) -> T {
        let core = Arc::clone(self);
        blocking(move || {
            let mut registry = lock(&core.registry);
            let result = f(&mut registry);
            core.publish(&registry);
            result
        })
        .await
    }

    /// Waits for the chart of the newest world that is news to any node.
    pub(crate) async fn chart(&self) -> Arc<PlanIndex> {
        self.maps.since(self.due()).await
    }

    /// Returns the newest revision that a chart is known to be right for. Maps are sent as of that one, since a node
    /// may have followed another coordinator as far, and follows none back.
    pub(crate) fn right_until(&self, chart: &PlanIndex) -> Revision {
        let world = self.world();
        if chart.world().plans_like(&world) { world.revision.max(chart.revision()) } else { chart.revision() }
    }

    /// Says whether a node is connected and has in force what the present revision means to it, given the
    /// revision that it last reported.
    pub(crate) fn is_current(&self, node: &NodeName, applied: Revision) -> bool {
        self.maps.newest().revision() >= self.due() && self.watches.is_told(node, applied)
    }

    /// Writes the present truth into the registry's notes; in whatever order openings and endings arrive.
    pub(crate) async fn note_presence(self: &Arc<Self>, node: NodeName) {
        let watches = Arc::clone(&self.watches);
        self.with(move |registry| {
            let open = watches.is_open(&node);
            if registry.world().nodes.contains_key(&node) {
                registry.live_mut().connected(&node, open, now());
            }
        })
        .await;
    }

    /// Waits until the store has failed for good, and says why. Nothing was acknowledged since.
    pub(crate) async fn failed_for_good(&self) -> String {
        let mut failure = self.failure.subscribe();
        let failure = failure.wait_for(Option::is_some).await;
        failure.ok().and_then(|failure| failure.clone()).unwrap_or_default()
    }

    /// Returns the last revision that altered any node's map.
    fn due(&self) -> Revision {
        Revision(self.due.load(Ordering::Acquire))
    }

    /// Shows everybody what the registry holds, or that it cannot store anything any more.
    fn publish(self: &Arc<Self>, registry: &Registry) {
        let world = registry.world();
        let news = self.world.send_if_modified(|published| {
            // A change of tokens alone is no news to any node.
            let news = published.revision != world.revision && !published.plans_like(&world);
            if news {
                self.due.store(world.revision.0, Ordering::Release);
            }
            *published = world;
            news
        });
        if news {
            self.redraw();
        }
        if let Some(failure) = registry.failure() {
            self.failure.send_if_modified(|known| known.replace(failure.to_owned()).is_none());
        }
    }

    /// Sees to it that the newest world becomes a chart, without waiting for it.
    fn redraw(self: &Arc<Self>) {
        if self.maps.begin_drawing() {
            // A coordinator that ends is not held up by the pauses.
            tokio::spawn(draw_all(Arc::downgrade(self)));
        }
    }

    /// Draws the newest world, and rings those whom it concerns. Says whether there was nothing to draw.
    fn draw(&self) -> bool {
        let maps = &self.maps;
        let is_drawn = || {
            let newest = maps.newest();
            newest.world().plans_like(&self.world()) && newest.revision() >= self.due()
        };
        if is_drawn() {
            maps.end_drawing();
            // Who published meanwhile either saw that nobody draws, or is seen here.
            return is_drawn() || !maps.begin_drawing();
        }
        let world = self.world();
        let revision = world.revision;
        let concerned = maps.put(Arc::new(PlanIndex::new(world)));
        self.watches.wake(concerned.as_ref(), revision);
        false
    }
}

/// The one that empties the queue.
struct Worker<'a>(&'a Arc<Core>);

impl Worker<'_> {
    fn work(&self) {
        loop {
            let mut registry = lock(&self.0.registry);
            let jobs = lock(&self.0.queue).take();
            if jobs.is_empty() {
                return;
            }
            let (changes, answers): (Vec<_>, Vec<_>) =
                jobs.into_iter().map(|job| ((job.change, job.by), job.answer)).unzip();
            let results = registry.apply_all(changes, now());
            self.0.publish(&registry);
            drop(registry);
            for (answer, result) in answers.into_iter().zip(results) {
                // Who asked may have gone; what it asked for is done all the same.
                let _ = answer.send(result);
            }
            // Those who only look at the registry get their turn.
            thread::yield_now();
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            // Those who wait learn of it, and the next one brings a new worker.
            *lock(&self.0.queue) = Queue::default();
        }
    }
}

/// Draws charts until the newest world is one.
async fn draw_all(core: Weak<Core>) {
    while let Some(core) = core.upgrade() {
        let began = Instant::now();
        let drawing = Arc::clone(&core);
        let drawn = tokio::task::spawn_blocking(move || drawing.draw()).await;
        match drawn {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "a change is not sent to the nodes; the next one will be sent with it");
                core.maps.end_drawing();
                return;
            }
        }
        drop(core);
        tokio::time::sleep(began.elapsed().min(REST)).await;
    }
}
