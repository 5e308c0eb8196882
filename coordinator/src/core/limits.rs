//! Whose turn it is at the registry, and who asks too often.
//!
//! ```text
//!   members    256 at once, more are answered `busy` · ten reports, then two a second
//!   strangers  32 at once, more stand in line for 5 s · ten failures of one address refuse it for a minute
//! ```
//! Members never wait for strangers.

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::IdentityKey;
use mesh_proto::wire::{ErrorCode, NodeFacts};
use mesh_proto::world::World;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::base::sync::lock;
use crate::core::rate_limits::{Failures, Reports, Told};
use crate::registry::Refused;

/// Most requests of members that may wait for the registry at once; more are answered `busy`.
pub(crate) const MAX_WAITING: usize = 256;
/// Most requests of strangers that may wait for the registry at once; others stand in line for `PATIENCE`, and
/// are answered `busy` after that. Members never wait for that line.
const MAX_STRANGERS_WAITING: usize = 32;
/// How long a stranger may stand in line.
const PATIENCE: Duration = Duration::from_secs(5);

/// The limits of all who ask over the control channel.
pub(crate) struct Limits {
    /// What the times of `Failures` and `Reports` count from.
    began: Instant,
    members: Semaphore,
    strangers: Semaphore,
    failures: Mutex<Failures>,
    told: Mutex<Told>,
    reports: Mutex<Reports>,
}

impl Limits {
    /// Begins with nobody waiting, and nothing counted.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            members: Semaphore::new(MAX_WAITING),
            strangers: Semaphore::new(MAX_STRANGERS_WAITING),
            failures: Mutex::default(),
            told: Mutex::default(),
            reports: Mutex::default(),
        }
    }

    /// Takes a member's turn at the registry, unless too many wait already; its end is when the value is dropped.
    ///
    /// # Errors
    /// `busy`.
    pub(crate) fn members_turn(&self) -> Result<SemaphorePermit<'_>, Refused> {
        self.members.try_acquire().map_err(|_| too_busy())
    }

    /// Waits for a stranger's turn at the registry; its end is when the value is dropped.
    ///
    /// # Errors
    /// `busy` if it does not come in time.
    pub(crate) async fn strangers_turn(&self) -> Result<SemaphorePermit<'_>, Refused> {
        let turn = timeout(PATIENCE, self.strangers.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or_else(too_busy)
    }

    /// Returns how many members, and how many strangers, may still have a turn.
    #[cfg(test)]
    pub(crate) fn turns_left(&self) -> (usize, usize) {
        (self.members.available_permits(), self.strangers.available_permits())
    }

    /// Says whether joins from an address are refused for now, because too many failed.
    pub(crate) fn is_blocked(&self, address: IpAddr) -> bool {
        lock(&self.failures).is_blocked(address, self.clock())
    }

    /// Counts a join that failed; says whether its address is refused from now on.
    pub(crate) fn failed(&self, address: IpAddr) -> bool {
        lock(&self.failures).count(address, self.clock())
    }

    /// Says whether a refused join of an address is to be logged, and how many were not since the last that was.
    pub(crate) fn tell_refusal(&self, address: IpAddr) -> Option<u64> {
        lock(&self.told).tell(address, self.clock())
    }

    /// Says whether a member of a world may report once more.
    pub(crate) fn may_report(&self, world: &World, member: IdentityKey) -> bool {
        let mut reports = lock(&self.reports);
        reports.retain(world.nodes.len(), |identity| world.member(identity).is_some());
        reports.take(member, self.clock())
    }

    /// Says whether a member of a world may report this now: what alters the mesh costs everybody something.
    pub(crate) fn may_alter(&self, world: &World, member: IdentityKey, facts: &NodeFacts, observed: IpAddr) -> bool {
        let known = world.member(&member).and_then(|name| world.nodes.get(name));
        let is_known = known
            .is_some_and(|known| known.facts.signed == facts.signed && known.observed == Some(observed.to_canonical()));
        is_known || lock(&self.reports).take_news(member, self.clock())
    }

    fn clock(&self) -> Timestamp {
        let micros = self.began.elapsed().as_micros();
        Timestamp::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

fn too_busy() -> Refused {
    let message = "the coordinator has too much to do; try again in a few seconds";
    Refused::new(ErrorCode::Busy, message)
}
