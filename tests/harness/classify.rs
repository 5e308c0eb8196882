//! What may be seen on an underlay link, and what is a leak.
//!
//! ```text
//! frame ─┬ ARP · ND, MLD                                            Neighbour
//!        ├ UDP, a tunnel port, one or more messages of type 1 to 4    Tunnel
//!        ├ TCP with the coordinator ─┬ no payload                    Control
//!        │                           └ whole TLS records, in order   Control
//!        ├ ICMP error that quotes one of the two                     Quoted
//!        └ anything else                                             Leak
//! ```
//! TLS records are followed through each stream, so that clear text behind a good first record is found.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Link business: who has which address.
    Neighbour,
    /// A WireGuard message.
    Tunnel,
    /// TCP or TLS between a node and the coordinator.
    Control,
    /// An ICMP error about a tunnel or control packet.
    Quoted,
    /// What must not be there.
    Leak,
}

/// What is known beforehand: where tunnels and the coordinator listen.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// UDP ports of all lanes of all nodes.
    pub tunnel_ports: BTreeSet<u16>,
    /// Where coordinators listen.
    pub coordinators: BTreeSet<SocketAddr>,
}

/// The classifier; it remembers each TLS stream.
pub struct Classifier {
    known: Known,
    streams: BTreeMap<(SocketAddr, SocketAddr), Stream>,
}

/// One direction of a TLS stream.
#[derive(Debug, Default)]
struct Stream {
    next: u32,
    /// Bytes of the present record still to come.
    body: usize,
    /// The beginning of a record header that was cut by the segment's end.
    header: Vec<u8>,
}

/// Most streams that are remembered; far above what a lab opens.
const MAX_STREAMS: usize = 4096;
/// The largest TLS 1.3 record body (RFC 8446 section 5.2).
const MAX_RECORD: usize = (1 << 14) + 256;
/// The largest datagram that is one message; larger frames are several of one size (GSO).
const MAX_MESSAGE: usize = 1500;

impl Classifier {
    /// Starts with what is known.
    pub fn new(known: Known) -> Self {
        Self { known, streams: BTreeMap::new() }
    }

    /// Classifies an Ethernet frame.
    pub fn classify(&mut self, frame: &[u8]) -> Class {
        let Some((header, packet)) = frame.split_at_checked(14) else {
            return Class::Leak;
        };
        match [header[12], header[13]] {
            [0x08, 0x06] => Class::Neighbour,
            [0x08, 0x00] => self.ipv4(packet, false),
            [0x86, 0xDD] => self.ipv6(packet, false),
            _ => Class::Leak,
        }
    }

    fn ipv4(&mut self, packet: &[u8], quoted: bool) -> Class {
        if packet.len() < 20 || packet[0] >> 4 != 4 {
            return Class::Leak;
        }
        let header = usize::from(packet[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3FFF;
        if fragment != 0 || header < 20 || total < header {
            return Class::Leak;
        }
        let end = total.min(packet.len());
        let Some(payload) = packet.get(header..end) else {
            return Class::Leak;
        };
        let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]).into();
        let ends = (address(12), address(16));
        match packet[9] {
            1 if !quoted && payload.len() >= 28 && matches!(payload[0], 3 | 11 | 12) => {
                self.quoted(payload, |this, inner| this.ipv4(inner, true))
            }
            protocol => self.transport(protocol, ends, payload, quoted),
        }
    }

