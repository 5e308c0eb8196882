//! What a lane is told of a packet that it gave to its tunnels, or of a datagram.

use mesh_proto::base::id::NodeId;
use mesh_proto::dataplane::verdict::Drop;

/// The way to a peer, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TunnelChoice {
    /// By the tunnel of that number.
    Tunnel(u32),
    /// This lane has no session; lane 0 is to send.
    Elsewhere,
    /// There is no preshared key yet; packets wait for it.
    Keyless(NodeId),
    /// There is none.
    None,
}

/// What became of a packet that was to be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// It is in the outbox, or waits for a handshake.
    Done,
    /// This lane has no session; lane 0 is to send it.
    Elsewhere,
    /// It is lost.
    Dropped(Drop),
}

/// Whether a packet makes a peer count as active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// It does.
    Payload,
    /// It does not: answers and probes of our own, which would keep an idle mesh awake.
    Own,
}

/// What was in a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decrypted<'a> {
    /// A packet from a peer, by the tunnel of that number.
    Packet(NodeId, u32, &'a mut [u8]),
    /// Something that was dealt with.
    Handled,
    /// Something that was not.
    Dropped(Drop),
}
