//! The pipeline: what becomes of a packet.
//!
//! ```text
//! outbound (TUN ─▶ wire)                              inbound (wire ─▶ TUN)
//!  1 parse                  else Drop malformed        1 parse                   else Drop malformed
//!  2 known flow?            yes ─▶ 8                    2 is the source the peer's? else Drop spoofed_source
//!  3 is the source ours?    else Drop spoofed_source   3 known flow?             yes ─▶ 6
//!  4 a VIP? choose backend  else Refuse no_backend …   4 is the target here?     else Drop not_here
//!  5 who carries it?        else Refuse no_route       5 allowed?                else Refuse denied
//!  6 allowed?               else Refuse denied           remember both directions
//!  7 remember both directions                          6 rewrite: translate home, backend ─▶ VIP
//!  8 rewrite: VIP ─▶ backend, real ─▶ flat, MSS         ─▶ Deliver
//!  ─▶ Forward(peer), or Deliver if both ends are here
//! ```
//!
//! Steps after "known flow?" run once per flow. A new map makes every flow stale; a stale flow is judged
//! again at its next packet and keeps its backend while the map still lists it. So is a flow from a file. One whose
//! addresses have another owner by now binds no packet that begins a flow.

mod decide;
mod fragments;
mod icmp;
mod probe;
mod refuse;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::base::addr::Flat;
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;
use crate::base::wall_clock::BootDate;
use crate::dataplane::flow::record;
use crate::dataplane::flow::{Direction, Flow, FlowSlot, FlowState, FlowTable, FlowTraffic, Key, Touched};
use crate::dataplane::verdict::{Drop, Refuse, Verdict};
use crate::dataplane::view::{AddressOwner, DEFAULT_MTU, MIN_MTU, View};
use crate::packet::{self, Checksum, FiveTuple, Header, Kind, Malformed, Rewrite};
use crate::trust::audit_log::LogPosition;

use fragments::Fragments;
use probe::Probes;
use refuse::Replies;

pub use probe::{PROBE, PROBE_PORT, RESERVED, read_reserved, write_reserved};

/// Most flow entries remembered as changed between two calls of `drain_dirty`; further changes are
/// written at their flow's next change.
const MAX_DIRTY: usize = 4096;
/// Bytes of an IPv4 and a TCP header without options, which an MSS does not count.
const TCP_HEADERS: u16 = 40;

/// The pipeline of one lane. Lanes share the view and the flow table and nothing else.
#[derive(Debug)]
pub struct Engine {
    view: Arc<View>,
    flows: Arc<FlowTable>,
    locals: Arc<[Ipv4Addr]>,
    next_hops: Arc<[NextHop]>,
    mtu: u16,
    /// What narrow ways let through, in bytes.
    narrow: Arc<BTreeMap<NodeId, u16>>,
    fragments: Fragments,
    replies: Replies,
    dirty: Vec<usize>,
    probes: Probes,
    /// The flow of the packet that was allowed to pass last.
    last: Option<Key>,
}

/// A router that this host sends packets to, for what lies behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// What lies behind it.
    pub to: Ipv4Net,
    /// Its address on the link that it shares with this host.
    pub router: Ipv4Addr,
}

/// A direction of a flow that this packet belongs to.
#[derive(Debug, Clone, Copy)]
struct Hit {
    key: Key,
    place: FlowSlot,
    flow: Flow,
}

impl Engine {
    /// Makes the pipeline of a lane.
    pub fn new(view: Arc<View>, flows: Arc<FlowTable>) -> Self {
        Self {
            view,
            flows,
            locals: Arc::from([]),
            next_hops: Arc::from([]),
            mtu: DEFAULT_MTU,
            narrow: Arc::default(),
            fragments: Fragments::new(),
            replies: Replies::new(),
            dirty: Vec::with_capacity(MAX_DIRTY),
            probes: Probes::default(),
            last: None,
        }
    }

    /// Puts another map in force, from the next packet on.
    pub fn set_view(&mut self, view: Arc<View>) {
        self.view = view;
    }

    /// Makes known to all lanes since when a peer does not answer: flows that begin use other backends while there is one.
    pub fn note_silence(&self, peer: NodeId, since: Option<Timestamp>) {
        self.view.set_silent(peer, since);
    }

    /// Says which addresses outside the mesh are the host's own: packets from them (a process that called a
    /// ClusterIP, say) leave as the node's address.
    pub fn set_locals(&mut self, locals: Arc<[Ipv4Addr]>) {
        self.locals = locals;
    }

