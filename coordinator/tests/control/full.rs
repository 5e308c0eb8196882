//! A full disk: changes are refused with a reason, revocations still happen, and room ends it. A disk that loses
//! what it was given: the coordinator ends.

#[path = "../../../tests/harness/skip.rs"]
mod skip;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{DEADLINE, SERVICES};
use crate::verbs::{command_of, run};
use skip::skip;

/// A coordinator whose state lies on a small file system of its own.
struct Small {
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Small {
    /// Starts it in a mount namespace, which goes with it; none without the right to make one.
    fn start(megabytes: u32) -> Option<Self> {
        if !may_mount() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        fs::write(dir.path().join("services.toml"), SERVICES).unwrap();
        let program = env!("CARGO_BIN_EXE_mesh-coordinator");
        let script = format!(
            "mount -t tmpfs -o mode=700,size={megabytes}m none state && \
             {program} init --name boutique --public 127.0.0.1:7700 --listen 127.0.0.1:0 --metrics 127.0.0.1:0 \
             --config coordinator.toml --admin-socket admin.sock && exec {program} run --config coordinator.toml"
        );
        let mut command = command_of("unshare", dir.path());
        let daemon = command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let small = Self { daemon: daemon.stderr(Stdio::null()).spawn().unwrap(), dir };
        small.until("the coordinator answers", |small| small.ask(&["status"]).is_ok());
        Some(small)
    }

    fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !so(self) {
            assert!(began.elapsed() < DEADLINE, "not in time: {what}");
            sleep(Duration::from_millis(50));
        }
    }

    fn ask(&self, words: &[&str]) -> Result<String, String> {
        let socket = self.dir.path().join("admin.sock");
        let output = run(self.dir.path(), &[&["--socket", socket.to_str().unwrap()], words].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn tokens(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.ask(&["token", "list", "-o", "json"]).unwrap()).unwrap();
        list["tokens"].as_array().unwrap().iter().map(|token| token["id"].as_str().unwrap().to_owned()).collect()
    }

    /// A path on the small file system, as it looks from here.
    fn inside(&self, name: &str) -> std::path::PathBuf {
        let root = format!("/proc/{}/root", self.daemon.id());
        let state = self.dir.path().join("state").join(name);
        Path::new(&root).join(state.strip_prefix("/").unwrap())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        skip("a full disk, a disk that fails", "run the tests as root");
    }
    may
}

#[test]
fn a_full_disk_refuses_all_but_revocations_until_there_is_room() {
    let Some(small) = Small::start(64) else { return };
    let create = || small.ask(&["token", "create", "--site", "dc"]);
    create().unwrap();
    let fill = small.inside("fill");
    let mut file = File::create(&fill).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    drop(file);

    // What fits into space that the store has already is still taken.
    let mut made = 1;
    let refused = loop {
        match create() {
            Ok(_) => made += 1,
            Err(refused) => break refused,
        }
        assert!(made < 100, "the disk is full, and nothing is refused");
    };
    assert!(refused.contains("only revocations are stored until there is room"), "{refused}");
    let tokens = small.tokens();
    assert_eq!(tokens.len(), made, "what was refused did not happen, what was acknowledged did");
    let status = small.ask(&["status"]).unwrap();
    assert!(status.contains("only revocations"), "{status}");
    for id in &tokens {
        small.ask(&["token", "revoke", id]).unwrap();
    }
    assert_eq!(small.tokens().len(), 0);

    fs::remove_file(&fill).unwrap();
    small.until("there is room again", |small| small.ask(&["token", "create", "--site", "dc"]).is_ok());
    assert!(!small.ask(&["status"]).unwrap().contains("only revocations"));
}

/// Starts a coordinator whose disk is an image on a file system that can be filled: writes to it fail then.
fn start_on_image() -> Option<Small> {
    if !may_mount() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    ["state", "under"].iter().for_each(|name| fs::create_dir(dir.path().join(name)).unwrap());
    fs::write(dir.path().join("services.toml"), SERVICES).unwrap();
    let program = env!("CARGO_BIN_EXE_mesh-coordinator");
    let script = format!(
        "mount -t tmpfs -o size=24m none under && truncate -s 96m under/image && mkfs.ext4 -q under/image && \
         mount -o loop under/image state && rmdir state/lost+found && chmod 700 state && \
         {program} init --name boutique --public 127.0.0.1:7700 --listen 127.0.0.1:0 --metrics 127.0.0.1:0 \
         --config coordinator.toml --admin-socket admin.sock >&2 && sync && \
         exec {program} run --config coordinator.toml"
    );
    let mut command = command_of("unshare", dir.path());
    let daemon = command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let mut small = Small { daemon: daemon.stderr(Stdio::piped()).spawn().unwrap(), dir };
    let began = Instant::now();
    while small.ask(&["status"]).is_err() {
        if let Some(status) = small.daemon.try_wait().unwrap() {
            skip("a disk that fails", &format!("install e2fsprogs, and allow loop devices ({status})"));
            return None;
        }
        assert!(began.elapsed() < DEADLINE, "the coordinator does not answer");
        sleep(Duration::from_millis(50));
    }
    Some(small)
}

#[test]
fn a_disk_that_cannot_sync_ends_the_coordinator_without_an_acknowledgement() {
    let Some(mut small) = start_on_image() else { return };
    small.ask(&["token", "create", "--site", "dc"]).unwrap();
    let root = format!("/proc/{}/root", small.daemon.id());
    let under = small.dir.path().join("under/fill");
    let mut file = File::create(Path::new(&root).join(under.strip_prefix("/").unwrap())).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    drop(file);

    let mut refused = None;
    for _ in 0..200 {
        match small.ask(&["token", "create", "--site", "dc"]) {
            Ok(_) => {}
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert!(refused.is_some(), "the disk is gone, and everything is acknowledged");
    let began = Instant::now();
    let status = loop {
        if let Some(status) = small.daemon.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "the coordinator goes on with a disk that lost something");
        sleep(Duration::from_millis(20));
    };
    let mut said = String::new();
    std::io::Read::read_to_string(&mut small.daemon.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("error: cannot") && said.contains("check the disk's space, health"), "{said}");
}
