//! `meshd rotate --identity` changes the key that a node is known by: under traffic, killed half-way, and in lock mode.

use std::time::{Duration, Instant};

use mesh_proto::base::id::IdentityKey;
use mesh_proto::ops::status::LockStatus;
use mesh_tests::daemon::{Daemon, wait_until};
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::topology::token;
use mesh_tests::traffic;
use meshd::base::state_dir::State;
use meshd::keys::node::NodeKeys;

use crate::probe::{Probe, said, ten};
use crate::rotate::seen_by;

/// How long a peer may take to hear of it.
const HEARD: Duration = Duration::from_secs(5);

fn state(node: &Daemon) -> State {
    State::open(&node.folder.join("state")).unwrap()
}

/// The key that a running node goes by; none while the coordinator does not know it by that.
fn own(node: &Daemon) -> Option<IdentityKey> {
    let standing: LockStatus = serde_json::from_value(node.json(&["lock", "status"]).ok()?).ok()?;
    Some(standing.identity)
}

/// Whether each node knows the other by the key that this one goes by, and refused nothing on the way.
fn agree(pair: &Pair) -> bool {
    let knows = |node: &Daemon, other: &Daemon| {
        let known = seen_by(node, &other.name).and_then(|peer| Some(peer.proof?.identity));
        let refused = node.status().map_or(1, |status| status.coordinator.records_refused);
        known.is_some() && known == own(other) && refused == 0
    };
    let (a, b) = (&pair.a.node, &pair.b.node);
    a.status().is_ok() && b.status().is_ok() && knows(a, b) && knows(b, a)
}

fn changed(node: &Daemon) {
    let before = own(node).unwrap();
    let told = node.expect(&["rotate", "--identity"]).unwrap();
    let after = own(node).unwrap();
    assert_ne!(before, after);
    assert!(told.contains(&format!("from {before} to {after}")), "{told}");
    assert!(NodeKeys::next(&state(node)).unwrap().is_none());
}

pub(crate) fn under_traffic(pair: &Pair) {
    let (a, b) = (&pair.a.node, &pair.b.node);
    let probes = ten(pair);

    let began = Instant::now();
    for node in [a, b, a] {
        changed(node);
        assert!(wait_until(HEARD, || agree(pair)), "the peer of {} does not know its key", node.name);
    }
    std::thread::sleep(Duration::from_secs(1));

    let took = began.elapsed();
    let sums: Vec<_> = probes.into_iter().map(Probe::finish).collect();
    let asked: u64 = sums.iter().map(|(asked, _)| asked).sum();
    said(&format!("{asked} questions on {} flows over three changes of identity in {took:?}", sums.len()));
    assert!(sums.iter().all(|(asked, answered)| asked == answered && *asked > 100), "lost: {sums:?}");
}

pub(crate) fn after_restarts(pair: &Pair) {
    let keys = [own(&pair.a.node), own(&pair.b.node)];
    for node in [&pair.a.node, &pair.b.node] {
        node.kill();
        node.start().unwrap();
    }
    let web = pair.vip("web");
    assert!(wait_until(STARTING, || agree(pair)), "they do not know each other any more");
    assert!(wait_until(STARTING, || traffic::seen_as(&pair.a.pod, (web, 80)).is_ok()));
    assert_eq!([own(&pair.a.node), own(&pair.b.node)], keys);
    // Nobody is warned: the log explains the keys.
    assert!(pair.coordinator.expect(&["log"]).unwrap().contains("changed its identity key from"));
}

/// A node was killed after it had made its next key, before or after the coordinator took it.
pub(crate) fn killed_half_way(pair: &Pair) {
    let b = &pair.b.node;
    let [present, next, former] =
        ["state/identity.key", "state/identity.next", "former"].map(|name| b.folder.join(name));
    b.kill();
    std::fs::copy(&present, &former).unwrap();
    let key = NodeKeys::make_next(&state(b)).unwrap().identity();
    b.start().unwrap();
    let goes_on = || b.status().is_ok() && own(b) == Some(key) && agree(pair);
    assert!(wait_until(STARTING, goes_on), "it was not taken, and is not asked for again");

    b.kill();
    std::fs::rename(&present, &next).unwrap();
    std::fs::copy(&former, &present).unwrap();
    b.start().unwrap();
    assert!(wait_until(STARTING, goes_on), "it was taken, and the node does not hear of it");
    assert!(!next.exists());

    // Without a coordinator nothing is begun.
    pair.coordinator.kill();
    assert!(wait_until(STARTING, || b.status().is_ok_and(|s| !s.coordinator.connected)));
    let refused = b.expect(&["rotate", "--identity"]).unwrap_err().to_string();
    assert!(refused.contains("a coordinator has to confirm") && !next.exists(), "{refused}");
    pair.coordinator.start().unwrap();
    let connected = |node: &Daemon| node.status().is_ok_and(|s| s.coordinator.connected);
    assert!(wait_until(STARTING, || connected(&pair.a.node) && connected(b)));
}

pub(crate) fn copied(pair: &Pair) {
    let a = &pair.a.node;
    let copy = a.folder.join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(a.folder.join("state/identity.key"), copy.join("identity.key")).unwrap();
    changed(a);

    let config = std::fs::read_to_string(a.config()).unwrap();
    let state = a.folder.join("state").display().to_string();
    std::fs::write(a.config(), config.replace(&state, &copy.display().to_string())).unwrap();
    let token = token(&pair.coordinator, "east", "c").unwrap();
    let refused = a.expect_config(&["join", &token]).unwrap_err().to_string();
    std::fs::write(a.config(), config).unwrap();
    assert!(refused.contains("`a` replaced this identity key"), "{refused}");
    assert!(wait_until(HEARD, || agree(pair)));
}

pub(crate) fn locked(pair: &Pair) {
    let (a, b) = (&pair.a.node, &pair.b.node);
    let file = pair.coordinator.folder.join("lock.key");
    pair.coordinator.expect(&["lock", "init", "--key", file.to_str().unwrap()]).unwrap();
    let locked = || [a, b].iter().all(|n| n.status().is_ok_and(|s| s.coordinator.lock.is_some()));
    assert!(wait_until(STARTING, locked), "the nodes do not learn of the lock");
    changed(b);
    assert!(wait_until(HEARD, || agree(pair)), "the lock's signature does not hold for the next key");
    // From the cache, and by a snapshot after it; and by a node that knew nothing.
    a.kill();
    for name in ["netmap.json", "netmap.previous"] {
        let _ = std::fs::remove_file(a.folder.join("state").join(name));
    }
    a.start().unwrap();
    b.kill();
    b.start().unwrap();
    assert!(wait_until(STARTING, || agree(pair)), "it does not hold after a restart");
    let web = pair.vip("web");
    assert!(wait_until(STARTING, || traffic::seen_as(&pair.a.pod, (web, 80)).is_ok()));
    let standing: LockStatus = serde_json::from_value(a.json(&["lock", "status"]).unwrap()).unwrap();
    assert!(standing.waiting.is_empty() && standing.aged.is_empty(), "{standing:?}");
}
