//! The task that puts back what others delete.
//!
//! It looks once a second, and sooner when the kernel tells of a change to links, addresses, routes or rules
//! (a DHCP client, a network manager, an operator). It reads before it writes, so a look costs a few small
//! system calls; an event storm costs at most four looks a second.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::error::KernelError;
use super::route::Routes;
use super::{conflicts, guards, names, pod_interfaces};
use crate::linux::shape::{Guards, Obstacle, Shape};

/// How often it looks when nothing happens.
const EVERY: Duration = Duration::from_secs(1);
/// The least time between two looks.
const SETTLE: Duration = Duration::from_millis(250);
/// How many looks lie between two searches for obstacles, which read the chains of others.
const SEARCH: u64 = 10;
/// How many looks lie between two attempts at what the kernel refused.
const RETRY: u64 = 60;

/// What the keeper found at its last look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upkeep {
    /// The guards in force.
    pub guards: Guards,
    /// What stands in the way.
    pub obstacles: Vec<Obstacle>,
    /// How often something had to be put back.
    pub mended: u64,
    /// What was put back last, in sentences.
    pub last_mended: Vec<String>,
    /// What could not be put back, and why.
    pub failed: Option<KernelError>,
}

/// A background task that puts back, within 2 s, what others delete, and reports what stands in the way.
#[derive(Debug)]
pub struct Keeper {
    shape: watch::Sender<Shape>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts the task on the current tokio runtime; call it after `attach`.
    ///
    /// # Errors
    /// `KernelError` if no netlink socket can be opened.
    pub fn start(shape: Shape, upkeep: watch::Sender<Upkeep>) -> Result<Self, KernelError> {
        let socket = |error: io::Error| KernelError::Socket(error.to_string());
        let events = Events::open().map_err(socket)?;
        let routes = Routes::open()?;
        let (shape, shapes) = watch::channel(shape);
        let task = tokio::spawn(reconcile(routes, events, shapes, upkeep));
        Ok(Self { shape, task })
    }

    /// Replaces what is to be kept, as when a pod block appears.
    pub fn set_shape(&self, shape: Shape) {
        self.shape.send_replace(shape);
    }

    /// Ends the task and leaves the kernel as it is.
    pub async fn stop(self) {
        self.task.abort();
        let _ended = self.task.await;
    }
}

async fn reconcile(routes: Routes, events: Events, mut shapes: watch::Receiver<Shape>, upkeep: watch::Sender<Upkeep>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = 0;
    loop {
        let started = Instant::now();
        let moved = shapes.has_changed().unwrap_or(false);
        let shape = shapes.borrow_and_update().clone();
        let mut seen = look_once(&routes, &shape, look).await;
        // What another shape needs was not taken away by anybody.
        let changes = std::mem::take(&mut seen.changes);
        if moved {
            tracing::info!(?changes, "set up what the new map needs");
        } else if !changes.is_empty() {
            tracing::warn!(mended = ?changes, "put back what something else had removed or changed");
            seen.changes = changes;
        }
        upkeep.send_if_modified(|upkeep| seen.apply(upkeep));
        look += 1;
        tokio::select! {
            _ = ticks.tick() => {}
            () = events.wait() => {}
            changed = shapes.changed() => if changed.is_err() { return },
        }
        sleep_until(started + SETTLE).await;
    }
}

/// What one look found.
struct Seen {
    changes: Vec<String>,
    failed: Option<KernelError>,
    guards: Guards,
    obstacles: Option<Vec<Obstacle>>,
}

impl Seen {
    /// Writes it down; says whether anything is new.
    fn apply(self, upkeep: &mut Upkeep) -> bool {
        let before = upkeep.clone();
        upkeep.guards = self.guards;
        upkeep.failed = self.failed;
        if let Some(obstacles) = self.obstacles {
            upkeep.obstacles = obstacles;
        }
        if !self.changes.is_empty() {
            upkeep.mended += 1;
            upkeep.last_mended = self.changes;
        }
        *upkeep != before
    }
}

async fn look_once(routes: &Routes, shape: &Shape, look: u64) -> Seen {
    let mut changes = Vec::new();
    let mut failed = None;
    let mut note = |result: Result<Vec<String>, KernelError>| match result {
        Ok(more) => changes.extend(more),
        Err(error) => failed = Some(error),
    };
    note(routes.ensure_unreachable(shape.range).await);
    note(routes.ensure_rule(shape.range).await);
    note(routes.ensure_interface(shape).await);
    let shape = &pod_interfaces::found(routes, shape).await;
    let ensured = guards::ensure(shape, look.is_multiple_of(RETRY));
    if ensured.written {
        changes.push(format!("the nftables table `ip {}`", names::nft_table(shape.range)));
    }
    let obstacles =
        if look.is_multiple_of(SEARCH) || !changes.is_empty() { Some(conflicts::find(shape).await) } else { None };
    Seen { changes, failed, guards: ensured.guards, obstacles }
}

/// The kernel's announcements. What they say does not matter, only that there was one.
struct Events(TokioSocket);

impl Events {
    fn open() -> io::Result<Self> {
        let groups =
            [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Rule];
        let mask = groups.iter().map(|&group| 1 << (group as u32 - 1)).sum();
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
        Ok(Self(socket))
    }

    /// Waits for an announcement, and forgets it with those that came meanwhile.
    async fn wait(&self) {
        // An overrun (ENOBUFS) is an event as well.
        let _first = self.0.recv(&mut Vec::with_capacity(64)).await;
        // What is left after these is waited for at once.
        for _ in 0..1024 {
            let mut start = Vec::with_capacity(64);
            if self.0.socket_ref().recv(&mut start, libc::MSG_DONTWAIT).is_err() {
                return;
            }
        }
    }
}
