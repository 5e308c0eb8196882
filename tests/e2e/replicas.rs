//! Three coordinators on an etcd of three members, and two nodes: the real binaries in namespaces. Any coordinator and
//! any member is killed; the nodes keep forwarding, go on at another coordinator, and keep getting what is new.
#![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test fails by panicking")]

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mesh_tests::daemon::{Binaries, Daemon, Process, tail, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::netns::Namespace;
use mesh_tests::skip::in_path;
use mesh_tests::topology::{Network, Underlay, start_coordinator, token, write_coordinator, write_node};
use mesh_tests::traffic;

const SERVICES: &str = r#"version = 1

[mesh]
name = "boutique"

[[site]]
name = "dc"

[[service]]
name = "web"
port = "80->8080"
backends = [{ host = "b" }]

[[allow]]
from = ["host:a"]
to = ["web"]
"#;

/// How long starting and recovering may take.
const PATIENCE: Duration = Duration::from_secs(20);

const FACTS: &[Fact<Trio>] = &[
    ("a_change_saved_at_any_coordinator_is_in_force_at_all_nodes", a_change_saved_anywhere_is_in_force),
    ("nodes_go_on_at_another_coordinator_when_theirs_is_killed", nodes_go_on_at_another_coordinator),
    ("any_member_of_etcd_may_die", any_member_of_etcd_may_die),
    ("a_token_outlives_the_coordinator_that_made_it", a_token_outlives_its_coordinator),
];

/// The mesh. Fields are dropped in order: processes, namespaces, files.
struct Trio {
    members: Mutex<Vec<Option<Process>>>,
    coordinators: Vec<Daemon>,
    nodes: Vec<Daemon>,
    network: Network,
    /// The port of the service that was added last.
    last: AtomicU32,
    _folder: tempfile::TempDir,
}

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.needs(in_path("etcd").is_some(), "apt-get install etcd-server");
        run.scene("three_coordinators", || Trio::start(binaries), FACTS);
    })
}

impl Trio {
    fn start(binaries: &Binaries) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-trio-").tempdir()?;
        let prefix = format!("trio{}", std::process::id());
        let network = Network::new(&prefix, folder.path(), 2, Underlay::V4).map_err(io::Error::other)?;
        let mut coordinators = Vec::new();
        for i in 0..3_u8 {
            let home = network.host(&format!("c{i}"), 1, 11 + i).map_err(io::Error::other)?;
            let files = folder.path().join(format!("c{i}"));
            std::fs::create_dir(&files)?;
            coordinators.push(Daemon::coordinator(&home, &files, binaries));
        }
        let mut nodes = Vec::new();
        for (name, host) in [("a", 11), ("b", 12), ("late", 13)] {
            let home = network.host(name, 2, host).map_err(io::Error::other)?;
            let files = folder.path().join(name);
            std::fs::create_dir(&files)?;
            let node = Daemon::meshd(name, &home, &files, binaries);
            write_node(&node, None, 1, "")?;
            nodes.push(node);
        }
        let last = AtomicU32::new(9000);
        let trio = Self { members: Mutex::default(), coordinators, nodes, network, last, _folder: folder };
        trio.run().map_err(|e| {
            let all = trio.coordinators.iter().chain(&trio.nodes);
            let logs: Vec<_> = all.map(|d| format!("--- {} ---\n{}", d.name, tail(&d.log(), 15))).collect();
            io::Error::other(format!("{e}\n{}", logs.join("\n")))
        })?;
        Ok(trio)
    }

    fn run(&self) -> io::Result<()> {
        for i in 0..3 {
            let member = self.member(i)?;
            self.members.lock().unwrap().push(Some(member));
        }
        let ips = [self.ip(0), self.ip(1), self.ip(2)].map(|ip| ip.to_string());
        for (i, coordinator) in self.coordinators.iter().enumerate() {
            write_coordinator(coordinator, self.ip(i), SERVICES)?;
            let mut text = std::fs::read_to_string(coordinator.config())?;
            text.push_str(&format!("store = \"etcd://{}\"\n", ips.join(",")));
            std::fs::write(coordinator.config(), text)?;
            start_coordinator(coordinator, self.ip(i))?;
        }
        for (i, node) in self.nodes.iter().take(2).enumerate() {
            let token = token(&self.coordinators[i], "dc", &node.name)?;
            node.expect_config(&["join", &token])?;
            node.start()?;
        }
        traffic::serve_tcp(&self.nodes[1].namespace, 8080)?;
        match wait_until(PATIENCE, || self.forwards()) {
            true => Ok(()),
            false => Err(io::Error::other("the service is not reached")),
        }
    }

    fn ip(&self, i: usize) -> IpAddr {
        self.network.ip(1, 11 + u8::try_from(i).unwrap())
    }

    /// Starts a member of etcd beside a coordinator, on what it has on the disk.
    fn member(&self, i: usize) -> io::Result<Process> {
        let all: Vec<_> = (0..3).map(|i| format!("m{i}=http://{}:2380", self.ip(i))).collect();
        let (client, peer) = (format!("http://{}:2379", self.ip(i)), format!("http://{}:2380", self.ip(i)));
        let home: &Namespace = &self.coordinators[i].namespace;
        let folder: &Path = &self.coordinators[i].folder;
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("m{i}"), "--data-dir", &folder.join("etcd").display().to_string()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
            .args(["--logger", "zap", "--log-level", "warn", "--experimental-initial-corrupt-check"]);
        Process::start(home, command, &folder.join("etcd.log"))
    }

    /// Says whether a call of `a` reaches `b`.
    fn forwards(&self) -> bool {
        let services = self.nodes[0].status().map(|status| status.services).unwrap_or_default();
        let web = services.into_iter().find(|service| service.name.as_str() == "web");
        web.is_some_and(|web| traffic::seen_as(&self.nodes[0].namespace, (web.vip.0, 80)).is_ok())
    }

    /// Which coordinator a node is connected to.
    fn coordinator_of(&self, node: usize) -> Option<usize> {
        let status = self.nodes[node].status().ok()?;
        let address = status.coordinator.address.filter(|_| status.coordinator.connected)?;
        (0..3).find(|&i| address.starts_with(&format!("{}:", self.ip(i))))
    }

    /// Adds a service at one coordinator, and waits until both nodes know it. Returns how long that took.
    fn change_at(&self, i: usize) -> Duration {
        let port = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("s{port}");
        let file = self.coordinators[i].folder.join("services.toml");
        let text = format!(
            "{SERVICES}\n[[service]]\nname = \"{name}\"\nport = {port}\nbackends = [{{ host = \"b\" }}]\n[[allow]]\nfrom = [\"host:a\"]\nto = [\"{name}\"]\n"
        );
        let began = Instant::now();
        std::fs::write(file, text).unwrap();
        let knows = |node: &Daemon| {
            node.status().is_ok_and(|status| status.services.iter().any(|service| service.name.as_str() == name))
        };
        let all = wait_until(PATIENCE, || self.nodes.iter().take(2).all(knows));
        let log = tail(&self.coordinators[i].log(), 15);
        assert!(all, "{name}, saved at coordinator {i}, is not known to all nodes: {log}");
        began.elapsed()
    }
}

