//! New addresses and ports in place, with every checksum that covers them changed by the difference alone.

use std::net::Ipv4Addr;

use super::bytes::{put_word, word};
use super::checksum::{ChecksumDelta, ICMP_CHECKSUM, IP_CHECKSUM, TCP_CHECKSUM, UDP_CHECKSUM};
use super::parse::{ECHO_REPLY, ECHO_REQUEST, UNREACHABLE};
use super::{Checksum, Header, ICMP, Kind, Rewrite, TCP, UDP};

const SOURCE: usize = 12;
const DESTINATION: usize = 16;
/// Where the quote begins in an ICMP error.
const QUOTE: usize = 8;

/// Gives a packet new addresses and ports. Of a later fragment, of an ICMP error and of other protocols only the
/// addresses change; of a first fragment the transport checksum changes as that of the whole packet would.
///
/// `header` is what [`Header::parse`] said of this packet; it is stale afterwards.
pub fn rewrite(packet: &mut [u8], header: &Header, to: &Rewrite, checksum: Checksum) {
    let transport = match header.kind {
        Kind::Tcp(_) => Transport::Tcp,
        Kind::Udp => Transport::Udp,
        Kind::EchoRequest => Transport::EchoRequest,
        Kind::EchoReply => Transport::EchoReply,
        Kind::IcmpError(_) | Kind::IcmpOther | Kind::Other | Kind::LaterFragment => Transport::Opaque,
    };
    translate(packet, header.header_len, transport, to, checksum);
}

/// Gives an ICMP error new addresses (`outer`; its ports are ignored) and the packet that it quotes new addresses
/// and ports (`quoted`), with the quoted checksums, as far as they lie in the quote, and the ICMP checksum to match.
/// Does nothing if the packet is no ICMP error.
pub fn rewrite_icmp_error(packet: &mut [u8], header: &Header, outer: &Rewrite, quoted: &Rewrite) {
    let Kind::IcmpError(tuple) = header.kind else { return };
    translate(packet, header.header_len, Transport::Opaque, outer, Checksum::Complete);

    let Some(message) = packet.get_mut(header.header_len..header.total_len) else { return };
    let Some(quote) = message.get_mut(QUOTE..) else { return };
    let quote_header_len = quote.first().map_or(0, |b| usize::from(b & 0x0f) * 4);
    let transport = match (tuple.protocol, quote.get(quote_header_len)) {
        (TCP, _) => Transport::Tcp,
        (UDP, _) => Transport::Udp,
        (ICMP, Some(&ECHO_REQUEST)) => Transport::EchoRequest,
        (ICMP, Some(&ECHO_REPLY)) => Transport::EchoReply,
        _ => Transport::Opaque,
    };
    let delta = translate(quote, quote_header_len, transport, quoted, Checksum::Complete);
    delta.apply(message, ICMP_CHECKSUM, Checksum::Complete);
}

/// Says whether a packet is an ICMP error that asks for smaller packets (type 3, code 4; RFC 1191).
pub fn is_too_big(packet: &[u8], header: &Header) -> bool {
    const FRAGMENTATION_NEEDED: u8 = 4;
    let kind = packet.get(header.header_len..header.header_len + 2);
    matches!(header.kind, Kind::IcmpError(_)) && kind == Some(&[UNREACHABLE, FRAGMENTATION_NEEDED])
}

/// Raises the size that an ICMP error asks for to `least` bytes, with its checksum; says whether it changed anything.
/// An error without a size (0, from before RFC 1191) asks for less, too: its receiver would guess.
pub fn raise_mtu(packet: &mut [u8], header: &Header, least: u16) -> bool {
    const MTU: usize = 6;
    if !is_too_big(packet, header) {
        return false;
    }
    let Some(message) = packet.get_mut(header.header_len..header.total_len) else { return false };
    if word(message, MTU) >= least {
        return false;
    }
    let mut delta = ChecksumDelta::default();
    put(message, MTU, least, &mut delta);
    delta.apply(message, ICMP_CHECKSUM, Checksum::Complete);
    true
}

