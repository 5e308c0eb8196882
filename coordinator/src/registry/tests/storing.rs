//! What is stored, and what happens when storing fails.

use std::sync::Mutex;

use super::*;
use crate::store::{Table, open_embedded};

/// A store that two registries share, and whose commits can be made to fail.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<(Memory, Fault)>>);

#[derive(Clone, Copy, Default, PartialEq)]
pub(super) enum Fault {
    #[default]
    None,
    /// Nothing is written, and the error says so.
    Disk,
    /// Everything is written, but the acknowledgement is lost.
    Acknowledgement,
}

impl Shared {
    fn set(&self, fault: Fault) {
        self.0.lock().unwrap().1 = fault;
    }
}

impl Store for Shared {
    fn load(&self) -> Result<Records, StoreError> {
        self.0.lock().unwrap().0.load()
    }

    fn scan(&self, table: Table, from: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.0.lock().unwrap().0.scan(table, from, limit)
    }

    fn commit(&mut self, expected: Revision, next: Revision, writes: &[Write]) -> Result<(), StoreError> {
        let mut inner = self.0.lock().unwrap();
        if inner.1 != Fault::Disk {
            inner.0.commit(expected, next, writes)?;
        }
        match inner.1 {
            Fault::None => Ok(()),
            Fault::Disk | Fault::Acknowledgement => {
                let source = "no space left".into();
                Err(StoreError::Io { doing: "write", path: "state".into(), source })
            }
        }
    }

    fn newest(&self) -> Result<Option<Revision>, StoreError> {
        Ok(Some(self.load()?.revision))
    }
}

fn open(store: &Shared) -> Registry {
    Registry::open(Box::new(store.clone()), setup()).unwrap()
}

#[test]
fn a_reopened_registry_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let mut registry = Registry::open(open_embedded(&path).unwrap(), setup()).unwrap();
    file(&mut registry, &format!("{FILE}\nnode plain 9")).unwrap();
    join(&mut registry, 1, "n1", "c1", &["10.8.0.0/24", "10.8.1.0/24"]).unwrap();
    join(&mut registry, 2, "n2", "c2", &["10.8.0.0/24"]).unwrap();
    revoke(&mut registry, "n2").unwrap();
    token(&mut registry, 3, "dc");
    let (world, tokens) =
        (registry.world(), registry.tokens().map(|(id, t)| (id.to_owned(), t.clone())).collect::<Vec<_>>());
    drop(registry);

    let mut registry = Registry::open(open_embedded(&path).unwrap(), setup()).unwrap();
    assert_eq!(registry.world(), world);
    assert_eq!(registry.tokens().map(|(id, t)| (id.to_owned(), t.clone())).collect::<Vec<_>>(), tokens);
    assert_eq!(registry.accepted().map(|a| &*a.file), Some("services.toml"));
    assert!(registry.is_revoked(&identity(2)));
    join(&mut registry, 4, "n4", "c2", &["10.8.0.0/24"]).unwrap();
    assert_eq!(blocks(&registry, "n4"), ["10.8.0.0/24=241.2.3.0/24"], "the revoked node's block rests still");
}

#[test]
fn the_secret_of_a_token_is_not_stored() {
    let store = Shared::default();
    let mut registry = open(&store);
    file(&mut registry, FILE).unwrap();
    token(&mut registry, 7, "dc");
    let records = store.load().unwrap().records;
    let secret = serde_json::to_string(&TokenSecret([7; 32])).unwrap();
    for bytes in records.values() {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(secret.trim_matches('"')) && !text.contains(&"07".repeat(32)), "{text}");
    }
}

#[test]
fn what_could_not_be_stored_did_not_happen() {
    let store = Shared::default();
    let mut registry = open(&store);
    file(&mut registry, FILE).unwrap();
    token(&mut registry, 1, "dc");
    let before = registry.world();
    store.set(Fault::Disk);
    let result = ask(&mut registry, 1, request(1, "a", facts(1, &[])));
    assert_refused(result, "internal", &["no space left", "check the disk"]);
    assert_eq!(registry.world(), before);
    store.set(Fault::None);
    ask(&mut registry, 1, request(1, "a", facts(1, &[]))).unwrap();
}

