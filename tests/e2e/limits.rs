//! Limits at the doors of a node: too few descriptors, a token where everybody reads it, memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use mesh_proto::trust::join_token::JoinToken;
use mesh_tests::daemon::{Binaries, Daemon, Process, tail, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{PODS, SERVICES, STARTING};
use mesh_tests::topology::{Network, Underlay, daemon_on, start_coordinator, token, write_coordinator, write_node};
use tempfile::TempDir;

/// The lanes of the node.
const LANES: u16 = 2;
/// The user that nobody is.
const NOBODY: u32 = 65_534;

/// A member, and a machine that did not join.
struct Doors {
    node: Daemon,
    stranger: Daemon,
    coordinator: Daemon,
    network: Network,
    binaries: Binaries,
    _folder: TempDir,
}

const FACTS: &[Fact<Doors>] = &[
    (
        "with_few_descriptors_a_node_ends_with_the_cause_and_with_enough_it_runs",
        with_few_descriptors_a_node_ends_with_the_cause_and_with_enough_it_runs,
    ),
    (
        "a_token_on_the_command_line_is_taken_from_there_at_once",
        a_token_on_the_command_line_is_taken_from_there_at_once,
    ),
    ("other_processes_of_its_user_do_not_read_its_memory", other_processes_of_its_user_do_not_read_its_memory),
    ("metrics_are_not_read_by_a_name_that_leads_here", metrics_are_not_read_by_a_name_that_leads_here),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| run.scene("doors", || set_up(binaries), FACTS))
}

fn set_up(binaries: &Binaries) -> io::Result<Doors> {
    let folder = tempfile::Builder::new().prefix("mesh-limits-").tempdir()?;
    let prefix = format!("lm{}", std::process::id());
    let network = Network::new(&prefix, folder.path(), 3, Underlay::V4).map_err(io::Error::other)?;
    let daemon = |name, subnet| daemon_on(&network, name, subnet, folder.path(), binaries);
    let (coordinator, node, stranger) = (daemon("coordinator", 3)?, daemon("a", 1)?, daemon("x", 2)?);
    write_coordinator(&coordinator, network.ip(3, 11), SERVICES)?;
    write_node(&node, Some(PODS), LANES, "metrics = \"127.0.0.1:9586\"\n")?;
    write_node(&stranger, None, 1, "")?;
    start_coordinator(&coordinator, network.ip(3, 11))?;
    node.expect_config(&["join", &token(&coordinator, "east", "a")?])?;
    Ok(Doors { node, stranger, coordinator, network, binaries: binaries.clone(), _folder: folder })
}

/// Returns how many threads of lanes a process has.
fn lanes(id: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("lane-")).count()
}

fn with_few_descriptors_a_node_ends_with_the_cause_and_with_enough_it_runs(doors: &Doors) {
    let node = &doors.node;
    for most in [12, 16, 20, 24, 32, 48, 79] {
        let (mut process, log) = start_with(doors, most);
        let id = process.id();
        assert!(
            wait_until(STARTING, || !is_alive(id)),
            "{most}: it lives with {} lanes: {}",
            lanes(id),
            tail(&log, 20)
        );
        assert_ne!(process.exit_code(), Some(0), "{most}");
        let said = tail(&log, 20);
        assert!(said.contains("open files"), "{most}: it does not say why: {said}");
    }
    let (process, log) = start_with(doors, 80);
    let runs = || lanes(process.id()) == usize::from(LANES) && node.status().is_ok_and(|status| status.node.is_some());
    assert!(wait_until(STARTING, runs), "{}", tail(&log, 20));
    assert!(!wait_until(Duration::from_secs(2), || !runs()), "it does not go on: {}", tail(&log, 20));
    assert!(!tail(&log, 50).contains("open files"), "{}", tail(&log, 50));
    process.kill();
}

/// Starts the node with a limit of open files. Returns where it logs, too.
fn start_with(doors: &Doors, most: u32) -> (Process, PathBuf) {
    let log = doors.node.folder.join(format!("log-{most}"));
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n $0 && exec \"$@\"", &most.to_string()]);
    command.arg(doors.binaries.path("meshd")).arg("run").arg("--config").arg(doors.node.config());
    (Process::start(&doors.node.namespace, command, &log).unwrap(), log)
}

/// Says whether a process is there and no zombie.
fn is_alive(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn a_token_on_the_command_line_is_taken_from_there_at_once(doors: &Doors) {
    let mut shown = token(&doors.coordinator, "east", "x").unwrap().parse::<JoinToken>().unwrap();
    // Nobody is there, so that the join waits.
    shown.coordinators = vec![format!("{}:7700", doors.network.ip(2, 77))];
    let shown = shown.to_line();
    let log = doors.stranger.folder.join("log-join");
    let mut command = Command::new(doors.binaries.path("meshd"));
    command.args(["join", &shown, "--config"]).arg(doors.stranger.config());

    let process = Process::start(&doors.stranger.namespace, command, &log).unwrap();

    let words = || std::fs::read(format!("/proc/{}/cmdline", process.id())).unwrap_or_default();
    let words = || String::from_utf8_lossy(&words()).replace('\0', " ");
    let hidden = wait_until(Duration::from_secs(2), || words().contains(" join - --config "));
    assert!(hidden, "its words are {}", words());
    assert!(process.tail(20).contains("warning: the token was visible"), "{}", process.tail(20));
    process.kill();

    // The same join succeeds as it did.
    let good = token(&doors.coordinator, "east", "x").unwrap();
    let joined = doors.stranger.config_verb(&["join", &good]).unwrap();
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
}

fn other_processes_of_its_user_do_not_read_its_memory(doors: &Doors) {
    let mut command = Command::new(doors.binaries.path("meshd"));
    // It waits for a token.
    command.args(["join", "-"]).uid(NOBODY).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut waits = command.spawn().unwrap();
    // The kernel takes such files away from the user whose process it is.
    let owner = || std::fs::metadata(format!("/proc/{}/environ", waits.id())).unwrap().uid();
    let began = Instant::now();
    let hidden = wait_until(Duration::from_secs(5), || owner() == 0);
    assert!(hidden, "after {:?} {} owns it", began.elapsed(), owner());
    waits.kill().unwrap();
    waits.wait().unwrap();
}

fn metrics_are_not_read_by_a_name_that_leads_here(doors: &Doors) {
    let node = &doors.node;
    node.start().unwrap();
    assert!(wait_until(STARTING, || node.status().is_ok()), "{}", tail(&node.log(), 20));
    for (host, status) in [("127.0.0.1:9586", "200"), ("localhost", "200"), ("evil.example.net:9586", "421")] {
        let said = ask(node, host);
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {said}");
    }
    assert!(node.terminate());
}

fn ask(node: &Daemon, host: &str) -> String {
    let request = format!("GET /livez HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    node.namespace.run(move || {
        use io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect("127.0.0.1:9586").unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    })
}
