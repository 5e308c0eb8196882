//! The flow table: what was decided for a conversation, so that its other packets need no decision.
//!
//! One table for all lanes, of fixed size. A flow is two entries, one per direction, each found by what a
//! packet looks like *before* it is rewritten. Entries are eight words of 64 bits in buckets of eight;
//! readers take no lock (a version per bucket tells them to read again), writers claim the bucket for the
//! length of a copy. Because the table is shared, a flow keeps its backend and verdict whichever TUN queue
//! or lane its packets take, and nothing has to be handed from lane to lane.
//!
//! Entries can be written to a file as they change and restored after a crash: `entry` and `restore`.
//!
//! Bounds: when a bucket is full the entry that is worth least goes: expired, then closing, then half-open (only
//! one side has spoken, so that nobody fills the table alone), then idle for over a minute, then the oldest of a
//! peer that holds half of the bucket. Otherwise the new flow is refused (`Drop::FlowTableFull`).

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::base::clock::Timestamp;
use crate::base::id::{NodeId, Revision};
use crate::packet::{FiveTuple, ICMP, TCP, UDP};

const WAYS: usize = 8;
const WORDS: usize = 8;
/// A busy flow heard of this recently is never given up for a new one.
const BUSY: Duration = Duration::from_secs(60);
/// `last_seen` moves in steps of this, so that a packet of a busy flow writes no shared memory.
const SEEN_STEP: Duration = Duration::from_secs(1);

/// The stamp of a flow that no map of this process has judged: it came from a file.
pub const UNJUDGED: Revision = Revision(u64::MAX);

/// Which way a packet goes through this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Read from the TUN.
    Outbound,
    /// Read from a tunnel.
    Inbound,
}

/// What a packet of one direction looks like before it is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Which way it goes.
    pub side: Direction,
    /// Its addresses and ports.
    pub tuple: FiveTuple,
}

/// What was decided for one direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// What its packets look like after they are rewritten.
    pub to: FiveTuple,
    /// The peer at the other end; none if both ends are on this node.
    pub remote: Option<NodeId>,
    /// The map that allowed it, by `View::stamp`; `UNJUDGED` if none in force did.
    pub revision: Revision,
    /// Whether this direction is the one that opened the flow.
    pub opened: bool,
    /// What its own packets have shown so far.
    pub state: FlowState,
    /// When a packet of it was last seen, to the second.
    pub last_seen: Timestamp,
    /// Packets so far.
    pub packets: u64,
    /// Bytes so far.
    pub bytes: u64,
}

/// How far one direction of a flow has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlowState {
    /// A TCP RST was seen.
    Reset,
    /// A TCP FIN was seen.
    Closing,
    /// Only one side has spoken.
    HalfOpen,
    /// Both sides have spoken.
    Open,
}

/// Where an entry stands; valid as long as it is not replaced, which every use checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowSlot(u32);

impl FlowSlot {
    /// Returns the slot number, for `FlowTable::entry`.
    pub fn slot(self) -> usize {
        self.0 as usize
    }
}

/// All places for a new flow are taken by busy ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The flow table of one node.
#[derive(Debug)]
pub struct FlowTable {
    buckets: Box<[Bucket]>,
    seed: u64,
}

impl Key {
    /// Returns the key of the answers to what this key's packets are rewritten to.
    pub fn answer(self, flow: &Flow) -> Self {
        let side = match (self.side, flow.remote) {
            (Direction::Outbound, Some(_)) => Direction::Inbound,
            (Direction::Outbound, None) | (Direction::Inbound, _) => Direction::Outbound,
        };
        Self { side, tuple: flow.to.reverse() }
    }

    fn words(self) -> [u64; 2] {
        let t = self.tuple;
        let side = match self.side {
            Direction::Outbound => 1,
            Direction::Inbound => 2,
        };
        [
            pair(t.source, t.destination),
            u64::from(t.source_port) << 48 | u64::from(t.destination_port) << 32 | u64::from(t.protocol) << 24 | side,
        ]
    }

    fn from_words(w: &[u64; WORDS]) -> Option<Self> {
        let side = match w[1] & 0xff {
            1 => Direction::Outbound,
            2 => Direction::Inbound,
            _ => return None,
        };
        Some(Self { side, tuple: tuple(w[0], w[1], (w[1] >> 24) as u8) })
    }
}

fn pair(a: Ipv4Addr, b: Ipv4Addr) -> u64 {
    u64::from(u32::from(a)) << 32 | u64::from(u32::from(b))
}

fn tuple(addresses: u64, ports: u64, protocol: u8) -> FiveTuple {
    FiveTuple {
        protocol,
        source: Ipv4Addr::from((addresses >> 32) as u32),
        source_port: (ports >> 48) as u16,
        destination: Ipv4Addr::from(addresses as u32),
        destination_port: (ports >> 32) as u16,
    }
}

