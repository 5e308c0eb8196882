//! The flow table: what was decided for a conversation, so that its other packets need no decision.
//!
//! One table for all lanes, of fixed size. A flow is two entries, one per direction, each found by what a
//! packet looks like *before* it is rewritten. An entry lies in one of two buckets, the emptier when it came; readers
//! take no lock, writers claim the buckets for the length of a copy (`bucket.rs`). Because the table is shared, a flow
//! keeps its backend and verdict whichever TUN queue or lane its packets take, and nothing has to be handed from lane
//! to lane. Whoever alters an entry that it found alters it only while it is still that flow's.
//!
//! Entries can be written to a file as they change and taken back after a crash: `record.rs`.
//!
//! Bounds: `flows` flows, in four times as many places, so that both buckets of a key are never full before the table
//! is. Nobody's share counts until then; what a new flow takes the place of after that, or why it is refused, says
//! `room.rs`.

mod bucket;
mod holders;
pub mod record;
pub mod room;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::base::clock::Timestamp;
use crate::base::id::{NodeId, Revision};
use crate::packet::{FiveTuple, ICMP, TCP, UDP};

use bucket::{Buckets, Claim, GENERATION_BITS, PACKETS, SEEN, WAYS, WORDS, Words, count, mix};
use holders::Holders;

pub use holders::Holder;

/// `last_seen` moves in steps of this, so that a packet of a busy flow writes no shared memory.
const SEEN_STEP: Duration = Duration::from_secs(1);
/// Places per flow: two entries, and as many free.
const PLACES_PER_FLOW: usize = 4;
/// Buckets swept per new flow when the table is nearly full.
const SWEPT: usize = 8;
/// Buckets made ready per new flow, until all are: 18 pages of 4 KiB.
const READIED: usize = 128;
/// Packets of one side after which a UDP flow is more than a question and its answer.
const FEW: u64 = 2;

/// The stamp of a flow that no map of this process has judged: it came from a file. No view has it.
pub const UNJUDGED: Revision = Revision(0);

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
}

/// How far one direction of a flow has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlowState {
    /// A TCP RST was seen.
    Reset,
    /// A TCP FIN was seen.
    Closing,
    /// Only one side has spoken; of UDP, neither side said more than two packets.
    HalfOpen,
    /// It is a conversation.
    Open,
}

/// Where an entry stands; valid as long as it is not replaced, which every use checks by the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowSlot {
    slot: u32,
    generation: u16,
}

impl FlowSlot {
    fn new(bucket: usize, way: usize, generation: u16) -> Self {
        Self { slot: (bucket * WAYS + way) as u32, generation }
    }

    /// Returns the slot number, as `record.rs` counts them.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// The table is full, and nothing in it may go for the new flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The flow table of one node.
#[derive(Debug)]
pub struct FlowTable {
    buckets: Buckets,
    seed: u64,
    /// Most flows.
    flows: usize,
    /// Places in use, two per flow.
    used: AtomicUsize,
    holders: Holders,
    /// The bucket where the next look for room begins.
    hand: AtomicUsize,
    /// Buckets that are ready, and then more.
    ready: AtomicUsize,
    /// Flows that had to go for others.
    displaced: AtomicU64,
    /// When one went, or a new one was refused; 0 for never.
    lost: AtomicU64,
}

/// Where a key may lie.
struct Home {
    buckets: [usize; 2],
    tag: u16,
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

