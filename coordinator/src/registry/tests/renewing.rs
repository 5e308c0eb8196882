//! Records go forward, and keys of expelled nodes never come back.

use super::*;
use mesh_proto::base::id::TunnelKey;
use mesh_proto::trust::signed_record::{Signature, SignedRecord};

/// What a machine says of itself under a number; the registry trusts that the signature was checked.
fn numbered(number: u8, sequence: u64, mtu: u16) -> NodeFacts {
    let facts = NodeFacts { sequence, mtu, ..facts(number, &[]) };
    let record = SignedRecord { text: facts.text().into(), signature: Signature([0; 64]) };
    NodeFacts { signed: Some(record), ..facts }
}

#[test]
fn a_record_never_goes_back() {
    let mut registry = registry();
    token(&mut registry, 1, "c1");
    ask(&mut registry, 1, request(1, "n1", numbered(1, 7, 1420))).unwrap();
    report(&mut registry, 1, numbered(1, 8, 1400)).unwrap();

    for (what, bad) in [
        ("older", numbered(1, 7, 1420)),
        ("another of the same number", numbered(1, 8, 1300)),
        ("unsigned", NodeFacts { sequence: 9, ..facts(1, &[]) }),
    ] {
        let asked_again = request(1, "n1", bad.clone());
        assert_refused(report(&mut registry, 1, bad), ErrorCode::Record, &["number 8 is known"]);
        assert_refused(ask(&mut registry, 1, asked_again), ErrorCode::Record, &["number 8 is known"]);
        assert_eq!(node(&registry, "n1").facts.mtu, 1400, "{what}");
    }
    let refused = report(&mut registry, 1, numbered(1, 8, 1300)).unwrap_err();
    assert_eq!(refused.record.as_deref(), numbered(1, 8, 1400).signed.as_ref(), "it is told what it forgot");
    assert!(!report(&mut registry, 1, numbered(1, 8, 1400)).unwrap().altered, "the same again is no news");
    assert_eq!(mesh_proto::plan::plan(&registry.world(), &"n1".parse().unwrap()).unwrap().node.sequence, 8);
}

#[test]
fn a_revoked_key_never_comes_back() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &[]).unwrap();
    let mut rotated = facts(1, &[]);
    rotated.previous = std::mem::replace(&mut rotated.lanes, vec![LaneInfo { key: TunnelKey([101; 32]), port: 51820 }]);
    report(&mut registry, 1, rotated).unwrap();
    revoke(&mut registry, "n1").unwrap();

    token(&mut registry, 9, "c1");
    let again = ask(&mut registry, 1, request(9, "n1", facts(1, &[])));
    assert_refused(again, ErrorCode::Revoked, &["expelled", "`n1`"]);
    assert_refused(report(&mut registry, 1, facts(1, &[])), ErrorCode::Revoked, &["`n1`"]);
    // As somebody else, with the tunnel key that it had, or the one before.
    for key in [1, 101] {
        token(&mut registry, 2, "c1");
        let same = facts(key, &[]);
        assert_refused(
            ask(&mut registry, 2, request(2, "n2", same)),
            ErrorCode::Claim,
            &["tunnel key of `n1`", "revoked"],
        );
        registry.apply(Change::TokenRevoke { id: id(2) }, BY, NOW).unwrap();
    }
    join(&mut registry, 3, "n3", "c1", &[]).unwrap();
    let applied = report(&mut registry, 3, facts(101, &[])).unwrap();
    assert!(applied.refused[0].contains("revoked"), "{applied:?}");
    assert_eq!(node(&registry, "n3").facts.lanes[0].key, TunnelKey([3; 32]));
}
