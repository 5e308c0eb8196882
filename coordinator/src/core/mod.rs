//! The hub: where the hands meet. One registry behind one lock, and the world it last published.
//!
//! Changes wait for the disk and hence run on blocking threads, a bounded number at a time. Readers take the
//! published world and never the lock.

mod commit_queue;
pub(crate) mod counters;
pub mod documents;
pub(crate) mod failure;
pub(crate) mod file_report;
pub(crate) mod map_cache;
pub(crate) mod open_store;
pub(crate) mod rate_limits;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::{IdentityKey, NodeName, Revision};
use mesh_proto::plan::Chart;
use mesh_proto::wire::{ErrorCode, NodeFacts};
use mesh_proto::world::World;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, oneshot, watch};
use tokio::time::timeout;

use crate::base::clock::now;
use crate::base::state_files::TAKEN;
use crate::base::sync::lock;
use crate::config::Config;
use crate::core::counters::Counters;
use crate::core::file_report::FileReport;
use crate::core::map_cache::Charts;
use crate::core::rate_limits::{Failures, Reports};
use crate::oidc::issuers::Trusts;
use crate::registry::{Actor, Applied, Change, Refused, Registry};
use crate::store::Seen;
use commit_queue::{Job, Queue};

/// Most requests of members that may wait for the registry at once; more are answered `busy`.
const MAX_WAITING: usize = 256;
/// Most requests of strangers that may wait for the registry at once; others stand in line for `PATIENCE`, and
/// are answered `busy` after that. Members never wait for that line.
const MAX_STRANGERS_WAITING: usize = 32;
/// How long a stranger may stand in line.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most underlay addresses of our own that are remembered.
const MAX_UNDERLAY: usize = 64;
/// The longest rest after a drawing. It is as long as the drawing took, so that a storm of changes does not become
/// one of charts.
const REST: Duration = Duration::from_millis(50);

/// Says where nodes reach coordinators, and by which keys they know them.
#[derive(Default)]
pub(crate) struct Told {
    /// Addresses, as `host:port`: our own first, then one of each other, then the rest.
    pub(crate) addresses: Vec<String>,
    /// Keys, our own first.
    pub(crate) pins: Vec<IdentityKey>,
}

