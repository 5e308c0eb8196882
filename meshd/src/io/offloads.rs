//! What may be left to the kernel, what it takes, and what of that is in use.

use mesh_proto::packet::Kind;
use mesh_proto::packet::gso::Gso;

/// The largest packet that a queue gives or takes, in bytes.
pub const MAX_PACKET: usize = 65535;

/// `[offload]`: what may be left to the kernel. True ("auto") uses what there is, false ("off") uses none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// `tun`: super-packets and unfinished checksums on the interface.
    pub tun: bool,
    /// `udp`: runs of datagrams that the kernel divides (UDP_SEGMENT) and joins (UDP_GRO).
    pub udp: bool,
}

impl Default for Offload {
    fn default() -> Self {
        Self { tun: true, udp: true }
    }
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

    /// Says whether packets of a kind leave as super-packets.
    pub fn takes(&self, kind: Kind) -> bool {
        self.tcp && matches!(kind, Kind::Tcp(_)) || self.udp && kind == Kind::Udp
    }

    /// Returns the switch of a kind; none for one that is never gathered.
    pub(crate) fn kind(&mut self, gso: Gso) -> Option<&mut bool> {
        match gso {
            Gso::Tcp4 { .. } => Some(&mut self.tcp),
            Gso::Udp => Some(&mut self.udp),
            Gso::Tcp6 { .. } | Gso::None => None,
        }
    }
}

/// What the kernel does for a lane, as far as it was asked to and can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The interface takes super-packets of TCP.
    pub tun_tcp: bool,
    /// The interface takes super-packets of UDP.
    pub tun_udp: bool,
    /// The sockets divide what they send.
    pub udp_segment: bool,
    /// The sockets join what they receive.
    pub udp_gro: bool,
}

impl Offloads {
    /// Returns each by its name.
    pub fn each(self) -> [(&'static str, bool); 4] {
        let Self { tun_tcp, tun_udp, udp_segment, udp_gro } = self;
        [("tun_tcp", tun_tcp), ("tun_udp", tun_udp), ("udp_segment", udp_segment), ("udp_gro", udp_gro)]
    }
}
