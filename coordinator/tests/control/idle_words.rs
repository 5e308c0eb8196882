//! Words of services.toml that do nothing: refused in a new text; kept, and named, in one that an earlier version took.
//!
//! `earlier.txt` holds what mesh-coordinator wrote before it refused them, with its services.toml: a line for each 64
//! bytes of a file that are not all zero. Its identity key is not in it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use coordinator::core::documents::FileState;

use crate::common::{SERVICES, TestCoordinator, until};
use crate::verbs::run;

const EARLIER: &str = include_str!("earlier.txt");
/// The words of its services.toml that do nothing, with their places.
const IDLE: [&str; 6] = [
    ":14:1: warning[MESH0110]: `health` in [[service]]",
    ":15:11: warning[MESH0110]: `spill_below` in `route`",
    ":15:30: warning[MESH0110]: `max_conn_age` in `route`",
    ":15:51: warning[MESH0110]: `retry_syn` in `route`",
    ":16:1: warning[MESH0110]: `strict` in [[service]]",
    ":18:17: warning[MESH0110]: `sa:` as a caller",
];

/// Writes the files that begin with this into a directory.
fn unpack(prefix: &str, dir: &Path) {
    for part in EARLIER.split("= ").filter(|part| part.starts_with(prefix)) {
        let mut lines = part.lines();
        let (name, size) = lines.next().unwrap().split_once(' ').unwrap();
        let mut bytes = vec![0; size.parse().unwrap()];
        for line in lines {
            let (at, hex) = line.split_once(' ').unwrap();
            let piece = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
            let at = usize::from_str_radix(at, 16).unwrap();
            bytes[at..at + piece.len()].copy_from_slice(&piece);
        }
        let path = dir.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Says that a coordinator names the words with their places, and its table too.
#[track_caller]
fn assert_named(idle: &[String], table: &str) {
    assert_eq!(idle.len(), IDLE.len(), "{idle:#?}");
    for (line, part) in idle.iter().zip(IDLE) {
        assert!(line.contains(part) && line.contains("does nothing"), "{line}");
        assert!(table.contains(&format!("warning: {line}\n")), "{table}");
    }
}

fn table(coordinator: &TestCoordinator) -> String {
    let socket = coordinator.socket();
    let output = run(coordinator.dir.path(), &["--socket", socket.to_str().unwrap(), "status"]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_of_an_earlier_version_opens_and_status_names_what_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    unpack("s", dir.path());
    let taken = fs::read_to_string(dir.path().join("services.toml")).unwrap();

    let coordinator = TestCoordinator::start_in(dir).await;

    let status = coordinator.status().await;
    assert_eq!((status.services.state, &*status.services.errors), (FileState::Accepted, &[][..]));
    assert_named(&status.idle, &table(&coordinator));
    let (_, joined) = coordinator.join("n1").await;
    let cart = &joined.netmap.services[&"cart".parse().unwrap()];
    assert!(cart.strict, "maps are what they were");

    // Any alteration makes it a new text.
    coordinator.save(&format!("{taken}# altered\n"));
    until("the new text is refused", async || coordinator.status().await.services.state == FileState::Rejected).await;
    let status = coordinator.status().await;
    assert_eq!(status.services.errors.len(), IDLE.len(), "{:#?}", status.services.errors);
    assert!(
        status.services.errors[4].contains("services.toml:16:1: error[MESH0110]: `strict` in [[service]] is reserved")
    );
    assert_named(&status.idle, &table(&coordinator));
    let coordinator = coordinator.restart().await;
    assert_eq!(coordinator.status().await.services.state, FileState::Rejected);
    assert_named(&coordinator.status().await.idle, &table(&coordinator));

    coordinator.save(&taken);
    until("the text in force is in order", async || coordinator.status().await.services.state == FileState::Accepted)
        .await;
    coordinator.save(SERVICES);
    until("nothing is idle", async || coordinator.status().await.idle.is_empty()).await;
    coordinator.save(&taken);
    until("what was replaced is new", async || coordinator.status().await.services.state == FileState::Rejected).await;
    assert_eq!(coordinator.status().await.idle, <[String; 0]>::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_an_earlier_version_is_restored_and_status_names_what_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    unpack("backup", dir.path());
    let config = dir.path().join("coordinator.toml");
    let config = config.to_str().unwrap();
    let line = ["init", "--name", "boutique", "--public", "127.0.0.1:7700", "--listen", "127.0.0.1:0"];
    let init = run(dir.path(), &[&line[..], &["--metrics", "127.0.0.1:0", "--config", config]].concat());
    assert!(init.status.success(), "{init:?}");
    let backup = dir.path().join("backup.redb");
    let restored = run(dir.path(), &["restore", "--config", config, backup.to_str().unwrap()]);
    assert!(restored.status.success(), "{restored:?}");
    // The file that `init` wrote names no site, and what is in force is the backup's.
    fs::remove_file(dir.path().join("services.toml")).unwrap();

    let coordinator = TestCoordinator::start_in(dir).await;

    let status = coordinator.status().await;
    assert_eq!(status.services.state, FileState::Unreadable);
    assert_named(&status.idle, &table(&coordinator));
    unpack("services", coordinator.dir.path());
    until("its text is in order", async || coordinator.status().await.services.state == FileState::Accepted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_that_does_nothing_is_refused_by_check_by_plan_and_when_it_is_saved() {
    let coordinator = TestCoordinator::start().await;
    let socket = coordinator.socket();
    for (word, part) in [
        ("strict = true", "`strict` in [[service]]"),
        ("strict = false", "`strict` in [[service]]"),
        ("health = { tcp = true }", "`health` in [[service]]"),
        ("route = { spill_below = 0.5 }", "`spill_below` in `route`"),
        ("route = { max_conn_age = \"1h\" }", "`max_conn_age` in `route`"),
        ("route = { retry_syn = true }", "`retry_syn` in `route`"),
    ] {
        let text = SERVICES.replace("port = 7070\n", &format!("port = 7070\n{word}\n"));
        let draft = coordinator.dir.path().join("draft.toml");
        fs::write(&draft, &text).unwrap();
        let draft = draft.to_str().unwrap();
        for verb in [&["check", draft][..], &["--socket", socket.to_str().unwrap(), "plan", draft]] {
            let output = run(coordinator.dir.path(), verb);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{verb:?}: {output:?}");
            assert!(said.contains(&format!("error[MESH0110]: {part} is reserved and not built yet")), "{said}");
            assert!(said.contains("draft.toml:13:"), "{said}");
        }
        let before = coordinator.status().await.revision;
        coordinator.save(&text);
        until("it is refused", async || coordinator.status().await.services.state == FileState::Rejected).await;
        let status = coordinator.status().await;
        assert!(status.services.errors[0].contains("services.toml:13:"), "{:?}", status.services.errors);
        assert_eq!((status.revision, status.idle.len()), (before, 0));
        coordinator.save(SERVICES);
        until("it is taken", async || coordinator.status().await.services.state == FileState::Accepted).await;
    }
}
