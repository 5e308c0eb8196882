//! Missing or broken state means deny, never open: a row for each thing that may be missing or broken.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::Ipv4Addr;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::{NodeId, ServiceId, TunnelKey};
use mesh_proto::dataplane::engine::Engine;
use mesh_proto::dataplane::flow::FlowTable;
use mesh_proto::dataplane::verdict::{Drop, Refuse, Verdict};
use mesh_proto::dataplane::view::View;
use mesh_proto::dns::zone::{self, Answer, QueryType};
use mesh_proto::model::netmap::{LaneInfo, Peer, Proof, Service, ServicePort, Transport};
use mesh_proto::model::rules::Rule;
use mesh_proto::packet::{Checksum, Header, complete};
use mesh_proto::trust::offline_lease::Lease;
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::{NodeFacts, WatchEvent};

use super::*;
use crate::api::status;
use crate::base::files::{ENROLMENT, IDENTITY_KEY, NETMAP, NETMAP_ASIDE, PREVIOUS_NETMAP, StateFile, TUNNEL_KEY};
use crate::base::state_dir::StateError;
use crate::base::state_dir::tests::{enrolment, netmap};
use crate::control::ChannelState;
use crate::keys::node::NodeKeys;
use crate::linux;
use crate::node::believed;
use crate::node::error::DaemonError;
use crate::node::snapshot::Snapshot;

/// What may be missing or broken, what the node does then, and what shows it.
const TABLE: [(&str, &str, fn()); 9] = [
    ("no policy was ever received", "deny all new flows, answer names by itself", nothing_received),
    ("the coordinator is gone", "enforce the cached policy, and warn", coordinator_gone),
    ("no coordinator for longer than max_offline", "speak to nobody new", lease_over),
    ("the cached state is damaged", "the generation before, else deny and fetch", cache_damaged),
    ("the trust root is missing", "no tunnels, exit 78", trust_root_missing),
    (
        "meshd is dead",
        "the range is unreachable, never the default route",
        linux::tests::lifecycle::without_its_interface_the_range_is_unreachable_and_never_the_default_route,
    ),
    ("a name of the mesh is unknown", "it does not exist, and nobody else is asked", name_unknown),
    ("a service has no backend", "refused at once", no_backend),
    ("a newer version speaks", "deny what is not understood, keep the rest", not_understood),
];

