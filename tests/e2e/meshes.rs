//! Several meshes on the same hosts: side by side, refused where they would meet, one after the other.
//!
//! ```text
//!  a ─┬ meshd, mesh0, 241.0.0.0/8  ═══ router ═══  meshd, mesh0 ┬─ b        coordinators 172.31.3.11, .12, .13
//!     └ meshd, mesh1, 100.96.0.0/12 ══        ══   meshd, mesh1 ┘
//! ```
//! `MESH_OLD` names a folder with meshd and mesh-coordinator of the older version, such as `target/lab` of its worktree.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh_tests::capture::{Capture, hex_dump};
use mesh_tests::classify::Known;
use mesh_tests::daemon::{Binaries, Daemon, run, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::netns::Namespace;
use mesh_tests::nft;
use mesh_tests::pair::STARTING;
use mesh_tests::snapshot;
use mesh_tests::topology::{COORDINATOR_PORT, Network, PORT, Underlay, start_coordinator, token, write_coordinator};
use mesh_tests::traffic;
use tempfile::TempDir;

/// How long both meshes are under traffic.
const UNDER_TRAFFIC: Duration = Duration::from_secs(10);
/// The echo of b's host.
const ECHO: u16 = 7;

/// What tells the meshes of a host apart: range, interface, port, and the number of the coordinator's host.
#[derive(Clone, Copy)]
struct Plan {
    name: &'static str,
    range: &'static str,
    interface: &'static str,
    port: u16,
    coordinator: u8,
}

const FIRST: Plan = Plan { name: "one", range: "241.0.0.0/8", interface: "mesh0", port: PORT, coordinator: 11 };
const SECOND: Plan = Plan { name: "two", range: "100.96.0.0/12", interface: "mesh1", port: 51920, coordinator: 12 };
/// Its range is a part of the first one's.
const THIRD: Plan = Plan { name: "three", range: "241.64.0.0/10", interface: "mesh2", port: 52020, coordinator: 13 };

/// One mesh with its two nodes. Fields are dropped in order: processes, namespaces, files.
struct Mesh {
    a: Daemon,
    b: Daemon,
    coordinator: Daemon,
}

struct Host {
    first: Mesh,
    second: Mesh,
    third: Mesh,
    /// What a and b had in the kernel before there was a mesh.
    before: [String; 2],
    binaries: Binaries,
    network: Network,
    folder: TempDir,
}

const TOGETHER: &[Fact<Host>] = &[
    ("both_meshes_work_under_traffic_and_nothing_leaves_in_clear", both_work),
    ("a_mesh_whose_range_overlaps_is_refused_by_name", an_overlapping_one_is_refused),
    ("another_daemon_for_the_same_range_is_refused_by_name", another_of_the_same_range_is_refused),
    ("a_second_of_the_same_state_directory_waits_and_takes_over", the_same_state_directory_waits),
    ("who_may_not_set_up_networks_can_make_no_claim", a_stranger_makes_no_claim),
    ("leave_of_one_leaves_the_other_alone", leave_of_one),
    ("cleanup_of_all_leaves_nothing", cleanup_of_all),
];
const UPGRADE: &[Fact<Upgrade>] = &[
    ("the_default_range_is_taken_over_without_an_open_moment", |world| taken_over(world, FIRST)),
    ("another_range_is_taken_over_without_an_open_moment", |world| taken_over(world, SECOND)),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.scene("together", || set_up(binaries), TOGETHER);
        let folder = std::env::var_os("MESH_OLD").map(PathBuf::from);
        run.asks_for(folder.is_some(), "MESH_OLD=FOLDER, with the programs of an older version");
        let old = Binaries::of(folder.unwrap_or_default());
        run.scene("upgrade", || Upgrade::set_up(old, binaries.clone()), UPGRADE);
    })
}