const NO_REMOTE: u64 = u32::MAX as u64;
const OPENED: u64 = 0x100;

impl Flow {
    /// A flow at its first packet.
    pub fn new(to: FiveTuple, remote: Option<NodeId>, revision: Revision, opened: bool, now: Timestamp) -> Self {
        Self { to, remote, revision, opened, state: FlowState::HalfOpen, last_seen: now, packets: 0, bytes: 0 }
    }

    fn words(&self, key: Key) -> [u64; WORDS] {
        let [addresses, ports] = key.words();
        let remote = self.remote.map_or(NO_REMOTE, |id| u64::from(id.0));
        [
            addresses,
            ports,
            pair(self.to.source, self.to.destination),
            u64::from(self.to.source_port) << 48 | u64::from(self.to.destination_port) << 32 | remote,
            self.revision.0,
            self.seen_word(),
            self.packets,
            self.bytes,
        ]
    }

    fn seen_word(&self) -> u64 {
        let state = match self.state {
            FlowState::Reset => 0,
            FlowState::Closing => 1,
            FlowState::HalfOpen => 2,
            FlowState::Open => 3,
        };
        self.last_seen.as_millis() << 16 | if self.opened { OPENED } else { 0 } | state
    }

    fn from_words(w: &[u64; WORDS], protocol: u8) -> Self {
        let remote = w[3] & 0xffff_ffff;
        Self {
            to: tuple(w[2], w[3], protocol),
            remote: (remote != NO_REMOTE).then_some(NodeId(remote as u32)),
            revision: Revision(w[4]),
            opened: w[5] & OPENED != 0,
            state: match w[5] & 0xff {
                0 => FlowState::Reset,
                1 => FlowState::Closing,
                2 => FlowState::HalfOpen,
                _ => FlowState::Open,
            },
            last_seen: Timestamp::from_millis(w[5] >> 16),
            packets: w[6],
            bytes: w[7],
        }
    }

    /// Says how long the flow lives without a packet. TCP: RFC 5382 REQ-5 (2 h 4 min established, 4 min
    /// otherwise, less for what is only half open here); UDP: RFC 4787 REQ-5 (5 min); ICMP: RFC 5508 REQ-1 (60 s).
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(match (self.to.protocol, self.state) {
            (TCP, FlowState::Open) => 7440,
            (TCP, FlowState::Closing) => 240,
            (TCP, FlowState::HalfOpen) => 60,
            (TCP, FlowState::Reset) => 10,
            (UDP, _) => 300,
            (ICMP, _) => 60,
            _ => 300,
        })
    }

    fn alive(&self, now: Timestamp) -> bool {
        now.since(self.last_seen) <= self.lifetime()
    }

    /// What a new flow may replace, cheapest first; none for what must stay.
    fn worth(&self, now: Timestamp) -> Option<(FlowState, Timestamp)> {
        let idle = now.since(self.last_seen) > BUSY;
        (idle || self.state < FlowState::Open).then_some((self.state, self.last_seen))
    }
}

impl FlowTable {
    /// Length of an entry in a file, in bytes: its words and a checksum.
    pub const ENTRY_BYTES: usize = (WORDS + 1) * 8;

    /// Makes a table of at least `slots` entries (two per flow); rounded up to a power of two, 64 at least.
    pub fn new(slots: usize) -> Self {
        Self::with_seed(slots, 0)
    }

    /// Makes a table whose places an outsider cannot predict. The seed must be the same after a restart.
    pub fn with_seed(slots: usize, seed: u64) -> Self {
        let buckets = slots.div_ceil(WAYS).max(8).next_power_of_two();
        Self { buckets: (0..buckets).map(|_| Bucket::default()).collect(), seed }
    }

