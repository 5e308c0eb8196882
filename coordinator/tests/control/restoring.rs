//! A damaged store is restored from the newest backup and the journal, an older one on demand; both in a new epoch.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{DEADLINE, SERVICES};
use crate::verbs::{command, run};

/// A coordinator as a process of its own, which is killed and restored.
pub(crate) struct RestoredMesh {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: String,
    pub(crate) daemon: Option<Child>,
}

impl RestoredMesh {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("coordinator.toml").to_str().unwrap().to_owned();
        let line = ["init", "--name", "boutique", "--public", "127.0.0.1:7700", "--listen", "127.0.0.1:0"];
        let init = run(dir.path(), &[&line[..], &["--metrics", "127.0.0.1:0", "--config", &config]].concat());
        assert!(init.status.success(), "{init:?}");
        fs::write(dir.path().join("services.toml"), SERVICES).unwrap();
        Self { dir, config, daemon: None }
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("state").join(name)
    }

    pub(crate) fn start(&mut self) {
        self.daemon = Some(command(self.dir.path()).args(["run", "--config", &self.config]).spawn().unwrap());
        self.until("the coordinator answers", |mesh| mesh.ask(&["status"]).is_ok());
    }

    /// Waits until something is so.
    pub(crate) fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !so(self) {
            assert!(began.elapsed() < DEADLINE, "not in time: {what}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the first backup.
    pub(crate) fn until_backed_up(&self) {
        self.until("the first backup is made", |mesh| {
            fs::read_dir(mesh.state("backups")).is_ok_and(|dir| {
                dir.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "redb"))
            })
        });
    }

    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn ask(&self, words: &[&str]) -> Result<String, String> {
        let socket = self.state("admin.sock");
        let output = run(self.dir.path(), &[&["--socket", socket.to_str().unwrap()], words].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ask(&[words, &["-o", "json"]].concat()).unwrap()).unwrap()
    }

    pub(crate) fn token(&self, name: &str) {
        self.ask(&["token", "create", "--site", "dc", "--name", name]).unwrap();
    }

    pub(crate) fn tokens(&self) -> Vec<String> {
        let list = self.json(&["token", "list"]);
        let mut names: Vec<_> =
            list["tokens"].as_array().unwrap().iter().map(|token| token["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    pub(crate) fn restore(&self, file: Option<&Path>) -> Result<String, String> {
        let mut words = vec!["restore", "--config", &self.config];
        words.extend(file.map(|file| file.to_str().unwrap()));
        self.ask(&words)
    }
}

impl Drop for RestoredMesh {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[test]
fn a_damaged_store_is_rebuilt_to_the_last_acknowledged_change() {
    let mut mesh = RestoredMesh::new();
    mesh.start();
    mesh.until_backed_up();
    let names = ["a", "b", "c", "d"];
    names.iter().for_each(|name| mesh.token(name));
    let export = mesh.json(&["export"]);
    assert_eq!((&export["schema"], &export["epoch"]), (&"coordinator.export/1".into(), &1.into()));
    let tokens = export["tables"]["tokens"].as_object().unwrap();
    assert!(tokens.len() == 4 && tokens.values().all(|token| token["digest"] == "[redacted]"), "{tokens:?}");

    let running = mesh.restore(None).unwrap_err();
    assert!(running.contains("stop it first"), "{running}");
    mesh.kill();
    let file = fs::OpenOptions::new().write(true).open(mesh.state("store.redb")).unwrap();
    let length = file.metadata().unwrap().len();
    file.write_all_at(&[0xa5; 200], 0).unwrap();
    (1..length / 4096).for_each(|page| file.write_all_at(&[0x5a; 64], page * 4096).unwrap());
    let refused = run(mesh.dir.path(), &["run", "--config", &mesh.config]);
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("is damaged") && refused.contains("mesh-coordinator restore"), "{refused}");

    let said = mesh.restore(None).unwrap();
    assert!(said.contains("commits of the journal") && said.contains("epoch 2"), "{said}");
    assert!(mesh.state("store.redb.before-epoch-2").exists());
    mesh.start();
    assert_eq!(mesh.tokens(), names);
    assert_eq!(mesh.json(&["export"])["epoch"], 2);
    let log = mesh.json(&["log"]);
    let kinds: Vec<_> =
        log["entries"].as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    let (first, rest) = kinds.split_at(2);
    assert_eq!(first, ["services", "coordinator"]);
    assert_eq!(rest, ["token_create", "token_create", "token_create", "token_create", "restore"]);
    mesh.token("e");
    assert_eq!(mesh.tokens().len(), 5);
}

#[test]
fn an_older_backup_takes_the_place_of_the_store_in_a_new_epoch_each_time() {
    let mut mesh = RestoredMesh::new();
    mesh.start();
    mesh.token("a");
    let backup = mesh.dir.path().join("backup.redb");
    mesh.token("revoked");
    let list = mesh.json(&["token", "list"]);
    mesh.ask(&["backup", backup.to_str().unwrap()]).unwrap();
    let revoked = list["tokens"].as_array().unwrap().iter().find(|token| token["name"] == "revoked").unwrap();
    mesh.ask(&["token", "revoke", revoked["id"].as_str().unwrap()]).unwrap();
    mesh.token("b");
    mesh.kill();
    for epoch in [2, 3] {
        let said = mesh.restore(Some(&backup)).unwrap();
        assert!(said.contains(&format!("epoch {epoch}")) && said.contains("revoked or used since stays so"), "{said}");
        mesh.start();
        assert_eq!(mesh.tokens(), ["a"]);
        assert_eq!(mesh.json(&["export"])["epoch"], epoch);
        mesh.token("c");
        mesh.kill();
    }
    let error = mesh.restore(Some(Path::new("/nowhere/backup.redb"))).unwrap_err();
    assert!(error.contains("/nowhere/backup.redb"), "{error}");
    let text = fs::read_to_string(mesh.dir.path().join("services.toml")).unwrap();
    fs::write(&backup, text).unwrap();
    let error = mesh.restore(Some(&backup)).unwrap_err();
    assert!(error.contains("is damaged"), "{error}");
    mesh.start();
    assert_eq!(mesh.tokens(), ["a", "c"], "a restore that failed leaves the store alone");
    mesh.kill();

    // Where nothing tells of the time since, it is said so.
    fs::copy(mesh.state("store.redb"), &backup).unwrap();
    for lost in ["store.redb", "journal", "backups"] {
        fs::rename(mesh.state(lost), mesh.dir.path().join(lost)).unwrap();
    }
    let said = mesh.restore(Some(&backup)).unwrap();
    assert!(said.contains("nothing here tells what was revoked after 20") && said.contains("epoch 4"), "{said}");
}