/// Lowers the maximum segment size that a SYN or SYN-ACK states to `max`; says whether it changed anything.
pub fn clamp_mss(packet: &mut [u8], header: &Header, max: u16, checksum: Checksum) -> bool {
    const SYN: u8 = 2;
    const END: u8 = 0;
    const NOP: u8 = 1;
    const MSS: u8 = 2;
    const TCP_HEADER: usize = 20;

    let Kind::Tcp(flags) = header.kind else { return false };
    if flags & SYN == 0 {
        return false;
    }
    let end = header.headers_len(packet);
    let Some(tcp) = packet.get_mut(header.header_len..end) else { return false };
    let mut at = TCP_HEADER;
    while let Some(&kind) = tcp.get(at) {
        let length = match kind {
            END => return false,
            NOP => 1,
            _ => match tcp.get(at + 1) {
                Some(&length) if length >= 2 => usize::from(length),
                _ => return false,
            },
        };
        if kind == MSS {
            let value = at + 2;
            if length != 4 || tcp.len() < value + 2 || word(tcp, value) <= max {
                return false;
            }
            lower(tcp, value, max, checksum);
            return true;
        }
        at += length;
    }
    false
}

/// Writes `new` at `at`, which may be odd: then it covers halves of two words of the sum.
fn lower(tcp: &mut [u8], at: usize, new: u16, checksum: Checksum) {
    let mut delta = ChecksumDelta::default();
    let first = at & !1;
    let before = [word(tcp, first), word(tcp, first + 2)];
    put_word(tcp, at, new);
    delta.change(before[0], word(tcp, first));
    if at != first {
        delta.change(before[1], word(tcp, first + 2));
    }
    // A partial checksum sums the pseudo-header alone, of which options are no part.
    if checksum == Checksum::Complete {
        delta.apply(tcp, TCP_CHECKSUM, checksum);
    }
}

/// What stands behind an IPv4 header, as far as a rewrite cares.
#[derive(Clone, Copy)]
enum Transport {
    Tcp,
    Udp,
    EchoRequest,
    EchoReply,
    Opaque,
}

/// Rewrites one IPv4 packet, whole or quoted and cut short; returns the change of all its words, checksums included.
fn translate(
    ip: &mut [u8],
    header_len: usize,
    transport: Transport,
    to: &Rewrite,
    checksum: Checksum,
) -> ChecksumDelta {
    let mut addresses = ChecksumDelta::default();
    if let Some((address, _)) = to.source {
        put_address(ip, SOURCE, address, &mut addresses);
    }
    if let Some((address, _)) = to.destination {
        put_address(ip, DESTINATION, address, &mut addresses);
    }
    let mut all = addresses;
    all.add(addresses.apply(ip, IP_CHECKSUM, Checksum::Complete));

    let Some(inner) = ip.get_mut(header_len..) else { return all };
    let source = to.source.map(|(_, port)| port);
    let destination = to.destination.map(|(_, port)| port);
    let (places, at, pseudo) = match transport {
        Transport::Tcp => ([(0, source), (2, destination)], TCP_CHECKSUM, addresses),
        Transport::Udp => ([(0, source), (2, destination)], UDP_CHECKSUM, addresses),
        Transport::EchoRequest => ([(4, source), (0, None)], ICMP_CHECKSUM, ChecksumDelta::default()),
        Transport::EchoReply => ([(4, destination), (0, None)], ICMP_CHECKSUM, ChecksumDelta::default()),
        Transport::Opaque => return all,
    };
    let mut ports = ChecksumDelta::default();
    for (place, port) in places {
        if let Some(port) = port {
            put(inner, place, port, &mut ports);
        }
    }
    all.add(ports);

    if inner.len() < at + 2 {
        return all;
    }
    let udp = matches!(transport, Transport::Udp);
    let field = match checksum {
        // A UDP checksum of 0 is none, and stays so.
        Checksum::Complete if udp && word(inner, at) == 0 => return all,
        Checksum::Complete => {
            let mut covered = pseudo;
            covered.add(ports);
            let old = word(inner, at);
            covered.apply(inner, at, checksum);
            if udp && word(inner, at) == 0 {
                put_word(inner, at, 0xffff);
            }
            let mut field = ChecksumDelta::default();
            field.change(old, word(inner, at));
            field
        }
        // Ports are no part of the pseudo-header, and ICMP has none: its checksum is always complete.
        Checksum::Partial => match transport {
            Transport::Tcp | Transport::Udp => pseudo.apply(inner, at, checksum),
            Transport::EchoRequest | Transport::EchoReply | Transport::Opaque => {
                ports.apply(inner, at, Checksum::Complete)
            }
        },
    };
    all.add(field);
    all
}

fn put(bytes: &mut [u8], at: usize, new: u16, delta: &mut ChecksumDelta) {
    delta.change(word(bytes, at), new);
    put_word(bytes, at, new);
}

fn put_address(ip: &mut [u8], at: usize, address: Ipv4Addr, delta: &mut ChecksumDelta) {
    let [a, b, c, d] = address.octets();
    put(ip, at, u16::from_be_bytes([a, b]), delta);
    put(ip, at + 2, u16::from_be_bytes([c, d]), delta);
}
