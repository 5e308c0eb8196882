//! The oracle: what may become of a packet, said as plainly as the specification says it.
//!
//! It keeps the conversations let through so far in a list, looks everything up by walking the map, and
//! answers with every outcome that is right. The comparison settles on the one that the engine took.

use std::net::Ipv4Addr;
use std::sync::Arc;

use mesh_proto::base::addr::is_forbidden;
use mesh_proto::base::id::{NodeId, Revision, ServiceKey};
use mesh_proto::dataplane::verdict::{Drop, Refuse, Verdict};
use mesh_proto::model::netmap::{Backend, NetMap, Service, ServicePort};
use mesh_proto::packet::{FiveTuple, ICMP, TCP, UDP};

use crate::generate::NEXT_HOP;
use crate::packet::{ACK, Body, FIN, Packet, RST, SYN};
use crate::policy::{Goal, may, owner};

/// Type and code of an ICMP error that asks for smaller packets.
const TOO_BIG: (u8, u8) = (3, 4);
/// What a node's own interface takes unless it is told otherwise, in bytes.
const OWN_MTU: usize = 1420;

/// Where a packet comes from, and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The kernel of this node.
    Tun,
    /// The tunnel to a peer.
    Peer(NodeId),
}

/// A conversation as one node sees it.
#[derive(Debug, Clone)]
pub(crate) struct ModelFlow {
    /// Where its opener is, and what the opener's packets look like as they come.
    pub(crate) first: End,
    pub(crate) asked: FiveTuple,
    /// Where it leads, and what the opener's packets look like as they leave.
    pub(crate) other: End,
    pub(crate) sent: FiveTuple,
    /// The mesh address that the opener speaks for.
    caller: Ipv4Addr,
    /// The mesh address and port that are called.
    pub(crate) goal: (Ipv4Addr, u16),
    /// The service and the port that was dialled at its VIP.
    pub(crate) service: Option<(ServiceKey, u16)>,
    revision: Revision,
    ended: bool,
    /// Whether it was taken up from its middle.
    resumed: bool,
}

impl ModelFlow {
    /// What tells its packets from others, in both directions: whether the kernel sends them, and their addresses.
    fn keys(&self) -> [(bool, FiveTuple); 2] {
        [(self.first == End::Tun, self.asked), (self.other == End::Tun, self.sent.reverse())]
    }
}

/// A first fragment that was let through.
#[derive(Debug, Clone)]
struct Piece {
    from: End,
    /// Source, destination, protocol and identification as it came.
    key: (Ipv4Addr, Ipv4Addr, u8, u16),
    to: End,
    /// Source and destination as it left.
    sent: (Ipv4Addr, Ipv4Addr),
    revision: Revision,
}

/// A verdict that is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Is(Verdict),
    /// Any refusal or drop.
    Stopped,
}

/// One way in which it may go on.
#[derive(Debug, Clone)]
pub(crate) struct ModelOutcome {
    pub(crate) want: Want,
    /// What the packet must look like.
    pub(crate) after: Option<Packet>,
    /// Whether the source port is taken, so that it must be another one.
    pub(crate) other_port: bool,
    /// The conversation that ends with it.
    forget: Option<usize>,
    /// The conversation that goes on with it.
    pub(crate) keep: Option<usize>,
    /// The conversation that begins with it.
    pub(crate) open: Option<ModelFlow>,
}

/// What one node knows.
pub(crate) struct Model {
    pub(crate) map: Arc<NetMap>,
    pub(crate) locals: Vec<Ipv4Addr>,
    pub(crate) flows: Vec<ModelFlow>,
    pieces: Vec<Piece>,
}

fn ends(verdict: Verdict) -> Vec<ModelOutcome> {
    vec![ModelOutcome { want: Want::Is(verdict), after: None, other_port: false, forget: None, keep: None, open: None }]
}

fn drops(reason: Drop) -> Vec<ModelOutcome> {
    ends(Verdict::Drop(reason))
}

fn refuses(reason: Refuse) -> Vec<ModelOutcome> {
    ends(Verdict::Refuse(reason))
}

fn stops() -> Vec<ModelOutcome> {
    ends(Verdict::Drop(Drop::Malformed)).into_iter().map(|o| ModelOutcome { want: Want::Stopped, ..o }).collect()
}