#[test]
fn a_lost_acknowledgement_costs_nothing_but_a_repetition() {
    let store = Shared::default();
    let mut registry = open(&store);
    file(&mut registry, FILE).unwrap();
    token(&mut registry, 1, "dc");
    store.set(Fault::Acknowledgement);
    assert!(ask(&mut registry, 1, request(1, "a", facts(1, &[]))).is_err());
    store.set(Fault::None);
    let again = ask(&mut registry, 1, request(1, "a", facts(1, &[]))).unwrap();
    assert!(!again.altered);
    assert_eq!(open(&store).world(), registry.world());
}

#[test]
fn who_decided_on_an_old_revision_decides_again_on_the_new_one() {
    let store = Shared::default();
    let mut one = open(&store);
    file(&mut one, FILE).unwrap();
    token(&mut one, 1, "dc");
    let mut two = open(&store);
    ask(&mut one, 1, request(1, "a", facts(1, &[]))).unwrap();
    assert_refused(ask(&mut two, 2, request(1, "b", facts(2, &[]))), "token", &[]);
    assert!(two.world().member(&identity(1)).is_some());
    token(&mut two, 2, "dc");
    ask(&mut one, 2, request(2, "b", facts(2, &[]))).unwrap();
    assert!(one.refresh().is_ok_and(|anything| !anything));
    assert!(two.refresh().is_ok_and(|anything| anything));
    assert_eq!(two.world(), one.world());
}

#[test]
fn only_what_changed_is_written() {
    let store = Shared::default();
    let mut registry = open(&store);
    file(&mut registry, FILE).unwrap();
    join(&mut registry, 1, "n1", "dc", &[]).unwrap();
    let before = registry.state.clone();
    let mut moved = facts(1, &[]);
    moved.endpoints.clear();
    report(&mut registry, 1, moved).unwrap();
    let writes = records::differences(&before, &registry.state).unwrap();
    let places: Vec<_> = writes.iter().map(|write| (write.table, &*write.key)).collect();
    assert_eq!(places, [(Table::Nodes, "n1")]);
}

#[test]
fn a_store_that_is_not_understood_is_an_error_with_advice() {
    let put = |table, key: &str, value: &str| Write { table, key: key.into(), value: Some(value.into()) };
    let accepted = r#"{"file":"services.toml","text":"what is this"}"#;
    let cases = [
        (put(Table::Nodes, "n1", "{"), "nodes/n1 does not read"),
        (put(Table::Vips, "a.b.c", "{}"), "vips/a.b.c does not read"),
        (put(Table::Meta, "format", "2"), "its format is 2"),
        (put(Table::Services, "accepted", accepted), "`what is this` is not understood"),
    ];
    for (write, part) in cases {
        let mut store = Memory::new();
        store.commit(Revision(0), Revision(1), &[write]).unwrap();
        let error = Registry::open(Box::new(store), setup()).err().unwrap().to_string();
        assert!(error.contains(part) && error.contains("run the version"), "{error}");
    }
}

#[test]
fn the_last_64_worlds_are_kept() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "dc", &[]).unwrap();
    for mtu in 1300..1370 {
        report(&mut registry, 1, NodeFacts { mtu, ..facts(1, &[]) }).unwrap();
    }
    let now = registry.world().revision.0;
    assert_eq!(registry.world_at(Revision(now)).unwrap().revision, Revision(now));
    assert_eq!(registry.world_at(Revision(now - 63)).unwrap().revision, Revision(now - 63));
    assert!(registry.world_at(Revision(now - 64)).is_none());
    assert!(registry.world_at(Revision(now + 1)).is_none());
}

#[test]
fn what_is_known_of_a_connection_ends_with_the_membership() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "dc", &[]).unwrap();
    let name = "n1".parse().unwrap();
    registry.live_mut().connected(&name, true, NOW);
    registry.live_mut().reported(&name, Revision(3), vec!["hot".into()], later(5));
    let known = registry.live().node(&name).unwrap();
    assert_eq!((known.connected, known.applied, known.last_seen), (true, Revision(3), later(5)));
    revoke(&mut registry, "n1").unwrap();
    assert_eq!(registry.live().nodes().count(), 0);
}
