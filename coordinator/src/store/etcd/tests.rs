//! What the store in etcd promises beside the contract of all stores, on a real etcd.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod secured;

use std::time::Duration;

use super::client::{CallError, TXN};
use super::commit::{CommitFate, LEVEL, nested};
use super::message::{Request, RequestOp, TxnResponse, delete};
use super::session::{PATIENCE, check_version};
use super::*;
use crate::store::tests::cluster::Cluster;

/// Opens the store as one of several writers.
fn open(cluster: &Cluster, writer: &str) -> Etcd {
    Etcd::open(&cluster.options(), "/mesh/test", writer).unwrap()
}

fn put(table: StoreTable, key: &str, value: &str) -> Write {
    Write { table, key: key.into(), value: Some(value.into()) }
}

/// Waits for a condition.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn commit(store: &mut Etcd, from: u64, writes: &[Write]) -> Result<(), StoreError> {
    store.commit(Revision(from), Revision(from + 1), writes)
}

#[test]
fn versions_that_lose_what_they_acknowledged_are_refused_with_the_reason() {
    for good in ["3.4.22", "3.4.23", "3.4.41", "3.5.14", "3.5.28", "3.6.0", "3.6.0-rc.1", "3.7.1", "4.0.0"] {
        check_version(good).unwrap();
    }
    for bad in ["2.3.8", "3.3.27", "3.4.21", "3.5.0", "3.5.13", "", "unknown"] {
        let error = check_version(bad).unwrap_err().to_string();
        assert!(error.contains("3.5.14 or newer") && error.contains("lose or mix up"), "{bad}: {error}");
    }
}

#[test]
fn two_writers_see_each_others_commits_and_only_one_wins() {
    let Some(cluster) = Cluster::start(1) else { return };
    let (mut one, mut two) = (open(&cluster, "one"), open(&cluster, "two"));
    let told = two.follow().unwrap();
    commit(&mut one, 0, &[put(StoreTable::Nodes, "a", "1"), put(StoreTable::Nodes, "b", "1")]).unwrap();
    eventually("the watch tells of a commit", || told.borrow().revision == Revision(1));
    let refused = commit(&mut two, 0, &[put(StoreTable::Nodes, "a", "2")]);
    assert!(matches!(refused, Err(StoreError::Conflict { found: Revision(1), .. })), "{refused:?}");
    assert_eq!(two.newest().unwrap(), Some(Revision(1)));
    assert_eq!(two.load().unwrap(), one.load().unwrap());
    let gone = Write { table: StoreTable::Nodes, key: "a".into(), value: None };
    commit(&mut two, 1, &[gone, put(StoreTable::Vips, "v", "2")]).unwrap();
    let seen = one.load().unwrap();
    let left: Vec<_> = seen.records.keys().map(|(_, key)| key.as_str()).collect();
    assert_eq!((left.as_slice(), seen.revision), (["b", "v"].as_slice(), Revision(2)));
    assert_eq!(open(&cluster, "three").load().unwrap(), seen);
}

#[test]
fn a_commit_of_thousands_of_records_is_one_transaction_and_a_larger_one_is_refused_whole() {
    let Some(cluster) = Cluster::start(1) else { return };
    let (mut one, two) = (open(&cluster, "one"), open(&cluster, "two"));
    let many = |value: &str| (0..5000).map(|i| put(StoreTable::Nodes, &format!("n{i:05}"), value)).collect::<Vec<_>>();
    let began = std::time::Instant::now();
    commit(&mut one, 0, &many("1")).unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let whole = two.load().unwrap();
    assert_eq!((whole.records.len(), whole.revision), (5000, Revision(1)));

    let error = commit(&mut one, 1, &many(&"x".repeat(400))).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("--max-request-bytes"), "{error}");
    assert_eq!(two.load().unwrap(), whole, "nothing of it was written");
    commit(&mut one, 1, &[put(StoreTable::Meta, "a", "1")]).unwrap();
}

