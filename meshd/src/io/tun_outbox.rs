//! Packets waiting to be written to the TUN device: one arena, no allocation per packet.
//!
//! Packets that continue each other leave as one super-packet. They lie back to back, each with its headers:
//!
//! ```text
//!   |H  p0|H  p1|H  p2|      in the arena; the first H is the super-packet's
//!   [V][H  p0][p1][p2]       parts of one write, V the device's header
//! ```

use std::io::IoSlice;

use mesh_proto::packet::gso::{Gso, MOST_SEGMENTS, Segments, VnetHeader};
use mesh_proto::packet::{Checksum, Header};

use crate::io::offloads::{Gathers, MAX_PACKET};

/// Most parts of one write: the device's header, and one per segment.
const MOST_PARTS: usize = MOST_SEGMENTS + 1;

/// Packets waiting for the TUN device.
#[derive(Debug)]
pub struct Packets {
    arena: Box<[u8]>,
    used: usize,
    packets: Vec<Waiting>,
    gathers: Gathers,
    /// Where a super-packet is put together that the device did not take.
    whole: Box<[u8]>,
}

/// A packet, or a super-packet.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    start: usize,
    /// Bytes in the arena, all headers included.
    len: usize,
    vnet: VnetHeader,
    /// Bytes of the headers, which are left out but for the first.
    headers: usize,
    /// Bytes of each packet but the last.
    stride: usize,
}

