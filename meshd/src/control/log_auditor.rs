//! Follows the log of operations, so that nobody can show this node another mesh than its peers, or add a node that
//! the log does not know, without a warning here.
//!
//! ```text
//!   coordinator ─ Alive: head ─▶ Auditor ─ set_told ─▶ probes ─▶ peers     (only while there is traffic)
//!               ◀─ log after N ──┤   ▲──── heard ◀──── probes ◀─┘
//!                                ├─▶ status: warnings that stay until a restart
//!                                └─▶ guard: who was expelled, and never comes back whatever the coordinator says
//! ```
//! The log is read when there is something new, but 30 to 60 s after the last time, unless a peer is in the map that
//! nobody admitted, or one left it: a revocation is to be remembered soon. All nodes see either at one moment, so each
//! waits for a random part of a span that grows with the mesh, 30 s in one of 10,000: some 330 a second come to ask.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mesh_host::clock::now;
use mesh_host::sums::link;
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::{IdentityKey, NodeName};
use mesh_proto::dataplane::view::View;
use mesh_proto::model::netmap::{NetMap, Peer};
use mesh_proto::trust::audit_log::{LogPage, LogPosition, LogWitness, Next};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::channel::{Channel, ChannelError, Dial};
use crate::base::entropy::share;
use crate::base::state_dir::State;
use crate::control::{ChannelState, LogGossip, roll_file};

/// How often it is looked at what peers and the coordinator say.
const TURN: Duration = Duration::from_secs(5);
/// How often the log is read while nobody comes or goes; half of it and more, at random.
const READ: Duration = Duration::from_secs(60);
/// The share of each member in the time over which nodes come that hear of something at once; half of `READ` at most.
const SHARE: Duration = Duration::from_millis(3);
/// How long after the start the log is read first, at most.
const FIRST: Duration = Duration::from_secs(10);
/// Most pages that are read at a time.
const PAGES: usize = 64;

/// Returns how long a node of a mesh of so many holds back after what all of them hear of at once, beside the time to its
/// turn: a random share of the span.
pub(super) fn wait(members: usize, share: f64) -> Duration {
    let span = (READ / 2).min(SHARE * u32::try_from(members).unwrap_or(u32::MAX));
    span.saturating_sub(TURN).mul_f64(share)
}

/// Follows one mesh's log.
pub(crate) struct LogAuditor<G> {
    state: State,
    /// Whom to ask for the log.
    dial: Dial,
    /// The map in force.
    view: watch::Receiver<Option<Arc<View>>>,
    /// What the coordinator says of the log, and where what is wrong with it is shown.
    link: watch::Sender<ChannelState>,
    /// Who was expelled for good.
    expelled: watch::Sender<Arc<BTreeSet<IdentityKey>>>,
    gossip: G,
    witness: LogWitness,
    /// When the log is read next, if there is something new.
    due: Timestamp,
    /// Whether there was at the last look.
    has_news: bool,
    /// Whether somebody came or went since the log was read.
    is_hurried: bool,
    /// What peers were told last.
    told: Option<LogPosition>,
    /// The map that was looked at last.
    seen: Option<Arc<NetMap>>,
}

impl<G: LogGossip> LogAuditor<G> {
    /// Goes on from the roll of the state directory.
    pub(crate) fn new(
        state: State,
        dial: Dial,
        view: watch::Receiver<Option<Arc<View>>>,
        link: watch::Sender<ChannelState>,
        expelled: watch::Sender<Arc<BTreeSet<IdentityKey>>>,
        gossip: G,
    ) -> Self {
        let roll = roll_file::read(&state);
        expelled.send_replace(Arc::new(roll.as_ref().map(|roll| roll.expelled.clone()).unwrap_or_default()));
        // After a coordinator's restart, or a roll-out, not all nodes at once.
        let due = now() + FIRST.mul_f64(share());
        let witness = LogWitness::new(roll);
        Self {
            state,
            dial,
            view,
            link,
            expelled,
            gossip,
            witness,
            due,
            has_news: false,
            is_hurried: false,
            told: None,
            seen: None,
        }
    }

    /// Runs until the task is dropped.
    pub(crate) async fn run(mut self) {
        let mut views = self.view.clone();
        views.mark_unchanged();
        let mut turn = interval(TURN);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        turn.reset();
        loop {
            tokio::select! {
                _ = turn.tick() => self.turn(now()).await,
                // Who came and went between two turns was a member all the same.
                Ok(()) = views.changed() => {
                    let view = views.borrow_and_update().clone();
                    self.compare(view.as_deref(), now());
                }
            }
        }
    }

