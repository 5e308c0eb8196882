//! Who was expelled is left out for good, however good its record is.

use super::*;

fn expelled(keys: &[IdentityKey]) -> Arc<BTreeSet<IdentityKey>> {
    Arc::new(keys.iter().copied().collect())
}

fn told(admitted: &Admitted) -> bool {
    let sentence = format!("node `b` was revoked (its identity {B})");
    admitted.refused.iter().any(|said| said.contains(&sentence) && said.contains("meshd leave"))
}

/// The fixture's map, under a lock that signed for its peer.
fn locked() -> NetMap {
    let lock = IdentityKey([77; 32]);
    let mut map = map();
    map.mesh.lock = Some(NetworkLock { key: Some(lock), changes: Vec::new() });
    let mesh = map.mesh.name.clone();
    let member = map.peers[&name()].member(&name()).unwrap();
    b(&mut map).countersigned = Some(sign(&lock, &member.message(&mesh)));
    map
}

#[test]
fn a_revoked_peer_is_left_out_at_once_and_keeps_no_last_good_record() {
    for good in [map(), locked()] {
        let mut verifier = fresh(verify);
        assert!(!verifier.expel(expelled(&[EVIL])), "nobody knows that one");
        let admitted = admit(&mut verifier, good.clone());
        assert_eq!((admitted.map.peers.len(), &admitted.refused), (good.peers.len(), &Vec::new()));

        assert!(verifier.expel(expelled(&[EVIL, B])), "the map in force is to be judged again");
        let again = admit(&mut verifier, good.clone());
        assert!(!again.map.peers.contains_key(&name()) && told(&again), "{:?}", again.refused);
        assert_eq!(again.map.peers.len(), good.peers.len() - 1);
        assert_eq!(verifier.refused(), 1);
        assert!(!verifier.expel(expelled(&[EVIL, B])), "it is not in force any more");

        // The next map, a newer record of its own, and none of the two ways to be judged by what was good before.
        let mut newer = signed_anew(B, |facts| facts.software = "x".into());
        (newer.mesh.lock, b(&mut newer).countersigned) = (good.mesh.lock.clone(), good.peers[&name()].countersigned);
        let mut bare = good.clone();
        b(&mut bare).proof = None;
        let mut forged = good.clone();
        b(&mut forged).mtu += 1;
        for (what, lie) in [("the same", good.clone()), ("newer", newer), ("bare", bare), ("forged", forged)] {
            let admitted = admit(&mut verifier, lie);
            assert!(!admitted.map.peers.contains_key(&name()), "{what}");
            assert!(!admitted.refused.is_empty(), "{what}");
        }
        // From the cache, after a restart.
        let mut restarted = fresh(verify);
        restarted.expel(expelled(&[B]));
        let admitted = admit(&mut restarted, good);
        assert!(!admitted.map.peers.contains_key(&name()) && told(&admitted), "{:?}", admitted.refused);
    }
}

#[test]
fn its_machine_is_believed_under_the_same_name_with_a_new_identity() {
    const NEW: IdentityKey = IdentityKey([3; 32]);
    let mut verifier = fresh(verify);
    admit(&mut verifier, map());
    let mut without = map();
    without.peers.remove(&name());
    admit(&mut verifier, without);
    verifier.expel(expelled(&[B]));
    let mut anew = signed_anew(NEW, |_| {});
    b(&mut anew).id = NodeId(40);
    let admitted = admit(&mut verifier, anew.clone());
    assert_eq!((admitted.map.peers.get(&name()), admitted.refused), (anew.peers.get(&name()), Vec::new()));
}

#[test]
fn who_is_shown_as_a_revoked_one_keeps_its_own_record() {
    let mut verifier = fresh(verify);
    admit(&mut verifier, map());
    verifier.expel(expelled(&[EVIL]));
    let admitted = admit(&mut verifier, signed_anew(EVIL, |_| {}));
    assert_eq!(admitted.map.peers.get(&name()), map().peers.get(&name()));
    assert!(admitted.refused[0].contains(&format!("identity {EVIL}")), "{:?}", admitted.refused);
}
