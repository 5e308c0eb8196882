//! Two versions of the programs in one mesh, and one that takes over what the other left on the disk.
//!
//! `MESH_OLD` names a folder with meshd and mesh-coordinator of the older version, such as `target/lab` of its worktree.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use mesh_tests::daemon::{Binaries, Daemon, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::netns::Namespace;
use mesh_tests::pair::{Pair, PairGround, SERVICES, STARTING};
use mesh_tests::topology::{Underlay, edit};
use mesh_tests::traffic;

/// What an administrator adds.
const MORE: &str = "\n[[service]]\nname = \"more\"\nport = \"80->8080\"\nbackends = [{ addr = \"10.8.0.10\", node = \"b\" }]\n\n[[allow]]\nfrom = [\"back\"]\nto = [\"more\"]\n";

/// How long a change of keys may take, with the overlap of `KEYS`.
const ROTATED: Duration = Duration::from_secs(20);
/// How long a node that lost its coordinator may take to find it again.
const FOUND: Duration = Duration::from_secs(45);
const KEYS: &str = "\n[keys]\noverlap = \"6s\"\n";

const TOGETHER: &[Fact<Pair>] = &[
    ("services_are_called_both_ways", services_are_called_both_ways),
    ("an_edit_reaches_both_nodes", an_edit_reaches_both_nodes),
    ("keys_change", keys_change),
    ("both_nodes_start_again_without_the_coordinator", both_nodes_start_again),
    ("they_measure_each_other", they_measure_each_other),
    ("a_revoked_node_is_cut_off", a_revoked_node_is_cut_off),
];
const UPGRADE: &[Fact<(Pair, Binaries)>] = &[("the_new_version_takes_over_what_the_old_one_left", takes_over)];

fn main() -> ExitCode {
    in_namespaces(|run, new| {
        let folder = std::env::var_os("MESH_OLD").map(PathBuf::from);
        run.asks_for(folder.is_some(), "MESH_OLD=FOLDER, with the programs of an older version");
        let old = &Binaries::of(folder.unwrap_or_default());
        run.scene("new_coordinator", || set_up("mn", [old, new, new]), TOGETHER);
        run.scene("old_coordinator", || set_up("mo", [new, old, old]), TOGETHER);
        run.scene("upgrade", || Ok((set_up("mu", [old, old, old])?, new.clone())), UPGRADE);
    })
}

/// The versions of `a`, of `b` and of the coordinator.
fn set_up(word: &str, versions: [&Binaries; 3]) -> io::Result<Pair> {
    let ground = PairGround { more: KEYS, ..PairGround::plain(Underlay::V4, 2) };
    let pair = Pair::start_versions(ground, word, versions)?;
    for side in [&pair.a, &pair.b] {
        traffic::serve_tcp(&side.pod, 8080)?;
        traffic::serve_udp(&side.pod, 7)?;
    }
    Ok(pair)
}

fn reaches(from: &Namespace, vip: Ipv4Addr) -> bool {
    wait_until(STARTING, || traffic::seen_as(from, (vip, 80)).is_ok())
}

fn services_are_called_both_ways(pair: &Pair) {
    for (from, to, service) in [(&pair.a, &pair.b, "web"), (&pair.b, &pair.a, "back")] {
        let vip = pair.vip(service);
        assert!(reaches(&from.pod, vip), "{service} is not reached");
        assert_eq!(traffic::udp_echo(&from.pod, (vip, 7), 1300).unwrap(), (vip, 7).into());
        let mut stream = traffic::connect(&from.pod, (vip, 80)).unwrap();
        traffic::greeting(&mut stream).unwrap();
        assert!(traffic::echoes(&stream, 4 << 20).unwrap(), "{service}");
        let address = pair.address(to);
        assert!(wait_until(STARTING, || traffic::ping(&from.node.namespace, address).is_ok()));
    }
}

fn an_edit_reaches_both_nodes(pair: &Pair) {
    edit(&pair.coordinator, &format!("{SERVICES}{MORE}")).unwrap();
    assert!(wait_until(STARTING, || knows(&pair.a.node, "more") && knows(&pair.b.node, "more")));
    assert!(reaches(&pair.a.pod, pair.vip("more")));
    edit(&pair.coordinator, SERVICES).unwrap();
    assert!(wait_until(STARTING, || !knows(&pair.a.node, "more") && !knows(&pair.b.node, "more")));
}

fn knows(node: &Daemon, service: &str) -> bool {
    node.status().is_ok_and(|s| s.services.iter().any(|s| s.name.as_str() == service))
}

