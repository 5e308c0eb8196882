//! Every key of the grammar is flipped in a real text, and something behind the map differs: a verdict, an answer, what a
//! tunnel is made of, or what `check` says. A key for which nothing is built refuses the text.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::dataplane::engine::Engine;
use mesh_proto::dataplane::explain::explain;
use mesh_proto::dataplane::flow::FlowTable;
use mesh_proto::dataplane::verdict::Verdict;
use mesh_proto::dataplane::view::View;
use mesh_proto::dns::zone::{Answer, QueryType, Record, answer};
use mesh_proto::model::netmap::NetMap;
use mesh_proto::packet::Checksum;
use mesh_proto::plan::plan;
use mesh_proto::services::{self, FileTable};
use mesh_proto::verifier::VerifiedMap;
use mesh_proto::wire::ServeOffer;

use super::*;

/// Sites c1 with node n1, c2 with n2 and dc with vm; pod 10.8.0.11 of n1 is `web` and may call `cart`.
const BASE: &str = r#"version = 1
[mesh]
name = "boutique"
default = "deny"
domains = ["mesh.internal"]
v4 = "241.0.0.0/8"
[[site]]
name = "c1"
pods = ["10.8.0.0/14"]
locality = "us/a"
[[site]]
name = "c2"
kind = "hosts"
pods = ["10.8.0.0/14"]
locality = "eu/b"
[[site]]
name = "dc"
locality = "us/c"
[[node]]
name = "router"
key = "mEO9f2SJ1cFyUxV2gPbzWvQQHNv2ZBuA3V0aZJ8r1mE="
endpoint = "203.0.113.9:7777"
site = "dc"
[[service]]
name = "web"
port = 80
backends = [{ addr = "10.8.0.11", node = "n1" }]
[[service]]
name = "cart"
namespace = "default"
port = "7070->8080"
route = { prefer = "spread", sticky = "none" }
backends = [
  { name = "pod", addr = "10.8.0.10", node = "n2", weight = 50 },
  { host = "vm", weight = 50, port = 9090 },
]
[[service]]
name = "dns"
ports = { dns = 53 }
backends = [{ host = "vm" }]
[[allow]]
from = ["web"]
to = ["cart", "dns", "host:router", "site:c2"]
[[test]]
from = "web"
accept = ["cart:7070"]
deny = ["web:80"]
"#;
const WEB: [u8; 4] = [10, 8, 0, 11];

/// Keys of a table, and the test that flips them.
type Flip = (FileTable, &'static [&'static str], fn());

/// Every key, and the test that flips it. `bind` is the node's own business: its test is named by its file.
const FLIPS: &[Flip] = &[
    (FileTable::Mesh, &["name"], the_name_of_the_mesh_is_told_to_its_nodes),
    (FileTable::Mesh, &["default"], what_is_reserved_refuses_the_text),
    (FileTable::Mesh, &["domains"], names_are_answered_below_the_domains),
    (FileTable::Mesh, &["v4"], addresses_come_from_the_range),
    (FileTable::Mesh, &["v6"], what_is_reserved_refuses_the_text),
    (FileTable::Site, &["name", "pods"], nodes_and_their_pods_belong_to_a_site),
    (FileTable::Site, &["kind"], a_cluster_has_pods),
    (FileTable::Site, &["locality"], near_backends_are_where_the_locality_says),
    (FileTable::Node, &["name", "key", "endpoint"], a_static_node_is_called_and_spoken_to_as_the_text_says),
    (FileTable::Node, &["site"], a_static_node_is_allowed_as_its_site),
    (FileTable::Service, &["name", "namespace"], services_are_called_by_their_names),
    (FileTable::Service, &["port", "ports"], callers_dial_the_ports_of_a_service),
    (FileTable::Service, &["backends"], calls_reach_the_backends),
    (FileTable::Service, &["route"], near_backends_are_where_the_locality_says),
    (FileTable::Service, &["health", "strict"], what_is_reserved_refuses_the_text),
    (FileTable::Backend, &["host", "addr", "node", "port"], calls_reach_the_backends),
    (FileTable::Backend, &["weight"], connections_are_shared_by_weight),
    (FileTable::Backend, &["name"], a_backend_bears_its_name),
    (FileTable::Backend, &["kubernetes", "via"], what_is_reserved_refuses_the_text),
    (FileTable::Route, &["prefer"], near_backends_are_where_the_locality_says),
    (FileTable::Route, &["sticky"], a_client_of_a_sticky_service_keeps_its_backend),
    (FileTable::Route, &["spill_below", "max_conn_age", "retry_syn"], what_is_reserved_refuses_the_text),
    (FileTable::Health, &["tcp", "http", "grpc", "every", "fall", "rise"], what_is_reserved_refuses_the_text),
    (FileTable::Allow, &["from", "to"], calls_pass_by_a_rule),
    (FileTable::Test, &["from", "accept", "deny"], a_test_judges_the_text),
    (FileTable::Serve, &["service", "port"], a_node_serves_what_its_text_says),
    (FileTable::Serve, &["health"], what_is_reserved_refuses_the_text),
];
const BIND: (&str, &str) =
    (include_str!("../../../../meshd/src/proxy/loopback.rs"), "fn a_bind_leads_to_the_loopback_server");

