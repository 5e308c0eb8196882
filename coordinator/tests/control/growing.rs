//! What the disk holds grows with what is kept, not with how often it was altered.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use coordinator::store::journal::{self, Journaled};
use coordinator::store::{self, Embedded, Store as _, StoreTable, Write};
use mesh_proto::base::id::Revision;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{DEADLINE, SERVICES};
use crate::restoring::RestoredMesh;

/// How long a services.toml is, in bytes, so that few edits are worth a backup: nearly as long as it may be.
const TEXT: usize = 1000 * 1024;
/// How long a record is that fills the journal, in bytes.
const FILLER: usize = 2 * 1024 * 1024;
/// What may come in addition until a backup is made, in bytes.
const SLACK: u64 = 24 * 1024 * 1024;

/// Where a coordinator is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// A backup is being written.
    Draft,
    /// It is there under its name.
    Named,
    /// A part of the journal is gone.
    Shed,
    /// So long after a backup was begun.
    After(Duration),
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

/// Puts another long services.toml in force, and returns the revision that it led to.
fn edit(mesh: &RestoredMesh, number: u64) -> Option<u64> {
    let line = format!("# {number:0>96}\n");
    fs::write(mesh.dir.path().join("services.toml"), SERVICES.to_owned() + &line.repeat(TEXT / line.len())).unwrap();
    let daemon = mesh.daemon.as_ref().unwrap();
    kill_process(Pid::from_child(daemon), Signal::HUP).ok()?;
    let revision = || mesh.ask(&["status", "-o", "json"]).ok().map(|text| revision(&text));
    let before = revision()?;
    let began = Instant::now();
    loop {
        match revision()? {
            now if now > before => return Some(now),
            _ => sleep(Duration::from_millis(5)),
        }
        // The file may have been read before it was asked for.
        if began.elapsed() > Duration::from_secs(1) {
            return Some(before);
        }
    }
}

fn revision(status: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(status).unwrap()["revision"].as_u64().unwrap()
}

/// Returns the revision of the newest backup.
fn newest_backup(mesh: &RestoredMesh) -> Option<Revision> {
    let newest = files(&mesh.state("backups"), "redb").pop()?;
    Some(Revision(newest.file_stem()?.to_str()?.rsplit_once("-r")?.1.parse().ok()?))
}

/// Returns where the newest backup and the journal lead.
fn leads_to(mesh: &RestoredMesh) -> u64 {
    let newest = files(&mesh.state("backups"), "redb").pop().unwrap();
    let copy = mesh.dir.path().join("copy.redb");
    fs::copy(newest, &copy).unwrap();
    let backup = store::open_embedded(&copy).unwrap().load().unwrap();
    let mut records: BTreeMap<(StoreTable, String), Vec<u8>> = backup.records;
    let Revision(to) = journal::replay(&mesh.state("journal"), backup.revision, &mut records).unwrap();
    to
}

/// Commits to the store of a coordinator that does not run until its journal is nearly as long as it may be.
fn fill(mesh: &RestoredMesh) {
    let logs = mesh.state("journal");
    let mut store = Journaled::open(Embedded::open(&mesh.state("store.redb")).unwrap(), &logs).unwrap();
    let Revision(mut from) = store.load().unwrap().revision;
    while journal::length(&logs) + 2 * (FILLER as u64) < journal::MOST {
        let value = Some(format!("\"{}\"", "x".repeat(FILLER)).into_bytes());
        let filler = Write { table: StoreTable::Meta, key: "filler".into(), value };
        store.commit(Revision(from), Revision(from + 1), &[filler]).unwrap();
        from += 1;
    }
}

/// Edits until a backup is made of itself, and kills the coordinator there. Returns the last acknowledged revision, and
/// the most bytes that the journal had.
fn edit_until(mesh: &mut RestoredMesh, moment: Moment, number: &mut u64) -> (u64, u64) {
    let [backups, logs] = ["backups", "journal"].map(|name| mesh.state(name));
    let (known, began) = (files(&backups, "redb"), files(&logs, "log"));
    let first = began.first().cloned();
    let (mut acknowledged, mut most) = (0, 0);
    let is_due = |since: &mut Option<Instant>| {
        let is_begun = !files(&backups, "part").is_empty() || files(&backups, "redb") != known;
        let since = is_begun.then(|| *since.get_or_insert_with(Instant::now));
        match moment {
            Moment::Draft => is_begun,
            Moment::Named => files(&backups, "redb") != known,
            Moment::Shed => files(&logs, "log").first() != first.as_ref(),
            Moment::After(wait) => since.is_some_and(|since| since.elapsed() >= wait),
        }
    };
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel();
        let pid = Pid::from_child(mesh.daemon.as_ref().unwrap());
        scope.spawn(move || {
            let (began, mut since) = (Instant::now(), None);
            while !is_due(&mut since) {
                if began.elapsed() > 3 * DEADLINE {
                    break;
                }
                sleep(Duration::from_micros(300));
            }
            kill_process(pid, Signal::KILL).unwrap();
            stop.send(began.elapsed() <= 3 * DEADLINE).unwrap();
        });
        loop {
            *number += 1;
            if let Some(revision) = edit(mesh, *number) {
                acknowledged = revision.max(acknowledged);
            }
            most = most.max(journal::length(&logs));
            if let Ok(is_in_time) = stopped.try_recv() {
                assert!(is_in_time, "no backup was made at {most} bytes of journal: {moment:?}");
                break;
            }
        }
    });
    mesh.kill();
    (acknowledged, most)
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures of the run")]
fn a_long_journal_ends_with_a_backup_and_no_kill_in_between_loses_a_commit() {
    let mut mesh = RestoredMesh::new();
    mesh.start();
    mesh.until_backed_up();
    mesh.kill();
    let mut number = 0;
    let after = |milliseconds| Moment::After(Duration::from_millis(milliseconds));
    let moments = [Moment::Draft, Moment::Named, Moment::Shed, after(5), after(30), after(80)];
    for moment in moments {
        mesh.start();
        // Killed while parts went, it may have any length up to the bound.
        mesh.until("the journal is short", |mesh| journal::length(&mesh.state("journal")) < journal::MOST);
        mesh.kill();
        fill(&mesh);
        mesh.start();
        // A start makes one for a file of the journal that was begun since; it is not the one that is waited for.
        mesh.until("the newest backup reaches into the newest file of the journal", |mesh| {
            let is_over = files(&mesh.state("backups"), "part").is_empty();
            is_over && newest_backup(mesh) >= journal::begins(&mesh.state("journal"))
        });
        let (acknowledged, most) = edit_until(&mut mesh, moment, &mut number);
        let to = leads_to(&mesh);
        println!("{moment:?}: {most} bytes of journal, acknowledged {acknowledged}, restorable {to}");
        assert!(
            acknowledged > 0 && to >= acknowledged,
            "killed at {moment:?}: revision {acknowledged} cannot be restored, {to} can"
        );
        assert!(most <= journal::MOST + SLACK, "{most} bytes of journal");
    }
    mesh.start();
    mesh.until("the journal is short again", |mesh| journal::length(&mesh.state("journal")) < journal::MOST);
    let export = mesh.json(&["export"]);
    mesh.kill();
    fs::remove_file(mesh.state("store.redb")).unwrap();
    mesh.restore(None).unwrap();
    mesh.start();
    let restored = mesh.json(&["export"]);
    assert_eq!(restored["tables"]["services"], export["tables"]["services"]);
    assert_eq!(restored["tables"]["coordinators"], export["tables"]["coordinators"]);
}
