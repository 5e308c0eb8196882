//! Packets waiting to be written to the TUN device: one arena, no allocation per packet.

use crate::tun::Offload;

/// Packets waiting for the TUN device.
#[derive(Debug)]
pub struct Packets {
    arena: Box<[u8]>,
    used: usize,
    packets: Vec<(usize, usize, Offload)>,
}

impl Packets {
    /// Makes an outbox of that many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { arena: vec![0; bytes].into(), used: 0, packets: Vec::with_capacity(512) }
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
    pub fn commit(&mut self, len: usize, offload: Offload) {
        let len = len.min(self.room());
        self.packets.push((self.used, len, offload));
        self.used += len;
    }

    /// Appends a packet. Says whether there was room.
    pub fn push(&mut self, packet: &[u8]) -> bool {
        let Some(space) = self.space().get_mut(..packet.len()) else {
            return false;
        };
        space.copy_from_slice(packet);
        self.commit(packet.len(), Offload::default());
        true
    }

    /// Returns what waits, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Offload)> {
        self.packets.iter().map(|&(start, len, offload)| (&self.arena[start..start + len], offload))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.used = 0;
        self.packets.clear();
    }
}
