//! The first packet of a flow on its way in: the authority, after decryption and before the kernel.

use super::{Engine, Fate, Hit, is_syn};
use crate::base::addr::{Flat, is_forbidden};
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;
use crate::dataplane::flow::{Flow, Key, Side};
use crate::dataplane::policy_index::Question;
use crate::dataplane::verdict::{Drop, Refuse};
use crate::packet::{FiveTuple, Header, Kind};

impl Engine {
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
        self.remember(Key { side: Side::Inbound, tuple }, flow, now)
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
        let key = Key { side: Side::Outbound, tuple: opening };
        let to = header.tuple.reverse();
        self.judge(key, to, Some(from)).map_err(|_| denied)?;
        let flow = Flow::new(to, Some(from), self.view.stamp(), true, now);
        self.remember(key, flow, now)?;
        let back = Key { side: Side::Inbound, tuple: header.tuple };
        let (place, flow) = self.flows.find(back, now).ok_or(Fate::Drop(Drop::FlowTableFull))?;
        Ok(Hit { key: back, place, flow })
    }
}
