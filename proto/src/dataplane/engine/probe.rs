//! The reserved UDP port between node addresses inside the tunnel: probes of the round trip, which the engine answers by
//! itself, and the frames of a measurement. Nothing of it reaches the kernel, and no rule is needed.
//!
//! ```text
//! IPv4 header (20) │ UDP header (8) │ "MESH" │ version 1 │ kind │ …
//!                                                         1, 2    2 zero bytes │ the asker's clock, u64 │ the log's end │ the time of day │
//!                                                                 zeros, where it is asked whether so much gets through
//!                                                         3, 4    see `ops::bench`
//!                                                         5       agreements: in tunnels of their own, not here
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use super::refuse::Replies;
use crate::base::addr::Flat;
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;
use crate::base::wall_clock::BootDate;
use crate::dataplane::black_hole::plain_clock;
use crate::dataplane::verdict::{Drop, Verdict};
use crate::dataplane::view::View;
use crate::ops::bench::{DATA, REPORT};
use crate::packet::{self, Header, Kind, UDP};
use crate::trust::audit_log::LogPosition;

/// The reserved UDP port.
pub const PROBE_PORT: u16 = 51999;

/// Bytes of the headers before a body.
const HEADERS: usize = 28;
/// Bytes before what follows the kind.
pub const RESERVED: usize = HEADERS + 6;
/// Bytes of a probe that asks for no more than an answer.
pub const PROBE: usize = TIME + 8;
/// Where a probe tells the sender's time of day: microseconds since 1970, 0 for one that is not told.
const TIME: usize = HEADERS + 16 + LogPosition::BYTES;
const MAGIC: [u8; 4] = *b"MESH";
const VERSION: u8 = 1;
const ASK: u8 = 1;
const ANSWER: u8 = 2;
/// An answer that took longer than this is of no use.
const LATEST_MICROS: u64 = 10_000_000;

/// What this node says on the reserved port, and what it hears there.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// The end of the log of operations, as peers are told of it with each probe, and what a peer told last.
    pub(super) told: Option<LogPosition>,
    pub(super) heard: Option<LogPosition>,
    /// This host's clock, as peers are told of it, and what a peer's said last.
    pub(super) date: Option<BootDate>,
    pub(super) heard_date: Option<BootDate>,
}

impl Probes {
    /// Builds a probe for a peer. Returns its length, 0 if it does not fit.
    pub(super) fn ask(&self, out: &mut [u8], own: Flat, peer: Flat, now: Timestamp) -> usize {
        out.get_mut(..PROBE).map_or(0, |out| build(out, own, peer, ASK, plain_clock(now), self.said(now)))
    }

    /// Builds a probe as long as `out`; the answer, which is a short one, brings the clock back. Returns its length, 0 if it
    /// does not fit.
    pub(super) fn ask_size(&self, out: &mut [u8], own: Flat, peer: Flat, clock: u64) -> usize {
        build(out, own, peer, ASK, clock, Said { log: self.told, time: 0 })
    }

    /// Answers a peer's probe, or takes its answer to ours; tells what belongs to a measurement.
    pub(super) fn answer(
        &mut self,
        view: &View,
        from: NodeId,
        bytes: &[u8],
        header: &Header,
        replies: &mut Replies,
        now: Timestamp,
    ) -> Verdict {
        let bad = Verdict::Drop(Drop::BadProbe);
        let peer = Flat(header.tuple.source);
        let own = view.address();
        let between_nodes = view.peer(from).is_some_and(|p| p.address == peer)
            && Flat(header.tuple.destination) == own
            && header.tuple.source_port == PROBE_PORT;
        let whole = bytes.get(header.header_len + 8..header.total_len).filter(|_| between_nodes);
        let body = whole.and_then(|body| body.first_chunk::<16>());
        let Some(body) = body.filter(|b| b[..4] == MAGIC && b[4] == VERSION) else { return bad };
        let clock = u64::from_be_bytes(body[8..16].try_into().unwrap_or_default());
        // A node of an older version says nothing of the log.
        let said = whole.and_then(|body| LogPosition::read(body[16..].first_chunk()?));
        let time = whole.and_then(|body| body.get(TIME - HEADERS..)?.first_chunk());
        let time = time.map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let date = (time != 0).then(|| BootDate::of(Duration::from_micros(time), now));
        let says = self.said(now);
        match body[5] {
            ASK if replies
                .make(now, |out| out.get_mut(..PROBE).map_or(0, |out| build(out, own, peer, ANSWER, clock, says))) =>
            {
                (self.heard, self.heard_date) = (said, date);
                Verdict::Reply
            }
            ANSWER => match now.as_micros().checked_sub(clock) {
                Some(micros) if micros <= LATEST_MICROS => {
                    (self.heard, self.heard_date) = (said, date);
                    Verdict::RoundTrip(micros as u32)
                }
                Some(_) | None => bad,
            },
            DATA | REPORT => Verdict::Bench,
            _ => bad,
        }
    }

