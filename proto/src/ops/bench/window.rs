//! How many frames of a stream may be on the way: more while they arrive in time, fewer when they are lost or wait.
//!
//! Loss alone would fill the largest queue on the way before it says anything, and real traffic waits in the same
//! queue; so a round trip that has become long counts as well.

use std::time::Duration;

/// Frames at the start: one burst.
const FIRST: u32 = 32;
/// The least that it shrinks to.
const LEAST: u32 = 4;
/// A queue that makes the round trip longer by this is long enough. Less is the scheduling of busy machines.
const QUEUE: Duration = Duration::from_millis(2);

/// A window, in frames.
#[derive(Debug)]
pub(super) struct Window {
    size: u32,
    most: u32,
    /// Whether it still doubles with every round.
    opening: bool,
    /// Frames that arrived since it last grew, once it does not double any more.
    arrived: u32,
    /// It shrinks no more until this frame has arrived: what is lost before was sent before it shrank.
    until: u32,
    /// The shortest round trip.
    shortest: Duration,
}

impl Window {
    pub(super) fn new(most: u32) -> Self {
        let most = most.max(LEAST);
        Self { size: FIRST.min(most), most, opening: true, arrived: 0, until: 0, shortest: Duration::MAX }
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Returns the shortest round trip so far.
    pub(super) fn shortest(&self) -> Option<Duration> {
        (self.shortest < Duration::MAX).then_some(self.shortest)
    }

    /// Takes a report into account: how many more frames arrived and are lost, how long the last took to be reported,
    /// up to which frame all have arrived or are lost, and which is sent next.
    pub(super) fn handle(&mut self, arrived: u32, lost: u32, took: Duration, done: u32, next: u32) {
        self.shortest = self.shortest.min(took);
        let waits = took > self.shortest.saturating_mul(2) + QUEUE;
        if lost > 0 || waits {
            self.opening = false;
            self.arrived = 0;
            if done >= self.until {
                let less = if lost > 0 { self.size.saturating_mul(3) / 10 } else { self.size / 8 };
                self.size = (self.size - less).max(LEAST.min(self.most));
                self.until = next;
            }
            return;
        }
        if self.opening {
            self.size = self.size.saturating_add(arrived);
        } else {
            self.arrived = self.arrived.saturating_add(arrived);
            if self.arrived >= self.size {
                self.arrived = 0;
                self.size = self.size.saturating_add((self.size / 32).max(1));
            }
        }
        self.size = self.size.min(self.most);
    }
}