/// What all tasks of the coordinator share.
pub(crate) struct Hub {
    /// The configuration.
    pub(crate) config: Config,
    /// The coordinator's public key.
    pub(crate) key: IdentityKey,
    /// Where the control channel listens.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where metrics should be served and cannot be.
    pub(crate) unserved: Option<SocketAddr>,
    /// The store's file, or where its etcd is.
    pub(crate) store: PathBuf,
    /// What is seen of a store that other coordinators may use; none if it is ours alone.
    pub(crate) seen: Option<watch::Receiver<Seen>>,
    /// When we last looked what others committed.
    pub(crate) looked: Mutex<Option<tokio::time::Instant>>,
    /// When the coordinator started.
    pub(crate) started: Instant,
    /// The issuers that are trusted.
    pub(crate) trusts: Trusts,
    /// Counters.
    pub(crate) metrics: Counters,
    /// The revision at the start. What a node holds from then or earlier may have been planned by another
    /// version of this program, so that only younger maps are continued with a delta.
    pub(crate) first: Revision,
    /// The world as it is planned from.
    pub(crate) charts: Charts,
    registry: Mutex<Registry>,
    world: watch::Sender<Arc<World>>,
    file: Mutex<FileReport>,
    /// The last revision that altered any node's map.
    due: AtomicU64,
    watches: Mutex<BTreeMap<NodeName, Watching>>,
    next_watch: AtomicU64,
    underlay: Mutex<Vec<IpAddr>>,
    waiting: Semaphore,
    strangers: Semaphore,
    failures: Mutex<Failures>,
    reports: Mutex<Reports>,
    queue: Mutex<Queue>,
    failure: watch::Sender<Option<String>>,
    backup_failed: AtomicBool,
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

/// Says that a watch is open for as long as it lives.
pub(crate) struct WatchGuard {
    hub: Arc<Hub>,
    node: NodeName,
    number: u64,
    /// Ends when a newer watch of the same node has taken over.
    pub(crate) fenced: oneshot::Receiver<()>,
    /// Rung when a new chart concerns the node.
    pub(crate) bell: Arc<Notify>,
}

impl WatchGuard {
    /// Notes that the node was sent the map of revision `sent`, which is right up to revision `settled`.
    pub(crate) fn settled(&self, sent: Revision, settled: Revision) {
        if let Some(watching) = lock(&self.hub.watches).get_mut(&self.node).filter(|w| w.number == self.number) {
            (watching.sent, watching.settled) = (sent, settled);
        }
    }
}

impl Hub {
    /// Puts the parts together.
    pub(crate) fn new(
        config: Config,
        key: IdentityKey,
        listen: Vec<SocketAddr>,
        unserved: Option<SocketAddr>,
        store: PathBuf,
        registry: Registry,
        underlay: Vec<IpAddr>,
    ) -> Arc<Self> {
        let world = registry.world();
        let file = FileReport::new(config.services.clone());
        let trusts = Trusts::new(&config.trust);
        Arc::new(Self {
            config,
            key,
            listen,
            unserved,
            store,
            seen: registry.follow(),
            looked: Mutex::default(),
            started: Instant::now(),
            trusts,
            metrics: Counters::default(),
            first: world.revision,
            charts: Charts::new(Arc::clone(&world)),
            registry: Mutex::new(registry),
            due: AtomicU64::new(world.revision.0),
            world: watch::Sender::new(world),
            file: Mutex::new(file),
            watches: Mutex::default(),
            next_watch: AtomicU64::new(0),
            underlay: Mutex::new(underlay),
            waiting: Semaphore::new(MAX_WAITING),
            strangers: Semaphore::new(MAX_STRANGERS_WAITING),
            failures: Mutex::default(),
            reports: Mutex::default(),
            queue: Mutex::default(),
            failure: watch::Sender::default(),
            backup_failed: AtomicBool::new(false),
        })
    }

    /// Returns the world in force.
    pub(crate) fn world(&self) -> Arc<World> {
        Arc::clone(&self.world.borrow())
    }

    /// Returns the last revision that altered any node's map.
    pub(crate) fn due(&self) -> Revision {
        Revision(self.due.load(Ordering::Acquire))
    }

    /// Rings the watches of the nodes that a revision concerns; of all if it is not said of which.
    pub(crate) fn wake(&self, concerned: Option<&BTreeSet<NodeName>>, revision: Revision) {
        let mut watches = lock(&self.watches);
        let ring = |watching: &mut Watching| {
            watching.due = revision;
            watching.bell.notify_one();
        };
        match concerned {
            None => watches.values_mut().for_each(ring),
            Some(nodes) => nodes.iter().for_each(|node| watches.get_mut(node).into_iter().for_each(ring)),
        }
    }

    /// Makes a change that the operator or the coordinator itself asks for.
    pub(crate) async fn apply(self: &Arc<Self>, change: Change, by: Actor) -> Result<Applied, Refused> {
        let (answer, answered) = oneshot::channel();
        let has_worker = lock(&self.queue).push(Job { change, by, answer });
        if !has_worker {
            let hub = Arc::clone(self);
            tokio::task::spawn_blocking(move || Worker(&hub).work());
        }
        answered.await.unwrap_or_else(|_| {
            let message = "the coordinator failed at this change; see its log, and try again";
            Err(Refused { code: ErrorCode::Internal, message: message.into() })
        })
    }

