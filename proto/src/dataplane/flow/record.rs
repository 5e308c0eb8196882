//! Flows as a file keeps them, so that they outlive the process.
//!
//! ```text
//! head, 64 bytes       "MESHFLOW", version, 56, sum
//! record of a slot     key (16), translation and peer (16), revision (8), packets · opener · state (8), sum (8)
//! ```
//!
//! A file without a head is of the first version: records of 72 bytes with the time and a count of bytes. A record does not
//! say where it was, so that a table of any size takes it; its packets may lag behind.

use super::bucket::{GENERATION_BITS, PACKETS, SEEN, WORDS, Words};
use super::{BELOW_TIME, Flow, FlowTable, Key, OPENED, UNJUDGED};
use crate::base::clock::Timestamp;

/// Bytes of the head of a file.
pub const HEAD_BYTES: usize = 64;
/// Bytes of a record.
pub const RECORD_BYTES: usize = (RECORD_WORDS + 1) * 8;
/// Bytes of the largest record that was ever written.
pub const MAX_RECORD_BYTES: usize = FIRST_RECORD_BYTES;

const RECORD_WORDS: usize = 6;
const FIRST_RECORD_BYTES: usize = (WORDS + 1) * 8;
const MAGIC: u64 = u64::from_le_bytes(*b"MESHFLOW");
const VERSION: u64 = 2;
/// Most times that a record is written again because its place changed meanwhile; who changed it writes it, too.
const MAX_WRITES: usize = 4;

/// How the records of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// That of the first version.
    First,
    /// The present one.
    Present,
}

impl Layout {
    /// Reads the head of a file; none if a version that we do not know wrote it. A file that ends before may be given with
    /// zeroes behind it.
    pub fn of(head: &[u8; HEAD_BYTES]) -> Option<Self> {
        let [magic, version, length, sum, ..] = words::<{ HEAD_BYTES / 8 }>(head);
        if magic != MAGIC {
            return Some(Self::First);
        }
        let known = version == VERSION && length == RECORD_BYTES as u64 && sum == checksum(&[magic, version, length]);
        known.then_some(Self::Present)
    }

    /// Returns where the records begin, in bytes.
    pub fn start(self) -> usize {
        match self {
            Self::First => 0,
            Self::Present => HEAD_BYTES,
        }
    }

    /// Returns how long a record is, in bytes.
    pub fn record_bytes(self) -> usize {
        match self {
            Self::First => FIRST_RECORD_BYTES,
            Self::Present => RECORD_BYTES,
        }
    }

    /// Reads a record; none if it is torn or empty. The flow is as seen just now, and judged by no map.
    pub fn read(self, record: &[u8], now: Timestamp) -> Option<(Key, Flow)> {
        let (found, flags, packets) = match self {
            Self::First => {
                let found = summed::<WORDS>(record)?;
                // The opener was a bit of its own byte.
                let flags = found[SEEN] & 3 | if found[SEEN] & 0x100 != 0 { OPENED } else { 0 };
                (found, flags, found[PACKETS])
            }
            Self::Present => {
                let found = summed::<RECORD_WORDS>(record)?;
                let mut all = [0; WORDS];
                all[..RECORD_WORDS].copy_from_slice(&found);
                (all, found[SEEN], found[SEEN] >> GENERATION_BITS)
            }
        };
        let mut all: Words = found;
        all[SEEN] = now.as_millis() << BELOW_TIME | (flags & 0xff) << GENERATION_BITS;
        all[PACKETS] = packets << GENERATION_BITS;
        let key = Key::from_words(&all)?;
        Some((key, Flow { revision: UNJUDGED, ..Flow::from_words(&all, key.tuple.protocol) }))
    }
}

/// Returns the head of a file.
pub fn head() -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let start = [MAGIC, VERSION, RECORD_BYTES as u64];
    for (bytes, word) in head.chunks_exact_mut(8).zip(start.into_iter().chain([checksum(&start)])) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    head
}

/// Returns where the record of a slot is, in bytes.
pub fn offset(slot: usize) -> u64 {
    (HEAD_BYTES + slot * RECORD_BYTES) as u64
}

/// Returns the record of a slot: of one flow, all of it. Zeroes if it is empty.
pub fn of_slot(table: &FlowTable, slot: usize) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    if let Some((_, key, flow)) = table.at(slot) {
        let mut words = [0; RECORD_WORDS];
        words.copy_from_slice(&flow.words(key)[..RECORD_WORDS]);
        words[SEEN] = flow.packets << GENERATION_BITS | flow.flags();
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words.into_iter().chain([checksum(&words)])) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// Gives the record of a slot to `write`, again if the slot got another owner meanwhile: of several lanes that write at
/// once, the last one writes who is in it.
pub fn write(table: &FlowTable, slot: usize, mut write: impl FnMut(&[u8; RECORD_BYTES])) {
    let owner = || table.at(slot).map(|(place, key, flow)| (place, key, flow.revision));
    for _ in 0..MAX_WRITES {
        let before = owner();
        write(&of_slot(table, slot));
        if owner() == before {
            return;
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
    }
    words
}

/// Reads words with their sum behind them; none if it is another.
fn summed<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (body, sum) = bytes.split_at_checked(N * 8)?;
    let words = words::<N>(body);
    let expected = u64::from_le_bytes(sum.try_into().ok()?);
    (expected == checksum(&words)).then_some(words)
}

/// FNV-1a over the words: it tells a torn write from a whole one, no more.
fn checksum(words: &[u64]) -> u64 {
    let bytes = words.iter().flat_map(|w| w.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
