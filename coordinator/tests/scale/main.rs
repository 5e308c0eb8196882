//! One coordinator process and as many nodes as are asked for, each with a TLS connection of its own: how long a
//! change takes to all that it concerns, what that costs, and how fast nodes join.
//!
//! A thousand nodes in every run. Ten thousand, which need about 10,200 descriptors in each of two processes:
//! `cargo test --profile lab --workspace --test scale -- --ignored --nocapture`

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a benchmark tells its figures")]

mod mesh;
mod node;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use coordinator::base::words::SOCKET;
use coordinator::core::documents;
use coordinator::keys::identity;
use futures_util::stream::{self, StreamExt as _};
use hyper::{Method, StatusCode};
use mesh_host::client::Client;
use mesh_host::identity::Identity;
use mesh_proto::base::id::{IdentityKey, TunnelKey};
use mesh_proto::model::netmap::LaneInfo;
use mesh_proto::trust::join_token::JoinToken;
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::{JoinRequest, NodeFacts, Report, VERSION};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::time::sleep;

use node::{ScaleChannel, SeenMap};

/// How long anything may take before the test fails.
const DEADLINE: Duration = Duration::from_secs(60);
/// Connections that are made at the same time; strangers may have 32 from one address.
const AT_ONCE: usize = 24;
/// Descriptors that are needed apart from one for each node.
const SPARE: usize = 200;

