#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lock;
mod revoked;
mod succession;

use super::*;
use crate::base::id::{Revision, TunnelKey};
use crate::fixture::{self, sign, verify};
use crate::model::netmap::{LaneInfo, Proof};
use crate::wire::ServeOffer;

const B: IdentityKey = IdentityKey([2; 32]);
const EVIL: IdentityKey = IdentityKey([66; 32]);

fn facts(peer: &Peer, sequence: u64) -> NodeFacts {
    NodeFacts {
        lanes: peer.lanes.clone(),
        endpoints: peer.endpoints.clone(),
        pods: vec!["10.8.0.0/24".parse().unwrap()],
        mtu: peer.mtu,
        guarded: peer.guarded,
        previous: peer.previous.clone(),
        agreement: peer.agreement.clone(),
        sequence,
        ..NodeFacts::default()
    }
}

fn prove(peer: &mut Peer, by: IdentityKey, facts: &NodeFacts) {
    let text = facts.text();
    let signature = sign(&by, &SignedRecord::message(&text));
    let record = SignedRecord { text: text.into(), signature };
    peer.proof = Some(Proof { identity: by, record, pods: vec!["10.8.0.0/24".parse().unwrap()], lineage: Vec::new() });
}

/// The fixture's map, in which everything is proven; node b's record has number 7.
fn map() -> NetMap {
    let mut map = fixture::netmap(&[]);
    map.sites = [("s2".parse().unwrap(), vec!["10.8.0.0/14".parse().unwrap()])].into();
    for peer in map.peers.values_mut() {
        let facts = facts(peer, 7);
        prove(peer, B, &facts);
    }
    for service in map.services.values_mut() {
        service.grants = service.backends.iter().map(|b| (b.node.clone(), Grant::File)).collect();
    }
    map
}

fn name() -> NodeName {
    "b".parse().unwrap()
}

fn b(map: &mut NetMap) -> &mut Peer {
    map.peers.get_mut(&name()).unwrap()
}

fn altered(change: impl FnOnce(&mut Peer)) -> NetMap {
    let mut map = map();
    map.revision = Revision(map.revision.0 + 1);
    change(b(&mut map));
    map
}

fn signed_anew(by: IdentityKey, change: impl FnOnce(&mut NodeFacts)) -> NetMap {
    altered(|peer| {
        let mut said = facts(peer, 8);
        change(&mut said);
        prove(peer, by, &said);
    })
}

fn fresh(verify: Verify) -> Verifier {
    Verifier::new(verify).claiming(vec!["10.8.0.0/24".parse().unwrap()])
}

fn admit(verifier: &mut Verifier, map: NetMap) -> Admitted {
    verifier.admit(Arc::new(map))
}

#[test]
fn a_good_map_passes_as_it_is_and_costs_one_signature_per_record() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static CHECKED: AtomicUsize = AtomicUsize::new(0);
    fn counting(key: &IdentityKey, message: &[u8], signature: &Signature) -> bool {
        CHECKED.fetch_add(1, Ordering::Relaxed);
        verify(key, message, signature)
    }
    let mut verifier = fresh(counting);
    let good = Arc::new(map());

    let admitted = verifier.admit(Arc::clone(&good));
    assert_eq!(admitted.refused, Vec::<String>::new());
    assert!(Arc::ptr_eq(admitted.map.netmap(), &good), "nothing is copied");
    verifier.admit(Arc::clone(&good));
    // Seen elsewhere by the coordinator: the same record.
    admit(&mut verifier, altered(|peer| peer.endpoints.push("198.51.100.1:51820".parse().unwrap())));

    assert_eq!(CHECKED.load(Ordering::Relaxed), good.peers.len());
}

