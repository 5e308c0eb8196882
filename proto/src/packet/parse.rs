//! What a packet is: one pass over its headers, every length checked before it is believed.

use std::net::Ipv4Addr;

use super::bytes::word;
use super::{FiveTuple, ICMP, Malformed, TCP, UDP};

const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
/// What an ICMP error quotes of a transport header at the least (RFC 792).
const LEAST_QUOTE: usize = 8;

/// ICMP types.
pub(crate) const ECHO_REPLY: u8 = 0;
pub(crate) const UNREACHABLE: u8 = 3;
const SOURCE_QUENCH: u8 = 4;
const REDIRECT: u8 = 5;
pub(crate) const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// All flags that `Kind::Tcp` tells: FIN, SYN, RST, PSH, ACK.
const TOLD_FLAGS: u8 = 0x1f;

/// What kind of packet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP with these flags (FIN 1, SYN 2, RST 4, PSH 8, ACK 16).
    Tcp(u8),
    /// UDP.
    Udp,
    /// ICMP echo request.
    EchoRequest,
    /// ICMP echo reply.
    EchoReply,
    /// An ICMP error (types 3, 11, 12) that quotes a packet with this tuple. The header's own tuple has ports 0.
    IcmpError(FiveTuple),
    /// Another ICMP message.
    IcmpOther,
    /// Another protocol.
    Other,
    /// A fragment that is not the first: no ports.
    LaterFragment,
}

/// A parsed packet: offsets and fields, no borrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who talks to whom.
    pub tuple: FiveTuple,
    /// What it is.
    pub kind: Kind,
    /// Length of the IPv4 header, in bytes.
    pub header_len: usize,
    /// Length of the whole packet as its header says, in bytes; never more than the buffer.
    pub total_len: usize,
    /// Whether it is the first of several fragments.
    pub first_fragment: bool,
    /// Whether it must not be fragmented.
    pub dont_fragment: bool,
    /// The identification field, which joins fragments.
    pub identification: u16,
    /// The type-of-service byte.
    pub tos: u8,
}

impl Header {
    /// Reads a packet's headers. Bytes behind the length that the header states are ignored.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no IPv4 packet, if a length contradicts another or the buffer, if the first
    /// fragment does not hold the whole transport header, if a later one would overwrite it (RFC 3128), or if an
    /// ICMP error quotes less than 8 bytes of a transport header.
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let ip = Ip::parse(packet)?;
        let total_len = usize::from(word(packet, 2));
        if total_len < ip.header_len || total_len > packet.len() {
            return Err(Malformed::Truncated);
        }
        let mut header = Self {
            tuple: ip.tuple,
            kind: Kind::LaterFragment,
            header_len: ip.header_len,
            total_len,
            first_fragment: ip.more_fragments && ip.fragment_offset == 0,
            dont_fragment: ip.dont_fragment,
            identification: word(packet, 4),
            tos: packet[1],
        };
        if ip.fragment_offset > 0 {
            let overwrites_header = ip.tuple.protocol == TCP && ip.fragment_offset * 8 < TCP_HEADER;
            return if overwrites_header { Err(Malformed::Truncated) } else { Ok(header) };
        }

        let transport = &packet[header.header_len..total_len];
        match ip.tuple.protocol {
            TCP => {
                let length = transport.get(12).map_or(0, |b| usize::from(b >> 4) * 4);
                if length < TCP_HEADER || length > transport.len() {
                    return Err(Malformed::Truncated);
                }
                header.tuple = with_ports(header.tuple, transport);
                header.kind = Kind::Tcp(transport[13] & TOLD_FLAGS);
            }
            UDP => {
                let length = usize::from(word(transport, 4));
                let beyond = length > transport.len() && !header.first_fragment;
                if transport.len() < UDP_HEADER || length < UDP_HEADER || beyond {
                    return Err(Malformed::Truncated);
                }
                header.tuple = with_ports(header.tuple, transport);
                header.kind = Kind::Udp;
            }
            ICMP => (header.tuple, header.kind) = icmp(header.tuple, transport)?,
            _ => header.kind = Kind::Other,
        }
        Ok(header)
    }

    /// Returns the length of all headers, IPv4 and transport, in a packet of TCP, UDP or ICMP; of the IPv4 header
    /// alone in others.
    pub fn headers_len(&self, packet: &[u8]) -> usize {
        self.header_len
            + match self.kind {
                Kind::Tcp(_) => packet.get(self.header_len + 12).map_or(0, |b| usize::from(b >> 4) * 4),
                Kind::Udp => UDP_HEADER,
                Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError(_) | Kind::IcmpOther => ICMP_HEADER,
                Kind::Other | Kind::LaterFragment => 0,
            }
    }
}