fn set_up(binaries: &Binaries) -> io::Result<Host> {
    let folder = tempfile::Builder::new().prefix("mesh-several-").tempdir()?;
    let network = Network::new(&format!("sv{}", std::process::id()), folder.path(), 3, Underlay::V4);
    let network = network.map_err(io::Error::other)?;
    let home = |name: &str, subnet: u8| network.host(name, subnet, 11).map_err(io::Error::other);
    let (a, b) = (home("a", 1)?, home("b", 2)?);
    let before = [snapshot::take(&a), snapshot::take(&b)].map(|taken| taken.map_err(io::Error::other));
    let [before_a, before_b] = before;
    let before = [before_a?, before_b?];
    let mesh = |plan: Plan| -> io::Result<Mesh> {
        Ok(Mesh {
            a: node(plan, "a", &a, folder.path().join(format!("{}-a", plan.name)), binaries)?,
            b: node(plan, "b", &b, folder.path().join(format!("{}-b", plan.name)), binaries)?,
            coordinator: coordinator(plan, &network, binaries)?,
        })
    };
    let (first, second, third) = (mesh(FIRST)?, mesh(SECOND)?, mesh(THIRD)?);
    for mesh in [&first, &second] {
        for node in [&mesh.a, &mesh.b] {
            node.expect_config(&["join", &token(&mesh.coordinator, "dc", &node.name)?])?;
            node.start()?;
        }
    }
    traffic::serve_udp(&b, ECHO)?;
    Ok(Host { first, second, third, before, binaries: binaries.clone(), network, folder })
}

fn coordinator(plan: Plan, network: &Network, binaries: &Binaries) -> io::Result<Daemon> {
    let name = format!("coordinator-{}", plan.name);
    let home = network.host(&name, 3, plan.coordinator).map_err(io::Error::other)?;
    let files = network.folder.join(name);
    std::fs::create_dir(&files)?;
    let coordinator = Daemon::coordinator(&home, &files, binaries);
    let Plan { name, range, .. } = plan;
    let services = format!(
        "version = 1\n\n[mesh]\nname = \"{name}\"\nv4 = \"{range}\"\n\n[[site]]\nname = \"dc\"\n\n\
         [[allow]]\nfrom = [\"host:a\"]\nto = [\"host:b\"]\n\n[[allow]]\nfrom = [\"host:b\"]\nto = [\"host:a\"]\n"
    );
    write_coordinator(&coordinator, address(network, plan), &services)?;
    start_coordinator(&coordinator, address(network, plan))?;
    Ok(coordinator)
}

fn address(network: &Network, plan: Plan) -> IpAddr {
    network.ip(3, plan.coordinator)
}

/// A meshd of a plan, with its files in a folder of its own.
fn node(plan: Plan, name: &str, home: &Namespace, files: PathBuf, binaries: &Binaries) -> io::Result<Daemon> {
    std::fs::create_dir_all(&files)?;
    let node = Daemon::meshd(name, home, &files, binaries);
    let folder = files.display();
    let text = format!(
        "name = \"{name}\"\nstate_dir = \"{folder}/state\"\nsocket = \"{}\"\nservices = \"{folder}/services.toml\"\n\
         interface = \"{}\"\nport = {}\nlanes = 1\nmetrics = \"off\"\n",
        node.socket().display(),
        plan.interface,
        plan.port,
    );
    std::fs::write(node.config(), text)?;
    Ok(node)
}

fn known(network: &Network) -> Known {
    let plans = [FIRST, SECOND, THIRD];
    Known {
        tunnel_ports: plans.iter().map(|plan| plan.port).collect(),
        coordinators: plans.iter().map(|&plan| SocketAddr::new(address(network, plan), COORDINATOR_PORT)).collect(),
    }
}

fn mesh_address(node: &Daemon) -> Ipv4Addr {
    node.status().unwrap().node.expect("the node has joined").address.0
}

