//! Lock mode: whoever joins waits until a key signs that the coordinator does not hold.

use super::*;
use mesh_host::identity::{Identity, verify};
use mesh_proto::base::id::NodeName;
use mesh_proto::plan::plan;
use mesh_proto::trust::network_lock::LockChange;
use mesh_proto::trust::signed_record::{Signature, SignedRecord};

/// All may call all.
const OPEN: &str = "site dc\nnode static 9";

fn name(word: &str) -> NodeName {
    word.parse().unwrap()
}

/// A machine joins with a record; whether its signature is good was checked before.
fn enter(registry: &mut Registry, number: u8, name: &str) {
    token(registry, number, "dc");
    let facts = NodeFacts { sequence: 1, ..facts(number, &[]) };
    let record = SignedRecord { text: facts.text().into(), signature: Signature([0; 64]) };
    ask(registry, number, request(number, name, NodeFacts { signed: Some(record), ..facts })).unwrap();
}

fn signature(key: &Identity, registry: &Registry, node: &str) -> Signature {
    let world = registry.world();
    key.sign(&world.nodes[&name(node)].member(&name(node)).unwrap().message(&world.mesh.name))
}

fn signatures(key: &Identity, registry: &Registry) -> Signatures {
    let world = registry.world();
    let nodes = world.nodes.iter().filter(|(_, record)| !world.waits(record));
    nodes.map(|(name, _)| (name.clone(), signature(key, registry, name.as_str()))).collect()
}

fn step(registry: &mut Registry, step: LockStep) -> Result<Applied, Refused> {
    registry.apply(Change::Lock(step), BY, NOW)
}

fn begin(registry: &mut Registry, key: &Identity) -> Result<Applied, Refused> {
    let signatures = signatures(key, registry);
    step(registry, LockStep::Begin { key: key.public(), signatures })
}

fn end(key: &Identity, registry: &Registry, to: Option<&Identity>) -> LockStep {
    let (from, public) = (key.public(), to.map(Identity::public));
    let signature = key.sign(&LockChange::message(&registry.world().mesh.name, &from, public.as_ref()));
    let signatures = to.map(|to| signatures(to, registry)).unwrap_or_default();
    LockStep::Change { change: LockChange { from, to: public, signature }, signatures }
}

fn waiting(registry: &Registry) -> Vec<String> {
    let world = registry.world();
    world.nodes.iter().filter(|(_, record)| world.waits(record)).map(|(name, _)| name.to_string()).collect()
}

fn last(registry: &Registry) -> Entry {
    registry.log(registry.log_head().seq).unwrap().remove(0).entry
}

#[test]
fn a_lock_begins_with_all_who_are_there_and_whoever_joins_later_waits() {
    let mut registry = registry();
    file(&mut registry, OPEN).unwrap();
    enter(&mut registry, 1, "n1");
    let key = Identity::generate().unwrap();

    let some = signatures(&key, &registry).into_iter().filter(|(node, _)| *node == name("n1")).collect();
    let some = step(&mut registry, LockStep::Begin { key: key.public(), signatures: some });
    assert_refused(some, ErrorCode::Busy, &["static"]);
    let other = signatures(&Identity::generate().unwrap(), &registry);
    assert_refused(
        step(&mut registry, LockStep::Begin { key: key.public(), signatures: other }),
        ErrorCode::Lock,
        &["n1"],
    );
    begin(&mut registry, &key).unwrap();
    assert_eq!(last(&registry).kind, "lock_init");
    assert_refused(begin(&mut registry, &key), ErrorCode::Lock, &["already"]);

    enter(&mut registry, 2, "n2");
    assert_eq!(waiting(&registry), ["n2"]);
    let own = plan(&registry.world(), &name("n2")).unwrap();
    assert!(own.warnings[0].contains("meshd lock sign n2"), "{:?}", own.warnings);
    assert_eq!(own.mesh.lock.and_then(|lock| lock.key), Some(key.public()));

    let stranger = signature(&Identity::generate().unwrap(), &registry, "n2");
    let bad = [stranger, signature(&key, &registry, "n1")];
    for signature in bad {
        let refused = step(&mut registry, LockStep::Admit { node: name("n2"), signature });
        assert_refused(refused, ErrorCode::Lock, &["n2"]);
    }
    let good = signature(&key, &registry, "n2");
    let applied = step(&mut registry, LockStep::Admit { node: name("n2"), signature: good }).unwrap();
    assert_eq!((applied.node, waiting(&registry)), (Some(name("n2")), Vec::new()));
    assert_eq!((last(&registry).kind.as_str(), last(&registry).node), ("lock_sign", Some(name("n2"))));
}

