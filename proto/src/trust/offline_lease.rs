//! How long a node believes its last map while no coordinator answers.
//!
//! ```text
//!   heard ─── max_offline ───▶ no new peers ─ a tunnel runs out ─▶ one fewer ─▶ … ─▶ heard: all are back
//! ```
//! A node that is kept away from its coordinator does not hear that a peer was revoked. After a time it speaks only to
//! peers whom it is speaking to: their tunnels are renewed as long as there is traffic, and no others are begun.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::base::clock::Timestamp;
use crate::base::id::NodeName;

/// How long a node may rely on what it was told last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// None if it never ends.
    limit: Option<Duration>,
    /// When a coordinator was heard, or when we began.
    heard: Timestamp,
    /// How long none had been heard when we began; nothing once one was.
    before: Duration,
    /// Who may still be spoken to; none of it while the lease is good.
    left: Option<BTreeSet<NodeName>>,
}

impl Lease {
    /// Begins `before` after a coordinator was last heard. `limit` is none for a lease that never ends.
    pub fn new(limit: Option<Duration>, before: Duration, now: Timestamp) -> Self {
        let mut lease = Self { limit, heard: now, before, left: None };
        // Tunnels do not outlive the process.
        lease.look(BTreeSet::new, now);
        lease
    }

    /// Takes note that a coordinator is heard. Says whether that changes who may be spoken to.
    pub fn hears(&mut self, now: Timestamp) -> bool {
        (self.heard, self.before) = (now, Duration::ZERO);
        self.left.take().is_some()
    }

    /// Looks at the time, and at who is being spoken to where that matters. Says whether that changes who may be.
    pub fn look(&mut self, talking: impl FnOnce() -> BTreeSet<NodeName>, now: Timestamp) -> bool {
        let offline = self.offline(now);
        if self.limit.is_none_or(|limit| offline < limit) {
            return false;
        }
        let talking = talking();
        let left = match &self.left {
            // Nobody comes back without the coordinator's word.
            Some(left) => left & &talking,
            None => talking,
        };
        let left = Some(left);
        let changed = left != self.left;
        self.left = left;
        changed
    }

    /// Takes another time for how long no coordinator had been heard when we began: the clock that told it was set. Says
    /// whether that changes who may be spoken to. Once a coordinator is heard there is nothing to correct.
    pub fn correct(&mut self, before: Duration, talking: impl FnOnce() -> BTreeSet<NodeName>, now: Timestamp) -> bool {
        self.before = before;
        if self.limit.is_none_or(|limit| self.offline(now) < limit) {
            return self.left.take().is_some();
        }
        self.look(talking, now)
    }

    /// Returns who may still be spoken to; `None` for everybody of the map.
    pub fn left(&self) -> Option<&BTreeSet<NodeName>> {
        self.left.as_ref()
    }

    /// Returns how much is left of a lease that is half over, and good still.
    pub fn runs_out(&self, now: Timestamp) -> Option<Duration> {
        let limit = self.limit?;
        let offline = self.offline(now);
        (offline >= limit / 2).then(|| limit.saturating_sub(offline)).filter(|left| !left.is_zero())
    }

    /// Returns how long no coordinator was heard.
    pub fn offline(&self, now: Timestamp) -> Duration {
        self.before.saturating_add(now.since(self.heard))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 86_400);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    fn names(list: &[&str]) -> BTreeSet<NodeName> {
        list.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn after_a_week_only_those_stay_who_are_spoken_to_and_none_returns() {
        let mut lease = Lease::new(Some(WEEK), Duration::ZERO, at(0));
        assert!(!lease.look(|| unreachable!("not asked before it matters"), at(WEEK.as_secs() - 1)));
        assert_eq!(lease.left(), None);
        assert!(lease.look(|| names(&["a", "b"]), at(WEEK.as_secs())));
        assert!(!lease.look(|| names(&["a", "b"]), at(WEEK.as_secs() + 1)));
        assert!(lease.look(|| names(&["b", "c"]), at(WEEK.as_secs() + 2)));
        assert_eq!(lease.left(), Some(&names(&["b"])));
        assert!(!lease.look(|| names(&["a", "b"]), at(WEEK.as_secs() + 3)), "its tunnel ran out");
    }

    #[test]
    fn a_coordinators_word_brings_all_back_for_another_week() {
        let mut lease = Lease::new(Some(WEEK), WEEK, at(0));
        assert_eq!(lease.left(), Some(&names(&[])), "a start speaks to nobody yet");
        assert!(lease.hears(at(5)));
        assert_eq!((lease.left(), lease.offline(at(7))), (None, Duration::from_secs(2)));
        assert!(!lease.hears(at(10)));
        assert!(!lease.look(|| names(&[]), at(WEEK.as_secs() + 9)));
        assert!(lease.look(|| names(&[]), at(WEEK.as_secs() + 10)));
    }

    #[test]
    fn a_lease_that_is_half_over_says_how_much_is_left() {
        let mut lease = Lease::new(Some(WEEK), Duration::ZERO, at(0));
        let half = WEEK.as_secs() / 2;
        assert_eq!(lease.runs_out(at(half - 1)), None);
        assert_eq!(lease.runs_out(at(half)), Some(WEEK / 2));
        assert_eq!(lease.runs_out(at(WEEK.as_secs() - 1)), Some(Duration::from_secs(1)));
        assert_eq!(lease.runs_out(at(WEEK.as_secs())), None, "it is over");
        lease.hears(at(half));
        assert_eq!(lease.runs_out(at(half + 1)), None);
        assert_eq!(Lease::new(None, Duration::MAX, at(0)).runs_out(at(1)), None);
    }

    #[test]
    fn a_lease_that_a_wrong_clock_ended_is_good_again_once_the_clock_is_set_and_the_other_way_round() {
        let mut lease = Lease::new(Some(WEEK), 60 * WEEK, at(0));
        assert_eq!(lease.left(), Some(&names(&[])), "the clock was a year ahead");
        assert!(lease.correct(WEEK / 2, || unreachable!("it is not over"), at(9)));
        assert_eq!((lease.left(), lease.offline(at(10))), (None, WEEK / 2 + Duration::from_secs(10)));
        assert!(!lease.correct(WEEK / 2, || unreachable!("it is not over"), at(9)), "nothing new");
        assert!(lease.correct(2 * WEEK, || names(&["a"]), at(10)), "the clock was behind");
        assert_eq!(lease.left(), Some(&names(&["a"])));
        assert!(!Lease::new(None, WEEK, at(0)).correct(9 * WEEK, || unreachable!("it never ends"), at(1)));
    }

    #[test]
    fn what_passed_before_a_restart_counts_and_a_lease_without_limit_never_ends() {
        let mut lease = Lease::new(Some(WEEK), WEEK - Duration::from_secs(10), at(0));
        assert!(!lease.look(|| names(&[]), at(9)));
        assert!(lease.look(|| names(&[]), at(10)));
        let mut endless = Lease::new(None, Duration::MAX, at(0));
        assert!(!endless.look(|| names(&[]), at(1)) && endless.left().is_none());
    }
}