    /// Returns whose the flow is that this key is of.
    pub fn holder(self, flow: &Flow) -> Holder {
        match (self.side, flow.opened, flow.remote) {
            (Direction::Outbound, true, _) => Holder::Own(self.tuple.source),
            (Direction::Inbound, true, Some(peer)) | (Direction::Outbound, false, Some(peer)) => Holder::Peer(peer),
            (Direction::Inbound, _, _) | (Direction::Outbound, false, None) => Holder::Own(flow.to.destination),
        }
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

    fn from_words(w: &Words) -> Option<Self> {
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
const OPENED: u64 = 4;
/// Bits of the word that says when a flow was seen, below the time: state, opener, generation.
const BELOW_TIME: u32 = 24;

impl Flow {
    /// A flow at its first packet.
    pub fn new(to: FiveTuple, remote: Option<NodeId>, revision: Revision, opened: bool, now: Timestamp) -> Self {
        Self { to, remote, revision, opened, state: FlowState::HalfOpen, last_seen: now, packets: 0 }
    }

    fn words(&self, key: Key) -> Words {
        let [addresses, ports] = key.words();
        let remote = self.remote.map_or(NO_REMOTE, |id| u64::from(id.0));
        [
            addresses,
            ports,
            pair(self.to.source, self.to.destination),
            u64::from(self.to.source_port) << 48 | u64::from(self.to.destination_port) << 32 | remote,
            self.revision.0,
            self.seen_word(0),
            self.packets << GENERATION_BITS,
            0,
        ]
    }

    fn seen_word(&self, generation: u16) -> u64 {
        self.last_seen.as_millis() << BELOW_TIME | self.flags() << GENERATION_BITS | u64::from(generation)
    }

    fn flags(&self) -> u64 {
        let state = match self.state {
            FlowState::Reset => 0,
            FlowState::Closing => 1,
            FlowState::HalfOpen => 2,
            FlowState::Open => 3,
        };
        if self.opened { OPENED | state } else { state }
    }

    fn from_words(w: &Words, protocol: u8) -> Self {
        let remote = w[3] & 0xffff_ffff;
        let flags = w[SEEN] >> GENERATION_BITS;
        Self {
            to: tuple(w[2], w[3], protocol),
            remote: (remote != NO_REMOTE).then_some(NodeId(remote as u32)),
            revision: Revision(w[4]),
            opened: flags & OPENED != 0,
            state: match flags & 3 {
                0 => FlowState::Reset,
                1 => FlowState::Closing,
                2 => FlowState::HalfOpen,
                _ => FlowState::Open,
            },
            last_seen: Timestamp::from_millis(w[SEEN] >> BELOW_TIME),
            packets: w[PACKETS] >> GENERATION_BITS,
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
}

impl FlowTable {
    /// Makes a table of at least `slots` places, four per flow; rounded up to a power of two, 64 at least.
    pub fn new(slots: usize) -> Self {
        Self::with_seed(slots, 0)
    }

    /// Makes a table whose places an outsider cannot predict.
    pub fn with_seed(slots: usize, seed: u64) -> Self {
        let buckets = slots.div_ceil(WAYS).max(8).next_power_of_two();
        Self {
            buckets: Buckets::new(buckets),
            seed,
            flows: buckets * WAYS / PLACES_PER_FLOW,
            used: AtomicUsize::new(0),
            holders: Holders::new(seed),
            hand: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            displaced: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Makes a table for so many flows, whose places an outsider cannot predict.
    pub fn for_flows(flows: usize, seed: u64) -> Self {
        Self::with_seed(flows * PLACES_PER_FLOW, seed)
    }

    /// Returns the number of places.
    pub fn slots(&self) -> usize {
        self.buckets.count() * WAYS
    }

    /// Returns how many flows it holds at most.
    pub fn flows(&self) -> usize {
        self.flows
    }

    /// Returns where all of it lies, for who says in which pages.
    pub fn memory(&self) -> &[AtomicU64] {
        self.buckets.words()
    }

    /// Says whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }

    /// Returns how many flows had to go for others so far.
    pub fn displaced(&self) -> u64 {
        self.displaced.load(Ordering::Relaxed)
    }

    /// Returns when a flow had to go for another, or found no room, for the last time, to the millisecond.
    pub fn last_loss(&self) -> Option<Timestamp> {
        let millis = self.lost.load(Ordering::Relaxed);
        (millis > 0).then_some(Timestamp::from_millis(millis))
    }

    /// Finds the flow of a packet.
    pub fn find(&self, key: Key, now: Timestamp) -> Option<(FlowSlot, Flow)> {
        let words = key.words();
        let home = self.home(words);
        for index in home.buckets {
            if let Some((way, entry)) = self.buckets.get(index).find(words, home.tag) {
                let flow = Flow::from_words(&entry, key.tuple.protocol);
                let place = FlowSlot::new(index, way, entry[SEEN] as u16);
                return flow.alive(now).then_some((place, flow));
            }
        }
        None
    }

    /// Remembers both directions of a new flow, of which `flow` is the one that `key` opens. `forgotten` hears of each
    /// place whose flow went for it.
    ///
    /// # Errors
    /// `Full` if nothing may go; then nothing is remembered.
    pub fn open(
        &self,
        key: Key,
        flow: &Flow,
        now: Timestamp,
        mut forgotten: impl FnMut(FlowSlot),
    ) -> Result<[FlowSlot; 2], Full> {
        self.make_ready();
        let newcomer = key.holder(flow);
        if self.used.load(Ordering::Relaxed) + 2 > self.flows * 2 && !self.displace(newcomer, now, &mut forgotten) {
            return Err(Full);
        }
        let answer = key.answer(flow);
        let back = Flow { to: key.tuple.reverse(), opened: !flow.opened, ..*flow };
        let place = self.insert(key, flow, now, &mut forgotten)?;
        match self.insert(answer, &back, now, &mut forgotten) {
            Ok(other) => Ok([place, other]),
            Err(Full) => {
                self.remove(key, flow.to);
                Err(Full)
            }
        }
    }

    /// Adds or replaces one direction of a flow.
    fn insert(
        &self,
        key: Key,
        flow: &Flow,
        now: Timestamp,
        forgotten: &mut dyn FnMut(FlowSlot),
    ) -> Result<FlowSlot, Full> {
        let home = self.home(key.words());
        if let Some(place) = self.put(&home, key, flow, now) {
            return Ok(place);
        }
        // Chance filled both of its buckets before the table was full.
        if self.displace_of(home.buckets.into_iter(), key.holder(flow), now, forgotten) {
            return self.put(&home, key, flow, now).ok_or(Full);
        }
        Err(Full)
    }

    /// Puts an entry where its key was, or into the emptier bucket, or over an expired one.
    fn put(&self, home: &Home, key: Key, flow: &Flow, now: Timestamp) -> Option<FlowSlot> {
        let words = key.words();
        self.claimed(home, |claims| {
            let own = (0..2).find_map(|at| Some((at, claims[at].way(words, home.tag)?)));
            let room = || {
                let rooms = [0, 1].map(|at: usize| claims[at].room().map(|(way, count)| (count, at, way)));
                let [one, other] = rooms;
                let (_, at, way) = if other.map(|room| room.0) > one.map(|room| room.0) { other? } else { one? };
                Some((at, way))
            };
            let expired = || (0..2).find_map(|at| Some((at, expired(claims[at], now)?)));
            let (at, way) = own.or_else(room).or_else(expired)?;
            self.account(&claims[at].read(way), &flow.words(key));
            let generation = claims[at].store(way, home.tag, flow.words(key));
            Some(FlowSlot::new(home.buckets[at], way, generation))
        })
    }

    /// Forgets the direction of a flow that is rewritten to `to`; returns its place if it was there. Another flow that
    /// has the key by now stays.
    pub fn remove(&self, key: Key, to: FiveTuple) -> Option<FlowSlot> {
        let words = key.words();
        let home = self.home(words);
        for index in home.buckets {
            let claim = self.buckets.get(index).claim();
            let Some(way) = claim.way(words, home.tag) else { continue };
            let entry = claim.read(way);
            if Flow::from_words(&entry, key.tuple.protocol).to != to {
                return None;
            }
            self.empty(&claim, way, &entry);
            return Some(FlowSlot::new(index, way, entry[SEEN] as u16));
        }
        None
    }

    /// Notes a packet of a flow that `find` returned. Says what changed.
    pub fn touch(&self, place: FlowSlot, key: Key, flow: &Flow, seen: FlowTraffic, now: Timestamp) -> Touched {
        let FlowSlot { generation, .. } = place;
        let words = self.buckets.get(place.slot() / WAYS).place(place.slot() % WAYS);
        if seen.packets > 0 && !count(&words[PACKETS], generation, seen.packets.into()) {
            return Touched::Nothing;
        }
        let state = flow.state.after(key.tuple.protocol, seen.tcp_flags);
        let aged = now.since(flow.last_seen) >= SEEN_STEP;
        if !aged && state == flow.state {
            return Touched::Nothing;
        }
        let old = flow.seen_word(generation);
        let new = Flow { state, last_seen: now, ..*flow }.seen_word(generation);
        // Another lane may have noted the same moment; then its note stands.
        let _ = words[SEEN].compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
        if state == flow.state { Touched::Aged } else { Touched::State }
    }

    /// Counts a half-open flow as open if it is more by now: its other direction has shown a packet too or, for UDP,
    /// one of the two more than a few. Says whether it is: then both entries changed. Call it after `touch`.
    pub fn assure(&self, key: Key, flow: &Flow, now: Timestamp) -> bool {
        let answer = key.answer(flow);
        let packets = |key| self.find(key, now).map_or(0, |(_, flow)| flow.packets);
        let is_open =
            if key.tuple.protocol == UDP { packets(key).max(packets(answer)) > FEW } else { packets(answer) > 0 };
        if !is_open {
            return false;
        }
        for key in [key, answer] {
            if let Some((place, flow)) = self.find(key, now).filter(|(_, flow)| flow.state == FlowState::HalfOpen) {
                let open = Flow { state: FlowState::Open, ..flow }.seen_word(place.generation);
                let words = self.buckets.get(place.slot() / WAYS).place(place.slot() % WAYS);
                let old = flow.seen_word(place.generation);
                let _ = words[SEEN].compare_exchange(old, open, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        true
    }

    /// Marks a flow as allowed by another map.
    pub fn stamp(&self, place: FlowSlot, revision: Revision) {
        let claim = self.buckets.get(place.slot() / WAYS).claim();
        if claim.read(place.slot() % WAYS)[SEEN] as u16 == place.generation {
            claim.stamp(place.slot() % WAYS, revision.0);
        }
    }

    /// Keeps the other direction of a busy flow alive.
    pub fn keep(&self, key: Key, now: Timestamp) {
        if let Some((place, flow)) = self.find(key, now) {
            self.touch(place, key, &flow, FlowTraffic { packets: 0, tcp_flags: 0 }, now);
        }
    }

    /// Forgets some of what has expired: the next bucket, more when the table is nearly full. `forgotten` hears of each
    /// place, 64 at most.
    pub fn sweep(&self, now: Timestamp, mut forgotten: impl FnMut(FlowSlot)) {
        let nearly_full = self.used.load(Ordering::Relaxed) > self.flows * 2 / 8 * 7;
        for index in self.next_buckets(if nearly_full { SWEPT } else { 1 }) {
            for way in 0..WAYS {
                let expired = self.at(index * WAYS + way).filter(|(_, _, flow)| !flow.alive(now));
                if let Some((place, _, _)) = expired.filter(|(place, _, _)| self.vacate(*place)) {
                    forgotten(place);
                }
            }
        }
    }

    /// Takes one direction of a flow back from a file, if it is not over and there is room. Says whether it was taken.
    pub fn restore(&self, key: Key, flow: &Flow) -> bool {
        let room = self.used.load(Ordering::Relaxed) < self.flows * 2;
        let home = self.home(key.words());
        room && flow.state > FlowState::Closing && self.put(&home, key, flow, flow.last_seen).is_some()
    }

    /// Calls `f` for every live entry. Not for the packet path: it reads the whole table, unless that is empty.
    pub fn for_each(&self, now: Timestamp, mut f: impl FnMut(Key, Flow)) {
        if self.is_empty() {
            return;
        }
        for slot in 0..self.slots() {
            if let Some((_, key, flow)) = self.at(slot).filter(|(_, _, flow)| flow.alive(now)) {
                f(key, flow);
            }
        }
    }

    /// Returns what is in a slot.
    fn at(&self, slot: usize) -> Option<(FlowSlot, Key, Flow)> {
        let bucket = self.buckets.get(slot / WAYS);
        if bucket.is_empty(slot % WAYS) {
            return None;
        }
        let words = bucket.whole(slot % WAYS);
        let key = Key::from_words(&words)?;
        let place = FlowSlot::new(slot / WAYS, slot % WAYS, words[SEEN] as u16);
        Some((place, key, Flow::from_words(&words, key.tuple.protocol)))
    }

    /// Makes some more of the memory ours, before a flow needs it. A page that is read before it is written costs a flow
    /// two faults, the second of which interrupts the other cores. A node without flows takes none of it.
    fn make_ready(&self) {
        let all = self.buckets.count();
        if self.ready.load(Ordering::Relaxed) < all {
            let from = self.ready.fetch_add(READIED, Ordering::Relaxed).min(all);
            (from..all.min(from + READIED)).for_each(|index| drop(self.buckets.get(index).claim()));
        }
    }

    /// Empties a place if it is still the same flow's. Says whether it was.
    fn vacate(&self, place: FlowSlot) -> bool {
        let claim = self.buckets.get(place.slot() / WAYS).claim();
        let entry = claim.read(place.slot() % WAYS);
        let same = entry[SEEN] as u16 == place.generation;
        if same {
            self.empty(&claim, place.slot() % WAYS, &entry);
        }
        same
    }

    fn empty(&self, claim: &Claim<'_>, way: usize, entry: &Words) {
        self.account(entry, &[0; WORDS]);
        claim.clear(way);
    }

    /// Counts what leaves a place and what comes into it.
    fn account(&self, leaves: &Words, comes: &Words) {
        let of = |words: &Words| {
            let key = Key::from_words(words)?;
            let flow = Flow::from_words(words, key.tuple.protocol);
            Some(flow.opened.then(|| key.holder(&flow)))
        };
        if let Some(opener) = of(comes) {
            self.used.fetch_add(1, Ordering::Relaxed);
            opener.inspect(|&holder| self.holders.add(holder));
        }
        if let Some(opener) = of(leaves) {
            self.used.fetch_sub(1, Ordering::Relaxed);
            opener.inspect(|&holder| self.holders.subtract(holder));
        }
    }

    /// Claims both buckets of a key, the lower one first, so that no two writers wait for each other.
    fn claimed<T>(&self, home: &Home, change: impl FnOnce([&Claim<'_>; 2]) -> T) -> T {
        let [one, other] = home.buckets;
        let low = self.buckets.get(one.min(other)).claim();
        let high = self.buckets.get(one.max(other)).claim();
        change(if one < other { [&low, &high] } else { [&high, &low] })
    }

    fn home(&self, words: [u64; 2]) -> Home {
        let hash = words.into_iter().fold(self.seed ^ 0x6d65_7368, mix);
        let mask = self.buckets.count() - 1;
        let (one, other) = (hash as usize & mask, (hash >> 24) as usize & mask);
        // Two, and no tag is that of an empty place.
        let other = if other == one { one ^ 1 } else { other };
        Home { buckets: [one, other], tag: ((hash >> 48) as u16).max(1) }
    }
}

/// Returns a place whose flow has expired.
fn expired(claim: &Claim<'_>, now: Timestamp) -> Option<usize> {
    (0..WAYS).find(|&way| {
        let words = claim.read(way);
        Key::from_words(&words).is_some_and(|key| !Flow::from_words(&words, key.tuple.protocol).alive(now))
    })
}

/// A packet, or a super-packet, of a flow.
#[derive(Debug, Clone, Copy)]
pub struct FlowTraffic {
    /// Packets on the wire.
    pub packets: u32,
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

#[cfg(test)]
mod tests;
