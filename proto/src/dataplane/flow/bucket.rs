//! Eight entries that share a lock-free version: what readers may see and what a newcomer may replace.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{Flow, Key, WAYS, WORDS};
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;

/// Aligned, so that an entry is one line of the cache and not two.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Bucket {
    /// Even: at rest. Odd: a writer is in it.
    pub(super) version: AtomicU64,
    pub(super) ways: [[AtomicU64; WORDS]; WAYS],
}

impl Bucket {
    pub(super) fn way(&self, [addresses, ports]: [u64; 2]) -> Option<usize> {
        let is = |way: &[AtomicU64; WORDS]| {
            way[0].load(Ordering::Relaxed) == addresses && way[1].load(Ordering::Relaxed) == ports
        };
        self.ways.iter().position(is)
    }

    pub(super) fn read(&self, way: usize) -> [u64; WORDS] {
        std::array::from_fn(|i| self.ways[way][i].load(Ordering::Relaxed))
    }

    pub(super) fn store(&self, way: usize, words: &[u64; WORDS]) {
        for (place, word) in self.ways[way].iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
    }

    /// Returns the way that a new flow may take: an empty or expired one, or the one that is worth least.
    pub(super) fn cheapest(&self, now: Timestamp) -> Option<usize> {
        let worth = |way: usize| {
            let words = self.read(way);
            let Some(key) = Key::from_words(&words) else {
                return Some(None);
            };
            let flow = Flow::from_words(&words, key.tuple.protocol);
            if flow.alive(now) { flow.worth(now).map(Some) } else { Some(None) }
        };
        let candidates = (0..WAYS).filter_map(|way| worth(way).map(|w| (w, way)));
        candidates.min().map(|(_, way)| way)
    }

    /// Returns the oldest way of a peer other than the newcomer's that holds at least half of the bucket.
    pub(super) fn excess(&self, newcomer: Option<NodeId>) -> Option<usize> {
        let flows: [Option<Flow>; WAYS] = std::array::from_fn(|way| {
            let words = self.read(way);
            Key::from_words(&words).map(|key| Flow::from_words(&words, key.tuple.protocol))
        });
        let held = |remote| flows.iter().flatten().filter(|flow| flow.remote == remote).count();
        let too_many = |flow: &Flow| flow.remote != newcomer && held(flow.remote) >= WAYS / 2;
        let candidates = (0..WAYS).filter_map(|way| flows[way].filter(too_many).map(|flow| (flow.last_seen, way)));
        candidates.min().map(|(_, way)| way)
    }

    /// Runs `change` while no other writer is in the bucket. It copies a few words and never waits, so
    /// a second writer spins for that long at most.
    pub(super) fn write<T>(&self, change: impl FnOnce() -> T) -> T {
        loop {
            let version = self.version.load(Ordering::Relaxed) & !1;
            let claimed =
                self.version.compare_exchange_weak(version, version + 1, Ordering::Acquire, Ordering::Relaxed);
            if claimed.is_err() {
                std::hint::spin_loop();
                continue;
            }
            fence(Ordering::Release);
            let result = change();
            self.version.store(version + 2, Ordering::Release);
            return result;
        }
    }
}
