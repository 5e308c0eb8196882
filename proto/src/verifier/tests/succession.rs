//! Another identity: a peer's former key names it, and nobody else does.

use super::*;
use crate::trust::identity_rotation::Succession;
use crate::trust::network_lock::NetworkLock;
use crate::trust::signed_record::Signature;

const A: IdentityKey = B;
const NEXT: IdentityKey = IdentityKey([3; 32]);
const THIRD: IdentityKey = IdentityKey([4; 32]);
const LOCK: IdentityKey = IdentityKey([77; 32]);

fn link(node: NodeId, from: IdentityKey, to: IdentityKey) -> Succession {
    Succession {
        from,
        to,
        signature: sign(&from, &Succession::message(node, &from, &to)),
        accepted: sign(&to, &Succession::acceptance(node, &from, &to)),
    }
}

/// The map once node b's record of some number is signed by a key, and it shows these changes of keys.
fn renewed(by: IdentityKey, sequence: u64, lineage: &[(IdentityKey, IdentityKey)]) -> NetMap {
    altered(|peer| {
        let said = facts(peer, sequence);
        prove(peer, by, &said);
        let links = lineage.iter().map(|(from, to)| link(peer.id, *from, *to));
        peer.proof.as_mut().unwrap().lineage = links.collect();
    })
}

fn by_identity(admitted: &Admitted) -> IdentityKey {
    admitted.map.peers[&name()].proof.as_ref().unwrap().identity
}

#[test]
fn a_peer_goes_on_with_the_key_that_its_former_one_named_and_never_back() {
    let mut verifier = fresh(verify);
    admit(&mut verifier, map());
    let after = admit(&mut verifier, renewed(NEXT, 8, &[(A, NEXT)]));
    assert_eq!((by_identity(&after), after.refused.clone()), (NEXT, Vec::new()));

    let back = [
        ("the former map", map()),
        ("a newer record of the former key", renewed(A, 9, &[])),
        ("with the same lineage", renewed(A, 9, &[(A, NEXT)])),
        ("another next key of the former", renewed(THIRD, 9, &[(A, THIRD)])),
        ("that takes the next one along", renewed(THIRD, 9, &[(A, NEXT), (A, THIRD)])),
        ("an older record", renewed(NEXT, 7, &[(A, NEXT)])),
        ("another of the same number", {
            let mut map = renewed(NEXT, 8, &[(A, NEXT)]);
            let said = NodeFacts { software: "x".into(), ..facts(b(&mut map), 8) };
            prove(b(&mut map), NEXT, &said);
            map
        }),
    ];
    for (what, bad) in back {
        let refused = admit(&mut verifier, bad);
        assert_eq!((by_identity(&refused), refused.refused.len()), (NEXT, 1), "{what}: {:?}", refused.refused);
    }
    // Two more changes at once: this node was away.
    let links = [(A, NEXT), (NEXT, THIRD), (THIRD, EVIL)];
    let later = admit(&mut verifier, renewed(EVIL, 9, &links));
    assert_eq!((by_identity(&later), later.refused), (EVIL, Vec::new()));
}

#[test]
fn a_key_that_the_former_did_not_name_is_refused() {
    let id = map().peers[&name()].id;
    let forged = |link: Succession| {
        let mut map = renewed(NEXT, 8, &[]);
        b(&mut map).proof.as_mut().unwrap().lineage = vec![link];
        map
    };
    let good = link(id, A, NEXT);
    let bad = [
        ("no lineage", renewed(NEXT, 8, &[])),
        ("another's", renewed(NEXT, 8, &[(EVIL, NEXT)])),
        ("of another node", forged(link(NodeId(id.0 + 1), A, NEXT))),
        ("signed by the next alone", forged(Succession { signature: good.accepted, ..good })),
        ("not accepted", forged(Succession { accepted: sign(&EVIL, b"x"), ..good })),
        ("a record of the former key", {
            let mut map = forged(good);
            let said = facts(b(&mut map), 8);
            let signature = sign(&A, &SignedRecord::message(&said.text()));
            b(&mut map).proof.as_mut().unwrap().record.signature = signature;
            map
        }),
    ];
    for (what, bad) in bad {
        let mut verifier = fresh(verify);
        admit(&mut verifier, map());
        let refused = admit(&mut verifier, bad);
        assert_eq!((by_identity(&refused), refused.refused.len()), (A, 1), "{what}: {:?}", refused.refused);
    }
}

