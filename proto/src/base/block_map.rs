//! 1:1 prefix translation: a pod's real address and its flat image share their host bits.
//!
//! Stateless and invertible, the idea of RFC 6296 for IPv4: `flat = flat prefix | (real & host mask)`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::addr::{Flat, Real};

/// A pod block and its flat image: two prefixes of the same length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockMap {
    /// The prefix as the node's interfaces carry it.
    pub real: Ipv4Net,
    /// Its image in the mesh range; the same length.
    pub flat: Ipv4Net,
}

impl BlockMap {
    /// Returns the flat image of a real address, if the block contains it.
    pub fn to_flat(&self, real: Real) -> Option<Flat> {
        translate(self.real, self.flat, real.0).map(Flat)
    }

    /// Returns the real address behind a flat one, if the block's image contains it.
    pub fn to_real(&self, flat: Flat) -> Option<Real> {
        translate(self.flat, self.real, flat.0).map(Real)
    }
}

fn translate(from: Ipv4Net, to: Ipv4Net, address: Ipv4Addr) -> Option<Ipv4Addr> {
    let host_bits = u32::from(address) & u32::from(from.hostmask());
    from.contains(&address).then(|| Ipv4Addr::from(u32::from(to.network()) | host_bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn there_and_back_is_the_same_address(real: u32, flat: u32, length in 1u8..=32, host: u32) {
            let block = BlockMap {
                real: Ipv4Net::new_assert(real.into(), length).trunc(),
                flat: Ipv4Net::new_assert(flat.into(), length).trunc(),
            };
            let inside = Real(Ipv4Addr::from(u32::from(block.real.network()) | (host & u32::from(block.real.hostmask()))));
            let image = block.to_flat(inside);
            prop_assert!(image.is_some_and(|i| block.flat.contains(&i.0)));
            prop_assert_eq!(image.and_then(|i| block.to_real(i)), Some(inside));
        }

        #[test]
        fn an_address_outside_has_no_image(real: u32, length in 1u8..=32, other: u32) {
            let net = Ipv4Net::new_assert(real.into(), length).trunc();
            let block = BlockMap { real: net, flat: net };
            let other = Ipv4Addr::from(other);
            prop_assert_eq!(block.to_flat(Real(other)).is_some(), net.contains(&other));
        }
    }
}
