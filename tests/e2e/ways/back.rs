//! Ways back into a mesh: each line that the programs print in backticks is taken out of what they printed, run in a
//! shell as it stands, and the mesh works then.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_proto::trust::join_token::JoinToken;
use mesh_tests::daemon::{Binaries, Daemon, tail, wait_until};
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::snapshot;
use mesh_tests::topology::Underlay;
use mesh_tests::traffic;

/// How long until a node knows what its coordinator says to it: it asks at most each 15 s.
const TOLD: Duration = Duration::from_secs(40);
/// The files that hold a key of a node's.
const KEYS: [&str; 6] =
    ["identity.key", "identity.next", "tunnel.key", "tunnel.former", "tunnel.first", "preshared.keys"];

/// A mesh of two nodes, and the commands as an installation has them.
pub(crate) struct WaysBack {
    pair: Pair,
    bin: PathBuf,
}

pub(crate) fn set_up(binaries: &Binaries) -> io::Result<WaysBack> {
    let pair = Pair::start("wb", binaries, Underlay::V4, 1)?;
    traffic::serve_tcp(&pair.b.pod, 8080)?;
    let bin = pair.network.folder.join("bin");
    for daemon in [&pair.a.node, &pair.b.node, &pair.coordinator] {
        let program = if daemon.name == "coordinator" { "mesh-coordinator" } else { "meshd" };
        let folder = bin.join(&daemon.name);
        fs::create_dir_all(&folder)?;
        // An installation finds its files in /etc and /run; these lie elsewhere.
        let (config, socket) = (daemon.config().display(), daemon.socket().display());
        let real = binaries.path(program);
        let words = format!(
            "case $1 in\njoin|leave|restore|init|check) set -- \"$@\" --config {config} ;;\n*) set -- \"$@\" --socket {socket} ;;\nesac\nexec {} \"$@\"",
            real.display()
        );
        script(&folder.join(program), &words)?;
        script(&folder.join("systemctl"), &format!("echo \"$*\" >> {}", folder.join("units").display()))?;
    }
    let ground = WaysBack { pair, bin };
    assert!(works(&ground), "the mesh does not work");
    Ok(ground)
}

