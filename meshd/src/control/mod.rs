//! The way to the coordinators: joining once, then one channel that is kept up for as long as meshd runs.
//!
//! ```text
//!   coordinator 1 ─┐                       ┌─▶ maps: the newest NetMap      (daemon applies it)
//!   coordinator 2 ─┼─ 250 ms apart ── Link ┼─▶ state: connected, last error (status, metrics)
//!   …             ─┘                       └─◀ report: facts and revision in force
//! ```
//! Nothing in the data path waits for this: a coordinator that is dead for days costs nothing but news.

mod address_book;
mod attempts;
mod channel;
pub(crate) mod log_auditor;
pub(crate) mod map_guard;
mod network_lock;
mod race;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_host::clock::now;
use mesh_proto::base::id::{IdentityKey, NodeName, Revision};
use mesh_proto::base::wall_clock::{BootDate, ClockWord};
use mesh_proto::model::netmap::NetMap;
use mesh_proto::trust::audit_log::LogPosition;
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::verifier::{Admitted, VerifiedMap};
use mesh_proto::wire::{About, ErrorCode, JoinRequest, JoinResponse, Report, WatchEvent};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::base::entropy::share;
use crate::base::runtime::aside;

pub use address_book::AddressBook;
pub use attempts::Attempts;
pub use channel::{Channel, ChannelError, Dial, Watch};
pub use map_guard::MapGuard;
pub use network_lock::lock_standing;

/// How long meshd tries hard after a channel broke.
const HARD: Duration = Duration::from_secs(60);
/// The longest wait between attempts in that time.
const HARD_WAIT: Duration = Duration::from_secs(1);
/// The longest wait after that.
const SOFT_WAIT: Duration = Duration::from_secs(15);
/// How long to wait before dialling anew after an address of this host went.
const MOVED: Duration = Duration::from_millis(50);
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
    /// Whether that was the word of a coordinator that this node is no member.
    pub disowned: bool,
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
    /// What the coordinator's clock said last.
    pub clock: Option<ClockWord>,
    /// What is wrong with the log, in sentences; they stay until a restart.
    pub alarms: Vec<String>,
}

/// Asks the coordinators, the first that answers, about a node that this one is not told of; none if nobody knows it.
pub async fn about(dial: &Dial, word: &str) -> Option<About> {
    let mut left = dial.candidates(0);
    while let Ok((mut channel, address)) = Channel::open_first(dial, &left).await {
        match channel.about(word).await {
            Ok(about) => return Some(about),
            Err(ChannelError::Refused(_)) => return None,
            Err(error) => tracing::debug!(%error, "nobody tells who that is"),
        }
        left.retain(|other| *other != address);
    }
    None
}

/// Asks the coordinators of a token, the first that answers, to let this node in. Says by which address that was.
///
/// # Errors
/// The first refusal; if nobody answered, what the last one failed at (a wrong key before anything else).
pub async fn join(dial: &Dial, request: &JoinRequest) -> Result<(JoinResponse, String), ChannelError> {
    let mut left = dial.candidates(0);
    let mut worst: Option<ChannelError> = None;
    while !left.is_empty() {
        let (mut channel, address) = match Channel::open_first(dial, &left).await {
            Ok(opened) => opened,
            // Another one had no time, or a store that does not answer, which says more.
            Err(error) => return Err(worst.unwrap_or(error)),
        };
        let mut answer = channel.join(request).await;
        for _ in 0..BUSY_TRIES {
            if !matches!(&answer, Err(ChannelError::Refused(body)) if body.error == ErrorCode::Busy) {
                break;
            }
            sleep(BUSY).await;
            answer = async { Channel::open(dial, &address).await?.join(request).await }.await;
        }
        match answer {
            Ok(response) => return Ok((response, address)),
            // Another coordinator may have time, or a store that answers.
            Err(error @ ChannelError::Refused(_)) if !error.may_differ_elsewhere() => return Err(error),
            Err(error) => {
                dial.attempts.end(&address, error.sentence_of(&address));
                worst = Some(error);
            }
        }
        left.retain(|other| *other != address);
    }
    Err(worst.unwrap_or_else(|| ChannelError::Malformed("the token names no coordinator".into())))
}

