//! Whether this node's clock is good enough for its handshakes, and the time that is remembered for that.

use std::sync::Arc;

use mesh_host::clock::time_of_day;
use mesh_host::table::age;
use mesh_proto::base::id::TunnelKey;

use crate::base::notes::Notes;
use crate::base::state_dir::State;
use crate::base::warning_id::WarningId;
use crate::keys::handshake_clock::HandshakeClock;

/// Looks at the clock for one node.
pub(super) struct ClockWatch {
    clock: Arc<HandshakeClock>,
    state: State,
    notes: Notes,
    /// What is stored of the latest time, in seconds since 1970.
    stored: u64,
    /// Whether the clock was told to be behind.
    is_behind: bool,
}

impl ClockWatch {
    /// Goes on with a clock as it was loaded.
    pub(super) fn new(clock: Arc<HandshakeClock>, state: &State, notes: &Notes) -> Self {
        Self { stored: clock.latest_second(), clock, state: state.clone(), notes: notes.clone(), is_behind: false }
    }

    /// Returns the clock.
    pub(super) fn clock(&self) -> &Arc<HandshakeClock> {
        &self.clock
    }

    /// Says whether the clock is behind, and stores the time that handshakes of a key have used, if they have since.
    pub(super) fn look(&mut self, key: &TunnelKey) {
        self.say();
        let latest = self.clock.latest_second();
        if latest == self.stored {
            return;
        }
        match self.clock.store(&self.state, key) {
            Ok(()) => self.stored = latest,
            Err(error) => tracing::debug!(%error, "the time of handshakes is not stored; it is tried again"),
        }
    }

    fn say(&mut self) {
        let lag = self.clock.lag(time_of_day());
        let sentence = lag.map(|lag| {
            format!(
                "the clock of this host is {} behind the time that its handshakes used before: peers take no call of this node, so it has itself called by them, and reaches none whose clock is behind as well; set the clock (see `timedatectl`), or run `meshd rotate` if it is right now and was ahead before, which helps once the former key is forgotten (`overlap`, a day)",
                age(lag.as_secs(), 2)
            )
        });
        if lag.is_some() != self.is_behind {
            self.is_behind = lag.is_some();
            match &sentence {
                Some(sentence) => tracing::warn!("{sentence}"),
                None => tracing::info!("the clock of this host has caught up with its handshakes"),
            }
        }
        self.notes.set(WarningId::HandshakeClock, sentence);
    }
}
