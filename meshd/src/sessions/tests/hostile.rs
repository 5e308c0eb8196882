//! Strangers, floods and forgers.

use super::*;

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
    net.settle();
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
            net.settle();
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
    net.settle();
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
    net.settle();
    net.with(2, 0, |s, out, now| s.initiate(0, out, now));
    net.settle();
    assert_eq!(net.got(1), [1], "asked for a cookie, and let in with it");
}
