//! How a member changes its keys: the tunnel key, which its peers have to hear of first, and the identity, which the
//! coordinator has to confirm.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Membership;
use crate::base::state_dir::StateError;
use crate::base::warning_id::WarningId;
use crate::control::Dial;
use crate::keys::node::NodeKeys;
use crate::node::identity_rotation::IdentityAnswer;
use crate::node::tunnel_key_rotation::{self, Rotation, RotationStep};

/// The topic of what the disk refused of a change of the tunnel key.
const KEYS: WarningId = WarningId::Keys;
/// How long that waits before it is tried again.
const PAUSE: Duration = Duration::from_secs(5);

impl Membership<'_> {
    /// Makes another tunnel key, unless a change is under way.
    pub(super) fn rotate(&mut self) {
        if self.rotation.is_some() {
            tracing::info!("the tunnel key is being changed already");
            return;
        }
        let changed = NodeKeys::rotate(self.state).and_then(|()| self.reload_keys(true));
        self.is_rotation_wanted = changed.is_err();
        if !self.conclude_keys("the tunnel key is not changed", changed) {
            return;
        }
        self.report();
        self.rotation = Some(Rotation::begun(self.sequence));
        tracing::info!(key = %self.lanes.public(0), "the tunnel key is changed");
    }

    /// Goes on with a change of keys, or begins one when it is time.
    pub(super) fn turn(&mut self) {
        if Instant::now() < self.keys_due {
            return;
        }
        let Some(rotation) = &mut self.rotation else {
            let due = tunnel_key_rotation::due(self.config.keys.rotate, &self.lanes.public(0));
            let is_due = self.is_rotation_wanted || NodeKeys::age(self.state).is_some_and(|age| age >= due);
            if is_due && self.publisher.link.borrow().connected {
                self.rotate();
            }
            return;
        };
        // Who is out of touch does not know whether its peers are.
        if !self.publisher.link.borrow().connected {
            return;
        }
        let known = self.publisher.view.borrow().as_ref().map_or(0, |view| view.netmap().node.sequence);
        let step = match rotation.step(known, self.config.keys.overlap, Instant::now()) {
            RotationStep::Wait => return,
            RotationStep::CallByPresent => self.reload_keys(false),
            RotationStep::Finish => {
                let forgotten = NodeKeys::forget_former(self.state).and_then(|()| self.reload_keys(false));
                if forgotten.is_ok() {
                    self.rotation = None;
                    // What the former key has used does not count for the present one.
                    self.clock.clock().forget();
                    self.report();
                    tracing::info!("the former tunnel key is forgotten");
                }
                forgotten
            }
        };
        self.conclude_keys("the change of the tunnel key does not go on", step);
    }

    /// Shows what the disk refused of a change of the tunnel key, until it is done. Says whether it is.
    fn conclude_keys(&mut self, what: &str, done: Result<(), StateError>) -> bool {
        let sentence = done.err().map(|error| format!("{what}: {error}. It is tried again until it works"));
        let is_done = sentence.is_none();
        if let Some(sentence) = &sentence {
            tracing::error!("{sentence}");
            self.keys_due = Instant::now() + PAUSE;
        }
        self.publisher.notes.set(KEYS, sentence);
        is_done
    }

    /// Puts the keys of the state directory in force.
    fn reload_keys(&mut self, calls_by_former: bool) -> Result<(), StateError> {
        self.keys = Arc::new(NodeKeys::load(self.state)?);
        let lanes = self.keys.lanes(self.config.lanes).timed_by(Arc::clone(self.clock.clock()));
        self.lanes = lanes.calling_by_former(calls_by_former);
        self.plane.handle().set_keys(&self.lanes);
        Ok(())
    }

    /// Begins a change of the identity key.
    pub(super) fn renew(&mut self) {
        self.renewer.begin();
        self.ask_for_identity();
    }

    /// Asks for another identity, if it is time.
    pub(super) fn ask_for_identity(&mut self) {
        let Some(next) = self.renewer.due() else { return };
        let facts = self.sealed(&next);
        let dial = Dial::sharing(&self.book, self.renewer.keys());
        self.renewer.ask(&mut self.tasks, dial, facts);
    }

    /// Takes up what a coordinator said to that.
    pub(super) fn conclude_identity(&mut self, answer: IdentityAnswer) {
        if let Some(keys) = self.renewer.conclude(answer) {
            self.keys = keys;
            self.report();
        }
    }
}
