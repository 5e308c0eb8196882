//! Whose clock is wrong, as far as that can be judged from what several clocks say.
//!
//! A word about the time of day is compared by the boot that it implies: the time of day at this machine's boot, as
//! that clock has it. Words of different moments compare so, and a word goes on holding when this host's clock is set.

use std::time::Duration;

use super::clock::{Timestamp, UnixTime};

/// Clocks that differ by no more agree: a word may have been on its way for some seconds.
pub const APART: Duration = Duration::from_secs(30);
/// How long a clock's word counts: a machine that was paused meanwhile, as a virtual one is, takes it for another time.
pub const FRESH: Duration = Duration::from_secs(120);

const APART_MICROS: i64 = 30_000_000;

/// When this machine booted, as some clock has it: microseconds since 1970, negative before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootDate(i64);

impl BootDate {
    /// Returns the boot that follows from what a clock says now, as time since 1970.
    pub fn of(time_of_day: Duration, now: Timestamp) -> Self {
        let micros = i64::try_from(time_of_day.as_micros()).unwrap_or(i64::MAX);
        Self(micros.saturating_sub(i64::try_from(now.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Takes it from what `micros` returned.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Returns it as microseconds since 1970, negative before that.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Returns what that clock says now, as time since 1970; zero before that.
    pub fn time_of_day(self, now: Timestamp) -> Duration {
        let micros = self.0.saturating_add(i64::try_from(now.as_micros()).unwrap_or(i64::MAX));
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// Returns what that clock says now in seconds.
    pub fn unix(self, now: Timestamp) -> UnixTime {
        UnixTime(self.time_of_day(now).as_secs())
    }

    /// Returns by how much two clocks differ, whichever is ahead.
    pub fn apart(self, other: Self) -> Duration {
        Duration::from_micros(self.0.abs_diff(other.0))
    }
}

/// What another's clock said, and when it was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockWord {
    /// The boot of this machine by that clock.
    pub date: BootDate,
    /// When it was heard.
    pub at: Timestamp,
}

impl ClockWord {
    /// Says whether it still counts.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        now.since(self.at) <= FRESH
    }
}

/// What follows from what several clocks say; `W` tells whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClockVerdict<W> {
    /// No clock is further from this host's than `APART`.
    Agree,
    /// Most clocks agree, and not with this host's.
    OwnWrong {
        /// One of them.
        witness: W,
        /// Its date.
        date: BootDate,
        /// How many agree, this one included.
        agree: usize,
    },
    /// Most clocks agree, this host's is among them, and these differ: furthest first.
    OthersWrong(Vec<(W, BootDate)>),
    /// These differ from this host's, and no majority tells who is right: furthest first.
    Undecided(Vec<(W, BootDate)>),
}

/// Judges this host's clock and others by the majority of all of them.
pub fn judge<W: Clone>(own: BootDate, heard: &[(W, BootDate)]) -> ClockVerdict<W> {
    let mut apart: Vec<(W, BootDate)> =
        heard.iter().filter(|(_, date)| date.apart(own) > APART).map(|(who, date)| (who.clone(), *date)).collect();
    if apart.is_empty() {
        return ClockVerdict::Agree;
    }
    apart.sort_by_key(|(_, date)| std::cmp::Reverse(date.apart(own)));
    let mut all: Vec<BootDate> = heard.iter().map(|(_, date)| *date).chain([own]).collect();
    all.sort_unstable();
    let (with_own, without) = (largest(&all, |group| holds(group, own)), largest(&all, |group| !holds(group, own)));
    let is_majority = |group: &[BootDate]| group.len() * 2 > all.len();
    if with_own.len() > without.len() && is_majority(with_own) {
        return ClockVerdict::OthersWrong(apart);
    }
    // The one in the middle is no further from the others than they from each other.
    let middle = without.get(without.len() / 2).filter(|_| without.len() > with_own.len() && is_majority(without));
    let witness = middle.and_then(|middle| heard.iter().find(|(_, date)| date == middle));
    match witness {
        Some((witness, date)) => ClockVerdict::OwnWrong { witness: witness.clone(), date: *date, agree: without.len() },
        None => ClockVerdict::Undecided(apart),
    }
}

fn holds(group: &[BootDate], own: BootDate) -> bool {
    group.first().is_some_and(|first| *first <= own) && group.last().is_some_and(|last| own <= *last)
}

/// Returns the largest group of the sorted dates that agree with each other, of those that are asked for.
fn largest(sorted: &[BootDate], which: impl Fn(&[BootDate]) -> bool) -> &[BootDate] {
    let mut best: &[BootDate] = &[];
    let mut end = 0;
    for (start, first) in sorted.iter().enumerate() {
        let limit = first.0.saturating_add(APART_MICROS);
        end = end.max(start);
        while sorted.get(end).is_some_and(|date| date.0 <= limit) {
            end += 1;
        }
        let group = &sorted[start..end];
        if group.len() > best.len() && which(group) {
            best = group;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(5_000_000);

    fn date(seconds: i64) -> BootDate {
        BootDate::from_micros((1_800_000_000 + seconds) * 1_000_000)
    }

    /// Judges this host's clock, which is right by definition, against clocks that are ahead by so many seconds.
    fn verdict(ahead: &[i64]) -> ClockVerdict<usize> {
        let heard: Vec<_> = ahead.iter().map(|&s| date(s)).enumerate().collect();
        judge(date(0), &heard)
    }

    #[test]
    fn clocks_of_which_none_is_more_than_thirty_seconds_from_ours_agree() {
        for fine in [&[][..], &[0], &[30], &[-30], &[30, -30], &[1, 2, 3]] {
            assert_eq!(verdict(fine), ClockVerdict::Agree, "{fine:?}");
        }
    }

    #[test]
    fn of_two_clocks_nobody_says_which_is_wrong() {
        for seconds in [31, -31, 1_000_000_000, -1_000_000_000] {
            assert_eq!(verdict(&[seconds]), ClockVerdict::Undecided(vec![(0, date(seconds))]));
        }
        let three = ClockVerdict::Undecided(vec![(1, date(-900)), (0, date(300))]);
        assert_eq!(verdict(&[300, -900]), three, "all three differ");
        let pairs = ClockVerdict::Undecided(vec![(1, date(301)), (2, date(300))]);
        assert_eq!(verdict(&[1, 301, 300]), pairs, "two against two");
        let chain = ClockVerdict::Undecided(vec![(1, date(50))]);
        assert_eq!(verdict(&[25, 50]), chain, "the one between agrees with both");
    }

    #[test]
    fn the_majority_says_who_is_wrong() {
        assert_eq!(verdict(&[2, 300]), ClockVerdict::OthersWrong(vec![(1, date(300))]));
        let far = vec![(3, date(-7000)), (1, date(300))];
        assert_eq!(verdict(&[2, 300, -3, -7000, 4]), ClockVerdict::OthersWrong(far));
        for (others, witness, ahead, agree) in [(&[300, 301][..], 1, 301, 2), (&[0, -500, -501, -502], 2, -501, 3)] {
            let wrong = ClockVerdict::OwnWrong { witness, date: date(ahead), agree };
            assert_eq!(verdict(others), wrong, "{others:?}");
        }
    }

    #[test]
    fn a_word_holds_on_when_this_hosts_clock_is_set() {
        let hour = Duration::from_secs(3600);
        let theirs = BootDate::of(Duration::from_secs(1_800_000_000), NOW);
        let later = NOW + hour;
        assert_eq!(theirs.unix(later), UnixTime(1_800_003_600));
        let ours = BootDate::of(Duration::from_secs(1_800_003_600), later);
        assert_eq!(ours.apart(theirs), Duration::ZERO);
        let set_back = BootDate::of(Duration::from_secs(1_800_000_000), later);
        assert_eq!(set_back.apart(theirs), hour);
        let at_1970 = BootDate::of(Duration::from_secs(3), NOW);
        assert!(at_1970.micros() < 0, "it booted before 1970, by its clock");
        assert_eq!(at_1970.time_of_day(NOW), Duration::from_secs(3));
    }

    #[test]
    fn no_word_of_any_size_breaks_the_judgement() {
        let far = [BootDate::from_micros(i64::MIN), BootDate::from_micros(i64::MAX), BootDate::from_micros(0)];
        for own in far {
            let heard: Vec<_> = far.into_iter().enumerate().collect();
            assert_ne!(judge(own, &heard), ClockVerdict::Agree);
            let _ = own.time_of_day(Timestamp::from_micros(u64::MAX));
        }
        let _ = BootDate::of(Duration::MAX, Timestamp::from_micros(u64::MAX));
        let word = ClockWord { date: date(0), at: NOW };
        assert!(word.is_fresh(NOW + FRESH) && !word.is_fresh(NOW + FRESH + Duration::from_micros(1)));
    }
}