    fn ipv6(&mut self, packet: &[u8], quoted: bool) -> Class {
        if packet.len() < 40 || packet[0] >> 4 != 6 {
            return Class::Leak;
        }
        let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
        let end = (40 + length).min(packet.len());
        let mut payload = &packet[40..end];
        let mut next = packet[6];
        // MLD carries a router-alert option (RFC 3810 section 5).
        if next == 0 && payload.len() >= 8 {
            (next, payload) = (payload[0], &payload[8..]);
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&packet[at..at + 16]);
            Ipv6Addr::from(octets).into()
        };
        let ends = (address(8), address(24));
        match (next, payload.first()) {
            (58, Some(130..=137 | 143)) => Class::Neighbour,
            (58, Some(1..=4)) if !quoted && payload.len() >= 56 => {
                self.quoted(payload, |this, inner| this.ipv6(inner, true))
            }
            (protocol, _) => self.transport(protocol, ends, payload, quoted),
        }
    }

    fn quoted(&mut self, payload: &[u8], inner: impl Fn(&mut Self, &[u8]) -> Class) -> Class {
        match inner(self, &payload[8..]) {
            Class::Tunnel | Class::Control => Class::Quoted,
            Class::Neighbour | Class::Quoted | Class::Leak => Class::Leak,
        }
    }

    fn transport(
        &mut self,
        protocol: u8,
        (source, destination): (IpAddr, IpAddr),
        payload: &[u8],
        quoted: bool,
    ) -> Class {
        if payload.len() < 8 {
            return Class::Leak;
        }
        let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
        let ends = (SocketAddr::new(source, port(0)), SocketAddr::new(destination, port(2)));
        let good = match protocol {
            17 => {
                let ports = &self.known.tunnel_ports;
                let ours = ports.contains(&port(0)) && ports.contains(&port(2));
                ours && (if quoted { message_begins } else { is_tunnel })(&payload[8..])
            }
            6 => {
                let known = &self.known.coordinators;
                let ours = known.contains(&ends.0) || known.contains(&ends.1);
                return if ours && (quoted || self.segment(ends, payload)) { Class::Control } else { Class::Leak };
            }
            _ => false,
        };
        if good { Class::Tunnel } else { Class::Leak }
    }

    /// Says whether a TCP segment continues its stream with whole TLS records.
    fn segment(&mut self, ends: (SocketAddr, SocketAddr), tcp: &[u8]) -> bool {
        let offset = usize::from(tcp.get(12).copied().unwrap_or(0) >> 4) * 4;
        let Some(payload) = tcp.get(offset..).filter(|_| offset >= 20) else {
            return false;
        };
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        if tcp[13] & 2 != 0 {
            if self.streams.len() >= MAX_STREAMS {
                self.streams.clear();
            }
            let stream = Stream { next: sequence.wrapping_add(1), ..Stream::default() };
            // The same SYN is seen on several links, the later ones perhaps after data.
            let entry = self.streams.entry(ends).or_default();
            if entry.next == 0 || ahead(stream.next, entry.next) > 0 {
                *entry = stream;
            }
            return payload.is_empty();
        }
        // Keepalive probes carry one old byte.
        if payload.len() <= 1 {
            return true;
        }
        let stream = self.streams.entry(ends).or_insert_with(|| Stream { next: sequence, ..Stream::default() });
        let old = ahead(stream.next, sequence);
        if old < 0 {
            // A gap: what follows must begin a record, or wait for its retransmission in order.
            *stream = Stream { next: sequence, ..Stream::default() };
        }
        let known = usize::try_from(old.max(0)).unwrap_or(0);
        let Some(fresh) = payload.get(known..) else {
            return true;
        };
        stream.next = stream.next.wrapping_add(u32::try_from(fresh.len()).unwrap_or(0));
        stream.take(fresh)
    }
}

impl Stream {
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let body = self.body.min(bytes.len());
            self.body -= body;
            bytes = &bytes[body..];
            while self.body == 0 && !bytes.is_empty() {
                self.header.push(bytes[0]);
                bytes = &bytes[1..];
                let [kind, 3, 1..=3, high, low] = *self.header else {
                    if self.header.len() >= 5 {
                        return false;
                    }
                    continue;
                };
                let length = usize::from(u16::from_be_bytes([high, low]));
                if !(20..=23).contains(&kind) || length > MAX_RECORD {
                    return false;
                }
                self.header.clear();
                self.body = length;
            }
        }
        true
    }
}

