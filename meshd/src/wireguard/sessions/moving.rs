//! An address changed, this host's or a peer's: what is said at once, so that nobody sends into the void for long.
//!
//! ```text
//! ours     every open tunnel says an empty word from the new address, now and a few times more: whoever hears it sends
//!          there from then on (WireGuard's roaming), whether or not a coordinator lives; the others call again
//! a peer's where a map says that it is not where we send to, it is called at all addresses that the map tells
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;

use crate::wireguard::timing::GREETING;

/// When it is said, counted from the change: a word may be lost, and the first may leave before new routes stand.
const WORDS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];
/// What is still to be said: at most one word and one call per tunnel.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// When this host moved last, and how many rounds of words are over.
    since: Option<(Timestamp, usize)>,
    /// Tunnels that have not had their word in this round.
    left: Vec<u32>,
    /// Tunnels whose peer is to be called.
    calls: BTreeSet<u32>,
}

impl Moving {
    /// This host moved: words are due from now on.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.left.clear();
        self.since = Some((now, 0));
    }

    /// Begins the next round of words, if it is due. Returns when this host moved, for who is to be left out.
    pub(super) fn begin_round(&mut self, now: Timestamp) -> Option<Timestamp> {
        let (at, round) = self.since.filter(|_| self.left.is_empty())?;
        let Some(&after) = WORDS.get(round) else {
            self.since = None;
            return None;
        };
        let is_due = at + after <= now;
        if is_due {
            self.since = Some((at, round + 1));
        }
        is_due.then_some(at)
    }

    /// Lets a tunnel have its word in this round.
    pub(super) fn add(&mut self, number: u32) {
        self.left.push(number);
    }

    /// Returns the next tunnel whose word is due.
    pub(super) fn next_word(&mut self) -> Option<u32> {
        self.left.pop()
    }

    /// Returns the next tunnel whose peer is to be called.
    pub(super) fn next_call(&mut self) -> Option<u32> {
        self.calls.pop_first()
    }

    /// Takes note that a tunnel leads to where its peer is no more.
    pub(super) fn displace(&mut self, number: u32) {
        self.calls.insert(number);
    }

    pub(super) fn retain(&mut self, is_open: impl Fn(u32) -> bool) {
        self.left.retain(|&number| is_open(number));
        self.calls.retain(|&number| is_open(number));
    }

    pub(super) fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let words = match self.since {
            Some(_) if !self.left.is_empty() => Some(now),
            Some((at, round)) => WORDS.get(round).map(|&after| at + after),
            None => None,
        };
        let calls = (!self.calls.is_empty()).then(|| now + GREETING);
        words.into_iter().chain(calls).min()
    }
}
