//! Nobody waits for control: names are answered and spliced streams flow while a large map comes into force.
//!
//! ```text
//!   coordinator, 10,000 members that nobody runs
//!      └─ edit ─▶ a: asked 200 times a second for a name; serves a file from loopback ◀── download ── b
//! ```
//! Each run measures twice: some seconds in which nothing happens, and the time in which something does. The slowest
//! answer and the longest stall may be 20 ms above those of the quiet time. It is meaningful on a machine that does
//! nothing else, and hence runs only when it is asked for; threads that only sleep, one on each CPU, tell whether it is.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what a test binary prints")]

mod load;
mod members;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use load::{Load, Worst};
use members::{PORT, Sight};
use mesh_tests::daemon::{Binaries, Daemon, tail, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::skip::in_path;
use mesh_tests::topology::{
    COORDINATOR_PORT, Network, Underlay, edit, start_coordinator, token, write_coordinator, write_node,
};
use mesh_tests::traffic;
use tempfile::TempDir;

/// How many members there are: `MESH_WAITING_PEERS=500` to see whether all works.
const MEMBERS: &str = "MESH_WAITING_PEERS";
const MANY: usize = 10_000;
/// Runs of each fact that count.
const RUNS: usize = 3;
/// How much worse it may be than in the quiet time of the same run.
const MORE: Duration = Duration::from_millis(20);
/// A quiet time in which something takes longer than this says that the machine is busy.
const QUIET: Duration = Duration::from_millis(15);
/// So does a thread that only sleeps and is woken so much too late, then or while something happens.
const LATE: Duration = Duration::from_millis(10);
/// Runs of each fact that may be repeated because of that.
const REPEATS: usize = 6;
/// How long nothing happens, and how long is looked at what follows from what happened: storing, reporting.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(1);
/// When a lease of 10 s is not over yet for certain.
const NOT_OVER: Duration = Duration::from_secs(6);
/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The name that is asked for, and the file's server.
const NAME: &str = "files.mesh.internal";
const SERVER: &str = "127.0.0.1:9000";
/// The shortest that may be configured.
const MAX_OFFLINE: &str = "max_offline = \"10s\"\n";

const FACTS: &[Fact<Mesh>] = &[
    ("a_large_map", a_large_map),
    ("a_first_map", a_first_map),
    ("half_of_the_peers_removed", half_of_the_peers_removed),
    ("a_lease_that_ends", a_lease_that_ends),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        let alone = std::env::var_os("MESH_ALONE").is_some_and(|word| word == "1");
        run.asks_for(alone, "MESH_ALONE=1 cargo test --workspace --profile lab --test waiting, on an idle machine");
        run.needs(in_path("chrt").is_some(), "apt-get install util-linux");
        run.scene("nobody_waits", || set_up(binaries), FACTS);
    })
}

/// Two nodes, and a coordinator with thousands of members.
struct Mesh {
    a: Daemon,
    b: Daemon,
    coordinator: Daemon,
    members: usize,
    /// Whether the table of figures has its head.
    headed: AtomicBool,
    _network: Network,
    _folder: TempDir,
}

fn set_up(binaries: &Binaries) -> io::Result<Mesh> {
    let members = std::env::var(MEMBERS).ok().and_then(|text| text.parse().ok()).unwrap_or(MANY);
    let folder = tempfile::Builder::new().prefix("mesh-waiting-").tempdir()?;
    let prefix = format!("wt{}", std::process::id());
    let network = Network::new(&prefix, folder.path(), 3, Underlay::V4).map_err(io::Error::other)?;
    let home = |name: &str, subnet| {
        let files = folder.path().join(name);
        std::fs::create_dir(&files)?;
        Ok::<_, io::Error>((network.host(name, subnet, 11).map_err(io::Error::other)?, files))
    };
    let ((c, c_files), (a, a_files), (b, b_files)) = (home("coordinator", 3)?, home("a", 1)?, home("b", 2)?);
    let coordinator = Daemon::coordinator(&c, &c_files, &idle(binaries, folder.path())?);
    let (a, b) = (Daemon::meshd("a", &a, &a_files, binaries), Daemon::meshd("b", &b, &b_files, binaries));

    write_coordinator(&coordinator, network.ip(3, 11), &Sight::Nobody.services())?;
    let public = SocketAddr::new(network.ip(3, 11), COORDINATOR_PORT).to_string();
    coordinator.expect_config(&["init", "--name", "boutique", "--public", &public])?;
    members::fill(&c_files.join("state"), members)?;
    // What is there already stays as it is.
    start_coordinator(&coordinator, network.ip(3, 11))?;

    std::fs::write(
        a_files.join("services.toml"),
        format!("version = 1\n[[serve]]\nservice = \"files\"\nbind = \"{SERVER}\"\n"),
    )?;
    load::serve(&a.namespace, SERVER.parse().map_err(io::Error::other)?)?;
    for node in [&a, &b] {
        write_node(node, None, 1, "")?;
        node.expect_config(&["join", &token(&coordinator, "home", &node.name)?])?;
        node.start()?;
    }
    Ok(Mesh { a, b, coordinator, members, headed: AtomicBool::default(), _network: network, _folder: folder })
}

