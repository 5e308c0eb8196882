//! `meshd join` where nobody answers: for what it waits, how long, and whom it names.

use std::fs;
use std::io::{self, Write as _};
use std::net::UdpSocket;
use std::process::Output;
use std::time::{Duration, Instant};

use mesh_proto::trust::join_token::JoinToken;
use mesh_tests::daemon::{Binaries, Daemon};
use mesh_tests::pair::SERVICES;
use mesh_tests::topology::{
    COORDINATOR_PORT, Network, Underlay, daemon_on, start_coordinator, token, write_coordinator, write_node,
};
use tempfile::TempDir;

/// The promise.
const MOST: Duration = Duration::from_secs(30);
/// Where a resolver is that never answers.
const SILENT: &str = "127.0.0.99";
/// How long the coordinator stays away from somebody who waits.
const AWAY: Duration = Duration::from_secs(7);

/// A coordinator, and a machine that is no member.
pub(crate) struct Door {
    x: Daemon,
    coordinator: Daemon,
    network: Network,
    _folder: TempDir,
}

pub(crate) fn set_up(binaries: &Binaries) -> io::Result<Door> {
    let folder = tempfile::Builder::new().prefix("mesh-ways-").tempdir()?;
    let prefix = format!("wy{}", std::process::id());
    let network = Network::new(&prefix, folder.path(), 3, Underlay::V4).map_err(io::Error::other)?;
    let daemon = |name, subnet| daemon_on(&network, name, subnet, folder.path(), binaries);
    let (coordinator, x) = (daemon("coordinator", 3)?, daemon("x", 2)?);
    write_coordinator(&coordinator, network.ip(3, 11), SERVICES)?;
    write_node(&x, None, 1, "")?;
    start_coordinator(&coordinator, network.ip(3, 11))?;
    Ok(Door { x, coordinator, network, _folder: folder })
}

/// A token of the coordinator that names other addresses.
fn naming(door: &Door, addresses: &[&str]) -> String {
    let mut token = token(&door.coordinator, "east", "x").unwrap().parse::<JoinToken>().unwrap();
    token.coordinators = addresses.iter().map(|&address| address.to_owned()).collect();
    token.to_line()
}

/// Joins, and says how that ended and how long it took.
fn join(door: &Door, token: &str) -> (Output, Duration) {
    let began = Instant::now();
    let output = door.x.config_verb(&["join", token]).unwrap();
    (output, began.elapsed())
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn tell(figure: &str) {
    let _ = writeln!(io::stdout(), "    {figure}");
}

/// What is said of one address, from the first line about it that begins with some words.
fn lines<'a>(said: &'a str, word: &str) -> Vec<&'a str> {
    said.lines().filter(|line| line.contains(word)).collect()
}

pub(crate) fn silent_resolver(door: &Door) {
    let folder = &door.network.folder;
    let resolv = folder.join("x.resolv.conf");
    let before = fs::read_to_string(&resolv).unwrap();
    // It is open, so that nothing says that nobody is there.
    let _silent = door.x.namespace.run(|| UdpSocket::bind((SILENT, 53))).unwrap();
    fs::write(&resolv, format!("nameserver {SILENT}\n")).unwrap();
    let (output, took) = join(door, &naming(door, &["coordinator.example:7700"]));
    fs::write(&resolv, before).unwrap();
    let said = told(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(took < MOST, "{took:?}: {said}");
    let waits: Vec<_> = said.lines().filter(|line| line.contains("waiting for a coordinator for")).collect();
    // The last may come just before the end.
    assert!([4, 5].contains(&waits.len()), "once each 5 s: {said}");
    let named = lines(&said, "coordinator.example:7700");
    assert!(named.len() > waits.len(), "{said}");
    assert!(named.iter().all(|line| line.contains("DNS") && !line.contains("firewall")), "{said}");
    tell(&format!("join ended after {took:?}: {}", named.last().unwrap().trim()));
}

pub(crate) fn ends(door: &Door) {
    let (refused, nobody) = (format!("{}:1", door.network.ip(3, 11)), format!("{}:7700", door.network.ip(3, 99)));
    let (output, took) = join(door, &naming(door, &["no-such-host.invalid:7700", &refused, &nobody]));
    let said = told(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(took < MOST, "{took:?}: {said}");
    let end = said.split("not joined").nth(1).unwrap_or_default();
    for (word, cause) in [("no-such-host.invalid:7700", "DNS"), (&refused, "refused"), (&nobody, "firewall")] {
        assert!(lines(end, word).iter().any(|line| line.contains(cause)), "{word}: {said}");
        assert!(lines(&said, word).len() >= 4, "{word} is told each 5 s: {said}");
    }
    tell(&format!("join ended after {took:?}"));
}

pub(crate) fn waits(door: &Door) {
    let token = token(&door.coordinator, "east", "x").unwrap();
    door.coordinator.kill();
    let (output, took) = std::thread::scope(|scope| {
        let joining = scope.spawn(|| join(door, &token));
        std::thread::sleep(AWAY);
        door.coordinator.start().unwrap();
        joining.join().unwrap()
    });
    let said = told(&output);
    assert!(output.status.success(), "{said}");
    let address = format!("{}:{COORDINATOR_PORT}", door.network.ip(3, 11));
    assert!(lines(&said, &address).iter().any(|line| line.contains("refused")), "{said}");
    assert!(took >= AWAY && took < MOST, "{took:?}");
}
