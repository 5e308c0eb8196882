//! ICMP errors: they pass only if the packet they quote belongs to a live flow, and are translated with it.
//!
//! The quoted packet went the other way, so it looks like the reverse of this direction's packets.

use std::net::Ipv4Addr;

use super::{Engine, Hit};
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;
use crate::dataplane::flow::{Key, Side};
use crate::dataplane::verdict::{Drop, Verdict};
use crate::packet::{self, FiveTuple, Header, Kind, Rewrite};

impl Engine {
    /// An error from this host, or a router before it, about a packet that we delivered.
    pub(super) fn icmp_outbound(
        &mut self,
        bytes: &mut [u8],
        header: &Header,
        quoted: FiveTuple,
        now: Timestamp,
    ) -> Verdict {
        if self.is_anothers(header.tuple.source, quoted.destination) {
            return Verdict::Drop(Drop::SpoofedSource);
        }
        let Some(hit) = self.quoted_flow(Side::Outbound, quoted, now) else {
            return Verdict::Drop(Drop::IcmpUnmatched);
        };
        translate(bytes, header, &hit);
        hit.flow.remote.map_or(Verdict::Deliver, Verdict::Forward)
    }

    /// An error from a peer about a packet that we sent it.
    pub(super) fn icmp_inbound(
        &mut self,
        from: NodeId,
        bytes: &mut [u8],
        header: &Header,
        quoted: FiveTuple,
        now: Timestamp,
    ) -> Verdict {
        let hit = self.quoted_flow(Side::Inbound, quoted, now);
        let Some(hit) = hit.filter(|hit| hit.flow.remote == Some(from)) else {
            return Verdict::Drop(Drop::IcmpUnmatched);
        };
        translate(bytes, header, &hit);
        Verdict::Deliver
    }

    /// Says whether the sender of an error is a pod that the packet in question was not for: a pod that may write raw
    /// packets could end connections of others. Routers before the pod, and this host, may speak of any.
    fn is_anothers(&self, sender: Ipv4Addr, receiver: Ipv4Addr) -> bool {
        let is_pod = self.view.netmap().node.blocks.iter().any(|block| block.real.contains(&sender));
        is_pod && sender != receiver && !self.locals.contains(&sender)
    }

    fn quoted_flow(&mut self, side: Side, quoted: FiveTuple, now: Timestamp) -> Option<Hit> {
        let key = Key { side, tuple: quoted.reverse() };
        let (place, flow) = self.flows.find(key, now)?;
        self.recheck(Hit { key, place, flow }).ok()
    }
}

/// Says whether a message is an ICMP error (RFC 1122 section 3.2.2) of which no quote can belong to a flow: about
/// another error, about a later fragment, a redirect or a source quench.
pub(super) fn quotes_no_flow(bytes: &[u8], header: &Header) -> bool {
    const ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
    header.kind == Kind::IcmpOther && bytes.get(header.header_len).is_some_and(|kind| ERRORS.contains(kind))
}

fn translate(bytes: &mut [u8], header: &Header, hit: &Hit) {
    let to = hit.flow.to;
    let outer = Rewrite { source: Some((to.source, 0)), destination: Some((to.destination, 0)) };
    let quoted =
        Rewrite { source: Some((to.destination, to.destination_port)), destination: Some((to.source, to.source_port)) };
    packet::rewrite_icmp_error(bytes, header, &outer, &quoted);
}
