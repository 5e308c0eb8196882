//! Measurements between nodes: told from everything else, and for nobody but the two.

use super::*;
use crate::ops::bench::{DATA, FRAME, REPORT};

/// The engine of node b.
fn far() -> Engine {
    let mut map = fixture::netmap(&[]);
    std::mem::swap(&mut map.node.address, &mut map.peers.values_mut().next().unwrap().address);
    engine_of(map)
}

/// A frame of node a for node b.
fn frame(kind: u8) -> Vec<u8> {
    let mut packet = vec![0; 1000];
    assert!(write_reserved(&mut packet, Flat(ip(NODE_A)), Flat(ip(NODE_B)), kind));
    assert!(packet::verify(&packet));
    packet
}

#[test]
fn a_measurement_is_told_from_what_the_engine_answers_and_gets_no_answer_of_it() {
    let mut b = far();
    for (kind, verdict) in [
        (DATA, Verdict::Bench),
        (REPORT, Verdict::Bench),
        (5, Verdict::Drop(Drop::BadProbe)),
        (0, Verdict::Drop(Drop::BadProbe)),
    ] {
        assert_eq!((b.inbound(B, &mut frame(kind), NOW), b.reply().len()), (verdict, 0), "{kind}");
    }
    assert_eq!(RESERVED + FRAME, 92);
}

#[test]
fn another_version_or_no_version_is_dropped() {
    let mut b = far();
    for (at, byte) in [(RESERVED - 2, 2), (RESERVED - 6, b'm')] {
        let mut packet = frame(DATA);
        packet[at] = byte;
        assert_eq!(b.inbound(B, &mut packet, NOW), Verdict::Drop(Drop::BadProbe));
    }
}

#[test]
fn a_frame_that_is_not_between_the_two_nodes_is_dropped() {
    let mut b = far();
    let packet = frame(DATA);
    let with = |source: &str, destination: &str, port: u16| {
        let mut changed = packet.clone();
        changed[12..16].copy_from_slice(&ip(source).octets());
        changed[16..20].copy_from_slice(&ip(destination).octets());
        changed[20..22].copy_from_slice(&port.to_be_bytes());
        changed
    };
    // In this map node a has the address that the fixture gives to b, and the other way round.
    for (from, mut packet, why) in [
        (NodeId(9), packet.clone(), Drop::SpoofedSource),
        (B, with("241.1.0.77", NODE_B, PROBE_PORT), Drop::SpoofedSource),
        (B, with(NODE_B, NODE_B, PROBE_PORT), Drop::SpoofedSource),
        (B, with(POD_B, NODE_B, PROBE_PORT), Drop::BadProbe),
        (B, with(NODE_A, "241.1.0.77", PROBE_PORT), Drop::BadProbe),
        (B, with(NODE_A, NODE_B, 1), Drop::BadProbe),
    ] {
        assert_eq!(b.inbound(from, &mut packet, NOW), Verdict::Drop(why));
    }
    assert_eq!(out(&mut b, &mut with(NODE_B, NODE_A, PROBE_PORT)), Verdict::Drop(Drop::BadProbe));
}
