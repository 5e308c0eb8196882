//! What `meshd check` finds without a daemon.

use std::path::Path;
use std::process::Command;

use mesh_tests::daemon::{Daemon, run};
use mesh_tests::pair::Pair;
use serde_json::Value;

/// Runs it; returns its exit code and what it prints.
fn check(node: &Daemon) -> (i32, String) {
    let output = node.config_verb(&["check"]).unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Nothing is wrong.
fn is_well(node: &Daemon) {
    let (code, said) = check(node);
    assert!(code == 0 && !said.contains("error"), "{said}");
}

pub(crate) fn no_tun(pair: &Pair) {
    let node = &pair.a.node;
    is_well(node);
    node.namespace.disk(Path::new("/dev/net"), 64).unwrap();
    let (code, said) = check(node);
    assert!(code == 1 && said.contains("error[no-tun]: /dev/net/tun cannot be opened"), "{said}");
    let document: Value = serde_json::from_slice(&node.config_verb(&["check", "-o", "json"]).unwrap().stdout).unwrap();
    let command = document["problems"][0]["command"].as_str().unwrap();
    assert!(said.contains(&format!("; run `{command}`")), "{said}");

    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    assert!(run(&node.namespace, shell).unwrap().status.success(), "{command}");
    is_well(node);
}

pub(crate) fn no_keys(pair: &Pair) {
    let node = &pair.a.node;
    is_well(node);
    let (key, away) = (node.folder.join("state/identity.key"), node.folder.join("away"));
    std::fs::rename(&key, &away).unwrap();
    let (code, said) = check(node);
    assert!(code == 1 && said.contains("error[keys]: ") && said.contains("identity.key is lost"), "{said}");
    assert!(!key.exists(), "it made another");
    std::fs::rename(&away, &key).unwrap();
    is_well(node);
}

pub(crate) fn not_joined(pair: &Pair) {
    let node = &pair.a.node;
    let good = std::fs::read_to_string(node.config()).unwrap();
    std::fs::write(node.config(), good.replace("/state\"", "/nowhere\"")).unwrap();
    let (code, said) = check(node);
    assert!(
        code == 3 && said.contains("warning[not-joined]: ") && said.contains("meshd join --token-file FILE"),
        "{said}"
    );
    assert!(!said.contains("all is well"), "{said}");
    std::fs::write(node.config(), good).unwrap();
    is_well(node);
}
