//! Super-packets: up to 64 KB that the kernel hands over as one packet (TSO, USO) and takes back as one (GRO).
//!
//! ```text
//!   [H|  p0  |  p1  |  p2 ]     one lookup, one rewrite for all of it
//!   [H|  p0  ]                  segment 0
//!         [H|  p1  ]            segment 1: its header is stamped over the end of p0, right before its payload
//!                [H|  p2 ]      segment 2
//! ```
//!
//! [`Segments`] splits in place, without copying payload; [`SegmentRun`] decides which received packets continue each
//! other and makes their common header, the payloads being gathered by whoever writes to the device.

use crate::packet::{Checksum, Header, Kind, fold, nonzero_if_udp, pseudo, put_word, sum, word};

/// The most packets that one super-packet is made of; what kernels before 6.9 take.
pub const MOST_SEGMENTS: usize = 64;
/// The longest IPv4 and TCP headers together.
pub const LONGEST_HEADERS: usize = 120;
const LONGEST_PACKET: usize = 65_535;

const IP_HEADER: usize = 20;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;

/// How the kernel wants a packet segmented.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gso {
    /// Not at all.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4 {
        /// Congestion was answered in its first segment (CWR).
        ecn: bool,
    },
    /// TCP over IPv6, which the mesh does not carry: it is told apart to be dropped by its own name.
    Tcp6 {
        /// As for IPv4.
        ecn: bool,
    },
    /// UDP, of either version: each segment a datagram of its own.
    Udp,
}

/// The header that stands before each packet of a TUN device opened with IFF_VNET_HDR
/// (struct virtio_net_hdr, Linux include/uapi/linux/virtio_net.h). Its `hdr_len` is neither believed nor kept:
/// it is wrong for forwarded packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// Whether the transport checksum is partial.
    pub needs_checksum: bool,
    /// How to segment.
    pub gso: Gso,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the bytes begin that the checksum covers.
    pub checksum_start: u16,
    /// Where the checksum stands, counted from there.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// Its length, in bytes.
    pub const LEN: usize = 10;
    const NEEDS_CHECKSUM: u8 = 1;
    const TCP4: u8 = 1;
    const TCP6: u8 = 4;
    const UDP_L4: u8 = 5;
    const ECN: u8 = 0x80;

    /// Reads it; `None` if it asks for what was not agreed with the kernel (UFO).
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        // The kernel writes its own byte order unless told otherwise.
        let native = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match (bytes[1] & !Self::ECN, bytes[1] & Self::ECN != 0) {
            (0, false) => Gso::None,
            (Self::TCP4, ecn) => Gso::Tcp4 { ecn },
            (Self::TCP6, ecn) => Gso::Tcp6 { ecn },
            (Self::UDP_L4, false) => Gso::Udp,
            _ => return None,
        };
        Some(Self {
            needs_checksum: bytes[0] & Self::NEEDS_CHECKSUM != 0,
            gso,
            gso_size: native(4),
            checksum_start: native(6),
            checksum_offset: native(8),
        })
    }

    /// Writes it, for a packet whose headers are `headers_len` bytes long.
    pub fn to_bytes(self, headers_len: u16) -> [u8; Self::LEN] {
        let mark = |ecn: bool| if ecn { Self::ECN } else { 0 };
        let gso = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 { ecn } => Self::TCP4 | mark(ecn),
            Gso::Tcp6 { ecn } => Self::TCP6 | mark(ecn),
            Gso::Udp => Self::UDP_L4,
        };
        let mut bytes = [0; Self::LEN];
        bytes[0] = if self.needs_checksum { Self::NEEDS_CHECKSUM } else { 0 };
        bytes[1] = gso;
        bytes[2..4].copy_from_slice(&headers_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }

    /// Says how the packet's own transport checksum stands. A partial checksum that belongs to something deeper (a
    /// tunnel's inner packet) is completed on the spot; `None` if it lies outside the packet or in its IPv4 header.
    pub fn finish_checksum(&self, packet: &mut [u8], header: &Header) -> Option<Checksum> {
        if !self.needs_checksum {
            return Some(Checksum::Complete);
        }
        let (start, offset) = (usize::from(self.checksum_start), usize::from(self.checksum_offset));
        if let Some(own) = checksum_place(header.kind)
            && (start, offset) == (header.header_len, own)
        {
            return Some(Checksum::Partial);
        }
        if self.gso != Gso::None || start < header.header_len {
            return None;
        }
        let covered = packet.get_mut(start..header.total_len)?;
        if offset + 2 > covered.len() {
            return None;
        }
        let sum = sum(covered);
        // 0 would mean none to an inner UDP header, and 0xffff is the same number to all others.
        put_word(covered, offset, if sum == 0xffff { 0xffff } else { !sum });
        Some(Checksum::Complete)
    }
}

