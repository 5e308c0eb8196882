//! `meshd check --fix`.

use mesh_tests::daemon::wait_until;
use serde_json::json;

use crate::ground::{AGAIN, Ground, checked, is_well, problems, rc, sh};

const CLOSED: &str = "nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; }; \
    add rule inet fw in tcp dport 8080 drop'";

pub(crate) fn unasked(ground: &Ground) {
    let node = &ground.b;
    sh(node, CLOSED);
    let output = node.config_verb(&["check", "--fix"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("say --yes as well"), "{said}");
    assert_eq!(problems(node, "input-drops").len(), 1);
    sh(node, "nft delete table inet fw");
}

pub(crate) fn given(ground: &Ground) {
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
