//! How much room there is for flows, and what a new one may take the place of.
//!
//! Shares count only when nothing is free. Then the cheapest flow of whoever holds most goes: what is over, then what
//! is half-open and silent for 10 s, then what is half-open, then what was silent longest. A conversation that was heard
//! of in the last minute goes for those who hold less, never for another of its own holder's: that one takes a cheap flow
//! of somebody else, and is refused if there is none.
//!
//! Bound per new flow: one bucket is swept of what expired, eight when the table is nearly full; when it is full, 32
//! buckets are looked at, and one flow goes. The look begins where the last one ended, so that who holds a tenth of
//! the table is missed once in 700,000 times; in a table of 32 buckets or fewer, never.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::base::clock::Timestamp;

use super::bucket::{PLACE_BYTES, WAYS};
use super::record::RECORD_BYTES;
use super::{Flow, FlowSlot, FlowState, FlowTable, Holder, Key, PLACES_PER_FLOW};

/// Most flows of a node, however much memory it has: 36 MiB, and 28 MiB of file.
pub const MAX_FLOWS: usize = 1 << 17;
/// Flows of a node that has hardly any memory.
pub const MIN_FLOWS: usize = 1 << 13;
/// The part of the memory that flows may take, with their file, which lies in memory too.
const SHARE: u64 = 8;

/// Buckets looked at for a flow that may go.
const LOOKED_AT: usize = 32;
/// A conversation heard of this recently goes only for who holds less.
const BUSY: Duration = Duration::from_secs(60);
/// What is half-open and was silent for so long is cheap.
const SILENT: Duration = Duration::from_secs(10);

const _: () = assert!(MAX_FLOWS * PLACES_PER_FLOW * PLACE_BYTES <= 64 << 20);

/// What a flow is worth, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    Over,
    Cheap,
    Begun,
    Conversation,
}

/// A flow that may have to go.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Flows that its holder has.
    held: u32,
    rank: (Worth, Timestamp),
    place: FlowSlot,
    key: Key,
    flow: Flow,
}

/// Returns how many flows a node of so much memory, in bytes, remembers: a power of two.
pub fn flows_for(memory: u64) -> usize {
    let flow = (PLACES_PER_FLOW * (PLACE_BYTES + RECORD_BYTES)) as u64;
    let fit = usize::try_from(memory / SHARE / flow).unwrap_or(MAX_FLOWS).clamp(MIN_FLOWS, MAX_FLOWS);
    1 << fit.ilog2()
}

impl Flow {
    fn worth(&self, now: Timestamp) -> Worth {
        match self.state {
            FlowState::Reset | FlowState::Closing => Worth::Over,
            FlowState::HalfOpen if now.since(self.last_seen) >= SILENT => Worth::Cheap,
            FlowState::HalfOpen => Worth::Begun,
            FlowState::Open => Worth::Conversation,
        }
    }
}

impl Candidate {
    fn is_busy(&self, now: Timestamp) -> bool {
        let (worth, last_seen) = self.rank;
        worth == Worth::Conversation && now.since(last_seen) <= BUSY
    }
}

impl FlowTable {
    /// Makes room in a full table. Says whether there is any.
    pub(super) fn displace(&self, newcomer: Holder, now: Timestamp, forgotten: &mut dyn FnMut(FlowSlot)) -> bool {
        self.displace_of(self.next_buckets(LOOKED_AT), newcomer, now, forgotten)
    }

    /// Makes room in some buckets. Says whether there is any.
    pub(super) fn displace_of(
        &self,
        buckets: impl Iterator<Item = usize>,
        newcomer: Holder,
        now: Timestamp,
        forgotten: &mut dyn FnMut(FlowSlot),
    ) -> bool {
        let (mut largest, mut cheapest) = (None::<Candidate>, None::<Candidate>);
        for slot in buckets.flat_map(|index| (0..WAYS).map(move |way| index * WAYS + way)) {
            let Some((place, key, flow)) = self.at(slot) else { continue };
            if !flow.alive(now) {
                self.forget(place, key, &flow, forgotten);
                return true;
            }
            let held = self.holders.count(key.holder(&flow));
            let one = Candidate { held, rank: (flow.worth(now), flow.last_seen), place, key, flow };
            let goes_first = |other: Candidate| (held, other.rank) > (other.held, one.rank);
            if largest.is_none_or(goes_first) {
                largest = Some(one);
            }
            if one.rank.0 <= Worth::Cheap && cheapest.is_none_or(|other| one.rank < other.rank) {
                cheapest = Some(one);
            }
        }
        let own = self.holders.count(newcomer);
        let goes = largest.filter(|one| !one.is_busy(now) || one.held > own).or(cheapest);
        self.lost.store(now.as_millis(), Ordering::Relaxed);
        if let Some(Candidate { place, key, flow, .. }) = goes {
            self.displaced.fetch_add(1, Ordering::Relaxed);
            self.forget(place, key, &flow, forgotten);
        }
        goes.is_some()
    }

    /// Forgets both directions of a flow.
    fn forget(&self, place: FlowSlot, key: Key, flow: &Flow, forgotten: &mut dyn FnMut(FlowSlot)) {
        if self.vacate(place) {
            forgotten(place);
            self.remove(key.answer(flow), key.tuple.reverse()).into_iter().for_each(forgotten);
        }
    }

    /// Returns the next buckets to look at, each once.
    pub(super) fn next_buckets(&self, count: usize) -> impl Iterator<Item = usize> {
        let all = self.buckets.count();
        let first = self.hand.fetch_add(count, Ordering::Relaxed);
        (0..count.min(all)).map(move |i| first.wrapping_add(i) % all)
    }
}
