//! Rare meetings of rules, fragments and ports, each once decided wrongly.

use super::*;
use crate::model::netmap::Backend;
use crate::packet::ICMP;

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
    assert_eq!(out(&mut engine, &mut gre(NODE_A)), Verdict::Refuse(Refuse::NoSourcePort));
}

#[test]
fn an_icmp_error_about_a_delivered_packet_comes_from_its_receiver_or_the_host() {
    let mut engine = engine(&open());
    let mut there = udp(POD_B, 50000, POD_A, 8080);
    assert_eq!(inn(&mut engine, &mut there), Verdict::Deliver);
    let from = |engine: &mut Engine, source: &str| out(engine, &mut icmp_error(source, POD_B, &there));
    for other in ["10.8.0.11", "10.8.0.1", "192.168.7.1", POD_A2, POD_B, NODE_B] {
        assert_eq!(from(&mut engine, other), Verdict::Drop(Drop::SpoofedSource), "{other}");
    }
    assert_eq!(from(&mut engine, REAL_A), Verdict::Forward(B), "its receiver");
    assert_eq!(from(&mut engine, NODE_A), Verdict::Forward(B), "the host, by its mesh address");
    engine.set_locals(Arc::new([ip("10.8.0.1")]));
    assert_eq!(from(&mut engine, "10.8.0.1"), Verdict::Forward(B), "the host, by its bridge's");
}

#[test]
fn an_icmp_error_from_a_peer_comes_from_the_far_end_or_the_peer_itself() {
    let mut engine = engine(&open());
    let mut there = udp(REAL_A, 40000, CART, 7070);
    assert_eq!(out(&mut engine, &mut there), Verdict::Forward(B));
    let from = |engine: &mut Engine, source: &str| inn(engine, &mut icmp_error(source, POD_A, &there));
    assert_eq!(from(&mut engine, "241.2.1.99"), Verdict::Drop(Drop::SpoofedSource), "another pod of the peer");
    assert_eq!(from(&mut engine, NODE_B), Verdict::Deliver);
    assert_eq!(from(&mut engine, POD_B), Verdict::Deliver);
}

/// An error that asks for packets of `mtu` bytes.
fn too_big(source: &str, destination: &str, quoted: &[u8], mtu: u16) -> Vec<u8> {
    let mut body = vec![3, 4, 0, 0, 0, 0];
    body.extend_from_slice(&mtu.to_be_bytes());
    body.extend_from_slice(&quoted[..28]);
    ipv4(ICMP, source, destination, 0, &body)
}

#[test]
fn fragmentation_needed_is_also_taken_from_the_way_to_the_receiver() {
    let mut engine = engine(&open());
    let hop = |to: &str| NextHop { to: to.parse().unwrap(), router: ip("192.168.7.1") };
    let mut there = udp(POD_B, 50000, POD_A, 8080);
    assert_eq!(inn(&mut engine, &mut there), Verdict::Deliver);
    let ask = |engine: &mut Engine, source: &str| out(engine, &mut too_big(source, POD_B, &there, 1200));
    assert_eq!(ask(&mut engine, "192.168.7.1"), Verdict::Drop(Drop::SpoofedSource), "an invented router");
    engine.set_next_hops(Arc::new([hop("10.9.0.0/24")]));
    assert_eq!(ask(&mut engine, "192.168.7.1"), Verdict::Drop(Drop::SpoofedSource), "a router to elsewhere");
    engine.set_next_hops(Arc::new([hop("10.9.0.0/24"), hop("10.8.0.0/24")]));
    assert_eq!(ask(&mut engine, "192.168.7.1"), Verdict::Forward(B));
    assert_eq!(ask(&mut engine, "192.168.7.2"), Verdict::Drop(Drop::SpoofedSource), "its neighbour");
    let other = out(&mut engine, &mut icmp_error("192.168.7.1", POD_B, &there));
    assert_eq!(other, Verdict::Drop(Drop::SpoofedSource), "that router about anything else");

    let mut asked = udp(REAL_A, 40000, CART, 7070);
    assert_eq!(out(&mut engine, &mut asked), Verdict::Forward(B));
    assert_eq!(inn(&mut engine, &mut too_big("241.2.1.99", POD_A, &asked, 1200)), Verdict::Deliver);
}

