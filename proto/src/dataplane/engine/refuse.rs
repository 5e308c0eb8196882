//! Answers of our own making: quick errors instead of silence, and echo replies for VIPs.

use std::time::Duration;

use crate::base::clock::Timestamp;
use crate::dataplane::verdict::{Drop, Refuse, Verdict};
use crate::packet::{self, Header, Kind, Unreachable};

/// The largest answer, in bytes: an echo reply of an interface's MTU.
const MAX_REPLY: usize = 2048;
/// Answers per second and lane; what comes above is dropped and counted, so that a flood of refused packets
/// does not become a flood of refusals.
const REPLIES_PER_SECOND: u32 = 10_000;

/// The answer to the packet at hand, and the account of answers.
#[derive(Debug)]
pub(super) struct Replies {
    buffer: Box<[u8; MAX_REPLY]>,
    length: usize,
    second: Timestamp,
    sent: u32,
}

impl Replies {
    pub(super) fn new() -> Self {
        Self { buffer: Box::new([0; MAX_REPLY]), length: 0, second: Timestamp::default(), sent: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    pub(super) fn clear(&mut self) {
        self.length = 0;
    }

    /// Builds an answer if the account allows one more. Says whether it did.
    pub(super) fn make(&mut self, now: Timestamp, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if now.since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.sent = 0;
        }
        if self.sent >= REPLIES_PER_SECOND {
            return false;
        }
        self.sent += 1;
        self.put(build);
        true
    }

    /// Builds something of our own that is limited elsewhere.
    pub(super) fn put(&mut self, build: impl FnOnce(&mut [u8]) -> usize) {
        self.length = build(&mut self.buffer[..]).min(MAX_REPLY);
    }

    /// Refuses a packet: TCP gets a reset, the rest an ICMP error from the address it was for; `mtu` is our own.
    pub(super) fn refuse(&mut self, bytes: &[u8], header: &Header, why: Refuse, mtu: u16, now: Timestamp) -> Verdict {
        let error = match why {
            // A node does not know what it may not call, so that the one looks to the caller as the other.
            Refuse::Denied | Refuse::UnknownService | Refuse::NoRoute => Unreachable::Prohibited,
            // What may work later, and elsewhere.
            Refuse::NoBackend | Refuse::FlowTableFull | Refuse::NoSourcePort => Unreachable::Host,
            Refuse::ClosedPort | Refuse::BackendGone => Unreachable::Port,
            Refuse::TooBig => Unreachable::TooBig { mtu },
        };
        let from = header.tuple.destination;
        let is_tcp = matches!(header.kind, Kind::Tcp(_));
        let made = self.make(now, |out| match is_tcp {
            true => packet::tcp_reset(bytes, header, out),
            false => packet::unreachable(bytes, header, from, error, out),
        });
        if made { Verdict::Refuse(why) } else { Verdict::Drop(Drop::ReplyLimited) }
    }

    /// Refuses a packet that is larger than the way takes, with the packet as its sender knows it
    /// (RFC 1191): the caller's addresses, not the translated ones.
    pub(super) fn refuse_size(&mut self, bytes: &[u8], header: &Header, mtu: u16, now: Timestamp) -> Verdict {
        if !header.dont_fragment {
            return Verdict::Drop(Drop::Oversized);
        }
        let from = header.tuple.destination;
        let error = Unreachable::TooBig { mtu };
        let made = self.make(now, |out| packet::unreachable(bytes, header, from, error, out));
        if made { Verdict::Refuse(Refuse::TooBig) } else { Verdict::Drop(Drop::ReplyLimited) }
    }

    /// Answers an echo request to a VIP.
    pub(super) fn answer_echo(&mut self, bytes: &[u8], header: &Header, now: Timestamp) -> Verdict {
        let made = self.make(now, |out| packet::echo_reply(bytes, header, out));
        match (made, self.bytes().is_empty()) {
            (true, false) => Verdict::Reply,
            (true, true) => Verdict::Drop(Drop::Oversized),
            (false, _) => Verdict::Drop(Drop::ReplyLimited),
        }
    }
}
