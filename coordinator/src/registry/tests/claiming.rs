//! What a node may say of itself.

use mesh_proto::wire::{MAX_BLOCKS, MAX_ENDPOINTS, MAX_LANES, MAX_OFFERS, ServeOffer};

use super::*;

/// A machine seen at 192.0.2.2 claims one block as its first in site c1.
fn claim(registry: &mut Registry, prefix: &str) -> Result<Applied, Refused> {
    token(registry, 2, "c1");
    ask(registry, 2, request(2, "n2", facts(2, &[prefix])))
}

#[test]
fn a_claim_that_cannot_be_right_is_refused_with_both_prefixes() {
    let cases: [(&str, &[&str]); 8] = [
        ("10.8.1.7/24", &["10.8.1.7/24 has bits behind its prefix", "claim 10.8.1.0/24"]),
        ("0.0.0.0/0", &["larger than a /8"]),
        ("127.1.0.0/16", &["127.1.0.0/16 overlaps 127.0.0.0/8"]),
        ("169.254.169.0/24", &["169.254.169.0/24 overlaps 169.254.0.0/16"]),
        ("224.1.0.0/16", &["224.1.0.0/16 overlaps 224.0.0.0/4"]),
        ("241.2.0.0/24", &["241.2.0.0/24 overlaps the mesh range 241.0.0.0/8"]),
        ("10.12.0.0/24", &["10.12.0.0/24 lies outside the `pods` of site `c1` (10.8.0.0/14)"]),
        ("10.8.0.0/13", &["10.8.0.0/13 lies outside the `pods` of site `c1` (10.8.0.0/14)"]),
    ];
    for (prefix, parts) in cases {
        let mut registry = registry();
        assert_refused(claim(&mut registry, prefix), ErrorCode::Claim, parts);
        assert!(registry.world().nodes.is_empty());
        assert!(registry.tokens().all(|(_, token)| token.uses_left == 1), "a refused join costs no use");
    }
}

#[test]
fn a_site_without_pods_accepts_no_claim() {
    let mut registry = registry();
    let result = join(&mut registry, 2, "vm", "dc", &["10.8.0.0/24"]);
    assert_refused(result, ErrorCode::Claim, &["site `dc` has no `pods`", "10.8.0.0/24"]);
}

#[test]
fn blocks_of_one_site_may_not_overlap_but_those_of_two_sites_may() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &["10.8.0.0/24"]).unwrap();
    let parts = ["10.8.0.128/25 overlaps 10.8.0.0/24 of node `n1`", "revoke n1"];
    assert_refused(claim(&mut registry, "10.8.0.128/25"), ErrorCode::Claim, &parts);
    join(&mut registry, 3, "n3", "c2", &["10.8.0.0/24"]).unwrap();
    assert_eq!(blocks(&registry, "n1"), ["10.8.0.0/24=241.2.0.0/24"]);
    assert_eq!(blocks(&registry, "n3"), ["10.8.0.0/24=241.2.1.0/24"]);
}

#[test]
fn a_node_may_not_claim_an_address_twice() {
    let mut registry = registry();
    let result = join(&mut registry, 2, "n2", "c1", &["10.8.0.0/24", "10.8.0.128/25"]);
    assert_refused(result, ErrorCode::Claim, &["10.8.0.128/25 overlaps 10.8.0.0/24, which this node claims too"]);
}

#[test]
fn a_block_may_not_swallow_underlay_addresses() {
    let text = "site c1 192.0.2.0/24 10.8.0.0/14 198.51.100.0/24";
    let mut registry = registry();
    file(&mut registry, text).unwrap();
    let result = claim(&mut registry, "192.0.2.0/25");
    assert_refused(result, ErrorCode::Claim, &["192.0.2.0/25 contains 192.0.2.1, the coordinator's underlay address"]);

    registry.set_underlay(Vec::new());
    let seen = ask(&mut registry, 2, request(2, "n2", facts(2, &["192.0.2.0/25"])));
    assert_refused(seen, ErrorCode::Claim, &["192.0.2.0/25 contains 192.0.2.2, the node's own underlay address"]);

    let mut own = facts(2, &["198.51.100.0/24"]);
    own.endpoints = vec!["198.51.100.2:51820".parse().unwrap()];
    let own = ask(&mut registry, 2, request(2, "n2", own));
    assert_refused(own, ErrorCode::Claim, &["198.51.100.0/24 contains 198.51.100.2, the node's own underlay address"]);
}

#[test]
fn the_address_of_a_pod_bridge_inside_the_block_is_normal() {
    let mut registry = registry();
    token(&mut registry, 2, "c1");
    let mut bridged = facts(2, &["10.8.1.0/24"]);
    bridged.endpoints.insert(0, "10.8.1.1:51820".parse().unwrap());
    ask(&mut registry, 2, request(2, "n2", bridged)).unwrap();
}

#[test]
fn two_nodes_may_not_have_the_same_tunnel_key() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &[]).unwrap();
    token(&mut registry, 2, "c1");
    let stolen = ask(&mut registry, 2, request(2, "n2", facts(1, &[])));
    assert_refused(stolen, ErrorCode::Claim, &["tunnel key of node `n1`"]);

    ask(&mut registry, 2, request(2, "n2", facts(2, &[]))).unwrap();
    let applied = report(&mut registry, 2, facts(1, &["10.8.1.0/24"])).unwrap();
    assert!(applied.refused[0].contains("tunnel key of node `n1`"), "{applied:?}");
    assert_eq!(node(&registry, "n2").facts.lanes[0].key, TunnelKey([2; 32]), "the former lanes stay");
    assert_eq!(blocks(&registry, "n2").len(), 0, "a record is taken as a whole or not at all");
}

