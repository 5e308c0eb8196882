//! The contract of a store, asked of each.

#![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test fails by panicking")]

mod faults;
mod journaling;
mod power;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

#[path = "../../tests/etcd/cluster.rs"]
pub(super) mod cluster;
use etcd::EtcdOptions;

fn put(table: StoreTable, key: &str, value: &str) -> Write {
    Write { table, key: key.into(), value: Some(value.into()) }
}

fn delete(table: StoreTable, key: &str) -> Write {
    Write { table, key: key.into(), value: None }
}

fn commit(store: &mut dyn Store, from: u64, writes: &[Write]) -> Result<(), StoreError> {
    store.commit(Revision(from), Revision(from + 1), writes)
}

fn get(store: &dyn Store, table: StoreTable, key: &str) -> Option<String> {
    let records = store.load().unwrap().records;
    records.get(&(table, key.to_owned())).map(|bytes| String::from_utf8(bytes.clone()).unwrap())
}

/// Runs a claim against every kind of store.
fn every_store(claim: impl Fn(&mut dyn Store)) {
    claim(&mut Memory::new());
    let dir = tempfile::tempdir().unwrap();
    claim(&mut Embedded::open(&dir.path().join("state.redb")).unwrap());
    if let Some(etcd) = cluster::Cluster::start(1) {
        claim(&mut Etcd::open(&etcd.options(), "/mesh/test", "writer").unwrap());
    }
}

#[test]
fn a_new_store_is_empty_and_at_revision_zero() {
    every_store(|store| assert_eq!(store.load().unwrap(), Records::default()));
}

#[test]
fn a_commit_writes_deletes_and_moves_the_revision() {
    every_store(|store| {
        commit(store, 0, &[put(StoreTable::Nodes, "a", "1"), put(StoreTable::Tokens, "a", "2")]).unwrap();
        commit(
            store,
            1,
            &[put(StoreTable::Nodes, "b", "3"), delete(StoreTable::Nodes, "a"), put(StoreTable::Tokens, "a", "4")],
        )
        .unwrap();
        assert_eq!(store.load().unwrap().revision, Revision(2));
        assert_eq!(get(store, StoreTable::Nodes, "a"), None);
        assert_eq!(get(store, StoreTable::Nodes, "b").as_deref(), Some("3"));
        assert_eq!(get(store, StoreTable::Tokens, "a").as_deref(), Some("4"));
    });
}

#[test]
fn a_commit_decided_on_another_revision_writes_nothing() {
    every_store(|store| {
        commit(store, 0, &[put(StoreTable::Nodes, "a", "1")]).unwrap();
        for stale in [0, 2] {
            let refused = commit(store, stale, &[put(StoreTable::Nodes, "a", "2"), put(StoreTable::Nodes, "b", "2")]);
            assert!(matches!(refused, Err(StoreError::Conflict { found: Revision(1), .. })), "{refused:?}");
        }
        assert_eq!(store.load().unwrap().revision, Revision(1));
        assert_eq!(get(store, StoreTable::Nodes, "a").as_deref(), Some("1"));
        assert_eq!(get(store, StoreTable::Nodes, "b"), None);
        commit(store, 1, &[]).unwrap();
    });
}

#[test]
fn a_reopened_store_returns_what_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let mut store = open_embedded(&path).unwrap();
    for revision in 0..20 {
        commit(&mut *store, revision, &[put(StoreTable::Nodes, &format!("n{revision}"), "x")]).unwrap();
    }
    let before = store.load().unwrap();
    drop(store);
    assert_eq!(open_embedded(&path).unwrap().load().unwrap(), before);
}

#[test]
fn a_copy_taken_after_an_acknowledged_commit_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let mut store = Embedded::open(&path).unwrap();
    for revision in 0..10 {
        commit(&mut store, revision, &[put(StoreTable::Nodes, "last", &revision.to_string())]).unwrap();
        // What a power cut would leave: the file as it is, without anything that a clean close adds.
        let copy = dir.path().join("copy.redb");
        fs::copy(&path, &copy).unwrap();
        let copy = Embedded::open(&copy).unwrap();
        assert_eq!(copy.load().unwrap(), store.load().unwrap());
    }
}