fn script(path: &Path, words: &str) -> io::Result<()> {
    fs::write(path, format!("#!/bin/sh\n{words}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Says whether a pod behind `a` reaches the one behind `b`, before long.
fn works(ground: &WaysBack) -> bool {
    let WaysBack { pair, .. } = ground;
    wait_until(STARTING, || {
        pair.a.node.status().is_ok() && traffic::seen_as(&pair.a.pod, (pair.vip("web"), 80)).is_ok()
    })
}

/// Runs a line in a shell where a daemon is, with a text to be pasted, and obeys what it says of units.
fn shell(ground: &WaysBack, at: &Daemon, line: &str, pasted: &str) -> Output {
    let folder = ground.bin.join(&at.name);
    let mut command = Command::new("/bin/sh");
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
    command.args(["-c", line]).env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = at.namespace.spawn(command).unwrap();
    child.stdin.take().unwrap().write_all(pasted.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let units = folder.join("units");
    for line in fs::read_to_string(&units).unwrap_or_default().lines() {
        match line {
            "stop mesh-coordinator" => assert!(!at.running(), "it is stopped after the line only"),
            "start mesh-coordinator" => at.start().unwrap(),
            other => panic!("no unit that is known here: {other}"),
        }
    }
    let _ = fs::remove_file(units);
    let _ = writeln!(io::stdout(), "    {}: {line} -> {}", at.name, output.status);
    output
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// What was printed in backticks and begins with a word: it names no placeholder.
fn advice(said: &str, word: &str) -> String {
    let quoted = said.split('`').skip(1).step_by(2);
    let found = quoted.filter(|line| line.starts_with(word)).last();
    let line = found.unwrap_or_else(|| panic!("nothing that begins with `{word}`: {said}")).to_owned();
    assert!(!["SITE", "NAME", "FILE", "TOKEN"].iter().any(|blank| line.contains(blank)), "a placeholder: {line}");
    line
}

/// Follows what was printed: a token is made on the coordinator's host, and pasted on the node's.
fn follow(ground: &WaysBack, said: &str, joins: &str) {
    let WaysBack { pair, .. } = ground;
    let made = shell(ground, &pair.coordinator, &advice(said, "mesh-coordinator "), "");
    assert!(made.status.success(), "{}", text(&made));
    let token = String::from_utf8_lossy(&made.stdout).lines().last().unwrap().to_owned();
    let joined = shell(ground, &pair.b.node, &advice(said, joins), &token);
    assert!(joined.status.success(), "{}", text(&joined));
}

fn is_back(ground: &WaysBack) {
    let node = &ground.pair.b.node;
    if !node.running() {
        node.start().unwrap();
    }
    assert!(works(ground), "the mesh does not work: {}", tail(&node.log(), 9));
}

fn keys(node: &Daemon) -> Vec<&'static str> {
    KEYS.into_iter().filter(|name| node.folder.join("state").join(name).exists()).collect()
}

fn identity(node: &Daemon) -> Vec<u8> {
    fs::read(node.folder.join("state/identity.key")).unwrap()
}

pub(crate) fn left(ground: &WaysBack) {
    let node = &ground.pair.b.node;
    let lock = node.folder.join("state/lock.key");
    for is_running in [true, false] {
        let before = identity(node);
        fs::write(&lock, "an operator's").unwrap();
        if !is_running {
            assert!(node.terminate());
        }
        let left = shell(ground, node, "meshd leave", "");
        let said = text(&left);
        assert!(left.status.success(), "{said}");
        assert_eq!(keys(node), [""; 0], "{said}");
        assert!(said.contains(lock.to_str().unwrap()) && lock.exists(), "{said}");
        fs::remove_file(&lock).unwrap();
        follow(ground, &said, "meshd join");
        is_back(ground);
        assert_ne!(identity(node), before);
    }
}

pub(crate) fn set_up_anew(ground: &WaysBack) {
    let WaysBack { pair, .. } = ground;
    let (node, coordinator) = (&pair.b.node, &pair.coordinator);
    // Whoever makes a token for the name is told, and so is whoever joins with one that has no name.
    let named = shell(ground, coordinator, "mesh-coordinator token create --site west --name b", "");
    assert_eq!(
        advice(&text(&named), "mesh-coordinator "),
        "mesh-coordinator revoke b; mesh-coordinator token create --site west --name b"
    );
    for is_revoked in [false, true] {
        node.kill();
        fs::remove_dir_all(node.folder.join("state")).unwrap();
        if is_revoked {
            coordinator.expect(&["revoke", "b"]).unwrap();
        }
        let token = coordinator.expect(&["token", "create", "--site", "west"]).unwrap();
        let refused = shell(ground, node, "meshd join -", &token);
        assert!(!refused.status.success(), "{}", text(&refused));
        follow(ground, &text(&refused), "meshd join");
        is_back(ground);
    }
}

/// Waits until a node says of itself that its coordinator disowns it, and returns that.
fn disowned(node: &Daemon, word: &str) -> String {
    let warnings = || node.status().map(|status| status.warnings.join("\n")).unwrap_or_default();
    assert!(wait_until(TOLD, || warnings().contains(word)), "{}", warnings());
    warnings()
}

/// Ends what watches, also where the test fails meanwhile.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn revoked(ground: &WaysBack) {
    let WaysBack { pair, .. } = ground;
    let node = &pair.b.node;
    let before = identity(node);
    pair.coordinator.expect(&["revoke", "b"]).unwrap();
    let said = disowned(node, "was revoked");
    let ended = AtomicBool::new(false);
    let open = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (mut looks, mut open) = (0, Vec::new());
            while !ended.load(Ordering::Relaxed) {
                let kernel = snapshot::take(&node.namespace).unwrap();
                let is_closed = kernel.contains("table ip meshd\n") && kernel.contains("Table(24105)");
                if !is_closed {
                    open.push(kernel);
                }
                looks += 1;
            }
            (looks, open)
        });
        let ends = Ends(&ended);
        follow(ground, &said, "meshd join");
        drop(ends);
        watching.join().unwrap()
    });
    assert!(open.0 > 3 && open.1.is_empty(), "open in {} of {} looks: {:?}", open.1.len(), open.0, open.1.first());
    is_back(ground);
    assert_ne!(identity(node), before);
    let _ = writeln!(io::stdout(), "    closed in {} looks", open.0);
}

pub(crate) fn without_identity(ground: &WaysBack) {
    let node = &ground.pair.b.node;
    assert!(node.terminate());
    fs::remove_file(node.folder.join("state/identity.key")).unwrap();
    node.start().unwrap();
    assert!(wait_until(STARTING, || !node.running()), "it runs without an identity");
    assert_eq!(node.exit_code(), Some(78));
    let said = tail(&node.log(), 1);
    assert!(said.contains("identity.key is lost"), "{said}");
    follow(ground, &said, "meshd leave");
    is_back(ground);
}

