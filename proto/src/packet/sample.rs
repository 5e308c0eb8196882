//! Packets for tests, made byte by byte with checksums computed the slow way.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::checksum::UDP_CHECKSUM;
use super::{FiveTuple, Header, ICMP, Kind, TCP, UDP, fold, pseudo, sum, word};

/// A packet to be made.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) tuple: FiveTuple,
    pub(crate) tos: u8,
    pub(crate) identification: u16,
    /// Flags and offset as they stand in the header.
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    /// In words of 4 bytes.
    pub(crate) ip_options: Vec<u8>,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) tcp_options: Vec<u8>,
    /// ICMP type and code.
    pub(crate) icmp: (u8, u8),
    pub(crate) payload: Vec<u8>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            tuple: FiveTuple {
                protocol: TCP,
                source: Ipv4Addr::new(10, 8, 0, 10),
                source_port: 40_000,
                destination: Ipv4Addr::new(241, 0, 0, 7),
                destination_port: 7070,
            },
            tos: 0,
            identification: 4711,
            fragment: 0x4000,
            ttl: 64,
            ip_options: Vec::new(),
            sequence: 1_000_000,
            acknowledgment: 2_000_000,
            flags: 0x10,
            window: 512,
            tcp_options: Vec::new(),
            icmp: (8, 0),
            payload: b"hello".to_vec(),
        }
    }
}

impl Sample {
    /// Makes the packet with complete checksums.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let t = self.tuple;
        let mut transport = Vec::new();
        let checksum_at = match t.protocol {
            TCP => {
                transport.extend(t.source_port.to_be_bytes());
                transport.extend(t.destination_port.to_be_bytes());
                transport.extend(self.sequence.to_be_bytes());
                transport.extend(self.acknowledgment.to_be_bytes());
                transport.push(((20 + self.tcp_options.len()) / 4 * 16) as u8);
                transport.push(self.flags);
                transport.extend(self.window.to_be_bytes());
                transport.extend([0; 4]);
                transport.extend(&self.tcp_options);
                Some(16)
            }
            UDP => {
                transport.extend(t.source_port.to_be_bytes());
                transport.extend(t.destination_port.to_be_bytes());
                transport.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                transport.extend([0; 2]);
                Some(6)
            }
            ICMP => {
                transport.extend([self.icmp.0, self.icmp.1, 0, 0]);
                let id = if self.icmp.0 == 0 { t.destination_port } else { t.source_port };
                transport.extend(id.to_be_bytes());
                transport.extend([0, 1]);
                Some(2)
            }
            _ => None,
        };
        transport.extend(&self.payload);
        if let Some(at) = checksum_at {
            let pseudo = if t.protocol == ICMP { Vec::new() } else { pseudo_header(t, transport.len()) };
            let mut sum = slow_checksum(&[pseudo, transport.clone()].concat());
            if t.protocol == UDP && sum == 0 {
                sum = 0xffff;
            }
            transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        ip(self, &transport)
    }

    /// Makes the packet with a partial transport checksum.
    pub(crate) fn partial_bytes(&self) -> Vec<u8> {
        let mut packet = self.bytes();
        let at = 20 + self.ip_options.len();
        let place = at + if self.tuple.protocol == TCP { 16 } else { 6 };
        let sum = !slow_checksum(&pseudo_header(self.tuple, packet.len() - at));
        packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }
}

fn ip(sample: &Sample, transport: &[u8]) -> Vec<u8> {
    let header_len = 20 + sample.ip_options.len();
    let mut packet = vec![0x40 | (header_len / 4) as u8, sample.tos];
    packet.extend(((header_len + transport.len()) as u16).to_be_bytes());
    packet.extend(sample.identification.to_be_bytes());
    packet.extend(sample.fragment.to_be_bytes());
    packet.extend([sample.ttl, sample.tuple.protocol, 0, 0]);
    packet.extend(sample.tuple.source.octets());
    packet.extend(sample.tuple.destination.octets());
    packet.extend(&sample.ip_options);
    let sum = slow_checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(transport);
    packet
}

