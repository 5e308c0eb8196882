//! What is stored, and what happens when storing fails.

use std::sync::Mutex;

use super::*;
use crate::store::{StoreTable, open_embedded};

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

    fn scan(&self, table: StoreTable, from: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.0.lock().unwrap().0.scan(table, from, limit)
    }

    fn commit(&mut self, expected: Revision, next: Revision, writes: &[Write]) -> Result<(), StoreError> {
        let mut inner = self.0.lock().unwrap();
        if inner.1 != Fault::Disk {
            inner.0.commit(expected, next, writes)?;
        }
        match inner.1 {
            Fault::None => Ok(()),
            Fault::Disk => {
                let source = "it cannot be synced".into();
                Err(StoreError::Io { doing: "write", path: "state".into(), source })
            }
            Fault::Acknowledgement => Err(StoreError::Unknown { detail: "no answer".into() }),
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
    assert_refused(result, ErrorCode::Internal, &["it cannot be synced", "check the disk"]);
    assert_eq!(registry.world(), before);
    assert!(registry.failure().is_some_and(|failure| failure.contains("it cannot be synced")));
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_until_a_new_start() {
    let store = Shared::default();
    let mut registry = open(&store);
    file(&mut registry, FILE).unwrap();
    token(&mut registry, 1, "dc");
    store.set(Fault::Disk);
    ask(&mut registry, 1, request(1, "a", facts(1, &[]))).unwrap_err();
    store.set(Fault::None);
    let before = store.load().unwrap();
    let refused = ask(&mut registry, 1, request(1, "a", facts(1, &[])));
    assert_refused(refused, ErrorCode::Internal, &["it cannot be synced"]);
    assert_eq!(store.load().unwrap(), before, "the store is not touched any more");
    ask(&mut open(&store), 1, request(1, "a", facts(1, &[]))).unwrap();
}

#[test]
fn changes_in_one_group_are_decided_on_each_other_and_stored_at_once() {
    let store = Shared::default();
    let mut registry = open(&store);
    file(&mut registry, FILE).unwrap();
    token(&mut registry, 1, "dc");
    let join = |number: u8| {
        let request = request(1, &format!("n{number}"), facts(number, &[]));
        (Change::Join { identity: identity(number), request, observed: observed(number) }, BY)
    };
    let more = (Change::TokenCreate(spec(2, "dc")), BY);
    let results = registry.apply_all(vec![join(1), join(2), more], NOW);
    assert!(results[0].as_ref().is_ok_and(|applied| applied.altered), "{results:?}");
    assert_refused(results[1].clone(), ErrorCode::Token, &[]);
    assert!(results[2].as_ref().is_ok_and(|applied| applied.altered), "{results:?}");
    let (first, third) = (results[0].as_ref().unwrap().revision, results[2].as_ref().unwrap().revision);
    assert_eq!((first, third), (Revision(3), Revision(4)));
    let told: Vec<_> = registry.log(3).unwrap().into_iter().map(|l| (l.entry.kind, l.entry.from, l.entry.to)).collect();
    let entry = |kind: &str, from| (kind.to_owned(), Revision(from), Revision(from + 1));
    assert_eq!(told, [entry("join", 2), entry("token_create", 3), entry("join_refused", 4)]);
    let again = open(&store);
    assert_eq!(again.world(), registry.world());
    assert_eq!(again.log_head(), registry.log_head());
}

#[test]
fn a_group_that_cannot_be_stored_is_refused_whole() {
    let store = Shared::default();
    let mut registry = open(&store);
    file(&mut registry, FILE).unwrap();
    let before = store.load().unwrap();
    store.set(Fault::Disk);
    let changes = (1..4).map(|number| (Change::TokenCreate(spec(number, "dc")), BY)).collect();
    let results = registry.apply_all(changes, NOW);
    assert_eq!(results.len(), 3);
    assert!(
        results.iter().all(|r| r.as_ref().is_err_and(|refused| refused.code == ErrorCode::Internal)),
        "{results:?}"
    );
    assert_eq!(store.load().unwrap(), before);
    assert_eq!(registry.tokens().count(), 0);
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
    assert_refused(ask(&mut two, 2, request(1, "b", facts(2, &[]))), ErrorCode::Token, &[]);
    assert!(two.world().member(&identity(1)).is_some());
    token(&mut two, 2, "dc");
    ask(&mut one, 2, request(2, "b", facts(2, &[]))).unwrap();
    assert!(one.refresh().is_ok_and(|anything| !anything));
    assert!(two.refresh().is_ok_and(|anything| anything));
    assert_eq!(two.world(), one.world());
}

#[test]
fn a_store_that_lost_everything_while_it_is_used_is_not_begun_anew() {
    let store = Shared::default();
    let mut registry = open(&store);
    file(&mut registry, FILE).unwrap();
    token(&mut registry, 1, "dc");
    let before = registry.world();
    store.0.lock().unwrap().0 = Memory::new();

    registry.apply(Change::TokenCreate(spec(2, "dc")), Actor::Operator { uid: 0 }, NOW).unwrap_err();
    let lost = registry.refresh().unwrap_err();

    assert!(lost.to_string().contains("went back") && lost.to_string().contains("mesh-coordinator restore"), "{lost}");
    assert_eq!(store.load().unwrap(), Records::default());
    assert_eq!(registry.world(), before);
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
    let writes = codec::differences(&before, &registry.state).unwrap();
    let places: Vec<_> = writes.iter().map(|write| (write.table, &*write.key)).collect();
    assert_eq!(places, [(StoreTable::Nodes, "n1")]);
}

#[test]
fn a_store_that_is_not_understood_is_an_error_with_advice() {
    let put = |table, key: &str, value: &str| Write { table, key: key.into(), value: Some(value.into()) };
    let accepted = r#"{"file":"services.toml","text":"what is this"}"#;
    let cases = [
        (put(StoreTable::Nodes, "n1", "{"), "nodes/n1 does not read"),
        (put(StoreTable::Vips, "a.b.c", "{}"), "vips/a.b.c does not read"),
        (put(StoreTable::Meta, "format", "2"), "its format is 2"),
        (put(StoreTable::Services, "accepted", accepted), "`what is this` is not understood"),
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
    let known = registry.live().nodes().find(|(node, _)| **node == name).unwrap().1;
    assert_eq!((known.connected, known.applied, known.last_seen), (true, Revision(3), later(5)));
    revoke(&mut registry, "n1").unwrap();
    assert_eq!(registry.live().nodes().count(), 0);
}

#[test]
fn members_keep_the_name_of_their_mesh_whatever_files_say() {
    let store = Shared::default();
    let mut registry = open(&store);
    let name = |registry: &Registry| registry.world().mesh.name.to_string();
    file(&mut registry, &format!("name shop\n{FILE}")).unwrap();
    file(&mut registry, FILE).unwrap();
    assert_eq!(name(&registry), "boutique", "without members it may change");
    join(&mut registry, 1, "n1", "c1", &[]).unwrap();

    let renamed = file(&mut registry, &format!("name shop\n{FILE}"));
    assert_refused(renamed, ErrorCode::Services, &["boutique", "cannot become shop", "revoke all nodes first"]);
    drop(registry);
    // The file `name` of the state directory got lost.
    let lost = || RegistrySetup { name: "mesh".parse().unwrap(), ..setup() };
    let mut registry = Registry::open(Box::new(store.clone()), lost()).unwrap();
    assert_eq!(name(&registry), "boutique");
    file(&mut registry, &format!("{FILE}\nsite new")).unwrap();
    assert_eq!(name(&registry), "boutique");
    file(&mut registry, &format!("name boutique\n{FILE}")).unwrap();

    revoke(&mut registry, "n1").unwrap();
    file(&mut registry, &format!("name shop\n{FILE}")).unwrap();
    file(&mut registry, FILE).unwrap();
    drop(registry);
    let registry = Registry::open(Box::new(store), lost()).unwrap();
    assert_eq!(name(&registry), "mesh");
}
