//! Records, numbers, blocks and names of others, and older ones of its own, by way of a lying coordinator.

use std::sync::Arc;

use ipnet::Ipv4Net;
use mesh_host::identity::verify;
use mesh_proto::base::addr::Flat;
use mesh_proto::base::block_map::BlockMap;
use mesh_proto::base::id::{NodeId, NodeName, ServiceKey, TunnelKey};
use mesh_proto::model::netmap::{Backend, Grant, LaneInfo, NetMap, Peer, Service};
use mesh_proto::verifier::Verifier;
use mesh_proto::wire::{NodeFacts, ServeOffer};
use std::net::Ipv4Addr;

use super::{Dice, EVIL, FRONT, HONEST, VICTIM, World, address, facts, home, key, name, outer, peer, pod, proof};

/// How many maps have a lie in them.
const LIES: usize = 20_000;

/// A map with one lie in it.
fn lie(world: &World, dice: &mut Dice) -> NetMap {
    let mut map = world.map.clone();
    map.revision.0 += 1;
    let (bad, good) = (name(EVIL), name(HONEST));
    let mine = facts(EVIL);
    let theirs = facts(HONEST);
    let stray =
        |dice: &mut Dice| Flat(dice.of(&[pod(HONEST, 9), pod(VICTIM, 9), address(HONEST), address(VICTIM), FRONT]));
    let lane = LaneInfo { key: TunnelKey([dice.roll() as u8; 32]), port: 51820 };
    let of_evil = |change: &dyn Fn(&mut NodeFacts)| {
        let mut facts = NodeFacts { sequence: 101, ..mine.clone() };
        change(&mut facts);
        peer(EVIL, &world.evil, &facts)
    };
    match dice.below(15) {
        // Records of others: altered, older, another of the same number, signed by the wrong one, or not at all.
        0 => {
            let proof = map.peers.get_mut(&good).unwrap().proof.as_mut().unwrap();
            let mut text = proof.record.text.as_bytes().to_vec();
            let at = dice.below(text.len());
            text[at] = dice.of(b"0123456789abcdef\" ,:{}[]");
            if text == proof.record.text.as_bytes() {
                text.push(b' ');
            }
            proof.record.text = String::from_utf8(text).unwrap().into();
        }
        1 => {
            let older = NodeFacts { sequence: dice.below(100) as u64, ..theirs };
            map.peers.insert(good, peer(HONEST, &world.honest, &older));
        }
        2 => {
            let other = NodeFacts { software: dice.roll().to_string(), ..theirs };
            map.peers.insert(good, peer(HONEST, &world.honest, &other));
        }
        3 => {
            let mut taken =
                peer(HONEST, &world.evil, &NodeFacts { lanes: mine.lanes, sequence: dice.roll(), ..theirs });
            if dice.below(2) == 0 {
                taken.proof.as_mut().unwrap().identity = world.honest.identity();
            }
            map.peers.insert(good, taken);
        }
        4 => {
            // Its own good record, as that of another.
            let record = map.peers[&bad].proof.clone();
            let taken = map.peers.get_mut(&good).unwrap();
            taken.proof = record;
            taken.lanes = mine.lanes;
        }
        5 => {
            let taken = map.peers.get_mut(&good).unwrap();
            match dice.below(6) {
                0 => taken.lanes = vec![lane],
                1 => taken.previous = vec![lane],
                2 => taken.endpoints = vec![outer(EVIL), outer(EVIL + 10)],
                3 => taken.proof = None,
                4 => taken.agreement = vec![lane.key],
                _ => taken.blocks.clear(),
            }
        }
        // Its own record, with a number that went back or was used.
        6 => {
            let again = NodeFacts { software: dice.roll().to_string(), sequence: dice.below(101) as u64, ..mine };
            map.peers.insert(bad, peer(EVIL, &world.evil, &again));
        }
        // Blocks: those of others, those outside the site, those that nobody may have.
        7 => {
            let image =
                dice.of(&[pod(HONEST, 0), pod(VICTIM, 0), Ipv4Addr::new(241, 0, 0, 0), Ipv4Addr::new(241, 1, 0, 0)]);
            let mut taken = of_evil(&|_| {});
            taken.blocks = vec![Ipv4Net::new_assert(image, 24)];
            map.peers.insert(bad, taken);
        }
        8 => {
            let outside = ["172.16.1.0/24", "169.254.169.0/24", "127.0.0.0/24", "241.2.9.0/24", "224.0.0.0/24"];
            let pods: Vec<Ipv4Net> = vec![dice.of(&outside).parse().unwrap()];
            map.sites.insert("open".parse().unwrap(), vec!["0.0.0.0/0".parse().unwrap()]);
            let mut taken = of_evil(&|facts| facts.pods.clone_from(&pods));
            taken.blocks = vec![Ipv4Net::new_assert(Ipv4Addr::new(241, 7, 0, 0), 24)];
            map.peers.insert(bad, taken);
        }
        9 => map.peers.get_mut(&bad).unwrap().address = stray(dice),
        // Names: without a grant, without an offer, at addresses of others.
        10 => {
            let backend =
                Backend { node: bad, address: Flat(pod(EVIL, 9)), ..map.services[&key("cart")].backends[0].clone() };
            map.services.get_mut(&key("cart")).unwrap().backends.push(backend);
        }
        11 => {
            let service = map.services.get_mut(&key("cart")).unwrap();
            service.grants.insert(bad.clone(), Grant::Token);
            let backend = Backend { node: bad.clone(), address: Flat(pod(EVIL, 9)), ..service.backends[0].clone() };
            service.backends.push(backend);
            let other = ServeOffer { service: key("front"), port: None };
            map.peers.insert(bad, of_evil(&|facts| facts.serve = vec![other.clone()]));
        }
        12 => {
            let service = map.services.get_mut(&key("front")).unwrap();
            service.grants.insert(bad.clone(), Grant::File);
            let backend = Backend { node: bad, address: stray(dice), ..service.backends[0].clone() };
            service.backends.push(backend);
        }
        // The victim as a router to somewhere.
        13 => {
            let real = dice.of(&["10.8.3.0/24", "192.168.0.0/24", "169.254.169.0/24"]).parse().unwrap();
            map.node.blocks.push(BlockMap { real, flat: Ipv4Net::new_assert(pod(9, 0), 24) });
        }
        // The number or the address of another, for a name that may do everything.
        _ => {
            let twin = Peer { id: NodeId(HONEST.into()), ..of_evil(&|_| {}) };
            let twin = if dice.below(2) == 0 { twin } else { Peer { id: NodeId(9), ..twin } };
            map.peers.insert("aaa".parse().unwrap(), Peer { address: stray(dice), ..twin });
        }
    }
    map
}

