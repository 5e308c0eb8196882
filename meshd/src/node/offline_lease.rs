//! When a coordinator was last heard, kept over restarts: what `mesh_proto::trust::offline_lease` counts from.
//!
//! Within a process the time since boot counts, whatever happens to the clock. Over a restart the clock's word has to
//! do: one that went back makes the time away shorter, one that went ahead ends with the coordinator's first word.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_host::sums::{seal, unseal};
use mesh_proto::base::clock::Timestamp;

use crate::base::files::HEARD;
use crate::base::state_dir::State;

/// How old it may become while a coordinator is heard.
const EVERY: Duration = Duration::from_secs(600);

/// Keeps the file: seconds since 1970.
#[derive(Debug)]
pub(crate) struct LastHeard {
    state: State,
    stored: Option<Timestamp>,
    /// When this process heard a coordinator last.
    heard: Option<Timestamp>,
    /// When this process began.
    began: Timestamp,
    /// Whether the file was missing then, and counts from then on.
    is_new: bool,
}

impl LastHeard {
    /// Nothing is stored yet in this process.
    pub(crate) fn new(state: &State) -> Self {
        Self { state: state.clone(), stored: None, heard: None, began: Timestamp::default(), is_new: false }
    }

    /// Returns how long no coordinator had been heard at a start. Where the file is missing, as after an older version,
    /// it counts from this start on, over later ones too; where it is damaged, the age of the cached map stands in for it.
    pub(crate) fn before(&mut self, clock: SystemTime, now: Timestamp) -> Duration {
        self.began = now;
        self.time_before(clock)
    }

    /// Returns the same by a clock that was set meanwhile; none once a coordinator was heard, which counts by the time
    /// since boot. What was stored by the clock before is stored anew.
    pub(crate) fn corrected(&mut self, clock: SystemTime, now: Timestamp) -> Option<Duration> {
        let then = |at: Timestamp| clock.checked_sub(now.since(at)).unwrap_or(UNIX_EPOCH);
        if let Some(heard) = self.heard {
            self.store(then(heard));
            return None;
        }
        let start = then(self.began);
        if self.is_new {
            self.store(start);
            return Some(Duration::ZERO);
        }
        Some(self.time_before(start))
    }

    fn time_before(&mut self, clock: SystemTime) -> Duration {
        let since = |at: SystemTime| clock.duration_since(at).unwrap_or_default();
        let bytes = match self.state.secret(HEARD) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                self.is_new = true;
                self.store(clock);
                return Duration::ZERO;
            }
            Err(error) => {
                tracing::warn!(%error, "not known when a coordinator was last heard");
                Vec::new()
            }
        };
        let text = unseal(&bytes).and_then(|text| std::str::from_utf8(text).ok());
        let at = text.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        match at.and_then(|at| UNIX_EPOCH.checked_add(at)) {
            Some(at) => since(at),
            None => self.state.netmap_written().map_or(Duration::MAX, since),
        }
    }

    /// Takes note that a coordinator is heard.
    pub(crate) fn note(&mut self, clock: SystemTime, now: Timestamp) {
        self.heard = Some(now);
        if self.stored.is_some_and(|stored| now.since(stored) < EVERY) {
            return;
        }
        self.stored = Some(now);
        self.store(clock);
    }

    fn store(&self, clock: SystemTime) {
        let seconds = clock.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if let Err(error) = self.state.keep(HEARD, &seal(seconds.to_string().as_bytes())) {
            tracing::warn!(%error, "not stored when a coordinator was last heard; a restart may count from earlier");
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_time_without_a_coordinator_counts_over_restarts_and_a_broken_file_makes_it_no_shorter() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let mut heard = LastHeard::new(&state);
        let clock = SystemTime::now();
        let start = Timestamp::default();
        let before = |clock| LastHeard::new(&state).before(clock, start);
        assert_eq!(heard.before(clock, start), Duration::ZERO, "of an older version");
        let first = before(clock + HOUR);
        assert!(first >= HOUR && first < HOUR + Duration::from_secs(1), "from the first start on: {first:?}");
        let now = Timestamp::from_millis(5);
        heard.note(clock, now);
        heard.note(clock + HOUR, now + EVERY / 2);
        let once = before(clock + 2 * HOUR);
        assert!(once >= 2 * HOUR && once < 2 * HOUR + Duration::from_secs(1), "once in ten minutes: {once:?}");
        heard.note(clock + HOUR, now + EVERY);
        assert!(before(clock + 2 * HOUR) < HOUR + Duration::from_secs(1));
        assert_eq!(before(UNIX_EPOCH), Duration::ZERO, "the clock went back");

        let good = std::fs::read(state.path(HEARD)).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            std::fs::write(state.path(HEARD), &bytes).unwrap();
            assert_eq!(before(clock), Duration::MAX, "byte {at}, and there is no map");
        }
        std::fs::write(state.path(crate::base::files::NETMAP), "").unwrap();
        let written = before(clock + HOUR);
        assert!(written < HOUR + Duration::from_secs(1) && written > HOUR - Duration::from_secs(60), "{written:?}");
    }

    #[test]
    fn a_clock_that_is_set_after_the_start_tells_anew_how_long_no_coordinator_was_heard() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let near = |found: Option<Duration>, expected: Duration| {
            let found = found.unwrap();
            assert!(
                found + Duration::from_secs(2) > expected && found < expected + Duration::from_secs(2),
                "{found:?}"
            );
        };
        let (clock, start) = (SystemTime::now(), Timestamp::from_millis(7000));
        LastHeard::new(&state).note(clock, start);

        // An hour later; the clock is a year ahead at the start, and is put right after a minute.
        let (mut restarted, minute) = (LastHeard::new(&state), Duration::from_secs(60));
        near(Some(restarted.before(clock + 9000 * HOUR, start)), 9000 * HOUR);
        near(restarted.corrected(clock + HOUR + minute, start + minute), HOUR);
        restarted.note(clock + HOUR + minute, start + minute);
        assert_eq!(restarted.corrected(clock + 3 * HOUR, start + 2 * minute), None, "the time since boot counts");
        near(Some(LastHeard::new(&state).before(clock + 4 * HOUR, start)), HOUR + minute);

        // A state directory of an older version: its first start counts, whatever the clock was then.
        let state = State::open(&dir.path().join("older")).unwrap();
        let mut first = LastHeard::new(&state);
        assert_eq!(first.before(UNIX_EPOCH, start), Duration::ZERO);
        assert_eq!(first.corrected(clock, start + minute), Some(Duration::ZERO));
        near(Some(LastHeard::new(&state).before(clock + HOUR, start)), HOUR + minute);
    }
}
