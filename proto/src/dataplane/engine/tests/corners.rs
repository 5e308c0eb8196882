//! Rare meetings of rules, fragments and ports, each once decided wrongly.

use super::*;
use crate::model::netmap::Backend;

#[test]
fn a_first_fragment_takes_over_the_identification_of_an_older_packet() {
    let mut engine = engine(&[RuleAt(1, &["front"], &["cart"])]);
    let first = |port: u16| {
        let body = [[0x9c, 0x40], port.to_be_bytes(), [0, 40], [0, 0], [1; 2], [1; 2], [1; 2], [1; 2]].concat();
        ipv4(UDP, REAL_A, CART, MF, &body)
    };
    let later = || ipv4(UDP, REAL_A, CART, 2, &[2; 24]);
    assert_eq!(out(&mut engine, &mut first(7070)), Verdict::Forward(B));
    assert_eq!(out(&mut engine, &mut later()), Verdict::Forward(B));
    assert_eq!(out(&mut engine, &mut first(81)), Verdict::Refuse(Refuse::ClosedPort));
    assert_eq!(out(&mut engine, &mut later()), Verdict::Drop(Drop::FragmentUnmatched));
}

#[test]
fn a_reset_gives_both_places_of_a_connection_up() {
    const PORT: u16 = 40_000;
    let mut engine = engine(&open());
    assert_eq!(out(&mut engine, &mut tcp(REAL_A, PORT, NODE_B, 7070, SYN)), Verdict::Forward(B));
    assert_eq!(inn(&mut engine, &mut tcp(NODE_B, 7070, POD_A, PORT, SYN | ACK)), Verdict::Deliver);
    assert_eq!(out(&mut engine, &mut tcp(REAL_A, PORT, NODE_B, 7070, ACK)), Verdict::Forward(B));
    assert_eq!(out(&mut engine, &mut tcp(REAL_A, PORT, NODE_B, 7070, RST)), Verdict::Forward(B));
    let mut states = Vec::new();
    engine.flows.for_each(NOW, |_, flow| states.push(flow.state));
    assert_eq!(states, [FlowState::Reset; 2]);
}

#[test]
fn a_later_fragment_larger_than_the_way_is_dropped() {
    let mut engine = engine(&open());
    let body = [[0x9c, 0x40], 7070u16.to_be_bytes(), [8, 0], [0, 0], [1; 2], [1; 2], [1; 2], [1; 2]].concat();
    assert_eq!(out(&mut engine, &mut ipv4(UDP, REAL_A, CART, MF, &body)), Verdict::Forward(B));
    assert_eq!(out(&mut engine, &mut ipv4(UDP, REAL_A, CART, 2, &[2; 1500])), Verdict::Drop(Drop::Oversized));
}

#[test]
fn an_icmp_error_that_quotes_no_flow_is_dropped_whatever_the_rules_say() {
    let mut engine = engine(&open());
    let mut about_an_error = icmp_error(REAL_A, NODE_B, &icmp_error(NODE_B, REAL_A, &udp(REAL_A, 1, NODE_B, 2)));
    assert_eq!(out(&mut engine, &mut about_an_error), Verdict::Drop(Drop::IcmpUnmatched));
    let mut redirect = echo(NODE_B, POD_A, 5, 1);
    assert_eq!(inn(&mut engine, &mut redirect), Verdict::Drop(Drop::IcmpUnmatched));
}

#[test]
fn a_rule_for_a_host_or_site_does_not_open_the_services_there() {
    let mut engine = engine(&[RuleAt(1, &["any"], &["host:b", "site:s2", "site:s1"])]);
    assert_eq!(out(&mut engine, &mut tcp(REAL_A, 1, POD_B, 8070, SYN)), Verdict::Forward(B));
    assert_eq!(out(&mut engine, &mut tcp(REAL_A, 1, CART, 7070, SYN)), Verdict::Refuse(Refuse::Denied));
    assert_eq!(out(&mut engine, &mut echo(REAL_A, CART, 8, 5)), Verdict::Refuse(Refuse::Denied));
}

