//! The latest time that a node's handshakes have used.
//!
//! ```text
//!   an initiation carries the time of day ─▶ a peer takes none whose time is not later than the last one's
//!   the clock was set back ─▶ every initiation of ours is refused, until the clock has caught up or the peer restarts
//! ```
//! Hence the latest time is remembered, also beyond a restart. It belongs to a tunnel key: a new key has used none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_proto::base::id::TunnelKey;

use crate::base::files::HANDSHAKE_TIME;
use crate::base::state_dir::{State, StateError};

/// A clock that lies behind by less catches up before anybody minds; and what is stored is rounded up to a second.
const TOLERANCE: Duration = Duration::from_secs(1);

/// The latest time that handshakes of a tunnel key have used, as time since 1970. All lanes share it.
#[derive(Debug, Default)]
pub struct HandshakeClock(AtomicU64);

impl HandshakeClock {
    /// Goes on from what is stored for a key; what cannot be read is no time.
    pub fn load(state: &State, key: &TunnelKey) -> Arc<Self> {
        let bytes = state.secret(HANDSHAKE_TIME).ok().flatten().unwrap_or_default();
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        let stored = text.trim_end().split_once(' ').filter(|(of, _)| *of == key.to_string());
        let seconds = stored.and_then(|(_, seconds)| seconds.parse().ok()).unwrap_or(0);
        let clock = Self::default();
        clock.used(Duration::from_secs(seconds));
        Arc::new(clock)
    }

    /// Stores the latest time for a key, rounded up to a second. It is to outlive the process, and is not synced.
    ///
    /// # Errors
    /// `StateError` if it cannot be written.
    pub fn store(&self, state: &State, key: &TunnelKey) -> Result<(), StateError> {
        state.keep(HANDSHAKE_TIME, format!("{key} {}\n", self.latest_second()).as_bytes())
    }

    /// Returns the latest time, rounded up to a second since 1970; 0 for none.
    pub fn latest_second(&self) -> u64 {
        self.0.load(Ordering::Relaxed).div_ceil(1_000_000)
    }

    /// Takes note of a time that a handshake uses.
    pub(crate) fn used(&self, time: Duration) {
        self.0.fetch_max(micros(time), Ordering::Relaxed);
    }

    /// Says whether a time is so far behind the latest one that peers would not take it.
    pub(crate) fn is_past(&self, time: Duration) -> bool {
        micros(time.saturating_add(TOLERANCE)) < self.0.load(Ordering::Relaxed)
    }

    /// Returns how far a time lies behind the latest one, if peers mind.
    pub fn lag(&self, time: Duration) -> Option<Duration> {
        let lag = self.0.load(Ordering::Relaxed).saturating_sub(micros(time));
        self.is_past(time).then(|| Duration::from_micros(lag))
    }

    /// Forgets the time: another key is used from now on.
    pub fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const KEY: TunnelKey = TunnelKey([7; 32]);
    const NOON: Duration = Duration::from_secs(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_clock_that_was_set_back_is_noticed_also_after_a_restart_and_for_that_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let clock = HandshakeClock::load(&state, &KEY);
        assert_eq!((clock.lag(Duration::ZERO), clock.latest_second()), (None, 0), "nothing was used yet");
        clock.used(NOON);
        clock.used(NOON - HOUR);
        clock.store(&state, &KEY).unwrap();

        let clock = HandshakeClock::load(&state, &KEY);
        assert_eq!(clock.lag(NOON - HOUR), Some(HOUR));
        assert_eq!(clock.lag(NOON), None);
        assert_eq!(HandshakeClock::load(&state, &TunnelKey([8; 32])).lag(NOON - HOUR), None);
        clock.forget();
        assert_eq!(clock.lag(NOON - HOUR), None);
    }

    #[test]
    fn what_is_rounded_up_does_not_make_a_clock_late() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let (clock, used) = (HandshakeClock::default(), NOON + Duration::from_millis(1));
        clock.used(used);
        clock.store(&state, &KEY).unwrap();
        assert_eq!(HandshakeClock::load(&state, &KEY).lag(used), None);
        for damaged in ["", "x", "\u{0}", &format!("{KEY} -1"), &format!("{KEY} 99999999999999999999999")] {
            state.replace(HANDSHAKE_TIME, damaged.as_bytes()).unwrap();
            assert_eq!(HandshakeClock::load(&state, &KEY).latest_second(), 0, "{damaged}");
        }
    }
}
