//! Follows the log of operations, so that nobody can show this node another mesh than its peers, or add a node that
//! the log does not know, without a warning here.
//!
//! ```text
//!   coordinator ─ Alive: head ─▶ Auditor ─ set_told ─▶ probes ─▶ peers     (only while there is traffic)
//!               ◀─ log after N ──┤   ▲──── heard ◀──── probes ◀─┘
//!                                └─▶ status: warnings that stay until a restart
//! ```

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use mesh_proto::chain::{LogHash, LogPage, Next, Roll, Told, Witness};
use mesh_proto::clock::Timestamp;
use mesh_proto::view::View;
use tokio::time::sleep;

use super::{Channel, Dial, LinkError, random};
use crate::board::{Board, now};
use crate::state::State;

/// The roll inside the state directory.
const ROLL: &str = "roll.json";
/// The same, for `State::forget`.
pub(crate) const FILE: &str = ROLL;
/// How often it is looked at what peers and the coordinator say.
const TURN: Duration = Duration::from_secs(5);
/// How often the log is read while nobody new is in the map; half of it and more, at random.
const READ: Duration = Duration::from_secs(60);
/// How long after the start the log is read first, at most.
const FIRST: Duration = Duration::from_secs(10);
/// Most pages that are read at a time.
const PAGES: usize = 64;

/// Returns the hash of an entry and all before it.
pub(crate) fn link(before: &LogHash, body: &[u8]) -> LogHash {
    let mut context = Context::new(&SHA256);
    context.update(&before.0);
    context.update(body);
    let mut hash = LogHash::default();
    hash.0.copy_from_slice(context.finish().as_ref());
    hash
}

/// Follows one mesh's log.
pub(crate) struct Auditor {
    state: State,
    board: Arc<Board>,
    witness: Witness,
    /// When the log is read next, if nobody waits for an explanation.
    due: Timestamp,
    /// What peers were told last.
    told: Option<Told>,
}

impl Auditor {
    /// Goes on from the roll of the state directory.
    pub(crate) fn new(state: State, board: Arc<Board>) -> Self {
        let roll = state.secret(ROLL).ok().flatten();
        let roll: Option<Roll> = roll.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // After a coordinator's restart, or a roll-out, not all nodes at once.
        let due = now() + FIRST.mul_f64(f64::from(random()) / f64::from(u32::MAX));
        Self { state, board, witness: Witness::new(roll), due, told: None }
    }

    /// Runs until the task is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            sleep(TURN).await;
            self.turn(now()).await;
        }
    }

    /// Looks once at what peers and the coordinator say, and reads the log where that is due.
    pub(super) async fn turn(&mut self, now: Timestamp) {
        let heard = self.board.with_plane(|plane| plane.heard()).unwrap_or_default();
        for (peer, told) in heard {
            self.witness.peer_says(&peer, told);
        }
        let (connected, told) = {
            let link = self.board.link.borrow();
            (link.connected, link.log)
        };
        let view = self.board.view.borrow().clone();
        let dial = self.board.dial.borrow().clone();
        let is_new = told != self.told;
        // What was told last holds while nobody tells more, but is no sign then that anything is hidden.
        let Some((told, dial)) = told.zip(dial).filter(|_| connected || is_new) else { return self.post() };
        if is_new {
            self.told = Some(told);
            self.board.with_plane(|plane| plane.set_told(told));
        }
        let next = self.witness.coordinator_says(told, now);
        let waits = view.as_deref().is_some_and(|view| self.explain(view, now));
        if connected && next != Next::Nothing && (waits || now >= self.due) {
            // All nodes hear of an entry at once.
            let share = f64::from(random()) / f64::from(u32::MAX);
            self.due = now + READ.mul_f64(0.5 + share / 2.0);
            if let Err(error) = self.follow(&dial, next).await {
                tracing::debug!(%error, "the log is not read now");
            }
            if let Some(view) = view.as_deref() {
                self.explain(view, now);
            }
        }
        self.post();
    }

    /// Looks at the peers of the map in force. Says whether somebody is in it whom we know no entry of.
    fn explain(&mut self, view: &View, now: Timestamp) -> bool {
        let map = view.netmap();
        let keys = || {
            let peers = map.peers.iter();
            peers.filter_map(|(name, peer)| Some((name, peer.proof.as_ref()?.identity)))
        };
        self.witness.explain(keys(), (map.epoch.number, map.revision), now);
        let Some(roll) = self.witness.roll() else { return false };
        keys().any(|(_, key)| !roll.members.contains(&key))
    }

    /// Reads the log to its end, or as much as may be read at a time.
    async fn follow(&mut self, dial: &Dial, mut next: Next) -> Result<(), LinkError> {
        let address = self.board.link.borrow().address.clone().unwrap_or_default();
        let mut channel = Channel::open(dial, &address).await?;
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
            self.store().await;
        }
        Ok(())
    }

    async fn store(&self) {
        let Some(Ok(bytes)) = self.witness.roll().map(serde_json::to_vec) else { return };
        let state = self.state.clone();
        let stored = tokio::task::spawn_blocking(move || state.replace(ROLL, &bytes)).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(%error, "how far the log was followed is not stored; a restart begins with what the coordinator says");
        }
    }

    /// Shows what is wrong.
    fn post(&self) {
        let alarms = self.witness.alarms();
        self.board.link.send_if_modified(|link| {
            let news = alarms.get(link.alarms.len()..).unwrap_or_default();
            news.iter().for_each(|sentence| tracing::error!("{sentence}"));
            link.alarms.extend_from_slice(news);
            !news.is_empty()
        });
    }
}
