//! Strangers, floods and forgers.

use super::preshared::{Agreeing, BOTH};
use super::*;
use crate::wireguard::peers::{test_agreeing, test_one};

#[test]
fn a_stranger_and_a_wrong_key_get_no_answer() {
    let mut net = Net::new(&[1, 1], Net::known);
    let mut strangers = Net::new(&[1, 1, 1], Net::known);
    strangers.send(3, 0, 2, 1);
    let (from, to, initiation) = strangers.flying.remove(0);
    net.deliver(from.remote, to, &initiation);
    let mut bent = initiation;
    bent[20] ^= 1;
    net.deliver(from.remote, to, &bent);

    assert_eq!(net.nodes[&2].dropped, [Drop::UnknownPeer, Drop::Unauthenticated]);
    assert!(net.flying.is_empty());
}

#[test]
fn a_flood_of_initiations_is_counted_and_data_still_flows() {
    let mut net = Net::new(&[1, 1], Net::known);
    net.send(1, 0, 2, 0);
    net.run_to_rest();
    let mut strangers = Net::new(&[1, 1, 1], Net::known);
    strangers.send(3, 0, 2, 1);
    let (_, to, valid) = strangers.flying.remove(0);
    let mut bad = valid.clone();
    bad[147 - 20] ^= 1;

    for i in 0..10_000u32 {
        let from = SocketAddr::from((i.to_be_bytes(), 1024));
        net.deliver(from, to, if i % 2 == 0 { &valid } else { &bad });
        net.flying.clear();
        if i % 1000 == 0 {
            net.send(1, 0, 2, (i / 1000) as u8);
            net.run_to_rest();
        }
    }

    let count = |reason: Drop| net.nodes[&2].dropped.iter().filter(|&&r| r == reason).count();
    assert_eq!(count(Drop::Unauthenticated), 5000);
    assert_eq!(count(Drop::HandshakeLimited) + count(Drop::UnknownPeer), 5000);
    assert!(count(Drop::UnknownPeer) < 1000, "Diffie-Hellmans are limited: {}", count(Drop::UnknownPeer));
    assert_eq!(net.got(2), [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn who_repeats_a_peers_initiation_does_not_shut_the_peer_out() {
    let mut net = Net::new(&[1, 1], Net::known);
    net.send(2, 0, 1, 1);
    let (_, to, captured) = net.flying.remove(0);
    for source in 10..70 {
        net.deliver(SocketAddr::new(ip(source), PORT), to, &captured);
    }
    assert_eq!(net.nodes[&1].dropped, vec![Drop::Unauthenticated; 59], "all but the first are known for what they are");
    net.flying.clear();

    net.with(2, 0, |s, out, now| s.initiate(0, out, now));
    net.run_to_rest();
    assert_eq!(net.got(1), [1]);
}

#[test]
fn who_forges_a_peers_address_does_not_shut_the_peer_out() {
    let mut net = Net::new(&[1, 1], Net::known);
    let mut strangers = Net::new(&[1, 1, 1], Net::known);
    strangers.send(3, 0, 1, 1);
    let (_, to, forged) = strangers.flying.remove(0);
    for _ in 0..30 {
        net.deliver(SocketAddr::new(ip(2), PORT), to, &forged);
    }
    net.flying.clear();

    net.send(2, 0, 1, 1);
    net.run_to_rest();
    net.with(2, 0, |s, out, now| s.initiate(0, out, now));
    net.run_to_rest();
    assert_eq!(net.got(1), [1], "asked for a cookie, and let in with it");
}

#[test]
fn who_forges_peers_calls_for_a_key_takes_no_place_for_agreements() {
    let mut two = Agreeing::new(BOTH);
    let (own, caller) = (keys(1, 2).agreement_publics()[0], keys(2, 2).agreement_publics()[0]);
    let lanes = |keys: Vec<TunnelKey>| keys.into_iter().zip(PORT..).map(|(key, port)| LaneInfo { key, port }).collect();
    let mut genuine = test_one(NodeId(2), lanes(keys(2, 2).publics()), Vec::new(), Vec::new());
    genuine.agreement = vec![caller];
    let claimed = |n: u32, tag: u8| {
        let mut key = [tag; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        TunnelKey(key)
    };
    let claim = |n: u32| {
        let mut peer = test_one(NodeId(n), lanes(vec![claimed(n, 6)]), Vec::new(), Vec::new());
        peer.agreement = vec![claimed(n, 7)];
        peer
    };
    let all = (100..2100).map(claim).chain([genuine]).collect();
    let vault = Some(Arc::clone(&two.vaults[0]));
    two.net.lane(1, 0).set_peers(Arc::new(test_agreeing(NodeId(1), vault, all)));

    two.net.send(2, 0, 1, 1);
    let (from, to, call) = two.net.flying.remove(0);
    let mut mangled = call.clone();
    mangled[100] ^= 1;
    let forgeries = (100..2100).map(|n| (claimed(n, 7), NodeId(n), &call)).chain([(caller, NodeId(2), &mangled)]);
    for (key, id, datagram) in forgeries {
        let dropped = two.net.with(1, 0, |s, out, now| {
            let received = s.talk_begins((own, key), id, from, datagram, out, now);
            matches!(received, Decrypted::Dropped(Drop::Unauthenticated))
        });
        assert!(dropped, "{id}");
    }
    assert!(two.net.flying.is_empty());
    assert_eq!(two.net.lane(1, 0).talks.poll_timeout(), None, "a talk is left");

    two.net.deliver(from.remote, to, &call);
    assert!(two.net.lane(1, 0).talks.poll_timeout().is_some());
    two.net.with(1, 0, |s, out, now| {
        s.talk_begins((own, caller), NodeId(2), from, &mangled, out, now);
    });
    two.run_to_rest();
    assert!(two.agree(), "the first call");
    assert_eq!(two.net.got(1), [1]);
}

#[test]
fn strangers_data_for_unknown_sessions_leaves_room_for_a_peers() {
    let mut net = Net::new(&[1, 1], Net::known);
    let mut strange = vec![4, 0, 0, 0];
    strange.resize(100, 7);
    let from = |last: u8, port| Endpoint { remote: SocketAddr::new(ip(last), port), local: Some(ip(2)) };
    net.with(2, 0, |s, out, now| {
        s.begin_turn();
        let mut into = vec![0; 70_000];
        let strangers = (0..1000).map(|n| from(77, 1000 + n)).chain((0..20).map(|n| from(1, 1000 + n)));
        for stranger in strangers {
            s.open(stranger, &strange, &mut into, out, now);
        }
        assert_eq!(out.datagrams().count(), 0);
        for _ in 0..10 {
            s.open(from(1, PORT), &strange, &mut into, out, now);
        }
    });
    assert_eq!(net.nodes[&2].counters[0].initiations.get(), 1);
    assert_eq!(net.lane(2, 0).nudges_left, NUDGES_PER_TURN - 1);
}
