//! The words of the flow table: eight places to a bucket, read without a lock.
//!
//! ```text
//! bucket, nine lines of the cache:   version, 8 tags of 16 bits, 5 words to spare
//! place 0 … 7, a line each:          key, key, translation, translation, revision, seen, packets, one to spare
//! ```
//!
//! A reader looks at the tags and reads the one place that may be meant; a version that changed meanwhile tells it to
//! read again. A writer claims the bucket for the length of a copy. Of a place, the words seen and packets are altered
//! without a claim; their lower 16 bits are the place's generation, which changes with whoever has the place, so that a
//! compare and swap of one who came late does not touch its next owner.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Places of a bucket.
pub(super) const WAYS: usize = 8;
/// Words of a place.
pub(super) const WORDS: usize = 8;
/// Bytes that a place takes, with its part of the bucket's head.
pub(super) const PLACE_BYTES: usize = BUCKET * 8 / WAYS;
/// The word that holds the revision.
pub(super) const REVISION: usize = 4;
/// The first of the words that are altered without a claim; then come packets.
pub(super) const SEEN: usize = 5;
pub(super) const PACKETS: usize = 6;
/// Bits of a counted word below the count.
pub(super) const GENERATION_BITS: u32 = 16;

const HEAD: usize = 8;
const TAGS: usize = 1;
const BUCKET: usize = HEAD + WAYS * WORDS;
const LINE: usize = 64;
/// One in each of the four tags of a word, and the highest bit of each.
const ONES: u64 = 0x0001_0001_0001_0001;
const HIGHS: u64 = 0x8000_8000_8000_8000;

/// The words of one place.
pub(super) type Words = [u64; WORDS];

/// All buckets, in one piece of zeroed memory, of which the kernel gives what is used.
#[derive(Debug)]
pub(super) struct Buckets {
    words: Box<[AtomicU64]>,
    /// Where the first line of the cache begins.
    first: usize,
    count: usize,
}

/// One bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket<'a>(&'a [AtomicU64; BUCKET]);

/// A bucket that no other writer may change, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    bucket: Bucket<'a>,
    version: u64,
}

impl Buckets {
    pub(super) fn new(count: usize) -> Self {
        // Zeroes that become atomics where they lie: to write each would take all of the memory at once.
        let zeroes = vec![0_u64; count * BUCKET + LINE / 8 - 1];
        let words: Vec<AtomicU64> = zeroes.into_iter().map(AtomicU64::new).collect();
        let first = words.as_ptr().align_offset(LINE).min(LINE / 8 - 1);
        Self { words: words.into_boxed_slice(), first, count }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    pub(super) fn get(&self, index: usize) -> Bucket<'_> {
        Bucket(&self.words[self.first..].as_chunks().0[index])
    }
}

impl<'a> Bucket<'a> {
    fn version(self) -> &'a AtomicU64 {
        &self.0[0]
    }

    fn tags(self) -> [u64; 2] {
        [self.0[TAGS].load(Ordering::Relaxed), self.0[TAGS + 1].load(Ordering::Relaxed)]
    }

    /// Says whether it was claimed before.
    #[cfg(test)]
    pub(super) fn is_written(self) -> bool {
        self.version().load(Ordering::Relaxed) > 0
    }

    /// Returns the words of a place.
    pub(super) fn place(self, way: usize) -> &'a [AtomicU64; WORDS] {
        &self.0[HEAD..].as_chunks().0[way]
    }

    fn read(self, way: usize) -> Words {
        let place = self.place(way);
        std::array::from_fn(|i| place[i].load(Ordering::Relaxed))
    }

    fn way(self, [addresses, ports]: [u64; 2], tag: u16) -> Option<usize> {
        let is = |way: &usize| {
            let place = self.place(*way);
            place[0].load(Ordering::Relaxed) == addresses && place[1].load(Ordering::Relaxed) == ports
        };
        Tagged::new(self.tags(), tag).find(is)
    }

    /// Looks without a claim until no writer came between. A writer copies a few words and never waits.
    fn unchanged<T>(self, look: impl Fn() -> T) -> T {
        loop {
            let before = self.version().load(Ordering::Acquire);
            if before & 1 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let seen = look();
            fence(Ordering::Acquire);
            if self.version().load(Ordering::Relaxed) == before {
                return seen;
            }
        }
    }

    /// Finds the place of a key, and what is in it.
    pub(super) fn find(self, key: [u64; 2], tag: u16) -> Option<(usize, Words)> {
        self.unchanged(|| self.way(key, tag).map(|way| (way, self.read(way))))
    }

    /// Returns what is in a place: of one flow, all of it.
    pub(super) fn whole(self, way: usize) -> Words {
        self.unchanged(|| self.read(way))
    }

    /// Says whether a place is empty, as far as one can without a claim.
    pub(super) fn is_empty(self, way: usize) -> bool {
        self.tags()[way / 4] >> (way % 4 * 16) & 0xffff == 0
    }

    /// Waits until no other writer is in the bucket. Whoever claims two takes the lower one first.
    pub(super) fn claim(self) -> Claim<'a> {
        loop {
            let version = self.version().load(Ordering::Relaxed) & !1;
            let claimed =
                self.version().compare_exchange_weak(version, version + 1, Ordering::Acquire, Ordering::Relaxed);
            if claimed.is_ok() {
                fence(Ordering::Release);
                return Claim { bucket: self, version };
            }
            std::hint::spin_loop();
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.bucket.version().store(self.version + 2, Ordering::Release);
    }
}

