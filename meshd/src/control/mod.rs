//! The way to the coordinators: joining once, then one channel that is kept up for as long as meshd runs.
//!
//! ```text
//!   coordinator 1 ─┐                       ┌─▶ maps: the newest NetMap      (daemon applies it)
//!   coordinator 2 ─┼─ tried in turn ─ Link ┼─▶ state: connected, last error (status, metrics)
//!   …             ─┘                       └─◀ report: facts and revision in force
//! ```
//! Nothing in the data path waits for this: a coordinator that is dead for days costs nothing but news.

mod channel;
pub(crate) mod log_auditor;
pub(crate) mod map_guard;
mod network_lock;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::id::{IdentityKey, NodeName, Revision};
use mesh_proto::model::netmap::NetMap;
use mesh_proto::trust::audit_log::LogPosition;
use mesh_proto::verifier::{Admitted, VerifiedMap};
use mesh_proto::wire::{About, ErrorCode, JoinRequest, JoinResponse, Report, WatchEvent};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::base::entropy::share;
use crate::base::runtime::aside;

pub use channel::{Channel, ChannelError, Dial, Watch, adopt};
pub use map_guard::MapGuard;
pub use network_lock::lock_standing;

/// How long meshd tries hard after a channel broke.
const HARD: Duration = Duration::from_secs(60);
/// The longest wait between attempts in that time.
const HARD_WAIT: Duration = Duration::from_secs(1);
/// The longest wait after that.
const SOFT_WAIT: Duration = Duration::from_secs(15);
/// How long a request waits that the coordinator had no time for.
const BUSY: Duration = Duration::from_secs(1);
/// How often a request to join is sent again for that reason.
const BUSY_TRIES: usize = 5;
/// How long several changes are gathered into one report.
const COALESCE: Duration = Duration::from_millis(30);

/// How the control channel stands.
#[derive(Debug, Clone, Default)]
pub struct ChannelState {
    /// Whether it is up.
    pub connected: bool,
    /// The coordinator it is up with, or that was tried last.
    pub address: Option<String>,
    /// When the coordinator was last heard.
    pub last_heard: Option<Instant>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// What the coordinator refused of the last report, in sentences.
    pub refused: Vec<String>,
    /// What this node refused of the last map, in sentences.
    pub rejected: Vec<String>,
    /// How many records of peers were refused since the start.
    pub records_refused: u64,
    /// The key that has to have signed for every peer, if the mesh is locked.
    pub lock: Option<IdentityKey>,
    /// The last entry of the log of operations, as the coordinator tells it.
    pub log: Option<LogPosition>,
    /// What is wrong with the log, in sentences; they stay until a restart.
    pub alarms: Vec<String>,
}

/// Asks the coordinators, in turn, about a node that this one is not told of; none if nobody knows it, or answers.
pub async fn about(dial: &Dial, word: &str) -> Option<About> {
    for address in &dial.coordinators {
        let Ok(mut channel) = Channel::open(dial, address).await else { continue };
        match channel.about(word).await {
            Ok(about) => return Some(about),
            Err(ChannelError::Refused(_)) => return None,
            Err(error) => tracing::debug!(%error, "nobody tells who that is"),
        }
    }
    None
}

/// Asks the coordinators of a token, in turn, to let this node in.
///
/// # Errors
/// The first refusal; if nobody answered, what the last one failed at (a wrong key before anything else).
pub async fn join(dial: &Dial, request: &JoinRequest) -> Result<JoinResponse, ChannelError> {
    let mut worst: Option<ChannelError> = None;
    for address in &dial.coordinators {
        let attempt = async || Channel::open(dial, address).await?.join(request).await;
        let mut answer = attempt().await;
        for _ in 0..BUSY_TRIES {
            if !matches!(&answer, Err(ChannelError::Refused(body)) if body.error == ErrorCode::Busy) {
                break;
            }
            sleep(BUSY).await;
            answer = attempt().await;
        }
        match answer {
            Ok(response) => return Ok(response),
            // Another coordinator may have time, or a store that answers.
            Err(error @ ChannelError::Refused(_)) if !error.may_differ_elsewhere() => return Err(error),
            Err(error) => {
                if !matches!(worst, Some(ChannelError::Pin(_))) {
                    worst = Some(error);
                }
            }
        }
    }
    Err(worst.unwrap_or_else(|| ChannelError::Malformed("the token names no coordinator".into())))
}

/// How members tell each other of the log of operations: by what the data path sends along.
pub trait LogGossip {
    /// Says what peers are told of it, with the next probe of each.
    fn set_log_position(&self, told: LogPosition);
    /// Returns what peers said last of it.
    fn peer_log_positions(&self) -> Vec<(NodeName, LogPosition)>;
}