#[test]
fn every_key_of_the_grammar_is_flipped_by_a_test() {
    let all = FileTable::ALL.iter().flat_map(|table| table.keys().iter().map(|key| (*table, *key)));
    let all: BTreeSet<_> = all.collect();
    let mut flipped: BTreeSet<_> =
        FLIPS.iter().flat_map(|(table, keys, _)| keys.iter().map(|key| (*table, *key))).collect();
    flipped.insert((FileTable::Serve, "bind"));
    assert_eq!(flipped, all);
    assert!(BIND.0.contains(BIND.1), "no test flips `bind` of [[serve]]");
}

/// `BASE` with one thing altered; each must be there.
fn but(edits: &[(&str, &str)]) -> String {
    edits.iter().fold(BASE.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    })
}

/// What `check` says of a text, by number.
fn judged(text: &str) -> Vec<&'static str> {
    match services::parse(text, "f") {
        Ok(parsed) => parsed.warnings.iter().map(|d| d.code).collect(),
        Err(all) => all.list.iter().map(|d| d.code).collect(),
    }
}

/// A mesh with this text in force, and all of the three nodes that it lets in.
fn mesh(text: &str) -> Registry {
    let mut registry = Registry::open(Box::new(Memory::new()), setup()).unwrap();
    let services = match services::parse(text, "services.toml") {
        Ok(parsed) => Arc::new(parsed.services),
        Err(all) => panic!("{all}"),
    };
    registry.apply(Change::Services { file: "services.toml".into(), text: text.into(), services }, BY, NOW).unwrap();
    for (number, name, site, pods) in
        [(1, "n1", "c1", &["10.8.0.0/24"][..]), (2, "n2", "c2", &["10.8.0.0/24"]), (3, "vm", "dc", &[])]
    {
        // Who is not let in is not there.
        if registry.apply(Change::TokenCreate(spec(number, site)), BY, NOW).is_ok() {
            let _ = ask(&mut registry, number, request(number, name, facts(number, pods)));
        }
    }
    registry
}

/// What n1 is told.
fn map(registry: &Registry) -> NetMap {
    plan(&registry.world(), &"n1".parse().unwrap()).unwrap()
}

/// What n1 answers when it is asked for a name.
fn resolve(map: &NetMap, name: &str) -> Option<Ipv4Addr> {
    match answer(map, name, QueryType::A) {
        Answer::Records(records) => records.into_iter().find_map(|record| match record {
            Record::A(address) => Some(address),
            Record::Ptr(_) | Record::Ns(_) | Record::Soa(_) => None,
        }),
        Answer::NoData(_) | Answer::NxDomain(_) | Answer::NotOurs => None,
    }
}

/// What becomes of a call of `web` to a name and a port, with the place that takes it.
fn call(text: &str, name: &str, port: u16) -> String {
    let map = map(&mesh(text));
    let Some(target) = resolve(&map, name) else { return "no such name".into() };
    let view = View::compile(VerifiedMap::by_hand(map));
    let told = explain(&view, WEB.into(), target, 6, port);
    match told.backend {
        Some(backend) if told.allowed => format!("{} {}:{}", backend.node, backend.address, backend.port),
        Some(_) | None => told.verdict,
    }
}

fn cart(edits: &[(&str, &str)]) -> String {
    call(&but(edits), "cart.mesh.internal", 7070)
}

