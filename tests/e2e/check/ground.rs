//! A caller, a node whose host backs a service and that has a pod, a coordinator; and how a host is broken and asked.

use std::io;
use std::process::Command;
use std::time::Duration;

use ipnet::Ipv4Net;
use mesh_tests::daemon::{Binaries, Daemon, run, tail, wait_until};
use mesh_tests::netns::Namespace;
use mesh_tests::pair::{POD, PODS, STARTING};
use mesh_tests::topology::{Network, Underlay, daemon_on, start_coordinator, token, write_coordinator, write_node};
use mesh_tests::traffic;
use serde_json::Value;
use tempfile::TempDir;

const SERVICES: &str = r#"version = 1

[mesh]
name = "check"

[[site]]
name = "dc"
kind = "kubernetes"
pods = ["10.8.0.0/14"]

[[service]]
name = "web"
port = "80->8080"
backends = [{ host = "b" }]

[[service]]
name = "back"
port = "80->8080"
backends = [{ host = "a" }]

[[allow]]
from = ["host:a"]
to = ["web"]

[[allow]]
from = ["host:b"]
to = ["back"]
"#;

/// How long it takes at most until the daemon looks at the rules of others again, and some more.
pub(crate) const AGAIN: Duration = Duration::from_secs(20);

/// Fields are dropped in order.
pub(crate) struct BrokenMesh {
    pub(crate) a: Daemon,
    pub(crate) b: Daemon,
    /// A pod of `b`.
    pub(crate) pod: Namespace,
    _coordinator: Daemon,
    pub(crate) network: Network,
    _folder: TempDir,
}

pub(crate) fn set_up(binaries: &Binaries, word: &str) -> io::Result<BrokenMesh> {
    let folder = tempfile::Builder::new().prefix("mesh-check-").tempdir()?;
    let prefix = format!("{word}{}", std::process::id());
    let network = Network::new(&prefix, folder.path(), 3, Underlay::V4).map_err(io::Error::other)?;
    let coordinator = daemon_on(&network, "coordinator", 3, folder.path(), binaries)?;
    write_coordinator(&coordinator, network.ip(3, 11), SERVICES)?;
    start_coordinator(&coordinator, network.ip(3, 11))?;
    let node = |name: &str, subnet, pods: Option<Ipv4Net>| {
        let node = daemon_on(&network, name, subnet, folder.path(), binaries)?;
        if let Some(pods) = pods {
            network.pod_bridge(&node.namespace, pods).map_err(io::Error::other)?;
        }
        write_node(&node, pods, 1, "")?;
        node.expect_config(&["join", &token(&coordinator, "dc", name)?])?;
        node.start()?;
        traffic::serve_tcp(&node.namespace, 8080)?;
        Ok::<_, io::Error>(node)
    };
    let (a, b) = (node("a", 1, None)?, node("b", 2, Some(PODS))?);
    let pod = network.pod(&b.namespace, PODS, POD).map_err(io::Error::other)?;
    let ground = BrokenMesh { a, b, pod, _coordinator: coordinator, network, _folder: folder };
    if wait_until(STARTING, || ground.calls() && [&ground.a, &ground.b].into_iter().all(|node| rc(node) == 0)) {
        return Ok(ground);
    }
    let logs = [&ground.a, &ground.b].map(|node| tail(&node.log(), 15)).join("\n");
    Err(io::Error::other(format!("the mesh does not work: {logs}")))
}

impl BrokenMesh {
    /// Whether a call of `a` reaches the service on the host of `b`.
    pub(crate) fn calls(&self) -> bool {
        let services = self.a.status().map(|status| status.services).unwrap_or_default();
        let vip = services.iter().find(|s| s.name.as_str() == "web" && !s.backends.is_empty()).map(|s| s.vip.0);
        vip.is_some_and(|vip| traffic::connect(&self.a.namespace, (vip, 80)).is_ok())
    }
}

/// Runs a line in a shell of the node's host; it succeeds.
pub(crate) fn sh(node: &Daemon, line: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-ec", line]);
    let done = run(&node.namespace, shell).unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The exit code of `meshd status`.
pub(crate) fn rc(node: &Daemon) -> i32 {
    node.verb(&["status"]).unwrap().status.code().unwrap_or(-1)
}

/// What `meshd check -o json` prints, with its exit code.
pub(crate) fn check(node: &Daemon) -> (Option<i32>, Value) {
    checked(node, &[])
}

/// The same with more words.
pub(crate) fn checked(node: &Daemon, words: &[&str]) -> (Option<i32>, Value) {
    let output = node.config_verb(&[&["check", "-o", "json"], words].concat()).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}")))
}

/// The problems of a word.
pub(crate) fn problems(node: &Daemon, id: &str) -> Vec<Value> {
    let (_, document) = check(node);
    let all = document["problems"].as_array().unwrap().clone();
    all.into_iter().filter(|problem| problem["id"] == id).collect()
}

/// Waits until `check` finds one problem of a word, and returns its command; `status` says so as well, with 3.
pub(crate) fn finds(node: &Daemon, id: &str, words: &[&str]) -> String {
    let mut found = Vec::new();
    let seen = wait_until(AGAIN, || {
        found = problems(node, id);
        found.len() == 1
    });
    assert!(seen, "no {id}, but {}", check(node).1);
    let (cause, command) = (found[0]["cause"].as_str().unwrap(), found[0]["command"].as_str().unwrap());
    assert!(words.iter().all(|word| cause.contains(word)), "{cause}");
    assert!(wait_until(AGAIN, || rc(node) == 3), "status does not warn: {:?}", node.status().map(|s| s.warnings));
    command.to_owned()
}

/// Runs a command as it was printed; then `check` is free of the problem, and `status` ends with 0.
pub(crate) fn mends(node: &Daemon, id: &str, command: &str) {
    sh(node, command);
    assert!(wait_until(AGAIN, || problems(node, id).is_empty()), "{command} does not mend {id}");
    assert!(wait_until(AGAIN, || rc(node) == 0), "{:?}", node.status().map(|s| s.warnings));
}

/// Sees that nothing is wrong, at the latest once the daemon has looked again.
pub(crate) fn is_well(node: &Daemon) {
    let well = || {
        check(node)
            == (Some(0), serde_json::json!({ "schema": "meshd.check/1", "errors": [], "warnings": [], "problems": [] }))
    };
    assert!(wait_until(AGAIN, well), "{}", check(node).1);
    assert!(wait_until(AGAIN, || rc(node) == 0), "{:?}", node.status().map(|s| s.warnings));
}
