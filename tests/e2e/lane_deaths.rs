//! A lane that is dead: the real daemon ends with 1, names lane and cause, and the next start tells of it.
//!
//! The kernel's answers to one thread are falsified from outside, so that the daemon is the one that is shipped.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use mesh_tests::daemon::{Binaries, Daemon, tail, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{PODS, SERVICES, STARTING};
use mesh_tests::skip::in_path;
use mesh_tests::topology::{Network, Underlay, start_coordinator, token, write_coordinator, write_node};
use tempfile::TempDir;

/// How long the daemon may take to see it: 10 s that a lane may take no mail, and what a busy machine adds.
const SEEN: Duration = Duration::from_secs(40);

/// An address of the mesh that nobody has.
const NOBODY: Ipv4Addr = Ipv4Addr::new(241, 77, 77, 77);

const FACTS: &[Fact<Mesh>] = &[
    ("a_lane_that_ends", a_lane_that_ends),
    ("a_lane_that_panics", a_lane_that_panics),
    ("a_lane_that_hangs", a_lane_that_hangs),
];

/// One node of two lanes.
struct Mesh {
    node: Daemon,
    _coordinator: Daemon,
    _network: Network,
    _folder: TempDir,
}

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.needs(in_path("strace").is_some(), "apt-get install strace");
        run.scene("meshd_ends", || set_up(binaries), FACTS);
    })
}

fn set_up(binaries: &Binaries) -> io::Result<Mesh> {
    let folder = tempfile::Builder::new().prefix("mesh-lanes-").tempdir()?;
    let prefix = format!("ln{}", std::process::id());
    let network = Network::new(&prefix, folder.path(), 2, Underlay::V4).map_err(io::Error::other)?;
    let home = |name: &str, subnet| {
        let files = folder.path().join(name);
        std::fs::create_dir(&files)?;
        Ok::<_, io::Error>((network.host(name, subnet, 11).map_err(io::Error::other)?, files))
    };
    let ((c, c_files), (n, n_files)) = (home("coordinator", 2)?, home("a", 1)?);
    let coordinator = Daemon::coordinator(&c, &c_files, binaries);
    let node = Daemon::meshd("a", &n, &n_files, binaries);
    write_coordinator(&coordinator, network.ip(2, 11), SERVICES)?;
    write_node(&node, Some(PODS), 2, "")?;
    start_coordinator(&coordinator, network.ip(2, 11))?;
    node.expect_config(&["join", &token(&coordinator, "east", "a")?])?;
    Ok(Mesh { node, _coordinator: coordinator, _network: network, _folder: folder })
}

fn a_lane_that_ends(mesh: &Mesh) {
    let cause = "lane 1 ended: Bad file descriptor";
    dies(mesh, &["-e", "inject=/epoll_.*wait:error=EBADF"], cause, cause);
}

/// The device says that it gave more bytes than there was room for.
fn a_lane_that_panics(mesh: &Mesh) {
    dies(mesh, &["-e", "inject=readv:retval=200000"], "thread 'lane-1'", "lane 1 panicked at");
}

fn a_lane_that_hangs(mesh: &Mesh) {
    let began = Instant::now();
    let cause = "lane 1 took no mail for 10 s";
    dies(mesh, &["-e", "inject=/epoll_.*wait:delay_exit=100000000"], cause, cause);
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Falsifies the kernel's answers to lane 1, and sees the daemon end and log why, and the next one tell the cause.
fn dies(mesh: &Mesh, how: &[&str], logged: &str, cause: &str) {
    let node = &mesh.node;
    let deaths = || metric(node, "meshd_lane_deaths_total");
    node.start().unwrap();
    assert!(wait_until(STARTING, || lane(node, 1).is_some() && deaths().is_some()), "{}", tail(&node.log(), 20));
    let before = deaths().unwrap();
    let thread = lane(node, 1).unwrap();
    let strace = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-p", &thread])
        .args(how)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut strace = Attached(strace.unwrap());
    // A thread that is traced outlives its process until the tracer lets it go.
    let seen = || {
        stir(node);
        !node.running() || tail(&node.log(), 20).contains(logged)
    };
    assert!(wait_until(SEEN, seen), "it does not see it: {}", tail(&node.log(), 20));
    strace.end();
    assert!(wait_until(STARTING, || !node.running()), "it goes on: {}", tail(&node.log(), 20));
    assert_eq!(node.exit_code(), Some(1), "{}", tail(&node.log(), 20));
    let log = tail(&node.log(), 20);
    assert!(log.contains(logged), "{log}");

    node.start().unwrap();
    assert!(wait_until(STARTING, || deaths().is_some()), "{}", tail(&node.log(), 20));
    let warnings = node.status().unwrap().warnings;
    assert!(warnings.iter().any(|w| w.contains(&format!("because {cause}"))), "{warnings:?}");
    assert_eq!(deaths(), Some(before + 1));
    assert!(node.terminate());
}

/// Has every lane read packets, which go nowhere.
fn stir(node: &Daemon) {
    node.namespace.run(|| {
        for _ in 0..64 {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            let _ = socket.send_to(b"x", (NOBODY, 9));
        }
    });
}

/// The thread of a lane.
fn lane(node: &Daemon, lane: u32) -> Option<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.id()?)).ok()?;
    let mut threads = tasks.filter_map(|task| task.ok()?.file_name().into_string().ok());
    let name = |thread: &String| std::fs::read_to_string(format!("/proc/{}/task/{thread}/comm", node.id()?)).ok();
    threads.find(|thread| name(thread).is_some_and(|name| name.trim() == format!("lane-{lane}")))
}

fn metric(node: &Daemon, name: &str) -> Option<u64> {
    let text = node.expect(&["metrics"]).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Something attached to a process, that ends with it or with the value.
struct Attached(Child);

impl Attached {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.end();
    }
}