impl Claim<'_> {
    /// Finds the place of a key.
    pub(super) fn way(&self, key: [u64; 2], tag: u16) -> Option<usize> {
        self.bucket.way(key, tag)
    }

    /// Returns an empty place, and how many there are.
    pub(super) fn room(&self) -> Option<(usize, usize)> {
        let mut empty = Tagged::new(self.bucket.tags(), 0);
        let first = empty.next()?;
        Some((first, 1 + empty.count()))
    }

    /// Returns what is in a place.
    pub(super) fn read(&self, way: usize) -> Words {
        self.bucket.read(way)
    }

    /// Gives a place to a new owner: the counted words have their counts above the generation, which is added here and
    /// returned.
    pub(super) fn store(&self, way: usize, tag: u16, words: Words) -> u16 {
        let place = self.bucket.place(way);
        let generation = (place[SEEN].load(Ordering::Relaxed) as u16).wrapping_add(1);
        for (i, (place, word)) in place.iter().zip(words).enumerate() {
            let counted = if i >= SEEN { u64::from(generation) } else { 0 };
            place.store(word | counted, Ordering::Relaxed);
        }
        let (tags, shift) = (&self.bucket.0[TAGS + way / 4], way % 4 * 16);
        let others = tags.load(Ordering::Relaxed) & !(0xffff << shift);
        tags.store(others | u64::from(tag) << shift, Ordering::Relaxed);
        generation
    }

    /// Empties a place.
    pub(super) fn clear(&self, way: usize) {
        self.store(way, 0, [0; WORDS]);
    }

    /// Sets the revision of a place.
    pub(super) fn stamp(&self, way: usize, revision: u64) {
        self.bucket.place(way)[REVISION].store(revision, Ordering::Relaxed);
    }
}

/// Ways whose tag is the one looked for; now and then one more, so that the key decides.
struct Tagged {
    matches: [u64; 2],
}

impl Tagged {
    fn new(tags: [u64; 2], tag: u16) -> Self {
        let zero_lanes = |word: u64| {
            let differs = word ^ (u64::from(tag) * ONES);
            // Exact: no borrow goes from lane to lane.
            let low = (differs & !HIGHS) + (HIGHS - ONES);
            !(low | differs) & HIGHS
        };
        Self { matches: tags.map(zero_lanes) }
    }
}

impl Iterator for Tagged {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let half = self.matches.iter().position(|&half| half != 0)?;
        let lane = self.matches[half].trailing_zeros() as usize / 16;
        self.matches[half] &= self.matches[half] - 1;
        Some(half * 4 + lane)
    }
}

/// Takes another word into a hash: the finaliser of MurmurHash3 (Appleby, public domain).
pub(super) fn mix(hash: u64, word: u64) -> u64 {
    let h = (hash ^ word ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ h >> 33
}

/// Adds to a counted word while it is of that generation; says whether it is. The count stays at its largest value.
pub(super) fn count(word: &AtomicU64, generation: u16, more: u64) -> bool {
    let mut old = word.load(Ordering::Relaxed);
    // Another lane that counted meanwhile got on; there are as many as lanes.
    while old as u16 == generation {
        let sum = (old >> GENERATION_BITS).saturating_add(more).min(u64::MAX >> GENERATION_BITS);
        let new = sum << GENERATION_BITS | u64::from(generation);
        match word.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => old = now,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_find_the_ways_that_have_them_and_no_others() {
        let tag = |n: u64| (n * 40_503 % 7) as u16;
        for n in 0..1000 {
            let ways: [u16; WAYS] = std::array::from_fn(|way| tag(n * 8 + way as u64) << (n % 14));
            let word = |half: usize| (0..4).map(|lane| u64::from(ways[half * 4 + lane]) << (lane * 16)).sum();
            for wanted in ways {
                let found: Vec<usize> = Tagged::new([word(0), word(1)], wanted).collect();
                let expected: Vec<usize> = (0..WAYS).filter(|&way| ways[way] == wanted).collect();
                assert_eq!(found, expected, "{ways:?}");
            }
        }
    }

    #[test]
    fn a_bucket_begins_with_a_line_of_the_cache() {
        let buckets = Buckets::new(64);
        for index in 0..64 {
            assert_eq!(buckets.get(index).0.as_ptr() as usize % LINE, 0);
        }
    }

    #[test]
    fn who_comes_late_counts_nothing_on_the_next_owner() {
        let buckets = Buckets::new(8);
        let bucket = buckets.get(3);
        let first = bucket.claim().store(2, 9, [1; WORDS].map(|word| word << GENERATION_BITS));
        assert!(count(&bucket.place(2)[PACKETS], first, 5));
        let second = bucket.claim().store(2, 9, [1; WORDS].map(|word| word << GENERATION_BITS));
        assert!(!count(&bucket.place(2)[PACKETS], first, 5));
        assert!(count(&bucket.place(2)[PACKETS], second, u64::MAX));
        let words = bucket.whole(2);
        assert_eq!((words[SEEN] >> GENERATION_BITS, words[PACKETS] >> GENERATION_BITS), (1, u64::MAX >> 16));
    }
}