    /// Makes a change that a member asks for, unless too many wait already.
    pub(crate) async fn ask(self: &Arc<Self>, change: Change, by: Actor) -> Result<Applied, Refused> {
        let _turn = self.waiting.try_acquire().map_err(|_| too_busy())?;
        self.apply(change, by).await
    }

    /// Waits for a stranger's turn at the registry; its end is when the value is dropped.
    pub(crate) async fn strangers_turn(&self) -> Result<SemaphorePermit<'_>, Refused> {
        let turn = timeout(PATIENCE, self.strangers.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or_else(too_busy)
    }

    /// Says whether joins from an address are refused for now, because too many failed.
    pub(crate) fn is_blocked(&self, address: IpAddr) -> bool {
        lock(&self.failures).is_blocked(address, self.clock())
    }

    /// Counts a join that failed; says whether its address is refused from now on.
    pub(crate) fn failed(&self, address: IpAddr) -> bool {
        lock(&self.failures).count(address, self.clock())
    }

    /// Says whether a member may report once more.
    pub(crate) fn may_report(&self, member: IdentityKey) -> bool {
        let world = self.world();
        let mut reports = lock(&self.reports);
        reports.retain(world.nodes.len(), |identity| world.member(identity).is_some());
        reports.take(member, self.clock())
    }

    /// Says whether a member may report this now: what alters the mesh costs everybody something.
    pub(crate) fn may_alter(&self, member: IdentityKey, facts: &NodeFacts, observed: IpAddr) -> bool {
        let world = self.world();
        let known = world.member(&member).and_then(|name| world.nodes.get(name));
        let is_known = known
            .is_some_and(|known| known.facts.signed == facts.signed && known.observed == Some(observed.to_canonical()));
        is_known || lock(&self.reports).take_news(member, self.clock())
    }

