//! A member goes on with another identity, and its former ones are worth nothing.

use mesh_host::identity::{Identity, verify};
use mesh_proto::base::id::NodeId;
use mesh_proto::plan::plan;
use mesh_proto::trust::identity_rotation::{MAX_LINEAGE, Succession, leads};
use mesh_proto::trust::network_lock::{LockedMember, Subject};
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::Renewal;

use super::*;
use crate::registry::identity_rotation::aged;

fn key() -> Identity {
    Identity::generate().unwrap()
}

fn name() -> NodeName {
    "n1".parse().unwrap()
}

/// What the machine says of itself under a number, signed.
fn said(by: &Identity, sequence: u64) -> NodeFacts {
    let facts = NodeFacts { sequence, ..facts(1, &["10.8.1.0/24"]) };
    let text = facts.text();
    let signature = by.sign(&SignedRecord::message(&text));
    NodeFacts { signed: Some(SignedRecord { text: text.into(), signature }), ..facts }
}

fn succession(node: NodeId, from: &Identity, to: &Identity) -> Succession {
    let (a, b) = (from.public(), to.public());
    Succession {
        from: a,
        to: b,
        signature: from.sign(&Succession::message(node, &a, &b)),
        accepted: to.sign(&Succession::acceptance(node, &a, &b)),
    }
}

/// A registry in which n1 has this identity.
fn with_member(key: &Identity) -> Registry {
    let mut registry = registry();
    token(&mut registry, 1, "c1");
    enter(&mut registry, key, 1, "n1").unwrap();
    registry
}

fn enter(registry: &mut Registry, key: &Identity, token: u8, name: &str) -> Result<Applied, Refused> {
    let request = request(token, name, said(key, 1));
    registry.apply(Change::Join { identity: key.public(), request, observed: observed(1) }, BY, NOW)
}

fn ask_to_renew(
    registry: &mut Registry,
    by: &Identity,
    succession: Succession,
    facts: NodeFacts,
) -> Result<Applied, Refused> {
    let change = Change::Renew { identity: by.public(), renewal: Renewal { succession, facts }, observed: observed(1) };
    registry.apply(change, BY, NOW)
}

fn renew(registry: &mut Registry, from: &Identity, to: &Identity, sequence: u64) -> Result<Applied, Refused> {
    let id = registry.world().nodes.get(&name()).map_or(NodeId(0), |node| node.id);
    ask_to_renew(registry, from, succession(id, from, to), said(to, sequence))
}

fn report_by(registry: &mut Registry, by: &Identity, sequence: u64) -> Result<Applied, Refused> {
    let change = Change::Facts { identity: by.public(), facts: said(by, sequence), observed: observed(1) };
    registry.apply(change, BY, NOW)
}

#[test]
fn a_member_goes_on_with_another_identity_and_keeps_all_that_it_has() {
    let [a, b] = [key(), key()];
    let mut registry = with_member(&a);
    let before = node(&registry, "n1");

    let applied = renew(&mut registry, &a, &b, 2).unwrap();

    assert_eq!((applied.node, applied.altered, applied.refused), (Some(name()), true, Vec::new()));
    let after = node(&registry, "n1");
    assert_eq!((after.id, after.address, &after.blocks), (before.id, before.address, &before.blocks));
    assert!(leads(&after.lineage, after.id, &a.public(), &b.public(), verify));
    assert!(after.facts.signed.as_ref().unwrap().is_by(&b.public(), verify));
    assert_eq!((registry.world().member(&a.public()), registry.world().member(&b.public())), (None, Some(&name())));
    assert_eq!(registry.successor(&a.public()), Some(&name()));
    assert_eq!(plan(&registry.world(), &name()).unwrap().node.sequence, 2);
    let entry = registry.log(registry.log_head().seq).unwrap().remove(0).entry;
    assert_eq!((entry.kind.as_str(), entry.identity, entry.node), ("identity", Some(b.public()), Some(name())));
    assert_eq!(entry.replaces, Some(a.public()));
    let keys = [a.public(), b.public()].map(|key| key.to_string());
    assert!(keys.iter().all(|key| entry.text.contains(key)), "{}", entry.text);
    report_by(&mut registry, &b, 3).unwrap();
}

