//! `meshd rotate` changes a node's tunnel key under traffic, and nothing is lost.

use std::time::{Duration, Instant};

use mesh_proto::model::netmap::Peer;
use mesh_tests::daemon::{Daemon, wait_until};
use mesh_tests::pair::Pair;
use meshd::base::state_dir::State;

use crate::probe::{Probe, said, ten};

/// How long the former key is answered here; 180 s by default.
pub(crate) const KEYS: &str = "\n[keys]\noverlap = \"6s\"\n";
/// How long a whole change may take.
const DONE: Duration = Duration::from_secs(15);

/// What one node knows of the other.
pub(crate) fn seen_by(node: &Daemon, other: &str) -> Option<Peer> {
    let map = State::open(&node.folder.join("state")).ok()?.netmap()?;
    map.peers.into_iter().find(|(name, _)| name.as_str() == other).map(|(_, peer)| peer)
}

pub(crate) fn under_traffic(pair: &Pair) {
    let (a, b) = (&pair.a.node, &pair.b.node);
    let probes = ten(pair);
    let keys = || (seen_by(b, "a").unwrap().lanes[0].key, seen_by(a, "b").unwrap().lanes[0].key);
    let settled = || {
        seen_by(b, "a").is_some_and(|a| a.previous.is_empty()) && seen_by(a, "b").is_some_and(|b| b.previous.is_empty())
    };
    let first = keys();

    // One alone, and then both at once.
    let began = Instant::now();
    a.expect(&["rotate"]).unwrap();
    assert!(wait_until(DONE, || keys().0 != first.0 && settled()), "the first change does not end");
    let second = keys();
    assert_eq!(second.1, first.1);
    a.expect(&["rotate"]).unwrap();
    b.expect(&["rotate"]).unwrap();
    assert!(wait_until(DONE, || keys().0 != second.0 && keys().1 != second.1 && settled()), "the others do not end");
    std::thread::sleep(Duration::from_secs(1));

    let took = began.elapsed();
    let sums: Vec<_> = probes.into_iter().map(Probe::finish).collect();
    let asked: u64 = sums.iter().map(|(asked, _)| asked).sum();
    said(&format!("{asked} questions on {} flows over three changes of keys in {took:?}", sums.len()));
    assert!(sums.iter().all(|(asked, answered)| asked == answered && *asked > 500), "lost: {sums:?}");

    // A node that restarts uses the new keys, and flows go on.
    let probe = Probe::tcp(&pair.a.pod, (pair.vip("web"), 80)).unwrap();
    a.kill();
    a.start().unwrap();
    let restarted = Instant::now();
    assert!(wait_until(Duration::from_secs(5), || probe.answered_since(restarted)), "a flow did not outlive its keys");
}
