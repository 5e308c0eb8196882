//! A log that cannot be written: the real daemons go on as if it could, count what is lost, and tell of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_tests::daemon::{Binaries, Daemon, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::netns::Namespace;
use mesh_tests::pair::{PODS, SERVICES, STARTING};
use mesh_tests::topology::{Network, Underlay, edit, start_coordinator, token, write_coordinator, write_node};
use mesh_tests::traffic;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tempfile::TempDir;

/// Where both daemons serve metrics, each in its namespace.
const METRICS: [u16; 2] = [9586, 9587];
/// What is added to services.toml.
const MORE: &str = "\n[[service]]\nname = \"more\"\nport = 82\nbackends = [{ addr = \"10.8.0.10\", node = \"a\" }]\n\n[[allow]]\nfrom = [\"host:a\"]\nto = [\"more\"]\n";

const FACTS: &[Fact<Mesh>] = &[
    ("a_full_disk_alters_nothing_else", |mesh| works(mesh, &mut || full_disk().into())),
    ("a_reader_that_ended_alters_nothing_else", |mesh| works(mesh, &mut || without_reader().into())),
    ("a_pipe_that_nobody_reads_alters_nothing_else", nobody_reads),
    ("the_journal_gets_the_priority_of_each_line_and_no_time", journal),
    ("what_cannot_be_printed_is_an_error_unless_its_reader_went_away", prints),
];

/// One node, and one that never starts.
struct Mesh {
    node: Daemon,
    spare: Daemon,
    coordinator: Daemon,
    _network: Network,
    _folder: TempDir,
}

fn main() -> ExitCode {
    in_namespaces(|run, binaries| run.scene("log", || set_up(binaries), FACTS))
}

fn set_up(binaries: &Binaries) -> io::Result<Mesh> {
    let folder = tempfile::Builder::new().prefix("mesh-log-").tempdir()?;
    let prefix = format!("lg{}", std::process::id());
    let network = Network::new(&prefix, folder.path(), 3, Underlay::V4).map_err(io::Error::other)?;
    let home = |name: &str, subnet| {
        let files = folder.path().join(name);
        std::fs::create_dir(&files)?;
        Ok::<_, io::Error>((network.host(name, subnet, 11).map_err(io::Error::other)?, files))
    };
    let ((c, c_files), (n, n_files)) = (home("coordinator", 3)?, home("a", 1)?);
    n.sysctl("net/ipv4/ip_forward", "1").map_err(io::Error::other)?;
    let (s, s_files) = home("b", 2)?;
    let coordinator = Daemon::coordinator(&c, &c_files, binaries);
    let (node, spare) = (Daemon::meshd("a", &n, &n_files, binaries), Daemon::meshd("b", &s, &s_files, binaries));
    write_coordinator(&coordinator, network.ip(3, 11), SERVICES)?;
    write_node(&node, Some(PODS), 2, "")?;
    write_node(&spare, Some(PODS), 2, "")?;
    start_coordinator(&coordinator, network.ip(3, 11))?;
    node.expect_config(&["join", &token(&coordinator, "east", "a")?])?;
    Ok(Mesh { node, spare, coordinator, _network: network, _folder: folder })
}

fn full_disk() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn without_reader() -> io::PipeWriter {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer
}

/// A pipe that takes no more.
fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'x'; 512]).is_ok() {}
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// Starts both daemons with such a standard error, and does with them what is done with any.
fn works(mesh: &Mesh, stderr: &mut dyn FnMut() -> Stdio) {
    let Mesh { node, spare, coordinator, .. } = mesh;
    edit(coordinator, SERVICES).unwrap();
    for daemon in [coordinator, node] {
        daemon.kill();
        daemon.start_telling(stderr(), &[("RUST_LOG", "debug"), ("MESHD_LOG", "debug")]).unwrap();
        assert!(wait_until(STARTING, || daemon.json(&["status"]).is_ok()), "{} does not start", daemon.name);
    }
    let connected = || node.status().is_ok_and(|s| s.coordinator.connected);
    assert!(wait_until(STARTING, connected), "no control channel");
    for (daemon, port) in [(node, METRICS[0]), (coordinator, METRICS[1])] {
        let dropped = || daemon.json(&["status"]).unwrap()["log_lines_dropped"].as_u64().unwrap();
        let grows = || {
            speak(&daemon.namespace, port);
            dropped() > 0
        };
        assert!(wait_until(2 * STARTING, grows), "{} drops nothing", daemon.name);
        let status = daemon.json(&["status"]).unwrap();
        assert!(status["warnings"].to_string().contains("of the log were lost"), "{status}");
        let word = if port == METRICS[0] { "meshd" } else { "coordinator" };
        let metrics = fetch(&daemon.namespace, port, "/metrics");
        let name = format!("{word}_log_lines_dropped_total ");
        let metric = metrics.lines().find_map(|line| line.strip_prefix(&*name)).unwrap();
        assert!(metric.trim().parse::<u64>().unwrap() > 0);
        // Nothing that is lost here makes a node less than it is.
        assert_eq!(daemon.verb(&["status"]).unwrap().status.code(), Some(0), "{status}");
    }
    for path in ["/livez", "/readyz"] {
        assert!(fetch(&node.namespace, METRICS[0], path).starts_with("HTTP/1.1 200"), "{path}");
    }
    let dns = Ipv4Addr::new(241, 0, 0, 53);
    traffic::resolve(&node.namespace, dns, "a.mesh.internal", false).unwrap();

    spare.expect_config(&["join", &token(coordinator, "west", "b").unwrap()]).unwrap();
    let peers = || node.status().map(|s| s.peers.len()).unwrap();
    assert!(wait_until(STARTING, || peers() == 1), "a joins, and the node is not told");
    coordinator.expect(&["revoke", "b"]).unwrap();
    assert!(wait_until(STARTING, || peers() == 0), "the node keeps the revoked one");
    let _ = spare.config_verb(&["leave"]).unwrap();
    edit(coordinator, &format!("{SERVICES}{MORE}")).unwrap();
    let knows = || node.status().is_ok_and(|s| s.services.iter().any(|s| s.name.as_str() == "more"));
    assert!(wait_until(STARTING, knows), "an edit does not arrive");
    assert!(node.running() && coordinator.running());
}