/// Asks the coordinators whether they disown this node, by the key that it proves to them. Returns the sentence of the
/// first that answers, if it does; none if it knows the node, or nobody answers.
pub async fn disowned(dial: &Dial, node: &NodeName) -> Option<String> {
    let (mut channel, _) = Channel::open_first(dial, &dial.candidates(0)).await.ok()?;
    let error = channel.about(node.as_str()).await.err()?;
    error.is_disowned().then(|| error.to_string())
}

/// How members tell each other of the log of operations: by what the data path sends along.
pub trait LogGossip {
    /// Says what peers are told of it, with the next probe of each.
    fn set_log_position(&self, told: LogPosition);
    /// Returns what peers said last of it.
    fn peer_log_positions(&self) -> Vec<(NodeName, LogPosition)>;
}

/// What the coordinators have of this node's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordsKnown {
    /// The highest number that they took from this process.
    pub taken: Option<u64>,
    /// What they have instead, where the last one was refused.
    pub unknown: Option<SignedRecord>,
    /// Whether it was refused by one that does not tell what it has, as an older one.
    pub is_untold: bool,
}

impl RecordsKnown {
    fn takes(&mut self, sequence: u64) {
        *self = Self { taken: self.taken.max(Some(sequence)), unknown: None, is_untold: false };
    }

    fn refuses(&mut self, record: Option<Box<SignedRecord>>) {
        self.is_untold = record.is_none();
        self.unknown = record.map(|record| *record);
    }

    /// Says whether a number that a map tells may be signed above, unseen. Not once a record of ours was taken: a higher
    /// one is another machine's then, which is to be noticed.
    pub fn may_follow_map(&self) -> bool {
        self.taken.is_none() || self.is_untold
    }
}

/// Tells the coordinators, the first that answers, that another machine has this node's identity.
///
/// # Errors
/// Why nobody was told.
pub async fn tell_of_copy(dial: &Dial, record: SignedRecord) -> Result<(), ChannelError> {
    let (mut channel, _) = Channel::open_first(dial, &dial.candidates(0)).await?;
    channel.copied(record).await.map(|_| ())
}