/// Makes an ICMP error that quotes `length` bytes of a packet.
pub(crate) fn icmp_error(kind: u8, from: Ipv4Addr, to: Ipv4Addr, quote: &[u8], length: usize) -> Vec<u8> {
    let tuple = FiveTuple { protocol: ICMP, source: from, source_port: 0, destination: to, destination_port: 0 };
    let payload = quote[..length.min(quote.len())].to_vec();
    let mut packet = Sample { tuple, icmp: (kind, 1), payload, ..Sample::default() }.bytes();
    // The sequence number that an echo has at this place is unused in an error.
    packet[27] = 0;
    packet[22..24].fill(0);
    let sum = slow_checksum(&packet[20..]);
    packet[22..24].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn pseudo_header(t: FiveTuple, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(t.source.octets());
    bytes.extend(t.destination.octets());
    bytes.extend([0, t.protocol]);
    bytes.extend((length as u16).to_be_bytes());
    bytes
}

/// The Internet checksum as RFC 1071 states it.
pub(crate) fn slow_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Any address.
pub(crate) fn address() -> impl Strategy<Value = Ipv4Addr> {
    any::<u32>().prop_map(Ipv4Addr::from)
}

/// TCP options that parse: padding, or a maximum segment size at an odd or even place.
fn tcp_options() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        any::<[u8; 2]>().prop_map(|[a, b]| vec![2, 4, a, b]),
        any::<[u8; 2]>().prop_map(|[a, b]| vec![1, 2, 4, a, b, 1, 1, 0]),
        any::<[u8; 8]>().prop_map(|t| [&[1, 1, 8, 10][..], &t].concat()),
    ]
}

/// Whole packets of TCP, UDP and ICMP echo with everything in them arbitrary.
pub(crate) fn sample() -> impl Strategy<Value = Sample> {
    let tuple =
        (prop_oneof![Just(TCP), Just(UDP), Just(ICMP), Just(47)], address(), any::<u16>(), address(), any::<u16>());
    let ip = (any::<u8>(), any::<u16>(), prop_oneof![Just(0), Just(0x4000)], any::<u8>(), 0..=10usize);
    let tcp = (any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>(), tcp_options());
    let rest = (prop_oneof![Just(0u8), Just(8u8)], prop::collection::vec(any::<u8>(), 0..300));
    (tuple, ip, tcp, rest).prop_map(|(tuple, ip, tcp, rest)| {
        let (protocol, source, source_port, destination, destination_port) = tuple;
        let mut tuple = FiveTuple { protocol, source, source_port, destination, destination_port };
        match (protocol, rest.0) {
            (TCP | UDP, _) => {}
            (ICMP, 8) => tuple.destination_port = 0,
            (ICMP, _) => tuple.source_port = 0,
            _ => (tuple.source_port, tuple.destination_port) = (0, 0),
        }
        Sample {
            tuple,
            tos: ip.0,
            identification: ip.1,
            fragment: ip.2,
            ttl: ip.3,
            ip_options: vec![1; ip.4 * 4],
            sequence: tcp.0,
            acknowledgment: tcp.1,
            flags: tcp.2,
            window: tcp.3,
            tcp_options: tcp.4,
            icmp: (rest.0, 0),
            payload: rest.1,
        }
    })
}

/// Pseudo-random numbers for loops too long for proptest (xorshift64*; Vigna 2016).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }
}

/// Says whether all checksums of a whole packet are right, by full recomputation: the IPv4 header's, and that of
/// TCP, UDP (0 means none) or ICMP. A fragment's transport checksum cannot be known and counts as right.
pub(crate) fn verify(packet: &[u8]) -> bool {
    let Ok(header) = Header::parse(packet) else { return false };
    if sum(&packet[..header.header_len]) != 0xffff {
        return false;
    }
    if header.first_fragment || header.kind == Kind::LaterFragment {
        return true;
    }
    let transport = &packet[header.header_len..header.total_len];
    match header.tuple.protocol {
        TCP => fold(pseudo(&header, transport.len()) + u32::from(sum(transport))) == 0xffff,
        UDP => {
            let datagram = &transport[..usize::from(word(transport, 4)).min(transport.len())];
            word(datagram, UDP_CHECKSUM) == 0
                || fold(pseudo(&header, datagram.len()) + u32::from(sum(datagram))) == 0xffff
        }
        ICMP => sum(transport) == 0xffff,
        _ => true,
    }
}
