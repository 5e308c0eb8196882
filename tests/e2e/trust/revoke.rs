//! `mesh-coordinator revoke` ends new and established flows everywhere in 2 s, whichever way the news travels.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use mesh_tests::daemon::wait_until;
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::topology::{COORDINATOR_PORT, token};
use mesh_tests::traffic;

use crate::probe::{Probe, said};

/// The promise.
const MOST: Duration = Duration::from_secs(2);
/// How long nothing may come before a flow counts as cut.
const SILENT: Duration = Duration::from_millis(800);
/// An `ip rule` of this test, and a table that is empty.
const RULE: (u32, u8) = (50, 200);

/// Flows of every kind between the two nodes, in both directions.
struct Flows {
    web: Ipv4Addr,
    probes: [Probe; 4],
}

impl Flows {
    /// Lets the second node be a member again, if it is none, and opens the flows.
    fn open(pair: &Pair) -> Self {
        let b = &pair.b.node;
        let nodes = pair.coordinator.json(&["nodes"]).unwrap();
        if !nodes["nodes"].as_array().unwrap().iter().any(|n| n["name"] == "b") {
            b.expect_config(&["leave"]).unwrap();
            let token = token(&pair.coordinator, "west", "b").unwrap();
            b.expect_config(&["join", &token]).unwrap();
            b.start().unwrap();
        }
        let (web, back) = (pair.vip("web"), pair.vip("back"));
        let reached = |from, vip| wait_until(STARTING, || traffic::seen_as(from, (vip, 80)).is_ok());
        assert!(reached(&pair.a.pod, web) && reached(&pair.b.pod, back), "the mesh does not work");
        let probes = [
            Probe::tcp(&pair.a.pod, (web, 80)).unwrap(),
            Probe::udp(&pair.a.pod, (web, 7)).unwrap(),
            Probe::tcp(&pair.b.pod, (back, 80)).unwrap(),
            Probe::udp(&pair.b.pod, (back, 7)).unwrap(),
        ];
        let flows = Self { web, probes };
        flows.all_answered();
        flows
    }

    /// Waits until each of them is answered once more.
    fn all_answered(&self) {
        let now = Instant::now();
        let all = || self.probes.iter().all(|p| p.answered_since(now));
        assert!(wait_until(Duration::from_secs(5), all), "a flow does not work");
    }

    /// They all end in time after a moment, no new one begins, and none comes back.
    fn are_cut(&self, pair: &Pair, since: Instant, path: &str) {
        let quiet = || self.probes.iter().all(|p| p.last().is_some_and(|last| last.elapsed() > SILENT));
        assert!(wait_until(MOST + SILENT * 2, quiet), "{path}: flows go on");
        let took = self.probes.iter().filter_map(Probe::last).map(|last| last.saturating_duration_since(since)).max();
        assert!(took.is_some_and(|took| took <= MOST), "{path}: the last flow was cut after {took:?}");
        assert!(traffic::connect(&pair.a.pod, (self.web, 80)).is_err(), "{path}: a new connection works");
        assert!(!self.probes.iter().any(|p| p.last().is_some_and(|last| last.elapsed() < SILENT)), "{path}");
        said(&format!("{path}: the last of four flows was cut after {:?}", took.unwrap_or_default()));
    }
}

fn revoke(pair: &Pair) {
    pair.coordinator.expect(&["revoke", "b"]).unwrap();
}

pub(crate) fn at_once(pair: &Pair) {
    let flows = Flows::open(pair);
    let began = Instant::now();
    revoke(pair);
    flows.are_cut(pair, began, "delta");
}

pub(crate) fn after_a_restart(pair: &Pair) {
    let flows = Flows::open(pair);
    pair.a.node.kill();
    revoke(pair);
    let began = Instant::now();
    pair.a.node.start().unwrap();
    flows.are_cut(pair, began, "reconnect");
}

pub(crate) fn by_a_snapshot(pair: &Pair) {
    let flows = Flows::open(pair);
    let a = &pair.a.node;
    a.namespace.block_tcp(COORDINATOR_PORT).unwrap();
    pair.coordinator.kill();
    let connected = || a.status().is_ok_and(|s| s.coordinator.connected);
    assert!(wait_until(Duration::from_secs(5), || !connected()));
    pair.coordinator.start().unwrap();
    assert!(wait_until(Duration::from_secs(5), || pair.coordinator.expect(&["status"]).is_ok()));
    revoke(pair);
    flows.all_answered();
    let began = Instant::now();
    a.namespace.forget_routing(RULE.0, RULE.1).unwrap();
    flows.are_cut(pair, began, "snapshot");
    assert!(connected());
}