impl Model {
    pub(crate) fn new(map: Arc<NetMap>, locals: Vec<Ipv4Addr>) -> Self {
        Self { map, locals, flows: Vec::new(), pieces: Vec::new() }
    }

    /// Says everything that may rightly become of a packet.
    pub(crate) fn judge(&self, from: End, p: &Packet) -> Vec<ModelOutcome> {
        if let End::Peer(peer) = from
            && owner(&self.map, p.tuple.source).is_none_or(|o| o.peer != Some(peer))
        {
            return drops(Drop::SpoofedSource);
        }
        if p.later() {
            return self.later(from, p);
        }
        if let Body::Error { quote, len, .. } = &p.body {
            return self.error(from, p, quote, *len);
        }
        let Some((index, onward)) = self.find(from, p.tuple) else {
            return self.fresh(from, p, None);
        };
        let flow = &self.flows[index];
        if flow.revision != self.map.revision && !self.stands(flow) {
            let gone = if onward { self.lost(flow) } else { stops() };
            let gone = gone.into_iter().map(|o| ModelOutcome { forget: Some(index), ..o });
            return gone.chain(self.fresh(from, p, Some(index))).collect();
        }
        let mut all = self.pass(index, onward, p);
        // The ports of what has ended may serve again; two that call each other at once may be judged singly.
        let syn = p.flags().is_some_and(|f| f & (SYN | ACK) == SYN);
        if (syn && (flow.ended || !onward)) || p.flags().is_some_and(|_| flow.ended && onward && opens(p)) {
            all.extend(self.fresh(from, p, Some(index)));
        }
        all
    }

    /// Says whether a packet answers what the kernel of this node was seen to ask.
    pub(crate) fn answers(&self, from: End, p: &Packet, chosen: &ModelOutcome) -> bool {
        let flow = chosen.keep.and_then(|index| self.flows.get(index));
        flow.is_some_and(|f| f.first == End::Tun && f.other == from && f.sent.reverse() == p.tuple && !f.resumed)
    }

    /// Remembers what the engine did.
    pub(crate) fn settle(&mut self, from: End, p: &Packet, chosen: &ModelOutcome, verdict: Verdict) {
        if let Some(index) = chosen.keep {
            self.flows[index].revision = self.map.revision;
            self.flows[index].ended |= p.flags().is_some_and(|f| f & (FIN | RST) != 0);
        }
        if let Some(index) = chosen.forget {
            self.flows.swap_remove(index);
        }
        if let Some(flow) = &chosen.open {
            // What may not go on holds no place that a new conversation needs.
            let needed = flow.keys();
            let is_free = |f: &ModelFlow| !f.keys().iter().any(|key| needed.contains(key)) || self.goes_on(f);
            let kept: Vec<bool> = self.flows.iter().map(is_free).collect();
            let mut kept = kept.into_iter();
            self.flows.retain(|_| kept.next() == Some(true));
            self.flows.push(ModelFlow { resumed: !opens(p), ..flow.clone() });
        }
        let to = match verdict {
            Verdict::Forward(peer) => Some(End::Peer(peer)),
            Verdict::Deliver => Some(End::Tun),
            Verdict::Reply | Verdict::Refuse(_) | Verdict::Drop(_) | Verdict::RoundTrip(_) | Verdict::Bench => None,
        };
        if p.first() {
            let key = (p.tuple.source, p.tuple.destination, p.tuple.protocol, p.id);
            self.pieces.retain(|piece| piece.from != from || piece.key != key);
            if let (Some(to), Some(after)) = (to, &chosen.after) {
                let sent = (after.tuple.source, after.tuple.destination);
                self.pieces.push(Piece { from, key, to, sent, revision: self.map.revision });
            }
        }
    }

    /// Finds the conversation of a packet, and whether it goes the opener's way.
    fn find(&self, from: End, t: FiveTuple) -> Option<(usize, bool)> {
        let onward = self.flows.iter().position(|f| f.first == from && f.asked == t).map(|i| (i, true));
        onward.or_else(|| self.flows.iter().position(|f| f.other == from && f.sent.reverse() == t).map(|i| (i, false)))
    }