#[test]
fn the_same_change_asked_again_is_answered_and_alters_nothing() {
    let [a, b, c] = [key(), key(), key()];
    let mut registry = with_member(&a);
    renew(&mut registry, &a, &b, 2).unwrap();
    let (world, head) = (registry.world(), registry.log_head());

    // Its numbers went on meanwhile, or began anew after a crash.
    for sequence in [2, 1, 7] {
        let again = renew(&mut registry, &a, &b, sequence).unwrap();
        assert_eq!((again.node, again.altered), (Some(name()), false));
    }
    assert_eq!((registry.world(), registry.log_head()), (world, head));

    // Not for ever: the next change ends it.
    renew(&mut registry, &b, &c, 3).unwrap();
    assert_refused(renew(&mut registry, &a, &b, 8), ErrorCode::Superseded, &["`n1`", "copy"]);
}

#[test]
fn a_superseded_key_cannot_join_report_or_name_another_next_one() {
    let [a, b, c] = [key(), key(), key()];
    let mut registry = with_member(&a);
    renew(&mut registry, &a, &b, 2).unwrap();

    token(&mut registry, 2, "c1");
    assert_refused(enter(&mut registry, &a, 2, "n2"), ErrorCode::Superseded, &["`n1`", "copy of its state directory"]);
    assert_refused(enter(&mut registry, &a, 1, "n1"), ErrorCode::Token, &[]);
    assert_refused(report_by(&mut registry, &a, 9), ErrorCode::Superseded, &["`n1`"]);
    assert_refused(renew(&mut registry, &a, &c, 9), ErrorCode::Superseded, &["`n1`"]);
    // Nor does the present key go back to it.
    assert_refused(renew(&mut registry, &b, &a, 9), ErrorCode::Identity, &["known already"]);
    assert_eq!(node(&registry, "n1").identity, Some(b.public()));
}

#[test]
fn what_not_both_keys_signed_or_is_not_the_nodes_own_is_refused() {
    let [a, b, c, other, coordinator] = [(); 5].map(|()| key());
    let mut registry = with_member(&a);
    token(&mut registry, 2, "dc");
    let facts = NodeFacts { lanes: facts(2, &[]).lanes, pods: Vec::new(), ..said(&other, 1) };
    let request = request(2, "n2", facts);
    registry.apply(Change::Join { identity: other.public(), request, observed: observed(2) }, BY, NOW).unwrap();
    let entered = Change::Coordinator {
        key: coordinator.public(),
        addresses: Vec::new(),
        software: String::new(),
        is_alone: true,
    };
    registry.apply(entered, BY, NOW).unwrap();
    let before = registry.world();
    let id = node(&registry, "n1").id;
    let good = succession(id, &a, &b);

    let swapped = Succession { signature: good.accepted, accepted: good.signature, ..good };
    let of_b = succession(id, &b, &c);
    for (what, bad) in [
        ("a bent signature", Succession { signature: swapped.signature, ..good }),
        ("not accepted", Succession { accepted: swapped.accepted, ..good }),
        ("for another node", succession(NodeId(id.0 + 1), &a, &b)),
        ("another channel's", of_b),
        ("to itself", succession(id, &a, &a)),
        ("to another member", succession(id, &a, &other)),
        ("to a coordinator", succession(id, &a, &coordinator)),
    ] {
        let refused = ask_to_renew(&mut registry, &a, bad, said(&b, 2));
        assert_refused(refused, ErrorCode::Identity, &[]);
        assert_eq!(registry.world().nodes, before.nodes, "{what}");
    }
    // By another member, and by nobody.
    assert_refused(ask_to_renew(&mut registry, &other, good, said(&b, 2)), ErrorCode::Identity, &[]);
    assert_refused(ask_to_renew(&mut registry, &c, good, said(&b, 2)), ErrorCode::UnknownNode, &[]);
    // A record of the same number, and one that another's tunnel keys spoil.
    assert_refused(ask_to_renew(&mut registry, &a, good, said(&b, 1)), ErrorCode::Record, &[]);
    let foreign = NodeFacts { lanes: super::facts(2, &[]).lanes, ..said(&b, 2) };
    assert_refused(ask_to_renew(&mut registry, &a, good, foreign), ErrorCode::Identity, &["tunnel key of node `n2`"]);
    ask_to_renew(&mut registry, &a, good, said(&b, 2)).unwrap();
    // A revoked key.
    revoke(&mut registry, "n2").unwrap();
    assert_refused(renew(&mut registry, &b, &other, 3), ErrorCode::Identity, &["known already"]);
}

