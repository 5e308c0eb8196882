//! Seeded packets: calls, answers, what follows them, and everything that should not be.

use std::net::Ipv4Addr;

use mesh_proto::packet::{ICMP, TCP, UDP};

use crate::generate::{Dice, LOCALS, ModelNode, ModelWorld, NEXT_HOP};
use crate::packet::{ACK, Body, FIN, PSH, Packet, RST, SYN, tuple};

const GRE: u8 = 47;

/// Makes packets.
#[derive(Debug)]
pub(crate) struct ModelTraffic {
    pub(crate) dice: Dice,
    /// The identification of the last packet.
    id: u16,
}

impl ModelTraffic {
    pub(crate) fn new(dice: Dice) -> Self {
        Self { dice, id: 0 }
    }

    fn id(&mut self) -> u16 {
        self.id = self.id.wrapping_add(1);
        self.id
    }

    /// A packet that something behind a node sends to begin a conversation, or pretends to be in one.
    pub(crate) fn outbound(&mut self, world: &ModelWorld, from: &ModelNode) -> Packet {
        let pods = from.pods();
        let source = match self.dice.below(20) {
            0..=10 if !pods.is_empty() => self.dice.pick(&pods).0,
            11..=14 => from.address,
            15..=16 => self.dice.pick(&LOCALS),
            17 => self.spoofed(world, from),
            _ if pods.is_empty() => from.address,
            _ => pods[0].0,
        };
        let destination = self.target(world, from);
        // The kernel keeps to itself what a host says to itself.
        let host = source == from.address || LOCALS.contains(&source);
        let destination = if host && destination == from.address { Ipv4Addr::new(241, 0, 0, 1) } else { destination };
        let mut packet = self.packet(source, destination);
        if matches!(packet.body, Body::Tcp { .. } | Body::Udp { bare: false, .. }) {
            packet.partial = self.dice.chance(30);
        }
        packet
    }

    /// A packet that a peer's tunnel carries though no engine sent it.
    pub(crate) fn inbound(&mut self, world: &ModelWorld, here: &ModelNode, from: &ModelNode) -> Packet {
        let pods = from.pods();
        let source = match self.dice.below(10) {
            0..=4 if !pods.is_empty() => self.dice.pick(&pods).1,
            5 | 6 => self.spoofed(world, from),
            _ => from.address,
        };
        let mine = here.pods();
        let destination = match self.dice.below(10) {
            0..=5 if !mine.is_empty() => self.dice.pick(&mine).1,
            6 | 7 => self.target(world, here),
            _ => here.address,
        };
        self.packet(source, destination)
    }

    /// An error that a peer sends about a packet it may never have received.
    pub(crate) fn hearsay(&mut self, from: &ModelNode, about: &Packet) -> Packet {
        let pods = from.pods();
        let source = if pods.is_empty() || self.dice.chance(50) { from.address } else { self.dice.pick(&pods).1 };
        let mut error = self.about(about.clone(), source, about.tuple.source);
        error.df = self.dice.chance(50);
        error
    }

    /// The answer to a packet that was delivered, or an error about it.
    pub(crate) fn answer(&mut self, world: &ModelWorld, here: &ModelNode, to: &Packet) -> Packet {
        if self.dice.chance(12) {
            return self.error(world, here, to);
        }
        let body = match &to.body {
            Body::Tcp { flags, .. } if flags & (SYN | ACK) == SYN => {
                let flags = if self.dice.chance(85) { SYN | ACK } else { RST | ACK };
                Body::Tcp { flags, seq: 900, ack: 101, mss: (flags & SYN != 0).then_some(1460), len: 0 }
            }
            Body::Tcp { .. } => self.segment(),
            Body::Udp { .. } => Body::Udp { len: self.dice.below(900), bare: self.dice.chance(10) },
            Body::Echo { reply, len } => Body::Echo { reply: !reply, len: *len },
            Body::Error { .. } | Body::Raw { .. } => Body::Raw { len: 32 },
        };
        let id = self.id();
        let mut answer = Packet::new(to.tuple.reverse(), id, body);
        if matches!(to.body, Body::Error { .. }) {
            answer.tuple = tuple(GRE, answer.tuple.source, 0, answer.tuple.destination, 0);
        }
        self.size(&mut answer);
        answer
    }

