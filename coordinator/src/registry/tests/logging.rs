//! What the log of operations says, and that it cannot be altered unnoticed.

use super::storing::Shared;
use super::*;
use crate::registry::log::Ends;
use crate::store::StoreTable;

fn texts(registry: &Registry) -> Vec<String> {
    let all = registry.log(0).unwrap();
    all.iter().map(|l| format!("{} {} {}", l.entry.who, l.entry.kind, l.entry.text)).collect()
}

#[test]
fn every_alteration_has_one_entry_that_says_who_and_what() {
    let mut registry = registry();
    token(&mut registry, 1, "dc");
    let change =
        Change::Join { identity: identity(1), request: request(1, "n1", facts(1, &[])), observed: observed(1) };
    registry.apply(change.clone(), Actor::Stranger(observed(1)), NOW).unwrap();
    registry.apply(change, Actor::Node("n1".parse().unwrap()), NOW).unwrap();
    let mut moved = facts(1, &[]);
    moved.endpoints.clear();
    let change = Change::Facts { identity: identity(1), facts: moved, observed: observed(1) };
    registry.apply(change, Actor::Node("n1".parse().unwrap()), later(1)).unwrap();
    revoke(&mut registry, "n1").unwrap();

    let told = texts(&registry);
    let id = id(1);
    assert_eq!(told.len(), 5, "the second join altered nothing: {told:#?}");
    assert!(told[0].starts_with("operator:0 services took services.toml (sha256 "), "{told:?}");
    assert_eq!(told[1], format!("operator:0 token_create made token {id}: site dc, 1 uses, 900 s"));
    assert!(told[2].starts_with("stranger:192.0.2.1 join node n1 joined from 192.0.2.1 with identity "), "{told:?}");
    assert_eq!(told[3], "node:n1 report node n1 changed its endpoints");
    assert_eq!(told[4], "operator:0 revoke expelled node n1");
    let all = registry.log(0).unwrap();
    assert_eq!(all[2].entry.token, Some(id));
    let expels: Vec<_> = all.iter().map(|logged| logged.entry.expels.clone()).collect();
    assert_eq!(expels, [vec![], vec![], vec![], vec![], vec![identity(1)]]);
    for (place, logged) in (1..).zip(&all) {
        let entry = &logged.entry;
        assert_eq!((entry.seq, entry.from, entry.to), (place, Revision(place - 1), Revision(place)));
    }
    assert_eq!(registry.log(4).unwrap(), all[3..]);
    assert_eq!(registry.log_head(), LogHead { seq: 5, hash: all[4].hash });
}

#[test]
fn an_altered_missing_or_added_entry_is_noticed_at_the_start() {
    let store = Shared::default();
    let mut registry = Registry::open(Box::new(store.clone()), setup()).unwrap();
    file(&mut registry, FILE).unwrap();
    for number in 1..6 {
        token(&mut registry, number, "dc");
    }
    let revision = registry.world().revision;
    let good = store.scan(StoreTable::Log, "", 10).unwrap();
    let key = |n: usize| good[n].0.clone();
    let spoil = |n: usize| {
        let text = String::from_utf8(good[n].1.clone()).unwrap();
        Some(text.replace("operator:0", "operator:1").into_bytes())
    };
    let cases = [
        (key(2), spoil(2), "entry 3"),
        (key(5), spoil(5), "entry 6"),
        (key(3), None, "entry 4: it is missing"),
        (key(5), None, "entry 6: the log ends there, and should end with 6"),
        (key(1), Some(good[2].1.clone()), "entry 2"),
        ("0000000000000007".to_owned(), Some(good[5].1.clone()), "entry 7"),
        (key(0), Some(b"nonsense".to_vec()), "entry 1: it is no entry"),
    ];
    let mut writer = store.clone();
    for (key, value, part) in cases {
        let old = good.iter().find(|(k, _)| *k == key).map(|(_, value)| value.clone());
        let put = |value| [Write { table: StoreTable::Log, key: key.clone(), value }];
        writer.commit(revision, revision, &put(value)).unwrap();
        let error = Registry::open(Box::new(store.clone()), setup()).err().unwrap().to_string();
        assert!(error.contains(part) && error.contains("restore"), "{error}");
        writer.commit(revision, revision, &put(old)).unwrap();
    }
    Registry::open(Box::new(store), setup()).unwrap();
}