#[test]
fn callers_that_are_denied_leave_the_weights_exact() {
    let mut engine = two_backends(&[RuleAt(1, &["front"], &["cart"])]);
    let mut reached = Vec::new();
    for port in 0..4 {
        let mut p = tcp(REAL_A, 40_000 + port, CART, 7070, SYN);
        assert_eq!(out(&mut engine, &mut p), Verdict::Forward(B));
        reached.push(p[19]);
        let denied = out(&mut engine, &mut tcp(REAL_A2, 40_000 + port, CART, 7070, SYN));
        assert_eq!(denied, Verdict::Refuse(Refuse::Denied));
    }
    assert_eq!(reached, [10, 11, 10, 11]);
}

/// The fixture with a second backend of `cart`, 241.2.1.11.
fn two_backends(rules: &[RuleAt<'_>]) -> Engine {
    let mut map = fixture::netmap(rules);
    let cart = map.services.get_mut(&"cart".parse().unwrap()).unwrap();
    let second = Backend { address: Flat(ip("241.2.1.11")), ..cart.backends[0].clone() };
    cart.backends.push(second);
    engine_of(map)
}

#[test]
fn what_an_old_backend_still_sends_is_not_taken_for_the_new_connection() {
    let mut engine = two_backends(&[RuleAt(1, &["front"], &["cart"])]);
    for flags in [SYN, 4, SYN] {
        assert_eq!(out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, flags)), Verdict::Forward(B));
    }
    let mut late = tcp(POD_B, 8070, POD_A, 40000, ACK);
    assert_ne!(
        (inn(&mut engine, &mut late), Header::parse(&late).unwrap().tuple.source),
        (Verdict::Deliver, ip(CART)),
        "the second connection is another backend's"
    );
}

#[test]
fn two_callers_behind_the_node_do_not_share_a_protocol_without_ports() {
    let mut engine = engine(&open());
    engine.set_locals(Arc::new([ip("192.168.7.1")]));
    let gre = |source: &str| ipv4(47, source, NODE_B, DF, &[0; 16]);
    assert_eq!(out(&mut engine, &mut gre("192.168.7.1")), Verdict::Forward(B));
    assert_eq!(out(&mut engine, &mut gre(NODE_A)), Verdict::Drop(Drop::NoSourcePort));
}

#[test]
fn a_pod_sends_no_icmp_error_about_another_pods_flow() {
    let mut engine = engine(&open());
    let mut there = udp(POD_B, 50000, POD_A, 8080);
    assert_eq!(inn(&mut engine, &mut there), Verdict::Deliver);
    let from = |engine: &mut Engine, source: &str| out(engine, &mut icmp_error(source, POD_B, &there));
    assert_eq!(from(&mut engine, "10.8.0.11"), Verdict::Drop(Drop::SpoofedSource));
    assert_eq!(from(&mut engine, "10.8.0.1"), Verdict::Drop(Drop::SpoofedSource));
    assert_eq!(from(&mut engine, "192.168.7.1"), Verdict::Forward(B), "a router behind the node");
    engine.set_locals(Arc::new([ip("10.8.0.1")]));
    assert_eq!(from(&mut engine, "10.8.0.1"), Verdict::Forward(B), "the node's own bridge");
    assert_eq!(from(&mut engine, REAL_A), Verdict::Forward(B));
}

#[test]
fn a_forbidden_source_is_spoofed_even_in_an_own_block() {
    let mut map = fixture::netmap(&open());
    map.node.blocks[0].real = "169.254.7.0/24".parse().unwrap();
    let mut engine = engine_of(map);
    let verdict = out(&mut engine, &mut tcp("169.254.7.10", 1, CART, 7070, SYN));
    assert_eq!(verdict, Verdict::Drop(Drop::SpoofedSource));
}