fn a_change_saved_anywhere_is_in_force(trio: &Trio) {
    for i in 0..3 {
        let took = trio.change_at(i);
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    let status = trio.coordinators[0].json(&["status"]).unwrap();
    assert_eq!(status["coordinators"].as_array().unwrap().len(), 3, "{status}");
}

#[expect(clippy::print_stdout, reason = "a figure of the test run")]
fn nodes_go_on_at_another_coordinator(trio: &Trio) {
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        assert!(wait_until(PATIENCE, || trio.coordinator_of(0).is_some()));
        let lost = trio.coordinator_of(0).unwrap();
        trio.coordinators[lost].kill();
        let killed = Instant::now();
        let elsewhere = |node| trio.coordinator_of(node).is_some_and(|now| now != lost);
        assert!(wait_until(PATIENCE, || elsewhere(0) && elsewhere(1)), "{}", tail(&trio.nodes[0].log(), 15));
        slowest = slowest.max(killed.elapsed());
        assert!(trio.forwards());
        trio.change_at((lost + 1) % 3);
        trio.coordinators[lost].start().unwrap();
        assert!(wait_until(PATIENCE, || trio.coordinators[lost].json(&["status"]).is_ok()));
    }
    println!("the slowest node was at another coordinator after {slowest:.1?}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

fn any_member_of_etcd_may_die(trio: &Trio) {
    for i in 0..3 {
        trio.members.lock().unwrap()[i].take().unwrap().kill();
        for j in 0..3 {
            trio.change_at(j);
        }
        assert!(trio.forwards());
        trio.members.lock().unwrap()[i] = Some(trio.member(i).unwrap());
        // The next one may die when this one is back, and not before.
        let client = SocketAddr::new(trio.ip(i), 2379);
        let healthy = || trio.coordinators[i].namespace.run(move || is_healthy(client).unwrap_or(false));
        assert!(wait_until(PATIENCE, healthy));
    }
}

/// Asks a member of etcd whether it and most others are well.
fn is_healthy(member: SocketAddr) -> io::Result<bool> {
    let patience = Duration::from_secs(3);
    let mut stream = TcpStream::connect_timeout(&member, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.contains("\"true\""))
}

fn a_token_outlives_its_coordinator(trio: &Trio) {
    let late = &trio.nodes[2];
    let token = token(&trio.coordinators[2], "dc", &late.name).unwrap();
    trio.coordinators[2].kill();
    late.expect_config(&["join", &token]).unwrap();
    trio.coordinators[2].start().unwrap();
}