    /// The next packet of whoever sent this one.
    pub(crate) fn next(&mut self, after: &Packet) -> Packet {
        let body = match &after.body {
            Body::Tcp { flags, .. } if flags & SYN != 0 && self.dice.chance(10) => after.body.clone(),
            Body::Tcp { .. } if self.dice.chance(8) => {
                Body::Tcp { flags: SYN, seq: 5000, ack: 0, mss: Some(1400), len: 0 }
            }
            Body::Tcp { .. } => self.segment(),
            Body::Udp { .. } => Body::Udp { len: self.dice.below(900), bare: self.dice.chance(10) },
            Body::Echo { .. } | Body::Error { .. } | Body::Raw { .. } => after.body.clone(),
        };
        let id = self.id();
        let mut next = Packet::new(after.tuple, id, body);
        self.size(&mut next);
        next
    }

    /// The fragments of a packet, the first first; sometimes one is missing.
    pub(crate) fn fragments(&mut self, whole: &Packet) -> Vec<Packet> {
        let length = whole.carried();
        if length < 48 || matches!(whole.body, Body::Echo { .. } | Body::Error { .. }) || whole.partial {
            return vec![whole.clone()];
        }
        let cut = 24 + 8 * self.dice.below((length - 24) / 8);
        // Identifications come round again.
        let id = self.dice.below(8) as u16;
        let piece = |start, end| Packet { id, piece: Some((start, end)), df: false, ..whole.clone() };
        match self.dice.below(6) {
            0 => vec![piece(cut, length)],
            1 => vec![piece(0, cut)],
            _ if cut < length => vec![piece(0, cut), piece(cut, length)],
            _ => vec![whole.clone()],
        }
    }

    fn error(&mut self, world: &ModelWorld, here: &ModelNode, about: &Packet) -> Packet {
        let mut quote = about.clone();
        if matches!(quote.body, Body::Tcp { .. } | Body::Udp { .. }) && self.dice.chance(15) {
            quote.tuple.source_port ^= 1;
        }
        let pods = here.pods();
        let source = match self.dice.below(10) {
            0..=6 => quote.tuple.destination,
            7 if !pods.is_empty() => self.dice.pick(&pods).0,
            8 => here.address,
            9 if self.dice.chance(50) => NEXT_HOP,
            _ => self.spoofed(world, here),
        };
        let destination = if self.dice.chance(95) { quote.tuple.source } else { self.target(world, here) };
        self.about(quote, source, destination)
    }

    fn about(&mut self, quote: Packet, source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
        // Half a checksum (bytes 36 and 37 of a TCP segment) is nobody's to change.
        let len = match 28 + self.dice.below(100) {
            37 => 38,
            len => len,
        };
        let len = len.min(quote.bytes().len());
        let (kind, code) = self.dice.pick(&[(3, 3), (3, 4), (3, 13), (11, 0), (12, 0)]);
        let extra = if (kind, code) == (3, 4) { self.dice.pick(&[1200, 1200, 575, 0]) } else { 0 };
        let id = self.id();
        let body = Body::Error { kind, code, extra, quote: Box::new(quote), len };
        Packet::new(tuple(ICMP, source, 0, destination, 0), id, body)
    }

    fn segment(&mut self) -> Body {
        let flags = self.dice.pick(&[ACK, ACK, ACK | PSH, ACK | PSH, FIN | ACK, RST, RST | ACK, 0, SYN | ACK]);
        let len = if flags & PSH != 0 { self.dice.below(1000) } else { 0 };
        Body::Tcp { flags, seq: 101, ack: 901, mss: None, len }
    }