/// Keeps one channel up.
#[derive(Debug)]
pub struct ChannelKeeper {
    /// Whom to reach, as whom.
    pub dial: Dial,
    /// The last map as it came, from which a watch resumes.
    pub current: Option<Arc<NetMap>>,
    /// What a map must pass.
    pub guard: MapGuard,
    /// Where new maps go; only the newest counts.
    pub maps: watch::Sender<Option<VerifiedMap>>,
    /// Where the channel's state goes.
    pub state: watch::Sender<ChannelState>,
    /// What is reported; `None` until the first facts are known.
    pub report: watch::Receiver<Option<Report>>,
    /// Identities that never come back.
    pub expelled: watch::Receiver<Arc<BTreeSet<IdentityKey>>>,
    /// All addresses of this host; empty while they are not known.
    pub own: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
}

impl ChannelKeeper {
    /// Runs until the task is dropped.
    pub async fn run(mut self) {
        self.state.send_modify(|s| s.lock = self.guard.lock());
        let mut down_since = Instant::now();
        let mut attempt = 0_usize;
        let mut turn = 0_usize;
        let mut keys = self.dial.keys.clone();
        let mut own = self.own.clone();
        loop {
            keys.mark_unchanged();
            own.mark_unchanged();
            let count = self.dial.coordinators.len().max(1);
            let address = self.dial.coordinators.get(turn % count).cloned();
            let address = address.unwrap_or_default();
            self.state.send_modify(|s| s.address = Some(address.clone()));
            let error = match self.session(&address).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            if let ChannelError::Moved(_) = error {
                tracing::info!(coordinator = address, "{error}");
                self.state.send_modify(|s| s.connected = false);
                (down_since, attempt) = (Instant::now(), 0);
                continue;
            }
            if matches!(error, ChannelError::Renewed) {
                tracing::info!(coordinator = address, "{error}");
                self.state.send_modify(|s| s.connected = false);
                continue;
            }
            let was_up = self.state.borrow().connected;
            if was_up {
                tracing::warn!(coordinator = address, %error, "control channel lost");
                down_since = Instant::now();
                attempt = 0;
            } else {
                tracing::debug!(coordinator = address, %error, "coordinator not reached");
                attempt = attempt.wrapping_add(1);
            }
            // The next one may be well whatever this one suffers from.
            turn = turn.wrapping_add(1);
            if attempt == 1 {
                tracing::warn!(coordinator = address, %error, "coordinator not reached; forwarding goes on from the last map");
            }
            let patient = match &error {
                ChannelError::Fenced => true,
                // Another coordinator may have newer data.
                ChannelError::WentBack(_) => count == 1,
                // Another coordinator may have time, or a store that answers.
                refused @ ChannelError::Refused(_) => count == 1 || !refused.may_differ_elsewhere(),
                ChannelError::Resolve { .. }
                | ChannelError::Connect { .. }
                | ChannelError::Timeout(_)
                | ChannelError::Pin(_)
                | ChannelError::Tls { .. }
                | ChannelError::Broken(_)
                | ChannelError::Ended
                | ChannelError::Silent
                | ChannelError::Malformed(_)
                | ChannelError::Leaving
                | ChannelError::Renewed
                | ChannelError::Moved(_)
                | ChannelError::Retired(_) => false,
            };
            let handed_over = matches!(error, ChannelError::Leaving) && count > 1;
            self.state.send_modify(|s| {
                s.connected = false;
                s.error = Some(error.to_string());
            });
            if handed_over {
                continue;
            }
            let waited = if patient { HARD } else { down_since.elapsed() };
            tokio::select! {
                () = sleep(delay(attempt, waited, share())) => {}
                // It ends the wait, which is no harm: nobody is expelled often.
                Ok(()) = self.expelled.changed() => self.judge_again().await,
                Ok(()) = keys.changed() => {}
                // Perhaps there is a way now.
                Ok(()) = own.changed() => down_since = Instant::now(),
            }
        }
    }

