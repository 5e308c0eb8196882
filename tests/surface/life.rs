//! The life that is recorded: a mesh of two nodes starts, works, is edited well and badly, loses a node, and stops.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use mesh_tests::daemon::{Binaries, Daemon, wait_until};
use mesh_tests::netns::Namespace;
use mesh_tests::pair::{Pair, SERVICES, STARTING};
use mesh_tests::topology::{Underlay, edit};
use mesh_tests::traffic;
use serde_json::Value;

use crate::{help, shape};

/// What an administrator adds.
const MORE: &str = "\n[[service]]\nname = \"more\"\nport = 82\nbackends = [{ addr = \"10.8.0.10\", node = \"b\" }]\n\n[[allow]]\nfrom = [\"back\"]\nto = [\"more\"]\n";
/// What refers to a service that does not exist.
const BAD: &str = "\n[[allow]]\nfrom = [\"wep\"]\nto = [\"web\"]\n";
/// The ports of metrics.
const METRICS: [(&str, u16); 2] = [("meshd", 9586), ("mesh-coordinator", 9587)];

/// What a user sees of both programs.
#[derive(Default)]
pub(crate) struct Surface {
    /// `--help`, of each program.
    pub(crate) help: [BTreeSet<String>; 2],
    /// Paths and types of all documents.
    pub(crate) json: BTreeSet<String>,
    /// Metrics with their help, types and labels.
    pub(crate) metrics: BTreeSet<String>,
    /// Files with their modes, and the shapes of those that hold JSON.
    pub(crate) files: BTreeSet<String>,
    /// What both daemons say on their error output.
    pub(crate) log: BTreeSet<String>,
}

/// Lives it.
///
/// # Errors
/// If the mesh does not start.
pub(crate) fn live(binaries: &Binaries) -> io::Result<Surface> {
    let mut seen = Surface::default();
    for (i, name) in ["meshd", "mesh-coordinator"].into_iter().enumerate() {
        seen.help[i].extend(help::of(&binaries.path(name)));
    }
    let pair = Pair::start("sf", binaries, Underlay::V4, 2)?;
    for side in [&pair.a, &pair.b] {
        traffic::serve_tcp(&side.pod, 8080)?;
        traffic::serve_udp(&side.pod, 7)?;
    }
    works(&pair);
    documents(&pair, &mut seen.json);
    metrics(&pair, &mut seen.metrics);
    edited(&pair);
    files(&pair, &mut seen.files);
    ended(&pair);
    for daemon in [&pair.a.node, &pair.b.node, &pair.coordinator] {
        log(daemon, &mut seen.log);
    }
    Ok(seen)
}

/// Every kind of flow, both ways, and one that is refused.
fn works(pair: &Pair) {
    let (web, back) = (pair.vip("web"), pair.vip("back"));
    let reached =
        || traffic::seen_as(&pair.a.pod, (web, 80)).is_ok() && traffic::seen_as(&pair.b.pod, (back, 80)).is_ok();
    assert!(wait_until(STARTING, reached), "the services are not reached");
    traffic::udp_echo(&pair.a.pod, (web, 7), 100).unwrap();
    let (b, home) = (pair.address(&pair.b), &pair.a.node.namespace);
    assert!(wait_until(STARTING, || traffic::ping(home, b).is_ok()));
    traffic::connect(home, (web, 80)).unwrap_err();
    traffic::resolve(&pair.a.pod, Ipv4Addr::new(241, 0, 0, 53), "web.mesh.internal", false).unwrap();
    // Both ends know the other, and the log, and report what they have in force.
    let settled = || {
        let current = pair.coordinator.json(&["status"]).is_ok_and(|s| s["live"]["current"] == 2);
        let known = |node: &Daemon| {
            let status = node.json(&["status"]).unwrap_or_default();
            let peer = &status["peers"][0];
            !peer["endpoint"].is_null() && !peer["rtt_ms"].is_null() && !status["coordinator"]["log"].is_null()
        };
        current && known(&pair.a.node) && known(&pair.b.node)
    };
    assert!(wait_until(2 * STARTING, settled), "the mesh does not settle: {}", pair.a.node.json(&["status"]).unwrap());
}

