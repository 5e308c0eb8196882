//! How a node changes its tunnel key without losing a packet.
//!
//! ```text
//!   new key made ─▶ both are answered; calls go out by the former ─▶ the record with both is known to all
//!      ─ a while ─▶ calls go out by the new one ─ the overlap ─▶ the former is forgotten
//! ```
//! Established tunnels go on until a newer one hears the peer. Nothing moves on before the coordinator has the record:
//! a node that cannot tell its peers keeps answering to the key that they know.

use std::time::Duration;

use tokio::time::Instant;

/// How long after the coordinator took the record every peer has it, at most half of the overlap.
const SETTLE: Duration = Duration::from_secs(10);

/// A change of keys that is under way.
#[derive(Debug)]
pub(crate) struct Rotation {
    /// The number of the record that names both keys.
    sequence: u64,
    /// Since when the coordinator has it.
    known: Option<Instant>,
    calls_by_former: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Wait,
    /// Call by the new key from now on.
    CallByPresent,
    /// Forget the former key.
    Finish,
}

impl Rotation {
    /// Both keys are answered, and the record of this number says so.
    pub(crate) fn begun(sequence: u64) -> Self {
        Self { sequence, known: None, calls_by_former: true }
    }

    /// Says what to do, given the number of the record that the coordinator has.
    pub(crate) fn step(&mut self, sequence: u64, overlap: Duration, now: Instant) -> Step {
        if sequence < self.sequence {
            return Step::Wait;
        }
        let since = now.saturating_duration_since(*self.known.get_or_insert(now));
        if since >= overlap {
            Step::Finish
        } else if self.calls_by_former && since >= SETTLE.min(overlap / 2) {
            self.calls_by_former = false;
            Step::CallByPresent
        } else {
            Step::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_moves_on_before_the_record_is_known() {
        let overlap = Duration::from_secs(180);
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut rotation = Rotation::begun(5);
        assert_eq!(rotation.step(4, overlap, at(0)), Step::Wait);
        assert_eq!(rotation.step(4, overlap, at(100_000)), Step::Wait, "a coordinator gone for a day");
        assert_eq!(rotation.step(5, overlap, at(100_000)), Step::Wait);
        assert_eq!(rotation.step(5, overlap, at(100_009)), Step::Wait);
        assert_eq!(rotation.step(6, overlap, at(100_010)), Step::CallByPresent);
        assert_eq!(rotation.step(6, overlap, at(100_179)), Step::Wait);
        assert_eq!(rotation.step(6, overlap, at(100_180)), Step::Finish);
    }
}