    /// Returns the number of entries that fit.
    pub fn slots(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// Finds the flow of a packet.
    pub fn find(&self, key: Key, now: Timestamp) -> Option<(FlowSlot, Flow)> {
        let index = self.bucket(key);
        let bucket = &self.buckets[index];
        let words = key.words();
        loop {
            let before = bucket.version.load(Ordering::Acquire);
            if before & 1 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let found = bucket.way(words).map(|way| (way, bucket.read(way)));
            fence(Ordering::Acquire);
            if bucket.version.load(Ordering::Relaxed) != before {
                continue;
            }
            let (way, entry) = found?;
            let flow = Flow::from_words(&entry, key.tuple.protocol);
            return flow.alive(now).then_some((FlowSlot((index * WAYS + way) as u32), flow));
        }
    }

    /// Adds or replaces one direction of a flow.
    ///
    /// # Errors
    /// `Full` if the key's bucket holds busy flows only.
    pub fn insert(&self, key: Key, flow: &Flow, now: Timestamp) -> Result<FlowSlot, Full> {
        let index = self.bucket(key);
        let bucket = &self.buckets[index];
        bucket.write(|| {
            let own = bucket.way(key.words());
            let way = own.or_else(|| bucket.cheapest(now)).or_else(|| bucket.excess(flow.remote)).ok_or(Full)?;
            bucket.store(way, &flow.words(key));
            Ok(FlowSlot((index * WAYS + way) as u32))
        })
    }

    /// Forgets the direction of a flow that is rewritten to `to`; returns its place if it was there. Another flow that
    /// has the key by now stays.
    pub fn remove(&self, key: Key, to: FiveTuple) -> Option<FlowSlot> {
        let index = self.bucket(key);
        let bucket = &self.buckets[index];
        bucket.write(|| {
            let way = bucket.way(key.words())?;
            if Flow::from_words(&bucket.read(way), key.tuple.protocol).to != to {
                return None;
            }
            bucket.store(way, &[0; WORDS]);
            Some(FlowSlot((index * WAYS + way) as u32))
        })
    }

    /// Notes a packet of a flow that `find` returned. Says what changed.
    pub fn touch(&self, place: FlowSlot, key: Key, flow: &Flow, seen: FlowTraffic, now: Timestamp) -> Touched {
        let words = &self.buckets[place.slot() / WAYS].ways[place.slot() % WAYS];
        words[6].fetch_add(u64::from(seen.packets), Ordering::Relaxed);
        words[7].fetch_add(seen.bytes as u64, Ordering::Relaxed);
        let state = flow.state.after(key.tuple.protocol, seen.tcp_flags);
        let aged = now.since(flow.last_seen) >= SEEN_STEP;
        if !aged && state == flow.state {
            return Touched::Nothing;
        }
        let [addresses, ports] = key.words();
        let same = words[0].load(Ordering::Relaxed) == addresses && words[1].load(Ordering::Relaxed) == ports;
        let old = flow.seen_word();
        let new = Flow { state, last_seen: now, ..*flow }.seen_word();
        // Another lane may have noted the same moment; then its note stands.
        if same {
            let _ = words[5].compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
        }
        if state == flow.state { Touched::Aged } else { Touched::State }
    }

    /// Counts a half-open flow as open if its other direction has shown a packet too. Says whether it has: then
    /// both entries changed. Call it after `touch`.
    pub fn assure(&self, key: Key, flow: &Flow, now: Timestamp) -> bool {
        let answer = key.answer(flow);
        if self.find(answer, now).is_none_or(|(_, other)| other.packets == 0) {
            return false;
        }
        for key in [key, answer] {
            if let Some((place, flow)) = self.find(key, now).filter(|(_, flow)| flow.state == FlowState::HalfOpen) {
                let open = Flow { state: FlowState::Open, ..flow }.seen_word();
                let words = &self.buckets[place.slot() / WAYS].ways[place.slot() % WAYS];
                let _ = words[5].compare_exchange(flow.seen_word(), open, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        true
    }

    /// Marks a flow as allowed by another map.
    pub fn stamp(&self, place: FlowSlot, key: Key, revision: Revision) {
        let bucket = &self.buckets[place.slot() / WAYS];
        bucket.write(|| {
            if bucket.way(key.words()) == Some(place.slot() % WAYS) {
                bucket.ways[place.slot() % WAYS][4].store(revision.0, Ordering::Relaxed);
            }
        });
    }

    /// Keeps the other direction of a busy flow alive.
    pub fn keep(&self, key: Key, now: Timestamp) {
        if let Some((place, flow)) = self.find(key, now) {
            self.touch(place, key, &flow, FlowTraffic { packets: 0, bytes: 0, tcp_flags: 0 }, now);
        }
    }

    /// Calls `f` for every live entry. Not for the packet path: it reads the whole table.
    pub fn for_each(&self, now: Timestamp, mut f: impl FnMut(Key, Flow)) {
        for slot in 0..self.slots() {
            let words = self.buckets[slot / WAYS].read(slot % WAYS);
            let Some(key) = Key::from_words(&words) else { continue };
            let flow = Flow::from_words(&words, key.tuple.protocol);
            if flow.alive(now) {
                f(key, flow);
            }
        }
    }

    /// Returns a slot as bytes, to be written to a file at `slot * ENTRY_BYTES`.
    pub fn entry(&self, slot: usize) -> [u8; Self::ENTRY_BYTES] {
        let words = self.buckets[slot / WAYS].read(slot % WAYS);
        let mut bytes = [0; Self::ENTRY_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words.into_iter().chain([checksum(&words)])) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Takes an entry back from a file, as seen just now and judged by no map. Bytes that are torn, empty, closed or from a table of
    /// another shape or seed are ignored. Says whether it was taken.
    pub fn restore(&self, slot: usize, bytes: &[u8], now: Timestamp) -> bool {
        let mut words = [0u64; WORDS + 1];
        if bytes.len() != Self::ENTRY_BYTES || slot >= self.slots() {
            return false;
        }
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        }
        let Some((words, [sum])) = words.split_first_chunk::<WORDS>() else { return false };
        let Some(key) = Key::from_words(words).filter(|_| *sum == checksum(words)) else { return false };
        let flow = Flow { last_seen: now, revision: UNJUDGED, ..Flow::from_words(words, key.tuple.protocol) };
        if flow.state <= FlowState::Closing || self.bucket(key) != slot / WAYS {
            return false;
        }
        let bucket = &self.buckets[slot / WAYS];
        bucket.write(|| bucket.store(slot % WAYS, &flow.words(key)));
        true
    }

    fn bucket(&self, key: Key) -> usize {
        // The finaliser of MurmurHash3 (Appleby, public domain), once per word.
        let mix = |h: u64, w: u64| {
            let h = (h ^ w ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
            let h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            h ^ h >> 33
        };
        let hash = key.words().into_iter().fold(self.seed ^ 0x6d65_7368, mix);
        hash as usize & (self.buckets.len() - 1)
    }
}

/// A packet, or a super-packet, of a flow.
#[derive(Debug, Clone, Copy)]
pub struct FlowTraffic {
    /// Packets on the wire.
    pub packets: u32,
    /// Bytes.
    pub bytes: usize,
    /// TCP flags; 0 for others.
    pub tcp_flags: u8,
}

/// What noting a packet changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touched {
    /// Counters only.
    Nothing,
    /// The time: the other direction should be kept as well.
    Aged,
    /// The state: the entry should be written to its file.
    State,
}

impl FlowState {
    fn after(self, protocol: u8, tcp_flags: u8) -> Self {
        const FIN: u8 = 1;
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const ACK: u8 = 16;
        if protocol != TCP || tcp_flags == 0 {
            return self;
        }
        match self {
            _ if tcp_flags & (SYN | ACK) == SYN => Self::HalfOpen,
            Self::Reset => Self::Reset,
            _ if tcp_flags & RST != 0 => Self::Reset,
            Self::Closing => Self::Closing,
            _ if tcp_flags & FIN != 0 => Self::Closing,
            Self::HalfOpen | Self::Open => self,
        }
    }
}

/// FNV-1a over the words: it tells a torn write from a whole one, no more.
fn checksum(words: &[u64]) -> u64 {
    let bytes = words.iter().flat_map(|w| w.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Eight entries that share a lock-free version: what readers may see and what a newcomer may replace.
///
/// Aligned, so that an entry is one line of the cache and not two.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket {
    /// Even: at rest. Odd: a writer is in it.
    version: AtomicU64,
    ways: [[AtomicU64; WORDS]; WAYS],
}

impl Bucket {
    fn way(&self, [addresses, ports]: [u64; 2]) -> Option<usize> {
        let is = |way: &[AtomicU64; WORDS]| {
            way[0].load(Ordering::Relaxed) == addresses && way[1].load(Ordering::Relaxed) == ports
        };
        self.ways.iter().position(is)
    }

    fn read(&self, way: usize) -> [u64; WORDS] {
        std::array::from_fn(|i| self.ways[way][i].load(Ordering::Relaxed))
    }

    fn store(&self, way: usize, words: &[u64; WORDS]) {
        for (place, word) in self.ways[way].iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
    }

    /// Returns the way that a new flow may take: an empty or expired one, or the one that is worth least.
    fn cheapest(&self, now: Timestamp) -> Option<usize> {
        let worth = |way: usize| {
            let words = self.read(way);
            let Some(key) = Key::from_words(&words) else { return Some(None) };
            let flow = Flow::from_words(&words, key.tuple.protocol);
            if flow.alive(now) { flow.worth(now).map(Some) } else { Some(None) }
        };
        let candidates = (0..WAYS).filter_map(|way| worth(way).map(|w| (w, way)));
        candidates.min().map(|(_, way)| way)
    }

    /// Returns the oldest way of a peer other than the newcomer's that holds at least half of the bucket.
    fn excess(&self, newcomer: Option<NodeId>) -> Option<usize> {
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
    fn write<T>(&self, change: impl FnOnce() -> T) -> T {
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

#[cfg(test)]
#[path = "flow/tests.rs"]
mod tests;