#[test]
fn a_compacted_log_verifies_and_is_bounded() {
    let mut store = Memory::new();
    let mut ends = Ends::default();
    for revision in 0..40 {
        let entry = Entry::new(NOW, "coordinator".into(), "test".into(), "x".repeat(3000), None, None);
        let mut writes = vec![ends.append(entry).unwrap()];
        writes.extend(ends.compact(&store, 10).unwrap());
        store.commit(Revision(revision), Revision(revision + 1), &writes).unwrap();
        ends.verify(&store).unwrap();
        let kept = store.scan(StoreTable::Log, "", 100).unwrap();
        assert!(kept.len() <= 11, "{}", kept.len());
        assert!(kept.iter().all(|(_, value)| value.len() < 1300));
    }
    assert_eq!((ends.head.seq, ends.anchor.seq), (40, 30));
}

#[test]
fn strangers_get_a_bounded_number_of_lines() {
    let mut registry = registry();
    let before = registry.world().revision;
    for number in 0..500u64 {
        let change =
            Change::Join { identity: identity(9), request: request(9, "n9", facts(9, &[])), observed: observed(9) };
        registry.apply(change, Actor::Stranger(observed(9)), later(number)).unwrap_err();
    }
    assert_eq!(registry.world().revision.0 - before.0, 10);
    let told = texts(&registry);
    assert_eq!(
        told[1],
        "stranger:192.0.2.9 join_refused refused to let n9 join: the token is unknown: made elsewhere, revoked, or over for a week"
    );
    let error = ask(&mut registry, 9, request(9, "n9", facts(9, &[])));
    assert_refused(error, ErrorCode::Token, &[]);
    let change =
        Change::Join { identity: identity(9), request: request(9, "n9", facts(9, &[])), observed: observed(9) };
    registry.apply(change, Actor::Stranger(observed(9)), later(601)).unwrap_err();
    let last = texts(&registry).pop().unwrap();
    assert!(last.ends_with("491 refusals before it are counted here only"), "{last}");
}

#[test]
fn a_store_from_before_the_log_is_taken_over() {
    let store = Shared::default();
    let mut registry = Registry::open(Box::new(store.clone()), setup()).unwrap();
    file(&mut registry, FILE).unwrap();
    let mut writer = store.clone();
    let forget = [(StoreTable::Log, "0000000000000001"), (StoreTable::Meta, "log")];
    let forget = forget.map(|(table, key)| Write { table, key: key.into(), value: None });
    writer.commit(Revision(1), Revision(1), &forget).unwrap();
    let mut registry = Registry::open(Box::new(store.clone()), setup()).unwrap();
    token(&mut registry, 1, "dc");
    assert_eq!(registry.log_head().seq, 1);
    Registry::open(Box::new(store), setup()).unwrap();
}

#[test]
fn a_member_gets_a_bounded_number_of_lines_an_hour() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &[]).unwrap();
    join(&mut registry, 2, "n2", "c1", &[]).unwrap();
    let before = texts(&registry).len();
    let report = |registry: &mut Registry, number: u8, mtu: u16, at: u64| {
        assert!(report_at(registry, number, NodeFacts { mtu, ..facts(number, &[]) }, later(at)).unwrap().altered);
    };
    (0..100).for_each(|n| report(&mut registry, 1, 1000 + n, u64::from(n)));
    report(&mut registry, 2, 1000, 100);
    let told = texts(&registry);
    assert_eq!(told.len(), before + 11, "{told:#?}");
    report(&mut registry, 1, 1300, 3600);
    let told = texts(&registry);
    assert!(
        told.last().unwrap().ends_with("changed its facts; 90 changes before it are counted here only"),
        "{told:?}"
    );
}