pub(crate) fn restored(ground: &WaysBack) {
    let WaysBack { pair, .. } = ground;
    let (node, coordinator) = (&pair.b.node, &pair.coordinator);
    let backup = pair.network.folder.join("backup.redb");
    coordinator.expect(&["backup", backup.to_str().unwrap()]).unwrap();
    // Since then it is somebody else.
    let left = shell(ground, node, "meshd leave", "");
    follow(ground, &text(&left), "meshd join");
    is_back(ground);
    let restore = format!("mesh-coordinator restore {}", backup.display());
    let running = shell(ground, coordinator, &restore, "");
    assert_eq!(advice(&text(&running), "systemctl"), "systemctl stop mesh-coordinator");
    assert!(coordinator.terminate());
    let restored = shell(ground, coordinator, &restore, "");
    assert!(restored.status.success(), "{}", text(&restored));
    shell(ground, coordinator, &advice(&text(&restored), "systemctl"), "");
    let said = disowned(node, "does not know this node");
    follow(ground, &said, "meshd join");
    is_back(ground);
}

/// Waits until the coordinator refuses to run, and returns its last words.
fn refuses(coordinator: &Daemon) -> String {
    coordinator.start().unwrap();
    assert!(wait_until(STARTING, || !coordinator.running()), "it runs without its store");
    tail(&coordinator.log(), 3)
}

pub(crate) fn without_store(ground: &WaysBack) {
    let WaysBack { pair, .. } = ground;
    let coordinator = &pair.coordinator;
    let store = coordinator.folder.join("state/store.redb");
    let connected = || [&pair.a.node, &pair.b.node].iter().all(|n| n.status().is_ok_and(|s| s.coordinator.connected));
    for is_damaged in [false, true] {
        assert!(coordinator.terminate());
        match is_damaged {
            true => fs::write(&store, [0xa5; 8192]).unwrap(),
            false => fs::remove_file(&store).unwrap(),
        }
        let said = refuses(coordinator);
        let word = if is_damaged { "systemctl stop" } else { "mesh-coordinator restore" };
        let restored = shell(ground, coordinator, &advice(&said, word), "");
        assert!(restored.status.success(), "{}", text(&restored));
        shell(ground, coordinator, &advice(&text(&restored), "systemctl"), "");
        // Nobody has to join again.
        assert!(wait_until(TOLD, connected), "{}", tail(&coordinator.log(), 5));
        assert!(works(ground));
    }
}

pub(crate) fn on_whose_word(ground: &WaysBack) {
    let WaysBack { pair, .. } = ground;
    let (a, coordinator) = (&pair.a.node, &pair.coordinator);
    let before = identity(a);
    let token = coordinator.expect(&["token", "create", "--site", "east"]).unwrap();
    let good = token.trim().parse::<JoinToken>().unwrap();
    coordinator.kill();
    // Whoever else answers there, with a key that the token calls a coordinator's, knows nothing of this node.
    let folder = pair.network.folder.join("other");
    fs::create_dir(&folder).unwrap();
    let other = Daemon::coordinator(&coordinator.namespace, &folder, &Binaries::of(binaries(ground)));
    let address = pair.network.ip(3, 11);
    mesh_tests::topology::write_coordinator(&other, address, mesh_tests::pair::SERVICES).unwrap();
    mesh_tests::topology::start_coordinator(&other, address).unwrap();
    let theirs = other.expect(&["token", "create", "--site", "east"]).unwrap().trim().parse::<JoinToken>().unwrap();
    let mixed = JoinToken { pins: [good.pins, theirs.pins.clone()].concat(), ..theirs };
    assert!(wait_until(STARTING, || a.status().is_ok_and(|status| !status.coordinator.connected)));
    let joined = shell(ground, a, "meshd join -", &mixed.to_line());
    assert!(text(&joined).contains("already joined"), "{}", text(&joined));
    assert!(a.status().unwrap().node.is_some() && identity(a) == before);
    other.kill();
    coordinator.start().unwrap();
    assert!(wait_until(TOLD, || a.status().is_ok_and(|status| status.coordinator.connected)));
    assert!(works(ground));
}

/// Where the programs lie.
fn binaries(ground: &WaysBack) -> PathBuf {
    let script = fs::read_to_string(ground.bin.join("coordinator/mesh-coordinator")).unwrap();
    let program = script.split("exec ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    Path::new(program).parent().unwrap().to_owned()
}
