//! An evil node: a member with keys of its own, none of our checks, and a coordinator that passes on whatever it likes.
//!
//! ```text
//!   evil ── its own tunnel ──▶ Lane (sessions, engine) ──▶ kernel      packets in others' names
//!   evil ── a lying coordinator ──▶ Verifier ──▶ VerifiedMap           records, numbers, blocks and names of others
//! ```
//! What is forged is drawn at random, from one seed, among what would pay: everything around it is genuine and allowed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod maps;
mod packets;

use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use mesh_proto::base::addr::Flat;
use mesh_proto::base::block_map::BlockMap;
use mesh_proto::base::id::{NodeId, NodeName, ServiceId, ServiceKey};
use mesh_proto::model::netmap::{Backend, Grant, LaneInfo, NetMap, Peer, Proof, Service, ServicePort, Transport};
use mesh_proto::model::rules::Rule;
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::NodeFacts;
use x25519_dalek::StaticSecret;

use crate::base::state_dir::State;
use crate::base::state_dir::tests::netmap;
use crate::keys::lanes::LaneKeys;
use crate::keys::node::NodeKeys;

const VICTIM: u8 = 1;
const EVIL: u8 = 2;
const HONEST: u8 = 3;
const FRONT: Ipv4Addr = Ipv4Addr::new(241, 0, 0, 1);
const CART: Ipv4Addr = Ipv4Addr::new(241, 0, 0, 2);

fn address(id: u8) -> Ipv4Addr {
    Ipv4Addr::new(241, 1, 0, id)
}

/// A pod's address in the mesh; it is 10.8.id.last at home.
fn pod(id: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(241, 2, id, last)
}

fn home(id: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 8, id, 0), 24)
}

fn outer(id: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, id], 51820))
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// The mesh, and what its members have to prove themselves.
struct World {
    _dir: tempfile::TempDir,
    evil: NodeKeys,
    honest: NodeKeys,
    map: NetMap,
}

fn name(id: u8) -> NodeName {
    ["n1", "evil", "honest"][usize::from(id) - 1].parse().unwrap()
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn lanes(id: u8) -> LaneKeys {
    LaneKeys::derive(&StaticSecret::from([id; 32]), 1)
}

fn facts(id: u8) -> NodeFacts {
    NodeFacts {
        lanes: vec![LaneInfo { key: lanes(id).public(0), port: 51820 }],
        endpoints: vec![outer(id)],
        pods: vec![home(id)],
        mtu: 1420,
        guarded: true,
        sequence: 100,
        ..NodeFacts::default()
    }
}

fn signed(by: &NodeKeys, text: &str) -> SignedRecord {
    SignedRecord { text: text.into(), signature: by.sign(&SignedRecord::message(text)) }
}

fn proof(by: &NodeKeys, facts: &NodeFacts) -> Proof {
    Proof { identity: by.identity(), record: signed(by, &facts.text()), pods: facts.pods.clone(), lineage: Vec::new() }
}

/// The peer that a map makes of such facts.
fn peer(id: u8, by: &NodeKeys, facts: &NodeFacts) -> Peer {
    Peer {
        id: NodeId(id.into()),
        site: "c1".parse().unwrap(),
        address: Flat(address(id)),
        blocks: vec![Ipv4Net::new_assert(pod(id, 0), 24)],
        lanes: facts.lanes.clone(),
        endpoints: facts.endpoints.clone(),
        mtu: facts.mtu,
        guarded: facts.guarded,
        previous: facts.previous.clone(),
        proof: Some(proof(by, facts)),
        countersigned: None,
        agreement: facts.agreement.clone(),
    }
}

fn service(id: u32, vip: Ipv4Addr, (port, target): (u16, u16), at: u8) -> Service {
    let backend = Backend { name: None, node: name(at), address: Flat(pod(at, 10)), port: None, weight: 100, tier: 0 };
    Service {
        id: ServiceId(id),
        vip: Flat(vip),
        ports: vec![ServicePort { name: None, transport: Transport::Tcp, port, target }],
        backends: vec![backend],
        grants: [(name(at), Grant::File)].into(),
        sticky: false,
        strict: false,
    }
}

fn rule(from: &str, to: &str) -> Rule {
    Rule { file: "services.toml".into(), line: 1, from: vec![from.parse().unwrap()], to: vec![to.parse().unwrap()] }
}

impl World {
    /// Who is honest may do everything, who is evil may call `front` from its own address and nothing else, and nobody may
    /// call it: what it sends is no answer.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = |name: &str| NodeKeys::load_or_make(&State::open(&dir.path().join(name)).unwrap()).unwrap();
        let (evil, honest) = (keys("evil"), keys("honest"));
        let mut map = netmap(7);
        map.node.blocks = vec![BlockMap { real: home(VICTIM), flat: Ipv4Net::new_assert(pod(VICTIM, 0), 24) }];
        map.sites = [("c1".parse().unwrap(), vec!["10.8.0.0/16".parse().unwrap()])].into();
        let (bad, good) = (peer(EVIL, &evil, &facts(EVIL)), peer(HONEST, &honest, &facts(HONEST)));
        map.peers = [(name(EVIL), bad), (name(HONEST), good)].into();
        let (front, cart) = (service(1, FRONT, (80, 8080), VICTIM), service(2, CART, (7070, 8070), HONEST));
        map.services = [(key("front"), front), (key("cart"), cart)].into();
        let allowed = [("host:honest", "any"), ("cart", "any"), ("front", "cart"), ("host:evil", "front:80")];
        map.rules = allowed.map(|(from, to)| rule(from, to)).into();
        Self { _dir: dir, evil, honest, map }
    }
}
