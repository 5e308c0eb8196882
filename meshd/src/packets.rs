//! Packets waiting to be written to the TUN device: one arena, no allocation per packet.
//!
//! Packets that lie next to each other and continue each other leave as one super-packet: headers once, then
//! the payloads from where they lie.

use std::io::IoSlice;

use mesh_proto::packet::{Checksum, Header, Kind};
use mesh_proto::segment::{Gso, MOST_SEGMENTS, Run, Segments, VnetHeader};

/// Most parts of one write: virtio header, headers, payloads.
const MOST_PARTS: usize = MOST_SEGMENTS + 2;

/// Packets waiting for the TUN device.
#[derive(Debug)]
pub struct Packets {
    arena: Box<[u8]>,
    used: usize,
    packets: Vec<Waiting>,
    gathers: Gathers,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    start: usize,
    len: usize,
    vnet: VnetHeader,
}

/// Which packets may leave as super-packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gathers {
    /// TCP over IPv4.
    pub tcp: bool,
    /// UDP over IPv4.
    pub udp: bool,
}

impl Gathers {
    /// Every kind that there is.
    pub const ALL: Self = Self { tcp: true, udp: true };
    /// Each packet by itself.
    pub const NONE: Self = Self { tcp: false, udp: false };

    fn kind(&mut self, gso: Gso) -> Option<&mut bool> {
        match gso {
            Gso::Tcp4 { .. } => Some(&mut self.tcp),
            Gso::Udp => Some(&mut self.udp),
            Gso::Tcp6 { .. } | Gso::None => None,
        }
    }
}

/// What the device said about a packet, or a super-packet, that was offered to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It took it.
    Yes,
    /// It did not.
    No,
    /// It does not know what to do with a super-packet.
    Invalid,
}

/// What became of the packets that waited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Packets that the device took, those in super-packets one by one.
    pub packets: u64,
    /// Their bytes, a super-packet's headers once.
    pub bytes: u64,
    /// Super-packets that it took.
    pub super_packets: u64,
    /// Packets in these.
    pub super_segments: u64,
    /// Super-packets that it did not know what to do with; their packets were offered again, singly.
    pub fallbacks: u64,
    /// Packets that it did not take.
    pub lost: u64,
}

impl Drained {
    fn note(&mut self, taken: Taken, packets: usize, bytes: usize) {
        match taken {
            Taken::Yes => {
                self.packets += packets as u64;
                self.bytes += bytes as u64;
                if packets > 1 {
                    self.super_packets += 1;
                    self.super_segments += packets as u64;
                }
            }
            Taken::No | Taken::Invalid => self.lost += packets as u64,
        }
    }
}

