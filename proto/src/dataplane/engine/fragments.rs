//! Later fragments carry no ports; they follow their first fragment, or are dropped.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::base::clock::Timestamp;
use crate::base::id::NodeId;
use crate::dataplane::flow::{Direction, Flow};
use crate::dataplane::verdict::{Drop, Verdict};
use crate::packet::{self, Checksum, Header, Rewrite};

/// Most fragmented packets in flight per lane; a further one takes the place of the oldest.
const MAX_FRAGMENTED: usize = 256;
/// How long later fragments may follow the first (RFC 791 suggests 15 s).
const LIFETIME: Duration = Duration::from_secs(15);

/// First fragments that were let through.
#[derive(Debug)]
pub(super) struct Fragments {
    /// The oldest first.
    seen: VecDeque<First>,
}

#[derive(Debug, Clone, Copy)]
struct First {
    side: Direction,
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
        Self { seen: VecDeque::with_capacity(MAX_FRAGMENTED) }
    }

    /// Notes a first fragment that was let through.
    pub(super) fn remember(&mut self, side: Direction, header: &Header, flow: &Flow, verdict: Verdict, at: Timestamp) {
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
        if self.seen.len() == MAX_FRAGMENTED {
            self.seen.pop_front();
        }
        self.seen.push_back(first);
    }

    /// Forgets the packet whose identification another one takes over, which may go elsewhere or be refused.
    pub(super) fn forget(&mut self, side: Direction, header: &Header) {
        self.seen.retain(|first| !first.leads(side, header));
    }

    /// Sends a later fragment after its first one; `from` is the peer it came from, if it did, and `way` says the
    /// largest packet that may go to a peer.
    pub(super) fn pass(
        &self,
        side: Direction,
        from: Option<NodeId>,
        bytes: &mut [u8],
        header: &Header,
        way: impl FnOnce(Option<NodeId>) -> Option<usize>,
        now: Timestamp,
    ) -> Verdict {
        let first = self.find(side, header, now).filter(|first| from.is_none() || first.remote == from);
        let Some(first) = first else { return Verdict::Drop(Drop::FragmentUnmatched) };
        if side == Direction::Outbound && way(first.remote).is_some_and(|mtu| header.total_len > mtu) {
            return Verdict::Drop(Drop::Oversized);
        }
        packet::rewrite(bytes, header, &first.to, Checksum::Complete);
        first.verdict
    }

    fn find(&self, side: Direction, header: &Header, now: Timestamp) -> Option<&First> {
        self.seen.iter().find(|first| first.leads(side, header) && now.since(first.at) <= LIFETIME)
    }
}

impl First {
    /// Says whether a fragment is of the same packet (RFC 791 section 3.2).
    fn leads(&self, side: Direction, header: &Header) -> bool {
        self.side == side
            && self.source == header.tuple.source
            && self.destination == header.tuple.destination
            && self.protocol == header.tuple.protocol
            && self.identification == header.identification
    }
}
