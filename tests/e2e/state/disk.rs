//! A disk that is full, or read-only.

use std::net::Ipv4Addr;

use mesh_tests::daemon::{tail, wait_until};
use mesh_tests::pair::{Pair, SERVICES, STARTING};
use mesh_tests::topology::edit;
use mesh_tests::traffic;

use crate::common::{AGAIN, SOON, data_dir, document, empty, fetch, fill, heals, metric, state_dir, warns};

/// What lets pods of the second node call the first one's service.
const RULE: &str = "[[allow]]\nfrom = [\"web\"]\nto = [\"back\"]\n";

/// How the node judges a call of the other's pod to its own service: 0 or 5; 4 while it does not run.
fn why(pair: &Pair) -> i32 {
    let block = pair.b.node.status().unwrap().node.unwrap().blocks[0];
    let pod = Ipv4Addr::from(u32::from(block.flat.network()) + 10);
    pair.a.node.verb(&["why", &pod.to_string(), "back:80"]).unwrap().status.code().unwrap_or(-1)
}

pub(crate) fn full(pair: &Pair) {
    let (node, disk) = (&pair.a.node, state_dir(&pair.a.node));
    assert_eq!(why(pair), 0);
    fill(node, &disk);
    let cut = SERVICES.replace(RULE, "");
    assert_ne!(cut, SERVICES);
    edit(&pair.coordinator, &cut).unwrap();
    assert!(wait_until(STARTING, || why(pair) == 5), "the edit does not arrive");
    let revision = node.status().unwrap().coordinator.revision;

    warns(node, SOON, &["netmap.json", "No space left on device", "df -h", "removed permissions"]);
    assert!(metric(node, "meshd_unstored_files") >= 1.0 && metric(node, "meshd_store_failures_total") >= 1.0);
    let waits = document(node)["unstored"].clone();
    assert!(waits.as_array().is_some_and(|list| list.iter().any(|file| file["file"] == "netmap.json")), "{waits}");
    // Packets pass all the same.
    for path in ["/livez", "/readyz"] {
        assert_eq!(fetch(&node.namespace, path).0, 200, "{path}");
    }

    empty(node, &disk);
    heals(node, AGAIN);
    assert!(metric(node, "meshd_unstored_files") == 0.0);
    pair.coordinator.kill();
    node.kill();
    node.start().unwrap();
    assert!(wait_until(STARTING, || why(pair) != 4));
    assert_eq!(why(pair), 5, "a removed permission is back");
    assert_eq!(node.status().unwrap().coordinator.revision, revision);

    pair.coordinator.start().unwrap();
    edit(&pair.coordinator, SERVICES).unwrap();
    assert!(wait_until(2 * STARTING, || why(pair) == 0));
    heals(node, STARTING);
}

pub(crate) fn keys(pair: &Pair) {
    let (node, disk) = (&pair.a.node, state_dir(&pair.a.node));
    fill(node, &disk);
    node.expect(&["rotate"]).unwrap();
    warns(node, SOON, &["tunnel key is not changed", "No space left on device"]);
    empty(node, &disk);
    let changed = || std::fs::read_to_string(node.log()).is_ok_and(|log| log.contains("the tunnel key is changed"));
    assert!(wait_until(AGAIN, changed), "the key is not changed");
    heals(node, AGAIN);
}

pub(crate) fn read_only(pair: &Pair) {
    let (node, disk) = (&pair.a.node, state_dir(&pair.a.node));
    let back = pair.vip("back");
    pair.coordinator.kill();
    node.kill();
    node.namespace.read_only(&disk, true).unwrap();
    node.start().unwrap();
    let reached = || traffic::connect(&pair.b.pod, (back, 80)).is_ok();
    assert!(wait_until(STARTING, reached), "it does not start from its cache: {}", tail(&node.log(), 15));
    warns(node, SOON, &["read-only", "remount,rw"]);
    let second = node.config_verb(&["run"]).unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("another meshd (process "), "{said}");
    assert!(reached() && node.running());

    node.namespace.read_only(&disk, false).unwrap();
    pair.coordinator.start().unwrap();
    heals(node, STARTING);
}

pub(crate) fn flows(pair: &Pair) {
    let (node, disk) = (&pair.a.node, data_dir(&pair.a.node));
    let (web, back) = (pair.vip("web"), pair.vip("back"));
    fill(node, &disk);
    // Each of them lies on a page of its own, as good as always.
    let streams: Vec<_> = (0..20).map(|_| traffic::connect(&pair.b.pod, (back, 80)).unwrap()).collect();
    warns(node, SOON, &["data/flows", "No space left on device", "cuts connections"]);
    assert!(metric(node, "meshd_unstored_files") >= 1.0);
    empty(node, &disk);
    heals(node, AGAIN);
    node.kill();
    node.start().unwrap();
    heals(node, STARTING);
    // The other node finds out by itself, too, that there is a new tunnel, but takes its time.
    assert!(wait_until(STARTING, || traffic::connect(&pair.a.pod, (web, 80)).is_ok()));
    for mut stream in streams {
        traffic::greeting(&mut stream).unwrap();
        assert!(traffic::echoes(&stream, 1000).unwrap(), "a connection was cut");
    }
}
