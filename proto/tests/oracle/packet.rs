//! Packets as descriptions: what a rewrite must yield is the description with other addresses, written out
//! again from nothing, with every checksum computed the slow way.

use std::net::Ipv4Addr;

use mesh_proto::packet::{FiveTuple, ICMP, TCP, UDP};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// A packet, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Who talks to whom; for echo the identifier stands in the asker's port.
    pub(crate) tuple: FiveTuple,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) id: u16,
    pub(crate) df: bool,
    pub(crate) body: Body,
    /// The part of the transport's bytes that this fragment carries.
    pub(crate) piece: Option<(usize, usize)>,
    /// Whether the transport checksum covers the pseudo-header alone.
    pub(crate) partial: bool,
}

/// What a packet carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Tcp { flags: u8, seq: u32, ack: u32, mss: Option<u16>, len: usize },
    Udp { len: usize, bare: bool },
    Echo { reply: bool, len: usize },
    Error { kind: u8, code: u8, extra: u16, quote: Box<Packet>, len: usize },
    Raw { len: usize },
}

impl Packet {
    /// Returns the packet with this tuple and ordinary header fields.
    pub(crate) fn new(tuple: FiveTuple, id: u16, body: Body) -> Self {
        Self { tuple, ttl: 64, tos: 0, id, df: true, body, piece: None, partial: false }
    }

    /// Returns the same packet between others.
    pub(crate) fn between(&self, tuple: FiveTuple) -> Self {
        Self { tuple, ..self.clone() }
    }

    /// Says whether it carries no ports because it is not the first fragment.
    pub(crate) fn later(&self) -> bool {
        self.piece.is_some_and(|(start, _)| start > 0)
    }

    /// Says whether it is the first of several fragments.
    pub(crate) fn first(&self) -> bool {
        self.piece.is_some_and(|(start, _)| start == 0)
    }

    /// Returns the flags of a TCP segment.
    pub(crate) fn flags(&self) -> Option<u8> {
        match self.body {
            Body::Tcp { flags, .. } if !self.later() => Some(flags),
            Body::Tcp { .. } | Body::Udp { .. } | Body::Echo { .. } | Body::Error { .. } | Body::Raw { .. } => None,
        }
    }

    /// Returns the packet as bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let whole = self.transport();
        let (start, end) = self.piece.unwrap_or((0, whole.len()));
        let more = u16::from(end < whole.len()) << 13;
        let fragment = u16::from(self.df) << 14 | more | (start / 8) as u16;
        let mut bytes = vec![0x45, self.tos];
        bytes.extend(((20 + end - start) as u16).to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([self.ttl, self.tuple.protocol, 0, 0]);
        bytes.extend(self.tuple.source.octets());
        bytes.extend(self.tuple.destination.octets());
        let checksum = !ones(&bytes);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(&whole[start..end]);
        bytes
    }

    /// Returns the length of all that is carried behind the IPv4 header, over all fragments.
    pub(crate) fn carried(&self) -> usize {
        self.transport().len()
    }

    fn payload(&self, len: usize) -> impl Iterator<Item = u8> {
        let start = self.id as u8;
        (0..len).map(move |i| start.wrapping_add((i * 7) as u8))
    }

    fn transport(&self) -> Vec<u8> {
        let t = self.tuple;
        let mut out = Vec::new();
        match &self.body {
            Body::Tcp { flags, seq, ack, mss, len } => {
                out.extend(t.source_port.to_be_bytes());
                out.extend(t.destination_port.to_be_bytes());
                out.extend(seq.to_be_bytes());
                out.extend(ack.to_be_bytes());
                // A reset states no window.
                let window = if flags & RST != 0 { 0 } else { 2 };
                out.extend([if mss.is_some() { 0x60 } else { 0x50 }, *flags, window, 0, 0, 0, 0, 0]);
                if let Some(mss) = mss {
                    out.extend([2, 4]);
                    out.extend(mss.to_be_bytes());
                }
                out.extend(self.payload(*len));
                self.seal(&mut out, 16);
            }
            Body::Udp { len, bare } => {
                out.extend(t.source_port.to_be_bytes());
                out.extend(t.destination_port.to_be_bytes());
                out.extend(((8 + len) as u16).to_be_bytes());
                out.extend([0, 0]);
                out.extend(self.payload(*len));
                if !bare {
                    self.seal(&mut out, 6);
                }
            }
            Body::Echo { reply, len } => {
                let identifier = if *reply { t.destination_port } else { t.source_port };
                out.extend([if *reply { 0 } else { 8 }, 0, 0, 0]);
                out.extend(identifier.to_be_bytes());
                out.extend([0, 1]);
                out.extend(self.payload(*len));
                self.seal(&mut out, 2);
            }
            Body::Error { kind, code, extra, quote, len } => {
                out.extend([*kind, *code, 0, 0, 0, 0]);
                out.extend(extra.to_be_bytes());
                out.extend(quote.bytes().into_iter().take(*len));
                self.seal(&mut out, 2);
            }
            Body::Raw { len } => out.extend(self.payload(*len)),
        }
        out
    }

    fn seal(&self, transport: &mut [u8], at: usize) {
        let t = self.tuple;
        let mut pseudo = Vec::new();
        if t.protocol != ICMP {
            pseudo.extend(t.source.octets());
            pseudo.extend(t.destination.octets());
            pseudo.extend([0, t.protocol]);
            pseudo.extend((transport.len() as u16).to_be_bytes());
        }
        let mut checksum = ones(&pseudo);
        if !self.partial {
            pseudo.extend(&*transport);
            checksum = !ones(&pseudo);
            if t.protocol == UDP && checksum == 0 {
                checksum = 0xffff;
            }
        }
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Returns the sum of 16-bit words in ones' complement.
fn ones(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Returns a tuple; ports are 0 for protocols without.
pub(crate) fn tuple(protocol: u8, source: Ipv4Addr, sport: u16, destination: Ipv4Addr, dport: u16) -> FiveTuple {
    let (source_port, destination_port) = match protocol {
        TCP | UDP | ICMP => (sport, dport),
        _ => (0, 0),
    };
    FiveTuple { protocol, source, source_port, destination, destination_port }
}

/// Returns a packet in one line.
pub(crate) fn line(p: &Packet) -> String {
    let t = p.tuple;
    let piece = p.piece.map(|(a, b)| format!(" piece {a}..{b} of {}", p.carried())).unwrap_or_default();
    let body = match &p.body {
        Body::Tcp { flags, mss, len, .. } => {
            let names = [(SYN, 'S'), (ACK, 'A'), (FIN, 'F'), (RST, 'R'), (PSH, 'P')];
            let flags: String = names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, c)| c).collect();
            format!("tcp {flags} mss {mss:?} +{len}")
        }
        Body::Udp { len, bare } => format!("udp{} +{len}", if *bare { " bare" } else { "" }),
        Body::Echo { reply, len } => format!("echo {} +{len}", if *reply { "reply" } else { "request" }),
        Body::Error { kind, code, quote, len, .. } => format!("icmp {kind}/{code} quoting {len} of [{}]", line(quote)),
        Body::Raw { len } => format!("protocol {} +{len}", t.protocol),
    };
    format!(
        "{}:{} > {}:{} {body} id {}{}{}{piece}",
        t.source,
        t.source_port,
        t.destination,
        t.destination_port,
        p.id,
        if p.df { " DF" } else { "" },
        if p.partial { " partial" } else { "" },
    )
}
