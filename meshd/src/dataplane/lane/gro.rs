//! Packets that came out of a tunnel one after the other and continue each other: the engine judges and rewrites the
//! first for all, and the kernel gets them as one super-packet.

use mesh_proto::base::id::NodeId;
use mesh_proto::packet::Header;
use mesh_proto::packet::gso::SegmentRun;

use crate::io::offloads::Gathers;

/// Packets that lie back to back at the start of the free space for the TUN device, not yet judged. There are at
/// most `mesh_proto::packet::gso::MOST_SEGMENTS`, in at most 65,535 bytes of payload.
#[derive(Debug)]
pub(super) struct Train {
    pub(super) peer: NodeId,
    /// The tunnel that they came by.
    pub(super) tunnel: u32,
    /// Bytes of the first.
    pub(super) first: usize,
    /// Bytes of all.
    pub(super) len: usize,
    /// How many there are.
    pub(super) count: u32,
    /// The rules by which another continues them; none if nothing can.
    pub(super) run: Option<SegmentRun>,
}

impl Train {
    /// Begins with a packet; `gathers` says which super-packets the device takes.
    pub(super) fn begin(peer: NodeId, tunnel: u32, packet: &[u8], gathers: Gathers) -> Self {
        let header = Header::parse(packet).ok().filter(|header| gathers.takes(header.kind));
        let run = header.and_then(|header| SegmentRun::start(packet, &header));
        Self { peer, tunnel, first: packet.len(), len: packet.len(), count: 1, run }
    }

    /// Takes the packet that lies behind the last one, if it continues them.
    pub(super) fn take(&mut self, peer: NodeId, tunnel: u32, packet: &[u8]) -> bool {
        let same = self.peer == peer && self.tunnel == tunnel;
        let Some(run) = self.run.as_mut().filter(|run| same && !run.is_closed()) else { return false };
        let Ok(header) = Header::parse(packet) else { return false };
        // Bytes after the packet would stand between the payloads.
        if header.total_len != packet.len() || self.first != run.stride() || !run.append(packet, &header) {
            return false;
        }
        self.len += packet.len();
        self.count += 1;
        true
    }
}
