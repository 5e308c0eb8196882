//! Measurements between the two nodes.

use mesh_proto::dataplane::engine::{RESERVED, write_reserved};
use mesh_proto::ops::bench::{BenchReport, DATA, Data, Frame, REPORT, Tally};

use super::*;
use crate::dataplane::bell::Bell;
use crate::dataplane::bench::lane_end::LoadPhase;

/// Measures from node 0 to node 1 for 50 ms with packets of that many bytes, after a packet on each lane.
fn measured(pair: &mut Pair, packet_bytes: usize) -> Arc<LoadPhase> {
    (0..2).for_each(|lane| pair.send(0, lane, tcp(0, SYN, 0), VnetHeader::default()));
    (0..2).for_each(|lane| pair.send(1, lane, tcp(1, SYN | ACK, 0), VnetHeader::default()));
    pair.nodes.iter_mut().for_each(|node| node.delivered.clear());
    let until = pair.now + Duration::from_millis(50);
    let bells = (0..2).map(|_| Bell::new().unwrap()).collect();
    let way = [0, 1].map(|node| Flat(address(node)));
    let phase = Arc::new(LoadPhase::new(NodeId(2), way, packet_bytes, until, bells));
    pair.nodes[0].phases.send_replace(Some(Arc::clone(&phase)));
    for _ in 0..2000 {
        if phase.streams().all(|stream| stream.is_finished(pair.now)) {
            return phase;
        }
        pair.now = pair.now + Duration::from_millis(1);
        for (node, lane) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            pair.with(node, lane, |l, out, now| l.handle_timeout(out, now));
        }
    }
    panic!("it does not end: {phase:?}");
}

fn tallies(phase: &LoadPhase) -> Vec<Tally> {
    phase.streams().map(|stream| stream.tally()).collect()
}

/// A frame of a node for the other, in a packet of that many bytes.
fn packet(from: usize, frame: Frame, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; bytes];
    let kind = if matches!(frame, Frame::Data(_)) { DATA } else { REPORT };
    write_reserved(&mut packet, Flat(address(from)), Flat(address(1 - from)), kind);
    frame.write(&mut packet[RESERVED..]);
    packet
}

#[test]
fn both_lanes_measure_and_nothing_reaches_a_kernel() {
    for packet_bytes in [92, 1420] {
        let mut pair = Pair::new(true);
        let phase = measured(&mut pair, packet_bytes);

        for Tally { sent, first, latest } in tallies(&phase) {
            let report = latest.unwrap();
            assert!(sent > 1000, "{sent}");
            assert_eq!((report.packets, report.bytes), (sent, u64::from(sent) * packet_bytes as u64));
            assert!(first.unwrap().packets <= 126 && report.cpu >= first.unwrap().cpu);
        }
        assert!(pair.nodes.iter().all(|node| node.delivered.is_empty()));
        assert_eq!((pair.nodes[0].count("bad_probe"), pair.nodes[1].count("bad_probe")), (0, 0));
    }
}

#[test]
fn round_trips_are_measured_beside_it() {
    let mut pair = Pair::new(true);
    measured(&mut pair, 1420);
    let count = |pair: &Pair| pair.nodes[0].peers.get(NodeId(2)).unwrap().cell.stats(pair.now).unwrap().rtt_count;
    let before = count(&pair);
    pair.with(0, 0, |lane, out, now| {
        lane.ping(NodeId(2));
        lane.handle_timeout(out, now);
    });
    assert_eq!(count(&pair), before + 1);
}

#[test]
fn a_lane_whose_port_is_closed_takes_no_part() {
    let mut pair = Pair::new(true);
    pair.closed = Some(PORT + 1);
    let phase = measured(&mut pair, 1420);

    let sent: Vec<_> = tallies(&phase).iter().map(|tally| tally.sent).collect();
    assert!(sent[0] > 1000 && sent[1] == 0, "{sent:?}");
}

#[test]
fn frames_that_ask_for_nothing_are_answered_with_nothing_and_others_with_no_more_than_they_are() {
    let mut pair = Pair::new(true);
    measured(&mut pair, 92);
    pair.nodes[0].phases.send_replace(None);
    pair.with(0, 0, |lane, out, now| lane.handle_timeout(out, now));
    let mut reports = |wants_report, bytes| {
        let before = pair.nodes[0].count("bad_probe");
        let data = Frame::Data(Data { run: 9, stream: 0, sequence: 0, clock: pair.now, wants_report });
        let packet = packet(0, data, bytes);
        pair.now = pair.now + Duration::from_millis(1);
        pair.with(0, 0, |lane, out, now| lane.forward(NodeId(2), &packet, &mut out.udp, now));
        let mut answer = 0;
        pair.with(1, 0, |lane, out, now| {
            lane.handle_timeout(out, now);
            answer = out.udp.runs().iter().map(|run| run.len).sum();
        });
        (pair.nodes[0].count("bad_probe") - before, answer)
    };
    assert_eq!(reports(false, 92), (0, 0));
    // Nobody waits for this one at node 0: it is dropped there, and counted.
    let (dropped, answer) = reports(true, 92);
    assert!(dropped == 1 && (92..=92 + 4 + 32).contains(&answer), "{answer}");
    assert_eq!(reports(true, 1420), (1, answer));
}

#[test]
fn what_is_too_short_or_was_not_asked_for_is_dropped_and_counted() {
    let mut pair = Pair::new(true);
    measured(&mut pair, 92);
    let data = Data { run: 9, stream: 0, sequence: 0, clock: pair.now, wants_report: true };
    let short = packet(0, Frame::Data(data), 91);
    pair.with(0, 0, |lane, out, now| lane.forward(NodeId(2), &short, &mut out.udp, now));
    let report = packet(0, Frame::Report(BenchReport::default()), 92);
    pair.with(0, 0, |lane, out, now| lane.forward(NodeId(2), &report, &mut out.udp, now));
    assert_eq!(pair.nodes[1].count("bad_probe"), 2);
    pair.with(1, 0, |lane, out, now| lane.handle_timeout(out, now));
    assert_eq!(pair.nodes[0].count("bad_probe"), 0);
}