    /// Says whether a conversation may go on: it was allowed by the map in force, or is now.
    fn goes_on(&self, f: &ModelFlow) -> bool {
        f.revision == self.map.revision || self.stands(f)
    }

    /// Returns the mesh address and port of the called end. Behind a VIP it is whatever address a pod of this node has.
    fn goal(&self, f: &ModelFlow) -> (Ipv4Addr, u16) {
        let is_here = f.first == End::Tun && f.other == End::Tun && f.service.is_some();
        let address = if is_here { self.stands_for(f.sent.destination) } else { None };
        (address.unwrap_or(f.goal.0), f.goal.1)
    }

    /// Says whether both ends are where they were.
    fn reaches(&self, f: &ModelFlow) -> bool {
        let place = |address| owner(&self.map, address).map(|o| o.peer.map_or(End::Tun, End::Peer));
        place(f.caller) == Some(f.first)
            && place(self.goal(f).0) == Some(f.other)
            && (f.first != End::Tun || self.stands_for(f.asked.source) == Some(f.caller))
            && (f.other != End::Tun || self.real(self.goal(f).0) == Some(f.sent.destination))
    }

    /// Says whether a conversation may go on under the map in force.
    fn stands(&self, f: &ModelFlow) -> bool {
        self.reaches(f)
            && match &f.service {
                Some((key, dialled)) => self.map.services.get(key).is_some_and(|service| {
                    let listed = |port: &ServicePort| {
                        service.backends.iter().any(|b| (b.address.0, b.target(port)) == self.goal(f))
                    };
                    port(service, f.asked.protocol, *dialled).is_some_and(listed)
                        && may(&self.map, f.caller, &Goal::Port(key, *dialled))
                }),
                None => may(&self.map, f.caller, &Goal::Address(f.goal.0, f.asked.protocol, f.goal.1)),
            }
    }

    /// Says why a conversation may not go on, as its opener hears it.
    fn lost(&self, f: &ModelFlow) -> Vec<ModelOutcome> {
        let mut all = Vec::new();
        if !self.reaches(f) {
            all.extend(refuses(Refuse::BackendGone));
        }
        if let Some((key, dialled)) = &f.service {
            let service = self.map.services.get(key);
            if service.is_none() {
                all.extend(refuses(Refuse::UnknownService));
            }
            if service.is_some_and(|s| port(s, f.asked.protocol, *dialled).is_none()) {
                all.extend(refuses(Refuse::ClosedPort));
            }
            let there = |port: &ServicePort, b: &Backend| (b.address.0, b.target(port)) == f.goal;
            let listed = |s: &Service| s.ports.iter().any(|p| s.backends.iter().any(|b| there(p, b)));
            if !service.is_some_and(listed) {
                all.extend(refuses(Refuse::BackendGone));
            }
            if !may(&self.map, f.caller, &Goal::Port(key, *dialled)) {
                all.extend(refuses(Refuse::Denied));
            }
        } else if owner(&self.map, f.goal.0).is_none() {
            all.extend([refuses(Refuse::NoRoute), refuses(Refuse::BackendGone)].concat());
        } else if !may(&self.map, f.caller, &Goal::Address(f.goal.0, f.asked.protocol, f.goal.1)) {
            all.extend(refuses(Refuse::Denied));
        }
        all
    }

    /// Says what becomes of the next packet of a conversation that may go on.
    fn pass(&self, index: usize, onward: bool, p: &Packet) -> Vec<ModelOutcome> {
        let f = &self.flows[index];
        let (to, t) = if onward { (f.other, f.sent) } else { (f.first, f.asked.reverse()) };
        let all = self.emit(if onward { f.first } else { f.other }, to, p, p.between(t));
        all.into_iter().map(|o| ModelOutcome { keep: Some(index), ..o }).collect()
    }