/// How far `a` lies ahead of `b` in TCP's circle of sequence numbers.
fn ahead(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

fn message_begins(payload: &[u8]) -> bool {
    matches!(payload, [1..=4, 0, 0, 0, ..])
}

/// Says whether a UDP payload is one WireGuard message, or several of one size (GSO), the last perhaps shorter.
fn is_tunnel(payload: &[u8]) -> bool {
    match payload {
        [kind @ 1..=3, 0, 0, 0, ..] => payload.chunks(handshake_length(*kind)).all(is_message),
        [4, 0, 0, 0, ..] if payload.len() <= MAX_MESSAGE => is_data(payload),
        [4, 0, 0, 0, ..] => (32..=MAX_MESSAGE).rev().any(|size| are_data(payload, size)),
        _ => false,
    }
}

fn handshake_length(kind: u8) -> usize {
    match kind {
        1 => 148,
        2 => 92,
        _ => 64,
    }
}

fn is_message(message: &[u8]) -> bool {
    match message {
        [kind @ 1..=3, 0, 0, 0, ..] => message.len() == handshake_length(*kind),
        _ => is_data(message),
    }
}

/// Data messages are a 16-byte header, padding to 16 and a 16-byte tag. A message that fills the MTU is
/// not padded beyond it, so the length alone proves nothing more than its minimum.
fn is_data(message: &[u8]) -> bool {
    message.len() >= 32 && message[..4] == [4, 0, 0, 0]
}

/// Messages of one session have numbers that go on; a session may take another's place in the middle.
fn are_data(payload: &[u8], size: usize) -> bool {
    let mut sessions: Vec<(&[u8], u64)> = Vec::new();
    payload.chunks(size).all(|message| {
        let counter = message.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let Some(counter) = counter.filter(|_| is_data(message)) else { return false };
        let receiver = &message[4..8];
        match sessions.iter_mut().find(|(known, _)| *known == receiver) {
            Some((_, last)) => std::mem::replace(last, counter).checked_add(1) == Some(counter),
            None => {
                sessions.push((receiver, counter));
                true
            }
        }
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn classifier() -> Classifier {
        Classifier::new(Known {
            tunnel_ports: [51820, 51821].into(),
            coordinators: ["10.0.0.9:7700".parse().unwrap()].into(),
        })
    }

    fn frame(protocol: u8, ports: (u16, u16), rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 14];
        packet[12] = 8;
        let total = u16::try_from(20 + 4 + rest.len()).unwrap();
        packet.extend([0x45, 0]);
        packet.extend(total.to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        packet.extend([10, 0, 0, 1, 10, 0, 0, 9]);
        packet.extend(ports.0.to_be_bytes());
        packet.extend(ports.1.to_be_bytes());
        packet.extend(rest);
        packet
    }

    fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        frame(17, ports, &[&[0; 4], payload].concat())
    }

    fn tcp(sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut rest = sequence.to_be_bytes().to_vec();
        rest.extend([0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
        rest.extend(payload);
        frame(6, (40000, 7700), &rest)
    }

    fn data(counter: u64, length: usize) -> Vec<u8> {
        let mut message = vec![4, 0, 0, 0, 9, 9, 9, 9];
        message.extend(counter.to_le_bytes());
        message.resize(length, 0xAA);
        message
    }

    #[test]
    fn tunnel_messages_are_told_by_type_length_and_port() {
        let mut c = classifier();
        let mut initiation = vec![1, 0, 0, 0];
        initiation.resize(148, 7);
        assert_eq!(c.classify(&udp((51820, 51821), &initiation)), Class::Tunnel);
        assert_eq!(c.classify(&udp((51820, 53), &initiation)), Class::Leak);
        assert_eq!(c.classify(&udp((51820, 51821), &initiation[..147])), Class::Leak);
        let mut response = vec![2, 0, 0, 0];
        response.resize(92, 7);
        let train = [response.clone(), response.clone(), data(0, 32)].concat();
        assert_eq!(c.classify(&udp((51820, 51821), &train)), Class::Tunnel);
        let spoilt = [response, b"clear text".to_vec()].concat();
        assert_eq!(c.classify(&udp((51820, 51821), &spoilt)), Class::Leak);
        assert_eq!(c.classify(&udp((51820, 51820), &data(5, 96))), Class::Tunnel);
        assert_eq!(c.classify(&udp((51820, 51820), b"clear text")), Class::Leak);
    }

    #[test]
    fn a_train_of_data_messages_is_told_from_one_with_clear_text_inside() {
        let mut c = classifier();
        let train = [data(5, 1452), data(6, 1452), data(7, 400)].concat();
        assert_eq!(c.classify(&udp((51820, 51820), &train)), Class::Tunnel);
        // A new session takes over in the middle.
        let mut newer = data(0, 1452);
        newer[4] = 7;
        let change = [data(5, 1452), newer.clone(), data(1, 1452)].concat();
        assert_eq!(c.classify(&udp((51820, 51820), &change)), Class::Leak, "a number that goes back");
        let mut next = data(1, 400);
        next[4] = 7;
        let change = [data(5, 1452), newer, next].concat();
        assert_eq!(c.classify(&udp((51820, 51820), &change)), Class::Tunnel);
        let mut spoilt = train;
        spoilt[1452] = b'G';
        assert_eq!(c.classify(&udp((51820, 51820), &spoilt)), Class::Leak);
    }

    #[test]
    fn clear_text_behind_a_good_tls_record_is_found() {
        let mut c = classifier();
        let record = [&[22, 3, 1, 0, 3][..], b"abc", &[23, 3, 3, 0, 4], b"de"].concat();
        assert_eq!(c.classify(&tcp(100, &record)), Class::Control);
        assert_eq!(c.classify(&tcp(100, &record)), Class::Control, "seen twice");
        assert_eq!(c.classify(&tcp(115, b"fg")), Class::Control);
        assert_eq!(c.classify(&tcp(117, b"GET / HTTP/1.1")), Class::Leak);
    }

    #[test]
    fn an_icmp_error_is_as_good_as_what_it_quotes() {
        let mut c = classifier();
        for (inner, class) in
            [(udp((51820, 51820), &data(1, 64)), Class::Quoted), (udp((53, 53), b"clear"), Class::Leak)]
        {
            let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
            error.extend(&inner[14..]);
            let mut packet = frame(1, (0, 0), &[]);
            packet.truncate(34);
            packet.extend(&error);
            let total = u16::try_from(packet.len() - 14).unwrap().to_be_bytes();
            packet[16..18].copy_from_slice(&total);
            assert_eq!(c.classify(&packet), class);
        }
    }

    #[test]
    fn cut_frames_do_not_panic() {
        let mut c = classifier();
        let whole = tcp(1, &[23, 3, 3, 0, 1, 0]);
        for length in 0..whole.len() {
            let _ = c.classify(&whole[..length]);
        }
        for filler in 0..=255u8 {
            for length in 0..120 {
                let _ = c.classify(&vec![filler; length]);
            }
        }
    }
}
