//! What nodes tell each other of the log of operations.

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