    /// Makes some packets larger than some ways take.
    fn size(&mut self, packet: &mut Packet) {
        packet.df = self.dice.chance(80);
        let large = 900 + self.dice.below(2000);
        if let Body::Tcp { len, flags, .. } = &mut packet.body
            && *flags == ACK | PSH
            && self.dice.chance(15)
        {
            *len = large;
            packet.partial = self.dice.chance(50);
        } else if let Body::Udp { len, .. } = &mut packet.body
            && self.dice.chance(10)
        {
            *len = large;
        }
    }

    fn packet(&mut self, source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
        let id = self.id();
        let sport = 40_000 + self.dice.below(3) as u16;
        let dport = self.dice.pick(&[7070, 7070, 7070, 7070, 80, 80, 8080, 8081, 9090, 22]);
        let short = self.dice.below(300);
        let (protocol, body, sport, dport) = match self.dice.below(20) {
            0..=8 => {
                let mss = self.dice.pick(&[None, Some(1460), Some(1300), Some(536)]);
                (TCP, Body::Tcp { flags: SYN, seq: 100, ack: 0, mss, len: 0 }, sport, dport)
            }
            9 | 10 if self.dice.chance(50) => (TCP, self.segment(), sport, dport),
            11 => (TCP, self.segment(), dport, sport),
            17 => (ICMP, Body::Echo { reply: false, len: short }, sport, 0),
            18 if self.dice.chance(50) => (ICMP, Body::Echo { reply: true, len: short }, 0, sport),
            19 => (GRE, Body::Raw { len: 8 + short }, 0, 0),
            _ => (UDP, Body::Udp { len: short, bare: self.dice.chance(10) }, sport, dport),
        };
        let mut packet = Packet::new(tuple(protocol, source, sport, destination, dport), id, body);
        packet.df = self.dice.chance(80);
        packet.tos = self.dice.pick(&[0, 0, 2, 0xb8]);
        packet.ttl = self.dice.pick(&[64, 63, 1]);
        packet
    }

    fn target(&mut self, world: &ModelWorld, here: &ModelNode) -> Ipv4Addr {
        let node = self.dice.pick(&world.nodes);
        let pods = node.pods();
        let own = here.pods();
        match self.dice.below(20) {
            0..=10 if !world.services.is_empty() => self.dice.pick(&world.services).1.vip.0,
            11..=14 if !pods.is_empty() => self.dice.pick(&pods).1,
            15 | 16 => node.address,
            17 if !own.is_empty() => self.dice.pick(&own).1,
            18 => Ipv4Addr::new(241, 0, 9, 9),
            _ => self.dice.pick(&[
                Ipv4Addr::new(241, 77, 0, 1),
                Ipv4Addr::new(10, 8, 0, 10),
                Ipv4Addr::new(8, 8, 8, 8),
                Ipv4Addr::LOCALHOST,
                Ipv4Addr::new(224, 0, 0, 251),
                Ipv4Addr::new(169, 254, 169, 254),
                LOCALS[0],
            ]),
        }
    }

    fn spoofed(&mut self, world: &ModelWorld, here: &ModelNode) -> Ipv4Addr {
        let others: Vec<_> = world.nodes.iter().filter(|n| n.id != here.id).collect();
        let other = others.get(self.dice.below(others.len()));
        let pods = other.map(|n| n.pods()).unwrap_or_default();
        match self.dice.below(10) {
            0 | 1 if other.is_some() => other.map_or(here.address, |n| n.address),
            2..=4 if !pods.is_empty() => self.dice.pick(&pods).1,
            5 if !world.services.is_empty() => self.dice.pick(&world.services).1.vip.0,
            6 => Ipv4Addr::LOCALHOST,
            7 => Ipv4Addr::new(224, 0, 0, 5),
            8 => Ipv4Addr::new(10, 99, 0, 1),
            _ => Ipv4Addr::UNSPECIFIED,
        }
    }
}