#[test]
fn who_changes_its_identity_again_and_again_has_to_wait() {
    let keys: Vec<_> = (0..12).map(|_| key()).collect();
    let mut registry = with_member(&keys[0]);
    for (n, pair) in (2..).zip(keys.windows(2).take(10)) {
        renew(&mut registry, &pair[0], &pair[1], n).unwrap();
    }
    assert_refused(renew(&mut registry, &keys[10], &keys[11], 50), ErrorCode::Identity, &["10 times", "tomorrow"]);
    let id = node(&registry, "n1").id;
    let renewal = Renewal { succession: succession(id, &keys[10], &keys[11]), facts: said(&keys[11], 50) };
    let change = Change::Renew { identity: keys[10].public(), renewal, observed: observed(1) };
    registry.apply(change, BY, later(86_400)).unwrap();
}

#[test]
fn a_revoked_node_is_out_with_all_its_keys_and_its_name_takes_a_token_for_it() {
    let [a, b] = [key(), key()];
    let mut registry = with_member(&a);
    renew(&mut registry, &a, &b, 2).unwrap();
    let last = |registry: &Registry| registry.log(registry.log_head().seq).unwrap().remove(0).entry;
    assert_eq!((last(&registry).expels, registry.expelled().roll().expelled), (Vec::new(), BTreeSet::new()));
    revoke(&mut registry, "n1").unwrap();
    let both = BTreeSet::from([a.public(), b.public()]);
    assert_eq!(last(&registry).expels.into_iter().collect::<BTreeSet<_>>(), both);
    assert_eq!(registry.expelled().roll().expelled, both);

    token(&mut registry, 2, "c1");
    for gone in [&a, &b] {
        // The word upon which a machine that may come back makes new keys.
        assert_refused(enter(&mut registry, gone, 2, "n9"), ErrorCode::Revoked, &["expelled", "`n1`"]);
        assert_refused(report_by(&mut registry, gone, 9), ErrorCode::Revoked, &[]);
    }
    assert_refused(renew(&mut registry, &a, &b, 9), ErrorCode::Revoked, &[]);
    let by = |key: &Identity, facts: NodeFacts| Change::Join {
        identity: key.public(),
        request: request(2, "n1", NodeFacts { lanes: super::facts(5, &[]).lanes, ..facts }),
        observed: observed(1),
    };
    let fresh = key();
    assert_refused(registry.apply(by(&fresh, said(&fresh, 1)), BY, NOW), ErrorCode::Name, &["was revoked"]);
}

#[test]
fn a_replaced_key_keeps_no_name_from_others() {
    let [a, b] = [key(), key()];
    let mut registry = registry();
    registry.apply(Change::TokenCreate(TokenSpec { ephemeral: true, ..spec(1, "c1") }), BY, NOW).unwrap();
    enter(&mut registry, &a, 1, "n1").unwrap();
    renew(&mut registry, &a, &b, 2).unwrap();
    let mut sightings = Sightings::default();
    for second in (0..1200).step_by(20) {
        let seen = sightings.look(&registry.world(), later(second));
        let tend = Change::Tend { connected: BTreeSet::new(), seen };
        registry.apply(tend, Actor::Coordinator, later(second)).unwrap();
    }
    assert!(registry.world().nodes.is_empty());

    let request = request(2, "n1", facts(7, &[]));
    registry.apply(Change::TokenCreate(spec(2, "c1")), BY, later(1200)).unwrap();
    let change = Change::Join { identity: identity(7), request, observed: observed(1) };
    registry.apply(change, BY, later(1200)).unwrap();
    // It went on with a key that is no member's: its machine makes new ones.
    assert_refused(report_by(&mut registry, &a, 9), ErrorCode::Revoked, &[]);
    assert_refused(report_by(&mut registry, &b, 9), ErrorCode::UnknownNode, &[]);
}

