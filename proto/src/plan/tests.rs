#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod told;
mod trimming;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv4Net;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::placement::MAX_WARNINGS;
use super::*;
use crate::base::addr::Flat;
use crate::base::block_map::BlockMap;
use crate::base::clock::UnixTime;
use crate::base::id::{IdentityKey, NodeId, Revision, ServiceId, TunnelKey};
use crate::model::netmap::{Backend, Delta, LaneInfo, ServicePort, Transport};
use crate::model::rules::Rule;
use crate::services::{
    Allow, BackendAt, BackendSpec, HealthCheck, HealthSettings, Prefer, ServiceSpec, Services, Site, SiteKind, Span,
};
use crate::wire::{NodeFacts, ServeOffer};
use crate::world::{NodeRecord, Vip};

fn site(name: &str, locality: &str) -> Site {
    Site {
        name: name.parse().unwrap(),
        kind: SiteKind::Hosts,
        pods: vec!["10.8.0.0/14".parse().unwrap()],
        locality: locality.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect(),
    }
}

fn port(port: u16, target: u16) -> ServicePort {
    ServicePort { name: None, transport: Transport::Tcp, port, target }
}

/// A backend as `node` or `addr@node`, with a weight or without.
fn backend(at: &str, weight: Option<u32>) -> BackendSpec {
    let at = match at.split_once('@') {
        None => BackendAt::Host(at.parse().unwrap()),
        Some((addr, node)) => BackendAt::Pod { addr: addr.parse().unwrap(), node: node.parse().unwrap() },
    };
    BackendSpec { name: None, at, weight, port: None, span: Span::default() }
}

fn spec(key: &str, ports: Vec<ServicePort>, backends: Vec<BackendSpec>) -> ServiceSpec {
    ServiceSpec {
        key: key.parse().unwrap(),
        ports,
        backends,
        health: None,
        route: crate::services::Route::default(),
        strict: false,
        span: Span::default(),
    }
}

fn allow(line: u32, from: &[&str], to: &[&str]) -> Allow {
    let rule = Rule {
        file: "services.toml".into(),
        line,
        from: from.iter().map(|word| word.parse().unwrap()).collect(),
        to: to.iter().map(|word| word.parse().unwrap()).collect(),
    };
    Allow { rule, span: Span::default() }
}

/// Gives every service its address, in the order of the file.
fn world(services: Services) -> World {
    let mut world = World::new("boutique".parse().unwrap());
    world.revision = Revision(7);
    world.file = "services.toml".into();
    let vip = |(i, spec): (usize, &ServiceSpec)| {
        let address = Flat([241, 0, 0, i as u8 + 1].into());
        (spec.key.clone(), Vip { id: ServiceId(i as u32 + 1), address })
    };
    world.vips = Arc::new(services.services.iter().enumerate().map(vip).collect());
    world.services = Arc::new(services);
    world
}

fn record(number: u8, site: &str, pods: &[&str]) -> NodeRecord {
    let blocks = pods.iter().enumerate().map(|(i, real)| {
        let real: Ipv4Net = real.parse().unwrap();
        let flat = Ipv4Net::new([241, 2 + i as u8, number, 0].into(), real.prefix_len()).unwrap();
        BlockMap { real, flat }
    });
    let blocks: Vec<_> = blocks.collect();
    NodeRecord {
        contact: None,
        countersigned: None,
        lineage: Vec::new(),
        id: NodeId(number.into()),
        identity: Some(IdentityKey([number; 32])),
        site: site.parse().unwrap(),
        address: Flat([241, 1, 0, number].into()),
        facts: NodeFacts {
            lanes: vec![LaneInfo { key: TunnelKey([number; 32]), port: 51820 }],
            endpoints: vec![SocketAddr::from(([192, 0, 2, number], 51820))],
            pods: blocks.iter().map(|block| block.real).collect(),
            mtu: 1420,
            guarded: true,
            ..NodeFacts::default()
        },
        blocks,
        observed: None,
        grants: Vec::new(),
        token: None,
        joined_at: UnixTime(1),
    }
}

