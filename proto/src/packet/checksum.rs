//! The Internet checksum (RFC 1071): sums, full recomputation, and incremental change (RFC 1624).
//!
//! One's complement sums have two zeros. A sum over anything but zero bytes folds to 1..=0xffff, so a checksum
//! computed in full is never 0xffff; equation 3 of RFC 1624 keeps it that way.

use std::net::Ipv4Addr;

use super::bytes::{put_word, word};
use super::{Checksum, Header, Kind};

/// Where the checksum stands in a TCP header.
pub(crate) const TCP_CHECKSUM: usize = 16;
/// Where the checksum stands in a UDP header.
pub(crate) const UDP_CHECKSUM: usize = 6;
/// Where the checksum stands in an ICMP message.
pub(crate) const ICMP_CHECKSUM: usize = 2;
/// Where the checksum stands in an IPv4 header.
pub(crate) const IP_CHECKSUM: usize = 10;

/// Turns a partial TCP or UDP checksum into a complete one. Does nothing to fragments, whose payload is not here,
/// and to other protocols.
pub fn complete(packet: &mut [u8], header: &Header) {
    let (at, length) = match header.kind {
        Kind::Tcp(_) => (TCP_CHECKSUM, header.total_len - header.header_len),
        Kind::Udp => {
            let there = header.total_len - header.header_len;
            (UDP_CHECKSUM, usize::from(word(packet, header.header_len + 4)).min(there))
        }
        Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError(_)
        | Kind::IcmpOther
        | Kind::Other
        | Kind::LaterFragment => return,
    };
    let Some(transport) = packet.get_mut(header.header_len..header.header_len + length) else { return };
    if header.first_fragment {
        return;
    }
    put_word(transport, at, 0);
    let sum = fold(pseudo(header, length) + u32::from(sum(transport)));
    put_word(transport, at, nonzero_if_udp(header.kind, !sum));
}

/// A UDP checksum of 0 would mean none; 0xffff is the same number (RFC 768).
pub(crate) fn nonzero_if_udp(kind: Kind, checksum: u16) -> u16 {
    if kind == Kind::Udp && checksum == 0 { 0xffff } else { checksum }
}

/// Sums 16-bit words; an odd last byte is padded with zero.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    // The sum does not depend on the byte order, so words are added as the machine has them, two at a time.
    // A packet has fewer than 2^16 bytes: the 64-bit sum cannot overflow.
    let (chunks, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = chunks.iter().map(|&c| u64::from(u32::from_ne_bytes(c))).sum();
    let mut tail = [0; 4];
    tail[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(tail));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::from_be(total as u16)
}

/// Folds carries back in.
pub(crate) fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Sums the pseudo-header: addresses, protocol, and the length of header and payload.
pub(crate) fn pseudo(header: &Header, length: usize) -> u32 {
    address_sum(header.tuple.source)
        + address_sum(header.tuple.destination)
        + u32::from(header.tuple.protocol)
        + length as u32
}

fn address_sum(address: Ipv4Addr) -> u32 {
    let bits = u32::from(address);
    (bits >> 16) + (bits & 0xffff)
}

/// What changed words add to a sum: for each, the complement of the old and the new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ChecksumDelta(u32);

impl ChecksumDelta {
    /// Notes that one word changed.
    pub(crate) fn change(&mut self, old: u16, new: u16) {
        // Skipping what stays keeps a field byte for byte when nothing changes, whatever it holds.
        if old != new {
            self.0 = u32::from(fold(self.0 + u32::from(!old) + u32::from(new)));
        }
    }

    /// Notes what another delta notes.
    pub(crate) fn add(&mut self, other: Self) {
        self.0 = u32::from(fold(self.0 + other.0));
    }

    /// Applies itself to the checksum field at `at` and returns how that changed.
    pub(crate) fn apply(self, bytes: &mut [u8], at: usize, checksum: Checksum) -> Self {
        let old = word(bytes, at);
        let new = match checksum {
            _ if self.0 == 0 => old,
            Checksum::Complete => !fold(u32::from(!old) + self.0),
            Checksum::Partial => fold(u32::from(old) + self.0),
        };
        put_word(bytes, at, new);
        let mut field = Self::default();
        field.change(old, new);
        field
    }
}