    /// Says by which routers this host reaches what is not on its own links: they may say that a packet to there is
    /// too large.
    pub fn set_next_hops(&mut self, next_hops: Arc<[NextHop]>) {
        self.next_hops = next_hops;
    }

    /// Says what peers are told of the log of operations.
    pub fn set_log_position(&mut self, told: Option<LogPosition>) {
        self.probes.told = told;
    }

    /// Takes out what the peer said of the log whose probe or answer `inbound` just took.
    pub fn take_log_position(&mut self) -> Option<LogPosition> {
        self.probes.heard.take()
    }

    /// Says what this host's clock is, as peers are told of it.
    pub fn set_date(&mut self, date: BootDate) {
        self.probes.date = Some(date);
    }

    /// Takes out what the clock said of the peer whose probe or answer `inbound` just took.
    pub fn take_date(&mut self) -> Option<BootDate> {
        self.probes.heard_date.take()
    }

    /// Sets the largest packet that this node's interface takes, in bytes.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu.max(MIN_MTU);
    }

    /// Sets which peers larger packets do not reach than so many bytes; `MIN_MTU` is the least.
    pub fn set_narrow(&mut self, narrow: Arc<BTreeMap<NodeId, u16>>) {
        self.narrow = narrow;
    }

    /// Returns the largest packet that may go to a peer where nothing on the way swallows it, in bytes.
    pub fn full(&self, peer: NodeId) -> u16 {
        self.view.mtu(peer).min(self.mtu)
    }

    /// Decides what becomes of a packet from the TUN, and rewrites it.
    pub fn outbound(&mut self, bytes: &mut [u8], checksum: Checksum, now: Timestamp) -> Verdict {
        self.outbound_in(bytes, None, checksum, now)
    }

    /// The same for a super-packet that is to leave in segments of so many bytes of payload.
    pub fn outbound_super(&mut self, bytes: &mut [u8], segment: u16, checksum: Checksum, now: Timestamp) -> Verdict {
        self.outbound_in(bytes, Some(segment), checksum, now)
    }

    fn outbound_in(&mut self, bytes: &mut [u8], segment: Option<u16>, checksum: Checksum, now: Timestamp) -> Verdict {
        self.replies.clear();
        let header = match Header::parse(bytes) {
            Ok(header) => header,
            Err(malformed) => return Verdict::Drop(reason(malformed)),
        };
        let key = Key { side: Direction::Outbound, tuple: header.tuple };
        match header.kind {
            Kind::LaterFragment => {
                let way = |remote| self.way(remote);
                return self.fragments.pass(Direction::Outbound, None, bytes, &header, way, now);
            }
            Kind::IcmpError(quoted) => return self.icmp_outbound(bytes, &header, quoted, now),
            Kind::IcmpOther if icmp::quotes_no_flow(bytes, &header) => return Verdict::Drop(Drop::IcmpUnmatched),
            Kind::Udp if self.is_probe(&header.tuple) => return Verdict::Drop(Drop::BadProbe),
            Kind::Tcp(_) | Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::IcmpOther | Kind::Other => {}
        }
        if header.first_fragment {
            self.fragments.forget(Direction::Outbound, &header);
        }
        let hit = match self.known(key, None, &header, now) {
            Some(judged) => judged,
            None => match self.open_outbound(&header, now) {
                Ok(hit) => Ok(hit),
                Err(Fate::Drop(why)) => return Verdict::Drop(why),
                Err(Fate::Echo) => return self.replies.answer_echo(bytes, &header, now),
                Err(Fate::Refuse(why)) => Err(why),
            },
        };
        let hit = match hit {
            Ok(hit) => hit,
            Err(why) => return self.replies.refuse(bytes, &header, why, self.mtu, now),
        };
        // What is not complete is to be segmented by somebody, who says himself how.
        let longest = match segment {
            Some(segment) => header.total_len.min(header.headers_len(bytes) + usize::from(segment)),
            None if checksum == Checksum::Complete => header.total_len,
            None => 0,
        };
        let too_big = self.way(hit.flow.remote).filter(|&mtu| longest > mtu);
        if let Some(mtu) = too_big {
            return self.replies.refuse_size(bytes, &header, mtu as u16, now);
        }
        self.apply(bytes, &header, hit, checksum, now)
    }

    /// Decides what becomes of a packet that a peer's tunnel authenticated, and rewrites it.
    pub fn inbound(&mut self, from: NodeId, bytes: &mut [u8], now: Timestamp) -> Verdict {
        self.replies.clear();
        let header = match Header::parse(bytes) {
            Ok(header) => header,
            Err(malformed) => return Verdict::Drop(reason(malformed)),
        };
        if self.view.owner(Flat(header.tuple.source)) != Some(AddressOwner::Peer(from)) {
            return Verdict::Drop(Drop::SpoofedSource);
        }
        if packet::is_source_routed(bytes, &header) {
            return Verdict::Drop(Drop::ForbiddenDestination);
        }
        let key = Key { side: Direction::Inbound, tuple: header.tuple };
        match header.kind {
            Kind::LaterFragment => {
                let way = |remote| self.way(remote);
                return self.fragments.pass(Direction::Inbound, Some(from), bytes, &header, way, now);
            }
            Kind::IcmpError(quoted) => return self.icmp_inbound(from, bytes, &header, quoted, now),
            Kind::IcmpOther if icmp::quotes_no_flow(bytes, &header) => return Verdict::Drop(Drop::IcmpUnmatched),
            Kind::Udp if self.is_probe(&header.tuple) => {
                return self.probes.answer(&self.view, from, bytes, &header, &mut self.replies, now);
            }
            Kind::Tcp(_) | Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::IcmpOther | Kind::Other => {}
        }
        if header.first_fragment {
            self.fragments.forget(Direction::Inbound, &header);
        }
        let hit = match self.known(key, Some(from), &header, now) {
            Some(judged) => judged,
            None => match self.open_inbound(from, &header, now) {
                Ok(hit) => Ok(hit),
                Err(Fate::Drop(why)) => return Verdict::Drop(why),
                Err(Fate::Refuse(why)) => Err(why),
                Err(Fate::Echo) => Err(Refuse::UnknownService),
            },
        };
        match hit {
            Ok(hit) => self.apply(bytes, &header, hit, Checksum::Complete, now),
            Err(why) => self.replies.refuse(bytes, &header, why, self.mtu, now),
        }
    }

    /// Counts packets that continue the one that was just allowed to pass, and pass with it as one super-packet.
    pub fn more(&mut self, seen: FlowTraffic, now: Timestamp) {
        let Some(key) = self.last else { return };
        if let Some((place, flow)) = self.flows.find(key, now)
            && self.flows.touch(place, key, &flow, seen, now) == Touched::State
        {
            self.mark(place);
        }
    }

    /// Returns the answer that goes with `Reply` or `Refuse`: a whole IPv4 packet for where the packet came
    /// from, or nothing.
    pub fn reply(&self) -> &[u8] {
        self.replies.bytes()
    }

    /// Calls `f` with the record of every flow entry that changed since the last call: its slot and `RECORD_BYTES` bytes.
    pub fn drain_dirty(&mut self, mut f: impl FnMut(usize, &[u8])) {
        for slot in self.dirty.drain(..) {
            record::write(&self.flows, slot, |record| f(slot, record));
        }
    }

    /// Builds a probe for a peer into `reply`. Says whether the peer is known.
    pub fn probe(&mut self, to: NodeId, now: Timestamp) -> bool {
        self.replies.clear();
        let own = self.view.address();
        let Some(peer) = self.view.peer(to).map(|peer| peer.address) else { return false };
        self.replies.make(now, |out| self.probes.ask(out, own, peer, now))
    }

    /// Writes a probe as long as `out` for a peer, of at least `PROBE` bytes: whether so much gets through. The answer
    /// brings the clock back, as a round trip since then. Says whether the peer is known.
    pub fn ask_size(&self, to: NodeId, clock: u64, out: &mut [u8]) -> bool {
        let own = self.view.address();
        let peer = self.view.peer(to).map(|peer| peer.address);
        peer.is_some_and(|peer| self.probes.ask_size(out, own, peer, clock) > 0)
    }

    /// Rewrites a packet of a flow that may pass.
    fn apply(&mut self, bytes: &mut [u8], header: &Header, hit: Hit, checksum: Checksum, now: Timestamp) -> Verdict {
        let Hit { key, place, flow } = hit;
        self.last = Some(key);
        let to = Rewrite {
            source: Some((flow.to.source, flow.to.source_port)),
            destination: Some((flow.to.destination, flow.to.destination_port)),
        };
        packet::rewrite(bytes, header, &to, checksum);
        let tcp_flags = if let Kind::Tcp(flags) = header.kind { flags } else { 0 };
        if tcp_flags & SYN != 0 {
            let mtu = self.way(flow.remote).unwrap_or_else(|| usize::from(self.mtu)) as u16;
            packet::clamp_mss(bytes, header, mtu - TCP_HEADERS, checksum);
        }
        let seen = FlowTraffic { packets: 1, tcp_flags };
        match self.flows.touch(place, key, &flow, seen, now) {
            Touched::Nothing => {}
            Touched::Aged => self.flows.keep(key.answer(&flow), now),
            Touched::State => {
                self.mark(place);
                if tcp_flags & RST != 0 {
                    self.end_answers(key.answer(&flow), now);
                }
            }
        }
        if flow.state == FlowState::HalfOpen && self.flows.assure(key, &flow, now) {
            self.mark(place);
        }
        let verdict = match (key.side, flow.remote) {
            (Direction::Outbound, Some(peer)) => Verdict::Forward(peer),
            (Direction::Outbound, None) | (Direction::Inbound, _) => Verdict::Deliver,
        };
        if header.first_fragment {
            self.fragments.remember(key.side, header, &flow, verdict, now);
        }
        verdict
    }

    /// Says whether a packet belongs to the reserved port between nodes.
    fn is_probe(&self, tuple: &FiveTuple) -> bool {
        let nodes = self.view.range().nodes();
        tuple.destination_port == PROBE_PORT && nodes.contains(&tuple.destination)
    }

    /// An error from this host, or from behind it, about a packet that we delivered.
    fn icmp_outbound(&mut self, bytes: &mut [u8], header: &Header, quoted: FiveTuple, now: Timestamp) -> Verdict {
        let sender = header.tuple.source;
        let is_host = sender == self.view.address().0 || self.locals.contains(&sender);
        let is_on_the_path = || {
            let leads = |hop: &NextHop| hop.router == sender && hop.to.contains(&quoted.destination);
            packet::is_too_big(bytes, header) && self.next_hops.iter().any(leads)
        };
        if sender != quoted.destination && !is_host && !is_on_the_path() {
            return Verdict::Drop(Drop::SpoofedSource);
        }
        let Some(hit) = self.quoted_flow(Direction::Outbound, quoted, now) else {
            return Verdict::Drop(Drop::IcmpUnmatched);
        };
        icmp::translate(bytes, header, hit.flow.to);
        hit.flow.remote.map_or(Verdict::Deliver, Verdict::Forward)
    }

    /// An error from a peer about a packet that we sent it.
    fn icmp_inbound(
        &mut self,
        from: NodeId,
        bytes: &mut [u8],
        header: &Header,
        quoted: FiveTuple,
        now: Timestamp,
    ) -> Verdict {
        let sender = header.tuple.source;
        let is_host = self.view.peer(from).is_some_and(|peer| peer.address.0 == sender);
        // Every address of that peer lies on the way to those that it carries.
        if sender != quoted.destination && !is_host && !packet::is_too_big(bytes, header) {
            return Verdict::Drop(Drop::SpoofedSource);
        }
        let hit = self.quoted_flow(Direction::Inbound, quoted, now);
        let Some(hit) = hit.filter(|hit| hit.flow.remote == Some(from)) else {
            return Verdict::Drop(Drop::IcmpUnmatched);
        };
        icmp::translate(bytes, header, hit.flow.to);
        Verdict::Deliver
    }

    fn quoted_flow(&mut self, side: Direction, quoted: FiveTuple, now: Timestamp) -> Option<Hit> {
        let key = Key { side, tuple: quoted.reverse() };
        let (place, flow) = self.flows.find(key, now)?;
        self.recheck(Hit { key, place, flow }).ok()
    }

    /// A reset ends both directions, and only one of them shows it: the other would hold its place as a busy flow.
    fn end_answers(&mut self, key: Key, now: Timestamp) {
        if let Some((place, flow)) = self.flows.find(key, now) {
            self.flows.touch(place, key, &flow, FlowTraffic { packets: 0, tcp_flags: RST }, now);
            self.mark(place);
        }
    }

    /// Returns the largest packet that may go to the other end, if that is a peer.
    fn way(&self, remote: Option<NodeId>) -> Option<usize> {
        let narrow = |peer| self.narrow.get(&peer).copied().unwrap_or(u16::MAX).max(MIN_MTU);
        remote.map(|peer| usize::from(self.full(peer).min(narrow(peer))))
    }

    fn mark(&mut self, place: FlowSlot) {
        if self.dirty.len() < MAX_DIRTY {
            self.dirty.push(place.slot());
        }
    }
}

/// Why a packet opens no flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Drop(Drop),
    Refuse(Refuse),
    /// It is an echo request to a VIP that may be answered here.
    Echo,
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn reason(malformed: Malformed) -> Drop {
    match malformed {
        Malformed::NotIpv4 => Drop::NotIpv4,
        Malformed::Truncated => Drop::Malformed,
    }
}

#[cfg(test)]
mod tests;