/// Which nodes take 100 connections of `web` to `cart`, one from each port.
fn takers(edits: &[(&str, &str)]) -> (usize, usize) {
    let registry = mesh(&but(edits));
    let map = map(&registry);
    let vip = resolve(&map, "cart.mesh.internal").unwrap();
    let vm = node(&registry, "vm").id;
    let view = Arc::new(View::compile(VerifiedMap::by_hand(map)));
    let mut engine = Engine::new(view, Arc::new(FlowTable::new(4096)));
    let taken = (0..100u16).map(|i| {
        let mut syn = [0; 40];
        syn[..10].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
        syn[12..16].copy_from_slice(&WEB);
        syn[16..20].copy_from_slice(&vip.octets());
        syn[20..22].copy_from_slice(&(40_000 + i).to_be_bytes());
        syn[22..24].copy_from_slice(&7070u16.to_be_bytes());
        syn[32..34].copy_from_slice(&[0x50, 2]);
        match engine.outbound(&mut syn, Checksum::Complete, Timestamp::from_millis(1_000_000)) {
            Verdict::Forward(to) => to == vm,
            other @ (Verdict::Deliver
            | Verdict::Reply
            | Verdict::Refuse(_)
            | Verdict::Drop(_)
            | Verdict::RoundTrip(_)
            | Verdict::Bench) => panic!("{other:?}"),
        }
    });
    let to_vm = taken.filter(|to_vm| *to_vm).count();
    (100 - to_vm, to_vm)
}

#[test]
fn the_name_of_the_mesh_is_told_to_its_nodes() {
    let name = |edits| map(&mesh(&but(edits))).mesh.name.to_string();
    assert_eq!((name(&[]), name(&[("\"boutique\"", "\"shop\"")])), ("boutique".into(), "shop".into()));
}

#[test]
fn names_are_answered_below_the_domains() {
    let moved = but(&[("\"mesh.internal\"", "\"global\"")]);
    assert_eq!(call(&moved, "cart.mesh.internal", 7070), "no such name");
    assert_eq!(call(&moved, "cart.global", 7070), cart(&[]));
}

#[test]
fn addresses_come_from_the_range() {
    let vip = |edits| resolve(&map(&mesh(&but(edits))), "cart.mesh.internal").unwrap().to_string();
    assert!(vip(&[]).starts_with("241.0."), "{}", vip(&[]));
    let moved = vip(&[("241.0.0.0/8", "10.200.0.0/16")]);
    assert!(moved.starts_with("10.200."), "{moved}");
}

#[test]
fn nodes_and_their_pods_belong_to_a_site() {
    assert!(mesh(BASE).world().nodes.contains_key(&"vm".parse().unwrap()));
    let renamed = mesh(&but(&[("name = \"dc\"", "name = \"dc2\""), ("site = \"dc\"", "site = \"dc2\"")]));
    assert!(!renamed.world().nodes.contains_key(&"vm".parse().unwrap()), "a token names a site that is there");
    let only_pod = ("  { host = \"vm\", weight = 50, port = 9090 },\n", "");
    assert_eq!(cart(&[only_pod]), "n2 241.2.1.10:8080");
    let pods = ("kind = \"hosts\"\npods = [\"10.8.0.0/14\"]", "kind = \"hosts\"\npods = [\"10.12.0.0/14\"]");
    assert_eq!(cart(&[only_pod, pods]), "no_backend", "a block outside of the site's pods lets nobody in");
}

#[test]
fn a_cluster_has_pods() {
    let bare = ("kind = \"hosts\"\npods = [\"10.8.0.0/14\"]", "kind = \"hosts\"");
    assert_eq!(judged(&but(&[bare])), [""; 0]);
    assert_eq!(judged(&but(&[bare, ("kind = \"hosts\"", "kind = \"kubernetes\"")])), ["MESH0145"]);
}

#[test]
fn near_backends_are_where_the_locality_says() {
    let route = |prefer: &'static str| ("prefer = \"spread\"", prefer);
    assert_eq!(takers(&[]), (50, 50));
    assert_eq!(takers(&[("route = { prefer = \"spread\", sticky = \"none\" }\n", "")]), (50, 50));
    assert_eq!(takers(&[route("prefer = \"locality\"")]), (0, 100));
    assert_eq!(takers(&[route("prefer = [\"c2\"]")]), (100, 0));
    let nearer = [route("prefer = \"locality\""), ("\"eu/b\"", "\"us/a\"")];
    assert_eq!(takers(&nearer), (100, 0));
}

