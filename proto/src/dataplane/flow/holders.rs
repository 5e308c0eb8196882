//! Who holds how many flows.
//!
//! Two rows of counters, in each of which a holder has one by its hash: the lower of the two counts. It is never below
//! what the holder has, and above it only where two others share both counters, one pair in 67 million.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::base::id::NodeId;

use super::bucket::mix;

/// Counters of a row.
const COLUMNS: usize = 1 << 13;

/// Whose a flow is: its opener, as this node can tell openers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// A peer, for all that is behind it.
    Peer(NodeId),
    /// An address of this node: one of its pods, or its own.
    Own(Ipv4Addr),
}

/// The counts of all holders.
#[derive(Debug)]
pub(super) struct Holders {
    rows: [Box<[AtomicU32]>; 2],
    seed: u64,
}

impl Holders {
    pub(super) fn new(seed: u64) -> Self {
        let row = || (0..COLUMNS).map(|_| AtomicU32::new(0)).collect();
        Self { rows: [row(), row()], seed }
    }

    pub(super) fn add(&self, holder: Holder) {
        for count in self.each(holder) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn subtract(&self, holder: Holder) {
        for count in self.each(holder) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns how many flows a holder has, or a little more.
    pub(super) fn count(&self, holder: Holder) -> u32 {
        let [one, other] = self.each(holder).map(|count| count.load(Ordering::Relaxed));
        one.min(other)
    }

    fn each(&self, holder: Holder) -> [&AtomicU32; 2] {
        let word = match holder {
            Holder::Peer(id) => 1 << 32 | u64::from(id.0),
            Holder::Own(address) => u64::from(u32::from(address)),
        };
        let hash = mix(self.seed ^ 0x686f_6c64, word);
        let columns = [hash as usize, (hash >> 32) as usize].map(|part| part % COLUMNS);
        [&self.rows[0][columns[0]], &self.rows[1][columns[1]]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_is_counted_alone_beside_ten_thousand_others() {
        let holders = Holders::new(7);
        let many: Vec<Holder> =
            (0..5000).flat_map(|n| [Holder::Peer(NodeId(n)), Holder::Own(Ipv4Addr::from(0x0a08_0000 + n))]).collect();
        (0..100_000).for_each(|_| holders.add(many[0]));
        many.iter().for_each(|&holder| holders.add(holder));
        let taken_for_the_largest = many[1..].iter().filter(|&&holder| holders.count(holder) > 100_000).count();
        assert_eq!((holders.count(many[0]), taken_for_the_largest), (100_001, 0));
        (0..100_000).for_each(|_| holders.subtract(many[0]));
        many.iter().for_each(|&holder| holders.subtract(holder));
        assert!(many.iter().all(|&holder| holders.count(holder) == 0));
    }
}