fn offer(service: &str, port: Option<u16>) -> ServeOffer {
    ServeOffer { service: service.parse().unwrap(), port }
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// Node n1 of c1 with pods, n2 of c2 with the same pods, and vm of dc, over these services, which anybody may call.
fn three_nodes(services: Vec<ServiceSpec>) -> World {
    let sites = vec![site("c1", "us-west1/b"), site("c2", "us-west1/c"), site("dc", "us-east1/b")];
    let allows = vec![allow(1, &["any"], &["any"])];
    let mut world = world(Services { sites, services, allows, ..Services::default() });
    world.insert_node(name("n1"), record(1, "c1", &["10.8.0.0/24"]));
    world.insert_node(name("n2"), record(2, "c2", &["10.8.0.0/24"]));
    world.insert_node(name("vm"), record(3, "dc", &[]));
    world
}

fn edit(world: &mut World, node: &str, f: impl FnOnce(&mut NodeRecord)) {
    let mut record = NodeRecord::clone(&world.nodes[&name(node)]);
    f(&mut record);
    world.insert_node(name(node), record);
}

/// The backends of a service as a node sees them: `address:port/weight/tier`.
fn backends(world: &World, node: &str, service: &str) -> Vec<String> {
    let netmap = plan(world, &name(node)).unwrap();
    let service = &netmap.services[&service.parse().unwrap()];
    let show = |backend: &Backend| {
        let port = backend.port.map_or_else(String::new, |port| format!(":{port}"));
        format!("{}{port}/{}/{}", backend.address, backend.weight, backend.tier)
    };
    service.backends.iter().map(show).collect()
}

#[test]
fn backends_become_flat_addresses() {
    let world = three_nodes(vec![spec(
        "catalog",
        vec![port(3550, 3550)],
        vec![backend("vm", Some(80)), backend("10.8.0.9@n1", Some(10)), backend("10.8.0.9@n2", Some(10))],
    )]);
    assert_eq!(backends(&world, "n1", "catalog"), ["241.1.0.3/80/0", "241.2.1.9/10/0", "241.2.2.9/10/0"]);
    assert!(plan(&world, &name("n1")).unwrap().warnings.is_empty());
    assert!(plan(&world, &name("nobody")).is_none());
}

#[test]
fn what_nobody_carries_is_left_out_with_a_warning() {
    let specs = vec![spec("cart", vec![port(1, 1)], vec![backend("late", None), backend("10.9.0.1@n1", None)])];
    let world = three_nodes(specs);
    assert!(backends(&world, "n2", "cart").is_empty());
    let said = plan(&world, &name("n2")).unwrap().warnings;
    assert!(said[0].contains("node `late` has not joined"), "{said:?}");
    assert!(said[1].contains("no pod block of node `n1` contains 10.9.0.1"), "{said:?}");
    assert_eq!(said, warnings(&world));
}

#[test]
fn an_offer_overrides_the_port_of_the_files_backend() {
    let mut world = three_nodes(vec![spec("catalog", vec![port(3550, 3550)], vec![backend("vm", None)])]);
    edit(&mut world, "vm", |vm| vm.facts.serve = vec![offer("catalog", Some(8080))]);
    assert_eq!(backends(&world, "vm", "catalog"), ["241.1.0.3:8080/100/0"]);
    assert!(refused_offers(&world, &name("vm")).is_empty());

    edit(&mut world, "vm", |vm| vm.facts.serve = vec![offer("catalog", Some(3550))]);
    assert_eq!(backends(&world, "vm", "catalog"), ["241.1.0.3/100/0"]);
}

#[test]
fn an_offer_adds_a_backend_only_where_granted() {
    let mut world = three_nodes(vec![spec("catalog", vec![port(3550, 3550)], vec![backend("10.8.0.9@n1", None)])]);
    for node in ["n1", "n2", "vm"] {
        edit(&mut world, node, |record| record.facts.serve = vec![offer("catalog", Some(9000))]);
    }
    edit(&mut world, "vm", |vm| vm.grants = vec!["catalog".parse().unwrap()]);

    assert_eq!(backends(&world, "n1", "catalog"), ["241.2.1.9/100/0", "241.1.0.1:9000/100/0", "241.1.0.3:9000/100/3"]);
    let own = plan(&world, &name("n2")).unwrap().warnings;
    assert!(own.len() == 1 && own[0].contains("neither its token nor the file grants"), "{own:?}");
    assert!(plan(&world, &name("vm")).unwrap().warnings.is_empty());
}

#[test]
fn an_offer_of_an_unknown_service_or_of_one_port_among_several_is_told() {
    let mut world = three_nodes(vec![spec("dns", vec![port(53, 53), port(54, 54)], vec![backend("vm", None)])]);
    edit(&mut world, "vm", |vm| vm.facts.serve = vec![offer("dsn", None), offer("dns", Some(9)), offer("dns", None)]);
    let said = refused_offers(&world, &name("vm"));
    assert!(said.len() == 2 && said[0].contains("no [[service]]") && said[1].contains("several ports"), "{said:?}");
    assert_eq!(backends(&world, "vm", "dns"), ["241.1.0.3/100/0"]);
}

#[test]
fn tiers_follow_the_preference() {
    let everywhere = |weight| ["n1", "n2", "vm"].map(|node| backend(node, weight)).to_vec();
    let tiers = |spec: ServiceSpec| -> Vec<u8> {
        let netmap = plan(&three_nodes(vec![spec]), &name("n1")).unwrap();
        netmap.services.values().flat_map(|s| s.backends.iter().map(|b| b.tier)).collect()
    };
    let plain = spec("s", vec![port(1, 1)], everywhere(None));
    assert_eq!(tiers(plain.clone()), [0, 2, 3], "own site, own region, elsewhere");
    assert_eq!(tiers(spec("s", vec![port(1, 1)], everywhere(Some(100)))), [0, 0, 0], "weights mean spread");
    let mut stated = spec("s", vec![port(1, 1)], everywhere(Some(100)));
    stated.route.prefer = Some(Prefer::Locality);
    assert_eq!(tiers(stated), [0, 2, 3]);
    let mut listed = plain;
    listed.route.prefer = Some(Prefer::Sites(vec!["dc".parse().unwrap(), "c2".parse().unwrap()]));
    assert_eq!(tiers(listed), [2, 1, 0]);
}

#[test]
fn another_site_of_the_same_zone_is_nearer_than_one_of_the_region() {
    let mut world = three_nodes(vec![spec("s", vec![port(1, 1)], vec![backend("n2", None)])]);
    let sites = vec![site("c1", "us-west1/b"), site("c2", "us-west1/b")];
    world.services = Arc::new(Services { sites, ..Services::clone(&world.services) });
    assert_eq!(backends(&world, "n1", "s"), ["241.1.0.2/100/1"]);
    let sites = vec![site("c1", ""), site("c2", "")];
    world.services = Arc::new(Services { sites, ..Services::clone(&world.services) });
    assert_eq!(backends(&world, "n1", "s"), ["241.1.0.2/100/3"]);
}

#[test]
fn endpoints_that_cannot_be_underlay_are_dropped_and_the_observed_one_comes_last() {
    let mut world = three_nodes(vec![]);
    edit(&mut world, "n2", |n2| {
        let own = [
            "127.0.0.1:51820",
            "0.0.0.0:51820",
            "169.254.1.1:51820",
            "224.0.0.1:51820",
            "241.1.0.1:51820",
            "255.255.255.255:51820",
            "10.8.0.1:51820",
            "[::]:51820",
            "[::1]:51820",
            "[fe80::1]:51820",
            "[ff02::1]:51820",
            "192.0.2.2:0",
            "192.0.2.2:51820",
            "[::ffff:192.0.2.2]:51820",
            "[2001:db8::2]:51820",
        ];
        n2.facts.endpoints = own.iter().map(|e| e.parse().unwrap()).collect();
        n2.observed = Some("198.51.100.2".parse().unwrap());
    });
    let endpoints = |world: &World| -> Vec<String> {
        let netmap = plan(world, &name("n1")).unwrap();
        netmap.peers[&name("n2")].endpoints.iter().map(SocketAddr::to_string).collect()
    };
    assert_eq!(endpoints(&world), ["192.0.2.2:51820", "[2001:db8::2]:51820", "198.51.100.2:51820"]);
    edit(&mut world, "n2", |n2| n2.observed = Some("192.0.2.2".parse().unwrap()));
    assert_eq!(endpoints(&world), ["192.0.2.2:51820", "[2001:db8::2]:51820"]);
}

#[test]
fn a_map_says_at_most_twenty_sentences() {
    let specs = (0..50).map(|i| spec(&format!("s{i}"), vec![port(1, 1)], vec![backend("late", None)]));
    let world = three_nodes(specs.collect());
    let said = plan(&world, &name("n1")).unwrap().warnings;
    assert_eq!(said.len(), MAX_WARNINGS);
    assert!(said[MAX_WARNINGS - 1].starts_with("31 more"), "{said:?}");
}

#[test]
fn rules_keep_their_order_file_and_line() {
    let mut world = three_nodes(vec![]);
    let allows = vec![allow(9, &["any"], &["site:c1"]), allow(3, &["host:vm"], &["any"])];
    world.services = Arc::new(Services { allows, ..Services::clone(&world.services) });
    let rules = plan(&world, &name("vm")).unwrap().rules;
    let lines: Vec<_> = rules.iter().map(|rule| (&*rule.file, rule.line)).collect();
    assert_eq!(lines, [("services.toml", 9), ("services.toml", 3)]);
}

/// A node that has joined: its pods, what it offers and may, where it is seen.
#[derive(Debug, Clone)]
struct Joined {
    pods: Vec<&'static str>,
    serves: Vec<(usize, Option<u16>)>,
    grants: Vec<usize>,
    observed: Option<[u8; 4]>,
    guarded: bool,
}

const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];
const PODS: [&str; 3] = ["10.8.0.0/24", "10.8.1.0/24", "10.9.0.7/32"];

