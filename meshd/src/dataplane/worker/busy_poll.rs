//! How a lane waits: awake for a moment if the next packet will likely come in it, and else asleep.
//!
//! To wake a thread on an idle core takes some 20 µs, and a round trip wakes a lane four times. A lane that stays awake
//! saves them, and gives its core away at each look (`sched_yield`), so that it only takes what nobody else wants. It
//! sleeps at once where sleeping is better:
//!
//! - under bulk, which gathers while a lane sleeps, and large batches are what makes bulk cheap;
//! - when packets come too far apart to be awaited, so that an idle link costs nothing.

use std::time::Duration;

use mesh_proto::base::clock::Timestamp;

/// How long a lane stays awake: as long as a short connection takes, since the next may be another lane's and the one
/// after it this lane's again. With 50 µs there were an eighth fewer new connections a second.
const AWAKE: Duration = Duration::from_micros(200);
/// Bytes per microsecond that are bulk when they last: some 256 Mbit/s.
const BULK_RATE: u64 = 32;
/// Bytes that come at once before they are bulk: a millisecond of the rate above.
const BULK: u64 = 32 << 10;
/// What a success is worth in failures, and most failures in a row.
const GAIN: u8 = 1;
const LOSS: u8 = 1;
const MOST: u8 = 4;
/// Of so many waits in which nothing is expected, one tries again.
const TRY_EVERY: u8 = 16;

/// What a lane has learned of how packets come.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Failures left before it no longer expects anything.
    hope: u8,
    /// Waits since the last try.
    asleep: u8,
    /// A bucket that leaks at `BULK_RATE`.
    level: u64,
    /// When that was counted.
    at: Timestamp,
}

impl Patience {
    /// Takes note of the bytes that came before `now`.
    pub(super) fn moved(&mut self, bytes: u64, now: Timestamp) {
        let leaked = now.as_micros().saturating_sub(self.at.as_micros()).saturating_mul(BULK_RATE);
        self.level = (self.level.saturating_sub(leaked) + bytes).min(2 * BULK);
        self.at = now;
    }

    /// Returns until when to stay awake, if that is likely to pay.
    pub(super) fn awake_until(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.level > BULK {
            return None;
        }
        self.asleep = (self.asleep + 1) % TRY_EVERY;
        (self.hope > 0 || self.asleep == 0).then(|| now + AWAKE)
    }

    /// Takes note of whether anything came in time.
    pub(super) fn learn(&mut self, came: bool) {
        self.hope = if came { (self.hope + GAIN).min(MOST) } else { self.hope.saturating_sub(LOSS) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets packets come every `gap`, each of `bytes`, and returns how many of 1,000 waits were spent awake.
    fn awake(patience: &mut Patience, gap: Duration, bytes: u64) -> usize {
        let mut time = patience.at + Duration::from_secs(1);
        let mut awake = 0;
        for _ in 0..1000 {
            patience.moved(bytes, time);
            let until = patience.awake_until(time);
            time = time + gap;
            if let Some(until) = until {
                awake += 1;
                patience.learn(time < until);
            }
        }
        awake
    }

    #[test]
    fn what_comes_soon_is_awaited_and_what_comes_late_is_not() {
        let mut patience = Patience::default();
        assert!(awake(&mut patience, Duration::from_micros(40), 100) > 980);
        assert!(awake(&mut patience, Duration::from_micros(240), 100) < 70, "one try in sixteen");
        assert!(
            awake(&mut patience, Duration::from_micros(40), 100) > 980,
            "it is found out that they come soon again"
        );
    }

    #[test]
    fn bulk_is_gathered_asleep_until_it_has_been_over_for_two_milliseconds() {
        let mut patience = Patience::default();
        assert!(awake(&mut patience, Duration::from_micros(10), 1200) < 50);
        patience.hope = MOST;
        let end = patience.at;
        assert_eq!(patience.awake_until(end), None);
        patience.moved(100, end + Duration::from_millis(2));
        assert!(patience.awake_until(end + Duration::from_millis(2)).is_some());
    }
}
