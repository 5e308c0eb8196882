//! Many peers at a time.

use mesh_proto::dataplane::liveness::Inquiry;
use rustix::time::{ClockId, clock_gettime};

use super::*;
use crate::wireguard::peers::{test_agreeing, test_one};

/// Peers that never answer.
const PEERS: u32 = 200;

/// Lane 0 of node 1, which has no preshared key yet with peers 2 and so on.
fn lane_without_keys(peers: u32) -> Sessions {
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
    let peers = Arc::new(test_agreeing(NodeId(1), Some(Arc::default()), (2..2 + peers).map(peer).collect()));
    Sessions::new(0, &own.of(0), peers, Arc::default())
}

#[test]
fn a_turn_costs_what_is_due_however_many_peers_do_not_answer() {
    let mut lane = lane_without_keys(PEERS);
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

/// How long it takes to put a map in force in which half of the peers with a tunnel are gone: the time of this thread's
/// CPU, the shortest of some tries, so that what else the machine does matters little.
fn removal_of_half(peers: u32) -> Duration {
    let own = LaneKeys::derive(&StaticSecret::from([1; 32]), 1);
    let peer = |n: u32| {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        (NodeId(n), vec![LaneInfo { key: TunnelKey(key), port: PORT }], Vec::new())
    };
    let mut lane = Sessions::new(0, &own.of(0), Arc::default(), Arc::default());
    let one_try = |_| {
        lane.set_peers(Arc::new(test_peers((1..=peers).map(peer).collect())));
        for n in 1..=peers {
            // As a tunnel that is used: its timers run, and it is known where it leads.
            let number = lane.tunnel_to(NodeId(n), 0).unwrap();
            lane.keep_ticking(number);
            let at = std::net::Ipv4Addr::from(0xc612_0000 + n);
            lane.by_endpoint.insert(SocketAddr::from((at, PORT)), number);
        }
        let left = Arc::new(test_peers((1..=peers / 2).map(peer).collect()));
        let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
        let began = now();
        lane.set_peers(left);
        let took = now() - began;
        let half = peers as usize / 2;
        assert_eq!((lane.ticking.len(), lane.by_endpoint.len(), lane.by_peer.len()), (half, half, half));
        took
    };
    (0..3).map(one_try).min().unwrap()
}

#[test]
fn removing_many_peers_costs_as_much_for_each_as_removing_few() {
    let (few, many) = (removal_of_half(1000), removal_of_half(8000));
    // 8 times as many take 8 times as long, or 64 times if each is looked for among all.
    assert!(many < 24 * few, "{few:?} for 500 of 1,000 peers, {many:?} for 4,000 of 8,000");
}

#[test]
fn a_thousand_gone_peers_that_nobody_wants_leave_room_for_agreements_and_are_called_once_each_time() {
    const GONE: u32 = 1100;
    let mut lane = lane_without_keys(GONE + 1);
    let mut outbox = Outbox::new(1 << 20);
    let mut now = Timestamp::from_millis(1_000_000);
    lane.ask(NodeId(2), Inquiry::Urgent, &mut outbox, now);
    assert_eq!(lane.counters.initiations.get(), 1);
    for _ in 0..100 {
        now = now + Duration::from_millis(200);
        lane.tend_talks(&mut outbox, now);
    }
    assert_eq!((lane.counters.initiations.get(), lane.talks.poll_timeout()), (1, None), "and no more");

    for gone in 2..2 + GONE {
        outbox.clear();
        lane.ask(NodeId(gone), Inquiry::Urgent, &mut outbox, now);
    }
    let called = lane.counters.initiations.get();
    assert!((400..=600).contains(&called), "{called}");
    outbox.clear();
    let wanted = NodeId(2 + GONE);
    assert_eq!(lane.seal(wanted, &packet(1), Traffic::Payload, &mut outbox, now), Sealed::Done);
    assert_eq!((lane.counters.initiations.get(), lane.talks.starved), (called + 1, false));
}