#[test]
fn an_altered_or_older_record_is_refused_and_the_last_good_one_stays() {
    let key = LaneInfo { key: TunnelKey([66; 32]), port: 51820 };
    let endpoint = |n: u8| format!("198.51.100.{n}:51820").parse().unwrap();
    let bad = [
        ("another key", altered(|peer| peer.lanes = vec![key])),
        ("a former key", altered(|peer| peer.previous = vec![key])),
        ("another agreement key", altered(|peer| peer.agreement = vec![key.key])),
        ("no agreement key", altered(|peer| peer.agreement.clear())),
        ("an mtu", altered(|peer| peer.mtu = 9000)),
        ("guarded", altered(|peer| peer.guarded = !peer.guarded)),
        ("other endpoints", altered(|peer| peer.endpoints = vec![endpoint(1), endpoint(2)])),
        ("another's block", altered(|peer| peer.proof.as_mut().unwrap().pods = vec!["10.9.0.0/24".parse().unwrap()])),
        ("more blocks", altered(|peer| peer.blocks.push("241.99.0.0/24".parse().unwrap()))),
        ("no proof", altered(|peer| peer.proof = None)),
        (
            "a bent text",
            altered(|peer| {
                let record = &mut peer.proof.as_mut().unwrap().record;
                record.text = record.text.replace("1420", "1421").into();
            }),
        ),
        ("a bent signature", altered(|peer| peer.proof.as_mut().unwrap().record.signature.0[40] ^= 1)),
        (
            "no facts",
            altered(|peer| {
                let signature = sign(&B, &SignedRecord::message("{}"));
                peer.proof.as_mut().unwrap().record = SignedRecord { text: "{}".into(), signature };
            }),
        ),
        ("another identity", signed_anew(EVIL, |_| {})),
        ("a record of before", signed_anew(B, |facts| facts.sequence = 6)),
        ("another of the same number", signed_anew(B, |facts| (facts.sequence, facts.software) = (7, "x".into()))),
    ];
    for (what, bad) in bad {
        let mut verifier = fresh(verify);
        let good = map();
        admit(&mut verifier, good.clone());

        let admitted = admit(&mut verifier, bad.clone());
        let again = admit(&mut verifier, bad.clone());

        assert_eq!(admitted.map.peers, good.peers, "{what}");
        assert_eq!((admitted.refused.len(), verifier.refused()), (1, 1), "{what}: {:?}", admitted.refused);
        assert_eq!(again, admitted, "{what}: refused again, counted once");
        assert_eq!(admit(&mut verifier, good).refused, Vec::<String>::new(), "{what}: the good one is good still");

        // A node that starts with it (the cache, a first snapshot) has no good one; some lies it cannot tell.
        let fresh = admit(&mut fresh(verify), bad);
        let untellable = ["another identity", "a record of before", "another of the same number"].contains(&what);
        assert_eq!(fresh.map.peers.contains_key(&name()), untellable, "{what}");
    }
}

#[test]
fn a_newer_record_takes_effect_and_survives_an_absence() {
    let mut verifier = fresh(verify);
    admit(&mut verifier, map());
    let newer = altered(|peer| {
        peer.mtu = 1300;
        let said = facts(peer, 8);
        prove(peer, B, &said);
    });
    let admitted = admit(&mut verifier, newer.clone());
    assert_eq!((admitted.map.peers.clone(), admitted.refused), (newer.peers.clone(), Vec::new()));

    let mut without = newer;
    without.peers.clear();
    without.services.clear();
    admit(&mut verifier, without);
    let back = admit(&mut verifier, map());
    assert!(back.refused[0].contains("went back from number 8 to 7"), "{:?}", back.refused);
    assert!(!back.map.peers.contains_key(&name()));
}

#[test]
fn a_block_lies_in_its_site_and_belongs_to_one_node() {
    let outside = {
        let mut map = map();
        map.sites = [("s2".parse().unwrap(), vec!["10.12.0.0/14".parse().unwrap()])].into();
        map
    };
    let nobody = NetMap { sites: BTreeMap::new(), ..map() };
    let ours = altered(|peer| peer.blocks = vec!["241.2.0.0/24".parse().unwrap()]);
    let vips = altered(|peer| peer.blocks = vec!["241.0.0.0/24".parse().unwrap()]);
    for bad in [outside, nobody, ours, vips] {
        let admitted = admit(&mut fresh(verify), bad);
        assert!(admitted.refused[0].contains("pod block 10.8.0.0/24 of node `b`"), "{:?}", admitted.refused);
        assert_eq!(admitted.map.peers[&name()].blocks, Vec::<Ipv4Net>::new());
        // What is left may be cached and read back.
        let read = fresh(verify).admit(Arc::clone(admitted.map.netmap()));
        assert!(read.map.peers.contains_key(&name()) && read.refused.is_empty(), "{:?}", read.refused);
    }
    let metadata = altered(|peer| {
        let said = NodeFacts { pods: vec!["169.254.169.0/24".parse().unwrap()], ..facts(peer, 8) };
        prove(peer, B, &said);
        peer.proof.as_mut().unwrap().pods.clone_from(&said.pods);
    });
    let metadata = NetMap { sites: [("s2".parse().unwrap(), vec!["0.0.0.0/0".parse().unwrap()])].into(), ..metadata };
    assert!(admit(&mut fresh(verify), metadata).map.peers[&name()].blocks.is_empty());
}

#[test]
fn an_address_is_a_nodes_own() {
    for address in [fixture::NODE_A, "241.0.0.7", "10.0.0.1"] {
        let admitted = admit(&mut fresh(verify), altered(|peer| peer.address = Flat(address.parse().unwrap())));
        assert!(!admitted.map.peers.contains_key(&name()), "{address}");
    }
}

