//! Lock mode: nobody is a peer without the signature of a key that no coordinator holds.

use super::*;
use crate::model::netmap::Delta;
use crate::trust::network_lock::{LockChange, NetworkLock};

const LOCK: IdentityKey = IdentityKey([77; 32]);
const THIEF: IdentityKey = IdentityKey([99; 32]);

fn countersign(map: &mut NetMap, by: &IdentityKey) {
    let mesh = map.mesh.name.clone();
    for (name, peer) in &mut map.peers {
        peer.countersigned = peer.member(name).map(|member| sign(by, &member.message(&mesh)));
    }
}

/// The fixture's map, locked; its peer is admitted.
fn locked() -> NetMap {
    let mut map = map();
    map.mesh.lock = Some(NetworkLock { key: Some(LOCK), changes: Vec::new() });
    countersign(&mut map, &LOCK);
    map
}

/// A node that the coordinator adds by itself, with a record that is in order.
fn newcomer() -> (NodeName, Peer) {
    let mut peer = locked().peers[&name()].clone();
    peer.id = NodeId(40);
    peer.address = Flat("241.1.0.40".parse().unwrap());
    (peer.blocks, peer.countersigned) = (Vec::new(), None);
    peer.lanes = vec![LaneInfo { key: TunnelKey([40; 32]), port: 51820 }];
    let said = NodeFacts { pods: Vec::new(), ..facts(&peer, 1) };
    prove(&mut peer, EVIL, &said);
    peer.proof.as_mut().unwrap().pods.clear();
    ("evil".parse().unwrap(), peer)
}

fn with_newcomer(change: impl FnOnce(&mut Peer)) -> NetMap {
    let mut map = locked();
    map.revision.0 += 1;
    let (name, mut peer) = newcomer();
    change(&mut peer);
    map.peers.insert(name, peer);
    map
}

#[test]
fn an_admission_without_the_locks_signature_is_refused_on_snapshot_delta_and_cache() {
    let evil: NodeName = "evil".parse().unwrap();
    let mesh = locked().mesh.name;
    let forged = |by: IdentityKey, as_name: &str| {
        let (as_name, mesh) = (as_name.parse().unwrap(), mesh.clone());
        move |peer: &mut Peer| peer.countersigned = peer.member(&as_name).map(|m| sign(&by, &m.message(&mesh)))
    };
    let copied = locked().peers[&name()].countersigned;
    let cases = [
        ("no signature", with_newcomer(|_| {})),
        ("a member's signature", with_newcomer(|peer| peer.countersigned = copied)),
        ("the thief's signature", with_newcomer(forged(THIEF, "evil"))),
        ("its own signature", with_newcomer(forged(EVIL, "evil"))),
        ("a signature for another name", with_newcomer(forged(LOCK, "other"))),
        ("as a static node", with_newcomer(|peer| peer.proof = None)),
    ];
    for (what, bad) in cases {
        // Snapshot, at a node that knows the mesh, and at one that sees it first.
        let mut verifier = fresh(verify);
        assert_eq!(admit(&mut verifier, locked()).refused, Vec::<String>::new(), "{what}");
        for verifier in [&mut verifier, &mut fresh(verify)] {
            let admitted = admit(verifier, bad.clone());
            assert!(!admitted.map.peers.contains_key(&evil), "{what}");
            assert!(admitted.map.peers.contains_key(&name()), "{what}: the others stay");
            assert!(
                admitted.refused.iter().any(|said| said.contains("meshd lock sign evil")),
                "{:?}",
                admitted.refused
            );
        }
        // Delta.
        let delta = Delta::between(&locked(), &bad).apply(&locked()).unwrap();
        assert!(!admit(&mut verifier, delta).map.peers.contains_key(&evil), "{what}");
        // Cache, altered on the disk, after a restart.
        let mut restarted = fresh(verify).held_to(verifier.held());
        assert!(!admit(&mut restarted, bad).map.peers.contains_key(&evil), "{what}");
    }
    let good = admit(&mut fresh(verify), with_newcomer(forged(LOCK, "evil")));
    assert!(good.map.peers.contains_key(&evil), "{:?}", good.refused);
}

