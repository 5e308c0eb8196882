//! Many peers at a time.

use super::*;
use crate::wireguard::peers::{test_agreeing, test_one};

/// Peers that never answer.
const PEERS: u32 = 200;

#[test]
fn a_turn_costs_what_is_due_however_many_peers_do_not_answer() {
    let own = LaneKeys::derive(&StaticSecret::from([1; 32]), 1);
    let peer = |n: u32| {
        let mut secret = [7; 32];
        secret[..4].copy_from_slice(&n.to_be_bytes());
        let keys = LaneKeys::derive(&StaticSecret::from(secret), 1);
        let lanes = vec![LaneInfo { key: keys.public(0), port: PORT }];
        let mut peer = test_one(NodeId(n), lanes, Vec::new(), vec![SocketAddr::from(([198, 51, 100, 1], PORT))]);
        peer.agreement = keys.agreement_publics();
        peer
    };
    let peers = Arc::new(test_agreeing(NodeId(1), Some(Arc::default()), (2..2 + PEERS).map(peer).collect()));
    let mut lane = Sessions::new(0, &own.of(0), peers, Arc::default());
    let mut now = Timestamp::from_millis(1_000_000);
    let mut outbox = Outbox::new(1 << 20);
    let (mut turns, mut idle, mut looked_at) = (0, 0, 0);
    let mut called = 2..2 + PEERS;
    loop {
        outbox.clear();
        if let Some(peer) = called.next() {
            assert_eq!(lane.seal(NodeId(peer), &packet(1), Traffic::Payload, &mut outbox, now), Sealed::Done);
        }
        let at = lane.tend_talks(&mut outbox, now);
        (turns, idle, looked_at) = (turns + 1, idle + usize::from(at == 0), looked_at + at);
        let Some(due) = lane.talks.poll_timeout() else { break };
        assert!(due > now, "a turn leaves nothing undone");
        now = now + Duration::from_millis(10);
    }
    // Each calls 21 times, and then it is over.
    assert!(looked_at <= PEERS as usize * 22, "{looked_at} looks in {turns} turns");
    assert!(idle > turns / 2, "{idle} of {turns} turns had nothing to do");
}
