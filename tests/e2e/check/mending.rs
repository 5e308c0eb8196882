//! `meshd check --fix`.

use mesh_tests::daemon::wait_until;
use mesh_tests::skip::{in_path, skip};
use serde_json::json;

use crate::ground::{AGAIN, BrokenMesh, checked, is_well, problems, rc, sh};

const CLOSED: &str = "nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; }; \
    add rule inet fw in tcp dport 8080 drop'";

pub(crate) fn unasked(ground: &BrokenMesh) {
    let node = &ground.b;
    sh(node, CLOSED);
    let output = node.config_verb(&["check", "--fix"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("say --yes as well"), "{said}");
    assert_eq!(problems(node, "input-drops").len(), 1);
    sh(node, "nft delete table inet fw");
}

/// The terminal is one of `script`, which gives the answer to it.
pub(crate) fn asked(ground: &BrokenMesh) {
    let node = &ground.b;
    if in_path("script").is_none() {
        return skip("a question at a terminal", "install bsdutils");
    }
    sh(node, CLOSED);
    let program = std::fs::read_link(format!("/proc/{}/exe", node.id().unwrap())).unwrap();
    let answer = |word: &str| {
        let line = format!("{} check --fix --config {}", program.display(), node.config().display());
        sh(node, &format!("(sleep 1; echo {word}) | script -qec '{line}' /dev/null"))
    };
    answer("n");
    assert_eq!(problems(node, "input-drops").len(), 1, "it was run though the answer is no");
    answer("y");
    assert_eq!(problems(node, "input-drops").len(), 0);
    assert!(wait_until(AGAIN, || ground.calls()));
    sh(node, "nft delete table inet fw");
}

pub(crate) fn given(ground: &BrokenMesh) {
    let node = &ground.b;
    sh(node, CLOSED);
    // Whether this host forwards is its operator's to say.
    sh(node, "sysctl -qw net.ipv4.ip_forward=0");
    let (code, document) = checked(node, &["--fix", "--yes"]);
    assert_eq!(code, Some(0));
    let command = "nft insert rule inet fw in iifname \"mesh0\" accept";
    assert_eq!(document["fixed"], json!([{ "id": "input-drops", "command": command, "error": null }]));
    let left = document["problems"].as_array().unwrap();
    assert!(left.len() == 1 && left[0]["safe"] == false, "{document}");
    assert_eq!(left[0]["command"], "sysctl -w net.ipv4.ip_forward=1");
    assert!(wait_until(AGAIN, || ground.calls()));

    sh(node, left[0]["command"].as_str().unwrap());
    let output = node.config_verb(&["check", "--fix", "--yes"]).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all is well\n");
    assert!(wait_until(AGAIN, || rc(node) == 0));
    sh(node, "nft delete table inet fw");
    is_well(node);
}
