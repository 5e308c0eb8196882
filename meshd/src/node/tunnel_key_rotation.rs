//! How a node changes its tunnel key without losing a packet.
//!
//! ```text
//!   new key made ─▶ both are answered; calls go out by the former ─▶ the record with both is known to all
//!      ─ half of the overlap ─▶ calls go out by the new one ─ the other half ─▶ the former is forgotten
//! ```
//! Established tunnels go on until a newer one hears the peer. Nothing moves on before the coordinator has the record:
//! a node that cannot tell its peers keeps answering to the key that they know. A peer that is itself out of touch for
//! less than half of the overlap notices nothing.

use std::time::Duration;

use mesh_proto::base::id::TunnelKey;
use tokio::time::Instant;

/// Returns the age at which a key is changed: up to a tenth before the given one, so that nodes that joined together do
/// not all change theirs together.
pub(crate) fn due(rotate: Duration, key: &TunnelKey) -> Duration {
    rotate - rotate.mul_f64(f64::from(key.0[0]) / 2550.0)
}

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
pub(crate) enum RotationStep {
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
    pub(crate) fn step(&mut self, sequence: u64, overlap: Duration, now: Instant) -> RotationStep {
        if sequence < self.sequence {
            return RotationStep::Wait;
        }
        let since = now.saturating_duration_since(*self.known.get_or_insert(now));
        if since >= overlap {
            RotationStep::Finish
        } else if self.calls_by_former && since >= overlap / 2 {
            self.calls_by_former = false;
            RotationStep::CallByPresent
        } else {
            RotationStep::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_age_are_changed_at_different_times_and_none_late() {
        let month = Duration::from_secs(30 * 86_400);
        let at = |byte| due(month, &TunnelKey([byte; 32]));
        assert_eq!(at(0), month);
        assert!(at(100) < at(99) && at(255) >= month.mul_f64(0.89) && at(255) < month.mul_f64(0.91));
    }

    #[tokio::test]
    async fn nothing_moves_on_before_the_record_is_known() {
        let overlap = Duration::from_secs(180);
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut rotation = Rotation::begun(5);
        assert_eq!(rotation.step(4, overlap, at(0)), RotationStep::Wait);
        assert_eq!(rotation.step(4, overlap, at(100_000)), RotationStep::Wait, "a coordinator gone for a day");
        assert_eq!(rotation.step(5, overlap, at(100_000)), RotationStep::Wait);
        assert_eq!(rotation.step(5, overlap, at(100_089)), RotationStep::Wait);
        assert_eq!(rotation.step(6, overlap, at(100_090)), RotationStep::CallByPresent);
        assert_eq!(rotation.step(6, overlap, at(100_179)), RotationStep::Wait);
        assert_eq!(rotation.step(6, overlap, at(100_180)), RotationStep::Finish);
    }
}
