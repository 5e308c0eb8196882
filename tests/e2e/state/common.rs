//! The mesh that all of them stand on, and how a node tells what is wrong.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_tests::daemon::{Binaries, Daemon, tail, wait_until};
use mesh_tests::netns::Namespace;
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::topology::Underlay;
use mesh_tests::traffic;
use serde_json::Value;

/// How soon the operator can see it.
pub(crate) const SOON: Duration = Duration::from_secs(2);
/// How soon what was refused is tried again, and some more.
pub(crate) const AGAIN: Duration = Duration::from_secs(10);
/// The size of the disks, in kB.
pub(crate) const DISK: u32 = 512;

/// Two nodes of two lanes, with programs in their pods.
pub(crate) fn set_up(binaries: &Binaries, word: &str) -> io::Result<Pair> {
    let pair = Pair::start(word, binaries, Underlay::V4, 2)?;
    for side in [&pair.a, &pair.b] {
        traffic::serve_tcp(&side.pod, 8080)?;
    }
    Ok(pair)
}

/// Gives the first node a small disk for its state, and one for its flows.
pub(crate) fn on_disks(pair: Pair) -> io::Result<Pair> {
    let node = &pair.a.node;
    node.kill();
    let (old, new) = (node.folder.join("state"), state_dir(node));
    std::fs::create_dir(&new)?;
    for folder in [&new, &data_dir(node)] {
        node.namespace.disk(folder, DISK).map_err(io::Error::other)?;
    }
    let former = old.clone();
    node.namespace.run(move || {
        for entry in std::fs::read_dir(old)? {
            let entry = entry?;
            std::fs::copy(entry.path(), new.join(entry.file_name()))?;
        }
        Ok::<_, io::Error>(())
    })?;
    // One state directory belongs to a mesh, and no second one to the same.
    std::fs::remove_dir_all(former)?;
    let config = std::fs::read_to_string(node.config())?;
    std::fs::write(node.config(), config.replace("/state\"", "/disk\""))?;
    node.start()?;
    let well = || is_well(node);
    if wait_until(STARTING, well) {
        return Ok(pair);
    }
    Err(io::Error::other(format!("the node is not well: {}", tail(&node.log(), 15))))
}

/// Where the state of the first node lies.
pub(crate) fn state_dir(node: &Daemon) -> PathBuf {
    node.folder.join("disk")
}

/// Where its flows lie.
pub(crate) fn data_dir(node: &Daemon) -> PathBuf {
    node.folder.join("data")
}

/// Says whether it is a member that speaks to the coordinator, and nothing is wrong.
pub(crate) fn is_well(node: &Daemon) -> bool {
    rc(node) == 0 && node.status().is_ok_and(|s| s.coordinator.connected)
}

/// The exit code of `meshd status`.
pub(crate) fn rc(node: &Daemon) -> i32 {
    node.verb(&["status"]).unwrap().status.code().unwrap_or(-1)
}

/// Waits until the node warns of all of this, with the exit code 3, and returns the sentence.
pub(crate) fn warns(node: &Daemon, patience: Duration, words: &[&str]) -> String {
    let mut found = None;
    let told = || {
        let warnings = node.status().map(|s| s.warnings).unwrap_or_default();
        found = warnings.into_iter().find(|w| words.iter().all(|word| w.contains(word)));
        found.is_some() && rc(node) == 3
    };
    let in_time = wait_until(patience, told);
    assert!(in_time, "{} does not warn of {words:?}: {:?}", node.name, node.status().map(|s| s.warnings));
    found.unwrap()
}

/// Waits until nothing is wrong any more.
pub(crate) fn heals(node: &Daemon, patience: Duration) {
    let well = wait_until(patience, || is_well(node));
    assert!(well, "{} is not well again: {:?}", node.name, node.status().map(|s| s.warnings));
}

/// The value of a gauge or counter without labels.
pub(crate) fn metric(node: &Daemon, name: &str) -> f64 {
    let text = fetch(&node.namespace, "/metrics").1;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).trim().parse().unwrap()
}

/// The status and the body that the listener for metrics answers with.
pub(crate) fn fetch(from: &Namespace, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let exchange = move || -> io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, 9586)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = from.run(exchange).unwrap();
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap();
    (status, answer)
}

/// Fills a disk to its last byte.
pub(crate) fn fill(node: &Daemon, folder: &Path) {
    let path = folder.join("fill");
    node.namespace.run(move || {
        let mut file = std::fs::File::create(path).unwrap();
        while file.write(&[0; 4096]).is_ok_and(|n| n > 0) {}
    });
}

/// Makes room on it again.
pub(crate) fn empty(node: &Daemon, folder: &Path) {
    let path = folder.join("fill");
    node.namespace.run(move || std::fs::remove_file(path)).unwrap();
}

/// The document of `meshd status`.
pub(crate) fn document(node: &Daemon) -> Value {
    node.json(&["status"]).unwrap()
}
