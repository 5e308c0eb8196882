//! The program itself: what a reload that returned says holds, and messages that name the cause.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(20);
const GOOD: &str = "version = 1\n[[serve]]\nservice = \"cart\"\nport = 7070\n";

fn meshd(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshd"));
    command.current_dir(dir).args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(dir: &Path, words: &[&str]) -> Output {
    meshd(dir, words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory with a configuration whose socket is at `socket`.
fn folder(socket: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    let config = format!(
        "name = \"n1\"\nstate_dir = \"{here}/state\"\nruntime_dir = \"{here}/run\"\nsocket = \"{here}/{socket}\"\n\
         services = \"{here}/services.toml\"\nmetrics = \"127.0.0.1:0\"\n"
    );
    fs::write(dir.path().join("meshd.toml"), config).unwrap();
    dir
}

/// A daemon that has not joined, which ends with the test.
struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path) -> Self {
        let daemon = Self(meshd(dir, &["run", "--config", "meshd.toml"]).stderr(Stdio::null()).spawn().unwrap());
        let began = Instant::now();
        while run(dir, &["--socket", "m.sock", "status"]).status.code() == Some(4) {
            assert!(began.elapsed() < DEADLINE, "no daemon answers");
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reload_returns_when_the_file_is_in_force_and_fails_with_what_is_wrong() {
    let dir = folder("m.sock");
    let dir = dir.path();
    let daemon = Daemon::start(dir);
    let reload = || run(dir, &["--socket", "m.sock", "reload"]);

    fs::write(dir.join("services.toml"), GOOD).unwrap();
    let good = reload();
    assert!(good.status.success(), "{good:?}");
    let said = text(&good.stdout);
    assert!(
        said.starts_with("services.toml is in force, with 1 [[serve]]\nwarning: no coordinator is reached"),
        "{said}"
    );

    let bad = format!("{}[[serve]]\nservice = \"web\"\nport = 0\n", GOOD.replace("port", "prot"));
    fs::write(dir.join("services.toml"), bad).unwrap();
    let bad = reload();
    let said = text(&bad.stderr);
    assert_eq!((bad.status.code(), bad.stdout.len()), (Some(1), 0), "{said}");
    assert!(said.contains("the one before stays in force"), "{said}");
    assert!(
        said.contains("services.toml:4:1: error[MESH0104]") && said.contains("services.toml:7:8: error["),
        "{said}"
    );

    fs::write(dir.join("services.toml"), GOOD).unwrap();
    assert!(reload().status.success());
    drop(daemon);
    assert_eq!(reload().status.code(), Some(4));
}

#[test]
fn a_start_that_nothing_holds_up_but_a_wrong_path_does_not_speak_of_a_meshd_before() {
    let dir = folder("occupied");
    fs::write(dir.path().join("occupied"), "").unwrap();
    let failed = run(dir.path(), &["run", "--config", "meshd.toml"]);
    let said = text(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("is not a socket"), "{said}");
    assert!(!said.contains("the meshd before"), "{said}");
}

#[test]
fn a_token_file_that_holds_no_token_is_told_by_its_cause() {
    let dir = folder("m.sock");
    let dir = dir.path();
    let join = |file: &str, bytes: &[u8]| {
        fs::write(dir.join(file), bytes).unwrap();
        text(&run(dir, &["join", "--config", "meshd.toml", "--token-file", file]).stderr)
    };
    let empty = join("empty", b"");
    assert!(empty.contains("empty is empty, and no token"), "{empty}");
    let binary = join("binary", b"mesh1_\n a\xff");
    assert!(binary.contains("binary:2:3: this is not UTF-8"), "{binary}");
    let marked = join("marked", b"\xef\xbb\xbfmesh1_x");
    assert!(marked.contains("the join token is damaged"), "the mark is no part of it: {marked}");
    fs::create_dir(dir.join("folder")).unwrap();
    let folder = run(dir, &["join", "--config", "meshd.toml", "--token-file", "folder"]);
    assert_eq!(folder.status.code(), Some(1));
    assert!(text(&folder.stderr).contains("it is a directory; name the file"), "{folder:?}");
}