#[test]
fn the_file_is_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    for wide in [None, Some(0o644)] {
        if let Some(mode) = wide {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        drop(open_embedded(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_file_that_is_open_elsewhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let _first = Embedded::open(&path).unwrap();
    let second = Embedded::open(&path);
    assert!(matches!(second, Err(StoreError::Locked { .. })), "{second:?}");
}

#[test]
fn a_missing_directory_is_an_error_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let error = Embedded::open(&dir.path().join("none/state.redb")).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(error.to_string().contains("permissions"), "{error}");
}

#[test]
fn a_scan_reads_a_part_of_one_table_in_the_order_of_its_keys() {
    every_store(|store| {
        let log = |n: u64| put(StoreTable::Log, &format!("{n:03}"), &n.to_string());
        let writes =
            [log(7), log(10), log(9), log(8), put(StoreTable::Nodes, "009", "x"), put(StoreTable::Revoked, "1", "x")];
        commit(store, 0, &writes).unwrap();
        let keys = |from: &str, limit| -> Vec<String> {
            store.scan(StoreTable::Log, from, limit).unwrap().into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys("", 10), ["007", "008", "009", "010"]);
        assert_eq!(keys("008", 2), ["008", "009"]);
        assert_eq!(keys("008\0", 1), ["009"]);
        assert_eq!(keys("011", 2), Vec::<String>::new());
        assert_eq!(store.scan(StoreTable::Nodes, "", 5).unwrap(), [("009".to_owned(), b"x".to_vec())]);
        assert_eq!(get(store, StoreTable::Log, "007"), None, "a load leaves the log out");
    });
}

/// Opens a file that was spoilt, and reads it.
fn reopen(path: &Path) -> Result<Records, StoreError> {
    Embedded::open(path)?.load()
}

#[test]
fn a_torn_file_is_an_error_with_advice_and_never_another_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let mut store = Embedded::open(&path).unwrap();
    for revision in 0..8 {
        let value = format!("{revision}").repeat(500);
        commit(&mut store, revision, &[put(StoreTable::Nodes, &format!("n{revision}"), &value)]).unwrap();
    }
    let good = store.load().unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();
    let mut spoilt: Vec<Vec<u8>> = Vec::new();
    for part in 1..16 {
        spoilt.push(whole[..whole.len() * part / 16].to_vec());
    }
    for start in (0..whole.len()).step_by(whole.len() / 64) {
        let mut bytes = whole.clone();
        let end = (start + 512).min(bytes.len());
        bytes[start..end].fill(0xa5);
        spoilt.push(bytes);
    }
    spoilt.push(b"this is no database".to_vec());

    let mut errors = 0;
    for bytes in spoilt {
        fs::write(&path, bytes).unwrap();
        match reopen(&path) {
            Ok(records) => assert_eq!(records, good, "what was acknowledged is lost"),
            Err(error) => {
                errors += 1;
                assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
                assert!(error.to_string().contains("mesh-coordinator restore`"), "{error}");
            }
        }
    }
    assert!(errors > 10, "only {errors} were noticed");
}

#[test]
fn who_peeks_at_a_store_alters_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    assert_eq!(peek(&path).unwrap(), StoreFile::Missing);
    fs::write(&path, "").unwrap();
    assert_eq!(peek(&path).unwrap(), StoreFile::Empty);
    fs::remove_file(&path).unwrap();
    let mut store = Embedded::open(&path).unwrap();
    assert!(matches!(peek(&path).unwrap_err(), StoreError::Locked { .. }));
    let crashed = dir.path().join("crashed.redb");
    for revision in 0..40 {
        // As a crash leaves it: it has to be repaired.
        fs::copy(&path, &crashed).unwrap();
        let before = fs::read(&crashed).unwrap();
        assert_eq!(peek(&crashed).unwrap(), StoreFile::At(Revision(revision)));
        assert!(fs::read(&crashed).unwrap() == before, "altered at revision {revision}");
        commit(&mut store, revision, &[put(StoreTable::Nodes, "n", &"x".repeat(7000 * (revision as usize % 5)))])
            .unwrap();
    }
    drop(store);
    let before = fs::read(&path).unwrap();
    assert_eq!(peek(&path).unwrap(), StoreFile::At(Revision(40)));
    assert!(fs::read(&path).unwrap() == before, "altered after a clean end");
    fs::write(&path, "this is no database").unwrap();
    assert!(matches!(peek(&path).unwrap_err(), StoreError::Damaged { .. }));
}