/// Says why a super-packet cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The device's header and the packet disagree about what it is, or it is a fragment, a SYN or a RST.
    #[error("the packet is not of the kind that its device header wants segmented")]
    Kind,
    /// The segment size is 0.
    #[error("the segment size is 0")]
    Size,
    /// The packet is shorter than its headers.
    #[error("the packet is shorter than its headers")]
    Truncated,
}

/// Splits a packet in place into segments with complete checksums. What is not to be segmented, or fits into one
/// segment, comes out as it is, with its checksum completed. Destructive: each segment overwrites the end of the
/// one before it, which is why they are lent one at a time. There are at most 65,535 of them.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a mut [u8],
    header: Header,
    headers: [u8; LONGEST_HEADERS],
    headers_len: usize,
    size: usize,
    next: usize,
    count: usize,
    /// The sum of the pseudo-header without its length, and of the transport header with fields that differ at 0.
    base: u32,
}

impl<'a> Segments<'a> {
    /// Begins to split. `header` is what [`Header::parse`] said of this packet, `checksum` what
    /// [`VnetHeader::finish_checksum`] said; a packet that was rewritten in between needs a header parsed anew.
    ///
    /// # Errors
    /// [`SplitError`] if packet and device header contradict each other.
    pub fn new(
        packet: &'a mut [u8],
        header: &Header,
        gso: Gso,
        gso_size: u16,
        checksum: Checksum,
    ) -> Result<Self, SplitError> {
        let packet = packet.get_mut(..header.total_len).ok_or(SplitError::Truncated)?;
        let headers_len = header.headers_len(packet);
        let payload = packet.len().checked_sub(headers_len).ok_or(SplitError::Truncated)?;
        let wanted = match (gso, header.kind) {
            (Gso::None, _) => false,
            (Gso::Tcp4 { .. }, Kind::Tcp(flags)) if flags & (SYN | RST) == 0 => true,
            (Gso::Udp, Kind::Udp) => true,
            (Gso::Tcp4 { .. } | Gso::Tcp6 { .. } | Gso::Udp, _) => return Err(SplitError::Kind),
        };
        if wanted && header.first_fragment {
            return Err(SplitError::Kind);
        }
        if wanted && gso_size == 0 {
            return Err(SplitError::Size);
        }
        let size = if wanted { usize::from(gso_size) } else { payload };
        let mut split = Self {
            packet,
            header: *header,
            headers: [0; LONGEST_HEADERS],
            headers_len,
            size,
            next: 0,
            count: if wanted { payload.div_ceil(size).max(1) } else { 1 },
            base: 0,
        };
        if split.count > 1 {
            split.keep_headers();
        } else if checksum == Checksum::Partial {
            crate::packet::complete(split.packet, header);
        }
        Ok(split)
    }

    /// Returns how many segments are still to come.
    pub fn remaining(&self) -> usize {
        self.count - self.next
    }

    /// Lends the next segment, a whole packet.
    pub fn next_segment(&mut self) -> Option<&mut [u8]> {
        if self.next == self.count {
            return None;
        }
        let index = self.next;
        self.next += 1;
        if self.count == 1 {
            return Some(self.packet);
        }
        let start = index * self.size;
        let end = (start + self.headers_len + self.size).min(self.packet.len());
        let segment = &mut self.packet[start..end];
        let headers = stamp(&self.headers, &self.header, self.headers_len, segment.len(), index, self.count, self.size);
        segment[..self.headers_len].copy_from_slice(&headers[..self.headers_len]);
        finish(segment, &self.header, self.base);
        Some(segment)
    }

    fn keep_headers(&mut self) {
        self.headers[..self.headers_len].copy_from_slice(&self.packet[..self.headers_len]);
        put_word(&mut self.headers, 10, 0);
        if let Some(at) = checksum_place(self.header.kind) {
            put_word(&mut self.headers, self.header.header_len + at, 0);
        }
        self.base = pseudo(&self.header, 0);
    }
}

