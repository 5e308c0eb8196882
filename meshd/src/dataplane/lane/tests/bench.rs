//! Measurements between the two nodes.

use mesh_proto::ops::bench::Tally;

use super::*;
use crate::dataplane::bell::Bell;
use crate::dataplane::bench::phase::{Phase, Plan};

const EVERY: Duration = Duration::from_millis(5);

/// Measures from node 0 to node 1 for 50 ms with packets of that many bytes, after a packet on each lane.
fn measured(pair: &mut Pair, packet_bytes: usize) -> Arc<Phase> {
    (0..2).for_each(|lane| pair.send(0, lane, tcp(0, SYN, 0), VnetHeader::default()));
    (0..2).for_each(|lane| pair.send(1, lane, tcp(1, SYN | ACK, 0), VnetHeader::default()));
    pair.nodes.iter_mut().for_each(|node| node.delivered.clear());
    let until = pair.now + Duration::from_millis(50);
    let plan = Plan::Load { run: 1, packet_bytes, until, every: EVERY, count: 5 };
    let bells = (0..2).map(|_| Bell::new().unwrap()).collect();
    let phase = Arc::new(Phase::new(NodeId(2), plan, &bells, pair.now));
    pair.nodes[0].lanes.iter_mut().for_each(|lane| lane.set_bench(Some(Arc::clone(&phase))));
    for _ in 0..2000 {
        if phase.is_finished(pair.now) {
            return phase;
        }
        pair.now = pair.now + Duration::from_millis(1);
        for (node, lane) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            pair.with(node, lane, |l, out, now| l.handle_timeout(out, now));
        }
    }
    panic!("it does not end: {phase:?}");
}

#[test]
fn both_lanes_measure_and_nothing_reaches_a_kernel() {
    for packet_bytes in [92, 1420] {
        let mut pair = Pair::new(true);
        let phase = measured(&mut pair, packet_bytes);

        for Tally { sent, first, latest } in phase.tallies() {
            let report = latest.unwrap();
            assert!(sent > 1000, "{sent}");
            assert_eq!((report.packets, report.bytes), (sent, u64::from(sent) * packet_bytes as u64));
            assert!(first.unwrap().packets <= 126 && report.cpu >= first.unwrap().cpu);
        }
        assert_eq!(phase.echoes().len(), 5);
        assert!(pair.nodes.iter().all(|node| node.delivered.is_empty()));
        assert_eq!((pair.nodes[0].count("bad_probe"), pair.nodes[1].count("bad_probe")), (0, 0));
    }
}

#[test]
fn a_lane_whose_port_is_closed_takes_no_part() {
    let mut pair = Pair::new(true);
    pair.closed = Some(PORT + 1);
    let phase = measured(&mut pair, 1420);

    let sent: Vec<_> = phase.tallies().iter().map(|tally| tally.sent).collect();
    assert!(sent[0] > 1000 && sent[1] == 0, "{sent:?}");
}

#[test]
fn a_report_that_nobody_waits_for_is_dropped_and_counted() {
    let mut pair = Pair::new(true);
    measured(&mut pair, 92);
    pair.nodes[0].lanes.iter_mut().for_each(|lane| lane.set_bench(None));
    let view = View::compile(VerifiedMap::by_hand(netmap(0, true)));
    let engine = Engine::new(Arc::new(view), Arc::new(FlowTable::new(64)));
    let mut packet = engine.bench_packet(NodeId(2), 92).unwrap();
    let data = mesh_proto::ops::bench::Data { run: 9, stream: 0, sequence: 0, clock: pair.now, wants_report: true };
    let packet = packet.with(&data).to_vec();

    pair.with(0, 0, |lane, out, now| lane.forward(NodeId(2), &packet, &mut out.udp, now));
    pair.with(1, 0, |lane, out, now| lane.handle_timeout(out, now));

    assert_eq!(pair.nodes[0].count("bad_probe"), 1);
}
