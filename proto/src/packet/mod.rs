//! IPv4 packets as bytes: what they are, how they are rewritten, and the answers we make to them.
//!
//! Everything works in place on `&[u8]` and `&mut [u8]`; nothing allocates, and no input panics.

mod answer;
mod bytes;
mod checksum;
#[cfg(test)]
mod differential;
mod ecn;
pub mod gso;
mod parse;
mod rewrite;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

pub use answer::{LONGEST_ERROR, Unreachable, echo_reply, tcp_reset, unreachable};
pub(crate) use bytes::{put_word, word};
pub use checksum::complete;
pub(crate) use checksum::{fold, nonzero_if_udp, pseudo, sum};
pub use ecn::{Ecn, bring_ecn};
pub use parse::{Header, Kind, is_source_routed};
pub use rewrite::{clamp_mss, is_too_big, raise_mtu, rewrite, rewrite_icmp_error};
#[cfg(test)]
pub(crate) use sample::verify;

/// IP protocol numbers that the engine tells apart.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;

/// Returns what people call an IP protocol; its number if they have no word for it here.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        ICMP => "icmp".into(),
        TCP => "tcp".into(),
        UDP => "udp".into(),
        other => other.to_string(),
    }
}

/// Who talks to whom. For ICMP echo the identifier stands in the asker's port and the other is 0,
/// so that request and reply are each other's reverse. For protocols without ports both are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FiveTuple {
    /// The IP protocol number.
    pub protocol: u8,
    /// The source address.
    pub source: Ipv4Addr,
    /// The source port.
    pub source_port: u16,
    /// The destination address.
    pub destination: Ipv4Addr,
    /// The destination port.
    pub destination_port: u16,
}

impl FiveTuple {
    /// Returns the tuple of the answer.
    pub fn reverse(self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
        }
    }
}

/// How the transport checksum stands in the packet (Linux, include/uapi/linux/virtio_net.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Complete: it covers pseudo-header, header and payload.
    Complete,
    /// Partial (VIRTIO_NET_HDR_F_NEEDS_CSUM): the folded, not complemented sum of the pseudo-header alone;
    /// ports are no part of it.
    Partial,
}

/// Why bytes are no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not version 4.
    #[error("not an IPv4 packet")]
    NotIpv4,
    /// Cut short, or its lengths contradict each other.
    #[error("truncated or contradictory packet")]
    Truncated,
}

/// New source and destination for a packet; `None` leaves a side as it is. Ports of protocols without
/// ports are ignored; for echo the asker's port is the identifier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The new source.
    pub source: Option<(Ipv4Addr, u16)>,
    /// The new destination.
    pub destination: Option<(Ipv4Addr, u16)>,
}