/// Makes the headers of one segment, with checksums 0.
fn stamp(
    original: &[u8; LONGEST_HEADERS],
    header: &Header,
    headers_len: usize,
    length: usize,
    index: usize,
    count: usize,
    size: usize,
) -> [u8; LONGEST_HEADERS] {
    let mut headers = *original;
    put_word(&mut headers, 2, length as u16);
    if !header.dont_fragment {
        put_word(&mut headers, 4, header.identification.wrapping_add(index as u16));
    }
    let transport = &mut headers[header.header_len..headers_len];
    if header.kind == Kind::Udp {
        put_word(transport, 4, (length - header.header_len) as u16);
        return headers;
    }
    let sequence = long(transport, 4).wrapping_add((index * size) as u32);
    transport[4..8].copy_from_slice(&sequence.to_be_bytes());
    if index > 0 {
        transport[13] &= !CWR;
    }
    if index + 1 < count {
        transport[13] &= !(FIN | PSH);
    }
    headers
}

/// Computes both checksums of a segment, whose fields are 0. `base` is the pseudo-header's sum without the length.
fn finish(segment: &mut [u8], header: &Header, base: u32) {
    let ip = sum(&segment[..header.header_len]);
    put_word(segment, 10, !ip);
    let Some(at) = checksum_place(header.kind) else { return };
    let transport = &mut segment[header.header_len..];
    let total = fold(base + transport.len() as u32 + u32::from(sum(transport)));
    put_word(transport, at, nonzero_if_udp(header.kind, !total));
}

/// Consecutive packets of one flow that may leave as one super-packet: the common headers, and the rules by which
/// another packet continues them. The payloads stay where they are: the caller keeps them, in order, and writes
/// device header, [`SegmentRun::finish`]'s headers and the payloads in one go.
///
/// The inner checksums are not looked at: they came authenticated out of the tunnel, and the super-packet gets a
/// partial one. At most [`MOST_SEGMENTS`] packets and 65,535 bytes.
#[derive(Debug, Clone)]
pub struct SegmentRun {
    headers: [u8; LONGEST_HEADERS],
    headers_len: usize,
    header: Header,
    size: usize,
    payload: usize,
    segments: usize,
    closed: bool,
    next_identification: u16,
    last_flags: u8,
}

impl SegmentRun {
    /// Begins a run with a packet; `None` if nothing can ever continue it, so that it goes out as it is: a fragment,
    /// a packet with IP options, no payload, SYN, RST or URG, a UDP datagram without a checksum, another protocol.
    pub fn start(packet: &[u8], header: &Header) -> Option<Self> {
        let headers_len = header.headers_len(packet);
        let packet = packet.get(..header.total_len)?;
        let payload = packet.len().checked_sub(headers_len).filter(|&payload| payload > 0)?;
        if header.header_len != IP_HEADER || header.first_fragment {
            return None;
        }
        let transport = &packet[IP_HEADER..];
        let flags = match header.kind {
            Kind::Tcp(_) => transport[13],
            Kind::Udp if usize::from(word(transport, 4)) == transport.len() && word(transport, 6) != 0 => 0,
            Kind::Udp
            | Kind::EchoRequest
            | Kind::EchoReply
            | Kind::IcmpError(_)
            | Kind::IcmpOther
            | Kind::Other
            | Kind::LaterFragment => return None,
        };
        if matches!(header.kind, Kind::Tcp(_)) && flags & (SYN | RST | URG | ACK) != ACK {
            return None;
        }
        let mut headers = [0; LONGEST_HEADERS];
        headers[..headers_len].copy_from_slice(&packet[..headers_len]);
        Some(Self {
            headers,
            headers_len,
            header: *header,
            size: payload,
            payload,
            segments: 1,
            closed: flags & (FIN | PSH) != 0,
            next_identification: header.identification.wrapping_add(1),
            last_flags: flags,
        })
    }

    /// Takes a packet in if it continues the run; its payload is then `packet[headers_len..total_len]`.
    pub fn append(&mut self, packet: &[u8], header: &Header) -> bool {
        let Some(payload) = self.continued_by(packet, header) else { return false };
        self.payload += payload;
        self.segments += 1;
        self.next_identification = header.identification.wrapping_add(1);
        if matches!(header.kind, Kind::Tcp(_)) {
            self.last_flags = packet[IP_HEADER + 13];
        }
        self.closed = payload < self.size || self.last_flags & (FIN | PSH) != 0;
        true
    }

    /// Returns the length of each packet but the last, headers included.
    pub fn stride(&self) -> usize {
        self.headers_len + self.size
    }

    /// Returns the flags of TCP that any of its packets had.
    pub fn tcp_flags(&self) -> u8 {
        if matches!(self.header.kind, Kind::Tcp(_)) { self.headers[IP_HEADER + 13] | self.last_flags } else { 0 }
    }

