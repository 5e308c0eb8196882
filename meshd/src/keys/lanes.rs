//! The keys of a node's lanes: lane 0 has the node's own key, the others have keys derived from it.
//!
//! Lanes need keys, not only ports, of their own: mac1 and the replay guard of handshakes belong to a key,
//! so with one key a captured initiation of one lane could be replayed to another.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use mesh_proto::base::id::TunnelKey;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroize;

use crate::keys::handshake_clock::HandshakeClock;

/// The most lanes that a node can have: one per core, and no gain was measured beyond.
pub const MAX_LANES: usize = 16;

/// The most agreement keys of a node: the present one and the former.
pub(crate) const MAX_AGREEMENT: usize = 2;

/// The private keys of a node's lanes, while they change the former ones as well. They are wiped when dropped and
/// never printed.
#[derive(Clone)]
pub struct LaneKeys {
    current: Vec<StaticSecret>,
    /// Those before, by which peers still know this node; none outside a rotation.
    former: Vec<StaticSecret>,
    /// The key at which preshared keys are agreed on, and the one before.
    agreement: StaticSecret,
    former_agreement: Option<StaticSecret>,
    /// Whether to call by the former ones, for peers have not heard of the others yet.
    calls_by_former: bool,
    flow_seed: u64,
    clock: Arc<HandshakeClock>,
}

impl LaneKeys {
    /// Derives the keys of `lanes` lanes (at least 1, at most `MAX_LANES`); lane 0 is the secret itself.
    pub fn derive(secret: &StaticSecret, lanes: usize) -> Self {
        Self {
            current: derive_all(secret, lanes),
            former: Vec::new(),
            agreement: derive_agreement(secret),
            former_agreement: None,
            calls_by_former: false,
            flow_seed: flow_seed(secret),
            clock: Arc::default(),
        }
    }

    /// Notes the times that handshakes use in a clock that outlives these keys' copies.
    #[must_use]
    pub fn timed_by(self, clock: Arc<HandshakeClock>) -> Self {
        Self { clock, ..self }
    }

    /// Answers to the keys of a former secret as well; calls by them, too, until told that peers know the others.
    #[must_use]
    pub fn with_former(mut self, secret: Option<&StaticSecret>, calls_by_former: bool) -> Self {
        self.former = secret.map(|secret| derive_all(secret, self.lanes())).unwrap_or_default();
        self.former_agreement = secret.map(derive_agreement);
        self.calls_by_former = calls_by_former && !self.former.is_empty();
        self
    }

    /// Calls by the former keys, or no longer.
    #[must_use]
    pub fn calling_by_former(mut self, calls_by_former: bool) -> Self {
        self.calls_by_former = calls_by_former && !self.former.is_empty();
        self
    }

    /// Keeps the flow table's seed that belongs to an older secret: flows outlive the keys.
    #[must_use]
    pub fn with_flow_seed_of(mut self, secret: &StaticSecret) -> Self {
        self.flow_seed = flow_seed(secret);
        self
    }

    /// Returns how many lanes there are.
    pub fn lanes(&self) -> usize {
        self.current.len()
    }

    /// Returns the public key of a lane, or lane 0's where there is no such lane.
    pub fn public(&self, lane: usize) -> TunnelKey {
        public(self.secret(lane))
    }

    /// Returns the public keys of all lanes.
    pub fn publics(&self) -> Vec<TunnelKey> {
        self.current.iter().map(public).collect()
    }

    /// Returns the public keys that the lanes had before, while they are good; none outside a rotation.
    pub fn former_publics(&self) -> Vec<TunnelKey> {
        self.former.iter().map(public).collect()
    }

    /// Returns the public keys at which preshared keys are agreed on: the present one, and the former while it is good.
    pub fn agreement_publics(&self) -> Vec<TunnelKey> {
        std::iter::once(&self.agreement).chain(&self.former_agreement).map(public).collect()
    }

    /// Returns a number that only this node knows and that stays the same: the flow table's seed.
    pub(crate) fn flow_seed(&self) -> u64 {
        self.flow_seed
    }

    /// Returns what one lane needs.
    pub(crate) fn of(&self, lane: usize) -> LaneKey {
        LaneKey {
            current: self.secret(lane).clone(),
            former: self.former.get(lane).cloned(),
            calls_by_former: self.calls_by_former,
            agreement: Some(self.agreement.clone()).filter(|_| lane == 0),
            former_agreement: self.former_agreement.clone().filter(|_| lane == 0),
            clock: Arc::clone(&self.clock),
        }
    }

    fn secret(&self, lane: usize) -> &StaticSecret {
        self.current.get(lane).unwrap_or(&self.current[0])
    }
}

/// The private keys of one lane.
#[derive(Clone)]
pub(crate) struct LaneKey {
    pub(crate) current: StaticSecret,
    /// The one before, to which it answers as well.
    pub(crate) former: Option<StaticSecret>,
    /// Whether it calls by the former.
    pub(crate) calls_by_former: bool,
    /// The key at which preshared keys are agreed on, and the one before; lane 0 alone has them.
    pub(crate) agreement: Option<StaticSecret>,
    pub(crate) former_agreement: Option<StaticSecret>,
    /// The times that handshakes of the node have used.
    pub(crate) clock: Arc<HandshakeClock>,
}

impl fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaneKey([redacted])")
    }
}

impl fmt::Debug for LaneKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneKeys({} lanes, [redacted])", self.lanes())
    }
}

fn derive_all(secret: &StaticSecret, lanes: usize) -> Vec<StaticSecret> {
    let lanes = lanes.clamp(1, MAX_LANES);
    let derived = (1..lanes).map(|lane| derive_lane(secret, lane));
    std::iter::once(secret.clone()).chain(derived).collect()
}

fn public(secret: &StaticSecret) -> TunnelKey {
    TunnelKey(PublicKey::from(secret).to_bytes())
}

fn flow_seed(secret: &StaticSecret) -> u64 {
    let mut bytes = expand(secret, b"meshd-flows", 0);
    let (seed, _) = bytes.split_first_chunk().expect("32 bytes begin with 8");
    let seed = u64::from_le_bytes(*seed);
    bytes.zeroize();
    seed
}

fn derive_lane(secret: &StaticSecret, lane: usize) -> StaticSecret {
    let mut bytes = expand(secret, b"meshd-lane", lane);
    let lane_secret = StaticSecret::from(bytes);
    bytes.zeroize();
    lane_secret
}

fn derive_agreement(secret: &StaticSecret) -> StaticSecret {
    let mut bytes = expand(secret, b"meshd-agreement", 0);
    let secret = StaticSecret::from(bytes);
    bytes.zeroize();
    secret
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
    fn the_key_of_agreements_is_no_lanes_and_changes_with_the_secret() {
        let (old, new) = (StaticSecret::from([7; 32]), StaticSecret::from([8; 32]));
        let keys = LaneKeys::derive(&new, MAX_LANES).with_former(Some(&old), true);

        let all = [keys.publics(), keys.former_publics(), keys.agreement_publics()].concat();

        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 2 * MAX_LANES + 2);
        assert_eq!(keys.agreement_publics()[1..], LaneKeys::derive(&old, 1).agreement_publics());
        assert!(keys.of(0).agreement.is_some() && keys.of(1).agreement.is_none(), "lane 0 alone answers to it");
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
