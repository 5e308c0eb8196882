//! Peers that fall silent, with the real binaries: a service with two backends, one of whose nodes is killed or cut off.
//! Everybody says so, new connections go to the other, and it is used again as soon as it answers.
//!
//! `MESH_OLD` names a folder with meshd of an older version, such as `target/lab` of its worktree: its nodes are judged
//! right as well.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mesh_tests::daemon::{Binaries, Daemon, tail, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::netns::Namespace;
use mesh_tests::pair::STARTING;
use mesh_tests::topology::{Network, Underlay, start_coordinator, token, write_coordinator, write_node};
use mesh_tests::traffic;
use tempfile::TempDir;

const SERVICES: &str = r#"version = 1

[mesh]
name = "silence"

[[site]]
name = "dc"

[[service]]
name = "web"
ports = { http = "80->8080", sink = "9/udp" }
backends = [{ host = "b" }, { host = "c" }]

[[allow]]
from = ["host:a"]
to = ["web", "host:b", "host:c"]
"#;

/// How long it may take until new connections use the other backend.
const LEFT_OUT: Duration = Duration::from_secs(5);
/// How long it may take until a peer that answers is used again: a probe's interval, and what a busy machine adds.
const BACK: Duration = Duration::from_secs(4);

const FACTS: &[Fact<Mesh>] = &[
    ("one_way_udp_never_marks_a_peer", one_way_udp_never_marks_a_peer),
    ("a_killed_backend_is_left_out_and_everybody_says_so", a_killed_backend_is_left_out),
    ("it_is_used_again_as_soon_as_it_answers", it_is_used_again),
    ("a_cut_link_is_seen_and_forgotten", a_cut_link),
    ("where_nobody_answers_all_are_used_as_before", where_nobody_answers),
    ("a_peer_that_nobody_wants_is_no_trouble", a_peer_that_nobody_wants),
    ("a_new_peer_is_stored_at_once_and_greeted_at_a_restart", a_new_peer_is_stored_at_once),
];

/// A caller, two backends and a coordinator. Fields are dropped in order.
struct Mesh {
    a: Daemon,
    b: Daemon,
    c: Daemon,
    coordinator: Daemon,
    network: Network,
    _folder: TempDir,
}

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        for (scene, lanes) in [("one_lane", 1), ("two_lanes", 2)] {
            run.scene(scene, || set_up([binaries; 2], lanes), FACTS);
        }
        let folder = std::env::var_os("MESH_OLD").map(PathBuf::from);
        run.asks_for(folder.is_some(), "MESH_OLD=FOLDER, with the programs of an older version");
        let old = &Binaries::of(folder.unwrap_or_default());
        run.scene("old_peers", || set_up([binaries, old], 2), &FACTS[..4]);
    })
}

/// Starts the caller and the coordinator of one version, and the backends of another.
fn set_up([binaries, others]: [&Binaries; 2], lanes: u16) -> io::Result<Mesh> {
    let folder = tempfile::Builder::new().prefix("mesh-silence-").tempdir()?;
    let is_mixed = !std::ptr::eq(binaries, others);
    let prefix = format!("si{lanes}{}{}", if is_mixed { "o" } else { "x" }, std::process::id());
    let network = Network::new(&prefix, folder.path(), 4, Underlay::V4).map_err(io::Error::other)?;
    let home = |name: &str, subnet| {
        let files = folder.path().join(name);
        std::fs::create_dir(&files)?;
        Ok::<_, io::Error>((network.host(name, subnet, 11).map_err(io::Error::other)?, files))
    };
    let (space, files) = home("coordinator", 4)?;
    let coordinator = Daemon::coordinator(&space, &files, binaries);
    write_coordinator(&coordinator, network.ip(4, 11), SERVICES)?;
    start_coordinator(&coordinator, network.ip(4, 11))?;
    let node = |name, subnet| {
        let (space, files) = home(name, subnet)?;
        let node = Daemon::meshd(name, &space, &files, if name == "a" { binaries } else { others });
        write_node(&node, None, lanes, "")?;
        node.expect_config(&["join", &token(&coordinator, "dc", name)?])?;
        node.start()?;
        Ok::<_, io::Error>(node)
    };
    let (a, b, c) = (node("a", 1)?, node("b", 2)?, node("c", 3)?);
    for backend in [&b, &c] {
        serve(&backend.namespace, &backend.name)?;
        sink(&backend.namespace)?;
    }
    let mesh = Mesh { a, b, c, coordinator, network, _folder: folder };
    if wait_until(STARTING, || mesh.vip().is_some_and(|vip| reaches_both(&mesh.a.namespace, vip))) {
        return Ok(mesh);
    }
    Err(io::Error::other(format!("the service is not reached: {}", tail(&mesh.a.log(), 20))))
}

