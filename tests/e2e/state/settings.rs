//! A meshd.toml that is broken when the daemon starts.

use std::os::unix::fs::MetadataExt as _;

use mesh_tests::daemon::{tail, wait_until};
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::traffic;

use crate::common::{SOON, document, fetch, heals, metric, warns};

pub(crate) fn broken(pair: &Pair) {
    let node = &pair.a.node;
    heals(node, STARTING);
    let web = pair.vip("web");
    let good = std::fs::read_to_string(node.config()).unwrap();
    let line = good.lines().count() + 1;
    // The keys after it are not read any more, and then one is misspelt.
    for (wrong, place) in [
        (format!("lanes = [\n{good}"), "meshd.toml:".to_owned()),
        (format!("{}\nprot = 1\n", good.trim_end()), format!("meshd.toml:{line}:1: unknown key `prot`")),
    ] {
        node.kill();
        std::fs::write(node.config(), wrong).unwrap();
        node.start().unwrap();
        let reached = || traffic::connect(&pair.a.pod, (web, 80)).is_ok();
        assert!(wait_until(STARTING, reached), "it does not run: {}", tail(&node.log(), 5));
        warns(node, SOON, &[&place, "the one that worked last runs", "systemctl restart meshd"]);
        assert_eq!(metric(node, "meshd_settings_in_force"), 0.0);
        assert_eq!(document(node)["settings"]["in_force"], false);
        assert_eq!(fetch(&node.namespace, "/readyz").0, 200);
    }
    let kept = node.folder.join("state/meshd.toml.accepted");
    assert_eq!(std::fs::metadata(&kept).unwrap().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&kept).unwrap();
    // A sum, the path, and nothing but the text.
    assert!(text.ends_with(&format!("{}\n{good}", node.config().display())), "{text}");
    assert!(text.len() < good.len() + node.config().as_os_str().len() + 100, "{text}");

    std::fs::write(node.config(), &good).unwrap();
    warns(node, 2 * SOON, &["reads well now", "systemctl restart meshd"]);
    assert!(node.terminate());
    node.start().unwrap();
    heals(node, STARTING);
    assert_eq!(metric(node, "meshd_settings_in_force"), 1.0);
}

pub(crate) fn crash_loop(pair: &Pair) {
    let node = &pair.a.node;
    let good = std::fs::read_to_string(node.config()).unwrap();
    assert!(node.terminate());
    // There is none of an older version.
    let _ = std::fs::remove_file(node.folder.join("state/meshd.toml.accepted"));
    std::fs::write(node.config(), format!("prot = 1\n{good}")).unwrap();
    for _ in 0..3 {
        node.start().unwrap();
        assert_eq!(node.exit_code(), Some(2));
    }
    let output = node.verb(&["status"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("3 times in a row") && said.contains("meshd.toml:1:1: unknown key `prot`"), "{said}");

    std::fs::write(node.config(), &good).unwrap();
    node.start().unwrap();
    heals(node, STARTING);
    let starts = node.folder.join("data/starts");
    assert!(wait_until(STARTING, || !starts.exists()), "it is well, and still counts");
    assert!(node.terminate());
    let output = node.verb(&["status"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(4) && !said.contains("in a row"), "{said}");
    node.start().unwrap();
    heals(node, STARTING);
}
