//! The frames of the agreement on preshared keys: what comes through a tunnel that carries nothing else yet.
//!
//! The parser is meshd's own file, which needs nothing but proto and the lengths of ML-KEM-768.

use mesh_proto::base::addr::Flat;
use mesh_proto::dataplane::engine::{RESERVED, write_reserved};

#[path = "../../../meshd/src/psk/frame.rs"]
mod frame;

use frame::{MAX_PACKET, Parts, PskFrame, PskStep};

/// What FIPS 203 says of ML-KEM-768, and the length of a proof, as in meshd's `agreement/kem.rs`.
mod kem {
    pub(super) const OFFER: usize = 1184;
    pub(super) const ANSWER: usize = 1088 + PROOF;
    pub(super) const PROOF: usize = 32;
}

/// A frame is read as it is written, and parts in any order, and more than once, are the message they are parts of.
pub(crate) fn agreement(data: &[u8]) {
    read(data);
    // Behind headers that are right: the kind, and what follows it.
    let Some((&kind, rest)) = data.split_first() else { return };
    let body = &rest[..rest.len().min(2048)];
    let mut packet = vec![0; RESERVED + body.len()];
    if write_reserved(&mut packet, own(), peer(), kind) {
        packet[RESERVED..].copy_from_slice(body);
        read(&packet);
    }
    let step = [PskStep::Offer, PskStep::Answer, PskStep::Confirm, PskStep::Done][usize::from(kind) % 4];
    let message: Vec<u8> = rest.iter().copied().chain(0..=255).cycle().take(step.length()).collect();
    let frames: Vec<PskFrame> = PskFrame::all(step, u64::from(kind), &message).collect();
    assert!(frames.iter().all(|frame| frame.is_offer() == (step == PskStep::Offer)));
    let mut parts = Parts::of(step);
    let mut missing: Vec<usize> = (0..frames.len()).collect();
    let order = rest.iter().take(16).map(|&byte| usize::from(byte) % frames.len());
    for place in order.chain(0..frames.len()) {
        assert_eq!(parts.whole().is_none(), !missing.is_empty(), "whole with parts missing, or the other way round");
        let frame = written(&frames[place]);
        assert_eq!(frame.as_ref(), Some(&frames[place]), "what is written can be read");
        parts.take(&frames[place]);
        missing.retain(|&part| part != place);
    }
    assert_eq!(parts.whole(), Some(&message[..]));
}

/// Reads a packet, and what is written of it.
fn read(packet: &[u8]) {
    let Some(frame) = PskFrame::read(packet) else { return };
    assert_eq!(written(&frame).as_ref(), Some(&frame), "what is read can be written");
    // It is the part that is missing of some message.
    let others: Vec<PskFrame> = PskFrame::all(frame.step, frame.id, &vec![0; frame.step.length()]).collect();
    let mut parts = Parts::of(frame.step);
    others.iter().filter(|other| other.part != frame.part).for_each(|other| parts.take(other));
    parts.take(&frame);
    let from = others.iter().take(frame.part.into()).map(|other| other.bytes.len()).sum::<usize>();
    let whole = parts.whole().expect("a part that is read has its place");
    assert_eq!(whole.get(from..from + frame.bytes.len()), Some(&frame.bytes[..]));
}

fn written(frame: &PskFrame) -> Option<PskFrame> {
    let mut packet = [0; MAX_PACKET];
    let length = frame.write(own(), peer(), &mut packet);
    PskFrame::read(&packet[..length])
}

fn own() -> Flat {
    Flat([241, 1, 0, 1].into())
}

fn peer() -> Flat {
    Flat([241, 1, 0, 2].into())
}
