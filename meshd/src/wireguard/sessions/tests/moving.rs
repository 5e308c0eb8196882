//! Addresses change, and those who speak to each other go on.

use rustix::time::{ClockId, clock_gettime};

use super::*;

/// Node 2 has another address from now on, and is told.
fn move_two(net: &mut Net, to: u8) {
    net.nodes.get_mut(&2).unwrap().address = ip(to);
    let (own, now) = (BTreeSet::from([ip(to)]), net.now);
    for lane in 0..net.nodes[&2].lanes.len() {
        net.lane(2, lane).move_to(&own, now);
    }
}

/// All tunnels between nodes 1 and 2 are open.
fn open(counts: &[usize]) -> Net {
    let mut net = Net::new(counts, Net::known);
    for _ in 0..4 {
        for lane in 0..counts[0] {
            net.send(1, lane, 2, 0);
            net.run_to_rest();
        }
        net.pass(Duration::from_millis(300));
    }
    net
}

/// Where node 1's tunnels lead to.
fn led(net: &mut Net) -> BTreeSet<IpAddr> {
    let lanes = net.nodes[&1].lanes.len();
    let endpoints = |lane: usize| {
        let sessions = net.lane(1, lane).slab.iter().flatten().filter(|s| s.ready);
        sessions.filter_map(|s| Some(s.path.endpoint()?.remote.ip())).collect::<Vec<_>>()
    };
    (0..lanes).flat_map(endpoints).collect()
}

#[test]
fn a_node_that_moves_says_so_by_every_tunnel_at_once() {
    for counts in [[1, 1], [2, 2], [3, 2]] {
        let mut net = open(&counts);
        assert_eq!(led(&mut net), [ip(2)].into());

        move_two(&mut net, 22);
        net.pass(Duration::ZERO);

        assert_eq!(led(&mut net), [ip(22)].into(), "{counts:?}");
        net.send(1, 0, 2, 9);
        net.run_to_rest();
        assert_eq!(net.got(2).last(), Some(&9));
    }
}

#[test]
fn a_word_that_is_lost_is_said_again_and_no_more_once_the_peer_was_heard() {
    let mut net = open(&[1, 1]);
    move_two(&mut net, 22);
    net.closed.insert(PORT);
    net.pass(Duration::ZERO);
    net.pass(Duration::from_millis(100));
    assert_eq!(led(&mut net), [ip(2)].into());
    net.closed.clear();
    net.pass(Duration::from_millis(150));
    assert_eq!(led(&mut net), [ip(22)].into());

    net.pass(Duration::from_millis(1));
    net.send(1, 0, 2, 9);
    net.run_to_rest();
    let now = net.now;
    let said = |net: &mut Net, after: u64| {
        let mut outbox = Outbox::new(1 << 20);
        net.lane(2, 0).say_where(&mut outbox, now + Duration::from_millis(after));
        outbox.datagrams().count()
    };
    assert_eq!((said(&mut net, 500), said(&mut net, 1000), said(&mut net, 2000)), (0, 0, 0));
    assert_eq!(net.lane(2, 0).moving.poll_timeout(now), None);
}

#[test]
fn an_own_address_that_is_left_is_kept_and_one_that_is_gone_is_not() {
    let mut net = open(&[1, 1]);
    let now = net.now;
    let local = |net: &mut Net| net.lane(2, 0).slab.iter().flatten().find_map(|s| s.path.endpoint()?.local);
    net.lane(2, 0).move_to(&[ip(2), ip(22)].into(), now);
    assert_eq!(local(&mut net), Some(ip(2)));
    net.lane(2, 0).move_to(&[ip(22)].into(), now);
    assert_eq!(local(&mut net), None);
}

#[test]
fn a_node_that_nobody_answered_where_it_was_calls_anew_from_where_it_is() {
    let mut net = Net::new(&[1, 1], Net::known);
    net.closed.insert(PORT);
    net.send(2, 0, 1, 7);
    net.run_to_rest();
    for _ in 0..40 {
        net.pass(Duration::from_millis(250));
    }
    net.closed.clear();
    move_two(&mut net, 22);
    net.pass(Duration::from_millis(10));
    assert_eq!(net.got(1), [7]);
}

#[test]
fn a_peer_that_a_map_says_to_be_elsewhere_is_called_there() {
    let mut net = open(&[1, 1]);
    // It moved, and nothing that it said arrived.
    net.nodes.get_mut(&2).unwrap().address = ip(22);
    let info = keys(2, 1).publics().into_iter().map(|key| LaneInfo { key, port: PORT }).collect();
    let at = |last: u8| vec![SocketAddr::new(ip(last), PORT)];
    let cell = Arc::clone(&net.lane(1, 0).peers.get(NodeId(2)).unwrap().cell);
    let mut peer = crate::wireguard::peers::test_one(NodeId(2), info, Vec::new(), at(22));
    peer.cell = cell;
    let peers = Arc::new(crate::wireguard::peers::test_agreeing(NodeId(1), None, vec![peer]));
    net.lane(1, 0).set_peers(peers);
    net.pass(Duration::from_millis(10));
    net.pass(Duration::from_millis(150));
    assert_eq!(led(&mut net), [ip(22)].into());
}

/// How long it takes to note that all of so many tunnels lead elsewhere: the time of this thread's CPU.
fn displacement_of(tunnels: u32) -> Duration {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let began = now();
    let mut moving = Moving::default();
    for number in (0..tunnels).chain(0..tunnels) {
        moving.displace(number);
    }
    let took = now() - began;
    let calls: Vec<u32> = std::iter::from_fn(|| moving.next_call()).collect();
    assert_eq!(calls.len(), tunnels as usize, "each is called once");
    took
}

#[test]
fn displacing_many_tunnels_costs_about_as_much_for_each_as_displacing_few() {
    let best = |tunnels| (0..3).map(|_| displacement_of(tunnels)).min().unwrap();
    let (few, many) = (best(1000), best(16_000));
    // 16 times as many take a little more than 16 times as long, or 256 times if each is looked for among all.
    assert!(many < 80 * few, "{few:?} for 1,000, {many:?} for 16,000");
}