/// Says whether a packet names hops of its own (loose or strict source routing, RFC 791 section 3.1): then whoever
/// holds its destination sends it on, to where the packet says.
pub fn is_source_routed(packet: &[u8], header: &Header) -> bool {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let mut options = packet.get(IP_HEADER..header.header_len).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        let length = match (*kind, rest.first()) {
            (LOOSE | STRICT, _) => return true,
            (NOP, _) => 1,
            // Every kernel drops a packet whose options do not add up.
            (END, _) | (_, None | Some(0 | 1)) => return false,
            (_, Some(&length)) => usize::from(length),
        };
        options = options.get(length..).unwrap_or_default();
    }
    false
}

/// The IPv4 header alone, of a packet or of a quote whose stated length may exceed what is there.
struct Ip {
    tuple: FiveTuple,
    header_len: usize,
    dont_fragment: bool,
    more_fragments: bool,
    /// In units of 8 bytes.
    fragment_offset: usize,
}

impl Ip {
    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.first() {
            None => return Err(Malformed::Truncated),
            Some(first) if first >> 4 != 4 => return Err(Malformed::NotIpv4),
            Some(_) if bytes.len() < IP_HEADER => return Err(Malformed::Truncated),
            Some(_) => {}
        }
        let header_len = usize::from(bytes[0] & 0x0f) * 4;
        if header_len < IP_HEADER || header_len > bytes.len() {
            return Err(Malformed::Truncated);
        }
        let fragment = word(bytes, 6);
        Ok(Self {
            tuple: FiveTuple {
                protocol: bytes[9],
                source: Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]),
                source_port: 0,
                destination: Ipv4Addr::new(bytes[16], bytes[17], bytes[18], bytes[19]),
                destination_port: 0,
            },
            header_len,
            dont_fragment: fragment & 0x4000 != 0,
            more_fragments: fragment & 0x2000 != 0,
            fragment_offset: usize::from(fragment & 0x1fff),
        })
    }
}

fn with_ports(tuple: FiveTuple, transport: &[u8]) -> FiveTuple {
    FiveTuple { source_port: word(transport, 0), destination_port: word(transport, 2), ..tuple }
}

/// The identifier stands in the asker's port.
fn with_identifier(tuple: FiveTuple, message: &[u8]) -> FiveTuple {
    match message.first() {
        Some(&ECHO_REQUEST) => FiveTuple { source_port: word(message, 4), ..tuple },
        Some(&ECHO_REPLY) => FiveTuple { destination_port: word(message, 4), ..tuple },
        _ => tuple,
    }
}

fn icmp(tuple: FiveTuple, message: &[u8]) -> Result<(FiveTuple, Kind), Malformed> {
    if message.len() < ICMP_HEADER {
        return Err(Malformed::Truncated);
    }
    let kind = match (message[0], message[1]) {
        (ECHO_REQUEST, 0) => Kind::EchoRequest,
        (ECHO_REPLY, 0) => Kind::EchoReply,
        (UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM, _) => quote(&message[ICMP_HEADER..])?,
        _ => Kind::IcmpOther,
    };
    match kind {
        Kind::EchoRequest | Kind::EchoReply => Ok((with_identifier(tuple, message), kind)),
        Kind::Tcp(_) | Kind::Udp | Kind::IcmpError(_) | Kind::IcmpOther | Kind::Other | Kind::LaterFragment => {
            Ok((tuple, kind))
        }
    }
}

/// Reads what an ICMP error quotes.
fn quote(quoted: &[u8]) -> Result<Kind, Malformed> {
    let ip = Ip::parse(quoted).map_err(|_| Malformed::Truncated)?;
    let transport = &quoted[ip.header_len..];
    if ip.fragment_offset > 0 {
        return Ok(Kind::IcmpOther);
    }
    if transport.len() < LEAST_QUOTE {
        return Err(Malformed::Truncated);
    }
    Ok(match (ip.tuple.protocol, transport[0]) {
        (TCP | UDP, _) => Kind::IcmpError(with_ports(ip.tuple, transport)),
        // No error answers an error (RFC 1122 section 3.2.2).
        (ICMP, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM) => Kind::IcmpOther,
        (ICMP, _) => Kind::IcmpError(with_identifier(ip.tuple, transport)),
        _ => Kind::IcmpError(ip.tuple),
    })
}