    fn clock(&self) -> Timestamp {
        let micros = self.started.elapsed().as_micros();
        Timestamp::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// Runs something on the registry, and publishes what it led to.
    pub(crate) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut Registry) -> T + Send + 'static,
    ) -> T {
        let hub = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let mut registry = lock(&hub.registry);
            let result = f(&mut registry);
            hub.publish(&registry);
            result
        });
        match task.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Takes up the issuers' keys that are stored because the operator pushed them.
    pub(crate) async fn take_pushed(self: &Arc<Self>) {
        let hub = Arc::clone(self);
        self.with(move |registry| {
            for name in hub.trusts.pushed() {
                if let Some(pushed) = registry.pushed(name) {
                    hub.trusts.push(name, pushed);
                }
            }
        })
        .await;
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

    /// Waits until the store has failed for good, and says why. Nothing was acknowledged since.
    pub(crate) async fn failed_for_good(&self) -> String {
        let mut failure = self.failure.subscribe();
        let failure = failure.wait_for(Option::is_some).await;
        failure.ok().and_then(|failure| failure.clone()).unwrap_or_default()
    }

    /// Notes whether the last backup could be made.
    pub(crate) fn note_backup(&self, made: bool) {
        self.backup_failed.store(!made, Ordering::Relaxed);
    }

    /// Says whether the last backup could not be made.
    pub(crate) fn backup_failed(&self) -> bool {
        self.backup_failed.load(Ordering::Relaxed)
    }

    /// Notes an address of our own that a node reached us at: no pod block may contain it.
    pub(crate) async fn note_underlay(self: &Arc<Self>, address: IpAddr) {
        let known = {
            let mut known = lock(&self.underlay);
            if known.contains(&address) || known.len() >= MAX_UNDERLAY {
                return;
            }
            known.push(address);
            known.clone()
        };
        self.with(move |registry| registry.set_underlay(known)).await;
    }

    /// Opens a watch of a node and ends the one it had.
    pub(crate) async fn open_watch(self: &Arc<Self>, node: NodeName) -> WatchGuard {
        let number = self.next_watch.fetch_add(1, Ordering::Relaxed);
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
        lock(&self.watches).insert(node.clone(), watching);
        self.note_presence(node.clone()).await;
        WatchGuard { hub: Arc::clone(self), node, number, fenced, bell }
    }

    /// Ends all watches, so that nodes go to another coordinator.
    pub(crate) fn end_watches(&self) {
        for watching in lock(&self.watches).values_mut() {
            if let Some(fence) = watching.fence.take() {
                let _ = fence.send(());
            }
        }
    }

    /// Returns how many watches are open.
    pub(crate) fn watchers(&self) -> usize {
        lock(&self.watches).len()
    }

    /// Says whether a node has a watch open.
    pub(crate) fn is_watching(&self, node: &NodeName) -> bool {
        lock(&self.watches).contains_key(node)
    }

    /// Says whether a node is connected and has in force what the present revision means to it, given the
    /// revision that it last reported.
    pub(crate) fn is_current(&self, node: &NodeName, applied: Revision) -> bool {
        let is_told = |watching: &Watching| watching.settled >= watching.due && applied >= watching.sent;
        self.charts.newest().revision() >= self.due() && lock(&self.watches).get(node).is_some_and(is_told)
    }

    /// Returns what is known of services.toml.
    pub(crate) fn file(&self) -> MutexGuard<'_, FileReport> {
        lock(&self.file)
    }

    /// Writes the present truth into the registry's notes; in whatever order openings and endings arrive.
    async fn note_presence(self: &Arc<Self>, node: NodeName) {
        let hub = Arc::clone(self);
        self.with(move |registry| {
            let open = hub.is_watching(&node);
            if registry.world().nodes.contains_key(&node) {
                registry.live_mut().connected(&node, open, now());
            }
        })
        .await;
    }

    /// Sees to it that the newest world becomes a chart, without waiting for it.
    pub(crate) fn redraw(self: &Arc<Self>) {
        if self.charts.begin_drawing() {
            // A coordinator that ends is not held up by the pauses.
            tokio::spawn(draw_all(Arc::downgrade(self)));
        }
    }

    /// Draws the newest world, and rings those whom it concerns. Says whether there was nothing to draw.
    fn draw(&self) -> bool {
        let charts = &self.charts;
        let is_drawn = || {
            let newest = charts.newest();
            newest.world().plans_like(&self.world()) && newest.revision() >= self.due()
        };
        if is_drawn() {
            charts.end_drawing();
            // Who published meanwhile either saw that nobody draws, or is seen here.
            return is_drawn() || !charts.begin_drawing();
        }
        let world = self.world();
        let revision = world.revision;
        let concerned = charts.put(Arc::new(Chart::new(world)));
        self.wake(concerned.as_ref(), revision);
        false
    }

    /// Returns the newest revision that a chart is known to be right for. Maps are sent as of that one, since a node
    /// may have followed another coordinator as far, and follows none back.
    pub(crate) fn right_until(&self, chart: &Chart) -> Revision {
        let world = self.world();
        if chart.world().plans_like(&world) { world.revision.max(chart.revision()) } else { chart.revision() }
    }

    /// Waits for the chart of the newest world that is news to any node.
    pub(crate) async fn chart(&self) -> Arc<Chart> {
        self.charts.since(self.due()).await
    }

    /// Returns what a node is told of coordinators when it joins.
    pub(crate) fn told(&self) -> Told {
        let world = self.world();
        let others = world.mesh.coordinators.iter().filter(|other| other.key != self.key);
        let mut told = Told { addresses: self.config.public.clone(), pins: vec![self.key] };
        told.pins.extend(others.clone().map(|other| other.key));
        // Those that will be needed soon: a node may join with a token of before.
        told.pins.extend(world.mesh.coordinators.iter().filter_map(|one| one.next).map(|next| next.key));
        let most = others.clone().map(|other| other.addresses.len()).max().unwrap_or(0);
        for turn in 0..most {
            told.addresses.extend(others.clone().filter_map(|other| other.addresses.get(turn).cloned()));
        }
        let mut seen = BTreeSet::new();
        told.addresses.retain(|address| seen.insert(address.clone()));
        told
    }

    /// Says whether other coordinators may use the same store.
    pub(crate) fn is_shared(&self) -> bool {
        self.seen.is_some()
    }

    /// Returns why the store does not answer, if it does not.
    pub(crate) fn store_error(&self) -> Option<String> {
        self.seen.as_ref()?.borrow().error.clone()
    }

    /// Takes up what others committed before now. Many who ask at once share one look; while the store does not
    /// answer nobody waits for it.
    pub(crate) async fn catch_up(self: &Arc<Self>) {
        if !self.is_shared() || self.store_error().is_some() {
            return;
        }
        let asked = tokio::time::Instant::now();
        let hub = Arc::clone(self);
        self.with(move |registry| {
            if lock(&hub.looked).is_some_and(|looked| looked >= asked) {
                return;
            }
            let began = tokio::time::Instant::now();
            if let Err(error) = registry.refresh() {
                tracing::warn!(%error, "nobody knows whether another coordinator committed something");
            }
            *lock(&hub.looked) = Some(began);
        })
        .await;
    }

    /// Says whether a services.toml that is read at the start is to be left alone: another coordinator put
    /// another one in force, and this one was not altered since it was last taken from here.
    pub(crate) async fn is_superseded(self: &Arc<Self>, text: &str) -> bool {
        if !self.is_shared() {
            return false;
        }
        let own = text.to_owned();
        let other = self.with(move |registry| registry.accepted().is_some_and(|accepted| accepted.text != own)).await;
        let taken = std::fs::read_to_string(self.config.state_dir.join(TAKEN));
        other && taken.map_or(true, |taken| taken.trim() == mark(text))
    }

    /// Says whether another services.toml is in force than the one last taken from here.
    pub(crate) async fn is_other_in_force(self: &Arc<Self>) -> bool {
        if !self.is_shared() {
            return false;
        }
        let Ok(taken) = std::fs::read_to_string(self.config.state_dir.join(TAKEN)) else {
            return false;
        };
        self.with(move |registry| registry.accepted().is_some_and(|accepted| mark(&accepted.text) != taken.trim()))
            .await
    }

    /// Notes which services.toml was taken from this machine.
    pub(crate) fn note_taken(&self, text: &str) {
        if !self.is_shared() {
            return;
        }
        let path = self.config.state_dir.join(TAKEN);
        let draft = path.with_extension("draft");
        let written = std::fs::write(&draft, mark(text)).and_then(|()| std::fs::rename(&draft, &path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "after a restart the file will not be taken until it is saved again");
        }
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let mut watches = lock(&self.hub.watches);
        if watches.get(&self.node).is_none_or(|w| w.number != self.number) {
            return;
        }
        watches.remove(&self.node);
        drop(watches);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (hub, node) = (Arc::clone(&self.hub), self.node.clone());
            runtime.spawn(async move { hub.note_presence(node).await });
        }
    }
}

/// The one that empties the queue.
struct Worker<'a>(&'a Arc<Hub>);

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
async fn draw_all(hub: Weak<Hub>) {
    while let Some(hub) = hub.upgrade() {
        let began = Instant::now();
        let drawing = Arc::clone(&hub);
        let drawn = tokio::task::spawn_blocking(move || drawing.draw()).await;
        match drawn {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "a change is not sent to the nodes; the next one will be sent with it");
                hub.charts.end_drawing();
                return;
            }
        }
        drop(hub);
        tokio::time::sleep(began.elapsed().min(REST)).await;
    }
}

fn mark(text: &str) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn too_busy() -> Refused {
    let message = "the coordinator has too much to do; try again in a few seconds";
    Refused { code: ErrorCode::Busy, message: message.into() }
}

#[cfg(test)]
pub(crate) mod tests;
