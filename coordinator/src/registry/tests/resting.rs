//! What rests is stored record by record: a commit writes what changed.

use mesh_proto::world::allocate::Freed;

use super::storing::Shared;
use super::*;
use crate::store::StoreTable;

/// A services.toml of that many services, from one on.
fn many(from: usize, count: usize) -> String {
    (from..from + count).map(|number| format!("service s{number}")).collect::<Vec<_>>().join("\n")
}

fn records(store: &Shared, table: StoreTable) -> Vec<(String, Vec<u8>)> {
    store.load().unwrap().records.into_iter().filter(|((t, _), _)| *t == table).map(|((_, k), v)| (k, v)).collect()
}

fn pool(store: &Shared) -> serde_json::Value {
    let found = records(store, StoreTable::Meta).into_iter().find(|(key, _)| key == "pool").unwrap();
    serde_json::from_slice(&found.1).unwrap()
}

#[test]
fn an_edit_under_new_names_writes_the_names_and_not_all_that_rests() {
    let store = Shared::default();
    let mut registry = Registry::open(Box::new(store.clone()), setup()).unwrap();
    file(&mut registry, &many(0, 2000)).unwrap();
    file(&mut registry, &many(2000, 2000)).unwrap();
    assert_eq!(records(&store, StoreTable::Freed).len(), 2000);

    for edit in 1..=3 {
        let before = store.load().unwrap().records;
        file(&mut registry, &many(2000 + edit, 2000)).unwrap();
        let after = store.load().unwrap().records;
        let altered = after.iter().filter(|(place, value)| before.get(place) != Some(value));
        let altered: Vec<_> = altered.filter(|((table, _), _)| *table != StoreTable::Services).collect();
        let bytes: usize = altered.iter().map(|(_, value)| value.len()).sum();
        // A VIP, what rests of the other, the pool, and the ends of the log.
        assert!(altered.len() <= 4 && bytes < 1500, "{bytes} bytes: {:?}", altered.iter().map(|(p, _)| p));
    }
    assert_eq!(records(&store, StoreTable::Freed).len(), 2003);
    file_at(&mut registry, &many(2004, 2000), later(600)).unwrap();
    assert_eq!(records(&store, StoreTable::Freed).len(), 1, "what has rested is gone from the store too");
    assert_eq!(Registry::open(Box::new(store), setup()).unwrap().world(), registry.world());
}

#[test]
fn what_an_earlier_version_kept_as_one_list_rests_on_and_is_written_apart_with_the_next_change() {
    let store = Shared::default();
    let mut registry = Registry::open(Box::new(store.clone()), setup()).unwrap();
    file(&mut registry, FILE).unwrap();
    join(&mut registry, 1, "n1", "c1", &["10.8.0.0/24"]).unwrap();
    join(&mut registry, 2, "n2", "c1", &["10.8.1.0/24"]).unwrap();
    revoke(&mut registry, "n2").unwrap();
    let apart = records(&store, StoreTable::Freed);
    assert_eq!(apart.len(), 2, "its address and its block");
    let mut whole = pool(&store);
    assert_eq!(whole["freed"], serde_json::json!([]), "an earlier version reads it");
    let list: Vec<Freed> = apart.iter().map(|(_, value)| serde_json::from_slice(value).unwrap()).collect();
    whole["freed"] = serde_json::to_value(list).unwrap();
    let mut writes: Vec<_> =
        apart.iter().map(|(key, _)| Write { table: StoreTable::Freed, key: key.clone(), value: None }).collect();
    writes.push(Write { table: StoreTable::Meta, key: "pool".into(), value: Some(whole.to_string().into_bytes()) });
    let revision = registry.world().revision;
    store.clone().commit(revision, revision, &writes).unwrap();

    let mut registry = Registry::open(Box::new(store.clone()), setup()).unwrap();
    assert_eq!(registry.world().pool.freed().len(), 2);
    assert!(!file(&mut registry, FILE).unwrap().altered, "that alone is no change");
    join(&mut registry, 3, "n3", "c1", &["10.8.1.0/24"]).unwrap();

    assert_eq!(blocks(&registry, "n3"), ["10.8.1.0/24=241.2.2.0/24"], "n2's 241.2.1.0/24 rests");
    assert_eq!(records(&store, StoreTable::Freed), apart);
    assert_eq!(pool(&store)["freed"], serde_json::json!([]));
    assert_eq!(Registry::open(Box::new(store), setup()).unwrap().world(), registry.world());
}
