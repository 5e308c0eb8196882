//! The first packet of a flow on its way out.

use super::{Engine, Fate, Hit, is_syn, may_open};
use crate::base::addr::{Flat, Real, is_forbidden};
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;
use crate::dataplane::flow::{Flow, Key, Side};
use crate::dataplane::policy_index::Question;
use crate::dataplane::verdict::{Drop, Refuse};
use crate::dataplane::view::Owner;
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
    /// Decides a new flow from this host.
    pub(super) fn open_outbound(&mut self, header: &Header, now: Timestamp) -> Result<Hit, Fate> {
        let tuple = header.tuple;
        if !self.view.range().contains(tuple.destination) || is_forbidden(tuple.destination) {
            return Err(Fate::Drop(Drop::ForbiddenDestination));
        }
        let source = self.image(tuple.source).ok_or(Fate::Drop(Drop::SpoofedSource))?;
        let goal = self.goal(source, header)?;
        let remote = match self.view.owner(goal.carrier) {
            Some(Owner::Own) => None,
            Some(Owner::Peer(peer)) => Some(peer),
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
        let key = Key { side: Side::Outbound, tuple };
        let flow = Flow::new(to, remote, self.view.stamp(), true, now);
        let flow = self.with_free_port(key, flow, now)?;
        self.remember(key, flow, now)
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
        let Some(service) = self.view.service(index) else {
            return Fate::Refuse(Refuse::UnknownService);
        };
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
        Err(Fate::Drop(Drop::NoSourcePort))
    }

    /// A packet from the middle of a connection that a peer opened and this node forgot: if that peer may
    /// open it, the flow is remembered again.
    fn resume_reply_outbound(&mut self, header: &Header, remote: Option<NodeId>, now: Timestamp) -> Result<Hit, Fate> {
        let denied = Fate::Refuse(Refuse::Denied);
        if may_open(header) {
            return Err(denied);
        }
        let (Some(peer), Some(own)) = (remote, self.view.flat(Real(header.tuple.source))) else {
            return Err(denied);
        };
        let opening = FiveTuple { source: own.0, ..header.tuple }.reverse();
        let key = Key { side: Side::Inbound, tuple: opening };
        let to = header.tuple.reverse();
        self.judge(key, to, Some(peer)).map_err(|_| denied)?;
        let flow = Flow::new(to, Some(peer), self.view.stamp(), true, now);
        let back = Key { side: Side::Outbound, tuple: header.tuple };
        let answer = Flow { to: opening.reverse(), opened: false, ..flow };
        self.remember(key, flow, now)?;
        let (place, _) = self.flows.find(back, now).ok_or(Fate::Drop(Drop::FlowTableFull))?;
        Ok(Hit { key: back, place, flow: answer })
    }
}
