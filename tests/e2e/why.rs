//! The rule that `meshd why` prints, pasted as it is printed: it lets the call through, and is no wider than is said.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::process::ExitCode;

use mesh_tests::daemon::{Binaries, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{Pair, SERVICES, STARTING};
use mesh_tests::topology::{Underlay, edit};
use serde_json::Value;

const FACTS: &[Fact<Pair>] = &[
    ("the_rule_for_a_service_is_for_its_port_and_opens_nothing_else", |pair| {
        pasted(pair, ["back", "closed:81"], ["back", "closed:81"], None);
    }),
    ("the_rule_for_a_pod_that_is_called_by_its_address_is_for_the_service_that_it_backs", |pair| {
        let pod = pod_of_b(pair, 10);
        pasted(pair, ["host:a", &format!("{pod}:8080")], ["host:a", "web:80"], None);
    }),
    ("the_rule_for_a_pod_that_backs_nothing_says_that_it_opens_the_site", |pair| {
        let wide = "that rule also lets every node and pod of site east call";
        pasted(pair, ["10.8.0.77", "web:80"], ["site:east", "web:80"], Some(wide));
        let target = format!("{}:22", pod_of_b(pair, 77));
        let wide = "that rule also lets every port and protocol of all nodes and pods of site west be called";
        pasted(pair, ["back", &target], ["back", "site:west"], Some(wide));
    }),
    ("the_rule_for_a_node_says_that_it_opens_all_of_its_ports", |pair| {
        let wide = "that rule also lets every port and protocol of node b be called";
        pasted(pair, ["back", "host:b:22"], ["back", "host:b"], Some(wide));
    }),
    ("the_rule_for_masqueraded_networks_names_them_alone", |pair| {
        pasted(pair, ["masqueraded:a", "web:80"], ["masqueraded:a", "web:80"], None);
    }),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| run.scene("why", || set_up(binaries), FACTS))
}

fn set_up(binaries: &Binaries) -> io::Result<Pair> {
    Pair::start("wy", binaries, Underlay::V4, 1)
}

/// Returns the address in the mesh of a pod behind `b`.
fn pod_of_b(pair: &Pair, last: u8) -> String {
    let blocks = pair.b.node.status().unwrap().node.unwrap().blocks;
    let network = blocks[0].flat.network().octets();
    format!("{}.{}.{}.{last}", network[0], network[1], network[2])
}

/// Asks why, pastes the rule, and waits until the call is allowed; takes it back then.
fn pasted(pair: &Pair, call: [&str; 2], rule: [&str; 2], wider: Option<&str>) {
    let [from, to] = call;
    let why = || pair.a.node.json(&["why", from, to]).unwrap();
    let told = why();
    let [source, target] = rule;
    let expected = format!("[[allow]]\nfrom = [\"{source}\"]\nto = [\"{target}\"]");
    assert_eq!(told["missing"], expected, "{told}");
    assert_eq!(told["wider"], wider.map_or(Value::Null, Value::from), "{told}");
    let shown = String::from_utf8(pair.a.node.verb(&["why", from, to]).unwrap().stdout).unwrap();
    let note = wider.map(|wider| format!("note: {wider}"));
    assert!(shown.contains(&format!("  from = [\"{source}\"]")), "{shown}");
    assert_eq!(shown.lines().find(|line| line.starts_with("note: ")), note.as_deref(), "{shown}");

    edit(&pair.coordinator, &format!("{SERVICES}\n{expected}\n")).unwrap();
    let is_allowed = |told: &Value| told["allowed"] == true;
    assert!(wait_until(STARTING, || is_allowed(&why())), "{expected} does not allow it: {}", why());
    edit(&pair.coordinator, SERVICES).unwrap();
    assert!(wait_until(STARTING, || !is_allowed(&why())), "{}", why());
}