impl Mesh {
    fn vip(&self) -> Option<Ipv4Addr> {
        let services = self.a.status().ok()?.services;
        services.iter().find(|s| s.name.as_str() == "web" && s.backends.len() == 2).map(|s| s.vip.0)
    }

    /// Seconds for which `a` has heard nothing of a node that it asks.
    fn not_answering(&self, name: &str) -> Option<u64> {
        let peers = self.a.json(&["peers"]).unwrap_or_default();
        let peer = peers["peers"].as_array()?.iter().find(|peer| peer["name"] == name)?.clone();
        peer["not_answering_s"].as_u64()
    }
}

/// A server that answers every connection with its name.
fn serve(space: &Namespace, name: &str) -> io::Result<()> {
    let listener = space.run(|| TcpListener::bind(("0.0.0.0", 8080)))?;
    let name = name.to_owned();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = writeln!(stream, "{name}");
        }
    });
    Ok(())
}

/// A server that never answers.
fn sink(space: &Namespace) -> io::Result<()> {
    let socket = space.run(|| UdpSocket::bind(("0.0.0.0", 9)))?;
    std::thread::spawn(move || while socket.recv_from(&mut [0; 2048]).is_ok() {});
    Ok(())
}

/// Connects once; who answered.
fn who(from: &Namespace, vip: Ipv4Addr) -> Option<String> {
    let mut text = String::new();
    let mut stream = traffic::connect(from, (vip, 80)).ok()?;
    io::Read::read_to_string(&mut stream, &mut text).ok()?;
    Some(text.trim().to_owned())
}

fn reaches_both(from: &Namespace, vip: Ipv4Addr) -> bool {
    let answers: Vec<_> = (0..4).filter_map(|_| who(from, vip)).collect();
    ["b", "c"].iter().all(|name| answers.iter().any(|answer| answer == name))
}