/// Keeps one channel up.
#[derive(Debug)]
pub struct ChannelKeeper {
    /// Whom to reach, as whom.
    pub dial: Dial,
    /// At which of the addresses that are named it begins: all nodes of a mesh are not to go to the same one.
    pub turn: usize,
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
    /// Where is told what became of the records that were reported.
    pub records: watch::Sender<RecordsKnown>,
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
        let mut turn = self.turn;
        let mut keys = self.dial.keys.clone();
        let mut own = self.own.clone();
        let mut book = self.dial.book.subscribe();
        loop {
            keys.mark_unchanged();
            own.mark_unchanged();
            let tokens = book.borrow().tokens();
            let candidates = self.dial.candidates(turn);
            // Two addresses may be those of one coordinator.
            let has_others = self.dial.book.borrow().pins().len() > 1 && candidates.len() > 1;
            self.state.send_modify(|s| s.address = candidates.first().cloned());
            let error = match self.session(&candidates).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let address = self.state.borrow().address.clone().unwrap_or_default();
            if let ChannelError::Moved(_) = error {
                tracing::info!(coordinator = address, "{error}");
                self.state.send_modify(|s| {
                    s.connected = false;
                    s.error = Some(error.to_string());
                });
                (down_since, attempt) = (Instant::now(), 0);
                // Addresses may come and go faster than anybody can be reached.
                sleep(MOVED).await;
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
            turn = book.borrow().turn_after(&address).unwrap_or(turn);
            if attempt == 1 {
                tracing::warn!(coordinator = address, %error, "coordinator not reached; forwarding goes on from the last map");
            }
            let patient = match &error {
                ChannelError::Fenced => true,
                // Another coordinator may have newer data.
                ChannelError::WentBack(_) => !has_others,
                // Another coordinator may have time, or a store that answers.
                refused @ ChannelError::Refused(_) => !has_others || !refused.may_differ_elsewhere(),
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
            let handed_over = matches!(error, ChannelError::Leaving) && has_others;
            self.state.send_modify(|s| {
                s.connected = false;
                s.disowned = error.is_disowned();
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
                // An operator knows better where the coordinator is.
                () = another_token(&mut book, tokens) => {}
            }
        }
    }

    /// Keeps a channel up by the first of some addresses that leads to a coordinator; that one is in the state then.
    async fn session(&mut self, candidates: &[String]) -> Result<std::convert::Infallible, ChannelError> {
        let mut keys = self.dial.keys.clone();
        keys.mark_unchanged();
        let mut own = self.own.clone();
        own.mark_unchanged();
        let before = Arc::clone(&own.borrow());
        let from = self.current.as_ref().map_or(Revision(0), |map| map.revision);
        let epoch = self.current.as_ref().map_or(0, |map| map.epoch.number);
        let open = async {
            let (mut channel, address) = Channel::open_first(&self.dial, candidates).await?;
            self.state.send_modify(|s| s.address = Some(address.clone()));
            let watch = channel.watch(from, epoch).await?;
            Ok::<_, ChannelError>((channel, address, watch))
        };
        let (mut channel, address, mut watch) = tokio::select! {
            opened = open => opened?,
            gone = gone(&mut own, |own| before.difference(own).next().copied()) => return Err(ChannelError::Moved(gone)),
        };
        let local = channel.local;
        let key = channel.key;
        let mut report = self.report.clone();
        let (refused, records) = (self.state.clone(), self.records.clone());
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
                    Ok(answer) => {
                        records.send_modify(|records| records.takes(newest.facts.sequence));
                        refused.send_modify(|s| s.refused = answer.refused);
                    }
                    Err(ChannelError::Refused(body)) if body.error == ErrorCode::Busy => {
                        sleep(BUSY).await;
                        report.mark_changed();
                    }
                    Err(ChannelError::Refused(body)) => {
                        if body.error == ErrorCode::Record {
                            records.send_modify(|records| records.refuses(body.record));
                        }
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
                s.disowned = false;
                s.error = None;
                s.last_heard = Some(Instant::now());
            });
            if first {
                self.dial.book.send_if_modified(|book| {
                    let before = book.clone();
                    book.works(&address);
                    *book != before
                });
                tracing::info!(coordinator = address, revision = %from, "control channel up");
            }
            if key.is_some_and(|key| !self.dial.book.borrow().pins().contains(&key)) {
                return Err(ChannelError::Retired(address));
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
            WatchEvent::Alive { revision, log, time } => {
                self.guard.hears(revision).map_err(ChannelError::WentBack)?;
                let (time, at) = (time.map(|time| Duration::from_secs(time.0)), now());
                let clock = time.map(|time| ClockWord { date: BootDate::of(time, at), at });
                self.state.send_modify(|s| (s.log, s.clock) = (log, clock));
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
        let pins = self.dial.book.borrow().pins().to_vec();
        let admitted = self.guard.admit(Arc::clone(&map), &pins).await.map_err(ChannelError::WentBack)?;
        // Not before: who went back names no coordinators.
        self.dial.book.send_if_modified(|book| {
            let before = book.clone();
            book.adopt(&map.mesh);
            *book != before
        });
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

/// Waits until more tokens were read than these.
async fn another_token(book: &mut watch::Receiver<AddressBook>, tokens: u64) {
    if book.wait_for(|book| book.tokens() != tokens).await.is_err() {
        std::future::pending::<()>().await;
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