#[test]
fn a_report_keeps_the_good_claims_and_tells_the_bad_ones() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &["10.8.0.0/24"]).unwrap();
    let claims = ["10.8.0.0/24", "10.8.1.0/24", "10.99.0.0/24", "127.0.0.0/24"];
    let applied = report(&mut registry, 1, facts(1, &claims)).unwrap();
    assert!(applied.altered);
    assert_eq!(applied.refused.len(), 2, "{:?}", applied.refused);
    assert_eq!(blocks(&registry, "n1"), ["10.8.0.0/24=241.2.0.0/24", "10.8.1.0/24=241.2.1.0/24"]);
    assert_eq!(node(&registry, "n1").facts.pods.len(), 2);

    let again = report(&mut registry, 1, facts(1, &claims)).unwrap();
    assert_eq!(again.refused, applied.refused, "as long as it claims, it is told");
    assert!(!again.altered);
}

#[test]
fn a_dropped_block_rests_unless_its_node_claims_it_again() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &["10.8.0.0/24"]).unwrap();
    report(&mut registry, 1, facts(1, &[])).unwrap();
    assert!(blocks(&registry, "n1").is_empty());
    join(&mut registry, 2, "n2", "c1", &["10.8.0.0/24"]).unwrap();
    assert_eq!(blocks(&registry, "n2"), ["10.8.0.0/24=241.2.1.0/24"]);
    report(&mut registry, 2, facts(2, &[])).unwrap();
    report(&mut registry, 1, facts(1, &["10.8.0.0/24"])).unwrap();
    assert_eq!(blocks(&registry, "n1"), ["10.8.0.0/24=241.2.0.0/24"]);
}

#[test]
fn a_node_that_claims_and_drops_blocks_in_turn_is_stopped() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &[]).unwrap();
    let mut refused = Vec::new();
    for round in 0..5 {
        let pods: Vec<_> = (0..=255).map(|i| format!("10.8.{round}.{i}/32")).collect();
        let pods: Vec<_> = pods.iter().map(String::as_str).collect();
        refused = report(&mut registry, 1, facts(1, &pods)).unwrap().refused;
    }
    assert_eq!(refused.len(), 256);
    assert!(refused[0].contains("changed more than 1024 blocks"), "{}", refused[0]);
    assert!(report_at(&mut registry, 1, facts(1, &["10.8.9.9/32"]), later(601)).unwrap().refused.is_empty());
}

#[test]
fn an_offer_that_no_grant_covers_is_told() {
    let mut registry = registry();
    token(&mut registry, 1, "dc");
    let mut serving = facts(1, &[]);
    let offer = |service: &str| ServeOffer { service: service.parse().unwrap(), port: Some(9) };
    serving.serve = vec![offer("catalog"), offer("cart"), offer("none")];
    let applied = ask(&mut registry, 1, request(1, "vm", serving)).unwrap();
    assert_eq!(applied.refused.len(), 2, "{:?}", applied.refused);
    assert!(applied.refused[0].contains("`cart`, which neither its token nor the file grants"));
    assert!(applied.refused[1].contains("no [[service]] has that name"));
}

#[test]
fn a_report_that_no_honest_node_makes_is_malformed() {
    let lane = |number: u8, port: u16| LaneInfo { key: TunnelKey([number; 32]), port };
    let endpoint = facts(1, &[]).endpoints[0];
    let offer = |port| ServeOffer { service: "cart".parse().unwrap(), port };
    let good = || facts(1, &[]);
    let lanes = |lanes: Vec<LaneInfo>| NodeFacts { lanes, ..good() };
    let block = "10.8.0.0/32".parse().unwrap();
    let many = (0..=MAX_LANES as u8).map(|i| lane(i, 100 + u16::from(i))).collect();
    let cases = [
        (lanes(vec![]), "no lanes"),
        (lanes(many), "17 lanes; report at most 16"),
        (lanes(vec![lane(1, 1), lane(1, 2)]), "share a key or a port"),
        (lanes(vec![lane(1, 1), lane(2, 1)]), "share a key or a port"),
        (lanes(vec![lane(1, 0)]), "share a key or a port, or have none"),
        (NodeFacts { endpoints: vec![endpoint; MAX_ENDPOINTS + 1], ..good() }, "17 endpoints"),
        (NodeFacts { pods: vec![block; MAX_BLOCKS + 1], ..good() }, "257 pod blocks"),
        (NodeFacts { serve: vec![offer(None); MAX_OFFERS + 1], ..good() }, "257 serve offers"),
        (NodeFacts { serve: vec![offer(Some(0))], ..good() }, "port 0"),
        (NodeFacts { mtu: 575, ..good() }, "MTU of 575"),
        (NodeFacts { software: "x".repeat(129), ..good() }, "129 bytes of version"),
    ];
    let mut registry = registry();
    join(&mut registry, 1, "vm", "dc", &[]).unwrap();
    token(&mut registry, 9, "dc");
    for (facts, part) in cases {
        assert_refused(report(&mut registry, 1, facts.clone()), ErrorCode::Malformed, &[part]);
        assert_refused(ask(&mut registry, 9, request(9, "x", facts)), ErrorCode::Malformed, &[part]);
    }
}
