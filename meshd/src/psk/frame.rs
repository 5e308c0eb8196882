//! Messages in parts, each a packet of the reserved port that fits the smallest underlay of IPv4 (576 bytes).
//!
//! ```text
//! headers of the reserved port (34) │ step │ part │ number of the exchange, u64 │ at most 424 bytes
//! ```

use mesh_proto::base::addr::Flat;
use mesh_proto::dataplane::engine::{RESERVED, read_reserved, write_reserved};

use super::kem::{ANSWER, OFFER, PROOF};

/// The kind of these packets on the reserved port.
const KIND: u8 = 5;
/// Bytes before the part.
const HEAD: usize = RESERVED + 10;
/// Most bytes of a part: with WireGuard's 32 and the outer headers a packet fits 576 bytes.
const PART: usize = 424;
/// Bytes of the longest packet.
pub(crate) const MAX_PACKET: usize = HEAD + PART;

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PskStep {
    /// An encapsulation key.
    Offer,
    /// A ciphertext, and the proof that its maker knows the secret.
    Answer,
    /// The proof that the proposer knows it as well.
    Confirm,
    /// Nothing but that the confirmation came.
    Done,
}

impl PskStep {
    /// Returns the bytes of all parts together.
    pub(super) fn length(self) -> usize {
        match self {
            Self::Offer => OFFER,
            Self::Answer => ANSWER,
            Self::Confirm => PROOF,
            Self::Done => 0,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Offer => 1,
            Self::Answer => 2,
            Self::Confirm => 3,
            Self::Done => 4,
        }
    }
}

/// One part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PskFrame {
    pub(super) step: PskStep,
    pub(super) part: u8,
    pub(super) id: u64,
    pub(super) bytes: Vec<u8>,
}

impl PskFrame {
    /// Divides a message.
    pub(super) fn all(step: PskStep, id: u64, message: &[u8]) -> impl Iterator<Item = Self> {
        // A message without bytes has one part, too.
        let empty = message.is_empty().then_some(message);
        let parts = message.chunks(PART).chain(empty);
        (0..).zip(parts).map(move |(part, bytes)| Self { step, part, id, bytes: bytes.to_vec() })
    }

    /// Says whether it is part of an offer.
    pub(crate) fn is_offer(&self) -> bool {
        self.step == PskStep::Offer
    }

    /// Writes the packet, which `out` must have room for. Returns its length.
    pub(crate) fn write(&self, own: Flat, peer: Flat, out: &mut [u8; MAX_PACKET]) -> usize {
        let length = HEAD + self.bytes.len().min(PART);
        let out = &mut out[..length];
        write_reserved(out, own, peer, KIND);
        out[RESERVED] = self.step.number();
        out[RESERVED + 1] = self.part;
        out[RESERVED + 2..HEAD].copy_from_slice(&self.id.to_be_bytes());
        out[HEAD..].copy_from_slice(&self.bytes[..length - HEAD]);
        length
    }

    /// Reads a packet; `None` if it is no such, or has not exactly the bytes that its part has.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let (KIND, rest) = read_reserved(packet)? else { return None };
        let (&[step, part, ref id @ ..], bytes) = rest.split_first_chunk::<10>()?;
        let steps = [PskStep::Offer, PskStep::Answer, PskStep::Confirm, PskStep::Done];
        let step = steps.into_iter().find(|known| known.number() == step)?;
        let from = usize::from(part) * PART;
        let fits = part == 0 || from < step.length();
        let exact = fits && bytes.len() == PART.min(step.length() - from);
        exact.then(|| Self { step, part, id: u64::from_be_bytes(*id), bytes: bytes.to_vec() })
    }
}

/// A message of which parts come in any order.
#[derive(Debug)]
pub(super) struct Parts {
    bytes: Vec<u8>,
    /// One bit for each part that is missing.
    missing: u8,
}

impl Parts {
    pub(super) fn of(step: PskStep) -> Self {
        let count = step.length().div_ceil(PART).max(1);
        Self { bytes: vec![0; step.length()], missing: (1 << count) - 1 }
    }

    /// Takes a part of the same step.
    pub(super) fn take(&mut self, frame: &PskFrame) {
        let from = usize::from(frame.part) * PART;
        if let Some(place) = self.bytes.get_mut(from..from + frame.bytes.len()) {
            place.copy_from_slice(&frame.bytes);
            self.missing &= !(1u8.checked_shl(frame.part.into()).unwrap_or(0));
        }
    }

    /// Returns the message once it is whole.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        (self.missing == 0).then_some(&self.bytes[..])
    }
}