#[test]
fn nesting_keeps_every_operation_in_order_and_every_level_small() {
    fn leaves(ops: &[RequestOp], depth: usize, out: &mut Vec<RequestOp>) {
        assert!(ops.len() <= LEVEL && depth <= 3, "{} at {depth}", ops.len());
        for op in ops {
            match &op.request {
                Some(Request::Txn(inner)) => leaves(&inner.success, depth + 1, out),
                _ => out.push(op.clone()),
            }
        }
    }
    for count in [0, 1, LEVEL, LEVEL + 1, LEVEL * LEVEL, LEVEL * LEVEL + 1, LEVEL.pow(3)] {
        let ops: Vec<_> = (0..count).map(|i| delete(&i.to_string())).collect();
        let mut found = Vec::new();
        leaves(&nested(ops.clone()), 1, &mut found);
        assert_eq!(found, ops);
    }
}

#[test]
fn a_lost_answer_is_looked_for_whether_or_not_the_commit_happened() {
    let Some(cluster) = Cluster::start(1) else { return };
    let mut one = open(&cluster, "one");
    commit(&mut one, 0, &[put(StoreTable::Nodes, "a", "1")]).unwrap();
    let session = Arc::clone(&one.session);
    let cache = Arc::clone(&one.cache);
    let lost = CallError::Lost { at: "etcd".into(), detail: "cut".into() };
    one.wait(async move {
        let mut cache = cache.lock().await;
        let soon = || Instant::now() + PATIENCE;
        // It happened: the request was carried out, and only the answer is missing.
        let request = session.transaction(cache.guard, Revision(2), b"first", &[]);
        let taken: TxnResponse = session.client.call(TXN, &request).await.unwrap();
        assert!(taken.succeeded);
        let outcome = session.find_out(&lost, Revision(1), b"first", soon()).await?;
        let CommitFate::Written(at) = outcome else { panic!("it was written") };
        session.enter(&mut cache, at, Revision(2), b"first", &[]);

        // It did not happen yet: once that is said, it never will.
        let late = session.transaction(cache.guard, Revision(3), b"second", &[]);
        let outcome = session.find_out(&lost, Revision(2), b"second", soon()).await?;
        let CommitFate::NotWritten(guard) = outcome else { panic!("it was not written") };
        let answer: TxnResponse = session.client.call(TXN, &late).await.unwrap();
        assert!(!answer.succeeded, "a commit that was declared lost came through");
        cache.guard = guard;

        // Somebody else was quicker.
        let request = session.transaction(guard, Revision(3), b"another", &[]);
        let other: TxnResponse = session.client.call(TXN, &request).await.unwrap();
        assert!(other.succeeded);
        let outcome = session.find_out(&lost, Revision(2), b"third", soon()).await?;
        assert!(matches!(outcome, CommitFate::Overtaken(Revision(3))));
        Ok(())
    })
    .unwrap();
    // What the cache holds is behind by now: the next commit notices.
    let refused = commit(&mut one, 2, &[]);
    assert!(matches!(refused, Err(StoreError::Conflict { found: Revision(3), .. })), "{refused:?}");
    one.load().unwrap();
    commit(&mut one, 3, &[put(StoreTable::Nodes, "b", "1")]).unwrap();
}

#[test]
fn a_compaction_costs_neither_the_watch_nor_a_read() {
    let Some(cluster) = Cluster::start_with(
        1,
        false,
        &["--auto-compaction-mode=revision".into(), "--auto-compaction-retention=1".into()],
    ) else {
        return;
    };
    let (mut one, two) = (open(&cluster, "one"), open(&cluster, "two"));
    let told = two.follow().unwrap();
    for revision in 0..20 {
        commit(&mut one, revision, &[put(StoreTable::Nodes, &format!("n{revision}"), "1")]).unwrap();
    }
    compact(&one, one_at(&one));
    assert_eq!(two.load().unwrap().records.len(), 20);
    for revision in 20..25 {
        commit(&mut one, revision, &[put(StoreTable::Nodes, &format!("n{revision}"), "1")]).unwrap();
    }
    eventually("the watch goes on", || told.borrow().revision == Revision(25));
    assert_eq!(two.load().unwrap(), one.load().unwrap());
}

