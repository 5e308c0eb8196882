//! Later fragments carry no ports; they follow their first fragment, or are dropped.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::Engine;
use crate::clock::Timestamp;
use crate::flow::{Flow, Side};
use crate::id::NodeId;
use crate::packet::{self, Checksum, Header, Rewrite};
use crate::verdict::{Drop, Verdict};

/// Most fragmented packets in flight per lane; a further one takes the place of the oldest.
const MAX_FRAGMENTED: usize = 256;
/// How long later fragments may follow the first (RFC 791 suggests 15 s).
const LIFETIME: Duration = Duration::from_secs(15);

/// First fragments that were let through.
#[derive(Debug)]
pub(super) struct Fragments {
    seen: Vec<First>,
    next: usize,
}

#[derive(Debug, Clone, Copy)]
struct First {
    side: Side,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    identification: u16,
    to: Rewrite,
    remote: Option<NodeId>,
    verdict: Verdict,
    at: Timestamp,
}

impl Fragments {
    pub(super) fn new() -> Self {
        Self { seen: Vec::with_capacity(MAX_FRAGMENTED), next: 0 }
    }

    /// Notes a first fragment that was let through.
    pub(super) fn remember(&mut self, side: Side, header: &Header, flow: &Flow, verdict: Verdict, at: Timestamp) {
        let first = First {
            side,
            source: header.tuple.source,
            destination: header.tuple.destination,
            protocol: header.tuple.protocol,
            identification: header.identification,
            to: Rewrite { source: Some((flow.to.source, 0)), destination: Some((flow.to.destination, 0)) },
            remote: flow.remote,
            verdict,
            at,
        };
        if self.seen.len() < MAX_FRAGMENTED {
            self.seen.push(first);
        } else {
            self.seen[self.next] = first;
            self.next = (self.next + 1) % MAX_FRAGMENTED;
        }
    }

    fn find(&self, side: Side, header: &Header, now: Timestamp) -> Option<&First> {
        self.seen.iter().find(|first| {
            first.side == side
                && first.source == header.tuple.source
                && first.destination == header.tuple.destination
                && first.protocol == header.tuple.protocol
                && first.identification == header.identification
                && now.since(first.at) <= LIFETIME
        })
    }
}

impl Engine {
    /// Sends a later fragment after its first one; `from` is the peer it came from, if it did.
    pub(super) fn later_fragment(
        &mut self,
        side: Side,
        from: Option<NodeId>,
        bytes: &mut [u8],
        header: &Header,
        now: Timestamp,
    ) -> Verdict {
        let first = self.fragments.find(side, header, now).filter(|first| from.is_none() || first.remote == from);
        let Some(first) = first else {
            return Verdict::Drop(Drop::FragmentUnmatched);
        };
        packet::rewrite(bytes, header, &first.to, Checksum::Complete);
        first.verdict
    }
}
