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

mod fragments;
mod icmp;
mod inbound;
mod outbound;
mod probe;
mod refuse;

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::base::addr::{Flat, Real, is_forbidden};
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;
use crate::dataplane::flow::{Flow, FlowTable, Full, Key, Place, Seen, Side, State, Touched};
use crate::dataplane::policy_index::Question;
use crate::dataplane::verdict::{Drop, Refuse, Verdict};
use crate::dataplane::view::{DEFAULT_MTU, MIN_MTU, Owner, View};
use crate::ops::bench::{Report, Runs};
use crate::packet::{self, Checksum, FiveTuple, Header, Kind, Malformed, Rewrite};
use crate::trust::audit_log::Told;

use fragments::Fragments;
use refuse::Replies;

pub use probe::{BenchPacket, PROBE_PORT, RESERVED, SMALLEST_BENCH, read_reserved, write_reserved};

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
    mtu: u16,
    fragments: Fragments,
    replies: Replies,
    dirty: Vec<usize>,
    /// What peers measure.
    runs: Runs,
    reported: Report,
    /// The end of the log of operations, as peers are told of it with each probe, and what a peer told last.
    told: Option<Told>,
    heard: Option<Told>,
    /// The flow of the packet that was allowed to pass last.
    last: Option<Key>,
}

/// A direction of a flow that this packet belongs to.
#[derive(Debug, Clone, Copy)]
struct Hit {
    key: Key,
    place: Place,
    flow: Flow,
}

impl Engine {
    /// Makes the pipeline of a lane.
    pub fn new(view: Arc<View>, flows: Arc<FlowTable>) -> Self {
        Self {
            view,
            flows,
            locals: Arc::from([]),
            mtu: DEFAULT_MTU,
            fragments: Fragments::new(),
            replies: Replies::new(),
            dirty: Vec::with_capacity(MAX_DIRTY),
            runs: Runs::default(),
            reported: Report::default(),
            told: None,
            heard: None,
            last: None,
        }
    }

    /// Puts another map in force, from the next packet on.
    pub fn set_view(&mut self, view: Arc<View>) {
        self.view = view;
    }

    /// Says which addresses outside the mesh are the host's own: packets from them (a process that called a
    /// ClusterIP, say) leave as the node's address.
    pub fn set_locals(&mut self, locals: Arc<[Ipv4Addr]>) {
        self.locals = locals;
    }

    /// Says what peers are told of the log of operations.
    pub fn set_told(&mut self, told: Option<Told>) {
        self.told = told;
    }

    /// Takes out what the peer said of the log whose probe or answer `inbound` just took.
    pub fn take_heard(&mut self) -> Option<Told> {
        self.heard.take()
    }