#[test]
fn missing_or_broken_state_denies_and_never_opens() {
    let mut wrong = Vec::new();
    for (what, then, shown) in TABLE {
        if std::panic::catch_unwind(shown).is_err() {
            wrong.push(format!("{what}: {then}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const OWN: [u8; 4] = [241, 1, 0, 1];
const FRIEND: [u8; 4] = [241, 1, 0, 2];
const STRANGER: [u8; 4] = [241, 1, 0, 3];
const VIP: [u8; 4] = [241, 0, 0, 1];
const NOW: Timestamp = Timestamp::from_millis(5_000_000);

/// A state directory of a node that has joined.
struct Home {
    _dir: tempfile::TempDir,
    state: State,
    friend: NodeKeys,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let friend = NodeKeys::load_or_make(&State::open(&dir.path().join("friend")).unwrap()).unwrap();
        NodeKeys::load_or_make(&state).unwrap();
        state.save_enrolment(&enrolment()).unwrap();
        Self { _dir: dir, state, friend }
    }

    /// A map with a friend who may call this node and a stranger who may not, and a service without backends.
    fn map(&self, revision: u64) -> NetMap {
        let mut map = netmap(revision);
        let friend = peer(2, FRIEND, &self.friend);
        let stranger = Peer { proof: None, ..peer(3, STRANGER, &self.friend) };
        map.peers = [("friend".parse().unwrap(), friend), ("stranger".parse().unwrap(), stranger)].into();
        let port = ServicePort { name: None, transport: Transport::Tcp, port: 80, target: 80 };
        let service = Service {
            id: ServiceId(1),
            vip: mesh_proto::base::addr::Flat(VIP.into()),
            ports: vec![port],
            backends: Vec::new(),
            grants: Default::default(),
            sticky: false,
            strict: false,
        };
        map.services = [("shop".parse().unwrap(), service)].into();
        map.rules = vec![rule("host:friend", "host:n1"), rule("host:n1", "any")];
        map
    }

    fn start(&self) -> Start {
        start(&self.state, &enrolment(), &mut MapGuard::new(Some(self.state.clone())))
    }

    fn flip(&self, file: StateFile) {
        let mut bytes = fs::read(self.state.path(file)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(self.state.path(file), bytes).unwrap();
    }
}

fn peer(id: u32, address: [u8; 4], keys: &NodeKeys) -> Peer {
    let lanes = vec![LaneInfo { key: TunnelKey([id as u8; 32]), port: 51820 }];
    let endpoints = vec!["192.0.2.2:51820".parse().unwrap()];
    let facts = NodeFacts { lanes, endpoints, mtu: 1420, guarded: true, sequence: 7, ..NodeFacts::default() };
    let text = facts.text();
    let signature = keys.sign(&SignedRecord::message(&text));
    let record = SignedRecord { text: text.into(), signature };
    Peer {
        agreement: Vec::new(),
        id: NodeId(id),
        site: "c2".parse().unwrap(),
        address: mesh_proto::base::addr::Flat(address.into()),
        blocks: Vec::new(),
        lanes: facts.lanes,
        endpoints: facts.endpoints,
        mtu: facts.mtu,
        guarded: facts.guarded,
        previous: Vec::new(),
        proof: Some(Proof { identity: keys.identity(), record, pods: Vec::new(), lineage: Vec::new() }),
        countersigned: None,
    }
}

fn rule(from: &str, to: &str) -> Rule {
    Rule { file: "services.toml".into(), line: 1, from: vec![from.parse().unwrap()], to: vec![to.parse().unwrap()] }
}

fn syn(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
    packet.extend([from, to].concat());
    packet.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = packet[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let header = Header::parse(&packet).unwrap();
    complete(&mut packet, &header);
    packet
}

/// What becomes of calls by the friend and the stranger, and of calls to the friend and to the service.
fn verdicts(map: &VerifiedMap) -> [Verdict; 4] {
    let mut engine = Engine::new(Arc::new(View::compile(map.clone())), Arc::new(FlowTable::new(1024)));
    let friend = engine.inbound(NodeId(2), &mut syn(FRIEND, OWN), NOW);
    let stranger = engine.inbound(NodeId(3), &mut syn(STRANGER, OWN), NOW);
    let to_friend = engine.outbound(&mut syn(OWN, FRIEND), Checksum::Complete, NOW);
    let to_service = engine.outbound(&mut syn(OWN, VIP), Checksum::Complete, NOW);
    assert!(!engine.reply().is_empty(), "the last is refused aloud");
    [friend, stranger, to_friend, to_service]
}

const ENFORCED: [Verdict; 4] = [
    Verdict::Deliver,
    Verdict::Refuse(Refuse::Denied),
    Verdict::Forward(NodeId(2)),
    Verdict::Refuse(Refuse::NoBackend),
];
const CLOSED: [Verdict; 4] = [
    Verdict::Drop(Drop::SpoofedSource),
    Verdict::Drop(Drop::SpoofedSource),
    Verdict::Refuse(Refuse::NoRoute),
    Verdict::Refuse(Refuse::UnknownService),
];

fn asked(map: &NetMap, name: &str) -> Answer {
    zone::answer(map, name, QueryType::A)
}

fn nothing_received() {
    let home = Home::new();
    let started = home.start();
    assert_eq!(verdicts(&started.map), CLOSED);
    assert!(started.current.is_none());
    // Not `NotOurs`: that would be forwarded to the resolvers of the host.
    assert!(matches!(asked(&started.map, "shop.mesh.internal"), Answer::NxDomain(_)));
    let named = Enrolment { domains: vec!["corp.example".parse().unwrap()], ..enrolment() };
    assert!(matches!(asked(&empty(&named), "shop.corp.example"), Answer::NxDomain(_)));
    let own = asked(&started.map, "n1.node.mesh.internal");
    assert_eq!(own, Answer::Records(vec![zone::Record::A(Ipv4Addr::from(OWN))]));
}

fn coordinator_gone() {
    let home = Home::new();
    home.state.save_netmap(&home.map(5)).unwrap();
    let before = verdicts(&VerifiedMap::by_hand(home.map(5)));
    let started = home.start();
    assert_eq!((verdicts(&started.map), before), (ENFORCED, ENFORCED), "the cache holds all that enforcement needs");
    let link = ChannelState { error: Some("nobody answers".into()), ..ChannelState::default() };
    let problems = status::problems(&Snapshot { enrolment: Some(enrolment()), link, ..Snapshot::default() });
    assert!(problems[0].cause.contains("no control channel: nobody answers"), "{problems:?}");
}

fn lease_over() {
    let home = Home::new();
    home.state.save_netmap(&home.map(5)).unwrap();
    let started = home.start();
    let after = |before, friend: Option<&str>| {
        let mut lease = Lease::new(Some(Duration::from_secs(60)), before, NOW);
        let talking = || friend.iter().map(|name| name.parse().unwrap()).collect();
        lease.look(talking, NOW + Duration::from_secs(60));
        verdicts(&believed(&started.map, &lease))
    };
    let friend = [ENFORCED[0], CLOSED[1], ENFORCED[2], ENFORCED[3]];
    assert_eq!(after(Duration::ZERO, Some("friend")), friend, "whoever is spoken to stays");
    let closed = [CLOSED[0], CLOSED[1], CLOSED[2], ENFORCED[3]];
    assert_eq!(after(Duration::ZERO, None), closed);
    assert_eq!(after(Duration::from_secs(60), Some("friend")), closed, "a restart after the lease is over");
}

fn cache_damaged() {
    let home = Home::new();
    let older = NetMap { rules: Vec::new(), ..home.map(5) };
    home.state.save_netmap(&older).unwrap();
    home.state.save_netmap(&home.map(6)).unwrap();
    assert_eq!(home.start().map.revision.0, 6);
    home.flip(NETMAP);
    let started = home.start();
    assert_eq!((started.map.revision.0, verdicts(&started.map)[0]), (5, Verdict::Refuse(Refuse::Denied)));
    home.flip(PREVIOUS_NETMAP);
    let started = home.start();
    assert_eq!(verdicts(&started.map), CLOSED);
    assert!(started.current.is_none(), "so that all is fetched anew");
    assert!(started.note.unwrap().contains("denies everything"));

    let mut forged = home.map(7);
    forged.peers.values_mut().for_each(|peer| peer.lanes[0].key = TunnelKey([66; 32]));
    pass(&home.state);
    home.state.save_netmap(&forged).unwrap();
    assert!(!home.start().map.peers.contains_key(&"friend".parse().unwrap()), "its signature says otherwise");

    pass(&home.state);
    home.state.save_netmap(&NetMap { node: empty(&enrolment()).node, ..home.map(8) }).unwrap();
    let stranger = Enrolment { id: NodeId(9), ..enrolment() };
    let started = start(&home.state, &stranger, &mut MapGuard::new(None));
    assert_eq!(started.map.peers.len(), 0, "the map of another node");
}

fn trust_root_missing() {
    let refused = |home: &Home| {
        let error = home.state.enrolment().and_then(|_| NodeKeys::load(&home.state)).unwrap_err();
        let told = error.to_string();
        assert!(told.contains("meshd leave"), "says what to do: {told}");
        assert!(matches!(DaemonError::from(error), DaemonError::Trust(_)), "{told}");
    };
    for file in [ENROLMENT, IDENTITY_KEY, TUNNEL_KEY] {
        let home = Home::new();
        home.flip(file);
        refused(&home);
    }
    let home = Home::new();
    fs::remove_file(home.state.path(IDENTITY_KEY)).unwrap();
    refused(&home);
    assert!(!home.state.path(IDENTITY_KEY).exists(), "nobody knows a new one");
    let home = Home::new();
    home.state.save_enrolment(&Enrolment { pins: Vec::new(), ..enrolment() }).unwrap();
    refused(&home);
    // A disk that does not answer is another matter: that may pass.
    assert!(matches!(DaemonError::from(StateError::Locked { dir: "s".into(), process: None }), DaemonError::State(_)));
}

fn name_unknown() {
    let home = Home::new();
    let map = home.map(5);
    for name in ["nobody.mesh.internal", "nobody.node.mesh.internal", "a.b.c.mesh.internal", "9.9.0.241.in-addr.arpa"] {
        let answer = asked(&map, name);
        assert!(matches!(answer, Answer::NxDomain(_) | Answer::NoData(_)), "{name}: {answer:?}");
    }
    assert_eq!(asked(&map, "example.com"), Answer::NotOurs);
}

fn no_backend() {
    let map = VerifiedMap::by_hand(Home::new().map(5));
    let mut engine = Engine::new(Arc::new(View::compile(map)), Arc::new(FlowTable::new(1024)));
    let verdict = engine.outbound(&mut syn(OWN, VIP), Checksum::Complete, NOW);
    assert_eq!(verdict, Verdict::Refuse(Refuse::NoBackend));
    let reply = engine.reply();
    assert_eq!((reply[9], reply[33] & 4), (6, 4), "a reset, at once");
}

fn not_understood() {
    let home = Home::new();
    let mut text = serde_json::to_value(home.map(5)).unwrap();
    let rules = text["rules"].as_array_mut().unwrap();
    rules.insert(0, serde_json::json!({"file": "f", "line": 1, "from": ["any"], "to": ["any"], "when": "night"}));
    rules[0]["from"][0] = "moon:full".into();
    rules.push(serde_json::json!({"newer": true}));
    let service = &mut text["services"]["shop"];
    service["ports"].as_array_mut().unwrap().push(serde_json::json!({"transport": "sctp", "port": 81, "target": 81}));
    service["grants"] = serde_json::json!({"stranger": "whim", "friend": "file"});
    text["invented"] = 7.into();
    let map: NetMap = serde_json::from_value(text).unwrap();
    assert_eq!(map.rules, home.map(5).rules);
    let service = &map.services[&"shop".parse().unwrap()];
    assert_eq!((service.ports.len(), service.grants.len()), (1, 1));
    assert_eq!(verdicts(&VerifiedMap::by_hand(map)), ENFORCED);
    let event: WatchEvent = serde_json::from_str(r#"{"type":"invented","x":1}"#).unwrap();
    assert_eq!(event, WatchEvent::Unknown);
}

#[test]
fn three_deaths_in_a_row_set_the_cached_map_aside() {
    let home = Home::new();
    home.state.save_netmap(&home.map(5)).unwrap();
    home.state.save_netmap(&home.map(6)).unwrap();
    for death in 0..3 {
        let started = home.start();
        assert!(started.on_trial && started.map.revision.0 == 6, "start {death} is from the cache");
    }
    let started = home.start();
    assert_eq!((verdicts(&started.map), started.current), (CLOSED, None));
    let note = started.note.unwrap();
    assert!(note.contains("netmap.aside") && note.contains("died 3 times"), "{note}");
    assert_eq!(home.state.netmap(), None);
    assert!(home.state.path(NETMAP_ASIDE).exists());

    // What the coordinator sends then is cached and used again.
    home.state.save_netmap(&home.map(7)).unwrap();
    assert_eq!(home.start().map.revision.0, 7);
}

#[test]
fn deaths_count_only_in_a_row_and_a_spoilt_count_only_denies() {
    let home = Home::new();
    home.state.save_netmap(&home.map(5)).unwrap();
    for _ in 0..4 {
        home.start();
        home.start();
        assert_eq!(home.start().map.revision.0, 5);
        pass(&home.state);
    }
    for text in ["", "-1", "many", "99999999999999999999"] {
        home.state.replace(TRIAL, text.as_bytes()).unwrap();
        assert_eq!(home.start().map.revision.0, 5, "{text:?}");
    }
    home.state.replace(TRIAL, b"7").unwrap();
    assert_eq!(verdicts(&home.start().map), CLOSED);
}
