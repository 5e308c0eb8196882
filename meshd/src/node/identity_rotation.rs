//! How a node goes on with another identity key, at whatever moment it is killed, and without the data path noticing.
//!
//! ```text
//!   identity.next stored ─▶ POST /v1/identity with the present key ─┬─ taken ───▶ renamed over identity.key
//!           ▲                                                       ├─ refused ─▶ removed, or put aside if in doubt
//!           └───── at each start, and after each lost answer ◀──────┴─ unknown ─▶ asked again
//! ```
//! The coordinator answers the same change as often as it is asked, so that nobody needs to know whether it was taken.
//! Until it says so the node is known by one of the two keys, and nothing that it is told of the present one counts.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::id::{IdentityKey, NodeId};
use mesh_proto::trust::identity_rotation::Succession;
use mesh_proto::wire::{ErrorCode, NodeFacts, Renewal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::base::notes::Notes;
use crate::base::state_dir::{State, StateError};
use crate::base::warning_id::WarningId;
use crate::control::{Channel, ChannelError, Dial};
use crate::keys::node::NodeKeys;

/// The topic of what is to be said of a change that is under way.
const NOTE: WarningId = WarningId::Identity;
/// The longest pause between two attempts; the first is a second.
const PAUSE: Duration = Duration::from_secs(15);

/// Said of a key that was refused and may have been taken before.
const KEPT: &str = "the key is kept as identity.refused: if no coordinator knows this node any more, stop meshd and put it in the place of identity.key";

/// How long whoever asked for a change waits for what comes of it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What came of a change of the identity key: the former and the present one, or why it is not done.
pub type IdentityOutcome = Result<(IdentityKey, IdentityKey), String>;

/// What the coordinators said to one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdentityAnswer {
    /// The change was made, now or before.
    Taken,
    /// It was refused. Whether an earlier attempt was taken is decided by that only if the coordinator says so.
    Refused {
        /// Whether the present key is a member's still.
        is_final: bool,
        /// The coordinator's sentence.
        why: String,
    },
    /// It may have been taken.
    Unknown(String),
    /// Nobody had an ear for it.
    Later(String),
}

/// A change that is under way.
struct Change {
    next: Arc<NodeKeys>,
    succession: Succession,
    /// Whether a coordinator may have taken it already.
    in_doubt: bool,
    is_asking: bool,
    attempts: u32,
    due: Instant,
}

/// Changes the identity key of one node.
pub(crate) struct Renewer {
    state: State,
    notes: Notes,
    /// What came of the last change.
    renewed: watch::Sender<Option<IdentityOutcome>>,
    node: NodeId,
    /// The keys that the control channel uses.
    keys: watch::Sender<Arc<NodeKeys>>,
    change: Option<Change>,
    answers: mpsc::Sender<IdentityAnswer>,
    heard: mpsc::Receiver<IdentityAnswer>,
}

impl Renewer {
    /// Takes up a change that was under way when the daemon ended.
    pub(crate) fn new(
        state: &State,
        notes: Notes,
        renewed: watch::Sender<Option<IdentityOutcome>>,
        node: NodeId,
        keys: Arc<NodeKeys>,
    ) -> Self {
        let (answers, heard) = mpsc::channel(1);
        let keys = watch::Sender::new(keys);
        notes.set(NOTE, None);
        let mut renewer = Self { state: state.clone(), notes, renewed, node, keys, change: None, answers, heard };
        match NodeKeys::next(state) {
            Ok(None) => {}
            Ok(Some(next)) => {
                tracing::info!(key = %next.identity(), "the identity key was being changed; going on with that");
                renewer.take_up(next, true);
            }
            Err(error) => renewer.notes.set(NOTE, Some(error.to_string())),
        }
        renewer
    }

    /// Returns the keys that the control channel is to use.
    pub(crate) fn keys(&self) -> watch::Receiver<Arc<NodeKeys>> {
        self.keys.subscribe()
    }

    /// Returns the key that is to be the next, while a change is under way.
    pub(crate) fn next(&self) -> Option<Arc<NodeKeys>> {
        self.change.as_ref().map(|change| Arc::clone(&change.next))
    }

    /// Begins a change, or goes on with the one that is under way.
    pub(crate) fn begin(&mut self) {
        match &mut self.change {
            Some(change) => change.due = Instant::now(),
            None => match NodeKeys::make_next(&self.state) {
                Ok(next) => self.take_up(next, false),
                Err(error) => {
                    self.end(Err(error.to_string()));
                    self.notes.set(NOTE, Some(error.to_string()));
                }
            },
        }
    }

    /// Returns the next key, if the coordinators are to be asked now.
    pub(crate) fn due(&self) -> Option<Arc<NodeKeys>> {
        let is_due = |change: &&Change| !change.is_asking && Instant::now() >= change.due;
        self.change.as_ref().filter(is_due).map(|change| Arc::clone(&change.next))
    }

