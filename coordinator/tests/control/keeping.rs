//! What an operator keeps: backups that the verb writes with its user's rights, and the identity key, which none holds.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use mesh_proto::trust::join_token::JoinToken;

use crate::common::DEADLINE;
use crate::restoring::RestoredMesh;
use crate::verbs::{command, run};

/// Who the coordinator is, and not the operator.
const NOBODY: u32 = 65534;

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_in(part: &[u8], whole: &[u8]) -> bool {
    whole.windows(part.len()).any(|window| window == part)
}

/// Runs a verb on the coordinator's socket.
fn ask(mesh: &RestoredMesh, words: &[&str]) -> Output {
    let socket = mesh.state("admin.sock");
    run(mesh.dir.path(), &[&["--socket", socket.to_str().unwrap()], words].concat())
}

#[test]
fn a_backup_is_written_by_whoever_asks_for_it_and_holds_no_secret() {
    let mut mesh = RestoredMesh::new();
    // Where the coordinator is somebody else, it may not write where the operator wants it.
    let is_root = rustix::process::geteuid().is_root();
    let mut daemon = command(mesh.dir.path());
    daemon.args(["run", "--config", &mesh.config]);
    if is_root {
        for path in [mesh.dir.path().to_owned(), mesh.state("")] {
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            for name in names(&path) {
                chown(path.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        daemon.uid(NOBODY).gid(NOBODY);
    }
    mesh.daemon = Some(daemon.spawn().unwrap());
    mesh.until("the coordinator answers", |mesh| mesh.ask(&["status"]).is_ok());
    let token =
        mesh.ask(&["token", "create", "--site", "dc", "--name", "first"]).unwrap().trim().parse::<JoinToken>().unwrap();
    let own = tempfile::tempdir().unwrap();
    fs::set_permissions(own.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let file = own.path().join("mesh.redb");
    let word = file.to_str().unwrap();

    let said = text(&ask(&mesh, &["backup", word]));

    let key = mesh.state("identity.key");
    assert!(said.contains(word) && said.contains(key.to_str().unwrap()) && said.contains("holds no key"), "{said}");
    let found = fs::metadata(&file).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!((found.mode() & 0o777, found.uid()), (0o600, rustix::process::geteuid().as_raw()));
    let bytes = fs::read(&file).unwrap();
    assert!(!is_in(&token.secret.0, &bytes), "the token's secret is in the backup");
    // What a key file ends with is the key.
    let secret = fs::read(&key).unwrap();
    assert!(!is_in(&secret[16..48], &bytes), "the identity key is in the backup");

    let again = ask(&mesh, &["backup", word]);
    assert!(again.status.code() == Some(1) && text(&again).contains("--force"), "{again:?}");
    assert_eq!(fs::read(&file).unwrap(), bytes);
    mesh.token("later");
    assert!(ask(&mesh, &["backup", word, "--force"]).status.success());
    assert_ne!(fs::read(&file).unwrap(), bytes);
    let nowhere = ask(&mesh, &["backup", own.path().join("no/where").to_str().unwrap()]);
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
    assert_eq!(names(own.path()), ["mesh.redb"]);
    assert!(!names(&mesh.state("")).iter().any(|name| name.contains("copied")), "{:?}", names(&mesh.state("")));

    mesh.kill();
    mesh.restore(Some(&file)).unwrap();
    mesh.start();
    assert_eq!(mesh.tokens(), ["first", "later"]);
}

/// Runs the coordinator until it ends by itself.
fn ended(mesh: &RestoredMesh) -> Output {
    let mut command = command(mesh.dir.path());
    command.args(["run", "--config", &mesh.config]).stderr(Stdio::piped());
    let mut daemon = command.spawn().unwrap();
    let began = Instant::now();
    while daemon.try_wait().unwrap().is_none() {
        if began.elapsed() > DEADLINE {
            daemon.kill().unwrap();
        }
        sleep(Duration::from_millis(10));
    }
    daemon.wait_with_output().unwrap()
}

#[test]
fn a_lost_identity_key_is_asked_for_before_another_is_made() {
    let mut mesh = RestoredMesh::new();
    mesh.start();
    mesh.until_backed_up();
    mesh.token("a");
    mesh.kill();
    let (key, kept) = (mesh.state("identity.key"), mesh.dir.path().join("kept"));
    fs::rename(&key, &kept).unwrap();
    let init = ["init", "--name", "boutique", "--public", "127.0.0.1:7700", "--config", &mesh.config];

    for refused in [ended(&mesh), run(mesh.dir.path(), &init)] {
        let said = text(&refused);
        assert!(matches!(refused.status.code(), Some(78 | 1)), "{refused:?}");
        let (first, second) = (said.find("put the file back"), said.find("init --new-identity"));
        assert!(first.is_some() && first < second, "{said}");
        for named in [key.to_str().unwrap(), mesh.state("store.redb").to_str().unwrap()] {
            assert!(said.contains(named), "{said}");
        }
        assert!(!key.exists(), "{said}");
    }
    assert_eq!(ended(&mesh).status.code(), Some(78), "systemd does not start it again");

    fs::rename(&kept, &key).unwrap();
    mesh.start();
    assert_eq!(mesh.tokens(), ["a"]);
    mesh.kill();

    // The last way is the line that was printed.
    fs::remove_file(&key).unwrap();
    let said = text(&ended(&mesh));
    let line = said.split('`').find(|quoted| quoted.starts_with("mesh-coordinator init")).unwrap();
    let words: Vec<&str> = line.split(' ').skip(1).chain(["--config", &mesh.config]).collect();
    let made = run(mesh.dir.path(), &words);
    assert!(made.status.success() && key.exists(), "{made:?}");
    mesh.start();
    assert_eq!(mesh.tokens(), ["a"]);
}
