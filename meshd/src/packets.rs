//! Packets waiting to be written to the TUN device: one arena, no allocation per packet.
//!
//! Packets that lie next to each other and continue each other leave as one super-packet: headers once, then
//! the payloads from where they lie.

use std::io::IoSlice;

use mesh_proto::packet::Header;
use mesh_proto::segment::{Gso, MOST_SEGMENTS, Run, VnetHeader};

/// Most parts of one write: virtio header, headers, payloads.
const MOST_PARTS: usize = MOST_SEGMENTS + 2;

/// Packets waiting for the TUN device.
#[derive(Debug)]
pub struct Packets {
    arena: Box<[u8]>,
    used: usize,
    packets: Vec<Waiting>,
    gathers: bool,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    start: usize,
    len: usize,
    vnet: VnetHeader,
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

impl Packets {
    /// Makes an outbox of that many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { arena: vec![0; bytes].into(), used: 0, packets: Vec::with_capacity(512), gathers: true }
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

    /// Offers everything to the device, in order, and forgets it. Returns how many packets it took and how many it
    /// did not. After the first super-packet that it does not understand all go singly.
    pub fn drain(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> Taken) -> (u64, u64) {
        let (mut taken, mut lost) = (0, 0);
        let mut next = 0;
        while next < self.packets.len() {
            let (count, result) = self.write_run(next, &mut write);
            let result = if result == Taken::Invalid && count > 1 {
                tracing::warn!("the kernel takes no super-packets: writing packet by packet");
                self.gathers = false;
                continue;
            } else {
                result
            };
            let sum = if result == Taken::Yes { &mut taken } else { &mut lost };
            *sum += count as u64;
            next += count;
        }
        self.used = 0;
        self.packets.clear();
        (taken, lost)
    }

    /// Offers the packet at `first` with those that continue it. Returns how many went together.
    fn write_run(&self, first: usize, write: &mut impl FnMut(&[IoSlice<'_>]) -> Taken) -> (usize, Taken) {
        let mut payloads = [IoSlice::new(&[]); MOST_PARTS];
        let run = self.gather(first, &mut payloads[2..]);
        if let Some(mut run) = run {
            let segments = run.segments();
            if let Some((vnet, headers)) = run.finish() {
                let device = vnet.to_bytes(headers.len() as u16);
                let mut parts = payloads;
                parts[0] = IoSlice::new(&device);
                parts[1] = IoSlice::new(headers);
                return (segments, write(&parts[..segments + 2]));
            }
        }
        let waiting = self.packets[first];
        let device = waiting.vnet.to_bytes(0);
        (1, write(&[IoSlice::new(&device), IoSlice::new(self.bytes(waiting))]))
    }

    /// Collects the payloads of the packet at `first` and of those that continue it.
    fn gather<'a>(&'a self, first: usize, payloads: &mut [IoSlice<'a>]) -> Option<Run> {
        let plain = |waiting: &Waiting| !waiting.vnet.needs_checksum && waiting.vnet.gso == Gso::None;
        let rest = self.packets.get(first..).filter(|_| self.gathers)?;
        // One alone is not worth reading.
        let (head, others) = rest.split_first().filter(|(head, others)| plain(head) && !others.is_empty())?;
        let bytes = self.bytes(*head);
        let header = Header::parse(bytes).ok()?;
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

    fn drained(packets: &mut Packets, mut answer: impl FnMut(usize) -> Taken) -> (Vec<usize>, (u64, u64)) {
        let mut written = Vec::new();
        let counts = packets.drain(|parts| {
            let length = parts[1..].iter().map(|part| part.len()).sum();
            let result = answer(length);
            if result == Taken::Yes {
                written.push(length);
            }
            result
        });
        (written, counts)
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
        assert_eq!(drained(&mut packets, |_| Taken::Yes), (vec![290, 140, 140], (5, 0)));
        assert!(packets.is_empty() && packets.room() == 10_000);
    }

    #[test]
    fn a_device_that_takes_no_super_packets_gets_every_packet_singly() {
        let mut packets = stream();
        let answer = |length| if length > 140 { Taken::Invalid } else { Taken::Yes };
        assert_eq!(drained(&mut packets, answer), (vec![140, 140, 90, 140, 140], (5, 0)));
    }

    #[test]
    fn what_the_device_refuses_is_counted() {
        assert_eq!(drained(&mut stream(), |_| Taken::No), (vec![], (0, 5)));
    }

    #[test]
    fn a_packet_that_needs_work_is_left_alone() {
        let mut packets = Packets::new(10_000);
        let vnet = VnetHeader { needs_checksum: true, ..VnetHeader::default() };
        packets.push(&tcp(1, 0, 100), VnetHeader::default());
        packets.push(&tcp(1, 100, 100), vnet);
        packets.push(&[1, 2, 3], VnetHeader::default());
        assert_eq!(drained(&mut packets, |_| Taken::Yes), (vec![140, 140, 3], (3, 0)));
    }
}