fn joined() -> impl Strategy<Value = Joined> {
    let pods = subsequence(PODS.to_vec(), 0..=PODS.len());
    let serves = prop::collection::vec((0usize..6, prop::option::of(1u16..9000)), 0..4);
    let grants = prop::collection::vec(0usize..6, 0..3);
    (pods, serves, grants, prop::option::of(any::<[u8; 4]>()), any::<bool>())
        .prop_map(|(pods, serves, grants, observed, guarded)| Joined { pods, serves, grants, observed, guarded })
}

fn some_service() -> impl Strategy<Value = ServiceSpec> {
    let at = (0..NODES.len(), prop::option::of(0u8..20), prop::option::of(0u32..200));
    let prefer = prop_oneof![
        Just(None),
        Just(Some(Prefer::Spread)),
        Just(Some(Prefer::Locality)),
        Just(Some(Prefer::Sites(vec!["c2".parse().unwrap()]))),
    ];
    let ports = prop::collection::vec((1u16..9000, 1u16..9000), 1..3);
    (prop::collection::vec(at, 0..4), prefer, ports, any::<bool>()).prop_map(|(at, prefer, ports, sticky)| {
        let text = |(node, pod, weight): (usize, Option<u8>, Option<u32>)| {
            let node = NODES[node];
            let at = pod.map_or_else(|| node.to_owned(), |pod| format!("10.8.{}.{pod}@{node}", pod % 3));
            backend(&at, weight)
        };
        let ports = ports.into_iter().map(|(a, b)| port(a, b)).collect();
        let mut spec = spec("x", ports, at.into_iter().map(text).collect());
        spec.route.prefer = prefer;
        spec.route.sticky = sticky;
        spec
    })
}

