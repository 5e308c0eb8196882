//! A coordinator that shows a revoked node again, because it was stolen or went back to an older state, is not believed.

use std::path::Path;
use std::time::{Duration, Instant};

use mesh_tests::daemon::{Daemon, wait_until};
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::topology::token;
use mesh_tests::traffic;
use meshd::base::state_dir::State;

use crate::fork::{copy, is_connected};
use crate::probe::said;

/// How long until a node has read of a revocation: what is new is told each 10 s, and looked at each 5 s.
const READ: Duration = Duration::from_secs(40);
/// How long until a node follows the coordinator again: who met it too early waits 15 s.
const BACK: Duration = Duration::from_secs(40);
/// How long something is watched that must not happen.
const A_WHILE: Duration = Duration::from_secs(3);
/// Entries that bring a coordinator behind what nodes have seen of it.
const BEYOND: usize = 30;

fn reaches(pair: &Pair) -> bool {
    pair.a.node.status().is_ok() && traffic::seen_as(&pair.a.pod, (pair.vip("web"), 80)).is_ok()
}

fn is_shown(node: &Daemon, name: &str) -> bool {
    node.status().is_ok_and(|status| status.peers.iter().any(|peer| peer.name.as_str() == name))
}

/// The identity of the second node in the first one's map.
fn identity(pair: &Pair) -> Option<String> {
    let map = State::open(&pair.a.node.folder.join("state")).ok()?.netmap()?;
    let peer = map.peers.into_iter().find(|(name, _)| name.as_str() == "b")?.1;
    Some(peer.proof?.identity.to_string())
}

/// Expels the second node, and waits until the first one remembers that.
fn revoke(pair: &Pair) -> String {
    let gone = identity(pair).unwrap();
    let began = Instant::now();
    pair.coordinator.expect(&["revoke", "b"]).unwrap();
    remembers(pair, &gone);
    said(&format!("the revocation is remembered after {:?}", began.elapsed()));
    gone
}

fn remembers(pair: &Pair, gone: &str) {
    let roll = pair.a.node.folder.join("state/roll.json");
    let read = || {
        let text = std::fs::read_to_string(&roll).unwrap_or_default();
        text.split_once("\"expelled\":").is_some_and(|(_, expelled)| expelled.contains(gone))
    };
    assert!(wait_until(READ, read), "the node does not remember the revocation");
}

/// What the first node says of the revocation.
fn told(pair: &Pair) -> Vec<String> {
    let status = pair.a.node.status().unwrap();
    status.warnings.into_iter().filter(|warning| warning.contains("revoked")).collect()
}

fn warns(pair: &Pair) -> bool {
    pair.a.node.status().is_ok() && told(pair).iter().any(|said| said.contains("node `b` was revoked (its identity "))
}

/// Starts the coordinator on another state, and brings it so far that nodes follow it. It starts once more, so that it
/// knows nothing of the revision that they ask for what changed since, and sends them the whole.
fn take_over(pair: &Pair, state: &Path) {
    pair.coordinator.kill();
    copy(state, &pair.coordinator.folder.join("state"));
    pair.coordinator.start().unwrap();
    assert!(wait_until(STARTING, || pair.coordinator.expect(&["status"]).is_ok()));
    for _ in 0..BEYOND {
        pair.coordinator.expect(&["token", "create", "--site", "east"]).unwrap();
    }
    pair.coordinator.kill();
    pair.coordinator.start().unwrap();
}

fn is_refused(pair: &Pair) {
    assert!(wait_until(BACK, || warns(pair)), "nothing is said of it: {:?}", pair.a.node.status().unwrap().warnings);
    let is_back = || is_shown(&pair.a.node, "b") || reaches(pair);
    assert!(!wait_until(A_WHILE, is_back), "a revoked node is back");
    assert!(is_connected(&pair.a.node));
}

pub(crate) fn with_another_identity(pair: &Pair) {
    assert!(wait_until(STARTING, || reaches(pair)), "the mesh does not work");
    let gone = revoke(pair);
    let b = &pair.b.node;
    b.expect_config(&["leave"]).unwrap();
    b.expect_config(&["join", &token(&pair.coordinator, "west", "b").unwrap()]).unwrap();
    b.start().unwrap();
    assert!(wait_until(STARTING, || reaches(pair)), "the machine does not come back");
    assert_ne!(identity(pair), Some(gone));
    assert_eq!(told(pair), <[String; 0]>::default());
    assert_eq!(pair.a.node.status().unwrap().coordinator.log_alarms, 0);
}

pub(crate) fn brings_nobody_back(pair: &Pair) {
    assert!(wait_until(STARTING, || reaches(pair)), "the mesh does not work");
    let folder = &pair.coordinator.folder;
    let (before, after) = (folder.join("before"), folder.join("after"));
    pair.coordinator.kill();
    copy(&folder.join("state"), &before);
    pair.coordinator.start().unwrap();
    assert!(wait_until(STARTING, || is_connected(&pair.a.node) && is_connected(&pair.b.node)));
    let gone = revoke(pair);
    pair.coordinator.kill();
    copy(&folder.join("state"), &after);

    take_over(pair, &before);
    assert!(wait_until(BACK, || is_connected(&pair.b.node)), "the revoked machine itself is believed there");
    is_refused(pair);
    said(&told(pair)[0]);

    // Who joins after the revocation was never shown it, and knows it all the same.
    pair.coordinator.kill();
    copy(&after, &folder.join("state"));
    pair.coordinator.start().unwrap();
    assert!(pair.a.node.terminate());
    for name in ["enrolment.json", "netmap.json", "netmap.previous", "mark.json", "roll.json"] {
        let _ = std::fs::remove_file(pair.a.node.folder.join("state").join(name));
    }
    let token = pair.coordinator.expect(&["token", "create", "--site", "east"]).unwrap();
    pair.a.node.expect_config(&["join", token.trim()]).unwrap();
    pair.a.node.start().unwrap();
    remembers(pair, &gone);
    pair.a.node.kill();
    take_over(pair, &before);
    pair.a.node.start().unwrap();
    is_refused(pair);
}
