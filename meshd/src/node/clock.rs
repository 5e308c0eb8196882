//! Whether this node's clock is good enough for its handshakes, and the time that is remembered for that.

use mesh_host::clock::time_of_day;
use mesh_host::table::age;

use super::Membership;

/// The topic of a clock that was set back.
const NOTE: &str = "clock";

impl Membership<'_> {
    /// Looks at the clock, and stores the time that handshakes have used, if they have since.
    pub(super) fn look_at_clock(&mut self) {
        self.say_clock();
        let latest = self.clock.latest_second();
        if latest == self.stored_second {
            return;
        }
        match self.clock.store(self.state, &self.lanes.public(0)) {
            Ok(()) => self.stored_second = latest,
            Err(error) => tracing::debug!(%error, "the time of handshakes is not stored; it is tried again"),
        }
    }

    fn say_clock(&mut self) {
        let lag = self.clock.lag(time_of_day());
        let sentence = lag.map(|lag| {
            format!(
                "the clock of this host is {} behind the time that its handshakes used before: peers take no call of this node, so it has itself called by them, and reaches none whose clock is behind as well; set the clock (see `timedatectl`), or run `meshd rotate` if it is right now and was ahead before",
                age(lag.as_secs(), 2)
            )
        });
        if lag.is_some() != self.is_clock_behind {
            self.is_clock_behind = lag.is_some();
            match &sentence {
                Some(sentence) => tracing::warn!("{sentence}"),
                None => tracing::info!("the clock of this host has caught up with its handshakes"),
            }
        }
        self.publisher.notes.set(NOTE, sentence);
    }
}