#[test]
fn a_stolen_coordinator_that_drops_or_swaps_the_lock_adds_nobody() {
    let evil: NodeName = "evil".parse().unwrap();
    let by_thief = |lock: Option<NetworkLock>| {
        let mut map = with_newcomer(|_| {});
        map.mesh.lock = lock;
        countersign(&mut map, &THIEF);
        map
    };
    let change = |to: Option<IdentityKey>| {
        let signature = sign(&THIEF, &LockChange::message(&locked().mesh.name, &LOCK, to.as_ref()));
        LockChange { from: LOCK, to, signature }
    };
    let cases = [
        ("dropped", None),
        ("ended", Some(NetworkLock::default())),
        ("swapped", Some(NetworkLock { key: Some(THIEF), changes: Vec::new() })),
        ("ended with a forged word", Some(NetworkLock { key: None, changes: vec![change(None)] })),
        ("swapped with a forged word", Some(NetworkLock { key: Some(THIEF), changes: vec![change(Some(THIEF))] })),
    ];
    for (what, lock) in cases {
        let mut verifier = fresh(verify);
        admit(&mut verifier, locked());
        let bad = by_thief(lock);
        for verifier in [&mut fresh(verify).held_to(verifier.held()), &mut verifier] {
            let admitted = admit(verifier, bad.clone());
            assert!(!admitted.map.peers.contains_key(&evil), "{what}");
            assert!(admitted.refused[0].contains("may have taken the coordinator over"), "{:?}", admitted.refused);
            assert_eq!(verifier.held(), Some(LOCK), "{what}");
        }
        let kept = admit(&mut verifier, bad).map;
        assert_eq!(kept.peers.get(&name()), locked().peers.get(&name()), "{what}: who was good stays");
        assert_eq!(admit(&mut verifier, locked()).refused, Vec::<String>::new(), "{what}: the lock is good still");
    }
}

#[test]
fn nobody_gets_another_name_or_site_by_having_been_admitted() {
    let mut verifier = fresh(verify);
    admit(&mut verifier, locked());
    let mut renamed = locked();
    let peer = renamed.peers.remove(&name()).unwrap();
    renamed.peers.insert("bank".parse().unwrap(), peer);
    assert!(admit(&mut verifier, renamed).map.peers.is_empty());

    let mut moved = locked();
    b(&mut moved).site = "vault".parse().unwrap();
    assert_eq!(admit(&mut verifier, moved).map.peers.get(&name()), locked().peers.get(&name()));
}

#[test]
fn the_locks_own_word_ends_it_and_all_are_judged_anew() {
    let mut verifier = fresh(verify);
    admit(&mut verifier, locked());
    assert!(!admit(&mut verifier, with_newcomer(|_| {})).refused.is_empty());
    let mut open = with_newcomer(|_| {});
    let signature = sign(&LOCK, &LockChange::message(&open.mesh.name, &LOCK, None));
    open.mesh.lock = Some(NetworkLock { key: None, changes: vec![LockChange { from: LOCK, to: None, signature }] });
    let admitted = admit(&mut verifier, open);
    assert_eq!((admitted.map.peers.len(), admitted.refused), (2, Vec::new()));
    assert_eq!(verifier.held(), None);
}

#[test]
fn who_was_good_before_the_lock_is_not_good_for_that() {
    let evil: NodeName = "evil".parse().unwrap();
    let mut verifier = fresh(verify);
    let mut open = with_newcomer(|_| {});
    open.mesh.lock = None;
    assert!(admit(&mut verifier, open).map.peers.contains_key(&evil));

    let admitted = admit(&mut verifier, with_newcomer(|_| {}));

    assert!(!admitted.map.peers.contains_key(&evil), "{:?}", admitted.refused);
    assert!(admitted.map.peers.contains_key(&name()));
}

#[test]
fn what_is_cached_names_the_lock_that_is_held() {
    let mut verifier = fresh(verify);
    admit(&mut verifier, locked());
    for lock in [None, Some(NetworkLock { key: Some(THIEF), changes: Vec::new() })] {
        let mut told = locked();
        told.mesh.lock = lock;
        let cached = admit(&mut verifier, told).map;
        assert_eq!(cached.mesh.lock.as_ref().and_then(|lock| lock.key), Some(LOCK));
    }
}