    /// Says what leaves, where it fits.
    fn emit(&self, from: End, to: End, before: &Packet, mut after: Packet) -> Vec<ModelOutcome> {
        let mut all = ends(Verdict::Deliver);
        // Both ends may be narrower than the middle, so a segment's size is bounded on both ways.
        let mut mtu = if let End::Peer(peer) = from { self.mtu(peer) } else { OWN_MTU };
        if let End::Peer(peer) = to {
            mtu = self.mtu(peer);
            let length = before.bytes().len();
            // What the kernel left for us to split is split to size afterwards.
            if length > mtu && !(before.partial && before.flags().is_some()) {
                let too_big = before.df && !before.later();
                return if too_big { refuses(Refuse::TooBig) } else { drops(Drop::Oversized) };
            }
            all = ends(Verdict::Forward(peer));
        }
        if let Body::Tcp { flags, mss: Some(mss), .. } = &mut after.body
            && *flags & SYN != 0
            && !before.later()
        {
            *mss = (*mss).min((mtu - 40) as u16);
        }
        all.into_iter().map(|o| ModelOutcome { after: Some(after.clone()), ..o }).collect()
    }

    /// Returns the largest packet that may go to a peer.
    pub(crate) fn mtu(&self, peer: NodeId) -> usize {
        let peer = self.map.peers.values().find(|p| p.id == peer);
        peer.map_or(OWN_MTU, |p| usize::from(p.mtu).clamp(576, OWN_MTU))
    }

    fn later(&self, from: End, p: &Packet) -> Vec<ModelOutcome> {
        let mut unmatched = drops(Drop::FragmentUnmatched);
        if from == End::Tun && self.stands_for(p.tuple.source).is_none() {
            unmatched.extend(drops(Drop::SpoofedSource));
        }
        let key = (p.tuple.source, p.tuple.destination, p.tuple.protocol, p.id);
        let Some(piece) = self.pieces.iter().find(|piece| piece.from == from && piece.key == key) else {
            return unmatched;
        };
        let t = FiveTuple { source: piece.sent.0, destination: piece.sent.1, ..p.tuple };
        let mut all = if piece.revision == self.map.revision { Vec::new() } else { unmatched };
        let peer_left = matches!(piece.to, End::Peer(id) if self.map.peers.values().all(|p| p.id != id));
        if !peer_left {
            all.extend(self.emit(from, piece.to, p, p.between(t)));
        }
        all
    }

    /// An error passes only if it quotes a packet that a live conversation sent to where the error comes from.
    fn error(&self, from: End, p: &Packet, quote: &Packet, len: usize) -> Vec<ModelOutcome> {
        let Body::Error { kind, code, extra, .. } = p.body else {
            return stops();
        };
        let unmatched = drops(Drop::IcmpUnmatched);
        let ours = from != End::Tun || self.stands_for(p.tuple.source).is_some();
        let quotable = !quote.later() && !matches!(quote.body, Body::Error { .. });
        if !self.may_speak_of(from, p.tuple.source, quote.tuple.destination, (kind, code) == TOO_BIG) {
            return [unmatched, drops(Drop::SpoofedSource)].concat();
        }
        let found = self.find(from, quote.tuple.reverse()).filter(|_| quotable);
        let Some((index, onward)) = found else {
            return if ours { unmatched } else { [unmatched, drops(Drop::SpoofedSource)].concat() };
        };
        let flow = &self.flows[index];
        if flow.revision != self.map.revision && !self.stands(flow) {
            return stops().into_iter().map(|o| ModelOutcome { forget: Some(index), ..o }).collect();
        }
        let (to, quoted) = if onward { (flow.other, flow.sent.reverse()) } else { (flow.first, flow.asked) };
        let mut t = FiveTuple { source: p.tuple.source, destination: quoted.source, ..p.tuple };
        if p.tuple.source == quote.tuple.destination {
            t.source = quoted.destination;
        } else if from == End::Tun {
            t.source = self.stands_for(p.tuple.source).unwrap_or(quoted.destination);
        }
        let quote = Box::new(quote.between(quoted));
        let extra = if (kind, code) == TOO_BIG { extra.max(576) } else { extra };
        let body = Body::Error { kind, code, extra, quote, len };
        let mut all = self.emit(from, to, p, Packet { body: body.clone(), ..p.between(t) });
        // Who reports it from elsewhere on the way may be hidden behind the end of the conversation.
        let hidden = FiveTuple { source: quoted.destination, ..t };
        all.extend(self.emit(from, to, p, Packet { body, ..p.between(hidden) }));
        if !ours {
            all.extend(drops(Drop::SpoofedSource));
        }
        all.iter_mut().for_each(|o| o.keep = Some(index));
        if p.tuple.destination != flow_end(flow, onward) {
            all.extend(unmatched);
        }
        all
    }