#[test]
fn a_static_node_is_called_and_spoken_to_as_the_text_says() {
    let map_of = |edits| map(&mesh(&but(edits)));
    let name = |edits| resolve(&map_of(edits), "router.node.mesh.internal");
    assert!(name(&[]).is_some());
    let renamed = [("name = \"router\"", "name = \"gate\""), ("host:router", "host:gate")];
    assert!(name(&renamed).is_none() && resolve(&map_of(&renamed), "gate.node.mesh.internal").is_some());
    let peer = |edits| map_of(edits).peers[&"router".parse().unwrap()].clone();
    let key = [("mEO9", "AEO9")];
    assert_ne!(peer(&[]).lanes[0].key, peer(&key).lanes[0].key);
    let endpoint = peer(&[("203.0.113.9:7777", "203.0.113.10:7778")]);
    assert_eq!((peer(&[]).endpoints[0].port(), endpoint.endpoints[0].port()), (7777, 7778));
}

#[test]
fn a_static_node_is_allowed_as_its_site() {
    let reach = |site| {
        let text = but(&[("\"host:router\", ", ""), ("site = \"dc\"\n", site)]);
        let registry = mesh(&text);
        let view = View::compile(VerifiedMap::by_hand(map(&registry)));
        explain(&view, WEB.into(), node(&registry, "router").address.0, 6, 22).allowed
    };
    assert!(!reach("site = \"dc\"\n") && reach("site = \"c2\"\n"));
}

#[test]
fn services_are_called_by_their_names() {
    assert_ne!(cart(&[]), "no such name");
    let renamed =
        but(&[("name = \"cart\"", "name = \"trolley\""), ("\"cart\", ", "\"trolley\", "), ("cart:", "trolley:")]);
    assert_eq!(call(&renamed, "cart.mesh.internal", 7070), "no such name");
    assert_eq!(call(&renamed, "trolley.mesh.internal", 7070), cart(&[]));
    let moved = [("\"default\"", "\"prod\""), ("\"cart\", ", "\"cart.prod\", "), ("cart:", "cart.prod:")];
    assert_eq!(cart(&moved), "no such name");
    assert_eq!(call(&but(&moved), "cart.prod.mesh.internal", 7070), cart(&[]));
}

#[test]
fn callers_dial_the_ports_of_a_service() {
    let moved = [("7070->8080", "7071->8080"), ("cart:7070", "cart:7071")];
    assert_eq!(cart(&moved), "closed_port");
    assert_eq!(call(&but(&moved), "cart.mesh.internal", 7071), cart(&[]));
    assert!(cart(&[("7070->8080", "7070->8081"), (", port = 9090", "")]).ends_with(":8081"));
    let dns = |edits| call(&but(edits), "dns.mesh.internal", 53);
    assert!(dns(&[]).starts_with("vm "), "{}", dns(&[]));
    assert_eq!(dns(&[("{ dns = 53 }", "{ dns = 54 }")]), "closed_port");
}

#[test]
fn calls_reach_the_backends() {
    let pod = ("  { name = \"pod\", addr = \"10.8.0.10\", node = \"n2\", weight = 50 },\n", "");
    let vm = ("  { host = \"vm\", weight = 50, port = 9090 },\n", "");
    assert_eq!(cart(&[pod, vm]), "no_backend");
    let address = node(&mesh(BASE), "vm").address;
    assert_eq!(cart(&[pod]), format!("vm {address}:9090"));
    assert_eq!(cart(&[pod, (", port = 9090", "")]), format!("vm {address}:8080"));
    assert!(cart(&[pod, ("host = \"vm\", weight", "host = \"n2\", weight")]).starts_with("n2 241.1."));
    assert_eq!(cart(&[vm]), "n2 241.2.1.10:8080");
    assert_eq!(cart(&[vm, ("\"10.8.0.10\"", "\"10.8.0.77\"")]), "n2 241.2.1.77:8080");
    assert_eq!(cart(&[vm, ("node = \"n2\"", "node = \"n1\"")]), "n1 241.2.0.10:8080");
}

#[test]
fn connections_are_shared_by_weight() {
    assert_eq!(takers(&[("node = \"n2\", weight = 50", "node = \"n2\", weight = 150")]), (75, 25));
    assert_eq!(takers(&[("node = \"n2\", weight = 50", "node = \"n2\", weight = 0")]), (0, 100));
}

#[test]
fn a_backend_bears_its_name() {
    let names = |edits| {
        let map = map(&mesh(&but(edits)));
        let backends = map.services[&"cart".parse().unwrap()].backends.iter();
        backends.filter_map(|backend| backend.name.as_ref().map(ToString::to_string)).collect::<Vec<_>>()
    };
    assert_eq!((names(&[]), names(&[("\"pod\"", "\"new\"")])), (vec!["pod".into()], vec!["new".to_owned()]));
}

