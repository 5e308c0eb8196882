//! Lock mode: a node joins, waits, is signed for, and is reached; and a coordinator without the key adds nobody.

use std::time::Duration;

use mesh_proto::ops::status::LockStatus;
use mesh_tests::daemon::{Daemon, wait_until};
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::topology::token;
use mesh_tests::traffic;

use crate::probe::{Probe, said};

/// How long something is watched that must not happen.
const A_WHILE: Duration = Duration::from_secs(3);

/// Expels the second node, and lets its machine join again as somebody new.
fn anew(pair: &Pair) {
    let b = &pair.b.node;
    pair.coordinator.expect(&["revoke", "b"]).unwrap();
    b.expect_config(&["leave"]).unwrap();
    let token = token(&pair.coordinator, "west", "b").unwrap();
    let told = b.expect_config(&["join", &token]).unwrap();
    b.start().unwrap();
    said(told.trim());
}

fn standing(node: &Daemon) -> LockStatus {
    serde_json::from_value(node.json(&["lock", "status"]).unwrap()).unwrap()
}

fn reaches(pair: &Pair) -> bool {
    pair.a.node.status().is_ok() && traffic::seen_as(&pair.a.pod, (pair.vip("web"), 80)).is_ok()
}

fn knows_b(pair: &Pair) -> bool {
    pair.a.node.status().is_ok_and(|status| status.peers.iter().any(|peer| peer.name.as_str() == "b"))
}

pub(crate) fn signed(pair: &Pair) {
    assert!(wait_until(STARTING, || reaches(pair)), "the mesh does not work");
    let probe = Probe::tcp(&pair.a.pod, (pair.vip("web"), 80)).unwrap();
    let file = pair.coordinator.folder.join("lock.key");
    pair.coordinator.expect(&["lock", "init", "--key", file.to_str().unwrap()]).unwrap();
    let locked = || [&pair.a.node, &pair.b.node].iter().all(|n| n.status().is_ok_and(|s| s.coordinator.lock.is_some()));
    assert!(wait_until(STARTING, locked), "the nodes do not learn of the lock");
    let (asked, answered) = probe.finish();
    assert!(asked == answered && asked > 10, "locking costs nothing: {answered} of {asked}");

    anew(pair);
    let (a, b) = (&pair.a.node, &pair.b.node);
    std::fs::rename(&file, a.folder.join("state/lock.key")).unwrap();
    assert!(wait_until(STARTING, || standing(a).waiting.len() == 1), "nobody waits");
    assert!(!wait_until(A_WHILE, || knows_b(pair) || reaches(pair)), "a node that waits is reached");
    assert!(pair.coordinator.expect(&["nodes"]).unwrap().contains("waits for a signature"));
    let warned = || b.status().is_ok_and(|s| s.warnings.iter().any(|w| w.contains("meshd lock sign b")));
    assert!(wait_until(STARTING, warned), "the node does not know that it waits");

    let own = standing(b).identity.to_string();
    let other = standing(a).identity.to_string();
    assert!(a.expect_config(&["lock", "sign", "b"]).is_err(), "nobody confirmed it");
    assert!(a.expect_config(&["lock", "sign", "b", "--identity", &other]).is_err(), "another identity");
    assert!(b.expect_config(&["lock", "sign", "b", "--identity", &own]).is_err(), "the key is not there");
    a.expect_config(&["lock", "sign", "b", "--identity", &own]).unwrap();
    assert!(wait_until(STARTING, || reaches(pair)), "the signature changes nothing");
}

pub(crate) fn stolen(pair: &Pair) {
    assert!(reaches(pair));
    // What a thief can do without the key, and what an operator does who lost it.
    pair.coordinator.expect(&["lock", "disable", "--lost"]).unwrap();
    let a = &pair.a.node;
    let warned = || {
        let warning = "may have taken the coordinator over";
        a.status().is_ok_and(|s| s.warnings.iter().any(|w| w.contains(warning)))
    };
    assert!(wait_until(STARTING, warned), "nobody is warned");
    assert!(reaches(pair), "who was admitted stays");
    anew(pair);
    assert!(!wait_until(A_WHILE, || knows_b(pair) || reaches(pair)), "the thief added a node");
    // From the cache, and by a snapshot after it.
    a.kill();
    a.start().unwrap();
    assert!(wait_until(STARTING, warned), "the lock is forgotten by a restart");
    assert!(!wait_until(A_WHILE, || knows_b(pair) || reaches(pair)), "the thief added a node at a restart");

    a.kill();
    a.expect_config(&["lock", "forget"]).unwrap();
    a.start().unwrap();
    assert!(wait_until(STARTING, || reaches(pair)), "the operator's own word changes nothing");
}