fn some_world() -> impl Strategy<Value = World> {
    let nodes = prop::collection::vec(prop::option::weighted(0.8, joined()), NODES.len());
    let services = prop::collection::vec(prop::option::weighted(0.8, some_service()), 6);
    let rules = prop::collection::vec((1u32..99, any::<Index>(), any::<Index>()), 0..6);
    (1u64..99, nodes, services, rules).prop_map(|(revision, nodes, services, rules)| {
        let service = |(i, spec): (usize, Option<ServiceSpec>)| {
            let mut spec = spec?;
            spec.key = format!("s{i}").parse().unwrap();
            Some(spec)
        };
        let from = ["any", "s1", "host:a", "site:c1", "sa:default/x"];
        let to = ["any", "s1", "s2:7070", "host:b", "site:c2"];
        let rule = |(line, f, t): (u32, Index, Index)| allow(line, &[*f.get(&from[..])], &[*t.get(&to[..])]);
        let mut world = world(Services {
            sites: vec![site("c1", "r/z"), site("c2", "r/y")],
            services: services.into_iter().enumerate().filter_map(service).collect(),
            allows: rules.into_iter().map(rule).collect(),
            ..Services::default()
        });
        world.revision = Revision(revision);
        for (i, joined) in nodes.into_iter().enumerate() {
            let Some(joined) = joined else { continue };
            let mut node = record(i as u8 + 1, ["c1", "c2"][i % 2], &joined.pods);
            node.facts.serve = joined.serves.iter().map(|&(s, port)| offer(&format!("s{s}"), port)).collect();
            node.grants = joined.grants.iter().map(|s| format!("s{s}").parse().unwrap()).collect();
            node.observed = joined.observed.map(IpAddr::from);
            node.facts.guarded = joined.guarded;
            world.insert_node(name(NODES[i]), node);
        }
        world
    })
}

