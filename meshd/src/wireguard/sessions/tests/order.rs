//! What was given first arrives first, whichever tunnel carries it.

use super::*;
use crate::wireguard::timing::{MOMENT, PATIENCE, ROOM};

/// Two nodes, the second with two lanes; a session between its lane 1 and the only lane of the first.
fn with_a_session_of_lane_1() -> Net {
    let mut net = Net::new(&[1, 2], Net::known);
    assert_eq!(net.send(2, 1, 1, 90), Sealed::Elsewhere);
    net.run_to_rest();
    assert_eq!(net.send(2, 1, 1, 91), Sealed::Done);
    net.run_to_rest();
    net
}

#[test]
fn packets_that_wait_are_not_overtaken_by_another_tunnel() {
    let mut net = Net::new(&[1, 2], Net::known);
    assert_eq!(net.send(1, 0, 2, 1), Sealed::Done);
    let initiation = std::mem::take(&mut net.flying);
    net.send(2, 1, 1, 90);
    net.run_to_rest();
    net.send(2, 1, 1, 91);
    net.run_to_rest();

    assert_eq!(net.send(1, 0, 2, 2), Sealed::Done);
    net.run_to_rest();
    assert!(net.got(2).is_empty());
    net.flying = initiation;
    net.run_to_rest();
    assert_eq!(net.got(2), [1, 2]);
}

#[test]
fn packets_that_wait_for_ever_do_not_keep_others_from_a_tunnel_that_works() {
    let mut net = Net::new(&[1, 2], Net::known);
    net.closed.insert(PORT);
    assert_eq!(net.send(1, 0, 2, 1), Sealed::Done);
    net.closed.clear();
    net.flying.clear();
    net.send(2, 1, 1, 90);
    net.run_to_rest();
    net.send(2, 1, 1, 91);
    net.run_to_rest();
    net.now = net.now + PATIENCE;

    assert_eq!(net.send(1, 0, 2, 2), Sealed::Done);
    net.run_to_rest();
    assert_eq!(net.got(2), [2]);
}

#[test]
fn a_busy_tunnel_is_kept_until_it_was_silent_for_a_moment() {
    let mut net = with_a_session_of_lane_1();
    net.send(1, 0, 2, 1);
    assert_eq!(net.flying[0].1.port(), PORT + 1, "the only session there is");
    net.run_to_rest();
    for tag in [92, 93] {
        net.send(2, 0, 1, tag);
        net.run_to_rest();
    }

    net.send(1, 0, 2, 2);
    assert_eq!(net.flying[0].1.port(), PORT + 1);
    net.run_to_rest();
    net.now = net.now + MOMENT;
    net.send(1, 0, 2, 3);
    assert_eq!(net.flying[0].1.port(), PORT, "the lane's own pair");
    net.run_to_rest();
    assert_eq!(net.got(2), [1, 2, 3]);
}

#[test]
fn all_that_waited_leaves_before_anything_newer() {
    let mut net = Net::new(&[1, 1], Net::known);
    let large = |tag: u8| {
        let mut large = packet(tag);
        large.resize(1400, tag);
        large[2..4].copy_from_slice(&1400u16.to_be_bytes());
        large
    };
    for tag in 0..200 {
        let sealed = net.with(1, 0, |s, out, now| s.seal(NodeId(2), &large(tag), Traffic::Payload, out, now));
        assert_eq!(sealed, Sealed::Done);
    }
    let (from, to, initiation) = net.flying.remove(0);
    net.deliver(from.remote, to, &initiation);
    let (from, _, response) = net.flying.remove(0);

    let mut outbox = Outbox::new(ROOM + 10_000);
    let now = net.now;
    let lane = net.lane(1, 0);
    lane.open(from, &response, &mut vec![0; 70_000], &mut outbox, now);
    let mut sent = 0;
    while lane.is_flushing() {
        sent += outbox.datagrams().filter(|(_, datagram)| datagram.len() > 1400).count();
        outbox.clear();
        lane.flush(&mut outbox, now);
    }
    sent += outbox.datagrams().filter(|(_, datagram)| datagram.len() > 1400).count();
    assert_eq!(sent, 200);
}

#[test]
fn a_tunnel_that_was_wanted_but_carried_nothing_is_not_busy() {
    let mut net = Net::new(&[2, 4], Net::known);
    net.closed.insert(PORT + 1);
    assert_eq!(net.send(1, 1, 2, 1), Sealed::Elsewhere);
    net.closed.clear();
    net.flying.clear();
    for tag in [90, 91] {
        net.send(2, 3, 1, tag);
        net.run_to_rest();
    }
    assert_eq!(net.send(1, 1, 2, 2), Sealed::Done);
    assert_eq!(net.flying[0].1.port(), PORT + 3, "the only session there is");
    net.run_to_rest();
    for tag in [92, 93] {
        net.send(2, 1, 1, tag);
        net.run_to_rest();
    }

    assert_eq!(net.send(1, 1, 2, 3), Sealed::Done);
    assert_eq!(net.flying[0].1.port(), PORT + 3);
}

#[test]
fn nothing_is_handed_over_that_lane_0_has_no_room_for() {
    let mut net = Net::new(&[2, 2], Net::known);
    net.closed.extend([PORT, PORT + 1]);
    assert_eq!(net.send(1, 1, 2, 1), Sealed::Elsewhere);
    for _ in 0..MAX_WAITING {
        assert_eq!(net.send(1, 0, 2, 1), Sealed::Done);
    }
    assert_eq!(net.send(1, 1, 2, 1), Sealed::Elsewhere);
    assert_eq!(net.send(1, 0, 2, 1), Sealed::Dropped(Drop::NoTunnel));
    assert_eq!(net.send(1, 1, 2, 1), Sealed::Dropped(Drop::NoTunnel));
    net.now = net.now + Duration::from_millis(50);
    assert_eq!(net.send(1, 1, 2, 1), Sealed::Elsewhere);
}

#[test]
fn a_session_is_told_of_once() {
    let mut net = with_a_session_of_lane_1();
    for (id, lane, peer) in [(1, 0, 2), (2, 1, 1)] {
        assert_eq!(net.lane(id, lane).next_met(), Some(NodeId(peer)));
        assert_eq!(net.lane(id, lane).next_met(), None);
    }
    net.send(2, 1, 1, 92);
    net.pass(Duration::from_secs(1));
    assert_eq!(net.lane(2, 1).next_met(), None);
}