    /// Sets the largest packet that this node's interface takes, in bytes.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu.max(MIN_MTU);
    }

    /// Decides what becomes of a packet from the TUN, and rewrites it.
    pub fn outbound(&mut self, bytes: &mut [u8], checksum: Checksum, now: Timestamp) -> Verdict {
        self.replies.clear();
        let header = match Header::parse(bytes) {
            Ok(header) => header,
            Err(malformed) => return Verdict::Drop(reason(malformed)),
        };
        let key = Key { side: Side::Outbound, tuple: header.tuple };
        match header.kind {
            Kind::LaterFragment => {
                return self.later_fragment(Side::Outbound, None, bytes, &header, now);
            }
            Kind::IcmpError(quoted) => return self.icmp_outbound(bytes, &header, quoted, now),
            Kind::IcmpOther if icmp::quotes_no_flow(bytes, &header) => return Verdict::Drop(Drop::IcmpUnmatched),
            Kind::Udp if self.is_probe(&header.tuple) => return Verdict::Drop(Drop::BadProbe),
            Kind::Tcp(_) | Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::IcmpOther | Kind::Other => {}
        }
        if header.first_fragment {
            self.fragments.forget(Side::Outbound, &header);
        }
        let hit = match self.known(key, None, &header, now) {
            Some(judged) => judged,
            None => match self.open_outbound(&header, now) {
                Ok(hit) => Ok(hit),
                Err(Fate::Drop(why)) => return Verdict::Drop(why),
                Err(Fate::Echo) => return self.answer_echo(bytes, &header, now),
                Err(Fate::Refuse(why)) => Err(why),
            },
        };
        let hit = match hit {
            Ok(hit) => hit,
            Err(why) => return self.refuse(bytes, &header, why, now),
        };
        let too_big = self.way(hit.flow.remote).filter(|&mtu| checksum == Checksum::Complete && header.total_len > mtu);
        if let Some(mtu) = too_big {
            return self.refuse_size(bytes, &header, mtu as u16, now);
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
        if self.view.owner(Flat(header.tuple.source)) != Some(Owner::Peer(from)) {
            return Verdict::Drop(Drop::SpoofedSource);
        }
        if packet::is_source_routed(bytes, &header) {
            return Verdict::Drop(Drop::ForbiddenDestination);
        }
        let key = Key { side: Side::Inbound, tuple: header.tuple };
        match header.kind {
            Kind::LaterFragment => {
                return self.later_fragment(Side::Inbound, Some(from), bytes, &header, now);
            }
            Kind::IcmpError(quoted) => return self.icmp_inbound(from, bytes, &header, quoted, now),
            Kind::IcmpOther if icmp::quotes_no_flow(bytes, &header) => return Verdict::Drop(Drop::IcmpUnmatched),
            Kind::Udp if self.is_probe(&header.tuple) => {
                return self.answer_probe(from, bytes, &header, now);
            }
            Kind::Tcp(_) | Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::IcmpOther | Kind::Other => {}
        }
        if header.first_fragment {
            self.fragments.forget(Side::Inbound, &header);
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
            Err(why) => self.refuse(bytes, &header, why, now),
        }
    }

    /// Counts packets that continue the one that was just allowed to pass, and pass with it as one super-packet.
    pub fn more(&mut self, seen: Seen, now: Timestamp) {
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

    /// Calls `f` with every flow entry that changed since the last call: its slot and `FlowTable::ENTRY_BYTES` bytes.
    pub fn drain_dirty(&mut self, mut f: impl FnMut(usize, &[u8])) {
        for slot in self.dirty.drain(..) {
            f(slot, &self.flows.entry(slot));
        }
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
        let seen = Seen { packets: 1, bytes: header.total_len, tcp_flags };
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
        if flow.state == State::HalfOpen && self.flows.assure(key, &flow, now) {
            self.mark(place);
        }
        let verdict = match (key.side, flow.remote) {
            (Side::Outbound, Some(peer)) => Verdict::Forward(peer),
            (Side::Outbound, None) | (Side::Inbound, _) => Verdict::Deliver,
        };
        if header.first_fragment {
            self.fragments.remember(key.side, header, &flow, verdict, now);
        }
        verdict
    }

    /// Finds the flow of a packet and says whether it may go on; none if the packet begins a flow of its own. One that
    /// has ended is forgotten when a new connection takes its ports, so that what its old backend still sends is not
    /// taken for the new one's; so is one whose other end is gone, or another's by now.
    fn known(
        &mut self,
        key: Key,
        from: Option<NodeId>,
        header: &Header,
        now: Timestamp,
    ) -> Option<Result<Hit, Refuse>> {
        let (place, flow) = self.flows.find(key, now)?;
        let hit = Hit { key, place, flow };
        // What a peer sends comes from its own addresses, so that a flow of another peer is their former owner's.
        let is_anothers = from.is_some() && flow.remote != from;
        if is_anothers || reopens(header, &hit) {
            self.forget(&hit);
            return None;
        }
        match self.recheck(hit) {
            Err(Refuse::BackendGone) if flow.opened && may_open(header) => None,
            judged => Some(judged),
        }
    }

    /// A reset ends both directions, and only one of them shows it: the other would hold its place as a busy flow.
    fn end_answers(&mut self, key: Key, now: Timestamp) {
        if let Some((place, flow)) = self.flows.find(key, now) {
            self.flows.touch(place, key, &flow, Seen { packets: 0, bytes: 0, tcp_flags: RST }, now);
            self.mark(place);
        }
    }

    fn forget(&mut self, hit: &Hit) {
        let answer = (hit.key.answer(&hit.flow), hit.key.tuple.reverse());
        for (key, to) in [(hit.key, hit.flow.to), answer] {
            if let Some(place) = self.flows.remove(key, to) {
                self.mark(place);
            }
        }
    }

    /// Judges a flow again if the map changed since it was last judged. A flow that may not go on is forgotten.
    fn recheck(&mut self, hit: Hit) -> Result<Hit, Refuse> {
        let Hit { key, place, flow } = hit;
        if flow.revision == self.view.stamp() {
            return Ok(hit);
        }
        let answer = key.answer(&flow);
        let judged = if flow.opened {
            self.judge(key, flow.to, flow.remote)
        } else {
            self.judge(answer, key.tuple.reverse(), flow.remote)
        };
        if let Err(why) = judged {
            self.forget(&hit);
            return Err(why);
        }
        self.flows.stamp(place, key, self.view.stamp());
        self.mark(place);
        Ok(hit)
    }

    /// Says whether the direction that opens a flow may: `key` rewritten to `to`, with the other end at `remote`.
    fn judge(&self, key: Key, to: FiveTuple, remote: Option<NodeId>) -> Result<(), Refuse> {
        let view = &self.view;
        let (source, destination) = match key.side {
            Side::Inbound => {
                let destination = Flat(key.tuple.destination);
                if view.real(destination) != Some(Real(to.destination)) {
                    return Err(Refuse::BackendGone);
                }
                (Flat(key.tuple.source), destination)
            }
            Side::Outbound => {
                let carrier = match remote {
                    Some(_) => Some(Flat(to.destination)),
                    None => view.flat(Real(to.destination)),
                };
                let source = self.image(key.tuple.source).ok_or(Refuse::NoRoute)?;
                if to.source != self.shown_source(&key.tuple, source, remote) {
                    return Err(Refuse::BackendGone);
                }
                (source, carrier.ok_or(Refuse::BackendGone)?)
            }
        };
        let far = if key.side == Side::Inbound { source } else { destination };
        if view.owner(far) != Some(remote.map_or(Owner::Own, Owner::Peer)) {
            return Err(Refuse::BackendGone);
        }
        let service = match key.side {
            Side::Outbound if view.is_vip(key.tuple.destination) => {
                let (index, service) = view.service_by_vip(key.tuple.destination).ok_or(Refuse::UnknownService)?;
                let port =
                    view.port(index, key.tuple.protocol, key.tuple.destination_port).ok_or(Refuse::ClosedPort)?;
                let listed = |b: &crate::model::netmap::Backend| {
                    b.address == destination && b.target(port) == to.destination_port
                };
                if !service.balancer.backends().iter().any(listed) {
                    return Err(Refuse::BackendGone);
                }
                Some((index as u32, port.port))
            }
            // What was dialled may have moved away from the address here that it stood for.
            Side::Outbound if destination.0 != key.tuple.destination => return Err(Refuse::BackendGone),
            Side::Outbound | Side::Inbound => None,
        };
        let question = Question { source, destination, protocol: to.protocol, port: to.destination_port, service };
        view.access().judge(&question).map(|_rule| ()).ok_or(Refuse::Denied)
    }

    /// Remembers both directions of a new flow; `flow` is the one that `key` opens.
    fn remember(&mut self, key: Key, flow: Flow, now: Timestamp) -> Result<Hit, Fate> {
        let answer = key.answer(&flow);
        let back = Flow { to: key.tuple.reverse(), opened: !flow.opened, ..flow };
        let full = |Full| Fate::Drop(Drop::FlowTableFull);
        let place = self.flows.insert(key, &flow, now).map_err(full)?;
        match self.flows.insert(answer, &back, now) {
            Ok(other) => self.mark(other),
            Err(Full) => {
                self.flows.remove(key, flow.to);
                return Err(full(Full));
            }
        }
        self.mark(place);
        Ok(Hit { key, place, flow })
    }

    /// Returns the mesh address that an address on this host stands for.
    fn image(&self, source: Ipv4Addr) -> Option<Flat> {
        if is_forbidden(source) {
            return None;
        }
        let own = || self.locals.contains(&source).then(|| self.view.address());
        self.view.flat(Real(source)).or_else(own)
    }

    /// Returns the source that the other end sees.
    fn shown_source(&self, tuple: &FiveTuple, image: Flat, remote: Option<NodeId>) -> Ipv4Addr {
        // The kernel drops a packet from the TUN whose source is the host's own: the node calls its own backends in
        // the name of what it dialled.
        if remote.is_none() && image == self.view.address() { tuple.destination } else { image.0 }
    }

    /// Returns the largest packet that may go to the other end, if that is a peer.
    fn way(&self, remote: Option<NodeId>) -> Option<usize> {
        remote.map(|peer| usize::from(self.view.mtu(peer).min(self.mtu)))
    }

    fn mark(&mut self, place: Place) {
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

/// Says whether a packet begins a connection.
fn is_syn(header: &Header) -> bool {
    matches!(header.kind, Kind::Tcp(flags) if flags & (SYN | ACK) == SYN)
}

/// Says whether a packet may be the first of a flow: not one from the middle of a connection.
fn may_open(header: &Header) -> bool {
    is_syn(header) || !matches!(header.kind, Kind::Tcp(_))
}

/// Says whether a packet begins a connection that a flow was not made for: on the ports of one that has ended, or
/// against the flow's direction, where the callee would call its caller. The flow's decision does not bind it.
fn reopens(header: &Header, hit: &Hit) -> bool {
    is_syn(header) && (!hit.flow.opened || hit.flow.state <= State::Closing)
}

fn reason(malformed: Malformed) -> Drop {
    match malformed {
        Malformed::NotIpv4 => Drop::NotIpv4,
        Malformed::Truncated => Drop::Malformed,
    }
}

#[cfg(test)]
mod tests;