fn nobody_reads(mesh: &Mesh) {
    let mut readers = Vec::new();
    works(mesh, &mut || {
        let (reader, writer) = full_pipe();
        readers.push(reader);
        writer.into()
    });
    let logs: Vec<_> = readers.into_iter().map(read_on).collect();
    let told = |log: &Mutex<String>| log.lock().unwrap().contains(" WARN lines of the log were lost here");
    assert!(wait_until(STARTING, || logs.iter().all(|log| told(log))), "nobody says where lines were lost");
    assert!(mesh.node.terminate() && mesh.coordinator.terminate());
    mesh.coordinator.start().unwrap();
    assert!(wait_until(STARTING, || mesh.coordinator.json(&["status"]).is_ok()));
}

/// Reads a log from now on, until its writer ends.
fn read_on(reader: io::PipeReader) -> Arc<Mutex<String>> {
    let log = Arc::new(Mutex::new(String::new()));
    let read = Arc::clone(&log);
    std::thread::spawn(move || {
        let lines = io::BufReader::new(reader).lines().map_while(Result::ok);
        lines.for_each(|line| read.lock().unwrap().push_str(&(line + "\n")));
    });
    log
}

/// Has the daemon log some hundred lines.
fn speak(from: &Namespace, port: u16) {
    from.run(move || {
        for _ in 0..300 {
            let Ok(mut stream) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))) else { return };
            let _ = stream.write_all(b"no request\r\n\r\n").and_then(|()| stream.read_to_end(&mut Vec::new()));
        }
    });
}

fn fetch(from: &Namespace, port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let exchange = move || -> io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        io::read_to_string(stream)
    };
    from.run(exchange).unwrap()
}

fn journal(mesh: &Mesh) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let metadata = file.as_file().metadata().unwrap();
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    let logged = || std::fs::read_to_string(file.path()).unwrap();
    mesh.node.kill();
    mesh.node.start_telling(file.reopen().unwrap(), &[("JOURNAL_STREAM", &stream), ("MESHD_LOG", "debug")]).unwrap();
    let told = |begin: &str| logged().lines().any(|line| line.starts_with(begin));
    assert!(wait_until(STARTING, || told("<6> INFO forwarding node=a")), "{}", logged());
    speak(&mesh.node.namespace, METRICS[0]);
    std::fs::write(mesh.node.folder.join("services.toml"), "[[serve]\n").unwrap();
    assert!(wait_until(STARTING, || told("<7>DEBUG ") && told("<4> WARN ")), "{}", logged());
    let _ = std::fs::remove_file(mesh.node.folder.join("services.toml"));
    for line in logged().lines() {
        assert!(["<3>", "<4>", "<6>", "<7>"].iter().any(|priority| line.starts_with(priority)), "{line}");
        assert!(!line.get(3..).unwrap().trim_start().starts_with("20"), "{line}");
    }
    mesh.node.kill();
    mesh.node.start_telling(file.reopen().unwrap(), &[("JOURNAL_STREAM", "8:1")]).unwrap();
    let timed = || logged().lines().any(|line| line.starts_with("20") && line.contains(" INFO forwarding"));
    assert!(wait_until(STARTING, timed), "{}", logged());
}

fn prints(mesh: &Mesh) {
    let node = &mesh.node;
    node.start().unwrap();
    assert!(wait_until(STARTING, || node.status().is_ok_and(|s| s.coordinator.connected)));
    for words in [
        &["status"][..],
        &["status", "-o", "json"],
        &["peers"],
        &["services"],
        &["resolve", "a"],
        &["why", "host:a", "closed:81"],
        &["flows"],
        &["metrics"],
        &["reload"],
        &["completion", "bash"],
        &["status", "--help"],
    ] {
        let code = node.verb(words).unwrap().status.code();
        let (refused, said) = node.prints_to(words, full_disk()).unwrap();
        assert_eq!(refused, Some(1), "{words:?} {said}");
        assert!(said.contains("cannot write to standard output: No space left on device"), "{words:?} {said}");
        assert_eq!(node.prints_to(words, without_reader()).unwrap(), (code, String::new()), "{words:?}");
    }
}