    /// Asks them; the answer is heard later. `facts` are signed by the next key.
    pub(crate) fn ask(&mut self, tasks: &mut JoinSet<()>, dial: Dial, facts: NodeFacts) {
        let Some(change) = &mut self.change else { return };
        change.is_asking = true;
        let renewal = Renewal { succession: change.succession, facts };
        let (answers, turn) = (self.answers.clone(), change.attempts as usize);
        // Of those before, which are over.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let _ = answers.send(attempt(&dial, &renewal, turn).await).await;
        });
    }

    /// Waits for the answer to an attempt.
    pub(crate) async fn next_answer(&mut self) -> Option<IdentityAnswer> {
        self.heard.recv().await
    }

    /// Takes an answer up. Returns the keys to go on with, once they are others.
    pub(crate) fn conclude(&mut self, answer: IdentityAnswer) -> Option<Arc<NodeKeys>> {
        let change = self.change.as_mut()?;
        change.is_asking = false;
        change.attempts = change.attempts.saturating_add(1);
        let pause = Duration::from_secs(1) * 2u32.saturating_pow(change.attempts.min(5) - 1);
        change.due = Instant::now() + pause.min(PAUSE);
        let why = match answer {
            IdentityAnswer::Taken => {
                change.in_doubt = true;
                match self.adopt() {
                    Ok(keys) => return Some(keys),
                    Err(error) => error.to_string(),
                }
            }
            IdentityAnswer::Refused { is_final, why } if is_final || !change.in_doubt => {
                // Whoever has the coordinator may take the key and deny it.
                let (gone, why) = match change.in_doubt {
                    true => (NodeKeys::set_next_aside(&self.state), format!("{why}; {KEPT}")),
                    false => (NodeKeys::drop_next(&self.state), why),
                };
                if let Err(error) = gone {
                    tracing::error!(%error, "the refused key is not removed; it is offered again at the next start");
                }
                self.change = None;
                tracing::warn!(why, "the identity key is not changed");
                self.end(Err(why));
                return None;
            }
            IdentityAnswer::Unknown(why) => {
                change.in_doubt = true;
                why
            }
            IdentityAnswer::Refused { is_final: _, why } | IdentityAnswer::Later(why) => why,
        };
        tracing::warn!(why, "the change of the identity key is not confirmed yet");
        self.notes.set(NOTE, Some(pending(&why)));
        None
    }

    fn take_up(&mut self, next: NodeKeys, in_doubt: bool) {
        let succession = succession(self.node, &self.keys.borrow(), &next);
        self.change = Some(Change {
            next: Arc::new(next),
            succession,
            in_doubt,
            is_asking: false,
            attempts: 0,
            due: Instant::now(),
        });
    }

    /// Puts the next key in the place of the present one.
    fn adopt(&mut self) -> Result<Arc<NodeKeys>, StateError> {
        NodeKeys::adopt_next(&self.state)?;
        let keys = Arc::new(NodeKeys::load(&self.state)?);
        let former = self.keys.send_replace(Arc::clone(&keys)).identity();
        self.change = None;
        tracing::info!(from = %former, to = %keys.identity(), "the identity key is changed");
        self.end(Ok((former, keys.identity())));
        Ok(keys)
    }

    fn end(&self, outcome: IdentityOutcome) {
        self.notes.set(NOTE, None);
        self.renewed.send_replace(Some(outcome));
    }
}

/// Says that a change is under way.
fn pending(why: &str) -> String {
    format!(
        "the identity key is being changed, but no coordinator has confirmed it yet: {why}; meshd goes on asking, also after a restart"
    )
}

/// Returns what both keys sign for a node.
fn succession(node: NodeId, present: &NodeKeys, next: &NodeKeys) -> Succession {
    let (from, to) = (present.identity(), next.identity());
    Succession {
        from,
        to,
        signature: present.sign(&Succession::message(node, &from, &to)),
        accepted: next.sign(&Succession::acceptance(node, &from, &to)),
    }
}

/// Asks the coordinators, beginning at another one each time, until one answers or may have acted.
async fn attempt(dial: &Dial, renewal: &Renewal, turn: usize) -> IdentityAnswer {
    let mut left = dial.candidates(turn);
    let mut why = None;
    loop {
        let (mut channel, address) = match Channel::open_first(dial, &left).await {
            Ok(opened) => opened,
            Err(error) => return IdentityAnswer::Later(why.unwrap_or_else(|| error.to_string())),
        };
        let said = match channel.renew(renewal).await {
            Ok(_) => return IdentityAnswer::Taken,
            Err(ChannelError::Refused(said)) => said,
            Err(error) => return IdentityAnswer::Unknown(error.to_string()),
        };
        // Its store may have it all the same.
        if said.error == ErrorCode::Internal {
            return IdentityAnswer::Unknown(said.message);
        }
        // It has no time, or our record has to be newer.
        if !matches!(said.error, ErrorCode::Busy | ErrorCode::Record) {
            return IdentityAnswer::Refused { is_final: said.error == ErrorCode::Identity, why: said.message };
        }
        why = Some(said.message);
        left.retain(|other| *other != address);
    }
}