impl Waiting {
    fn count(&self) -> usize {
        self.len.div_ceil(self.stride.max(1)).max(1)
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
        Self {
            arena: vec![0; bytes].into(),
            used: 0,
            packets: Vec::with_capacity(512),
            gathers: Gathers::ALL,
            whole: vec![0; MAX_PACKET].into(),
        }
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

    /// Says whether there is nothing to drain: neither packets that wait nor bytes that were given up.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Returns the free bytes, to write a packet at their start.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// Takes the first `len` bytes of the free ones as a packet.
    pub fn commit(&mut self, len: usize, vnet: VnetHeader) {
        self.take(Waiting { start: self.used, len, vnet, headers: 0, stride: len });
    }

    /// Takes the first `len` bytes of the free ones as one super-packet: packets of `stride` bytes each, the last
    /// perhaps shorter, the first of which gets `headers` in place of its own.
    pub fn commit_run(&mut self, len: usize, stride: usize, vnet: VnetHeader, headers: &[u8]) {
        self.space()[..headers.len()].copy_from_slice(headers);
        self.take(Waiting { start: self.used, len, vnet, headers: headers.len(), stride });
    }

    /// Gives up the first `len` bytes of the free ones: what lies there is not to be written.
    pub fn skip(&mut self, len: usize) {
        self.used += len.min(self.room());
    }

    /// Appends a packet. Says whether there was room.
    pub fn push(&mut self, packet: &[u8], vnet: VnetHeader) -> bool {
        let Some(space) = self.space().get_mut(..packet.len()) else { return false };
        space.copy_from_slice(packet);
        self.commit(packet.len(), vnet);
        true
    }

    /// Offers everything to the device, in order, and forgets it. A kind of super-packet that it does not know what
    /// to do with goes singly from then on.
    pub fn drain(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> Taken) -> Drained {
        let mut drained = Drained::default();
        for i in 0..self.packets.len() {
            let waiting = self.packets[i];
            match self.offer(waiting, &mut write) {
                Taken::Invalid if waiting.vnet.gso != Gso::None => {
                    drained.fallbacks += 1;
                    if waiting.count() > 1 {
                        self.refuse(waiting.vnet.gso);
                    }
                    self.offer_singly(waiting, &mut write, &mut drained);
                }
                taken @ (Taken::Yes | Taken::No | Taken::Invalid) => {
                    let left_out = waiting.headers * (waiting.count() - 1);
                    drained.note(taken, waiting.count(), waiting.len - left_out);
                }
            }
        }
        self.used = 0;
        self.packets.clear();
        drained
    }

    fn take(&mut self, waiting: Waiting) {
        let len = waiting.len.min(self.room());
        self.packets.push(Waiting { len, ..waiting });
        self.used += len;
    }

    fn offer(&self, waiting: Waiting, write: &mut impl FnMut(&[IoSlice<'_>]) -> Taken) -> Taken {
        let device = waiting.vnet.to_bytes(waiting.headers as u16);
        let mut parts = [IoSlice::new(&[]); MOST_PARTS];
        parts[0] = IoSlice::new(&device);
        let mut filled = 1;
        for (part, segment) in parts[1..].iter_mut().zip(self.segments(waiting)) {
            *part = IoSlice::new(segment);
            filled += 1;
        }
        write(&parts[..filled])
    }

    /// Takes note that the device knows nothing of a kind.
    fn refuse(&mut self, gso: Gso) {
        let kind = if gso == Gso::Udp { "UDP" } else { "TCP" };
        tracing::warn!(kind, "the kernel refuses super-packets of this kind: writing them packet by packet");
        if let Some(gathers) = self.gathers.kind(gso) {
            *gathers = false;
        }
    }

    /// Puts a super-packet together, splits it, and offers its packets one by one.
    fn offer_singly(
        &mut self,
        waiting: Waiting,
        write: &mut impl FnMut(&[IoSlice<'_>]) -> Taken,
        drained: &mut Drained,
    ) {
        let mut whole = std::mem::take(&mut self.whole);
        let mut len = 0;
        for segment in self.segments(waiting) {
            let Some(place) = whole.get_mut(len..len + segment.len()) else { break };
            place.copy_from_slice(segment);
            len += segment.len();
        }
        let VnetHeader { gso, gso_size, needs_checksum, .. } = waiting.vnet;
        let checksum = if needs_checksum { Checksum::Partial } else { Checksum::Complete };
        let packet = &mut whole[..len];
        let header = Header::parse(packet).ok();
        match header.and_then(|header| Segments::new(packet, &header, gso, gso_size, checksum).ok()) {
            Some(mut segments) => {
                let device = VnetHeader::default().to_bytes(0);
                while let Some(segment) = segments.next_segment() {
                    let taken = write(&[IoSlice::new(&device), IoSlice::new(segment)]);
                    drained.note(taken, 1, segment.len());
                }
            }
            None => drained.lost += waiting.count() as u64,
        }
        self.whole = whole;
    }

    /// Returns the bytes of a super-packet, in order: the first packet whole, of the others the payload.
    fn segments(&self, waiting: Waiting) -> impl Iterator<Item = &[u8]> {
        let all = &self.arena[waiting.start..waiting.start + waiting.len];
        let packets = all.chunks(waiting.stride.max(1)).enumerate();
        packets.map(move |(i, packet)| if i == 0 { packet } else { packet.get(waiting.headers..).unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::packet::Kind;
    use mesh_proto::packet::gso::SegmentRun;

    use super::*;

    /// Says whether the IPv4 header's checksum is right, and that of TCP or UDP.
    fn has_right_sums(packet: &[u8]) -> bool {
        let header = Header::parse(packet).expect("a whole packet");
        let words = packet[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let mut completed = packet.to_vec();
        mesh_proto::packet::complete(&mut completed, &header);
        (sum & 0xffff) + (sum >> 16) == 0xffff && completed == packet
    }

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

    /// Commits packets that continue each other, as the lanes do.
    fn commit_run(packets: &mut Packets, run: &[Vec<u8>]) {
        let header = |packet: &Vec<u8>| Header::parse(packet).expect("made for the test");
        let mut joined = SegmentRun::start(&run[0], &header(&run[0])).expect("it can go on");
        assert!(run[1..].iter().all(|packet| joined.append(packet, &header(packet))));
        let bytes = run.concat();
        packets.space()[..bytes.len()].copy_from_slice(&bytes);
        let stride = joined.stride();
        match joined.finish() {
            Some((vnet, headers)) => packets.commit_run(bytes.len(), stride, vnet, headers),
            None => packets.commit(bytes.len(), VnetHeader::default()),
        }
    }

    /// Three packets that go together, the last of them shorter, and one alone.
    fn stream() -> Packets {
        let mut packets = Packets::new(10_000);
        commit_run(&mut packets, &[tcp(1, 0, 100), tcp(1, 100, 100), tcp(1, 200, 50)]);
        packets.skip(33);
        assert!(packets.push(&tcp(2, 0, 100), VnetHeader::default()));
        packets
    }

    #[test]
    fn packets_that_continue_each_other_leave_together() {
        let mut packets = stream();
        let expected = Drained { packets: 4, bytes: 430, super_packets: 1, super_segments: 3, ..Drained::default() };
        assert_eq!(drained(&mut packets, |_, _| Taken::Yes), (vec![290, 140], expected));
        assert!(packets.is_empty() && packets.room() == 10_000);
    }

    #[test]
    fn a_super_packet_is_the_first_packet_and_the_payloads_of_the_others() {
        let mut whole = Vec::new();
        stream().drain(|parts| {
            whole.push(parts[1..].iter().flat_map(|part| part.iter().copied()).collect::<Vec<_>>());
            Taken::Yes
        });
        assert_eq!(whole[0][40..], [[0; 100].as_slice(), &[100; 100], &[200; 50]].concat());
        assert_eq!(whole[1], tcp(2, 0, 100));
    }

    #[test]
    fn a_kind_that_the_device_refuses_goes_singly_and_right_and_the_other_does_not() {
        for (refused, gathers, lengths) in [
            (Gso::Udp, Gathers { tcp: true, udp: false }, vec![240, 128, 128]),
            (Gso::Tcp4 { ecn: false }, Gathers { tcp: false, udp: true }, vec![140, 140, 228]),
        ] {
            let mut packets = Packets::new(10_000);
            commit_run(&mut packets, &[tcp(1, 0, 100), tcp(1, 100, 100)]);
            commit_run(&mut packets, &[udp(100), udp(100)]);
            let (mut written, mut right) = (Vec::new(), true);
            let drained = packets.drain(|parts| {
                let vnet = parts[0].first_chunk().and_then(VnetHeader::parse).expect("a device header stands first");
                if vnet.gso == refused {
                    return Taken::Invalid;
                }
                let packet: Vec<u8> = parts[1..].iter().flat_map(|part| part.iter().copied()).collect();
                right &= vnet.gso != Gso::None || has_right_sums(&packet);
                written.push(packet.len());
                Taken::Yes
            });
            assert_eq!((written, right), (lengths, true));
            assert_eq!((drained.packets, drained.super_packets, drained.fallbacks, drained.lost), (4, 1, 1, 0));
            assert_eq!(packets.gathers(), gathers);
            assert!(!gathers.takes(if refused == Gso::Udp { Kind::Udp } else { Kind::Tcp(0) }));
        }
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
    fn what_is_given_up_leaves_its_room_to_others_once_it_is_drained() {
        let mut packets = Packets::new(10_000);
        packets.skip(4_000);
        assert!(!packets.is_empty() && packets.room() == 6_000);
        assert_eq!(drained(&mut packets, |_, _| Taken::Yes), (vec![], Drained::default()));
        assert!(packets.is_empty() && packets.room() == 10_000);
    }

    #[test]
    fn what_the_device_refuses_is_counted() {
        let (written, drained) = drained(&mut stream(), |_, _| Taken::No);
        assert_eq!((written, drained), (vec![], Drained { lost: 4, ..Drained::default() }));
    }
}
