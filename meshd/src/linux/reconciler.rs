//! The task that puts back what others delete.
//!
//! It looks once a second, and sooner when the kernel tells of a change to links, addresses, routes or rules
//! (a DHCP client, a network manager, an operator). It reads before it writes, so a look costs a few small
//! system calls; an event storm costs at most four looks a second.

use std::io;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::error::KernelError;
use super::events::Events;
use super::route::{Link, Routes};
use super::{conflicts, guards, names, pod_interfaces};
use crate::linux::shape::{Guards, HostPart, Obstacle, Shape};

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
    /// What could not be put back, and why; at most one for each step.
    pub failed: Vec<KernelError>,
    /// Whether that stops packets: no device of that name, no rule, no route to it.
    pub stopped: bool,
}

/// A background task that puts back, within 2 s, what others delete, and reports what stands in the way.
#[derive(Debug)]
pub struct Keeper {
    shape: watch::Sender<Shape>,
    part: watch::Sender<HostPart>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts the task on the current tokio runtime; call it after `attach`.
    ///
    /// # Errors
    /// `KernelError` if no netlink socket can be opened.
    pub fn start(shape: Shape, upkeep: watch::Sender<Upkeep>) -> Result<Self, KernelError> {
        let socket = |error: io::Error| KernelError::Socket(error.to_string());
        let groups =
            [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Rule];
        let events = Events::open(&groups).map_err(socket)?;
        let routes = Routes::open()?;
        let (shape, shapes) = watch::channel(shape);
        let (part, parts) = watch::channel(HostPart::default());
        let task = tokio::spawn(reconcile(routes, events, (shapes, parts), upkeep));
        Ok(Self { shape, part, task })
    }

    /// Replaces what is to be kept, as when a pod block appears.
    pub fn set_shape(&self, shape: Shape) {
        self.shape.send_replace(shape);
    }

    /// Replaces what the host itself takes part in.
    pub fn set_part(&self, part: HostPart) {
        self.part.send_if_modified(|known| {
            let changed = *known != part;
            if changed {
                *known = part;
            }
            changed
        });
    }

    /// Ends the task and leaves the kernel as it is.
    pub async fn stop(self) {
        self.task.abort();
        let _ended = self.task.await;
    }
}

async fn reconcile(
    routes: Routes,
    events: Events,
    (mut shapes, mut parts): (watch::Receiver<Shape>, watch::Receiver<HostPart>),
    upkeep: watch::Sender<Upkeep>,
) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look: u64 = 0;
    let mut device = Device::default();
    let mut settings = None;
    loop {
        let started = Instant::now();
        let moved = shapes.has_changed().unwrap_or(false);
        let shape = shapes.borrow_and_update().clone();
        let known = settings.replace(conflicts::forwarding(&shape));
        let other_part = parts.has_changed().unwrap_or(false);
        let part = parts.borrow_and_update().clone();
        let search = look.is_multiple_of(SEARCH) || known != settings || other_part;
        let mut seen = look_once(&routes, (&shape, &part), &mut device, search, look.is_multiple_of(RETRY)).await;
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
            changed = parts.changed() => if changed.is_err() { return },
        }
        sleep_until(started + SETTLE).await;
    }
}

/// What one look found.
struct Seen {
    changes: Vec<String>,
    failed: Vec<KernelError>,
    stopped: bool,
    guards: Guards,
    obstacles: Option<Vec<Obstacle>>,
}

impl Seen {
    /// Writes it down; says whether anything is new.
    fn apply(self, upkeep: &mut Upkeep) -> bool {
        let before = upkeep.clone();
        upkeep.guards = self.guards;
        upkeep.failed = self.failed;
        upkeep.stopped = self.stopped;
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

async fn look_once(
    routes: &Routes,
    (shape, part): (&Shape, &HostPart),
    device: &mut Device,
    search: bool,
    retry: bool,
) -> Seen {
    let mut steps = Steps::default();
    steps.note(routes.ensure_unreachable(shape.range).await, false);
    steps.note(routes.ensure_rule(shape.range).await, true);
    match device.find(routes, shape).await {
        Ok((link, changes)) => {
            steps.changes.extend(changes);
            // Each by itself: what the kernel refuses of one does not keep the others from being put back.
            steps.note(routes.ensure_link(&link, shape.mtu).await, !link.up);
            steps.note(routes.ensure_addresses(link.index, shape).await, false);
            steps.note(routes.ensure_route(link.index, shape).await, true);
        }
        Err(error) => steps.note(Err(error), true),
    }
    let shape = &pod_interfaces::found(routes, shape).await;
    let ensured = guards::ensure(shape, retry);
    if ensured.written {
        steps.changes.push(format!("the nftables table `ip {}`", names::nft_table(shape.range)));
    }
    let Steps { changes, failed, stopped } = steps;
    let obstacles = if search || !changes.is_empty() { Some(conflicts::find(shape, part).await) } else { None };
    Seen { changes, failed, stopped, guards: ensured.guards, obstacles }
}

/// What came of the steps of one look.
#[derive(Default)]
struct Steps {
    changes: Vec<String>,
    failed: Vec<KernelError>,
    stopped: bool,
}

impl Steps {
    /// Takes what came of a step, without which packets may stop.
    fn note(&mut self, result: Result<Vec<String>, KernelError>, stops: bool) {
        match result {
            Ok(changes) => self.changes.extend(changes),
            Err(error) => {
                self.failed.push(error);
                self.stopped |= stops;
            }
        }
    }
}

/// The mesh interface, known by its number once it was seen: somebody may rename it.
#[derive(Default)]
struct Device {
    index: Option<u32>,
    /// Whether it was renamed back: once, for who renames it again would do so for ever.
    is_renamed_back: bool,
}

impl Device {
    /// Finds the interface, and gives it its name back, once. Says what was changed.
    async fn find(&mut self, routes: &Routes, shape: &Shape) -> Result<(Link, Vec<String>), KernelError> {
        let name = &shape.interface;
        let other = match self.index {
            Some(index) => routes.link_at(index).await?.filter(|link| link.name != *name),
            None => None,
        };
        let named = routes.link(name).await?;
        match (other, named) {
            // The lanes made another after the first was deleted, or it never was another.
            (None, Some(link)) => {
                self.index = Some(link.index);
                Ok((link, Vec::new()))
            }
            (None, None) => Err(KernelError::NoInterface(name.clone())),
            (Some(other), None) if !self.is_renamed_back => {
                self.is_renamed_back = true;
                routes.rename(other.index, name).await?;
                let link = routes.link(name).await?.ok_or_else(|| KernelError::NoInterface(name.clone()))?;
                Ok((link, vec![format!("renamed `{}` back to `{name}`", other.name)]))
            }
            (Some(other), None | Some(_)) => Err(KernelError::Renamed { interface: name.clone(), present: other.name }),
        }
    }
}