fn keys_change(pair: &Pair) {
    // It asks the coordinator, whose channel breaks while the identity changes.
    let identity = |node: &Daemon| node.json(&["lock", "status"]).ok().map(|status| status["identity"].to_string());
    for side in [&pair.a, &pair.b] {
        side.node.expect(&["rotate"]).unwrap();
        assert!(reaches(&pair.a.pod, pair.vip("web")));
        let before = identity(&side.node).unwrap();
        side.node.expect(&["rotate", "--identity"]).unwrap();
        let changed = || {
            identity(&side.node).is_some_and(|now| now != before)
                && side.node.status().is_ok_and(|s| s.coordinator.connected)
        };
        assert!(wait_until(ROTATED, changed), "{} keeps its identity {before}", side.node.name);
    }
    assert!(reaches(&pair.a.pod, pair.vip("web")) && reaches(&pair.b.pod, pair.vip("back")));
}

fn both_nodes_start_again(pair: &Pair) {
    let (web, back) = (pair.vip("web"), pair.vip("back"));
    pair.coordinator.kill();
    for side in [&pair.a, &pair.b] {
        side.node.kill();
        side.node.start().unwrap();
        assert!(reaches(&pair.a.pod, web) && reaches(&pair.b.pod, back), "after the restart of {}", side.node.name);
    }
    pair.coordinator.start().unwrap();
    for side in [&pair.a, &pair.b] {
        assert!(wait_until(FOUND, || side.node.status().is_ok_and(|s| s.coordinator.connected)));
    }
}

fn they_measure_each_other(pair: &Pair) {
    pair.a.node.expect(&["bench", "b", "--seconds", "1"]).unwrap();
    pair.b.node.expect(&["bench", "a", "--seconds", "1"]).unwrap();
}

fn a_revoked_node_is_cut_off(pair: &Pair) {
    let web = pair.vip("web");
    assert!(reaches(&pair.a.pod, web));
    pair.coordinator.expect(&["revoke", "b"]).unwrap();
    cut_off(&pair.a.node, &pair.a.pod, web);
}

fn cut_off(node: &Daemon, pod: &Namespace, web: Ipv4Addr) {
    let gone = || node.status().is_ok_and(|s| s.peers.is_empty()) && traffic::seen_as(pod, (web, 80)).is_err();
    assert!(wait_until(STARTING, gone), "the revoked node is reached");
}

/// First the coordinator, then one node after the other, under a connection that stays.
fn takes_over((pair, new): &(Pair, Binaries)) {
    let (web, back) = (pair.vip("web"), pair.vip("back"));
    assert!(reaches(&pair.a.pod, web) && reaches(&pair.b.pod, back));
    let nodes = [&pair.a.node, &pair.b.node];
    let addresses = || [pair.address(&pair.a), pair.address(&pair.b)];
    let before = addresses();
    let mut stream = traffic::connect(&pair.a.pod, (web, 80)).unwrap();
    traffic::greeting(&mut stream).unwrap();

    assert!(pair.coordinator.terminate());
    let coordinator = Daemon::coordinator(&pair.coordinator.namespace, &pair.coordinator.folder, new);
    coordinator.start().unwrap();
    let connected = |node: &Daemon| node.status().is_ok_and(|s| s.coordinator.connected);
    assert!(wait_until(FOUND, || nodes.iter().all(|node| connected(node))), "the old nodes do not come back");
    edit(&coordinator, &format!("{SERVICES}{MORE}")).unwrap();
    assert!(wait_until(STARTING, || knows(nodes[0], "more")), "an edit does not reach the old nodes");

    let upgraded = nodes.map(|old| {
        assert!(old.terminate());
        let node = Daemon::meshd(&old.name, &old.namespace, &old.folder, new);
        node.start().unwrap();
        assert!(reaches(&pair.a.pod, web) && reaches(&pair.b.pod, back), "after the upgrade of {}", node.name);
        assert!(
            traffic::echoes(&stream, 1 << 20).unwrap(),
            "a connection did not outlive the upgrade of {}",
            node.name
        );
        assert!(wait_until(FOUND, || connected(&node)), "{} does not find its coordinator", node.name);
        node
    });
    assert_eq!(addresses(), before);
    assert!(reaches(&pair.a.pod, pair.vip("more")));

    // All of them once more, on what the new version wrote.
    assert!(coordinator.terminate());
    coordinator.start().unwrap();
    for node in &upgraded {
        assert!(node.terminate());
        node.start().unwrap();
    }
    assert!(wait_until(FOUND, || upgraded.iter().all(connected)));
    assert!(reaches(&pair.a.pod, web) && reaches(&pair.b.pod, back));
    coordinator.expect(&["revoke", "b"]).unwrap();
    cut_off(&upgraded[0], &pair.a.pod, web);
}
