//! What is good to know.

use std::process::Command;

use mesh_tests::daemon::run;
use serde_json::Value;

use crate::ground::{BrokenMesh, check, is_well, rc, sh};

fn noted(document: &Value, id: &str) -> Option<Value> {
    document["named_notes"].as_array()?.iter().find(|note| note["id"] == id).cloned()
}

pub(crate) fn resolver(ground: &BrokenMesh) {
    let node = &ground.a;
    assert_eq!(noted(&check(node).1, "resolver"), None);
    // Only the file of this namespace is written.
    sh(node, "grep -q 'nameserver 241.0.0.53' /etc/resolv.conf && echo nameserver 172.31.1.1 > /etc/resolv.conf");
    let (code, document) = check(node);
    let note = noted(&document, "resolver").unwrap_or_else(|| panic!("{document}"));
    assert_eq!((code, rc(node)), (Some(0), 0));
    let cause = note["cause"].as_str().unwrap();
    assert!(cause.contains("172.31.1.1") && cause.contains(".default.mesh.internal"), "{cause}");

    let program = std::fs::read_link(format!("/proc/{}/exe", node.id().unwrap())).unwrap();
    let mut pod = Command::new(program);
    pod.args(["check", "-o", "json", "--config"]).arg(node.config()).env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let pod: Value = serde_json::from_slice(&run(&node.namespace, pod).unwrap().stdout).unwrap();
    assert_eq!(noted(&pod, "resolver"), None, "{pod}");

    sh(node, note["command"].as_str().unwrap());
    assert_eq!(noted(&check(node).1, "resolver"), None);
    sh(node, "grep -q 'nameserver 172.31.1.1' /etc/resolv.conf");
    is_well(node);
}

pub(crate) fn legacy(ground: &BrokenMesh) {
    let node = &ground.a;
    assert_eq!(noted(&check(node).1, "legacy-iptables"), None);
    sh(node, "iptables-legacy -A INPUT -p tcp --dport 22 -j ACCEPT");
    let (code, document) = check(node);
    let note = noted(&document, "legacy-iptables").unwrap_or_else(|| panic!("{document}"));
    assert!(note["cause"].as_str().unwrap().contains("(tables filter)"), "{note}");
    assert_eq!((code, rc(node)), (Some(0), 0));
}
