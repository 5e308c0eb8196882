//! What is computed: ML-KEM-768 (FIPS 203), and what follows from its secret by HKDF-SHA256.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use aws_lc_rs::kem::{DecapsulationKey, EncapsulationKey, ML_KEM_768};
use mesh_proto::base::id::{NodeId, TunnelKey};
use zeroize::Zeroize;

use crate::psk::preshared::PresharedKey;

/// Bytes of an encapsulation key, which is all of an offer.
pub(super) const OFFER: usize = 1184;
/// Bytes of a ciphertext.
const CIPHERTEXT: usize = 1088;
/// Bytes of a proof.
pub(super) const PROOF: usize = 32;
/// Bytes of an answer.
pub(super) const ANSWER: usize = CIPHERTEXT + PROOF;
const SALT: &[u8] = b"meshd preshared key 1";

/// Shows that somebody knows the secret of an exchange.
pub(super) type Proof = [u8; PROOF];

/// Who agrees, as one of the two sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KemKeypair {
    /// Our number, and the agreement key of ours that the tunnel uses.
    pub(crate) own: (NodeId, TunnelKey),
    /// The peer's.
    pub(crate) peer: (NodeId, TunnelKey),
}

impl KemKeypair {
    /// The same as the peer sees it.
    fn reversed(self) -> Self {
        Self { own: self.peer, peer: self.own }
    }
}

/// What a proposer keeps to itself, and what it sends.
pub(super) struct Offer {
    secret: DecapsulationKey,
    pub(super) bytes: Vec<u8>,
}

impl Offer {
    /// Makes a key pair for one exchange; `None` only without entropy.
    pub(super) fn make() -> Option<Self> {
        let secret = DecapsulationKey::generate(&ML_KEM_768).ok()?;
        let bytes = secret.encapsulation_key().ok()?.key_bytes().ok()?.as_ref().to_vec();
        (bytes.len() == OFFER).then_some(Self { secret, bytes })
    }

    /// Takes an answer to the offer of this number. Returns the key and the proof to confirm it by; `None` if the
    /// answer is not to this offer.
    pub(super) fn accept(&self, id: u64, pair: KemKeypair, answer: &[u8]) -> Option<(PresharedKey, Proof)> {
        let (ciphertext, proof) = answer.split_at_checked(CIPHERTEXT)?;
        let secret = self.secret.decapsulate(ciphertext.into()).ok()?;
        let derived = Derived::of(secret.as_ref(), id, pair, &self.bytes, ciphertext);
        verify_slices_are_equal(&derived.answers, proof).ok()?;
        Some((derived.key, derived.confirms))
    }
}

/// Answers an offer. Returns the answer, the key, and the proof that will confirm it; `None` if the offer is no key.
pub(super) fn answer(id: u64, pair: KemKeypair, offer: &[u8]) -> Option<(Vec<u8>, PresharedKey, Proof)> {
    let (ciphertext, secret) = EncapsulationKey::new(&ML_KEM_768, offer).ok()?.encapsulate().ok()?;
    let derived = Derived::of(secret.as_ref(), id, pair.reversed(), offer, ciphertext.as_ref());
    Some(([ciphertext.as_ref(), &derived.answers].concat(), derived.key, derived.confirms))
}

/// Says whether two proofs are the same, in constant time.
pub(super) fn same(one: &Proof, other: &[u8]) -> bool {
    verify_slices_are_equal(one, other).is_ok()
}

struct Derived {
    key: PresharedKey,
    answers: Proof,
    confirms: Proof,
}

impl Derived {
    /// `pair` is as the proposer sees it.
    fn of(secret: &[u8], id: u64, pair: KemKeypair, offer: &[u8], ciphertext: &[u8]) -> Self {
        let transcript = digest(&SHA256, &[&id.to_be_bytes()[..], offer, ciphertext].concat());
        let (proposer, answerer) = (pair.own.0.0.to_be_bytes(), pair.peer.0.0.to_be_bytes());
        let context = [&proposer[..], &answerer, &pair.own.1.0, &pair.peer.1.0, transcript.as_ref()].concat();
        let secret = Salt::new(HKDF_SHA256, SALT).extract(secret);
        let mut bytes = expand(&secret, b"key", &context);
        let key = PresharedKey::new(bytes);
        bytes.zeroize();
        Self { key, answers: expand(&secret, b"answer", &context), confirms: expand(&secret, b"confirm", &context) }
    }
}

fn expand(secret: &Prk, label: &[u8], context: &[u8]) -> [u8; 32] {
    let mut output = [0; 32];
    secret
        .expand(&[label, context], Length)
        .and_then(|key| key.fill(&mut output))
        .expect("32 bytes are a length that HKDF-SHA256 can fill");
    output
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}