#[test]
fn a_change_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let open = || Registry::open(store::open_embedded(&path).unwrap(), setup()).unwrap();
    let [a, b] = [key(), key()];
    let mut registry = open();
    file(&mut registry, FILE).unwrap();
    token(&mut registry, 1, "c1");
    enter(&mut registry, &a, 1, "n1").unwrap();
    renew(&mut registry, &a, &b, 2).unwrap();
    let before = node(&registry, "n1");
    drop(registry);

    let mut registry = open();
    assert_eq!(node(&registry, "n1"), before);
    assert!(!renew(&mut registry, &a, &b, 2).unwrap().altered);
    assert_refused(report_by(&mut registry, &a, 9), ErrorCode::Superseded, &[]);
}

#[test]
fn a_restore_follows_the_changes_since_the_backup_and_expels_nobody_for_them() {
    let [a, b, c] = [key(), key(), key()];
    for is_revoked in [false, true] {
        let mut registry = with_member(&a);
        let (revision, writes) = registry.snapshot().unwrap();
        renew(&mut registry, &a, &b, 2).unwrap();
        renew(&mut registry, &b, &c, 3).unwrap();
        if is_revoked {
            revoke(&mut registry, "n1").unwrap();
        }
        let mut store = Memory::new();
        store.commit(Revision(0), revision, &writes).unwrap();
        let mut restored = Registry::open(Box::new(store), setup()).unwrap();
        let since = Some(registry.withdrawn());
        restored.apply(Change::Restored { epoch: 2, source: "a backup".into(), since }, BY, NOW).unwrap();

        assert_eq!(restored.world().nodes.len(), usize::from(!is_revoked));
        if is_revoked {
            assert_refused(report_by(&mut restored, &c, 9), ErrorCode::Revoked, &[]);
            continue;
        }
        let after = node(&restored, "n1");
        assert_eq!((after.identity, after.lineage.len()), (Some(c.public()), 2));
        assert!(leads(&after.lineage, after.id, &a.public(), &c.public(), verify));
        assert_refused(report_by(&mut restored, &a, 9), ErrorCode::Superseded, &[]);
        report_by(&mut restored, &c, 9).unwrap();
    }
}

#[test]
fn the_locks_signature_reaches_as_far_as_the_lineage_and_is_renewed_by_then() {
    let (lock, mut present) = (key(), key());
    let mut registry = with_member(&present);
    let signed = |registry: &Registry, key: &Identity| {
        let world = registry.world();
        let subject = Subject::Identity(key.public());
        let member = LockedMember { subject, ..world.nodes[&name()].member(&name()).unwrap() };
        lock.sign(&member.message(&world.mesh.name))
    };
    let signatures = [(name(), signed(&registry, &present))].into();
    registry.apply(Change::Lock(LockStep::Begin { key: lock.public(), signatures }), BY, NOW).unwrap();
    let mut sequence = 1;
    let mut next = |registry: &mut Registry, present: &mut Identity| {
        let to = key();
        sequence += 1;
        let id = node(registry, "n1").id;
        let renewal = Renewal { succession: succession(id, present, &to), facts: said(&to, sequence) };
        let change = Change::Renew { identity: present.public(), renewal, observed: observed(1) };
        let asked = registry.apply(change, BY, later(10_000 * sequence));
        if asked.is_ok() {
            *present = to;
        }
        asked
    };
    for _ in 0..MAX_LINEAGE {
        assert_eq!(aged(&registry.world()).count(), 0);
        next(&mut registry, &mut present).unwrap();
    }
    assert_refused(next(&mut registry, &mut present), ErrorCode::Identity, &["meshd lock sign n1"]);
    assert_eq!(aged(&registry.world()).map(|member| member.name).collect::<Vec<_>>(), [name()]);

    let signature = signed(&registry, &present);
    registry.apply(Change::Lock(LockStep::Admit { node: name(), signature }), BY, NOW).unwrap();
    assert_eq!(aged(&registry.world()).count(), 0);
    next(&mut registry, &mut present).unwrap();
    assert_eq!(node(&registry, "n1").lineage.len(), MAX_LINEAGE);
}