fn reaches(mesh: &Mesh) -> bool {
    let to = mesh_address(&mesh.b);
    wait_until(STARTING, || traffic::udp_echo(&mesh.a.namespace, (to, ECHO), 100).is_ok())
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// Sends numbered datagrams for a while; returns how many were sent, and how many did not come back.
fn lost(from: &Namespace, to: Ipv4Addr, spell: Duration) -> (u64, u64) {
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let listening = socket.try_clone().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let (mut heard, mut buffer) = (BTreeSet::new(), [0; 64]);
            loop {
                match listening.recv(&mut buffer) {
                    Ok(8) => drop(heard.insert(u64::from_be_bytes(buffer[..8].try_into().unwrap()))),
                    Ok(_) => {}
                    Err(_) if stop.load(Ordering::Relaxed) => return heard.len() as u64,
                    Err(_) => {}
                }
            }
        });
        let (end, mut sent) = (Instant::now() + spell, 0u64);
        while Instant::now() < end {
            // One that is refused counts as lost.
            let _ = socket.send_to(&sent.to_be_bytes(), (to, ECHO));
            sent += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
        stop.store(true, Ordering::Relaxed);
        (sent, sent - heard.join().unwrap())
    })
}

fn both_work(host: &Host) {
    assert!(reaches(&host.first), "the first mesh does not work");
    assert!(reaches(&host.second), "the second mesh does not work");
    let capture = Capture::start(&host.network.router, known(&host.network)).unwrap();

    let lost = std::thread::scope(|scope| {
        let meshes = [&host.first, &host.second].map(|mesh| {
            let (from, to) = (mesh.a.namespace.clone(), mesh_address(&mesh.b));
            scope.spawn(move || lost(&from, to, UNDER_TRAFFIC))
        });
        meshes.map(|thread| thread.join().unwrap())
    });

    let seen = capture.seen();
    let leaks: Vec<String> = seen.leaks.iter().map(|(_, bytes)| hex_dump(bytes)).collect();
    assert!(lost.iter().all(|&(sent, lost)| sent > 1000 && lost == 0), "sent and lost of each mesh: {lost:?}");
    assert!(leaks.is_empty(), "in clear: {}", leaks.join("\n"));
    assert!(seen.lost == 0 && seen.total() > 4000, "{seen:?}");
    for node in [&host.first.a, &host.first.b, &host.second.a, &host.second.b] {
        let log = std::fs::read_to_string(node.log()).unwrap();
        assert!(!log.contains("put back what something else"), "{}: {log}", node.name);
    }
}

fn an_overlapping_one_is_refused(host: &Host) {
    let token = token(&host.third.coordinator, "dc", "a").unwrap();

    let refused = host.third.a.config_verb(&["join", &token]).unwrap();

    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    let process = format!("process {}", host.first.a.id().unwrap());
    let state = host.first.a.folder.join("state").display().to_string();
    for words in ["241.64.0.0/10", "overlaps 241.0.0.0/8", "interface `mesh0`", &state, &process] {
        assert!(text.contains(words), "`{words}` is missing: {text}");
    }
    let check = said(&host.third.a.config_verb(&["check"]).unwrap());
    assert!(check.contains(&state), "{check}");
    assert!(reaches(&host.first) && reaches(&host.second));
}

