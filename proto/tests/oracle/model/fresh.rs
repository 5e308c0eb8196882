//! Packets that belong to no conversation: the first of one, or strays.

use std::net::Ipv4Addr;

use mesh_proto::base::addr::is_forbidden;
use mesh_proto::base::id::ServiceKey;
use mesh_proto::dataplane::verdict::{Drop, Refuse, Verdict};
use mesh_proto::model::netmap::{Backend, Service, ServicePort};
use mesh_proto::packet::{FiveTuple, ICMP, TCP, UDP};

use super::{End, Flow, Model, Outcome, drops, ends, refuses};
use crate::packet::{ACK, Body, FIN, Packet, RST, SYN};
use crate::policy::{Goal, may, owner};

impl Model {
    /// Says what becomes of a packet that belongs to no conversation but perhaps to `instead_of` one.
    pub(super) fn fresh(&self, from: End, p: &Packet, instead_of: Option<usize>) -> Vec<Outcome> {
        let all = match from {
            End::Tun => self.outbound(p, instead_of),
            End::Peer(_) => self.inbound(from, p),
        };
        all.into_iter().map(|o| Outcome { forget: instead_of, ..o }).collect()
    }

    fn outbound(&self, p: &Packet, instead_of: Option<usize>) -> Vec<Outcome> {
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

    fn to_service(&self, p: &Packet, caller: Ipv4Addr, instead_of: Option<usize>) -> Vec<Outcome> {
        let t = p.tuple;
        // A connection whose backend nobody remembers never gets a second one.
        let lost = || refuses(Refuse::BackendGone);
        let middle = if opens(p) { Vec::new() } else { lost() };
        let with = |mut all: Vec<Outcome>| {
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

    fn inbound(&self, from: End, p: &Packet) -> Vec<Outcome> {
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
    ) -> Vec<Outcome> {
        let mut all = Vec::new();
        if p.flags().is_some() && may(&self.map, caller, &Goal::Address(called.0, p.tuple.protocol, called.1)) {
            let flow = Flow {
                ended: p.flags().is_some_and(|f| f & (FIN | RST) != 0),
                ..self.flow(first, asked, other, sent, caller, called, None)
            };
            let emitted = self.emit(other, first, p, p.between(asked.reverse()));
            all.extend(emitted.into_iter().map(|o| Outcome { open: Some(flow.clone()), ..o }));
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
    ) -> Vec<Outcome> {
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
            return drops(Drop::NoSourcePort);
        }
        let all = self.begin(p, End::Tun, t, other, sent, caller, goal, service);
        all.into_iter().map(|o| Outcome { other_port, ..o }).collect()
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
    ) -> Vec<Outcome> {
        let flow = self.flow(first, asked, other, sent, caller, goal, service);
        let all = self.emit(first, other, p, p.between(sent)).into_iter();
        all.map(|o| Outcome { open: o.after.is_some().then(|| flow.clone()), ..o }).collect()
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
    ) -> Flow {
        Flow {
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
fn unknown() -> Vec<Outcome> {
    refuses(Refuse::Denied)
}

/// Says whether a packet may begin a conversation: not a segment from the middle, not an answer.
pub(super) fn opens(p: &Packet) -> bool {
    match p.body {
        Body::Tcp { flags, .. } => flags & SYN != 0 && flags & (ACK | RST) == 0,
        Body::Echo { reply, .. } => !reply,
        Body::Udp { .. } | Body::Raw { .. } => true,
        Body::Error { .. } => false,
    }
}

pub(super) fn port(service: &Service, protocol: u8, number: u16) -> Option<&ServicePort> {
    service.ports.iter().find(|p| p.transport.number() == protocol && p.port == number)
}

/// Returns the backends that may take a new connection.
pub(crate) fn candidates(service: &Service) -> Vec<&Backend> {
    let live = || service.backends.iter().filter(|b| b.weight > 0);
    let lowest = live().map(|b| b.tier).min();
    live().filter(|b| Some(b.tier) == lowest).collect()
}