    async fn session(&mut self, address: &str) -> Result<std::convert::Infallible, ChannelError> {
        let mut keys = self.dial.keys.clone();
        keys.mark_unchanged();
        let mut own = self.own.clone();
        own.mark_unchanged();
        let before = Arc::clone(&own.borrow());
        let from = self.current.as_ref().map_or(Revision(0), |map| map.revision);
        let epoch = self.current.as_ref().map_or(0, |map| map.epoch.number);
        let open = async {
            let mut channel = Channel::open(&self.dial, address).await?;
            let watch = channel.watch(from, epoch).await?;
            Ok::<_, ChannelError>((channel, watch))
        };
        let (mut channel, mut watch) = tokio::select! {
            opened = open => opened?,
            gone = gone(&mut own, |own| before.difference(own).next().copied()) => return Err(ChannelError::Moved(gone)),
        };
        let local = channel.local;
        let key = channel.key;
        let mut report = self.report.clone();
        let refused = self.state.clone();
        let reports = async move {
            report.mark_changed();
            loop {
                if report.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                sleep(COALESCE).await;
                let newest = report.borrow_and_update().clone();
                let Some(newest) = newest else { continue };
                match channel.report(&newest).await {
                    Ok(answer) => refused.send_modify(|s| s.refused = answer.refused),
                    Err(ChannelError::Refused(body)) if body.error == ErrorCode::Busy => {
                        sleep(BUSY).await;
                        report.mark_changed();
                    }
                    Err(ChannelError::Refused(body)) => {
                        refused.send_modify(|s| s.refused = vec![body.message]);
                    }
                    Err(error) => return error,
                }
            }
        };
        tokio::pin!(reports);
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                error = &mut reports => return Err(error),
                Ok(()) = keys.changed() => return Err(ChannelError::Renewed),
                gone = gone(&mut own, |own| local.filter(|local| !own.contains(local))) => {
                    return Err(ChannelError::Moved(gone));
                }
                Ok(()) = self.expelled.changed() => {
                    self.judge_again().await;
                    continue;
                }
            };
            self.event(event).await?;
            // Not before: who says what this node does not follow is not the coordinator it is connected to.
            let first = !self.state.borrow().connected;
            self.state.send_modify(|s| {
                s.connected = true;
                s.error = None;
                s.last_heard = Some(Instant::now());
            });
            if first {
                tracing::info!(coordinator = address, revision = %from, "control channel up");
            }
            if key.is_some_and(|key| !self.dial.pins.contains(&key)) {
                return Err(ChannelError::Retired(address.to_owned()));
            }
        }
    }

    async fn event(&mut self, event: WatchEvent) -> Result<(), ChannelError> {
        let map = match event {
            WatchEvent::Snapshot { netmap } => *netmap,
            WatchEvent::Delta { delta } => {
                let current = self.current.as_ref().ok_or_else(|| ChannelError::Malformed("a delta first".into()))?;
                match aside(|| delta.apply(current)) {
                    Ok(map) => map,
                    Err(error) => {
                        // So that the next watch starts with a snapshot.
                        self.current = None;
                        return Err(ChannelError::Malformed(error.to_string()));
                    }
                }
            }
            WatchEvent::Alive { revision, log } => {
                self.guard.hears(revision).map_err(ChannelError::WentBack)?;
                self.state.send_modify(|s| s.log = log);
                return Ok(());
            }
            WatchEvent::Unknown => return Ok(()),
            WatchEvent::Fenced => return Err(ChannelError::Fenced),
            WatchEvent::Leaving => return Err(ChannelError::Leaving),
        };
        if aside(|| self.current.as_deref() == Some(&map)) {
            return Ok(());
        }
        let map = Arc::new(map);
        let admitted = self.guard.admit(Arc::clone(&map), &self.dial.pins).await.map_err(ChannelError::WentBack)?;
        // Not before: who went back names no coordinators.
        self.dial.adopt(&map.mesh);
        self.current = Some(map);
        self.pass(admitted);
        Ok(())
    }

    /// Takes those who were expelled out of the map in force.
    async fn judge_again(&mut self) {
        let expelled = Arc::clone(&self.expelled.borrow_and_update());
        if let Some(admitted) = self.guard.expel(expelled, self.current.as_ref()).await {
            self.pass(admitted);
        }
    }

    /// Passes on what came of a map.
    fn pass(&self, admitted: Admitted) {
        for sentence in &admitted.refused {
            tracing::warn!("{sentence}");
        }
        self.state.send_modify(|s| {
            s.rejected = admitted.refused;
            s.records_refused = self.guard.refused();
            s.lock = self.guard.lock();
        });
        self.maps.send_replace(Some(admitted.map));
    }
}

/// Waits until an address is gone from those of this host, and returns it.
async fn gone(
    own: &mut watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    which: impl Fn(&BTreeSet<IpAddr>) -> Option<IpAddr>,
) -> IpAddr {
    loop {
        let missing = Some(own.borrow_and_update()).filter(|own| !own.is_empty()).and_then(|own| which(&own));
        if let Some(missing) = missing {
            return missing;
        }
        if own.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Returns how long to wait before the next attempt: `share`, from 0 to 1, spreads the nodes of a mesh.
fn delay(attempt: usize, down_for: Duration, share: f64) -> Duration {
    let longest = if down_for < HARD {
        let doubling = Duration::from_millis(100) * (1 << attempt.min(4));
        doubling.min(HARD_WAIT)
    } else {
        SOFT_WAIT
    };
    longest.mul_f64(0.5 + share / 2.0)
}

pub(crate) mod roll_file;
#[cfg(test)]
mod tests;
