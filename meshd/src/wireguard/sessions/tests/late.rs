//! A clock that was set back: peers would take no call, so the node has itself called.

use mesh_host::clock::time_of_day;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
/// The first bytes of an initiation, and of a data message.
const INITIATES: u8 = 1;
const DATA: u8 = 4;

/// Has a node used a time that comes in an hour.
fn set_back(net: &mut Net, id: u8) {
    net.lane(id, 0).clock.used(time_of_day() + HOUR);
}

/// Sends a packet, and returns what kinds of datagrams leave for it.
fn kinds(net: &mut Net, tag: u8) -> Vec<u8> {
    assert_eq!(net.send(1, 0, 2, tag), Sealed::Done);
    net.flying.iter().map(|(_, _, datagram)| datagram[0]).collect()
}

#[test]
fn a_node_whose_clock_was_set_back_has_itself_called() {
    let mut net = Net::new(&[1, 1], Net::known);
    set_back(&mut net, 1);

    assert_eq!(kinds(&mut net, 7), [DATA], "it does not call");
    net.run_to_rest();
    assert_eq!(net.nodes[&2].counters[0].initiations.get(), 1);
    assert_eq!(net.send(2, 0, 1, 8), Sealed::Done);
    net.run_to_rest();
    assert_eq!((net.got(2), net.got(1)), (vec![7], vec![8]));
}

#[test]
fn its_first_call_after_a_restart_takes_less_than_a_second_though_the_peer_still_speaks_to_it() {
    let mut net = Net::new(&[1, 1], Net::known);
    for (from, to) in [(1, 2), (2, 1), (1, 2)] {
        net.send(from, 0, to, 1);
        net.run_to_rest();
    }
    let mut fresh = Net::new(&[1, 1], Net::known);
    net.nodes.insert(1, fresh.nodes.remove(&1).unwrap());
    set_back(&mut net, 1);

    net.send(1, 0, 2, 7);
    net.run_to_rest();
    for _ in 0..4 {
        net.pass(Duration::from_millis(225));
    }
    assert_eq!(net.got(2).last(), Some(&7));
}

#[test]
fn two_such_nodes_that_both_restarted_find_each_other_all_the_same() {
    let mut net = Net::new(&[1, 1], Net::known);
    set_back(&mut net, 1);
    set_back(&mut net, 2);
    net.send(1, 0, 2, 7);
    net.run_to_rest();
    for _ in 0..4 {
        net.pass(Duration::from_millis(250));
    }
    assert_eq!(net.got(2), [7]);
}

#[test]
fn a_tunnel_whose_calls_are_taken_goes_on_calling_and_one_in_time_is_noted() {
    let mut net = Net::new(&[1, 1], Net::known);
    let before = time_of_day();
    net.send(1, 0, 2, 1);
    net.run_to_rest();
    let used = net.lane(1, 0).clock.latest_second();
    assert!(used >= before.as_secs() && used <= time_of_day().as_secs() + 1, "{used}");

    set_back(&mut net, 1);
    net.with(1, 0, |s, out, now| s.initiate(0, out, now));
    assert_eq!(net.flying[0].2[0], INITIATES);
}
