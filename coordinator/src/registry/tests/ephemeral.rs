//! Ephemeral nodes vanish 10 minutes after their last contact, in virtual time.

use std::collections::BTreeSet;

use super::*;

fn after(minutes: u64) -> UnixTime {
    NOW + Duration::from_secs(minutes * 60)
}

fn tend(registry: &mut Registry, connected: &[&str], now: UnixTime) -> Applied {
    let connected: BTreeSet<_> = connected.iter().map(|name| name.parse().unwrap()).collect();
    registry.apply(Change::Tend { connected }, Actor::Coordinator, now).unwrap()
}

fn is_there(registry: &Registry, name: &str) -> bool {
    registry.world().nodes.contains_key(&name.parse().unwrap())
}

/// n1 and n2 are ephemeral, by the token and by their own wish; n3 is not.
fn mesh() -> Registry {
    let mut registry = registry();
    registry.apply(Change::TokenCreate(TokenSpec { ephemeral: true, ..spec(1, "c1") }), BY, NOW).unwrap();
    ask(&mut registry, 1, request(1, "n1", facts(1, &[]))).unwrap();
    token(&mut registry, 2, "c1");
    ask(&mut registry, 2, JoinRequest { ephemeral: true, ..request(2, "n2", facts(2, &[])) }).unwrap();
    join(&mut registry, 3, "n3", "c1", &[]).unwrap();
    registry
}

#[test]
fn an_ephemeral_node_vanishes_ten_minutes_after_its_last_contact_and_others_stay() {
    let mut registry = mesh();
    assert!(!tend(&mut registry, &[], after(9)).altered);
    // n1 is connected for an hour; what is looked at more often than every minute is not written more often.
    let mut written = 0;
    for second in (9 * 60..=68 * 60).step_by(20) {
        let now = NOW + Duration::from_secs(second);
        written += u32::from(tend(&mut registry, &["n1", "n3"], now).altered);
    }
    assert!(is_there(&registry, "n1") && is_there(&registry, "n3") && !is_there(&registry, "n2"));
    assert!((55..=65).contains(&written), "{written}");

    tend(&mut registry, &[], after(78));
    assert!(is_there(&registry, "n1"));
    tend(&mut registry, &[], after(79));
    assert!(!is_there(&registry, "n1") && is_there(&registry, "n3"));

    // It is not expelled: with another token it may come back.
    token(&mut registry, 4, "c1");
    ask(&mut registry, 1, request(4, "n1", facts(1, &[]))).unwrap();
    assert!(is_there(&registry, "n1"));
}

#[test]
fn a_report_is_a_contact() {
    let mut registry = mesh();
    let news = NodeFacts { mtu: 1300, ..facts(1, &[]) };
    report_at(&mut registry, 1, news, after(8)).unwrap();
    tend(&mut registry, &[], after(15));
    assert!(is_there(&registry, "n1") && !is_there(&registry, "n2"));
    tend(&mut registry, &[], after(18));
    assert!(is_there(&registry, "n1"));
    tend(&mut registry, &[], after(19));
    assert!(!is_there(&registry, "n1"));
}
