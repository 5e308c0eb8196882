#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::fixture::{self, RuleAt};

fn ask(map: &NetMap, source: &str, destination: &str, port: u16) -> Option<usize> {
    Access::compile(map).judge(&Question {
        source: Flat(source.parse().unwrap()),
        destination: Flat(destination.parse().unwrap()),
        protocol: 6,
        port,
        service: None,
    })
}

#[test]
fn nothing_is_allowed_that_no_rule_allows() {
    let map = fixture::netmap(&[]);
    assert_eq!(ask(&map, fixture::POD_A, fixture::POD_B, 8080), None);
    assert_eq!(ask(&map, fixture::NODE_A, fixture::NODE_B, 22), None);
}

#[test]
fn a_service_rule_covers_its_backends_ports_and_nothing_else() {
    let map = fixture::netmap(&[RuleAt(7, &["front"], &["cart:7070"])]);
    assert_eq!(ask(&map, fixture::POD_A, fixture::POD_B, 8070), Some(0), "the backend's own port");
    assert_eq!(ask(&map, fixture::POD_A, fixture::POD_B, 7070), None, "the dialled port is the VIP's alone");
    assert_eq!(ask(&map, fixture::POD_A, fixture::POD_B, 22), None);
    assert_eq!(ask(&map, fixture::POD_A2, fixture::POD_B, 8070), None, "another pod of the same node");
    assert_eq!(ask(&map, fixture::NODE_A, fixture::POD_B, 8070), None, "the node itself is not the service");
}

#[test]
fn host_site_and_any_mean_what_they_say() {
    let map = fixture::netmap(&[RuleAt(1, &["host:a"], &["host:b"])]);
    assert_eq!(ask(&map, fixture::NODE_A, fixture::NODE_B, 22), Some(0));
    assert_eq!(ask(&map, fixture::POD_A, fixture::NODE_B, 22), None);
    assert_eq!(ask(&map, fixture::NODE_A, fixture::POD_B, 22), None);
    let map = fixture::netmap(&[RuleAt(1, &["site:s1"], &["site:s2"])]);
    assert_eq!(ask(&map, fixture::POD_A, fixture::POD_B, 1), Some(0));
    assert_eq!(ask(&map, fixture::NODE_A, fixture::NODE_B, 1), Some(0));
    assert_eq!(ask(&map, fixture::POD_B, fixture::POD_A, 1), None);
    let map = fixture::netmap(&[RuleAt(1, &["any"], &["any"])]);
    assert_eq!(ask(&map, fixture::POD_B, fixture::POD_A, 1), Some(0));
    assert_eq!(ask(&map, "241.9.9.9", fixture::POD_A, 1), None, "any means every member, not everybody");
}

#[test]
fn a_node_whose_pods_may_be_masqueraded_does_not_speak_for_its_services() {
    let mut map = fixture::netmap(&[RuleAt(1, &["store"], &["cart"])]);
    assert_eq!(ask(&map, fixture::NODE_A, fixture::POD_B, 8070), Some(0));
    map.node.guarded = false;
    assert_eq!(ask(&map, fixture::NODE_A, fixture::POD_B, 8070), None);
    map.node.blocks.clear();
    assert_eq!(ask(&map, fixture::NODE_A, fixture::POD_B, 8070), Some(0), "without pods nothing is masqueraded");
}

#[test]
fn ten_thousand_rules_answer_like_the_one_that_matters() {
    let mut rules: Vec<RuleAt<'_>> = (0..10_000).map(|n| RuleAt(n, &["cart"], &["front"])).collect();
    rules.push(RuleAt(10_001, &["front"], &["cart"]));
    let map = fixture::netmap(&rules);
    assert_eq!(ask(&map, fixture::POD_A, fixture::POD_B, 8070), Some(10_000));
}

#[test]
fn networks_behind_a_node_call_only_where_a_rule_names_them() {
    // The second address of node a.
    const SECOND_A: &str = "241.1.128.1";
    let map = fixture::netmap(&[RuleAt(1, &["any", "host:a", "site:s1", "store"], &["any", "cart"])]);
    assert_eq!(ask(&map, SECOND_A, fixture::POD_B, 8070), None, "they are no members");
    assert_eq!(ask(&map, fixture::POD_B, SECOND_A, 1), None, "they are not called");
    let mut map = fixture::netmap(&[RuleAt(1, &["masqueraded:a"], &["cart"])]);
    assert_eq!(ask(&map, SECOND_A, fixture::POD_B, 8070), Some(0));
    assert_eq!(ask(&map, SECOND_A, fixture::POD_B, 22), None);
    for other in [fixture::NODE_A, fixture::POD_A, fixture::NODE_B] {
        assert_eq!(ask(&map, other, fixture::POD_B, 8070), None, "{other} is somebody else");
    }
    map.peers.values_mut().for_each(|peer| peer.address = Flat(SECOND_A.parse().unwrap()));
    assert_eq!(ask(&map, SECOND_A, fixture::POD_B, 8070), None, "what is a node's own address stays it");
}