#[test]
fn a_way_is_not_shrunk_below_576_bytes_in_either_direction() {
    let mut engine = engine(&open());
    let (mut there, mut asked) = (udp(POD_B, 50000, POD_A, 8080), udp(REAL_A, 40000, CART, 7070));
    assert_eq!(inn(&mut engine, &mut there), Verdict::Deliver);
    assert_eq!(out(&mut engine, &mut asked), Verdict::Forward(B));
    for (wanted, told) in [(0, 576), (68, 576), (575, 576), (576, 576), (1200, 1200)] {
        let mut leaving = too_big(REAL_A, POD_B, &there, wanted);
        assert_eq!(out(&mut engine, &mut leaving), Verdict::Forward(B));
        let mut coming = too_big(POD_B, POD_A, &asked, wanted);
        assert_eq!(inn(&mut engine, &mut coming), Verdict::Deliver);
        for error in [leaving, coming] {
            show(&error);
            assert_eq!(u16::from_be_bytes([error[26], error[27]]), told, "asked for {wanted}");
        }
    }
    let mut refused = icmp_error(POD_B, POD_A, &asked);
    inn(&mut engine, &mut refused);
    assert_eq!(refused[26..28], [0, 0], "other errors keep what stands there");
}

#[test]
fn a_forbidden_source_is_spoofed_even_in_an_own_block() {
    let mut map = fixture::netmap(&open());
    map.node.blocks[0].real = "169.254.7.0/24".parse().unwrap();
    let mut engine = engine_of(map);
    let verdict = out(&mut engine, &mut tcp("169.254.7.10", 1, CART, 7070, SYN));
    assert_eq!(verdict, Verdict::Drop(Drop::SpoofedSource));
}

#[test]
fn a_network_behind_the_node_calls_by_the_second_address_and_is_not_called() {
    const SECOND_A: &str = "241.1.128.1";
    let mut engine = engine(&[RuleAt(1, &["masqueraded:a"], &["cart"]), RuleAt(2, &["any"], &["any", "near"])]);
    let mut there = tcp(SECOND_A, 40000, CART, 7070, SYN);
    assert_eq!(out(&mut engine, &mut there), Verdict::Forward(B));
    assert_eq!(show(&there), format!("{SECOND_A}:40000 > {POD_B}:8070"));
    let mut back = tcp(POD_B, 8070, SECOND_A, 40000, SYN | ACK);
    assert_eq!(inn(&mut engine, &mut back), Verdict::Deliver);
    assert_eq!(show(&back), format!("{CART}:7070 > {SECOND_A}:40000"));
    assert_eq!(out(&mut engine, &mut tcp(SECOND_A, 40001, NEAR, 80, SYN)), Verdict::Refuse(Refuse::Denied));
    assert_eq!(inn(&mut engine, &mut tcp(POD_B, 1, SECOND_A, 22, SYN)), Verdict::Drop(Drop::NotHere));
    assert_eq!(out(&mut engine, &mut tcp(REAL_A, 1, SECOND_A, 22, SYN)), Verdict::Refuse(Refuse::Denied));
}

#[test]
fn a_network_behind_a_peer_is_let_in_where_a_rule_names_it() {
    const SECOND_B: &str = "241.1.128.2";
    let mut engine = engine(&[RuleAt(1, &["masqueraded:b"], &["front"])]);
    assert_eq!(inn(&mut engine, &mut tcp(SECOND_B, 50000, POD_A, 8080, SYN)), Verdict::Deliver);
    assert_eq!(inn(&mut engine, &mut tcp(NODE_B, 50000, POD_A, 8080, SYN)), Verdict::Refuse(Refuse::Denied));
    let mut any = self::engine(&[RuleAt(1, &["any"], &["any", "front"])]);
    assert_eq!(inn(&mut any, &mut tcp(SECOND_B, 50000, POD_A, 8080, SYN)), Verdict::Refuse(Refuse::Denied));
}
