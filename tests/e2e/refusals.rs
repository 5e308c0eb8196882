//! Bad input at the door: each gets a clear error, and nothing is lost.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::net::Ipv4Addr;
use std::process::{ExitCode, Output};
use std::time::Duration;

use mesh_proto::trust::join_token::JoinToken;
use mesh_tests::daemon::{Binaries, Daemon, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{POD, PODS, SERVICES};
use mesh_tests::topology::{Network, Underlay, daemon_on, start_coordinator, token, write_coordinator, write_node};
use tempfile::TempDir;

/// A coordinator with one good member `a`, and a place `x` from which bad things are tried.
struct ServerPort {
    a: Daemon,
    x: Daemon,
    coordinator: Daemon,
    network: Network,
    _folder: TempDir,
}

const FACTS: &[Fact<ServerPort>] = &[
    ("a_damaged_token_is_told_from_a_refused_one", a_damaged_token_is_told_from_a_refused_one),
    ("an_expired_token_admits_nobody", an_expired_token_admits_nobody),
    ("a_used_token_admits_nobody_else", a_used_token_admits_nobody_else),
    ("a_coordinator_with_another_key_is_not_trusted", a_coordinator_with_another_key_is_not_trusted),
    ("a_pod_block_outside_its_site_is_refused", a_pod_block_outside_its_site_is_refused),
    ("a_pod_block_of_another_node_is_refused", a_pod_block_of_another_node_is_refused),
    ("a_serve_offer_without_a_grant_is_told_and_not_taken", a_serve_offer_without_a_grant_is_told_and_not_taken),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| run.scene("door", || set_up(binaries), FACTS))
}

fn set_up(binaries: &Binaries) -> io::Result<ServerPort> {
    let folder = tempfile::Builder::new().prefix("mesh-door-").tempdir()?;
    let prefix = format!("dr{}", std::process::id());
    let network = Network::new(&prefix, folder.path(), 3, Underlay::V4).map_err(io::Error::other)?;
    let daemon = |name, subnet| daemon_on(&network, name, subnet, folder.path(), binaries);
    let (coordinator, a, x) = (daemon("coordinator", 3)?, daemon("a", 1)?, daemon("x", 2)?);
    write_coordinator(&coordinator, network.ip(3, 11), SERVICES)?;
    write_node(&a, Some(PODS), 1, "")?;
    start_coordinator(&coordinator, network.ip(3, 11))?;
    let good = token(&coordinator, "east", "a")?;
    a.expect_config(&["join", &good])?;
    a.start()?;
    Ok(ServerPort { a, x, coordinator, network, _folder: folder })
}

/// Forgets what an earlier fact left behind.
fn fresh(door: &ServerPort, more: &str) {
    let _ = std::fs::remove_dir_all(door.x.folder.join("state"));
    let _ = std::fs::remove_file(door.x.folder.join("services.toml"));
    write_node(&door.x, None, 1, more).unwrap();
}

fn join(door: &ServerPort, token: &str) -> Output {
    door.x.config_verb(&["join", token]).unwrap()
}

/// The join failed with a sentence that has all these words; no member came of it.
fn refused(door: &ServerPort, output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is missing: {said}");
    }
    let nodes = door.coordinator.json(&["nodes"]).unwrap();
    let names: Vec<_> = nodes["nodes"].as_array().unwrap().iter().map(|n| &n["name"]).collect();
    assert!(!names.iter().any(|n| *n == "x"), "{names:?}");
    assert!(door.a.status().unwrap().node.is_some());
}

fn new_token(door: &ServerPort, more: &[&str]) -> String {
    let words = [&["token", "create", "--site", "east"], more].concat();
    door.coordinator.expect(&words).unwrap().trim().to_owned()
}

fn a_damaged_token_is_told_from_a_refused_one(door: &ServerPort) {
    fresh(door, "");
    let good = new_token(door, &[]);
    let mut mistyped = good.clone().into_bytes();
    let middle = mistyped.len() / 2;
    mistyped[middle] = if mistyped[middle] == b'A' { b'B' } else { b'A' };
    for bad in [String::from_utf8(mistyped).unwrap(), good[..good.len() - 9].to_owned()] {
        refused(door, &join(door, &bad), &["damaged", "copy it again"]);
    }
    refused(door, &join(door, "swordfish"), &["not a join token", "token create"]);
}

fn an_expired_token_admits_nobody(door: &ServerPort) {
    fresh(door, "");
    let token = new_token(door, &["--ttl", "1s"]);
    let id = token.parse::<JoinToken>().unwrap().id_text();
    let expired = || {
        let list = door.coordinator.json(&["token", "list"]).unwrap();
        let listed = list["tokens"].as_array().unwrap().iter().find(|t| t["id"] == id.as_str()).cloned();
        listed.is_none_or(|t| t["usable"] == false)
    };
    assert!(wait_until(Duration::from_secs(5), expired));
    refused(door, &join(door, &token), &["token", "expired"]);
}

fn a_used_token_admits_nobody_else(door: &ServerPort) {
    fresh(door, "");
    let token = new_token(door, &["--name", "once"]);
    assert!(join(door, &token).status.success());
    fresh(door, "");
    refused(door, &join(door, &token), &["token", "used"]);
}

fn a_coordinator_with_another_key_is_not_trusted(door: &ServerPort) {
    fresh(door, "");
    let mut token = new_token(door, &[]).parse::<JoinToken>().unwrap();
    token.pins[0].0[7] ^= 1;
    refused(door, &join(door, &token.to_line()), &["key"]);
}

fn a_pod_block_outside_its_site_is_refused(door: &ServerPort) {
    fresh(door, "pods = \"192.168.9.0/24\"\n");
    let token = new_token(door, &["--name", "x"]);
    refused(door, &join(door, &token), &["192.168.9.0/24", "east"]);
}

fn a_pod_block_of_another_node_is_refused(door: &ServerPort) {
    fresh(door, &format!("pods = \"{PODS}\"\n"));
    assert!(PODS.contains(&POD));
    let token = new_token(door, &["--name", "x"]);
    refused(door, &join(door, &token), &["10.8.0.0/24", "`a`"]);
}

fn a_serve_offer_without_a_grant_is_told_and_not_taken(door: &ServerPort) {
    fresh(door, "");
    let offer = "version = 1\n\n[[serve]]\nservice = \"web\"\nport = 8080\n";
    std::fs::write(door.x.folder.join("services.toml"), offer).unwrap();
    let token = new_token(door, &["--name", "server"]);
    let joined = join(door, &token);
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    door.x.start().unwrap();
    let told = || {
        let warnings = door.x.status().map(|s| s.warnings).unwrap_or_default();
        warnings.iter().any(|w| w.contains("web") && w.contains("--serve"))
    };
    assert!(wait_until(Duration::from_secs(10), told), "{:?}", door.x.status().map(|s| s.warnings));
    let services = door.x.status().unwrap().services;
    let web = services.iter().find(|s| s.name.as_str() == "web");
    assert!(web.is_none_or(|s| s.backends.iter().all(|b| b.node.as_str() != "server")));
    door.x.kill();
    assert_eq!(door.network.ip(2, 11), Ipv4Addr::new(172, 31, 2, 11));
}