impl Packets {
    /// Makes an outbox of that many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { arena: vec![0; bytes].into(), used: 0, packets: Vec::with_capacity(512), gathers: Gathers::ALL }
    }

    /// Says which packets may leave as super-packets.
    pub fn set_gathers(&mut self, gathers: Gathers) {
        self.gathers = gathers;
    }

    /// Says which packets leave as super-packets, as far as the device has not refused them.
    pub fn gathers(&self) -> Gathers {
        self.gathers
    }

    /// Returns how many bytes are free.
    pub fn room(&self) -> usize {
        self.arena.len() - self.used
    }

    /// Says whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Returns the free bytes, to write a packet at their start.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// Takes the first `len` bytes of the free ones as a packet.
    pub fn commit(&mut self, len: usize, vnet: VnetHeader) {
        let len = len.min(self.room());
        self.packets.push(Waiting { start: self.used, len, vnet });
        self.used += len;
    }

    /// Appends a packet. Says whether there was room.
    pub fn push(&mut self, packet: &[u8], vnet: VnetHeader) -> bool {
        let Some(space) = self.space().get_mut(..packet.len()) else {
            return false;
        };
        space.copy_from_slice(packet);
        self.commit(packet.len(), vnet);
        true
    }

    /// Offers everything to the device, in order, and forgets it. A kind of super-packet that it does not know what
    /// to do with goes singly from then on.
    pub fn drain(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> Taken) -> Drained {
        let mut drained = Drained::default();
        let mut next = 0;
        while next < self.packets.len() {
            next += self.write_next(next, &mut write, &mut drained);
        }
        self.used = 0;
        self.packets.clear();
        drained
    }

    /// Offers the packet at `first` with those that continue it. Returns how many are done with; none, if they are to
    /// be offered again.
    fn write_next(
        &mut self,
        first: usize,
        write: &mut impl FnMut(&[IoSlice<'_>]) -> Taken,
        drained: &mut Drained,
    ) -> usize {
        let mut parts = [IoSlice::new(&[]); MOST_PARTS];
        let mut run = self.gather(first, &mut parts[2..]);
        let segments = run.as_ref().map_or(1, Run::segments);
        if let Some((vnet, headers)) = run.as_mut().and_then(Run::finish) {
            let device = vnet.to_bytes(headers.len() as u16);
            parts[0] = IoSlice::new(&device);
            parts[1] = IoSlice::new(headers);
            let parts = &parts[..segments + 2];
            let taken = write(parts);
            if taken == Taken::Invalid {
                drained.fallbacks += 1;
                self.refuse(vnet.gso);
                return 0;
            }
            drained.note(taken, segments, parts[1..].iter().map(|part| part.len()).sum());
            return segments;
        }
        let waiting = self.packets[first];
        let device = waiting.vnet.to_bytes(0);
        let taken = write(&[IoSlice::new(&device), IoSlice::new(self.bytes(waiting))]);
        match taken {
            Taken::Invalid if waiting.vnet.gso != Gso::None => {
                drained.fallbacks += 1;
                self.write_split(waiting, write, drained);
            }
            Taken::Yes | Taken::No | Taken::Invalid => drained.note(taken, 1, waiting.len),
        }
        1
    }

    /// Takes note that the device knows nothing of a kind.
    fn refuse(&mut self, gso: Gso) {
        let kind = if gso == Gso::Udp { "UDP" } else { "TCP" };
        tracing::warn!(kind, "the kernel refuses super-packets of this kind: writing them packet by packet");
        if let Some(gathers) = self.gathers.kind(gso) {
            *gathers = false;
        }
    }

    /// Offers a super-packet that came from the device, on its way to another process of this host, in pieces.
    fn write_split(
        &mut self,
        waiting: Waiting,
        write: &mut impl FnMut(&[IoSlice<'_>]) -> Taken,
        drained: &mut Drained,
    ) {
        let Waiting { start, len, vnet } = waiting;
        let packet = &mut self.arena[start..start + len];
        let checksum = if vnet.needs_checksum { Checksum::Partial } else { Checksum::Complete };
        let split = Header::parse(packet).ok();
        let split = split.and_then(|header| Segments::new(packet, &header, vnet.gso, vnet.gso_size, checksum).ok());
        let Some(mut segments) = split else {
            drained.lost += 1;
            return;
        };
        let device = VnetHeader::default().to_bytes(0);
        while let Some(segment) = segments.next_segment() {
            let taken = write(&[IoSlice::new(&device), IoSlice::new(segment)]);
            drained.note(taken, 1, segment.len());
        }
    }

    /// Collects the payloads of the packet at `first` and of those that continue it.
    fn gather<'a>(&'a self, first: usize, payloads: &mut [IoSlice<'a>]) -> Option<Run> {
        let plain = |waiting: &Waiting| !waiting.vnet.needs_checksum && waiting.vnet.gso == Gso::None;
        let rest = self.packets.get(first..).filter(|_| self.gathers != Gathers::NONE)?;
        // One alone is not worth reading.
        let (head, others) = rest.split_first().filter(|(head, others)| plain(head) && !others.is_empty())?;
        let bytes = self.bytes(*head);
        let header = Header::parse(bytes).ok()?;
        if !(if header.kind == Kind::Udp { self.gathers.udp } else { self.gathers.tcp }) {
            return None;
        }
        let mut run = Run::start(bytes, &header)?;
        payloads[0] = IoSlice::new(&bytes[header.headers_len(bytes)..header.total_len]);
        for (waiting, payload) in others.iter().zip(&mut payloads[1..]) {
            let bytes = self.bytes(*waiting);
            let Some(header) = Header::parse(bytes).ok().filter(|_| plain(waiting)) else { break };
            if run.is_closed() || !run.append(bytes, &header) {
                break;
            }
            *payload = IoSlice::new(&bytes[header.headers_len(bytes)..header.total_len]);
        }
        Some(run)
    }

    fn bytes(&self, waiting: Waiting) -> &[u8] {
        &self.arena[waiting.start..waiting.start + waiting.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP packet of that many bytes of payload, ACK and nothing else.
    fn tcp(port: u16, sequence: u32, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; 40 + payload];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(40 + payload as u16).to_be_bytes());
        packet[6] = 0x40;
        packet[8..10].copy_from_slice(&[64, 6]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[24..28].copy_from_slice(&sequence.to_be_bytes());
        packet[32..34].copy_from_slice(&[0x50, 0x10]);
        packet[40..].fill(sequence as u8);
        packet
    }

    /// The same as one UDP datagram of a run.
    fn udp(payload: usize) -> Vec<u8> {
        let mut packet = tcp(1, 0, payload - 12);
        packet[9] = 17;
        packet[24..26].copy_from_slice(&(8 + payload as u16).to_be_bytes());
        packet[26..28].fill(1);
        packet
    }

    /// What the device took, by length, and what it was said to have taken.
    fn drained(packets: &mut Packets, mut answer: impl FnMut(&VnetHeader, usize) -> Taken) -> (Vec<usize>, Drained) {
        let mut written = Vec::new();
        let drained = packets.drain(|parts| {
            let vnet = parts[0].first_chunk().and_then(VnetHeader::parse).expect("a device header stands first");
            let length = parts[1..].iter().map(|part| part.len()).sum();
            let result = answer(&vnet, length);
            if result == Taken::Yes {
                written.push(length);
            }
            result
        });
        (written, drained)
    }

    fn stream() -> Packets {
        let mut packets = Packets::new(10_000);
        for (port, sequence, payload) in [(1, 0, 100), (1, 100, 100), (1, 200, 50), (2, 0, 100), (1, 250, 100)] {
            assert!(packets.push(&tcp(port, sequence, payload), VnetHeader::default()));
        }
        packets
    }

    #[test]
    fn packets_that_continue_each_other_leave_together() {
        let mut packets = stream();
        let expected = Drained { packets: 5, bytes: 570, super_packets: 1, super_segments: 3, ..Drained::default() };
        assert_eq!(drained(&mut packets, |_, _| Taken::Yes), (vec![290, 140, 140], expected));
        assert!(packets.is_empty() && packets.room() == 10_000);
    }

    #[test]
    fn a_kind_that_the_device_refuses_goes_singly_from_then_on_and_the_other_does_not() {
        let mut packets = Packets::new(10_000);
        for (refused, gathers, lengths) in [
            (Gso::Udp, Gathers { tcp: true, udp: false }, [vec![240], vec![128, 128]]),
            (Gso::Tcp4 { ecn: false }, Gathers { tcp: false, udp: true }, [vec![140, 140], vec![228]]),
        ] {
            packets.set_gathers(Gathers::ALL);
            for round in 0..2 {
                for packet in [tcp(1, 0, 100), tcp(1, 100, 100), udp(100), udp(100)] {
                    packets.push(&packet, VnetHeader::default());
                }
                let answer = |vnet: &VnetHeader, _| if vnet.gso == refused { Taken::Invalid } else { Taken::Yes };
                let (written, drained) = drained(&mut packets, answer);
                assert_eq!(written, lengths.concat());
                assert_eq!((drained.packets, drained.super_packets, drained.lost), (4, 1, 0));
                assert_eq!(drained.fallbacks, u64::from(round == 0), "offered once");
            }
            assert_eq!(packets.gathers(), gathers);
        }
    }

    #[test]
    fn a_device_that_takes_no_super_packets_is_offered_none() {
        let mut packets = stream();
        packets.set_gathers(Gathers::NONE);
        let expected = Drained { packets: 5, bytes: 650, ..Drained::default() };
        assert_eq!(drained(&mut packets, |_, _| Taken::Yes), (vec![140, 140, 90, 140, 140], expected));
    }

    #[test]
    fn a_super_packet_of_the_device_that_it_does_not_take_back_is_split() {
        let mut packets = Packets::new(10_000);
        let vnet = VnetHeader { gso: Gso::Tcp4 { ecn: false }, gso_size: 100, ..VnetHeader::default() };
        packets.push(&tcp(1, 0, 250), vnet);
        let answer = |vnet: &VnetHeader, _| if vnet.gso == Gso::None { Taken::Yes } else { Taken::Invalid };
        let expected = Drained { packets: 3, bytes: 370, fallbacks: 1, ..Drained::default() };
        assert_eq!(drained(&mut packets, answer), (vec![140, 140, 90], expected));
    }

    #[test]
    fn what_the_device_refuses_is_counted() {
        let (written, drained) = drained(&mut stream(), |_, _| Taken::No);
        assert_eq!((written, drained), (vec![], Drained { lost: 5, ..Drained::default() }));
    }

    #[test]
    fn a_packet_that_needs_work_is_left_alone() {
        let mut packets = Packets::new(10_000);
        let vnet = VnetHeader { needs_checksum: true, ..VnetHeader::default() };
        packets.push(&tcp(1, 0, 100), VnetHeader::default());
        packets.push(&tcp(1, 100, 100), vnet);
        packets.push(&[1, 2, 3], VnetHeader::default());
        let expected = Drained { packets: 3, bytes: 283, ..Drained::default() };
        assert_eq!(drained(&mut packets, |_, _| Taken::Yes), (vec![140, 140, 3], expected));
    }
}