fn one_at(store: &Etcd) -> i64 {
    let cache = Arc::clone(&store.cache);
    store.wait(async move { Ok(cache.lock().await.at) }).unwrap()
}

/// Makes etcd forget what was before a revision.
fn compact(store: &Etcd, revision: i64) {
    #[derive(Clone, PartialEq, prost::Message)]
    struct CompactionRequest {
        #[prost(int64, tag = "1")]
        revision: i64,
    }
    let session = Arc::clone(&store.session);
    let asked = store.wait(async move {
        let request = CompactionRequest { revision };
        let asked: Result<TxnResponse, _> = session.client.call("/etcdserverpb.KV/Compact", &request).await;
        asked.map_err(|error| error.explain("use", false))
    });
    asked.unwrap();
}

#[test]
fn any_member_may_die_or_stand_still_and_no_acknowledged_commit_is_lost() {
    let Some(mut cluster) = Cluster::start(3) else { return };
    let mut one = open(&cluster, "one");
    let told = open(&cluster, "two").follow().unwrap();
    let two = open(&cluster, "two");
    drop(told);
    let told = two.follow().unwrap();
    let mut slowest = Duration::ZERO;
    let mut revision = 0;
    for place in 0..3 {
        for trouble in ["kill", "stand still"] {
            if trouble == "kill" {
                cluster.kill(place);
            } else {
                cluster.stand_still(place, true);
            }
            for _ in 0..5 {
                let began = std::time::Instant::now();
                commit_in_the_end(&mut one, revision, &put(StoreTable::Nodes, &format!("n{revision}"), "1"));
                slowest = slowest.max(began.elapsed());
                revision += 1;
            }
            eventually("the other writer is told", || told.borrow().revision == Revision(revision));
            assert_eq!(two.load().unwrap().records.len() as u64, revision, "after {trouble} of {place}");
            if trouble == "kill" {
                cluster.restart(place);
            } else {
                cluster.stand_still(place, false);
            }
        }
    }
    assert!(slowest < 3 * PATIENCE, "{slowest:?}");
}

/// Commits as a coordinator does: a commit of which nothing is known, for its members were too slow to say, is read
/// back, and repeated where it did not happen.
fn commit_in_the_end(store: &mut Etcd, from: u64, write: &Write) {
    for _ in 0..3 {
        match commit(store, from, std::slice::from_ref(write)) {
            Ok(()) => return,
            Err(StoreError::Unknown { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        if newest(store) == Some(Revision(from + 1)) {
            return;
        }
    }
    panic!("three attempts at revision {from} had no answer");
}

fn newest(store: &mut Etcd) -> Option<Revision> {
    let began = std::time::Instant::now();
    loop {
        match store.newest() {
            Ok(revision) => return revision,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
        }
    }
}

#[test]
fn without_most_members_nothing_is_acknowledged_and_the_error_says_so() {
    let Some(mut cluster) = Cluster::start(3) else { return };
    let mut one = open(&cluster, "one");
    commit(&mut one, 0, &[put(StoreTable::Nodes, "a", "1")]).unwrap();
    cluster.kill(0);
    cluster.kill(1);
    let error = commit(&mut one, 1, &[put(StoreTable::Nodes, "b", "1")]).unwrap_err();
    assert!(error.to_string().contains("not known whether"), "{error}");
    let told = one.follow().unwrap();
    eventually("the failure is known", || told.borrow().error.is_some());
    let began = std::time::Instant::now();
    assert!(commit(&mut one, 1, &[put(StoreTable::Nodes, "c", "1")]).is_err());
    assert!(began.elapsed() < PATIENCE, "who comes later waits less: {:?}", began.elapsed());
    cluster.restart(0);
    cluster.restart(1);
    eventually("the recovery is known", || told.borrow().error.is_none());
    let there = one.load().unwrap();
    commit(&mut one, there.revision.0, &[put(StoreTable::Nodes, "d", "1")]).unwrap();
    assert!(one.load().unwrap().records.contains_key(&(StoreTable::Nodes, "a".into())));
}