#[test]
fn the_locks_signature_for_a_former_key_holds_for_those_that_it_led_to() {
    let locked = |mut map: NetMap, signed_for: IdentityKey| {
        map.mesh.lock = Some(NetworkLock { key: Some(LOCK), changes: Vec::new() });
        let mesh = map.mesh.name.clone();
        for (name, peer) in &mut map.peers {
            let member = LockedMember { subject: Subject::Identity(signed_for), ..peer.member(name).unwrap() };
            peer.countersigned = Some(sign(&LOCK, &member.message(&mesh)));
        }
        map
    };
    let lineage = [(A, NEXT), (NEXT, THIRD)];
    for signed_for in [A, NEXT, THIRD] {
        let map = locked(renewed(THIRD, 8, &lineage), signed_for);
        assert_eq!(admit(&mut fresh(verify), map).refused, Vec::<String>::new(), "signed for {signed_for}");
    }
    let mut verifier = fresh(verify);
    admit(&mut verifier, locked(map(), A));
    assert_eq!(admit(&mut verifier, locked(renewed(THIRD, 8, &lineage), A)).refused, Vec::<String>::new());

    let bad = [
        ("for a later key", locked(renewed(NEXT, 8, &[(A, NEXT)]), THIRD)),
        ("no lineage", locked(renewed(THIRD, 8, &[]), A)),
        ("a gap", locked(renewed(THIRD, 8, &[(A, NEXT), (EVIL, THIRD)]), A)),
        ("a forged link", {
            let mut map = locked(renewed(THIRD, 8, &lineage), A);
            b(&mut map).proof.as_mut().unwrap().lineage[0].signature.0[50] ^= 1;
            map
        }),
    ];
    for (what, bad) in bad {
        let admitted = admit(&mut fresh(verify), bad);
        assert!(
            admitted.refused.iter().any(|said| said.contains("countersignature")),
            "{what}: {:?}",
            admitted.refused
        );
        assert!(!admitted.map.peers.contains_key(&name()), "{what}");
    }
}

#[test]
fn who_was_expelled_names_no_next_key() {
    for expelled in [A, NEXT] {
        let mut verifier = fresh(verify);
        admit(&mut verifier, renewed(NEXT, 8, &[(A, NEXT)]));
        assert!(verifier.expel(Arc::new([expelled].into())), "{expelled}");
        let links = [(A, NEXT), (NEXT, THIRD)];
        for map in [renewed(NEXT, 8, &links[..1]), renewed(THIRD, 9, &links), renewed(THIRD, 9, &links)] {
            let admitted = admit(&mut verifier, map);
            assert!(!admitted.map.peers.contains_key(&name()), "{expelled}: {:?}", admitted.refused);
            assert!(admitted.refused[0].contains("was revoked"), "{:?}", admitted.refused);
        }
    }
}

#[test]
fn only_a_change_costs_signatures() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static CHECKED: AtomicUsize = AtomicUsize::new(0);
    fn counting(key: &IdentityKey, message: &[u8], signature: &Signature) -> bool {
        CHECKED.fetch_add(1, Ordering::Relaxed);
        verify(key, message, signature)
    }
    let checked = |verifier: &mut Verifier, map: NetMap| {
        let before = CHECKED.load(Ordering::Relaxed);
        assert_eq!(admit(verifier, map).refused, Vec::<String>::new());
        CHECKED.load(Ordering::Relaxed) - before
    };
    let mut verifier = fresh(counting);
    assert_eq!(checked(&mut verifier, map()), 1);
    assert_eq!(checked(&mut verifier, renewed(NEXT, 8, &[(A, NEXT)])), 3, "both keys, and the record");
    assert_eq!(checked(&mut verifier, renewed(NEXT, 9, &[(A, NEXT)])), 1, "the record");
}