fn another_of_the_same_range_is_refused(host: &Host) {
    let files = host.folder.path().join("copy");
    let copy = node(THIRD, "a", &host.first.a.namespace, files, &host.binaries).unwrap();
    copy_folder(&host.first.a.folder.join("state"), &copy.folder.join("state"));

    copy.start().unwrap();

    assert!(wait_until(STARTING, || !copy.running()), "it runs beside the first");
    assert_eq!(copy.exit_code(), Some(1));
    let log = std::fs::read_to_string(copy.log()).unwrap();
    let process = format!("process {}", host.first.a.id().unwrap());
    let state = host.first.a.folder.join("state").display().to_string();
    for words in ["the mesh range 241.0.0.0/8", "interface `mesh0`", &state, &process] {
        assert!(log.contains(words), "`{words}` is missing: {log}");
    }
    for verb in ["guard", "cleanup", "leave"] {
        let _ = copy.config_verb(&[verb]).unwrap();
        assert!(reaches(&host.first), "after `{verb}` of another");
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn the_same_state_directory_waits(host: &Host) {
    let first = &host.first.a;
    let before = first.id().unwrap();
    let next = Daemon::meshd("a", &first.namespace, &first.folder, &host.binaries);
    next.start().unwrap();
    let waits = || {
        let log = std::fs::read_to_string(first.log()).unwrap_or_default();
        log.contains("waiting for what the meshd before") && log.contains(&format!("(process {before})"))
    };
    assert!(wait_until(STARTING, waits));
    // Longer than what a killed one leaves is waited for.
    let (sent, lost) = lost(&first.namespace, mesh_address(&host.first.b), Duration::from_secs(4));
    assert!(sent > 400 && lost == 0, "{lost} of {sent} lost while a second one waited");
    assert!(next.running());

    assert!(first.terminate());

    assert!(wait_until(STARTING, || next.status().is_ok_and(|s| s.node.is_some())));
    assert!(reaches(&host.first));
    assert!(next.terminate());
    first.start().unwrap();
    assert!(wait_until(STARTING, || first.status().is_ok_and(|s| s.node.is_some())));
    assert!(reaches(&host.first) && reaches(&host.second));
}

fn a_stranger_makes_no_claim(host: &Host) {
    use std::os::unix::process::CommandExt as _;
    let make = |user: Option<u32>, table: &str| {
        let mut command = Command::new("nft");
        command.arg(format!("add table ip meshd-claim-{table} {{ flags owner; }}"));
        if let Some(user) = user {
            command.uid(user);
        }
        run(&host.first.a.namespace, command)
    };
    // Without the program there is nobody to try it.
    let Ok(free) = make(None, "10.200.0.0-16") else { return };
    assert!(free.status.success(), "root may: {}", said(&free));
    let taken = make(None, "241.0.0.0-8").unwrap();
    assert!(said(&taken).contains("not permitted"), "root took a claim: {}", said(&taken));
    let stranger = make(Some(65_534), "10.201.0.0-16").unwrap();
    assert!(!stranger.status.success(), "nobody made a claim");
}

/// Says which lines of a kernel tell of a mesh.
fn of(plan: Plan, kernel: &str) -> Vec<String> {
    let net = plan.range.split('/').next().unwrap();
    let table = if plan.range == FIRST.range { "Table(24105)" } else { "Table(2410009612)" };
    let octets = net.parse::<Ipv4Addr>().unwrap().octets();
    let words = [net.to_owned(), table.to_owned(), plan.interface.to_owned(), format!("{octets:?}")];
    kernel.lines().filter(|line| words.iter().any(|word| line.contains(word))).map(str::to_owned).collect()
}

fn leave_of_one(host: &Host) {
    let before = snapshot::take(&host.first.a.namespace).unwrap();
    assert!(!of(SECOND, &before).is_empty());

    host.second.a.expect_config(&["leave"]).unwrap();

    let after = snapshot::take(&host.first.a.namespace).unwrap();
    assert_eq!(of(SECOND, &after), [""; 0]);
    assert_eq!(of(FIRST, &after), of(FIRST, &before));
    let (sent, lost) = lost(&host.first.a.namespace, mesh_address(&host.first.b), Duration::from_secs(1));
    assert!(sent > 100 && lost == 0, "{lost} of {sent} lost");
    // The mesh of a stopped daemon is left as well as that of a running one.
    assert!(host.second.a.terminate());
    assert!(host.first.a.terminate());
    host.first.a.expect_config(&["leave"]).unwrap();
    let after = snapshot::take(&host.first.a.namespace).unwrap();
    assert_eq!(snapshot::difference(&host.before[0], &after), [""; 0]);
}

fn cleanup_of_all(host: &Host) {
    let [first, second] = [&host.first.b, &host.second.b];
    assert!(first.status().is_ok() && second.status().is_ok());
    let all = snapshot::take(&first.namespace).unwrap();
    assert!(!of(FIRST, &all).is_empty() && !of(SECOND, &all).is_empty());

    let done = first.expect_config(&["cleanup", "--all", "--files"]).unwrap();

    assert!(done.contains("stopped the running meshd"), "{done}");
    let after = snapshot::take(&first.namespace).unwrap();
    assert_eq!(snapshot::difference(&host.before[1], &after), [""; 0], "{done}");
    for node in [first, second] {
        for path in [node.folder.join("state"), node.folder.join("data"), node.socket().to_owned()] {
            assert!(!path.exists(), "{} is left: {done}", path.display());
        }
        assert!(wait_until(STARTING, || !node.running()), "{} runs", node.name);
        assert_eq!(node.exit_code(), Some(0), "{}", node.name);
    }
}

/// One node that an older version set up.
struct Upgrade {
    old: Binaries,
    new: Binaries,
    network: Network,
    folder: TempDir,
}

impl Upgrade {
    fn set_up(old: Binaries, new: Binaries) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-upgrade-").tempdir()?;
        let network = Network::new(&format!("su{}", std::process::id()), folder.path(), 3, Underlay::V4);
        Ok(Self { old, new, network: network.map_err(io::Error::other)?, folder })
    }
}

fn taken_over(world: &Upgrade, plan: Plan) {
    let home = world.network.host(&format!("n{}", plan.name), 1, plan.coordinator).unwrap();
    let coordinator = coordinator(plan, &world.network, &world.old).unwrap();
    let files = world.folder.path().join(format!("{}-n", plan.name));
    let old = node(plan, "a", &home, files.clone(), &world.old).unwrap();
    old.expect_config(&["join", &token(&coordinator, "dc", "a").unwrap()]).unwrap();
    let joined = |node: &Daemon| wait_until(STARTING, || node.status().is_ok_and(|s| s.node.is_some()));
    old.start().unwrap();
    assert!(joined(&old));
    old.kill();
    assert!(nft::listing(&home).unwrap().contains("table ip meshd\n"));

    let capture = Capture::start(&world.network.router, known(&world.network)).unwrap();
    let base = plan.range.split('/').next().unwrap().parse::<Ipv4Addr>().unwrap();
    let [first, second, _, _] = base.octets();
    let targets = [Ipv4Addr::new(first, second, 0, 99), Ipv4Addr::new(first, second | 2, 0, 1)];
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let new = std::thread::scope(|scope| {
        let (sender, stop, sent) = (home.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap(), &stop, &sent);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for to in targets {
                    // Refused by the route, or by the guard; or dropped by the tunnel.
                    let _ = sender.send_to(b"in clear", (to, 9));
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let new = node(plan, "a", &home, files, &world.new).unwrap();
        // At boot the guard comes first.
        new.expect_config(&["guard"]).unwrap();
        new.start().unwrap();
        let started = joined(&new);
        std::thread::sleep(Duration::from_secs(1));
        let stopped = new.terminate();
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        assert!(started && stopped, "{}", mesh_tests::daemon::tail(&new.log(), 20));
        new
    });
    // What is not for the mesh tells that the capture would have seen it.
    home.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"not for the mesh", "198.51.100.1:9")).unwrap();
    assert!(wait_until(STARTING, || !capture.seen().leaks.is_empty()), "the capture sees nothing");
    let seen = capture.seen();
    // It, and what the router says of it.
    let elsewhere = |bytes: &[u8]| bytes.windows(4).any(|part| part == [198, 51, 100, 1]);
    let clear = seen.leaks.iter().filter(|(_, bytes)| !elsewhere(bytes));
    let clear: Vec<String> = clear.map(|(_, bytes)| hex_dump(bytes)).collect();
    assert!(clear.is_empty(), "in clear: {}", clear.join("\n"));
    assert!(sent.load(Ordering::Relaxed) > 500, "{}", sent.load(Ordering::Relaxed));

    let kernel = snapshot::take(&home).unwrap();
    if plan.range == FIRST.range {
        assert!(kernel.contains("table ip meshd\n") && kernel.contains("Table(24105)"), "{kernel}");
    } else {
        assert!(!kernel.contains("table ip meshd\n") && !kernel.contains("24105"), "{kernel}");
        assert!(kernel.contains("table ip meshd-100.96.0.0-12\n") && kernel.contains("Table(2410009612)"), "{kernel}");
    }
    new.expect_config(&["leave"]).unwrap();
    assert_eq!(of(plan, &snapshot::take(&home).unwrap()), [""; 0]);
}
