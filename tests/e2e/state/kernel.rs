//! An interface that somebody renames, and a socket that somebody removes.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use mesh_tests::daemon::{run, wait_until};
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::traffic;

use crate::common::{SOON, document, fetch, heals, metric, warns};

/// The name that somebody gives to the interface.
const OTHER: &str = "tun7";

fn reached(pair: &Pair) -> bool {
    let (web, back) = (pair.vip("web"), pair.vip("back"));
    traffic::connect(&pair.a.pod, (web, 80)).is_ok() && traffic::connect(&pair.b.pod, (back, 80)).is_ok()
}

pub(crate) fn renamed_once(pair: &Pair) {
    let node = &pair.a.node;
    assert!(wait_until(STARTING, || reached(pair)));
    heals(node, STARTING);
    node.namespace.rename_link("mesh0", OTHER).unwrap();
    assert!(wait_until(SOON, || node.namespace.index("mesh0").is_ok()), "it is not renamed back");
    assert!(wait_until(SOON, || reached(pair)), "nothing passes");
    heals(node, SOON);
    let upkeep = document(node)["upkeep"].clone();
    assert!(upkeep["last_mended"].to_string().contains("renamed") && upkeep["failed"] == serde_json::json!([]));
    assert!(metric(node, "meshd_upkeep_mended_total") >= 1.0);
}

pub(crate) fn renamed_again(pair: &Pair) {
    let node = &pair.a.node;
    if document(node)["upkeep"]["mended"] == 0 {
        renamed_once(pair);
    }
    node.namespace.rename_link("mesh0", OTHER).unwrap();
    let sentence = warns(node, SOON, &["mesh0", OTHER, "who renames it"]);
    assert_eq!(fetch(&node.namespace, "/readyz").0, 503);
    assert_eq!(fetch(&node.namespace, "/livez").0, 200);
    assert_eq!((metric(node, "meshd_upkeep_failed"), metric(node, "meshd_upkeep_stopped")), (1.0, 1.0));
    // It looks once a second.
    assert!(!wait_until(2 * SOON, || node.namespace.index("mesh0").is_ok()), "it was renamed back twice");

    let command = sentence.split('`').find(|words| words.starts_with("ip link ")).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    let done = run(&node.namespace, shell).unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    heals(node, SOON);
    assert_eq!(fetch(&node.namespace, "/readyz").0, 200);
    assert!(wait_until(SOON, || reached(pair)), "nothing passes");
}

pub(crate) fn socket(pair: &Pair) {
    for daemon in [&pair.a.node, &pair.coordinator] {
        assert!(daemon.json(&["status"]).is_ok());
        std::fs::remove_file(daemon.socket()).unwrap();
        let back = || daemon.json(&["status"]).is_ok();
        assert!(wait_until(SOON, back), "{} is not reached any more", daemon.name);
        assert_eq!(std::fs::metadata(daemon.socket()).unwrap().mode() & 0o777, 0o600);
    }
}
