//! Keys change under traffic.

use super::*;
use crate::wireguard::peers::test_peer;

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [101; 32];

fn of(secret: [u8; 32]) -> LaneKeys {
    LaneKeys::derive(&StaticSecret::from(secret), 2)
}

fn infos(keys: Vec<TunnelKey>) -> Vec<LaneInfo> {
    keys.into_iter().zip(PORT..).map(|(key, port)| LaneInfo { key, port }).collect()
}

/// Gives node 1 its keys.
fn take(net: &mut Net, keys: &LaneKeys) {
    for lane in 0..2 {
        net.lane(1, lane).set_keys(&keys.of(lane));
    }
}

/// Tells node 2 of node 1's keys.
fn tell(net: &mut Net, keys: &LaneKeys) {
    let (lanes, former) = (infos(keys.publics()), infos(keys.former_publics()));
    let peers = Arc::new(test_peer(NodeId(1), lanes, former, Net::known(2, 1)));
    for lane in 0..2 {
        net.lane(2, lane).set_peers(Arc::clone(&peers));
    }
}

/// Sends both ways on both lanes, and says that all of it arrived.
#[track_caller]
fn talk(net: &mut Net, tag: u8) {
    let before = (net.got(1).len(), net.got(2).len());
    for (from, to) in [(1, 2), (2, 1)] {
        for lane in 0..2 {
            assert_eq!(net.send(from, lane, to, tag), Sealed::Done, "{from} lane {lane}");
            net.run_to_rest();
        }
    }
    assert_eq!((net.got(1).len(), net.got(2).len()), (before.0 + 2, before.1 + 2));
}

/// How fresh the tunnels are that a node's lanes send by.
fn fresh(net: &mut Net, id: u8) -> Vec<u8> {
    let (now, peer) = (net.now, NodeId(u32::from(3 - id)));
    let of_lane = |net: &mut Net, lane: usize| {
        let sessions = net.lane(id, lane);
        let number = sessions.choose(peer, now).unwrap();
        sessions.slab[number as usize].as_ref().unwrap().fresh
    };
    vec![of_lane(net, 0), of_lane(net, 1)]
}

fn turn(net: &mut Net) {
    for _ in 0..4 {
        net.pass(Duration::from_millis(250));
    }
}

#[test]
fn keys_change_one_side_after_the_other_and_nothing_is_lost() {
    let mut net = Net::new(&[2, 2], Net::known);
    for lane in 0..2 {
        net.send(1, lane, 2, 0);
        net.run_to_rest();
    }
    talk(&mut net, 1);

    let both = of(NEW).with_former(Some(&StaticSecret::from(OLD)), true);
    take(&mut net, &both);
    turn(&mut net);
    talk(&mut net, 2);
    assert_eq!(fresh(&mut net, 1), [1, 1], "nobody knows the new key yet");

    tell(&mut net, &both);
    talk(&mut net, 3);
    turn(&mut net);
    talk(&mut net, 4);
    assert_eq!((fresh(&mut net, 1), fresh(&mut net, 2)), (vec![2, 2], vec![2, 2]));

    take(&mut net, &of(NEW).with_former(Some(&StaticSecret::from(OLD)), false));
    turn(&mut net);
    talk(&mut net, 5);

    take(&mut net, &of(NEW));
    talk(&mut net, 6);
    tell(&mut net, &of(NEW));
    talk(&mut net, 7);
    assert!(net.nodes.values().all(|node| node.dropped.is_empty()), "{:?}", net.nodes[&1].dropped);
    for (id, lane) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        let fresh: Vec<u8> = net.lane(id, lane).slab.iter().flatten().map(|s| s.fresh).collect();
        assert_eq!(fresh, [2], "tunnels of the former key are gone");
    }
}

#[test]
fn a_first_call_during_a_change_gets_through_whoever_knows_what() {
    for is_told in [false, true] {
        for caller in [1, 2] {
            let mut net = Net::new(&[2, 2], Net::known);
            let both = of(NEW).with_former(Some(&StaticSecret::from(OLD)), true);
            take(&mut net, &both);
            if is_told {
                tell(&mut net, &both);
            }
            net.send(caller, 0, 3 - caller, 9);
            net.run_to_rest();
            assert_eq!(net.got(3 - caller), [9], "told {is_told}, caller {caller}");
        }
    }
}

#[test]
fn a_forgotten_key_is_answered_no_longer() {
    let mut net = Net::new(&[2, 2], Net::known);
    take(&mut net, &of(NEW));
    net.send(2, 0, 1, 9);
    net.run_to_rest();
    assert_eq!(net.got(1), Vec::<u8>::new());
    assert_eq!(net.nodes[&1].dropped, [Drop::Unauthenticated]);
}