#[test]
fn a_number_and_a_last_good_address_are_one_nodes_only() {
    let mut verifier = fresh(verify);
    admit(&mut verifier, map());
    let twin = || {
        let mut twin = map().peers[&name()].clone();
        twin.address = Flat("241.1.0.9".parse().unwrap());
        let said = facts(&twin, 1);
        prove(&mut twin, EVIL, &said);
        twin.blocks.clear();
        twin.proof.as_mut().unwrap().pods.clear();
        twin
    };
    let mut two = map();
    two.peers.insert("c".parse().unwrap(), twin());
    let admitted = admit(&mut verifier, two);
    assert_eq!(admitted.map.peers, map().peers, "{:?}", admitted.refused);
    assert!(admitted.refused[0].contains("its number is another's"), "{:?}", admitted.refused);

    // Node b's record is refused, and the address that it had is another node's by now.
    let mut moved = altered(|peer| (peer.mtu, peer.address) = (9000, Flat("241.1.0.8".parse().unwrap())));
    let heir = Peer { id: NodeId(7), address: Flat(fixture::NODE_B.parse().unwrap()), ..twin() };
    moved.peers.insert("a1".parse().unwrap(), heir.clone());
    let admitted = admit(&mut verifier, moved);
    assert_eq!(admitted.map.peers, [("a1".parse().unwrap(), heir)].into(), "{:?}", admitted.refused);
}

#[test]
fn a_backend_is_granted_to_its_node_and_has_its_address() {
    let cart: ServiceKey = "cart".parse().unwrap();
    let with = |change: &dyn Fn(&mut Service)| {
        let mut map = map();
        change(map.services.get_mut(&cart).unwrap());
        admit(&mut fresh(verify), map)
    };
    assert_eq!(with(&|_| {}).map.services[&cart].backends.len(), 1);
    for (why, admitted) in [
        ("neither its token nor the file", with(&|cart| cart.grants.clear())),
        ("signed no offer", with(&|cart| cart.grants = [("b".parse().unwrap(), Grant::Token)].into())),
        ("not one of that node", with(&|cart| cart.backends[0].address = Flat(fixture::POD_A.parse().unwrap()))),
        ("not one of that node", with(&|cart| cart.backends[0].node = "a".parse().unwrap())),
        ("not one of that node", with(&|cart| cart.backends[0].node = "nobody".parse().unwrap())),
    ] {
        assert!(admitted.refused.iter().any(|said| said.contains(why)), "{why}: {:?}", admitted.refused);
        assert_eq!(admitted.map.services[&cart].backends, Vec::new(), "{why}");
        assert_eq!(admitted.map.services.len(), map().services.len(), "the rest of the map stays");
    }
    let mut offered = signed_anew(B, |facts| facts.serve = vec![ServeOffer { service: cart.clone(), port: None }]);
    offered.services.get_mut(&cart).unwrap().grants = [("b".parse().unwrap(), Grant::Token)].into();
    assert_eq!(admit(&mut fresh(verify), offered).map.services[&cart].backends.len(), 1);
}

#[test]
fn a_static_node_needs_no_signature_and_cannot_take_a_members_place() {
    let bare = |id: u32| {
        altered(|peer| {
            (peer.proof, peer.blocks, peer.agreement) = (None, Vec::new(), Vec::new());
            peer.id = NodeId(id);
            peer.lanes.truncate(1);
        })
    };
    assert!(admit(&mut fresh(verify), bare(9)).map.peers.contains_key(&name()));
    let mut agreeing = bare(9);
    b(&mut agreeing).agreement = vec![TunnelKey([66; 32])];
    assert!(!admit(&mut fresh(verify), agreeing).map.peers.contains_key(&name()), "nobody signed that key");
    let mut verifier = fresh(verify);
    admit(&mut verifier, map());
    let admitted = admit(&mut verifier, bare(2));
    assert!(admitted.map.peers[&name()].proof.is_some(), "{:?}", admitted.refused);
}

#[test]
fn no_coordinator_makes_a_node_a_router_to_where_it_did_not_say() {
    let given = |real: &str, flat: &str| {
        let mut map = map();
        map.node.blocks.push(BlockMap { real: real.parse().unwrap(), flat: flat.parse().unwrap() });
        map
    };
    for real in ["169.254.169.0/24", "192.168.1.0/24", "10.8.0.0/25", "241.5.0.0/24"] {
        let admitted = admit(&mut fresh(verify), given(real, "241.99.0.0/24"));
        assert_eq!(admitted.map.node.blocks, map().node.blocks, "{real}");
        assert!(admitted.refused[0].contains(real), "{:?}", admitted.refused);
    }
    let metadata = || Verifier::new(verify).claiming(vec!["169.254.169.0/24".parse().unwrap()]);
    let admitted = admit(&mut metadata(), given("169.254.169.0/24", "241.99.0.0/24"));
    assert!(admitted.map.node.blocks.is_empty(), "not even by a mistake in meshd.toml");
    assert!(admit(&mut Verifier::new(verify), map()).map.node.blocks.is_empty());
}
