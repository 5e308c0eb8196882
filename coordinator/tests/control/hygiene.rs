//! What keeps a control channel on the Internet alive, and what the operator sees of it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use coordinator::cli::render;
use mesh_proto::base::id::Revision;
use mesh_proto::wire::{Report, ReportResponse, WatchEvent};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::common::{DEADLINE, SERVICES, TestCoordinator, until};
use crate::restoring::RestoredMesh;
use crate::verbs::{CoordinatorProgram, command};

/// How long a verb may take, whatever is used up.
const ANSWER: Duration = Duration::from_secs(1);

/// Says that a connection is taken and garbage on it is hung up on.
fn is_served(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let _ = stream.write_all(&[0x41; 100]);
    let ended = stream.read_to_end(&mut Vec::new());
    !ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn a_coordinator_that_runs_out_of_descriptors_serves_again_when_there_are_some() {
    let program = CoordinatorProgram::start();
    let address = program.json(&["status"])["listen"][0].as_str().unwrap().parse().unwrap();
    let id = program.daemon.id();
    let open = || fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
    let pid = Pid::from_child(&program.daemon);
    let most = open() + 4;
    let few = Rlimit { current: Some(most as u64), maximum: Some(most as u64) };
    prlimit(Some(pid), Resource::Nofile, few).unwrap();

    let held: Vec<_> = (0..16).map(|_| TcpStream::connect(address).unwrap()).collect();
    let began = Instant::now();
    // One is kept free.
    while open() < most - 1 {
        assert!(began.elapsed() < DEADLINE, "it takes connections as long as it can");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The control channel's listener fails now, again and again; the operator's has one descriptor for that.
    for _ in 0..3 {
        let asked = Instant::now();
        let status = program.run(&["status"]);
        assert!(status.status.success() && asked.elapsed() < ANSWER, "{:?}: {status:?}", asked.elapsed());
    }
    drop(held);

    assert!(is_served(address));
    let began = Instant::now();
    while !program.run(&["status"]).status.success() {
        assert!(began.elapsed() < DEADLINE, "the admin socket is served again");
    }
}

#[test]
fn with_few_descriptors_it_answers_the_operator_at_once_or_ends_with_the_cause() {
    let mesh = RestoredMesh::new();
    let mut answered = 0;
    for most in [10, 16, 24, 40, 63, 64] {
        let log = mesh.dir.path().join("log");
        let mut daemon = Command::new("sh")
            .args(["-c", "ulimit -n $0 && exec \"$@\"", &most.to_string()])
            .args([env!("CARGO_BIN_EXE_mesh-coordinator"), "run", "--config", &mesh.config])
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let began = Instant::now();
        loop {
            if let Some(ended) = daemon.try_wait().unwrap() {
                let said = fs::read_to_string(&log).unwrap();
                assert!(!ended.success() && said.contains("open files"), "{most}: {ended}: {said}");
                break;
            }
            let asked = Instant::now();
            let answer = mesh.ask(&["status"]);
            let took = asked.elapsed();
            assert!(took < ANSWER, "{most}: {took:?}: {answer:?}: {}", fs::read_to_string(&log).unwrap());
            if answer.is_ok() {
                answered += 1;
                mesh.ask(&["token", "list"]).unwrap();
                daemon.kill().unwrap();
                daemon.wait().unwrap();
                break;
            }
            assert!(began.elapsed() < DEADLINE, "{most}: neither: {answer:?}");
        }
    }
    assert_eq!(answered, 1, "64 are enough");
}

/// Gives a directory and all that is in it to a user.
fn give(dir: &Path, to: u32) {
    chown(dir, Some(to), None).unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { give(&path, to) } else { chown(path, Some(to), None).unwrap() }
    }
}

#[test]
fn other_processes_of_its_user_do_not_read_its_memory() {
    let mesh = RestoredMesh::new();
    let nobody = 65_534;
    let own = rustix::process::getuid().as_raw();
    let mut daemon = command(mesh.dir.path());
    daemon.args(["run", "--config", &mesh.config]);
    if own == 0 {
        give(mesh.dir.path(), nobody);
        daemon.uid(nobody);
    }
    let mut mesh = mesh;
    mesh.daemon = Some(daemon.spawn().unwrap());
    mesh.until("the coordinator answers", |mesh| mesh.ask(&["status"]).is_ok());

    let id = mesh.daemon.as_ref().unwrap().id();

    // The kernel takes such files away from the user whose process it is.
    assert_eq!(fs::metadata(format!("/proc/{id}/environ")).unwrap().uid(), 0);
}

#[test]
fn a_hello_without_end_is_cut_off_by_size_and_by_time() {
    let program = CoordinatorProgram::start();
    let address: SocketAddr = program.json(&["status"])["listen"][0].as_str().unwrap().parse().unwrap();
    let record = |first: bool| {
        let mut record = vec![0x16, 3, 1, 0x40, 0];
        record.extend(if first { [1, 0xff, 0xff, 0xff] } else { [0; 4] });
        record.resize(5 + 0x4000, 0);
        record
    };
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let mut sent = 0;
    while stream.write_all(&record(sent == 0)).is_ok() {
        sent += 0x4000;
        assert!(sent < 16 << 20, "a hello of {sent} bytes is read");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "by size, before the time is over");

    // One byte at a time is cut off by time.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let began = Instant::now();
    for byte in record(true).into_iter().cycle() {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "a slow hello is read");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(is_served(address));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_who_lags_behind_and_how_the_store_is() {
    let coordinator = TestCoordinator::start().await;
    coordinator.join("n2").await;
    let (node, _) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    let Some(WatchEvent::Snapshot { netmap }) = lines.next().await else { panic!("no snapshot") };
    let report = |applied: Revision| Report { facts: node.facts(), applied, warnings: Vec::new() };
    let _: ReportResponse = channel.post("/v1/report", &report(netmap.revision)).await.unwrap();
    let status = coordinator.status().await;
    let text = render::status(&status);
    assert!(text.contains("live on 1/2 nodes, 1 connected"), "{text}");
    assert!(text.contains("behind        n2 (not connected)\n"), "{text}");
    assert!(text.contains("store.redb: answers\n"), "{text}");
    assert_eq!((status.behind.len(), status.store_error, status.shared), (1, None, false));

    coordinator.save(&SERVICES.replace("weight = 80", "weight = 50"));
    let Some(WatchEvent::Delta { delta }) = lines.next().await else { panic!("no delta") };
    let text = render::status(&coordinator.status().await);
    assert!(text.contains(&format!("n1 (at {})", netmap.revision)) && text.contains("live on 0/2"), "{text}");
    let _: ReportResponse = channel.post("/v1/report", &report(delta.to)).await.unwrap();
    let text = render::status(&coordinator.status().await);
    assert!(text.contains("live on 1/2 nodes"), "{text}");
    drop((lines, channel));
    until("both are gone", async || coordinator.status().await.behind.len() == 2).await;
}
