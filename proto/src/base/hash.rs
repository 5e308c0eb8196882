//! Hash tables for keys that the mesh itself hands out: addresses, numbers of nodes and services.
//!
//! What is in such a table comes from the coordinator's map, so that no stranger can fill it with keys that collide, and
//! the standard library's guard against that (SipHash, 20 ns for a word) buys nothing. Never for keys that strangers
//! choose.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A hash table for keys of our own.
pub(crate) type OwnMap<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// Mixes words by multiplication, all bits of the result depending on all of the key's.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Mixer(u64);

/// The golden ratio's fraction, odd: neighbouring keys end far apart (Knuth, vol. 3, 6.4).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Mixer {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(29) ^ word).wrapping_mul(GOLDEN);
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        // A product's low bits depend on the low bits of the key alone; one more round brings the high ones down.
        let folded = (self.0 ^ self.0 >> 32).wrapping_mul(GOLDEN);
        folded ^ folded >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::hash::{BuildHasher, Hash};

    fn hash<T: Hash>(value: T) -> u64 {
        BuildHasherDefault::<Mixer>::default().hash_one(value)
    }

    /// Counts the values of 12 bits at a place of the hashes of keys that differ little.
    fn spread(shift: u32, keys: impl Iterator<Item = u64>) -> usize {
        keys.map(|h| h >> shift & 0xfff).collect::<BTreeSet<_>>().len()
    }

    #[test]
    fn keys_that_differ_little_are_spread_at_both_ends_of_the_hash() {
        // 4,096 keys thrown at 4,096 places by chance leave 37 % of them empty.
        for shift in [0, 52] {
            for step in [1_u32, 256, 65_536] {
                let places = spread(shift, (0..4096).map(|i| hash(0x0a00_0000 + i * step)));
                assert!(places > 2300, "{places} places for addresses {step} apart, bits from {shift}");
            }
            let pairs = (0..64_u32).flat_map(|a| (0..64_u32).map(move |b| hash((a, b))));
            assert!(spread(shift, pairs) > 2300, "pairs, bits from {shift}");
        }
    }
}
