//! The keys of a node's lanes: lane 0 has the node's own key, the others have keys derived from it.
//!
//! Lanes need keys, not only ports, of their own: mac1 and the replay guard of handshakes belong to a key,
//! so with one key a captured initiation of one lane could be replayed to another.

use std::fmt;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use mesh_proto::id::TunnelKey;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroize;

/// The most lanes that a node can have: one per core, and no gain was measured beyond.
pub const MAX_LANES: usize = 16;

/// The private keys of a node's lanes. They are wiped when dropped and never printed.
#[derive(Clone)]
pub struct LaneKeys(Vec<StaticSecret>);

impl LaneKeys {
    /// Derives the keys of `lanes` lanes (at least 1, at most `MAX_LANES`); lane 0 is the secret itself.
    pub fn derive(secret: &StaticSecret, lanes: usize) -> Self {
        let lanes = lanes.clamp(1, MAX_LANES);
        let derived = (1..lanes).map(|lane| derive_lane(secret, lane));
        Self(std::iter::once(secret.clone()).chain(derived).collect())
    }

    /// Returns how many lanes there are.
    pub fn lanes(&self) -> usize {
        self.0.len()
    }

    /// Returns the public key of a lane, or lane 0's where there is no such lane.
    pub fn public(&self, lane: usize) -> TunnelKey {
        TunnelKey(PublicKey::from(self.secret(lane)).to_bytes())
    }

    /// Returns the public keys of all lanes.
    pub fn publics(&self) -> Vec<TunnelKey> {
        (0..self.lanes()).map(|lane| self.public(lane)).collect()
    }

    /// Returns a number that only this node knows and that stays the same: the flow table's seed.
    pub(crate) fn flow_seed(&self) -> u64 {
        let mut bytes = expand(self.secret(0), b"meshd-flows", 0);
        let (seed, _) = bytes.split_first_chunk().expect("32 bytes begin with 8");
        let seed = u64::from_le_bytes(*seed);
        bytes.zeroize();
        seed
    }

    pub(crate) fn secret(&self, lane: usize) -> &StaticSecret {
        self.0.get(lane).unwrap_or(&self.0[0])
    }
}

impl fmt::Debug for LaneKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneKeys({} lanes, [redacted])", self.lanes())
    }
}

fn derive_lane(secret: &StaticSecret, lane: usize) -> StaticSecret {
    let mut bytes = expand(secret, b"meshd-lane", lane);
    let lane_secret = StaticSecret::from(bytes);
    bytes.zeroize();
    lane_secret
}

/// HKDF-SHA256 (RFC 5869) of the node's secret: the purpose is the salt, the number is the info.
fn expand(secret: &StaticSecret, purpose: &[u8], number: usize) -> [u8; 32] {
    let mut input = secret.to_bytes();
    let number = u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    let mut output = [0; 32];
    Salt::new(HKDF_SHA256, purpose)
        .extract(&input)
        .expand(&[&number], Length)
        .and_then(|key| key.fill(&mut output))
        .expect("32 bytes are a length that HKDF-SHA256 can fill");
    input.zeroize();
    output
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn lane_0_is_the_node_and_the_others_differ_and_return() {
        let secret = StaticSecret::from([7; 32]);

        let keys = LaneKeys::derive(&secret, 4);

        assert_eq!(keys.public(0).0, PublicKey::from(&secret).to_bytes());
        assert_eq!(keys.publics().iter().collect::<BTreeSet<_>>().len(), 4);
        assert_eq!(keys.publics()[..2], LaneKeys::derive(&secret, 2).publics()[..]);
        assert_ne!(keys.public(1), LaneKeys::derive(&StaticSecret::from([8; 32]), 4).public(1));
    }

    #[test]
    fn debug_shows_no_secret() {
        let keys = LaneKeys::derive(&StaticSecret::from([7; 32]), 2);
        assert_eq!(format!("{keys:?}"), "LaneKeys(2 lanes, [redacted])");
    }

    #[test]
    fn the_number_of_lanes_is_bounded() {
        let secret = StaticSecret::from([7; 32]);
        assert_eq!(LaneKeys::derive(&secret, 0).lanes(), 1);
        assert_eq!(LaneKeys::derive(&secret, 1000).lanes(), MAX_LANES);
    }
}
