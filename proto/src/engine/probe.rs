//! Probes: nodes measure the round trip to each other inside the tunnel, on one reserved UDP port between
//! node addresses. The engine answers by itself; no probe reaches the kernel, and no rule is needed.
//!
//! ```text
//! IPv4 header (20) │ UDP header (8) │ "MESH" │ version 1 │ kind │ 2 zero bytes │ the asker's clock, u64
//! ```

use std::net::Ipv4Addr;

use super::Engine;
use crate::addr::Flat;
use crate::clock::Timestamp;
use crate::id::NodeId;
use crate::packet::{FiveTuple, Header, UDP};
use crate::verdict::{Drop, Verdict};

/// The reserved UDP port.
pub const PROBE_PORT: u16 = 51999;

const LENGTH: usize = 44;
const MAGIC: [u8; 4] = *b"MESH";
const VERSION: u8 = 1;
const ASK: u8 = 1;
const ANSWER: u8 = 2;
/// An answer that took longer than this is of no use.
const LATEST_MICROS: u64 = 10_000_000;

impl Engine {
    /// Builds a probe for a peer into `reply`. Says whether the peer is known.
    pub fn probe(&mut self, to: NodeId, now: Timestamp) -> bool {
        self.replies.clear();
        let own = self.view.address();
        let Some(peer) = self.view.peer(to).map(|peer| peer.address) else {
            return false;
        };
        self.replies.make(now, |out| build(out, own, peer, ASK, now.as_micros()))
    }

    /// Says whether a packet belongs to the reserved port between nodes.
    pub(super) fn is_probe(&self, tuple: &FiveTuple) -> bool {
        let nodes = self.view.range().nodes();
        tuple.destination_port == PROBE_PORT && nodes.contains(&tuple.destination)
    }

    /// Answers a peer's probe, or takes its answer to ours.
    pub(super) fn answer_probe(&mut self, from: NodeId, bytes: &[u8], header: &Header, now: Timestamp) -> Verdict {
        let bad = Verdict::Drop(Drop::BadProbe);
        let peer = Flat(header.tuple.source);
        let own = self.view.address();
        let between_nodes = self.view.peer(from).is_some_and(|p| p.address == peer)
            && Flat(header.tuple.destination) == own
            && header.tuple.source_port == PROBE_PORT;
        let body = bytes.get(header.header_len + 8..header.total_len).and_then(|b| b.first_chunk::<16>());
        let Some(body) = body.filter(|b| between_nodes && b[..4] == MAGIC && b[4] == VERSION) else {
            return bad;
        };
        let clock = u64::from_be_bytes(body[8..16].try_into().unwrap_or_default());
        match body[5] {
            ASK if self.replies.make(now, |out| build(out, own, peer, ANSWER, clock)) => Verdict::Reply,
            ANSWER => match now.as_micros().checked_sub(clock) {
                Some(micros) if micros <= LATEST_MICROS => Verdict::RoundTrip(micros as u32),
                Some(_) | None => bad,
            },
            _ => bad,
        }
    }
}

fn build(out: &mut [u8], source: Flat, destination: Flat, kind: u8, clock: u64) -> usize {
    let Some(out) = out.get_mut(..LENGTH) else {
        return 0;
    };
    out.fill(0);
    out[0] = 0x45;
    out[2..4].copy_from_slice(&(LENGTH as u16).to_be_bytes());
    out[6] = 0x40;
    out[8] = 64;
    out[9] = UDP;
    out[12..16].copy_from_slice(&Ipv4Addr::octets(&source.0));
    out[16..20].copy_from_slice(&Ipv4Addr::octets(&destination.0));
    let sum = header_sum(&out[..20]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out[20..22].copy_from_slice(&PROBE_PORT.to_be_bytes());
    out[22..24].copy_from_slice(&PROBE_PORT.to_be_bytes());
    // The UDP checksum stays 0, "none" (RFC 768): the tunnel authenticates every byte.
    out[24..26].copy_from_slice(&(LENGTH as u16 - 20).to_be_bytes());
    out[28..32].copy_from_slice(&MAGIC);
    out[32] = VERSION;
    out[33] = kind;
    out[36..44].copy_from_slice(&clock.to_be_bytes());
    LENGTH
}

/// RFC 1071 over the 20 bytes of a header whose checksum field is 0.
fn header_sum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}