/// Calls the service from two threads at once for as long as the value lives.
struct Calls(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Calls {
    fn begin(mesh: &Mesh, vip: Ipv4Addr) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let call = |_| {
            let (enough, space) = (Arc::clone(&enough), mesh.a.namespace.clone());
            std::thread::spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let _ = who(&space, vip);
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        };
        let threads = (0..2).map(call).collect();
        Self(enough, threads)
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Waits until `c` is left out, and sees that all new connections go to `b`.
fn only_b(mesh: &Mesh, vip: Ipv4Addr, since: Instant) {
    let calls = Calls::begin(mesh, vip);
    let seen = wait_until(LEFT_OUT, || mesh.not_answering("c").is_some());
    let took = since.elapsed();
    assert!(seen && took < LEFT_OUT, "c is not seen to be silent after {took:?}");
    drop(calls);
    let began = Instant::now();
    let answers: Vec<_> = (0..20).map(|_| who(&mesh.a.namespace, vip)).collect();
    assert!(answers.iter().all(|answer| answer.as_deref() == Some("b")), "{answers:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(mesh.not_answering("b"), None);
}

/// Waits until `c` is used again.
fn both_again(mesh: &Mesh, vip: Ipv4Addr, within: Duration) {
    let began = Instant::now();
    let back = wait_until(within, || reaches_both(&mesh.a.namespace, vip));
    assert!(back, "c is not used again after {:?}: {}", began.elapsed(), tail(&mesh.a.log(), 10));
    assert!(wait_until(BACK, || mesh.not_answering("c").is_none()));
}

fn one_way_udp_never_marks_a_peer(mesh: &Mesh) {
    let vip = mesh.vip().unwrap();
    let space = mesh.a.namespace.clone();
    let sockets: Vec<UdpSocket> = space.run(|| (0..4).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect());
    let end = Instant::now() + Duration::from_secs(15);
    while Instant::now() < end {
        for socket in &sockets {
            socket.send_to(&[0; 100], (vip, 9)).unwrap();
        }
        assert_eq!((mesh.not_answering("b"), mesh.not_answering("c")), (None, None));
        assert!(mesh.a.running());
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = mesh.a.verb(&["status"]).unwrap();
    assert_eq!(status.status.code(), Some(0), "{}", String::from_utf8_lossy(&status.stdout));
}

fn a_killed_backend_is_left_out(mesh: &Mesh) {
    let vip = mesh.vip().unwrap();
    assert!(wait_until(STARTING, || reaches_both(&mesh.a.namespace, vip)));
    mesh.c.kill();
    let killed = Instant::now();
    only_b(mesh, vip, killed);

    let said = |words: &[&str]| {
        let output = mesh.a.verb(words).unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = said(&["status"]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("warning: c has not answered at UDP 172.31.3.11:51820 for"), "{text}");
    assert!(text.contains("systemctl status meshd") && text.contains("1 not answering"), "{text}");
    let (_, text) = said(&["peers"]);
    assert!(text.lines().any(|line| line.starts_with("c ") && line.contains("not answering since")), "{text}");
    let (_, text) = said(&["services"]);
    assert!(text.contains("not answering since"), "{text}");
    let (code, text) = said(&["why", "host:a", "host:c:22"]);
    assert!(code == Some(1) && text.contains("NO  answer"), "{code:?} {text}");
    let (code, text) = said(&["why", "host:a", "web:80"]);
    assert!(code == Some(0) && text.contains("not answering: c"), "{code:?} {text}");
    let (_, text) = said(&["metrics"]);
    for line in ["meshd_peer_answers{peer=\"b\"} 1.0", "meshd_peer_answers{peer=\"c\"} 0.0"] {
        assert!(text.lines().any(|l| l == line), "{text}");
    }

    let told = || {
        let live = mesh.coordinator.json(&["status"]).unwrap()["live"].clone();
        let nodes = mesh.coordinator.json(&["nodes"]).unwrap()["nodes"].clone();
        let services = mesh.coordinator.json(&["services"]).unwrap()["services"].clone();
        let gone = |list: &serde_json::Value, key: &str| -> Vec<String> {
            let gone = list.as_array().unwrap().iter().filter(|one| one["gone"] == true);
            gone.map(|one| one[key].as_str().unwrap_or_default().to_owned()).collect()
        };
        let backends = &services[0]["backends"];
        let live_on: Vec<_> = backends.as_array().unwrap().iter().filter(|b| b["live"] == true).collect();
        live["gone"] == 1 && gone(&nodes, "name") == ["c"] && gone(backends, "node") == ["c"] && live_on.len() == 1
    };
    assert!(wait_until(LEFT_OUT.saturating_sub(killed.elapsed()).max(Duration::from_secs(1)), told));
    assert!(mesh.coordinator.expect(&["status"]).unwrap().contains("1 gone"));
    assert!(mesh.coordinator.expect(&["services"]).unwrap().contains("gone"));
}

fn it_is_used_again(mesh: &Mesh) {
    let vip = mesh.vip().unwrap();
    mesh.c.start().unwrap();
    assert!(wait_until(STARTING, || mesh.c.status().is_ok_and(|s| !s.peers.is_empty())));
    both_again(mesh, vip, BACK);
    let fine = || mesh.a.verb(&["status"]).unwrap().status.code() == Some(0);
    assert!(wait_until(BACK, fine));
    let live = || {
        let services = mesh.coordinator.json(&["services"]).unwrap();
        let backends = services["services"][0]["backends"].clone();
        backends.as_array().unwrap().iter().all(|backend| backend["live"] == true)
    };
    assert!(wait_until(STARTING, live));
}

fn a_cut_link(mesh: &Mesh) {
    let vip = mesh.vip().unwrap();
    assert!(wait_until(STARTING, || reaches_both(&mesh.a.namespace, vip)));
    mesh.network.router.down("v3-11").unwrap();
    only_b(mesh, vip, Instant::now());
    mesh.network.router.up("v3-11").unwrap();
    both_again(mesh, vip, BACK);
}

fn where_nobody_answers(mesh: &Mesh) {
    let vip = mesh.vip().unwrap();
    mesh.b.kill();
    mesh.c.kill();
    let calls = Calls::begin(mesh, vip);
    assert!(wait_until(2 * LEFT_OUT, || mesh.not_answering("b").is_some() && mesh.not_answering("c").is_some()));
    drop(calls);

    let space = mesh.a.namespace.clone();
    let sockets: Vec<UdpSocket> = space.run(|| (0..8).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect());
    for socket in &sockets {
        socket.send_to(b"x", (vip, 9)).unwrap();
    }
    let ports: Vec<String> = sockets.iter().map(|s| format!(":{}", s.local_addr().unwrap().port())).collect();
    let backends = || {
        let flows = mesh.a.json(&["flows"]).unwrap()["flows"].clone();
        let ours = flows.as_array().unwrap().iter().filter(|flow| {
            let source = flow["source"].as_str().unwrap_or_default();
            flow["transport"] == "udp" && ports.iter().any(|port| source.ends_with(port.as_str()))
        });
        ours.map(|flow| flow["backend"].to_string()).collect::<Vec<_>>()
    };
    assert!(wait_until(STARTING, || backends().len() == 8), "{:?}", backends());
    let backends = backends();
    let of_first = backends.iter().filter(|backend| **backend == backends[0]).count();
    assert_eq!(of_first, 4, "{backends:?}");

    mesh.b.start().unwrap();
    mesh.c.start().unwrap();
    assert!(wait_until(STARTING, || reaches_both(&mesh.a.namespace, vip)));
}

fn a_peer_that_nobody_wants(mesh: &Mesh) {
    // What is stored of it is that it was active; nobody sends it anything.
    mesh.c.kill();
    mesh.a.kill();
    mesh.a.start().unwrap();
    assert!(wait_until(STARTING, || mesh.a.status().is_ok_and(|s| s.coordinator.connected && s.peers.len() == 2)));
    let status = mesh.a.status().unwrap();
    let warned = status.warnings.iter().any(|warning| warning.contains("has not answered"));
    assert!(!warned, "{:?}", status.warnings);
    let fine = || mesh.a.verb(&["status"]).unwrap().status.code() == Some(0);
    assert!(wait_until(STARTING, fine));
    mesh.c.start().unwrap();
    let vip = mesh.vip().unwrap();
    assert!(wait_until(STARTING, || reaches_both(&mesh.a.namespace, vip)));
}

fn a_new_peer_is_stored_at_once(mesh: &Mesh) {
    let vip = mesh.vip().unwrap();
    assert!(wait_until(STARTING, || reaches_both(&mesh.a.namespace, vip)));
    let stored = mesh.a.folder.join("state/activity.json");
    mesh.a.kill();
    let _ = std::fs::remove_file(&stored);
    mesh.a.start().unwrap();
    let forwards = || who(&mesh.a.namespace, vip).is_some() && reaches_both(&mesh.a.namespace, vip);
    assert!(wait_until(STARTING, forwards));
    let known = || {
        let text = std::fs::read_to_string(&stored).unwrap_or_default();
        text.contains("172.31.2.11") && text.contains("172.31.3.11")
    };
    assert!(wait_until(Duration::from_secs(1), known), "{:?}", std::fs::read_to_string(&stored));
    mesh.a.kill();
    mesh.a.start().unwrap();
    let greeted = || {
        let peers = mesh.a.status().map(|s| s.peers).unwrap_or_default();
        let met = peers.iter().filter(|p| p.last_handshake_s.is_some() && p.endpoint.is_some());
        met.filter_map(|p| p.endpoint).map(|at| at.ip()).collect::<Vec<IpAddr>>().len() == 2
    };
    assert!(wait_until(Duration::from_secs(3), greeted), "{}", mesh.a.json(&["peers"]).unwrap());
}
