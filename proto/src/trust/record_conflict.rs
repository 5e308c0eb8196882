//! What a node makes of a record of its own key that the coordinator knows and that it did not send.
//!
//! ```text
//!   refused, the coordinator has record N ─┬─ N is ours, or ours is newer by now ─▶ nothing
//!                                          ├─ nothing of ours was taken yet      ─▶ the past of this machine: sign above N
//!                                          └─ ours was taken, and then came N    ─▶ a second machine has our key
//! ```
//! A machine that was brought back from a snapshot forgot what it signed since. Of numbers nobody is locked out: it signs
//! above what the coordinator has, which its own key signed, or it would not be believed. Two machines would do so in turn
//! for ever: hence a bound, and the one whose record was overtaken knows.

use std::time::Duration;

use crate::base::clock::Timestamp;

/// Most times that a node signs above a record that it does not know.
pub const MOST: usize = 3;
/// Within this time.
pub const WITHIN: Duration = Duration::from_secs(600);

/// What follows from a record of the node's own key that the coordinator has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// None: the node sends, or has sent, a newer one.
    Settled,
    /// The next record is to have a number above this one.
    SignAbove(u64),
    /// It was signed above often enough; later perhaps.
    TooOften,
    /// Another machine signs with this node's key, and signed this number.
    SecondMachine(u64),
}

/// What one process has been told of its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordConflicts {
    /// The highest number that a coordinator has taken from this process.
    taken: Option<u64>,
    /// When this process signed above another record.
    signed: [Option<Timestamp>; MOST],
}

impl RecordConflicts {
    /// Takes note that a coordinator has taken a record of this process.
    pub fn taken(&mut self, sequence: u64) {
        self.taken = self.taken.max(Some(sequence));
    }

    /// Judges the number of a record that this node's key signed, and that a coordinator has. `own` is the number of the
    /// newest one of this process; `is_own` says whether it is that one.
    pub fn judge(&mut self, stored: u64, own: u64, is_own: bool, now: Timestamp) -> Conflict {
        if is_own || stored < own {
            return Conflict::Settled;
        }
        if self.taken.is_some_and(|taken| stored > taken) {
            return Conflict::SecondMachine(stored);
        }
        let free = |at: &&mut Option<Timestamp>| at.is_none_or(|at| now.since(at) >= WITHIN);
        let Some(place) = self.signed.iter_mut().find(free) else { return Conflict::TooOften };
        *place = Some(now);
        Conflict::SignAbove(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn a_machine_of_the_past_signs_above_what_it_forgot() {
        let mut conflicts = RecordConflicts::default();
        assert_eq!(conflicts.judge(20, 15, false, at(1)), Conflict::SignAbove(20));
        assert_eq!(conflicts.judge(20, 22, false, at(1)), Conflict::Settled, "it has signed since");
        assert_eq!(conflicts.judge(30, 30, false, at(2)), Conflict::SignAbove(30), "other facts under one number");
        assert_eq!(conflicts.judge(32, 32, true, at(2)), Conflict::Settled);
    }

    #[test]
    fn three_times_in_ten_minutes_and_no_more() {
        let mut conflicts = RecordConflicts::default();
        for second in 0..3 {
            assert_eq!(conflicts.judge(20, 15, false, at(second)), Conflict::SignAbove(20));
        }
        for second in [3, 100, 599] {
            assert_eq!(conflicts.judge(20, 15, false, at(second)), Conflict::TooOften);
        }
        assert_eq!(conflicts.judge(20, 15, false, at(600)), Conflict::SignAbove(20));
        assert_eq!(conflicts.judge(20, 15, false, at(600)), Conflict::TooOften, "the second was a second later");
    }

    #[test]
    fn what_comes_after_a_record_that_was_taken_is_a_second_machines() {
        let mut conflicts = RecordConflicts::default();
        conflicts.taken(15);
        conflicts.taken(12);
        assert_eq!(conflicts.judge(15, 15, true, at(1)), Conflict::Settled);
        assert_eq!(conflicts.judge(16, 15, false, at(1)), Conflict::SecondMachine(16));
        assert_eq!(conflicts.judge(16, 17, false, at(1)), Conflict::Settled, "ours is on its way");
        assert_eq!(conflicts.judge(17, 17, false, at(1)), Conflict::SecondMachine(17), "it overtook ours on its way");
    }
}