/// What is promised of ten thousand nodes.
const LATENCY: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });
const MEMORY_KB: usize = 1024 * 1024;
const JOINING: Duration = Duration::from_secs(10);
/// How long all nodes may take to be back after the coordinator was killed.
const BACK: Duration = Duration::from_secs(if cfg!(debug_assertions) { 60 } else { 30 });

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_a_thousand_nodes_and_nobody_whom_it_does_not_concern() {
    measure(1000, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an optimised build: cargo test --profile lab --workspace --test scale -- --ignored"]
async fn a_change_reaches_ten_thousand_nodes_within_a_second() {
    measure(10_000, 1000).await;
}

/// A coordinator process on files of its own.
struct Process {
    child: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
    pin: IdentityKey,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn start(members: &[Identity], services: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let text = format!(
            "listen = \"{address}\"\npublic = \"{address}\"\nstate_dir = \"state\"\nservices = \"services.toml\"\n\
             admin_socket = \"state/admin.sock\"\nmetrics = \"\"\n"
        );
        std::fs::write(file("coordinator.toml"), text).unwrap();
        std::fs::write(file("services.toml"), services).unwrap();
        let (identity, _) = identity::load_or_create(&file("state")).unwrap();
        mesh::fill(&file("state").join(coordinator::base::state_files::STORE), members);
        let child = spawn(dir.path());
        let process = Self { child, dir, address, pin: identity.public() };
        process.until_it_answers().await;
        process
    }

    /// Kills it, and starts it again.
    async fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.dir.path());
        self.until_it_answers().await;
    }

    async fn until_it_answers(&self) {
        until("the coordinator answers", || async { self.status().await.is_some() }).await;
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("state/admin.sock")
    }

    async fn status(&self) -> Option<documents::StatusDocument> {
        Client::new(&SOCKET, self.socket()).get("/v1/status").await.ok()
    }

    /// Saves services.toml as editors do.
    fn save(&self, text: &str) {
        let path = self.dir.path().join("services.toml");
        std::fs::write(path.with_extension("draft"), text).unwrap();
        std::fs::rename(path.with_extension("draft"), path).unwrap();
    }

    async fn token(&self, uses: usize) -> JoinToken {
        let wanted = json!({"site": "new", "name": null, "ttl_s": 600, "serve": [], "uses": uses});
        let line: documents::TokenLine =
            Client::new(&SOCKET, self.socket()).ask(Method::POST, "/v1/tokens", Some(&wanted)).await.unwrap();
        line.token.parse().unwrap()
    }

    /// The most memory that it ever had, in KiB.
    fn memory_kb(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

/// Starts the coordinator of a directory: ours, or that of the folder `MESH_BINARIES`.
fn spawn(dir: &Path) -> Child {
    let folder = std::env::var_os("MESH_BINARIES").map(PathBuf::from);
    let program =
        folder.map_or_else(|| env!("CARGO_BIN_EXE_mesh-coordinator").into(), |dir| dir.join("mesh-coordinator"));
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(dir.join("coordinator.toml")).env("RUST_LOG", "warn");
    command.stderr(Stdio::inherit()).spawn().unwrap()
}

/// Opens a watch of each of the first members.
async fn watch(members: &[Identity], process: &Process, seen: &[Arc<SeenMap>]) {
    stream::iter(seen.iter().enumerate())
        .for_each_concurrent(AT_ONCE, |(number, seen)| async move {
            let channel = ScaleChannel::open(number, &members[number], process.address, process.pin).await;
            channel.watch(Arc::clone(seen)).await;
        })
        .await;
    until("every watch has its map", || async { seen.iter().all(|seen| seen.snapshots.load(Ordering::Acquire) == 1) })
        .await;
}

async fn measure(nodes: usize, joins: usize) {
    let watchers = descriptors(nodes + joins + SPARE).saturating_sub(joins + SPARE).min(nodes);
    let began = Instant::now();
    let told = |what: &str| eprintln!("{:7.2} s  {what}", began.elapsed().as_secs_f64());

    let members: Vec<_> = (0..nodes).map(|_| Identity::generate().unwrap()).collect();
    let mut process = Process::start(&members, &mesh::services(nodes, 100, 100)).await;
    told(&format!("{nodes} members, {} services; {} MiB", nodes / 10, process.memory_kb() / 1024));

    let seen: Vec<_> = (0..watchers).map(|_| SeenMap::new(began)).collect();
    watch(&members, &process, &seen).await;
    told(&format!("{watchers} watches over TLS; {} MiB", process.memory_kb() / 1024));

    // The weight of a service that some nodes see.
    let expected = mesh::SEE_S55.min(watchers);
    let start = began.elapsed();
    process.save(&mesh::services(nodes, 101, 100));
    let latency = changed(&seen, expected, start).await;
    told(&format!("a weight, {expected} nodes concerned: {latency}"));
    latency.check();

    // The weight of a service that everybody may call.
    let start = began.elapsed();
    process.save(&mesh::services(nodes, 101, 101));
    let latency = changed(&seen, watchers, start).await;
    told(&format!("a weight, {watchers} nodes concerned: {latency}"));
    latency.check();

    // Where a node listens that everybody may call.
    let mut channel = ScaleChannel::open(0, &members[1], process.address, process.pin).await;
    let endpoint = mesh::endpoint(1, 4000).parse().unwrap();
    let lanes = vec![LaneInfo { key: TunnelKey(members[1].public().0), port: 51820 }];
    let facts = NodeFacts { lanes, endpoints: vec![endpoint], mtu: 1420, guarded: true, ..NodeFacts::default() };
    let facts = signed(&members[1], facts);
    let report = Report { facts, applied: mesh_proto::base::id::Revision(1), warnings: Vec::new() };
    let start = began.elapsed();
    assert_eq!(channel.post("/v1/report", &report).await.0, StatusCode::OK);
    // The node itself is told that its record was taken.
    let latency = changed(&seen, watchers, start).await;
    told(&format!("an endpoint, {watchers} nodes concerned: {latency}"));
    latency.check();

    let token = process.token(joins).await;
    let start = began.elapsed();
    stream::iter(0..joins)
        .for_each_concurrent(AT_ONCE, |number| {
            let (token, process) = (&token, &process);
            async move { join(nodes + number, token, process, began).await }
        })
        .await;
    let took = began.elapsed() - start;
    let memory = process.memory_kb();
    told(&format!("{joins} joins in {:.2} s, each with its watch; {} MiB at most", took.as_secs_f64(), memory / 1024));
    assert!(took <= JOINING, "{took:?}");
    assert!(memory <= MEMORY_KB, "{memory} KiB");

    let start = began.elapsed();
    process.restart().await;
    let answers = began.elapsed() - start;
    let seen: Vec<_> = (0..watchers).map(|_| SeenMap::new(began)).collect();
    watch(&members, &process, &seen).await;
    let took = began.elapsed() - start;
    told(&format!(
        "killed: it answers after {:.2} s, all {watchers} have their maps again after {:.2} s",
        answers.as_secs_f64(),
        took.as_secs_f64()
    ));
    assert!(took <= BACK, "{took:?}");
}

/// Signs what a node says of itself.
fn signed(by: &Identity, facts: NodeFacts) -> NodeFacts {
    let facts = NodeFacts { sequence: 1, ..facts };
    let text = facts.text();
    let signature = by.sign(&SignedRecord::message(&text));
    NodeFacts { signed: Some(SignedRecord { text: text.into(), signature }), ..facts }
}

/// Joins one more node, and lets it watch.
async fn join(number: usize, token: &JoinToken, process: &Process, began: Instant) {
    let identity = Identity::generate().unwrap();
    let mut channel = ScaleChannel::open(number, &identity, process.address, process.pin).await;
    let facts = NodeFacts {
        lanes: vec![LaneInfo { key: TunnelKey(identity.public().0), port: 51820 }],
        endpoints: vec![mesh::endpoint(number, 51820).parse().unwrap()],
        mtu: 1420,
        guarded: true,
        ..NodeFacts::default()
    };
    let request = JoinRequest {
        version: VERSION,
        token: token.id_text(),
        secret: token.secret.clone(),
        oidc: None,
        name: format!("j{number}").parse().unwrap(),
        facts: signed(&identity, facts),
        ephemeral: false,
    };
    let (status, body) = channel.post("/v1/join", &request).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let seen = SeenMap::new(began);
    channel.watch(Arc::clone(&seen)).await;
    until("a new node has its map", || async { seen.snapshots.load(Ordering::Acquire) == 1 }).await;
}

/// How long a change took to those whom it concerns.
struct Latency {
    half: Duration,
    most: Duration,
    last: Duration,
    bytes: usize,
}

impl Latency {
    fn check(&self) {
        assert!(self.most <= LATENCY, "p99 is {:?}", self.most);
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_millis();
        let Self { half, most, last, bytes } = self;
        write!(f, "p50 {} ms, p99 {} ms, last {} ms, {bytes} bytes each", ms(*half), ms(*most), ms(*last))
    }
}

/// Waits until as many watches as expected were told of a change that began at `start`, and no others.
async fn changed(seen: &[Arc<SeenMap>], expected: usize, start: Duration) -> Latency {
    let told = || seen.iter().filter(|seen| seen.deltas.load(Ordering::Acquire) > 0);
    let began = Instant::now();
    while told().count() < expected {
        assert!(began.elapsed() < DEADLINE, "{} of {expected} are told", told().count());
        sleep(Duration::from_millis(20)).await;
    }
    // Who is told wrongly would be told soon.
    sleep(Duration::from_millis(300)).await;
    assert_eq!(told().count(), expected, "nobody else is told");
    let mut times: Vec<_> = told().map(|seen| seen.last().saturating_sub(start)).collect();
    times.sort_unstable();
    let bytes = told().map(|seen| seen.bytes.load(Ordering::Acquire)).max().unwrap_or(0);
    for seen in seen {
        seen.deltas.store(0, Ordering::Release);
        seen.bytes.store(0, Ordering::Release);
    }
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    Latency { half: at(50), most: at(99), last: *times.last().unwrap(), bytes }
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < DEADLINE, "never came true: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Raises the limit of descriptors for this process and its children; returns what it is.
fn descriptors(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let current = most.min((wanted as u64).max(limit.current.unwrap_or(0)));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum }).unwrap();
    usize::try_from(current).unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
