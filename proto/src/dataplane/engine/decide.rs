//! What may begin, and what may go on: the first packet of a flow, and the first after the map changed.
//!
//! Inbound is the authority, after decryption and before the kernel.

use std::net::Ipv4Addr;

use super::{ACK, Engine, Fate, Hit, MAX_DIRTY, SYN};
use crate::base::addr::{Flat, Real, is_forbidden};
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;
use crate::dataplane::flow::{Direction, Flow, FlowSlot, FlowState, Full, Key};
use crate::dataplane::policy_index::Question;
use crate::dataplane::verdict::{Drop, Refuse};
use crate::dataplane::view::AddressOwner;
use crate::packet::{FiveTuple, Header, ICMP, Kind, TCP, UDP};

/// Most source ports tried when another flow already uses the one that the caller chose.
const MAX_PORT_TRIES: u16 = 64;

/// Where a new flow goes.
struct Goal {
    /// The address that carries the target, a node's or a pod's image.
    carrier: Flat,
    /// The port there.
    port: u16,
    /// The service and its dialled port, if a VIP was dialled.
    service: Option<(u32, u16)>,
}

impl Engine {
    /// Finds the flow of a packet and says whether it may go on; none if the packet begins a flow of its own. One that
    /// has ended is forgotten when a new connection takes its ports, so that what its old backend still sends is not
    /// taken for the new one's; so is one whose other end is gone, or another's by now.
    pub(super) fn known(
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

    /// Decides a new flow from this host.
    pub(super) fn open_outbound(&mut self, header: &Header, now: Timestamp) -> Result<Hit, Fate> {
        let tuple = header.tuple;
        if !self.view.range().contains(tuple.destination) || is_forbidden(tuple.destination) {
            return Err(Fate::Drop(Drop::ForbiddenDestination));
        }
        let source = self.image(tuple.source).ok_or(Fate::Drop(Drop::SpoofedSource))?;
        let goal = self.goal(source, header)?;
        let remote = match self.view.owner(goal.carrier) {
            Some(AddressOwner::Own) => None,
            Some(AddressOwner::Peer(peer)) => Some(peer),
            None => return Err(Fate::Refuse(Refuse::NoRoute)),
        };
        let question = Question {
            source,
            destination: goal.carrier,
            protocol: tuple.protocol,
            port: goal.port,
            service: goal.service,
        };
        if self.view.access().judge(&question).is_none() {
            return self.resume_reply_outbound(header, remote, now);
        }
        let to = self.image_of_opening(&tuple, source, &goal, remote)?;
        let key = Key { side: Direction::Outbound, tuple };
        let flow = Flow::new(to, remote, self.view.stamp(), true, now);
        let flow = self.with_free_port(key, flow, now)?;
        self.remember(key, flow, now).map(|[there, _]| there)
    }

    /// Finds where a packet goes: through a VIP to a backend, or straight to a mesh address.
    fn goal(&self, source: Flat, header: &Header) -> Result<Goal, Fate> {
        let tuple = header.tuple;
        if !self.view.is_vip(tuple.destination) {
            return Ok(Goal { carrier: Flat(tuple.destination), port: tuple.destination_port, service: None });
        }
        let Some((index, service)) = self.view.service_by_vip(tuple.destination) else {
            // Only what a rule may allow is in the map with its backends; of the rest the map has the names.
            let is_named = self.view.name_of_vip(tuple.destination).is_some();
            return Err(Fate::Refuse(if is_named { Refuse::Denied } else { Refuse::UnknownService }));
        };
        if header.kind == Kind::EchoRequest {
            return Err(self.echo_to_vip(source, index));
        }
        let Some(port) = self.view.port(index, tuple.protocol, tuple.destination_port) else {
            return Err(Fate::Refuse(Refuse::ClosedPort));
        };
        // The middle of a connection whose backend is forgotten: a second backend would not know it.
        if matches!(header.kind, Kind::Tcp(_)) && !is_syn(header) {
            return Err(Fate::Refuse(Refuse::BackendGone));
        }
        // Whoever may not call draws no ticket, so that the weights stay exact for those who may.
        service.balancer.peek().ok_or(Fate::Refuse(Refuse::NoBackend))?;
        let allowed = self.view.access().judge_service(source, index as u32, port.port);
        allowed.ok_or(Fate::Refuse(Refuse::Denied))?;
        let backend = service.balancer.choose(source.0).ok_or(Fate::Refuse(Refuse::NoBackend))?;
        Ok(Goal { carrier: backend.address, port: backend.target(port), service: Some((index as u32, port.port)) })
    }

    /// An echo request to a VIP is answered here if the caller may call any port of the service.
    fn echo_to_vip(&self, source: Flat, index: usize) -> Fate {
        let Some(service) = self.view.service(index) else { return Fate::Refuse(Refuse::UnknownService) };
        let allowed = |port: u16| self.view.access().judge_service(source, index as u32, port).is_some();
        if service.ports.iter().any(|port| allowed(port.port)) { Fate::Echo } else { Fate::Refuse(Refuse::Denied) }
    }

    /// Computes what the opening direction is rewritten to.
    fn image_of_opening(
        &self,
        tuple: &FiveTuple,
        source: Flat,
        goal: &Goal,
        remote: Option<NodeId>,
    ) -> Result<FiveTuple, Fate> {
        let destination = match remote {
            Some(_) => goal.carrier.0,
            None => {
                let real = self.view.real(goal.carrier).ok_or(Fate::Drop(Drop::NotHere))?;
                real.0
            }
        };
        let source = self.shown_source(tuple, source, remote);
        if is_forbidden(destination) {
            return Err(Fate::Drop(Drop::ForbiddenDestination));
        }
        Ok(FiveTuple { source, destination, destination_port: goal.port, ..*tuple })
    }

    /// Keeps the caller's source port unless the answers would be taken for another flow's: two VIPs may
    /// share a backend, and processes behind a ClusterIP share the node's address.
    fn with_free_port(&mut self, key: Key, mut flow: Flow, now: Timestamp) -> Result<Flow, Fate> {
        let wanted = flow.to.source_port;
        let ports = matches!(key.tuple.protocol, TCP | UDP | ICMP);
        for attempt in 0..if ports { MAX_PORT_TRIES } else { 1 } {
            let answer = key.answer(&flow);
            let taken = self.flows.find(answer, now).filter(|(_, other)| other.to != key.tuple.reverse());
            // What may not go on holds no port.
            let is_held =
                taken.is_some_and(|(place, other)| self.recheck(Hit { key: answer, place, flow: other }).is_ok());
            if !is_held {
                return Ok(flow);
            }
            let step = attempt.wrapping_mul(7919).wrapping_add(1);
            flow.to.source_port = wanted.wrapping_add(step).max(1024);
        }
        Err(Fate::Refuse(Refuse::NoSourcePort))
    }

    /// A packet from the middle of a connection that a peer opened and this node forgot: if that peer may
    /// open it, the flow is remembered again.
    fn resume_reply_outbound(&mut self, header: &Header, remote: Option<NodeId>, now: Timestamp) -> Result<Hit, Fate> {
        let denied = Fate::Refuse(Refuse::Denied);
        if may_open(header) {
            return Err(denied);
        }
        let (Some(peer), Some(own)) = (remote, self.view.flat(Real(header.tuple.source))) else { return Err(denied) };
        let opening = FiveTuple { source: own.0, ..header.tuple }.reverse();
        let key = Key { side: Direction::Inbound, tuple: opening };
        let to = header.tuple.reverse();
        self.judge(key, to, Some(peer)).map_err(|_| denied)?;
        let flow = Flow::new(to, Some(peer), self.view.stamp(), true, now);
        self.remember(key, flow, now).map(|[_, back]| back)
    }

    /// Decides a new flow from a peer. That the source is the peer's was checked before.
    pub(super) fn open_inbound(&mut self, from: NodeId, header: &Header, now: Timestamp) -> Result<Hit, Fate> {
        let tuple = header.tuple;
        let destination = Flat(tuple.destination);
        let real = self.view.real(destination).ok_or(Fate::Drop(Drop::NotHere))?;
        if is_forbidden(real.0) {
            return Err(Fate::Drop(Drop::ForbiddenDestination));
        }
        let question = Question {
            source: Flat(tuple.source),
            destination,
            protocol: tuple.protocol,
            port: tuple.destination_port,
            service: None,
        };
        if self.view.access().judge(&question).is_none() {
            return self.resume_reply_inbound(from, header, now);
        }
        let to = FiveTuple { destination: real.0, ..tuple };
        let flow = Flow::new(to, Some(from), self.view.stamp(), true, now);
        self.remember(Key { side: Direction::Inbound, tuple }, flow, now).map(|[there, _]| there)
    }

    /// A packet from the middle of a connection that this node opened to the peer and forgot: if it may open
    /// it, the flow is remembered again. One that went through a VIP cannot be: its VIP is not in the packet.
    fn resume_reply_inbound(&mut self, from: NodeId, header: &Header, now: Timestamp) -> Result<Hit, Fate> {
        let denied = Fate::Refuse(Refuse::Denied);
        if !matches!(header.kind, Kind::Tcp(_)) || is_syn(header) {
            return Err(denied);
        }
        let real = self.view.real(Flat(header.tuple.destination)).ok_or(Fate::Drop(Drop::NotHere))?;
        let opening = FiveTuple { destination: real.0, ..header.tuple }.reverse();
        let key = Key { side: Direction::Outbound, tuple: opening };
        let to = header.tuple.reverse();
        self.judge(key, to, Some(from)).map_err(|_| denied)?;
        let flow = Flow::new(to, Some(from), self.view.stamp(), true, now);
        self.remember(key, flow, now).map(|[_, back]| back)
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
    pub(super) fn recheck(&mut self, hit: Hit) -> Result<Hit, Refuse> {
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
        self.flows.stamp(place, self.view.stamp());
        self.mark(place);
        Ok(hit)
    }

    /// Says whether the direction that opens a flow may: `key` rewritten to `to`, with the other end at `remote`.
    fn judge(&self, key: Key, to: FiveTuple, remote: Option<NodeId>) -> Result<(), Refuse> {
        let view = &self.view;
        let (source, destination) = match key.side {
            Direction::Inbound => {
                let destination = Flat(key.tuple.destination);
                if view.real(destination) != Some(Real(to.destination)) {
                    return Err(Refuse::BackendGone);
                }
                (Flat(key.tuple.source), destination)
            }
            Direction::Outbound => {
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
        let far = if key.side == Direction::Inbound { source } else { destination };
        if view.owner(far) != Some(remote.map_or(AddressOwner::Own, AddressOwner::Peer)) {
            return Err(Refuse::BackendGone);
        }
        let service = match key.side {
            Direction::Outbound if view.is_vip(key.tuple.destination) => {
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
            Direction::Outbound if destination.0 != key.tuple.destination => return Err(Refuse::BackendGone),
            Direction::Outbound | Direction::Inbound => None,
        };
        let question = Question { source, destination, protocol: to.protocol, port: to.destination_port, service };
        view.access().judge(&question).map(|_rule| ()).ok_or(Refuse::Denied)
    }

    /// Remembers both directions of a new flow, and returns both; `flow` is the one that `key` opens.
    fn remember(&mut self, key: Key, flow: Flow, now: Timestamp) -> Result<[Hit; 2], Fate> {
        let Self { flows, dirty, .. } = self;
        let dirty_room = dirty.len() < MAX_DIRTY / 2;
        let mut mark = |place: FlowSlot| {
            if dirty.len() < MAX_DIRTY {
                dirty.push(place.slot());
            }
        };
        // Of the flows that are noted, new ones come first.
        if dirty_room {
            flows.sweep(now, &mut mark);
        }
        let opened = flows.open(key, &flow, now, &mut mark);
        let places = opened.map_err(|Full| Fate::Refuse(Refuse::FlowTableFull))?;
        places.into_iter().for_each(mark);
        let back = Flow { to: key.tuple.reverse(), opened: !flow.opened, ..flow };
        let [place, other] = places;
        Ok([Hit { key, place, flow }, Hit { key: key.answer(&flow), place: other, flow: back }])
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
}

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
    is_syn(header) && (!hit.flow.opened || hit.flow.state <= FlowState::Closing)
}