    /// Looks once at what peers and the coordinator say, and reads the log where that is due.
    pub(super) async fn turn(&mut self, now: Timestamp) {
        for (peer, told) in self.gossip.peer_log_positions() {
            self.witness.peer_says(&peer, told);
        }
        let (connected, told) = {
            let link = self.link.borrow();
            (link.connected, link.log)
        };
        let view = self.view.borrow().clone();
        self.compare(view.as_deref(), now);
        let is_new = told != self.told;
        // What was told last holds while nobody tells more, but is no sign then that anything is hidden.
        let Some(told) = told.filter(|_| connected || is_new) else { return self.post() };
        if is_new {
            self.told = Some(told);
            self.gossip.set_log_position(told);
        }
        let next = self.witness.coordinator_says(told, now);
        let had_news = std::mem::replace(&mut self.has_news, next != Next::Nothing);
        if self.has_news && !had_news {
            self.due = self.due.max(now + self.wait());
        }
        if view.as_deref().is_some_and(|view| self.explain(view, now)) {
            self.hurry(now);
        }
        if connected && self.has_news && now >= self.due {
            // All nodes hear of an entry at once.
            self.due = now + READ / 2 + (READ / 2).mul_f64(share());
            self.is_hurried = false;
            if let Err(error) = self.read_log(next).await {
                tracing::debug!(%error, "the log is not read now");
            }
            if let Some(view) = view.as_deref() {
                self.explain(view, now);
            }
        }
        self.post();
    }

    /// Looks whether a peer left the map in force since the last look: it may have been revoked.
    fn compare(&mut self, view: Option<&View>, now: Timestamp) {
        let Some(map) = view.map(View::netmap) else { return };
        let Some(before) = self.seen.replace(Arc::clone(map)) else { return };
        let identity = |peer: &Peer| peer.proof.as_ref().map(|proof| proof.identity);
        let is_gone = |(name, peer): (&NodeName, &Peer)| identity(peer) != map.peers.get(name).and_then(identity);
        if !Arc::ptr_eq(&before, map) && before.peers.iter().any(is_gone) {
            self.hurry(now);
        }
    }

    /// Reads the log sooner, once between two times.
    fn hurry(&mut self, now: Timestamp) {
        if !std::mem::replace(&mut self.is_hurried, true) {
            self.due = self.due.min(now + self.wait());
        }
    }

    fn wait(&self) -> Duration {
        wait(self.witness.roll().map_or(0, |roll| roll.members.len()), share())
    }

    /// Looks at the peers of the map in force. Says whether somebody is in it whom we know no entry of.
    fn explain(&mut self, view: &View, now: Timestamp) -> bool {
        let map = view.netmap();
        let keys = || map.peers.iter().filter_map(|(name, peer)| Some((name, peer.subject()?)));
        self.witness.explain(keys(), (map.epoch.number, map.revision), now);
        let Some(roll) = self.witness.roll() else { return false };
        keys().any(|(_, key)| !roll.admits(&key))
    }

    /// Reads the log to its end, or as much as may be read at a time.
    async fn read_log(&mut self, mut next: Next) -> Result<(), ChannelError> {
        let address = self.link.borrow().address.clone().unwrap_or_default();
        let mut channel = Channel::open(&self.dial, &address).await?;
        let before = self.witness.roll().map(|roll| roll.told);
        for _ in 0..PAGES {
            next = match next {
                Next::Nothing => break,
                Next::Begin => {
                    self.witness.begin(channel.roll().await?);
                    Next::Nothing
                }
                Next::Read(after) => {
                    let page: LogPage = channel.log(after).await?;
                    self.witness.read(&page, link)
                }
            };
        }
        if self.witness.roll().map(|roll| roll.told) != before {
            self.expel();
            self.store().await;
        }
        Ok(())
    }

    /// Tells the guard of those who were expelled since, who are only ever more.
    fn expel(&self) {
        let Some(roll) = self.witness.roll() else { return };
        if roll.expelled.len() != self.expelled.borrow().len() {
            self.expelled.send_replace(Arc::new(roll.expelled.clone()));
        }
    }

    async fn store(&self) {
        let Some(Ok(bytes)) = self.witness.roll().map(serde_json::to_vec) else { return };
        let state = self.state.clone();
        let stored = tokio::task::spawn_blocking(move || roll_file::write(&state, &bytes)).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(%error, "how far the log was followed is not stored; a restart begins with what the coordinator says");
        }
    }

    /// Shows what is wrong.
    fn post(&self) {
        let alarms = self.witness.alarms();
        self.link.send_if_modified(|link| {
            let news = alarms.get(link.alarms.len()..).unwrap_or_default();
            news.iter().for_each(|sentence| tracing::error!("{sentence}"));
            link.alarms.extend_from_slice(news);
            !news.is_empty()
        });
    }
}