/// Returns where a coordinator is that computes only when nobody else does: of a mesh it stands on another machine.
fn idle(binaries: &Binaries, folder: &std::path::Path) -> io::Result<Binaries> {
    let programs = folder.join("idle");
    std::fs::create_dir(&programs)?;
    let (word, script) = ("mesh-coordinator", programs.join("mesh-coordinator"));
    std::fs::write(&script, format!("#!/bin/sh\nexec chrt --idle 0 \"{}\" \"$@\"\n", binaries.path(word).display()))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(Binaries::of(programs))
}

impl Mesh {
    /// Puts services.toml in place.
    fn edit(&self, sight: Sight) {
        edit(&self.coordinator, &sight.services()).unwrap();
    }

    /// Returns what `a` logged from a place on.
    fn logged(&self, from: usize) -> String {
        let log = std::fs::read(self.a.log()).unwrap_or_default();
        String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned()
    }

    /// Says whether `a` put a map with so many of the members in force after a place of its log. The log is asked, not
    /// the daemon: a status of 10,000 peers every 10 ms would be what is measured.
    fn in_force(&self, sight: Sight, from: usize) -> bool {
        // The other node is a peer as well.
        let peers = format!("peers={} ", sight.of(self.members) + 1);
        self.logged(from).lines().any(|line| line.contains("map in force") && line.contains(&peers))
    }

    /// Waits until `a` has so many of the members in force and hears its coordinator, which is started if need be.
    fn settle(&self, sight: Sight) {
        self.edit(sight);
        for daemon in [&self.coordinator, &self.a, &self.b] {
            if !daemon.running() {
                daemon.start().unwrap();
            }
        }
        let is_settled = || {
            self.a.status().is_ok_and(|status| {
                let peers = sight.of(self.members) + 1;
                let away = status.warnings.iter().any(|text| text.contains("max_offline"));
                status.coordinator.connected && status.peers.len() == peers && !away
            })
        };
        assert!(wait_until(PATIENCE, is_settled), "{sight:?} does not come: {}", tail(&self.a.log(), 10));
    }

    /// Starts to ask and to download, once both work.
    fn load(&self) -> Load {
        let dns = std::net::Ipv4Addr::new(241, 0, 0, 53);
        let named = || traffic::resolve(&self.a.namespace, dns, NAME, false).is_ok_and(|a| !a.addresses.is_empty());
        assert!(wait_until(PATIENCE, named), "{NAME} has no address: {}", tail(&self.a.log(), 10));
        let vip = traffic::resolve(&self.a.namespace, dns, NAME, false).unwrap().addresses[0];
        let reached = || traffic::connect(&self.b.namespace, (vip, PORT)).is_ok();
        assert!(wait_until(PATIENCE, reached), "nothing is served at {vip}: {}", tail(&self.b.log(), 10));
        Load::start(&self.a.namespace, NAME, &self.b.namespace, (vip, PORT).into()).unwrap()
    }

