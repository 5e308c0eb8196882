//! Addresses, real and flat: two types, because a pod's own address means nothing outside its node.
//!
//! A *real* address is what an interface carries: a pod's 10.8.0.10, which may exist in every cluster.
//! A *flat* address is its unique image in the mesh. Prefix translation (see `translate`) leads from one
//! to the other and back; nothing else does.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Ipv4Addr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

address!(
    /// An address as an interface behind one node carries it; unique only there.
    Real
);
address!(
    /// An address in the mesh range: a node's, a VIP's, or a pod's image; unique in the whole mesh.
    Flat
);

/// Says why a prefix cannot be the mesh range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The text is no IPv4 prefix, or has host bits.
    #[error("`{0}` is not an IPv4 prefix such as 241.0.0.0/8")]
    Syntax(String),
    /// The prefix is too short or too long to be divided into VIPs, nodes and blocks.
    #[error("the mesh range must be between /8 and /16, not {0}")]
    Length(Ipv4Net),
    /// The prefix contains loopback, link-local, multicast or unspecified addresses.
    #[error(
        "the mesh range {0} contains loopback, link-local, multicast or unspecified addresses; take another, such as 241.0.0.0/8"
    )]
    Forbidden(Ipv4Net),
}

/// The mesh range and its three parts: VIPs, node addresses, flat blocks.
///
/// For the default 241.0.0.0/8 these are 241.0.0.0/16, 241.1.0.0/16 and the rest. A range of another
/// length is divided alike: the first 1/256 for VIPs, the second for nodes, the rest for blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Net", into = "Ipv4Net")]
pub struct MeshRange(Ipv4Net);

impl MeshRange {
    /// Returns the whole range.
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    /// Returns the part from which VIPs are allocated; its `.0.53` is every node's own DNS address.
    pub fn vips(self) -> Ipv4Net {
        self.part(0)
    }

    /// Returns the part from which node addresses are allocated.
    pub fn nodes(self) -> Ipv4Net {
        self.part(1)
    }

    /// Returns a node's second address, as which networks behind it speak that are no pods of it: the same place in the
    /// other half of the part for nodes. Both ends compute it; the first half is given out before the second, so that it
    /// is another node's own only in a mesh of more nodes than that. Then it is that node's.
    pub fn second(self, node: Flat) -> Flat {
        let half = 1u32.checked_shl(31 - u32::from(self.nodes().prefix_len())).unwrap_or(0);
        Flat(Ipv4Addr::from(u32::from(node.0) ^ half))
    }

    /// Returns the first address after VIPs and nodes, where flat blocks begin.
    pub fn first_block_address(self) -> Ipv4Addr {
        self.part(2).network()
    }

    /// Returns the DNS address that every node answers on by itself.
    pub fn dns(self) -> Flat {
        Flat(Ipv4Addr::from(u32::from(self.vips().network()) | 53))
    }

    /// Says whether an address lies in the mesh range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    fn part(self, index: u32) -> Ipv4Net {
        let length = self.0.prefix_len() + 8;
        let start = u32::from(self.0.network()) + (index << (32 - length));
        Ipv4Net::new_assert(Ipv4Addr::from(start), length)
    }
}

impl Default for MeshRange {
    fn default() -> Self {
        Self(Ipv4Net::new_assert(Ipv4Addr::new(241, 0, 0, 0), 8))
    }
}

impl TryFrom<Ipv4Net> for MeshRange {
    type Error = RangeError;
    fn try_from(net: Ipv4Net) -> Result<Self, RangeError> {
        if net.addr() != net.network() {
            return Err(RangeError::Syntax(net.to_string()));
        }
        if !(8..=16).contains(&net.prefix_len()) {
            return Err(RangeError::Length(net));
        }
        if overlaps_forbidden(net) {
            return Err(RangeError::Forbidden(net));
        }
        Ok(Self(net))
    }
}

impl From<MeshRange> for Ipv4Net {
    fn from(range: MeshRange) -> Self {
        range.0
    }
}

impl FromStr for MeshRange {
    type Err = RangeError;
    fn from_str(s: &str) -> Result<Self, RangeError> {
        s.parse::<Ipv4Net>().map_err(|_| RangeError::Syntax(s.into()))?.try_into()
    }
}

impl fmt::Display for MeshRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Says whether two prefixes share an address.
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Prefixes that nobody may claim or translate to: unspecified, loopback, link-local (cloud metadata
/// included), multicast and broadcast (RFC 6890).
pub const FORBIDDEN: [Ipv4Net; 5] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
    Ipv4Net::new_assert(Ipv4Addr::new(255, 255, 255, 255), 32),
];

/// Says whether a prefix shares an address with one that nobody may claim.
pub fn overlaps_forbidden(net: Ipv4Net) -> bool {
    FORBIDDEN.iter().any(|&bad| overlap(net, bad))
}

/// Says whether an address is one that no packet may be delivered to or come from.
pub fn is_forbidden(address: Ipv4Addr) -> bool {
    FORBIDDEN.iter().any(|bad| bad.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_range_is_divided_as_designed() {
        let range = MeshRange::default();
        assert_eq!(range.vips().to_string(), "241.0.0.0/16");
        assert_eq!(range.nodes().to_string(), "241.1.0.0/16");
        assert_eq!(range.first_block_address().to_string(), "241.2.0.0");
        assert_eq!(range.dns().to_string(), "241.0.0.53");
    }

    #[test]
    fn a_range_that_cannot_serve_is_refused() {
        for bad in ["241.0.0.0", "241.0.0.1/8", "240.0.0.0/4", "10.0.0.0/17", "127.0.0.0/8", "x"] {
            assert!(bad.parse::<MeshRange>().is_err(), "{bad}");
        }
        assert_eq!("10.200.0.0/16".parse::<MeshRange>().map(|r| r.nodes().to_string()), Ok("10.200.1.0/24".into()));
    }
}