#[test]
fn who_waits_is_in_nobodys_map_and_backs_nothing_until_the_signature_comes() {
    let mut registry = registry();
    file(&mut registry, "site dc\nservice cart n2").unwrap();
    enter(&mut registry, 1, "n1");
    let key = Identity::generate().unwrap();
    begin(&mut registry, &key).unwrap();
    enter(&mut registry, 2, "n2");
    let chart = |registry: &Registry| mesh_proto::plan::PlanIndex::new(registry.world());
    let backends = |registry: &Registry| chart(registry).all_services().map(|(_, s)| s.backends.len()).sum::<usize>();
    assert_eq!(backends(&registry), 0);
    assert!(mesh_proto::plan::warnings(&registry.world())[0].contains("meshd lock sign n2"));

    let signature = signature(&key, &registry, "n2");
    step(&mut registry, LockStep::Admit { node: name("n2"), signature }).unwrap();
    assert_eq!(backends(&registry), 1);
    // What it says of itself later needs no other signature; who joins anew under its name does.
    report(&mut registry, 2, {
        let facts = NodeFacts { sequence: 2, mtu: 1300, ..facts(2, &[]) };
        let record = SignedRecord { text: facts.text().into(), signature: Signature([0; 64]) };
        NodeFacts { signed: Some(record), ..facts }
    })
    .unwrap();
    assert_eq!(waiting(&registry), Vec::<String>::new());
    revoke(&mut registry, "n2").unwrap();
    registry.apply(Change::TokenCreate(TokenSpec { name: Some(name("n2")), ..spec(3, "dc") }), BY, NOW).unwrap();
    ask(&mut registry, 3, request(3, "n2", facts(3, &[]))).unwrap();
    assert_eq!(waiting(&registry), ["n2"]);
}

#[test]
fn only_the_locks_key_replaces_or_ends_it_and_none_comes_back() {
    let mut registry = registry();
    file(&mut registry, OPEN).unwrap();
    enter(&mut registry, 1, "n1");
    let [key, next, thief] = [(); 3].map(|()| Identity::generate().unwrap());
    let nothing = end(&key, &registry, None);
    assert_refused(step(&mut registry, nothing), ErrorCode::Lock, &["not locked"]);
    begin(&mut registry, &key).unwrap();

    let signature = thief.sign(&LockChange::message(&registry.world().mesh.name, &key.public(), None));
    let change = LockChange { from: key.public(), to: None, signature };
    let forged = LockStep::Change { change, signatures: Signatures::new() };
    assert_refused(step(&mut registry, forged), ErrorCode::Lock, &["did not sign"]);
    let other = end(&thief, &registry, Some(&thief));
    assert_refused(step(&mut registry, other), ErrorCode::Lock, &["is another"]);

    let replace = end(&key, &registry, Some(&next));
    step(&mut registry, replace).unwrap();
    let back = end(&next, &registry, Some(&key));
    assert_refused(step(&mut registry, back), ErrorCode::Lock, &["before"]);
    let disable = end(&next, &registry, None);
    step(&mut registry, disable).unwrap();
    assert_eq!(last(&registry).kind, "lock_disable");
    assert_refused(begin(&mut registry, &key), ErrorCode::Lock, &["before"]);

    // A node that was away all the time follows by what the map tells.
    let lock = registry.world().mesh.lock.clone().unwrap();
    let mesh = registry.world().mesh.name.clone();
    assert_eq!(mesh_proto::trust::network_lock::lock_after(Some(key.public()), Some(&lock), &mesh, verify), Ok(None));
}

#[test]
fn a_lock_survives_a_restart_and_a_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let open = || Registry::open(store::open_embedded(&path).unwrap(), setup()).unwrap();
    let mut registry = open();
    file(&mut registry, OPEN).unwrap();
    enter(&mut registry, 1, "n1");
    let key = Identity::generate().unwrap();
    begin(&mut registry, &key).unwrap();
    enter(&mut registry, 2, "n2");
    let before = registry.world().mesh.lock.clone();
    drop(registry);

    let mut registry = open();
    assert_eq!((registry.world().mesh.lock.clone(), waiting(&registry)), (before.clone(), vec!["n2".into()]));
    file(&mut registry, "site dc\nnode static 9\nnode other 10").unwrap();
    assert_eq!((registry.world().mesh.lock.clone(), waiting(&registry)), (before, vec!["n2".into(), "other".into()]));
    file(&mut registry, "site dc\nnode static 11").unwrap();
    assert_eq!(waiting(&registry), ["n2", "static"], "another key is somebody else");
}