    /// Returns how many packets are in it.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Says whether nothing can continue it any more.
    pub fn is_closed(&self) -> bool {
        self.closed || self.segments == MOST_SEGMENTS
    }

    /// Returns the device header and the headers of the super-packet, checksum partial; `None` for a run of one,
    /// which goes out as the packet that it came as.
    pub fn finish(&mut self) -> Option<(VnetHeader, &[u8])> {
        if self.segments < 2 {
            return None;
        }
        let length = self.headers_len + self.payload;
        put_word(&mut self.headers, 2, length as u16);
        put_word(&mut self.headers, 10, 0);
        let ip = sum(&self.headers[..IP_HEADER]);
        put_word(&mut self.headers, 10, !ip);

        let transport = &mut self.headers[IP_HEADER..self.headers_len];
        let gso = if self.header.kind == Kind::Udp {
            put_word(transport, 4, (length - IP_HEADER) as u16);
            Gso::Udp
        } else {
            transport[13] |= self.last_flags & (FIN | PSH);
            Gso::Tcp4 { ecn: transport[13] & CWR != 0 }
        };
        let at = checksum_place(self.header.kind).unwrap_or(0);
        put_word(transport, at, fold(pseudo(&self.header, length - IP_HEADER)));
        let vnet = VnetHeader {
            needs_checksum: true,
            gso,
            gso_size: self.size as u16,
            checksum_start: IP_HEADER as u16,
            checksum_offset: at as u16,
        };
        Some((vnet, &self.headers[..self.headers_len]))
    }

    /// Finishes the run with the first packet's headers as they are after it was rewritten for all; `None` for a run of
    /// one, and if it is not the packet that it was.
    pub fn finish_as(&mut self, first: &[u8]) -> Option<(VnetHeader, &[u8])> {
        let header = Header::parse(first).ok().filter(|header| header.kind == self.header.kind)?;
        let headers = first.get(..self.headers_len)?;
        self.headers[..self.headers_len].copy_from_slice(headers);
        self.header = header;
        self.finish()
    }

    /// Says whether a packet continues the run, and with how much payload.
    fn continued_by(&self, packet: &[u8], header: &Header) -> Option<usize> {
        let packet = packet.get(..header.total_len)?;
        if self.is_closed() || header.tuple != self.header.tuple || header.headers_len(packet) != self.headers_len {
            return None;
        }
        let payload = packet.len() - self.headers_len;
        let fits = (1..=self.size).contains(&payload) && self.headers_len + self.payload + payload <= LONGEST_PACKET;
        // Version, header length and type of service with its ECN bits; TTL and protocol.
        let alike = packet[..2] == self.headers[..2] && packet[8..10] == self.headers[8..10];
        // Fragment flags and offset; an identification counts only where fragmentation can happen (RFC 6864).
        let unfragmented = word(packet, 6) == word(&self.headers, 6) && !header.first_fragment;
        let in_order = header.dont_fragment || header.identification == self.next_identification;
        if !fits || !alike || !unfragmented || !in_order {
            return None;
        }

        let (next, first) = (&packet[IP_HEADER..self.headers_len], &self.headers[IP_HEADER..self.headers_len]);
        let continues = match header.kind {
            Kind::Udp => usize::from(word(next, 4)) == packet.len() - IP_HEADER && word(next, 6) != 0,
            Kind::Tcp(_) => {
                // CWR belongs to the first segment alone, FIN and PSH to the last; all other flags are common.
                let common = |flags: u8| flags & !(CWR | FIN | PSH);
                long(next, 4) == long(first, 4).wrapping_add(self.payload as u32)
                    && next[8..13] == first[8..13]
                    && next[13] & CWR == 0
                    && common(next[13]) == common(first[13])
                    && next[14..16] == first[14..16]
                    && next[18..] == first[18..]
            }
            Kind::EchoRequest
            | Kind::EchoReply
            | Kind::IcmpError(_)
            | Kind::IcmpOther
            | Kind::Other
            | Kind::LaterFragment => false,
        };
        continues.then_some(payload)
    }
}

fn checksum_place(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Tcp(_) => Some(16),
        Kind::Udp => Some(6),
        Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError(_)
        | Kind::IcmpOther
        | Kind::Other
        | Kind::LaterFragment => None,
    }
}

/// Reads four bytes, which the caller knows to be there.
fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) << 16 | u32::from(word(bytes, at + 2))
}

#[cfg(test)]
mod tests;