    /// Says whether a sender may report that packets to a receiver fail: the receiver itself and its host; that they are
    /// too large also who is on the way to it.
    fn may_speak_of(&self, from: End, sender: Ipv4Addr, receiver: Ipv4Addr, too_big: bool) -> bool {
        let host = match from {
            End::Tun => sender == self.map.node.address.0 || self.locals.contains(&sender),
            End::Peer(id) => self.map.peers.values().any(|p| p.id == id && p.address.0 == sender),
        };
        let on_the_way = from != End::Tun || (sender == NEXT_HOP && receiver.octets()[..2] == [10, 8]);
        sender == receiver || host || (too_big && on_the_way)
    }

    /// Returns the mesh address that a source on this node stands for.
    fn stands_for(&self, source: Ipv4Addr) -> Option<Ipv4Addr> {
        if is_forbidden(source) {
            return None;
        }
        let node = &self.map.node;
        let local = source == node.address.0 || self.locals.contains(&source);
        let block = node.blocks.iter().find(|b| b.real.contains(&source));
        let moved = block.map(|b| shift(source, b.real.network(), b.flat.network()));
        moved.or_else(|| local.then_some(node.address.0))
    }

    /// Returns the address behind this node that a mesh address is the image of.
    fn real(&self, flat: Ipv4Addr) -> Option<Ipv4Addr> {
        let node = &self.map.node;
        let block = node.blocks.iter().find(|b| b.flat.contains(&flat));
        let moved = block.map(|b| shift(flat, b.flat.network(), b.real.network()));
        moved.or_else(|| (flat == node.address.0).then_some(flat))
    }
}

/// Returns the address that the quoted packet's sender shows to where an error comes from.
fn flow_end(flow: &ModelFlow, onward: bool) -> Ipv4Addr {
    if onward { flow.asked.destination } else { flow.sent.source }
}

fn shift(address: Ipv4Addr, from: Ipv4Addr, to: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) - u32::from(from) + u32::from(to))
}

/// Packets that belong to no conversation: the first of one, or strays.
impl Model {
    /// Says what becomes of a packet that belongs to no conversation but perhaps to `instead_of` one.
    fn fresh(&self, from: End, p: &Packet, instead_of: Option<usize>) -> Vec<ModelOutcome> {
        let all = match from {
            End::Tun => self.outbound(p, instead_of),
            End::Peer(_) => self.inbound(from, p),
        };
        all.into_iter().map(|o| ModelOutcome { forget: instead_of, ..o }).collect()
    }

    fn outbound(&self, p: &Packet, instead_of: Option<usize>) -> Vec<ModelOutcome> {
        let t = p.tuple;
        let Some(caller) = self.stands_for(t.source) else {
            let mut all = drops(Drop::SpoofedSource);
            if is_forbidden(t.destination) || !self.map.mesh.range.contains(t.destination) {
                all.extend(drops(Drop::ForbiddenDestination));
            }
            return all;
        };
        if self.map.mesh.range.vips().contains(&t.destination) {
            return self.to_service(p, caller, instead_of);
        }
        let Some(there) = owner(&self.map, t.destination) else {
            let mut all = refuses(Refuse::NoRoute);
            // What lies outside the mesh may count as an address that nobody may reach.
            if !self.map.mesh.range.contains(t.destination) {
                all.extend(drops(Drop::ForbiddenDestination));
            }
            return all;
        };
        if opens(p) {
            return if may(&self.map, caller, &Goal::Address(t.destination, t.protocol, t.destination_port)) {
                self.open(p, caller, (t.destination, t.destination_port), None, instead_of)
            } else {
                refuses(Refuse::Denied)
            };
        }

        // From the middle of a conversation: an answer, if the other end may call us.
        let first = there.peer.map_or(End::Tun, End::Peer);
        let asked = FiveTuple { destination: caller, ..t.reverse() };
        let called = (caller, t.source_port);
        let answer = self.middle(first, t.destination, called, asked, p, End::Tun, t.reverse());
        let translated = caller != t.source && caller == self.map.node.address.0;
        if may(&self.map, caller, &Goal::Address(t.destination, t.protocol, t.destination_port)) {
            let question = self.open(p, caller, (t.destination, t.destination_port), None, instead_of);
            [question, answer, unknown()].concat()
        } else if first == End::Tun || translated {
            [answer, unknown()].concat()
        } else {
            answer
        }
    }