    /// What is told along with a clock that is to come back.
    fn said(&self, now: Timestamp) -> Said {
        let time = self.date.map_or(Duration::ZERO, |date| date.time_of_day(now));
        Said { log: self.told, time: u64::try_from(time.as_micros()).unwrap_or(0) }
    }
}

/// What a probe and its answer tell of the sender.
#[derive(Debug, Clone, Copy)]
struct Said {
    log: Option<LogPosition>,
    /// Microseconds since 1970; 0 for a clock that is not told.
    time: u64,
}

fn build(out: &mut [u8], source: Flat, destination: Flat, kind: u8, clock: u64, said: Said) -> usize {
    if !(PROBE..=usize::from(u16::MAX)).contains(&out.len()) {
        return 0;
    }
    out.fill(0);
    headers(out, source, destination);
    out[28..32].copy_from_slice(&MAGIC);
    out[32] = VERSION;
    out[33] = kind;
    out[36..44].copy_from_slice(&clock.to_be_bytes());
    if let Some((log, out)) = said.log.zip(out[44..].first_chunk_mut()) {
        log.write(out);
    }
    out[TIME..PROBE].copy_from_slice(&said.time.to_be_bytes());
    out.len()
}

/// Writes a packet of the reserved port that says nothing but its kind; `out` is as long as the packet is to be.
/// Says whether it is long enough.
pub fn write_reserved(out: &mut [u8], source: Flat, destination: Flat, kind: u8) -> bool {
    if out.len() < RESERVED || out.len() > usize::from(u16::MAX) {
        return false;
    }
    headers(out, source, destination);
    out[HEADERS..HEADERS + 4].copy_from_slice(&MAGIC);
    out[HEADERS + 4] = VERSION;
    out[HEADERS + 5] = kind;
    true
}

/// Reads a packet of the reserved port: its kind, and what follows; `None` if it is none.
pub fn read_reserved(packet: &[u8]) -> Option<(u8, &[u8])> {
    let header = Header::parse(packet).ok()?;
    let ours = header.kind == Kind::Udp && !header.first_fragment && header.tuple.destination_port == PROBE_PORT;
    let body = packet.get(header.header_len + 8..header.total_len).filter(|_| ours)?;
    let (start, rest) = body.split_first_chunk::<6>()?;
    (start[..4] == MAGIC && start[4] == VERSION).then_some((start[5], rest))
}

/// Writes the IPv4 and UDP headers of a packet between two nodes, as long as `out`, which must hold `HEADERS`.
fn headers(out: &mut [u8], source: Flat, destination: Flat) {
    let length = out.len() as u16;
    out[..HEADERS].fill(0);
    out[0] = 0x45;
    out[2..4].copy_from_slice(&length.to_be_bytes());
    out[6] = 0x40;
    out[8] = 64;
    out[9] = UDP;
    out[12..16].copy_from_slice(&Ipv4Addr::octets(&source.0));
    out[16..20].copy_from_slice(&Ipv4Addr::octets(&destination.0));
    let sum = !packet::sum(&out[..20]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out[20..22].copy_from_slice(&PROBE_PORT.to_be_bytes());
    out[22..24].copy_from_slice(&PROBE_PORT.to_be_bytes());
    // The UDP checksum stays 0, "none" (RFC 768): the tunnel authenticates every byte.
    out[24..26].copy_from_slice(&(length - 20).to_be_bytes());
}