fn documents(pair: &Pair, lines: &mut BTreeSet<String>) {
    let a = &pair.a.node;
    for words in [
        &["status"][..],
        &["peers"],
        &["services"],
        &["services", "web"],
        &["services", "nothing"],
        &["resolve", "web"],
        &["resolve", "b"],
        &["resolve", "nothing"],
        &["ping", "b"],
        &["bench", "b", "--seconds", "1"],
        &["bench", "nobody"],
        &["why", "back", "web:80"],
        &["why", "host:a", "host:b"],
        &["why", "back", "closed:81"],
        &["flows"],
        &["reload"],
        &["lock", "status"],
        &["rotate"],
    ] {
        let output = a.verb(&[words, &["-o", "json"]].concat()).unwrap();
        document(&format!("meshd {}", words.join(" ")), output, lines);
    }
    document("meshd check", a.config_verb(&["check", "-o", "json"]).unwrap(), lines);

    let coordinator = &pair.coordinator;
    let file = |name: &str, text: &str| {
        let path = coordinator.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let good = file("plan.toml", &format!("{SERVICES}{MORE}"));
    let bad = file("bad.toml", &format!("{SERVICES}{BAD}"));
    let same = file("same.toml", SERVICES);
    let copy = coordinator.folder.join("copy.redb").display().to_string();
    for (name, words) in [
        ("status", &["status"][..]),
        ("nodes", &["nodes"]),
        ("services", &["services"]),
        ("token create", &["token", "create", "--site", "east", "--ttl", "1h"]),
        ("token list", &["token", "list"]),
        ("token revoke nothing", &["token", "revoke", "nothing"]),
        ("trust list", &["trust", "list"]),
        ("log", &["log"]),
        ("log --node", &["log", "--node", "a"]),
        ("check good", &["check", &good]),
        ("check bad", &["check", &bad]),
        ("plan good", &["plan", &good]),
        ("plan bad", &["plan", &bad]),
        ("apply same", &["apply", &same]),
        ("apply bad", &["apply", &bad]),
        ("reload", &["reload"]),
        ("revoke nobody", &["revoke", "nobody"]),
        ("lock status", &["lock", "status"]),
        ("export", &["export"]),
        ("backup", &["backup", &copy]),
        ("backup again", &["backup", &copy]),
        ("rotate-key", &["rotate-key"]),
    ] {
        let output = coordinator.verb(&[words, &["-o", "json"]].concat()).unwrap();
        document(&format!("mesh-coordinator {name}"), output, lines);
    }
}

/// The shape of a document, the exit code, and sentences on the error output.
fn document(name: &str, output: Output, lines: &mut BTreeSet<String>) {
    lines.insert(format!("{name} exit {}", output.status.code().unwrap_or(-1)));
    let text = String::from_utf8_lossy(&output.stdout);
    match serde_json::from_str::<Value>(&text) {
        Ok(value) => shape::of(name, &value, lines),
        Err(_) => lines.extend(text.lines().map(|line| format!("{name} prints {}", shape::plain(line)))),
    }
    let said = String::from_utf8_lossy(&output.stderr);
    lines.extend(said.lines().map(|line| format!("{name} says {}", shape::plain(line))));
}

/// Metrics as Prometheus reads them, and what else the listeners answer.
fn metrics(pair: &Pair, lines: &mut BTreeSet<String>) {
    for ((name, port), daemon) in METRICS.into_iter().zip([&pair.a.node, &pair.coordinator]) {
        for path in ["/metrics", "/livez", "/readyz", "/nothing"] {
            let answer = fetch(&daemon.namespace, port, path);
            let status = answer.split(' ').nth(1).unwrap_or("none");
            lines.insert(format!("{name} GET {path} {status}"));
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            if path == "/metrics" {
                lines.extend(body.lines().filter_map(metric).map(|line| format!("{name} {line}")));
            }
        }
    }
}

fn fetch(from: &Namespace, port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let exchange = move || -> io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    from.run(exchange).unwrap()
}

/// A comment as it is; of a sample its name and labels, without figures.
fn metric(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return Some(line.to_owned());
    }
    let (name, _) = line.rsplit_once(' ')?;
    let Some((name, labels)) = name.split_once('{') else {
        return Some(name.to_owned());
    };
    Some(format!("{name}{{{}", shape::plain(labels)))
}