    fn to_service(&self, p: &Packet, caller: Ipv4Addr, instead_of: Option<usize>) -> Vec<ModelOutcome> {
        let t = p.tuple;
        // A connection whose backend nobody remembers never gets a second one.
        let lost = || refuses(Refuse::BackendGone);
        let middle = if opens(p) { Vec::new() } else { lost() };
        let with = |mut all: Vec<ModelOutcome>| {
            all.extend(middle.clone());
            all
        };
        let Some((key, service)) = self.map.services.iter().find(|(_, s)| s.vip.0 == t.destination) else {
            return with(refuses(Refuse::UnknownService));
        };
        if t.protocol == ICMP && opens(p) {
            let any = service.ports.iter().any(|port| may(&self.map, caller, &Goal::Port(key, port.port)));
            let mut all = if any { ends(Verdict::Reply) } else { refuses(Refuse::Denied) };
            if candidates(service).is_empty() {
                all.extend(refuses(Refuse::NoBackend));
            }
            return all;
        }
        let Some(port) = port(service, t.protocol, t.destination_port) else {
            return with(refuses(Refuse::ClosedPort));
        };
        if !opens(p) {
            return middle;
        }
        let candidates = candidates(service);
        let allowed = may(&self.map, caller, &Goal::Port(key, port.port));
        match (allowed, candidates.is_empty()) {
            (true, true) => refuses(Refuse::NoBackend),
            (false, true) => [refuses(Refuse::NoBackend), refuses(Refuse::Denied)].concat(),
            (false, false) => refuses(Refuse::Denied),
            (true, false) => {
                let named = Some((key.clone(), port.port));
                let to = |b: &&Backend| self.open(p, caller, (b.address.0, b.target(port)), named.clone(), instead_of);
                candidates.iter().flat_map(to).collect()
            }
        }
    }

    fn inbound(&self, from: End, p: &Packet) -> Vec<ModelOutcome> {
        let t = p.tuple;
        let Some(here) = self.real(t.destination) else {
            let mut all = drops(Drop::NotHere);
            if is_forbidden(t.destination) {
                all.extend(drops(Drop::ForbiddenDestination));
            }
            return all;
        };
        if is_forbidden(here) {
            return drops(Drop::ForbiddenDestination);
        }
        let sent = FiveTuple { destination: here, ..t };
        let goal = (t.destination, t.destination_port);
        if opens(p) {
            if !may(&self.map, t.source, &Goal::Address(goal.0, t.protocol, goal.1)) {
                return refuses(Refuse::Denied);
            }
            return self.begin(p, from, t, End::Tun, sent, t.source, goal, None);
        }
        let called = (t.source, t.source_port);
        let answer = self.middle(End::Tun, t.destination, called, sent.reverse(), p, from, t.reverse());
        if may(&self.map, t.source, &Goal::Address(goal.0, t.protocol, goal.1)) {
            let question = self.begin(p, from, t, End::Tun, sent, t.source, goal, None);
            [question, answer, unknown()].concat()
        } else {
            answer
        }
    }

    /// Says what becomes of a packet from the middle of a conversation that nobody remembers: it may be an answer
    /// to what `caller` asked of `called`; the question came from `first` as `asked` and went to `other` as `sent`.
    #[expect(clippy::too_many_arguments, reason = "a conversation has that many sides")]
    fn middle(
        &self,
        first: End,
        caller: Ipv4Addr,
        called: (Ipv4Addr, u16),
        asked: FiveTuple,
        p: &Packet,
        other: End,
        sent: FiveTuple,
    ) -> Vec<ModelOutcome> {
        let mut all = Vec::new();
        if p.flags().is_some() && may(&self.map, caller, &Goal::Address(called.0, p.tuple.protocol, called.1)) {
            let flow = ModelFlow {
                ended: p.flags().is_some_and(|f| f & (FIN | RST) != 0),
                ..self.flow(first, asked, other, sent, caller, called, None)
            };
            let emitted = self.emit(other, first, p, p.between(asked.reverse()));
            all.extend(emitted.into_iter().map(|o| ModelOutcome { open: Some(flow.clone()), ..o }));
        } else {
            all.extend(unknown());
        }
        all
    }

