//! Measurements between nodes: counted, reported, and nothing else.

use super::*;
use crate::ops::bench::{Data, Report, Sender};

/// The engine of node b.
fn far() -> Engine {
    let mut map = fixture::netmap(&[]);
    std::mem::swap(&mut map.node.address, &mut map.peers.values_mut().next().unwrap().address);
    engine_of(map)
}

fn frame(sequence: u32, wants_report: bool) -> Data {
    Data { run: 5, stream: 1, sequence, clock: NOW, wants_report }
}

/// Sends a frame of node a to node b.
fn measured(from: &Engine, to: &mut Engine, data: &Data) -> Verdict {
    let mut packet = from.bench_packet(B, 1000).unwrap().with(data).to_vec();
    assert!(packet::verify(&packet));
    to.inbound(B, &mut packet, NOW)
}

#[test]
fn a_measurement_is_counted_and_reported_to_who_sent_it() {
    let (mut a, mut b) = (engine(&[]), far());
    let cpu = Duration::from_millis(3);
    let mut sender = Sender::new(5, 1, 1000, NOW + Duration::from_secs(1));
    for data in sender.next_burst(10, NOW) {
        assert_eq!(measured(&a, &mut b, &data), Verdict::Counted);
        assert!(b.reply().is_empty());
    }
    assert!(b.bench_timeout().is_some_and(|due| due <= NOW));

    assert_eq!(b.bench_report(|| cpu, NOW), Some(B));
    let mut report = b.reply().to_vec();
    assert!(packet::verify(&report));
    let later = NOW + Duration::from_micros(700);
    assert_eq!(a.inbound(B, &mut report, later), Verdict::Reported);
    let said = *a.reported();
    sender.handle_report(&said, later);

    let expected =
        Report { run: 5, stream: 1, highest: 9, packets: 10, bytes: 10_000, echo: NOW, first: NOW, last: NOW, cpu };
    assert_eq!((said, sender.tally().latest), (expected, Some(expected)));
    assert_eq!((b.bench_report(|| cpu, later), b.bench_timeout()), (None, None));
}

#[test]
fn frames_that_ask_for_nothing_are_answered_with_nothing() {
    let (a, mut b) = (engine(&[]), far());
    (0..100).for_each(|i| assert_eq!(measured(&a, &mut b, &frame(i, false)), Verdict::Counted));
    assert_eq!((b.bench_timeout(), b.bench_report(|| Duration::ZERO, NOW)), (None, None));
}

#[test]
fn a_report_is_no_larger_than_the_smallest_frame() {
    let (a, mut b) = (engine(&[]), far());
    let mut smallest = a.bench_packet(B, 0).unwrap();
    assert_eq!(b.inbound(B, &mut smallest.with(&frame(0, true)).to_vec(), NOW), Verdict::Counted);
    assert_eq!(b.bench_report(|| Duration::ZERO, NOW), Some(B));
    assert_eq!((smallest.bytes(), b.reply().len()), (SMALLEST_BENCH, SMALLEST_BENCH));
    let cut = &mut a.bench_packet(B, 0).unwrap().with(&frame(0, true)).to_vec()[..SMALLEST_BENCH - 1];
    cut[3] -= 1;
    cut[25] -= 1;
    assert_eq!(b.inbound(B, cut, NOW), Verdict::Drop(Drop::BadProbe));
}

#[test]
fn a_frame_is_no_larger_than_the_way_takes() {
    let mut map = fixture::netmap(&[]);
    map.peers.values_mut().for_each(|p| p.mtu = 1300);
    let mut engine = engine_of(map);
    let length = |e: &Engine| e.bench_packet(B, usize::MAX).unwrap().bytes();
    assert_eq!(length(&engine), 1300);
    engine.set_mtu(1200);
    assert_eq!(length(&engine), 1200);
    assert!(engine.bench_packet(NodeId(9), 1000).is_none());
}

#[test]
fn a_frame_that_is_not_between_the_two_nodes_is_dropped_and_counts_for_nobody() {
    let (a, mut b) = (engine(&[]), far());
    let packet = a.bench_packet(B, 1000).unwrap().with(&frame(0, true)).to_vec();
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
    assert_eq!((b.bench_timeout(), b.bench_report(|| Duration::ZERO, NOW)), (None, None));
}
