//! The program itself: what the verbs print, and what they exit with.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mesh_proto::trust::join_token::JoinToken;
use serde_json::Value;

use crate::common::{DEADLINE, SERVICES};

/// The program, running on files of its own.
pub(crate) struct CoordinatorProgram {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) daemon: Child,
}

impl CoordinatorProgram {
    pub(crate) fn start() -> Self {
        Self::start_as("127.0.0.1:0", |_| {})
    }

    /// Starts it with metrics at an address, and something special about the process.
    pub(crate) fn start_as(metrics: &str, special: impl FnOnce(&mut Command)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("coordinator.toml");
        let config = config.to_str().unwrap();
        let line = ["init", "--name", "boutique", "--public", "127.0.0.1:7700", "--listen", "127.0.0.1:0"];
        let init = run(dir.path(), &[&line[..], &["--metrics", metrics, "--config", config]].concat());
        assert!(init.status.success(), "{init:?}");
        fs::write(dir.path().join("services.toml"), SERVICES).unwrap();
        let mut daemon = command(dir.path());
        daemon.args(["run", "--config", config]);
        special(&mut daemon);
        let daemon = daemon.spawn().unwrap();
        let program = Self { dir, daemon };
        program.await_status();
        program
    }

    fn await_status(&self) {
        let began = Instant::now();
        while !self.run(&["status"]).status.success() {
            assert!(began.elapsed() < DEADLINE, "{:?}", self.run(&["status"]));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        let socket = self.dir.path().join("state/admin.sock");
        run(self.dir.path(), &[&["--socket", socket.to_str().unwrap()], words].concat())
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let output = self.run(&[words, &["-o", "json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn terminate(&mut self) -> Duration {
        let began = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.daemon.wait().unwrap();
        assert!(status.success(), "{status:?}");
        began.elapsed()
    }
}

impl Drop for CoordinatorProgram {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

pub(crate) fn command(dir: &Path) -> Command {
    command_of(env!("CARGO_BIN_EXE_mesh-coordinator"), dir)
}

pub(crate) fn command_of(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub(crate) fn run(dir: &Path, words: &[&str]) -> Output {
    let mut command = command(dir);
    command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_verbs_speak_to_the_daemon_and_it_stops_when_told() {
    let mut program = CoordinatorProgram::start();

    let created = program.run(&["token", "create", "--site", "dc", "--name", "n1", "--serve", "cart"]);
    let line = text(&created.stdout);
    assert_eq!(line.lines().count(), 1, "{created:?}");
    let token: JoinToken = line.parse().unwrap();
    assert_eq!(token.coordinators, ["127.0.0.1:7700"]);

    let list = program.json(&["token", "list"]);
    assert_eq!(list["schema"], "coordinator.tokens/1");
    assert_eq!(list["tokens"][0]["id"], token.id_text());
    assert_eq!(list["tokens"][0]["name"], "n1");
    assert_eq!(list["tokens"][0]["uses_left"], 1);
    assert!(!list.to_string().contains("secret"));

    let status = program.json(&["status"]);
    assert_eq!(status["mesh"], "boutique");
    assert_eq!(status["services"]["state"], "accepted");
    assert!(text(&program.run(&["status"]).stdout).contains("live on 0/0 nodes"));
    let services = program.json(&["services"]);
    assert_eq!(services["services"][0]["name"], "cart");
    assert_eq!(services["services"][0]["backends"][0]["live"], false);
    assert_eq!(program.json(&["nodes"])["nodes"].as_array().map(Vec::len), Some(0));

    let revoked = program.run(&["token", "revoke", &token.id_text()]);
    assert!(revoked.status.success(), "{revoked:?}");
    let again = program.run(&["token", "revoke", &token.id_text()]);
    assert_eq!(again.status.code(), Some(1));
    let nobody = program.run(&["revoke", "nobody"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("mesh-coordinator nodes"), "{nobody:?}");
    let wrong_site = program.run(&["token", "create", "--site", "mars"]);
    assert_eq!((wrong_site.status.code(), wrong_site.stdout.len()), (Some(1), 0));

    assert!(program.terminate() < Duration::from_secs(2));
    let gone = program.run(&["status"]);
    assert_eq!(gone.status.code(), Some(4));
    assert!(text(&gone.stderr).contains("systemctl start"), "{gone:?}");
}

#[test]
fn plan_says_what_would_change_and_changes_nothing() {
    let program = CoordinatorProgram::start();
    let before = program.json(&["status"])["revision"].clone();
    let draft = program.dir.path().join("draft.toml");
    let draft = draft.to_str().unwrap();

    fs::write(draft, SERVICES.replace("name = \"cart\"", "name = \"basket\"").replace("[\"cart\"]", "[\"basket\"]"))
        .unwrap();
    let changed = program.json(&["plan", draft]);
    assert!(changed["changes"].to_string().contains("basket"), "{changed}");
    fs::write(draft, SERVICES.replace("port", "prot")).unwrap();
    let bad = program.run(&["plan", draft]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("did you mean"), "{bad:?}");

    assert_eq!(program.json(&["status"])["revision"], before);
}

#[test]
fn a_backup_can_take_the_place_of_the_store() {
    let mut program = CoordinatorProgram::start();
    let created = program.run(&["token", "create", "--site", "dc"]);
    assert!(created.status.success());
    let before = program.json(&["token", "list"]);
    let copy = program.dir.path().join("copy.redb");
    let backup = program.run(&["backup", copy.to_str().unwrap()]);
    assert!(backup.status.success(), "{backup:?}");
    assert_eq!(program.run(&["backup", copy.to_str().unwrap()]).status.code(), Some(1), "never overwritten");

    program.terminate();
    fs::rename(&copy, program.dir.path().join("state/store.redb")).unwrap();
    let config = program.dir.path().join("coordinator.toml");
    program.daemon = command(program.dir.path()).arg("run").arg("--config").arg(config).spawn().unwrap();
    program.await_status();

    let after = program.json(&["token", "list"]);
    assert_eq!(after["tokens"][0]["id"], before["tokens"][0]["id"]);
}

#[test]
fn check_works_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("good.toml"), SERVICES).unwrap();
    fs::write(dir.path().join("bad.toml"), SERVICES.replace("port", "prot").replace("pods", "pod")).unwrap();

    let good = run(dir.path(), &["check", "good.toml"]);
    assert!(good.status.success(), "{good:?}");
    assert_eq!(text(&good.stdout).lines().count(), 1, "{good:?}");
    let bad = run(dir.path(), &["check", "bad.toml"]);
    assert_eq!((bad.status.code(), bad.stdout.len()), (Some(1), 0));
    let errors = text(&bad.stderr);
    assert!(errors.contains("`prot`") && errors.contains("`pod`"), "{errors}");
    assert_eq!(run(dir.path(), &["check", "none.toml"]).status.code(), Some(1));
    assert_eq!(run(dir.path(), &["check"]).status.code(), Some(2));
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let mut program = CoordinatorProgram::start();
    let config = program.dir.path().join("coordinator.toml");
    let second = run(program.dir.path(), &["run", "--config", config.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("stop the mesh-coordinator that runs"), "{second:?}");

    program.daemon.kill().unwrap();
    program.daemon.wait().unwrap();
    assert!(program.dir.path().join("state/admin.sock").exists());
    program.daemon = command(program.dir.path()).arg("run").arg("--config").arg(&config).spawn().unwrap();
    program.await_status();
}

#[test]
fn a_run_without_a_configuration_says_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["run", "--config", "none.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("mesh-coordinator init"), "{output:?}");
}
