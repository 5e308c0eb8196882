//! A store that is missing, empty or older than its journal is not a new mesh: `run` refuses, touches nothing and says
//! how to go on. A first start that was cut off goes on by itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::restoring::RestoredMesh;
use crate::verbs::{command, run};

/// How long `run` may take to refuse.
const REFUSAL: Duration = Duration::from_secs(5);
/// First starts that are cut off, each at another moment.
const CUT_OFF: u64 = 40;
/// What tells of an earlier mesh.
const TRACES: [&str; 3] = ["journal", "backups", "founded"];

/// How the store is lost.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Loss {
    Missing,
    Empty,
    Behind,
}

/// Returns all files below a directory with what they hold.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.insert(entry.path(), Vec::new());
            found.append(&mut files(&entry.path()));
        } else if kind.is_file() {
            found.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        let to = to.join(entry.file_name());
        if kind.is_dir() {
            copy(&entry.path(), &to);
        } else if kind.is_file() {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn remove(path: &Path) {
    if path.is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else if path.exists() {
        fs::remove_file(path).unwrap();
    }
}

/// Runs the coordinator until it ends by itself with the status that is not tried again, and returns what it said.
fn refused(mesh: &RestoredMesh) -> String {
    let mut command = command(mesh.dir.path());
    command.args(["run", "--config", &mesh.config]).stderr(Stdio::piped());
    let mut daemon = command.spawn().unwrap();
    let began = Instant::now();
    while daemon.try_wait().unwrap().is_none() {
        if began.elapsed() > REFUSAL {
            daemon.kill().unwrap();
            let output = daemon.wait_with_output().unwrap();
            panic!("it runs: {}", String::from_utf8_lossy(&output.stderr));
        }
        sleep(Duration::from_millis(10));
    }
    let output = daemon.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    said
}

/// A mesh of tokens `a` to `d`, its state as a kill left it, and its store as it was at token `b`.
struct Template {
    mesh: RestoredMesh,
    state: PathBuf,
    older: PathBuf,
}

impl Template {
    fn new() -> Self {
        let mut mesh = RestoredMesh::new();
        mesh.start();
        mesh.until_backed_up();
        ["a", "b"].iter().for_each(|name| mesh.token(name));
        mesh.kill();
        let [state, older] = ["template", "older"].map(|name| mesh.dir.path().join(name));
        fs::copy(mesh.state("store.redb"), &older).unwrap();
        mesh.start();
        ["c", "d"].iter().for_each(|name| mesh.token(name));
        mesh.kill();
        copy(&mesh.state(""), &state);
        Self { mesh, state, older }
    }

    /// Lays the state out anew with a lost store and only some traces of the mesh.
    fn lose(&self, loss: Loss, traces: &[&str]) {
        let store = self.mesh.state("store.redb");
        remove(&self.mesh.state(""));
        copy(&self.state, &self.mesh.state(""));
        TRACES.iter().filter(|trace| !traces.contains(trace)).for_each(|trace| remove(&self.mesh.state(trace)));
        match loss {
            Loss::Missing => remove(&store),
            Loss::Empty => fs::write(&store, "").unwrap(),
            Loss::Behind => drop(fs::copy(&self.older, &store).unwrap()),
        }
    }
}

#[test]
fn a_lost_store_is_refused_and_nothing_is_touched() {
    let template = Template::new();
    let mesh = &template.mesh;
    for loss in [Loss::Missing, Loss::Empty, Loss::Behind] {
        for traces in [&["journal"][..], &["backups"], &["founded"], &TRACES] {
            if loss == Loss::Behind && !traces.contains(&"journal") {
                continue;
            }
            template.lose(loss, traces);
            let before = files(mesh.dir.path());
            let said = refused(mesh);
            assert!(files(mesh.dir.path()) == before, "{loss:?} {traces:?}: something was altered");
            for trace in traces {
                let path = mesh.state(trace).display().to_string();
                assert!(said.contains(&path), "{loss:?} {traces:?}: {said}");
            }
            let store = mesh.state("store.redb").display().to_string();
            assert!(said.contains(&store) && said.contains("mesh-coordinator restore"), "{said}");
            assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
        }
    }
}

#[test]
fn init_makes_no_store_where_a_mesh_was_kept() {
    let template = Template::new();
    let mesh = &template.mesh;
    for loss in [Loss::Missing, Loss::Empty, Loss::Behind] {
        template.lose(loss, &TRACES);
        let before = files(mesh.dir.path());
        let init =
            run(mesh.dir.path(), &["init", "--name", "boutique", "--public", "127.0.0.1:1", "--config", &mesh.config]);
        let said = String::from_utf8_lossy(&init.stderr).into_owned();
        assert!(!init.status.success() && said.contains("mesh-coordinator restore"), "{said}");
        assert!(files(mesh.dir.path()) == before, "{loss:?}: something was altered");
    }
}

#[test]
fn after_a_restore_it_runs_with_all_that_was_acknowledged() {
    let mut template = Template::new();
    for loss in [Loss::Missing, Loss::Empty, Loss::Behind] {
        for traces in [&["journal"][..], &["journal", "backups"], &TRACES] {
            template.lose(loss, traces);
            let said = template.mesh.restore(None).unwrap();
            assert!(said.contains("commits of the journal"), "{said}");
            template.mesh.start();
            assert_eq!(template.mesh.tokens(), ["a", "b", "c", "d"], "{loss:?} {traces:?}");
            template.mesh.kill();
        }
        if loss == Loss::Behind {
            continue;
        }
        template.lose(loss, &["backups"]);
        template.mesh.restore(None).unwrap();
        template.mesh.start();
        assert!(template.mesh.tokens().is_empty(), "the backup was made before");
        template.mesh.kill();
    }
}

#[test]
fn an_older_backup_in_place_of_a_lost_store_brings_no_revoked_token_back() {
    let mut template = Template::new();
    let list = {
        template.mesh.start();
        let backup = template.mesh.dir.path().join("backup.redb");
        template.mesh.ask(&["backup", backup.to_str().unwrap()]).unwrap();
        let list = template.mesh.json(&["token", "list"]);
        let revoked = list["tokens"].as_array().unwrap().iter().find(|token| token["name"] == "a").unwrap();
        template.mesh.ask(&["token", "revoke", revoked["id"].as_str().unwrap()]).unwrap();
        template.mesh.kill();
        remove(&template.state);
        copy(&template.mesh.state(""), &template.state);
        backup
    };
    for loss in [Loss::Missing, Loss::Empty, Loss::Behind] {
        template.lose(loss, &TRACES);
        let said = template.mesh.restore(Some(&list)).unwrap();
        assert!(said.contains("revoked or used since stays so"), "{loss:?}: {said}");
        template.mesh.start();
        assert_eq!(template.mesh.tokens(), ["b", "c", "d"], "{loss:?}");
        template.mesh.kill();
    }
}

#[test]
fn a_mesh_of_which_only_the_marker_is_left_begins_anew_when_that_is_moved_away() {
    let mut template = Template::new();
    template.lose(Loss::Missing, &["founded"]);
    let said = refused(&template.mesh);
    assert!(said.contains("move") && said.contains("mesh-coordinator restore FILE"), "{said}");
    let error = template.mesh.restore(None).unwrap_err();
    assert!(error.contains("there is no good backup"), "{error}");
    fs::rename(template.mesh.state("founded"), template.mesh.dir.path().join("founded")).unwrap();
    template.mesh.start();
    assert!(template.mesh.tokens().is_empty());
    assert!(template.mesh.state("founded").exists(), "the new mesh has its own marker");
}

#[test]
fn a_first_start_that_is_cut_off_goes_on() {
    for number in 0..CUT_OFF {
        let mut mesh = RestoredMesh::new();
        let mut daemon = command(mesh.dir.path()).args(["run", "--config", &mesh.config]).spawn().unwrap();
        // From before the first commit to after it.
        sleep(Duration::from_micros(number * 1500));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        mesh.start();
        mesh.token("a");
        mesh.kill();
        assert!(mesh.state("founded").exists(), "cut off after {number}");
    }
}

#[test]
fn a_start_after_the_first_commit_needs_neither_marker_nor_journal() {
    for lost in [&["founded"][..], &["founded", "journal"], &TRACES] {
        let mut mesh = RestoredMesh::new();
        mesh.start();
        mesh.kill();
        lost.iter().for_each(|name| remove(&mesh.state(name)));
        mesh.start();
        assert!(mesh.state("founded").exists());
    }
}

#[test]
fn an_init_that_was_cut_off_goes_on() {
    for made in [&[][..], &["identity.key"], &["identity.key", "store.redb"], &["identity.key", "store.redb", "name"]] {
        let mut mesh = RestoredMesh::new();
        for name in ["identity.key", "store.redb", "name"] {
            if !made.contains(&name) {
                remove(&mesh.state(name));
            }
        }
        let init =
            run(mesh.dir.path(), &["init", "--name", "boutique", "--public", "127.0.0.1:1", "--config", &mesh.config]);
        assert!(init.status.success(), "{made:?}: {init:?}");
        mesh.start();
        mesh.token("a");
    }
    // A file of no bytes tells of nothing.
    let mut mesh = RestoredMesh::new();
    fs::write(mesh.state("store.redb"), "").unwrap();
    mesh.start();
    assert!(mesh.tokens().is_empty());
}