#[test]
fn a_client_of_a_sticky_service_keeps_its_backend() {
    let (pod, vm) = takers(&[("sticky = \"none\"", "sticky = \"client\"")]);
    assert!((pod, vm) == (100, 0) || (pod, vm) == (0, 100), "{pod} and {vm}");
}

#[test]
fn calls_pass_by_a_rule() {
    assert_ne!(cart(&[]), "denied");
    let untested = ("accept = [\"cart:7070\"]\n", "");
    // `site:c2` alone would let the call pass to n2.
    let alone = (", \"host:router\", \"site:c2\"", "");
    assert_eq!(cart(&[untested, alone, ("from = [\"web\"]", "from = [\"cart\"]")]), "denied");
    assert_eq!(cart(&[untested, alone, ("to = [\"cart\", \"dns\"", "to = [\"dns\"")]), "denied");
}

#[test]
fn a_test_judges_the_text() {
    assert_eq!(judged(BASE), [""; 0]);
    assert_eq!(judged(&but(&[("from = \"web\"\naccept", "from = \"dns\"\naccept")])), ["MESH0160"]);
    assert_eq!(judged(&but(&[("accept = [\"cart:7070\"]", "accept = [\"web:80\"]")])), ["MESH0160"]);
    assert_eq!(judged(&but(&[("deny = [\"web:80\"]", "deny = [\"dns:53\"]")])), ["MESH0161"]);
}

#[test]
fn a_node_serves_what_its_text_says() {
    let serving = |text: &str| {
        let (serves, _) = services::parse_node(text, "f").unwrap();
        let serve = serves.iter().map(|s| ServeOffer { service: s.service.clone(), port: s.port }).collect();
        let edits = [("  { name = \"pod\", addr = \"10.8.0.10\", node = \"n2\", weight = 50 },\n", "")];
        let mut registry = mesh(&but(&edits));
        let mut token = spec(9, "dc");
        token.serve = vec!["cart".parse().unwrap()];
        revoke(&mut registry, "vm").unwrap();
        registry.apply(Change::TokenCreate(token), BY, NOW).unwrap();
        ask(&mut registry, 9, request(9, "late", NodeFacts { serve, ..facts(9, &[]) })).unwrap();
        let map = map(&registry);
        let backends = map.services[&"cart".parse().unwrap()].backends.iter();
        backends.map(|b| format!("{} {:?}", b.node, b.port)).collect::<Vec<_>>()
    };
    assert_eq!(serving("version = 1\n[[serve]]\nservice = \"cart\"\nport = 7000\n"), ["late Some(7000)"]);
    assert_eq!(serving("version = 1\n[[serve]]\nservice = \"cart\"\nport = 7001\n"), ["late Some(7001)"]);
    assert_eq!(serving("version = 1\n[[serve]]\nservice = \"dns\"\n"), [""; 0]);
}

#[test]
fn what_is_reserved_refuses_the_text() {
    let service = |key: &str| ("namespace = \"default\"\n".to_owned(), format!("namespace = \"default\"\n{key}\n"));
    let route = |key: &str| ("sticky = \"none\"".to_owned(), format!("sticky = \"none\", {key}"));
    let backend = |key: &str| ("host = \"vm\", weight".to_owned(), format!("host = \"vm\", {key}, weight"));
    for (from, to) in [
        ("\"deny\"".to_owned(), "\"allow\"".to_owned()),
        ("v4 = ".to_owned(), "v6 = \"fd00::/48\"\nv4 = ".to_owned()),
        service("strict = true"),
        service("health = { tcp = true, every = \"5s\", fall = 3, rise = 2 }"),
        service("health = { http = \"/healthz\" }"),
        service("health = { grpc = true }"),
        route("spill_below = 0.5"),
        route("max_conn_age = \"1h\""),
        route("retry_syn = true"),
        backend("via = \"x\""),
        ("host = \"vm\", weight".to_owned(), "kubernetes = \"c2/default/cart\", weight".to_owned()),
    ] {
        assert_eq!(judged(&but(&[(&*from, &*to)])), ["MESH0110"], "{to}");
    }
    let node = "version = 1\n[[serve]]\nservice = \"cart\"\n";
    assert!(services::parse_node(node, "f").is_ok());
    let refused = services::parse_node(&format!("{node}health = {{ tcp = true }}\n"), "f").unwrap_err();
    assert_eq!(refused.list[0].code, "MESH0110");
}
