//! A coordinator that shows two nodes two histories is found out by both, in the tunnel between them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_proto::trust::audit_log::LogPosition;
use mesh_tests::daemon::{Daemon, wait_until};
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::topology::COORDINATOR_PORT;
use mesh_tests::traffic;

use crate::probe::{Probe, said};

/// An `ip rule` of `block_tcp`, and its table.
const RULE: (u32, u8) = (50, 200);
/// How long the news of the log may take: each 5 s, and so does looking at it.
const TOLD: Duration = Duration::from_secs(30);

fn told(node: &Daemon) -> Option<LogPosition> {
    node.status().ok()?.coordinator.log
}

pub(crate) fn is_connected(node: &Daemon) -> bool {
    node.status().is_ok_and(|status| status.coordinator.connected)
}

pub(crate) fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Starts the coordinator on a copy of its state, makes it write one entry, and lets one node alone hear of it.
fn show(pair: &Pair, state: &Path, to: &Daemon, other: &Daemon) -> LogPosition {
    let live = pair.coordinator.folder.join("state");
    pair.coordinator.kill();
    copy(state, &live);
    // Nobody hears both.
    let _ = to.namespace.forget_routing(RULE.0, RULE.1);
    other.namespace.block_tcp(COORDINATOR_PORT).unwrap();
    pair.coordinator.start().unwrap();
    assert!(wait_until(STARTING, || is_connected(to)), "{} does not come back", to.name);
    let before = told(to);
    pair.coordinator.expect(&["token", "create", "--site", "east"]).unwrap();
    assert!(wait_until(TOLD, || told(to) != before), "{} is not told of the log", to.name);
    told(to).unwrap()
}

pub(crate) fn on_both_sides(pair: &Pair) {
    let (a, b) = (&pair.a.node, &pair.b.node);
    assert!(wait_until(STARTING, || traffic::seen_as(&pair.a.pod, (pair.vip("web"), 80)).is_ok()));
    assert!(wait_until(TOLD, || told(a).is_some() && told(a) == told(b)), "{:?} and {:?}", told(a), told(b));
    let warned = |node: &Daemon| {
        let status = node.status().unwrap();
        let warnings = status.warnings.into_iter().filter(|warning| warning.contains("two histories"));
        (status.coordinator.log_alarms, warnings.collect::<Vec<_>>())
    };
    assert_eq!((warned(a).0, warned(b).0), (0, 0));

    let probe = Probe::tcp(&pair.a.pod, (pair.vip("web"), 80)).unwrap();
    let saved = pair.coordinator.folder.join("saved");
    pair.coordinator.kill();
    copy(&pair.coordinator.folder.join("state"), &saved);
    let one = show(pair, &saved, a, b);
    let two = show(pair, &saved, b, a);
    assert_eq!((one.epoch, one.head.seq), (two.epoch, two.head.seq));
    assert_ne!(one.head.hash, two.head.hash);

    let both = || warned(a).0 > 0 && warned(b).0 > 0;
    assert!(wait_until(TOLD, both), "nobody is warned: {:?} and {:?}", warned(a), warned(b));
    assert!(!warned(a).1.is_empty() && !warned(b).1.is_empty(), "{:?} and {:?}", warned(a), warned(b));
    let (asked, answered) = probe.finish();
    assert_eq!(asked, answered, "traffic goes on");
    said(&warned(a).1[0]);
}