proptest! {
    #[test]
    fn a_delta_leads_from_one_map_to_another_exactly(old in some_world(), new in some_world()) {
        for node in NODES.map(name) {
            let (Some(a), Some(b)) = (plan(&old, &node), plan(&new, &node)) else { continue };
            let delta = Delta::between(&a, &b);
            let sent = serde_json::to_vec(&delta).unwrap();
            let received: Delta = serde_json::from_slice(&sent).unwrap();
            prop_assert_eq!(received.apply(&a), Ok(b.clone()));
            prop_assert_eq!(plan(&new.clone(), &node), Some(b));
        }
    }

    #[test]
    fn every_backend_lies_at_a_member_and_may_be_there(world in some_world()) {
        for node in NODES.map(name) {
            let Some(netmap) = plan(&world, &node) else { continue };
            prop_assert!(netmap.warnings.len() <= MAX_WARNINGS);
            prop_assert!(!netmap.peers.contains_key(&node));
            for (key, service) in &netmap.services {
                let spec = world.services.services.iter().find(|spec| spec.key == *key).unwrap();
                for backend in &service.backends {
                    let carrier = &world.nodes[&backend.node];
                    let is_image = carrier.blocks.iter().any(|block| block.flat.contains(&backend.address.0));
                    prop_assert!(backend.address == carrier.address || is_image);
                    let is_named = spec.backends.iter().any(|b| *b.at.node() == backend.node);
                    prop_assert!(is_named || carrier.grants.contains(key));
                }
            }
        }
    }

    #[test]
    fn equal_worlds_differ_in_nothing_that_can_be_told(world in some_world()) {
        prop_assert_eq!(differences(&world, &world), Vec::<String>::new());
    }
}