    /// Measures for as long as nothing happens, lets something happen, and measures until it is over.
    /// `is_over` is asked with the length of the log before. Returns both, and how long the second took.
    fn measure(&self, calm: Duration, act: impl FnOnce(), is_over: impl Fn(usize) -> bool) -> (Worst, Worst, Duration) {
        let load = self.load();
        // The quiet time begins when the download has its pace.
        std::thread::sleep(BEFORE / 4);
        let begin = Instant::now();
        std::thread::sleep(calm);
        let from = self.logged(0).len();
        let acted = Instant::now();
        let quiet = load.worst(begin, acted);
        act();
        assert!(wait_until(PATIENCE, || is_over(from)), "it never happens: {}", tail(&self.a.log(), 10));
        let took = acted.elapsed();
        std::thread::sleep(AFTER);
        (quiet, load.worst(acted, Instant::now()), took)
    }

    /// Measures a fact three times, and judges. A run on a machine that is busy does not count.
    fn prove(&self, fact: &str, mut run: impl FnMut() -> (Worst, Worst, Duration)) {
        if !self.headed.swap(true, Ordering::Relaxed) {
            let [took, asked, answer, stall, late] = ["took", "asked", "slowest answer", "longest stall", "CPU late"];
            println!("{:<26} {took:>9} {asked:>7} {answer:>19} {stall:>19} {late:>19}", "");
        }
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        let (mut counted, mut repeated, mut bad) = (0, 0, Vec::new());
        while counted < RUNS {
            let (quiet, busy, took) = run();
            let counts = quiet.answer.max(quiet.stall) <= QUIET && quiet.late.max(busy.late) <= LATE;
            let both = |of: fn(&Worst) -> Duration| format!("{} -> {} ms", ms(of(&quiet)), ms(of(&busy)));
            let row = format!(
                "{fact:<26} {:>6} ms {:>7} {:>19} {:>19} {:>19}{}",
                took.as_millis(),
                busy.asked,
                both(|worst| worst.answer),
                both(|worst| worst.stall),
                both(|worst| worst.late),
                if counts { "" } else { "  not counted: the machine is busy" }
            );
            println!("{row}");
            if counts {
                counted += 1;
                if busy.answer > quiet.answer + MORE || busy.stall > quiet.stall + MORE {
                    bad.push(row);
                }
            } else {
                repeated += 1;
                assert!(
                    repeated <= REPEATS,
                    "the machine is too busy to measure on: in {repeated} runs a CPU was taken for longer than {LATE:?}, or \
                     something took longer than {QUIET:?} while nothing happened; run this alone"
                );
            }
        }
        assert!(bad.is_empty(), "somebody waited for control:\n{}", bad.join("\n"));
    }
}

fn a_large_map(mesh: &Mesh) {
    mesh.prove("a large map", || {
        mesh.settle(Sight::Nobody);
        mesh.measure(BEFORE, || mesh.edit(Sight::All), |from| mesh.in_force(Sight::All, from))
    });
}

/// The first map that a daemon is sent: whole, and nothing of it is known.
fn a_first_map(mesh: &Mesh) {
    mesh.prove("a first map", || {
        mesh.settle(Sight::Nobody);
        mesh.coordinator.kill();
        mesh.a.kill();
        mesh.a.start().unwrap();
        mesh.edit(Sight::All);
        mesh.measure(BEFORE, || mesh.coordinator.start().unwrap(), |from| mesh.in_force(Sight::All, from))
    });
}

fn half_of_the_peers_removed(mesh: &Mesh) {
    mesh.prove("half of the peers removed", || {
        mesh.settle(Sight::All);
        mesh.measure(BEFORE, || mesh.edit(Sight::Near), |from| mesh.in_force(Sight::Near, from))
    });
}

fn a_lease_that_ends(mesh: &Mesh) {
    mesh.settle(Sight::All);
    let config = std::fs::read_to_string(mesh.a.config()).unwrap();
    std::fs::write(mesh.a.config(), MAX_OFFLINE.to_owned() + &config).unwrap();
    mesh.a.kill();
    mesh.prove("a lease that ends", || {
        mesh.settle(Sight::All);
        let over = |from| mesh.logged(from).contains("longer than `max_offline`");
        mesh.coordinator.kill();
        mesh.measure(NOT_OVER, || {}, over)
    });
}