    /// Says what becomes of a packet that begins a conversation with an address in the mesh.
    fn open(
        &self,
        p: &Packet,
        caller: Ipv4Addr,
        goal: (Ipv4Addr, u16),
        service: Option<(ServiceKey, u16)>,
        instead_of: Option<usize>,
    ) -> Vec<ModelOutcome> {
        let Some(there) = owner(&self.map, goal.0) else {
            return refuses(Refuse::NoRoute);
        };
        let other = there.peer.map_or(End::Tun, End::Peer);
        let t = p.tuple;
        let mut sent = FiveTuple { source: caller, destination: goal.0, destination_port: goal.1, ..t };
        if other == End::Tun {
            sent.destination = self.real(goal.0).unwrap_or(goal.0);
            if is_forbidden(sent.destination) {
                return drops(Drop::ForbiddenDestination);
            }
            if caller == self.map.node.address.0 {
                sent.source = t.destination;
            }
        }
        let other_port = self.taken(other, sent, instead_of);
        if other_port && !matches!(t.protocol, TCP | UDP | ICMP) {
            return refuses(Refuse::NoSourcePort);
        }
        let all = self.begin(p, End::Tun, t, other, sent, caller, goal, service);
        all.into_iter().map(|o| ModelOutcome { other_port, ..o }).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "a conversation has that many sides")]
    fn begin(
        &self,
        p: &Packet,
        first: End,
        asked: FiveTuple,
        other: End,
        sent: FiveTuple,
        caller: Ipv4Addr,
        goal: (Ipv4Addr, u16),
        service: Option<(ServiceKey, u16)>,
    ) -> Vec<ModelOutcome> {
        let flow = self.flow(first, asked, other, sent, caller, goal, service);
        let all = self.emit(first, other, p, p.between(sent)).into_iter();
        all.map(|o| ModelOutcome { open: o.after.is_some().then(|| flow.clone()), ..o }).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "a conversation has that many sides")]
    fn flow(
        &self,
        first: End,
        asked: FiveTuple,
        other: End,
        sent: FiveTuple,
        caller: Ipv4Addr,
        goal: (Ipv4Addr, u16),
        service: Option<(ServiceKey, u16)>,
    ) -> ModelFlow {
        ModelFlow {
            first,
            asked,
            other,
            sent,
            caller,
            goal,
            service,
            revision: self.map.revision,
            ended: false,
            resumed: false,
        }
    }

    /// Says whether answers to these packets would be mistaken for another conversation's.
    pub(crate) fn taken(&self, other: End, sent: FiveTuple, instead_of: Option<usize>) -> bool {
        let others = self.flows.iter().enumerate().filter(|(i, f)| Some(*i) != instead_of && self.goes_on(f));
        others
            .into_iter()
            .any(|(_, f)| (f.other == other && f.sent == sent) || (f.first == other && f.asked == sent.reverse()))
    }
}

/// What is neither known nor permitted is refused.
fn unknown() -> Vec<ModelOutcome> {
    refuses(Refuse::Denied)
}

/// Says whether a packet may begin a conversation: not a segment from the middle, not an answer.
fn opens(p: &Packet) -> bool {
    match p.body {
        Body::Tcp { flags, .. } => flags & SYN != 0 && flags & (ACK | RST) == 0,
        Body::Echo { reply, .. } => !reply,
        Body::Udp { .. } | Body::Raw { .. } => true,
        Body::Error { .. } => false,
    }
}

fn port(service: &Service, protocol: u8, number: u16) -> Option<&ServicePort> {
    service.ports.iter().find(|p| p.transport.number() == protocol && p.port == number)
}

/// Returns the backends that may take a new connection.
pub(crate) fn candidates(service: &Service) -> Vec<&Backend> {
    let live = || service.backends.iter().filter(|b| b.weight > 0);
    let lowest = live().map(|b| b.tier).min();
    live().filter(|b| Some(b.tier) == lowest).collect()
}