/// A good edit, a bad one, and a good one again; a node starts again meanwhile.
fn edited(pair: &Pair) {
    let knows = |service: &str| {
        let services = pair.a.node.status().map(|s| s.services).unwrap_or_default();
        services.iter().any(|s| s.name.as_str() == service)
    };
    edit(&pair.coordinator, &format!("{SERVICES}{MORE}")).unwrap();
    assert!(wait_until(STARTING, || knows("more")), "an edit does not arrive");
    let said = |word: &str| std::fs::read_to_string(pair.coordinator.log()).is_ok_and(|log| log.contains(word));
    edit(&pair.coordinator, &format!("{SERVICES}{MORE}{BAD}")).unwrap();
    assert!(wait_until(STARTING, || said("wep")), "a bad edit is not told");
    edit(&pair.coordinator, SERVICES).unwrap();
    assert!(wait_until(STARTING, || !knows("more")), "the last edit does not arrive");
    assert!(pair.a.node.terminate());
    pair.a.node.start().unwrap();
    let connected = || pair.a.node.status().is_ok_and(|s| s.coordinator.connected);
    assert!(wait_until(STARTING, connected));
}

/// Node `b` is revoked, `a` leaves, and the coordinator stops.
fn ended(pair: &Pair) {
    pair.coordinator.expect(&["revoke", "b"]).unwrap();
    let gone = || pair.a.node.status().is_ok_and(|s| s.peers.is_empty());
    assert!(wait_until(STARTING, gone), "`a` keeps the revoked node");
    let told = || pair.b.node.status().is_ok_and(|s| !s.coordinator.connected);
    assert!(wait_until(STARTING, told), "`b` is not told");
    pair.a.node.expect_config(&["leave"]).unwrap();
    pair.b.node.terminate();
    pair.coordinator.terminate();
}

fn files(pair: &Pair, lines: &mut BTreeSet<String>) {
    for daemon in [&pair.a.node, &pair.coordinator] {
        let name = if daemon.name == "a" { "meshd" } else { "mesh-coordinator" };
        let mut open = vec![daemon.folder.clone()];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let relative = path.strip_prefix(&daemon.folder).unwrap();
                // The harness's own files, and what is about to take the place of another.
                if path.extension().is_some_and(|e| e == "tmp")
                    || relative.components().count() == 1 && path.extension().is_some_and(|e| e != "sock")
                    || relative == Path::new("log")
                {
                    continue;
                }
                file(&format!("{name} {}", relative.display()), &path, lines);
                if path.is_dir() {
                    open.push(path);
                }
            }
        }
    }
}

fn file(name: &str, path: &Path, lines: &mut BTreeSet<String>) {
    // What is written beside and renamed may vanish meanwhile.
    let Ok(meta) = std::fs::symlink_metadata(path) else { return };
    let name = shape::plain(name);
    let kind = if meta.is_dir() {
        "folder"
    } else if meta.file_type().is_socket() {
        "socket"
    } else {
        "file"
    };
    lines.insert(format!("{name} {kind} {:o}", meta.permissions().mode() & 0o7777));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let parsed = text.lines().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object));
    if let Some(value) = parsed.or_else(|| serde_json::from_str(&text).ok().filter(Value::is_object)) {
        shape::of(&name, &value, lines);
    }
}

/// Levels and words, without times, modules and figures.
fn log(daemon: &Daemon, lines: &mut BTreeSet<String>) {
    let text = std::fs::read_to_string(daemon.log()).unwrap_or_default();
    let name = if daemon.name == "coordinator" { "mesh-coordinator" } else { "meshd" };
    for line in text.lines() {
        let Some((_, said)) = line.split_once('Z').filter(|_| line.starts_with("20")) else {
            lines.insert(format!("{name} {}", shape::plain(line)));
            continue;
        };
        let said = said.trim_start();
        let (level, words) = said.split_once(' ').unwrap_or((said, ""));
        // The module that speaks is the coordinator's own business.
        let module = |word: &str| word.starts_with("coordinator::") || word == "mesh_coordinator";
        let words = words.split_once(": ").filter(|(word, _)| module(word)).map_or(words, |(_, rest)| rest);
        lines.insert(format!("{name} {level} {}", shape::plain(words)));
    }
}
