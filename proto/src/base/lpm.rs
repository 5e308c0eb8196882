//! Longest-prefix match: which of many prefixes of the mesh range owns an address.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::base::hash::OwnMap;

/// A table of prefixes. A look-up costs one probe per distinct prefix length, longest first;
/// a mesh has few lengths (its blocks' and /32).
#[derive(Debug, Clone)]
pub struct PrefixTable<T> {
    by_length: Vec<(u8, OwnMap<u32, T>)>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self { by_length: Vec::new() }
    }
}

impl<T> PrefixTable<T> {
    /// Adds a prefix; a prefix that is there already keeps its first owner. Says whether it was added.
    pub fn insert(&mut self, prefix: Ipv4Net, owner: T) -> bool {
        let length = prefix.prefix_len();
        let place = match self.by_length.binary_search_by(|(l, _)| length.cmp(l)) {
            Ok(place) => place,
            Err(place) => {
                self.by_length.insert(place, (length, OwnMap::default()));
                place
            }
        };
        match self.by_length[place].1.entry(u32::from(prefix.network())) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(owner);
                true
            }
        }
    }

    /// Returns the owner of the longest prefix that contains the address.
    pub fn find(&self, address: Ipv4Addr) -> Option<&T> {
        let address = u32::from(address);
        self.by_length.iter().find_map(|(length, owners)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
            owners.get(&(address & mask))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of our own, so that a failure replays: xorshift64*.
    struct Seeded(u64);
    impl Seeded {
        fn next(&mut self) -> u32 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
        }
    }

    #[test]
    fn a_hundred_thousand_queries_agree_with_a_naive_search() {
        let mut random = Seeded(0x6d65_7368);
        for _ in 0..20 {
            let mut table = PrefixTable::default();
            let mut naive: Vec<(Ipv4Net, usize)> = Vec::new();
            for owner in 0..200 {
                let address = (random.next() & 0x00ff_ffff) | 0xf100_0000;
                let prefix = Ipv4Net::new_assert(address.into(), (random.next() % 33) as u8).trunc();
                if table.insert(prefix, owner) {
                    naive.push((prefix, owner));
                }
            }
            for _ in 0..5000 {
                let near = naive[random.next() as usize % naive.len()].0;
                let address = match random.next() % 3 {
                    0 => Ipv4Addr::from(random.next()),
                    _ => Ipv4Addr::from(u32::from(near.network()) | (random.next() & u32::from(near.hostmask()))),
                };
                let best = naive.iter().filter(|(p, _)| p.contains(&address)).max_by_key(|(p, _)| p.prefix_len());
                assert_eq!(table.find(address), best.map(|(_, owner)| owner), "{address}");
            }
        }
    }

    #[test]
    fn the_first_owner_of_a_prefix_keeps_it() {
        let mut table = PrefixTable::default();
        let net = Ipv4Net::new_assert(Ipv4Addr::new(241, 2, 0, 0), 24);
        assert!(table.insert(net, 1));
        assert!(!table.insert(net, 2));
        assert_eq!(table.find(Ipv4Addr::new(241, 2, 0, 9)), Some(&1));
    }
}
