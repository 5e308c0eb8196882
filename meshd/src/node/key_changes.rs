//! How a member changes its keys: the tunnel key, which its peers have to hear of first, and the identity, which the
//! coordinator has to confirm.

use std::sync::Arc;

use tokio::time::Instant;

use super::Member;
use crate::base::state_dir::StateError;
use crate::control::Dial;
use crate::keys::node::Keys;
use crate::node::identity_rotation::Answer;
use crate::node::tunnel_key_rotation;
use crate::node::tunnel_key_rotation::{Rotation, Step};

impl Member<'_> {
    /// Makes another tunnel key, unless a change is under way.
    pub(super) fn rotate(&mut self) {
        if self.rotation.is_some() {
            tracing::info!("the tunnel key is being changed already");
            return;
        }
        if let Err(error) = Keys::rotate(self.state).and_then(|()| self.reload_keys(true)) {
            tracing::error!(%error, "the tunnel key is not changed");
            return;
        }
        self.report();
        self.rotation = Some(Rotation::begun(self.sequence));
        tracing::info!(key = %self.lanes.public(0), "the tunnel key is changed");
    }

    /// Goes on with a change of keys, or begins one when it is time.
    pub(super) fn turn(&mut self) {
        let Some(rotation) = &mut self.rotation else {
            let due = tunnel_key_rotation::due(self.config.keys.rotate, &self.lanes.public(0));
            if Keys::age(self.state).is_some_and(|age| age >= due) && self.publisher.link.borrow().connected {
                self.rotate();
            }
            return;
        };
        // Who is out of touch does not know whether its peers are.
        if !self.publisher.link.borrow().connected {
            return;
        }
        let known = self.publisher.view.borrow().as_ref().map_or(0, |view| view.netmap().node.sequence);
        let done = match rotation.step(known, self.config.keys.overlap, Instant::now()) {
            Step::Wait => Ok(()),
            Step::CallByPresent => self.reload_keys(false),
            Step::Finish => {
                self.rotation = None;
                let forgotten = Keys::forget_former(self.state).and_then(|()| self.reload_keys(false));
                self.report();
                tracing::info!("the former tunnel key is forgotten");
                forgotten
            }
        };
        if let Err(error) = done {
            tracing::error!(%error, "the change of the tunnel key does not go on");
        }
    }

    /// Puts the keys of the state directory in force.
    fn reload_keys(&mut self, calls_by_former: bool) -> Result<(), StateError> {
        self.keys = Arc::new(Keys::load(self.state)?);
        self.lanes = self.keys.lanes(self.config.lanes).calling_by_former(calls_by_former);
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
        let dial = Dial {
            coordinators: self.enrolment.coordinators.clone(),
            pins: self.enrolment.pins.clone(),
            keys: self.renewer.keys(),
        };
        self.renewer.ask(&mut self.tasks, dial, facts);
    }

    /// Takes up what a coordinator said to that.
    pub(super) fn settle(&mut self, answer: Answer) {
        if let Some(keys) = self.renewer.settle(answer) {
            self.keys = keys;
            self.report();
        }
    }
}
