//! Answers of our own making: a TCP reset, an ICMP error, an echo reply.
//!
//! Each is written into a buffer and returned as its length; 0 means that no answer may be sent, or that it does
//! not fit. Who answers everything amplifies attacks: RFC 1122 section 3.2.2 and RFC 1812 section 4.3.2.7 name what
//! stays unanswered.

use std::net::Ipv4Addr;

use super::bytes::put_word;
use super::checksum::{ChecksumDelta, ICMP_CHECKSUM, IP_CHECKSUM, TCP_CHECKSUM, fold, pseudo, sum};
use super::parse::{ECHO_REPLY, UNREACHABLE};
use super::{Checksum, FiveTuple, Header, ICMP, Kind, TCP};

const IP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
/// An ICMP error is never longer than what every host must accept (RFC 1812 section 4.3.2.3).
pub const LONGEST_ERROR: usize = 576;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Why a packet does not arrive, as an ICMP "destination unreachable" says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// No way to the host (code 1).
    Host,
    /// Nobody listens on the port (code 3).
    Port,
    /// Administratively prohibited (code 13).
    Prohibited,
    /// Fragmentation needed (code 4; RFC 1191).
    TooBig {
        /// The largest packet that gets through, in bytes.
        mtu: u16,
    },
}

/// Writes the reset that refuses a TCP segment (RFC 9293 section 3.10.7.1). Needs 40 bytes; 0 for a reset.
pub fn tcp_reset(packet: &[u8], header: &Header, out: &mut [u8]) -> usize {
    const LENGTH: usize = IP_HEADER + TCP_HEADER;
    let Kind::Tcp(flags) = header.kind else { return 0 };
    if flags & RST != 0 || !answerable(header) || out.len() < LENGTH {
        return 0;
    }
    let at = header.header_len;
    let (Some(sequence), Some(acknowledged)) = (long(packet, at + 4), long(packet, at + 8)) else { return 0 };

    let (sequence, acknowledgment, answer) = if flags & ACK != 0 {
        (acknowledged, 0, RST)
    } else {
        let payload = header.total_len.saturating_sub(header.headers_len(packet)) as u32;
        let phantom = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        (0, sequence.wrapping_add(payload).wrapping_add(phantom), RST | ACK)
    };
    let tuple = header.tuple.reverse();
    // ECN bits are the sender's to set (RFC 3168 section 6.1.1: never on a reset).
    let reply = ip_header(out, tuple, LENGTH, header.tos & !3);
    let tcp = &mut out[IP_HEADER..LENGTH];
    tcp.fill(0);
    put_word(tcp, 0, tuple.source_port);
    put_word(tcp, 2, tuple.destination_port);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgment.to_be_bytes());
    tcp[12] = (TCP_HEADER as u8 / 4) << 4;
    tcp[13] = answer;
    let sum = fold(pseudo(&reply, TCP_HEADER) + u32::from(sum(tcp)));
    put_word(tcp, TCP_CHECKSUM, !sum);
    LENGTH
}

/// Writes the ICMP error that says why a packet does not arrive, from the address `from`. Quotes as much of the
/// packet as fits into 576 bytes and into `out`; 0 if that is less than its header and 8 bytes.
pub fn unreachable(packet: &[u8], header: &Header, from: Ipv4Addr, why: Unreachable, out: &mut [u8]) -> usize {
    const OVERHEAD: usize = IP_HEADER + ICMP_HEADER;
    /// Internetwork control (RFC 1812 section 4.3.2.5).
    const PRECEDENCE: u8 = 0xc0;

    let room = out.len().min(LONGEST_ERROR).saturating_sub(OVERHEAD);
    let quoted = header.total_len.min(packet.len()).min(room);
    let least = header.header_len + 8;
    if !answerable(header) || quoted < least {
        return 0;
    }
    let length = OVERHEAD + quoted;
    let tuple = FiveTuple {
        protocol: ICMP,
        source: from,
        source_port: 0,
        destination: header.tuple.source,
        destination_port: 0,
    };
    ip_header(out, tuple, length, PRECEDENCE);
    let (code, mtu) = match why {
        Unreachable::Host => (1, 0),
        Unreachable::Port => (3, 0),
        Unreachable::Prohibited => (13, 0),
        Unreachable::TooBig { mtu } => (4, mtu),
    };
    let message = &mut out[IP_HEADER..length];
    message[..ICMP_HEADER].copy_from_slice(&[UNREACHABLE, code, 0, 0, 0, 0, 0, 0]);
    put_word(message, 6, mtu);
    message[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    let sum = sum(message);
    put_word(message, ICMP_CHECKSUM, !sum);
    length
}

/// Writes the reply to an echo request, from the address that was asked, without the request's IP options; 0 for
/// anything else, for a fragment, or if `out` is shorter than the reply, which is at most as long as the request.
pub fn echo_reply(packet: &[u8], header: &Header, out: &mut [u8]) -> usize {
    let Some(request) = packet.get(header.header_len..header.total_len) else { return 0 };
    let length = IP_HEADER + request.len();
    if header.kind != Kind::EchoRequest || header.first_fragment || !answerable(header) || out.len() < length {
        return 0;
    }
    ip_header(out, header.tuple.reverse(), length, header.tos);
    let message = &mut out[IP_HEADER..length];
    message.copy_from_slice(request);
    message[0] = ECHO_REPLY;
    // By difference, so that a request damaged on its way is not answered with a checksum that vouches for it.
    let mut delta = ChecksumDelta::default();
    delta.change(u16::from_be_bytes([request[0], request[1]]), u16::from_be_bytes([ECHO_REPLY, request[1]]));
    delta.apply(message, ICMP_CHECKSUM, Checksum::Complete);
    length
}

/// Says whether RFC 1122 and RFC 1812 permit an answer.
fn answerable(header: &Header) -> bool {
    let one_host = |a: Ipv4Addr| !(a.octets()[0] == 0 || a.is_loopback() || a.is_multicast() || a.is_broadcast());
    let kind = match header.kind {
        Kind::Tcp(_) | Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::Other => true,
        // The other kind may be an error that is not known here.
        Kind::IcmpError(_) | Kind::IcmpOther | Kind::LaterFragment => false,
    };
    kind && one_host(header.tuple.source) && one_host(header.tuple.destination)
}

/// Writes an IPv4 header without options: not to be fragmented, therefore without identification (RFC 6864).
fn ip_header(out: &mut [u8], tuple: FiveTuple, total_len: usize, tos: u8) -> Header {
    const TTL: u8 = 64;
    let ip = &mut out[..IP_HEADER];
    ip.fill(0);
    ip[0] = 0x45;
    ip[1] = tos;
    put_word(ip, 2, total_len as u16);
    put_word(ip, 6, 0x4000);
    ip[8] = TTL;
    ip[9] = tuple.protocol;
    ip[12..16].copy_from_slice(&tuple.source.octets());
    ip[16..20].copy_from_slice(&tuple.destination.octets());
    let sum = sum(ip);
    put_word(ip, IP_CHECKSUM, !sum);
    Header {
        tuple,
        kind: if tuple.protocol == TCP { Kind::Tcp(RST) } else { Kind::IcmpOther },
        header_len: IP_HEADER,
        total_len,
        first_fragment: false,
        dont_fragment: true,
        identification: 0,
        tos,
    }
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(four.try_into().ok()?))
}
