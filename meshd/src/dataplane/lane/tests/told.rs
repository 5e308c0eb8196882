//! What nodes tell each other of the log of operations, and of their clocks.

use mesh_proto::base::wall_clock::BootDate;
use mesh_proto::trust::audit_log::{LogHash, LogHead, LogPosition};

use super::*;

fn log_position(n: u8) -> LogPosition {
    LogPosition { epoch: 0, head: LogHead { seq: u64::from(n), hash: LogHash([n; 32]) } }
}

#[test]
fn the_logs_end_travels_with_probes_both_ways_and_reaches_no_kernel() {
    let mut pair = Pair::new(false);
    for (node, n) in [(0, 1), (1, 2)] {
        pair.nodes[node].lanes.iter_mut().for_each(|lane| lane.set_log_position(log_position(n)));
    }
    pair.with(0, 0, |lane, _, _| lane.ping(NodeId(2)));
    for _ in 0..100 {
        pair.now = pair.now + Duration::from_millis(1);
        for node in 0..2 {
            pair.with(node, 0, |lane, out, now| lane.handle_timeout(out, now));
        }
    }
    let heard = |node: usize, peer: u32| pair.nodes[node].peers.get(NodeId(peer)).unwrap().cell.log_position();
    assert_eq!((heard(0, 2), heard(1, 1)), (Some(log_position(2)), Some(log_position(1))));
    assert!(pair.nodes.iter().all(|node| node.delivered.is_empty() && node.count("bad_probe") == 0));
}

#[test]
fn clocks_travel_with_probes_both_ways_and_a_node_that_does_not_know_its_own_tells_none() {
    let date = |seconds| BootDate::from_micros(seconds * 1_000_000);
    for (told, expected) in [([Some(100), Some(4000)], [Some(4000), Some(100)]), ([Some(7), None], [None, Some(7)])] {
        let mut pair = Pair::new(false);
        for (node, seconds) in told.into_iter().enumerate() {
            let lanes = pair.nodes[node].lanes.iter_mut();
            seconds.into_iter().zip(lanes).for_each(|(seconds, lane)| lane.set_date(date(seconds)));
        }
        pair.with(0, 0, |lane, _, _| lane.ping(NodeId(2)));
        for _ in 0..100 {
            pair.now = pair.now + Duration::from_millis(1);
            for node in 0..2 {
                pair.with(node, 0, |lane, out, now| lane.handle_timeout(out, now));
            }
        }
        let heard = |node: usize, peer: u32| pair.nodes[node].peers.get(NodeId(peer)).unwrap().cell.clock();
        let near = |word: Option<ClockWord>, seconds: Option<i64>| match (word, seconds) {
            (None, None) => true,
            (Some(word), Some(seconds)) => word.date.apart(date(seconds)) < Duration::from_secs(1),
            (Some(_), None) | (None, Some(_)) => false,
        };
        assert!(near(heard(0, 2), expected[0]) && near(heard(1, 1), expected[1]), "{told:?}");
        assert!(pair.nodes.iter().all(|node| node.delivered.is_empty() && node.count("bad_probe") == 0));
    }
}