/// Says what of a lie is in force.
fn believed(world: &World, admitted: &NetMap) -> Option<&'static str> {
    let (bad, good) = (name(EVIL), name(HONEST));
    let true_blocks = |peer: &Peer| peer.blocks.iter().all(|block| world.map.peers[&bad].blocks.contains(block));
    let evil = admitted.peers.get(&bad);
    // Where a whole peer is left out, its backend is as well.
    let true_backends = |(key, service): (&ServiceKey, &Service)| {
        service.backends.iter().all(|backend| world.map.services[key].backends.contains(backend))
    };
    if admitted.peers.get(&good).is_some_and(|peer| *peer != world.map.peers[&good]) {
        Some("another's record")
    } else if !admitted.peers.contains_key(&good) {
        Some("that another is no member")
    } else if evil.is_some_and(|peer| peer.address.0 != address(EVIL)) {
        Some("another's address")
    } else if evil.is_some_and(|peer| !true_blocks(peer)) {
        Some("another's block")
    } else if evil
        .and_then(|peer| NodeFacts::of(&peer.proof.as_ref()?.record))
        .is_some_and(|facts| facts.sequence < 100)
    {
        Some("an older record")
    } else if admitted.node.blocks != world.map.node.blocks {
        Some("a block of the victim's own")
    } else if !admitted.services.iter().all(true_backends) {
        Some("a name")
    } else if admitted.peers.keys().any(|name| *name != bad && *name != good) {
        Some("another's number or address")
    } else {
        None
    }
}

#[test]
fn no_lie_brings_a_revoked_node_back() {
    let world = World::new();
    let mut dice = Dice(6);
    let mut accepted = Vec::new();
    for case in 0..LIES / 4 {
        let mut verifier = Verifier::new(verify).claiming(vec![home(VICTIM)]);
        if dice.below(2) == 0 {
            verifier.admit(Arc::new(world.map.clone()));
        }
        verifier.expel(Arc::new([world.evil.identity()].into()));
        let mut lie = if dice.below(8) == 0 { world.map.clone() } else { lie(&world, &mut dice) };
        if dice.below(2) == 0
            && let Some(evil) = lie.peers.get_mut(&name(EVIL))
        {
            evil.id = NodeId(dice.of(&[EVIL.into(), 40]));
            let newer = NodeFacts { sequence: 1_000, software: dice.roll().to_string(), ..facts(EVIL) };
            evil.proof = Some(proof(&world.evil, &newer));
        }
        let admitted = verifier.admit(Arc::new(lie));
        let known = facts(EVIL).lanes;
        let is_back = |(known_as, peer): (&NodeName, &Peer)| *known_as == name(EVIL) || peer.lanes == known;
        accepted.extend(admitted.map.peers.iter().any(is_back).then_some(case));
        assert!(!admitted.refused.is_empty(), "case {case} is no lie");
    }
    assert_eq!(accepted.len(), 0, "of {} lies; the first: {:?}", LIES / 4, accepted.first());
}

#[test]
fn nothing_that_a_lying_coordinator_says_for_an_evil_node_is_believed() {
    let world = World::new();
    let mut dice = Dice(5);
    let mut accepted = Vec::new();
    for case in 0..LIES {
        let mut verifier = Verifier::new(verify).claiming(vec![home(VICTIM)]);
        verifier.admit(Arc::new(world.map.clone()));
        let lie = lie(&world, &mut dice);
        let admitted = verifier.admit(Arc::new(lie));
        accepted.extend(believed(&world, &admitted.map).map(|what| (case, what)));
        assert!(!admitted.refused.is_empty(), "case {case} is no lie");
        let after = verifier.admit(Arc::new(world.map.clone()));
        assert!(after.map.peers.contains_key(&name(HONEST)), "the honest one is believed again");
    }
    assert_eq!(accepted.len(), 0, "of {LIES} lies; the first: {:?}", accepted.first());
}
