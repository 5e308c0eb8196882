//! Where coordinators are: a node that once reached one comes back, whatever `public` of coordinator.toml says meanwhile.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mesh_tests::daemon::{Binaries, Daemon, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::topology::{COORDINATOR_PORT, Underlay};
use mesh_tests::traffic;

/// How soon all nodes are back once the coordinator can be reached.
const BACK: Duration = Duration::from_secs(20);
/// Where the coordinator is at first, where nobody is, and where it moves to: hosts of its subnet.
const HOME: u8 = 11;
const NOBODY: u8 = 99;
const MOVED: u8 = 12;

const WRONG: &[Fact<Pair>] = &[
    ("a_public_address_that_is_wrong_for_a_while_loses_nobody", wrong_for_a_while),
    ("the_coordinator_warns_of_public_addresses_that_lead_elsewhere", warned),
];
const MOVES: &[Fact<Pair>] = &[
    ("a_coordinator_that_names_both_addresses_for_a_while_moves_without_a_word", planned),
    ("a_node_that_was_away_comes_back_by_a_token_while_it_runs_or_not", by_token),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.scene("wrong", || set_up(binaries, "aw"), WRONG);
        run.scene("moves", || set_up(binaries, "am"), MOVES);
    })
}

fn set_up(binaries: &Binaries, word: &str) -> io::Result<Pair> {
    let pair = Pair::start(word, binaries, Underlay::V4, 1)?;
    traffic::serve_tcp(&pair.b.pod, 8080)?;
    assert!(wait_until(STARTING, || all(&pair, connected)));
    Ok(pair)
}

/// Tells a figure.
fn tell(figure: &str) {
    let _ = writeln!(io::stdout(), "    {figure}");
}

fn all(pair: &Pair, what: impl Fn(&Daemon) -> bool) -> bool {
    what(&pair.a.node) && what(&pair.b.node)
}

fn connected(node: &Daemon) -> bool {
    node.status().is_ok_and(|status| status.coordinator.connected)
}

fn address(pair: &Pair, host: u8) -> String {
    SocketAddr::new(pair.network.ip(3, host), COORDINATOR_PORT).to_string()
}

/// Starts the coordinator again, with other addresses in coordinator.toml.
fn restarted(pair: &Pair, listen: &str, public: &[&str]) {
    let coordinator = &pair.coordinator;
    let text = std::fs::read_to_string(coordinator.config()).unwrap();
    let rest = text.lines().filter(|line| !line.starts_with("listen") && !line.starts_with("public"));
    let rest: Vec<&str> = rest.collect();
    let text = format!("listen = \"{listen}\"\npublic = {public:?}\n{}\n", rest.join("\n"));
    assert!(coordinator.terminate());
    std::fs::write(coordinator.config(), text).unwrap();
    coordinator.start().unwrap();
    assert!(
        wait_until(STARTING, || coordinator.json(&["status"]).is_ok()),
        "{}",
        mesh_tests::daemon::tail(&coordinator.log(), 9)
    );
}

/// Says whether a node was told of an address, as its state directory has it.
fn knows(node: &Daemon, address: &str) -> bool {
    std::fs::read_to_string(node.folder.join("state/enrolment.json")).is_ok_and(|text| text.contains(address))
}

fn wrong_for_a_while(pair: &Pair) {
    let (home, nobody) = (address(pair, HOME), address(pair, NOBODY));
    restarted(pair, &home, &[&nobody]);
    assert!(wait_until(STARTING, || all(pair, |node| connected(node) && knows(node, &nobody))));
    assert!(pair.coordinator.json(&["status"]).is_ok());
    // One of the two starts again in the wrong minute, too.
    pair.b.node.kill();
    pair.b.node.start().unwrap();

    restarted(pair, &home, &[&home]);
    let began = Instant::now();
    let back = wait_until(BACK, || all(pair, |node| connected(node) && !knows(node, &nobody)));
    let took = began.elapsed();
    assert!(back, "{:?}", pair.a.node.status().unwrap().coordinator);
    tell(&format!("both nodes are back {took:?} after the address was put right"));
    pair.coordinator.kill();
    pair.coordinator.start().unwrap();
    assert!(wait_until(BACK, || all(pair, connected)));
}

fn warned(pair: &Pair) {
    let home = address(pair, HOME);
    // What answers there is a program of node `b`, and no coordinator.
    traffic::serve_tcp(&pair.b.node.namespace, 7701).unwrap();
    let stranger = SocketAddr::new(pair.network.ip(2, 11), 7701).to_string();
    let nobody = address(pair, NOBODY);
    restarted(pair, &home, &[&home, "no-such-host.invalid:7700", &stranger, &nobody]);
    let warnings = || {
        let status = pair.coordinator.json(&["status"]).unwrap_or_default();
        status["warnings"].as_array().into_iter().flatten().map(ToString::to_string).collect::<Vec<_>>()
    };
    let told = |word: &str, what: &str| warnings().iter().any(|text| text.contains(word) && text.contains(what));
    let both =
        || told("no-such-host.invalid:7700", "does not resolve") && told(&stranger, "no coordinator of this mesh");
    assert!(wait_until(STARTING, both), "{:?}", warnings());
    assert!(!told(&format!("names {home}"), "") && !told(&nobody, ""), "{:?}", warnings());
    let log = std::fs::read_to_string(pair.coordinator.log()).unwrap();
    assert!(log.contains("no-such-host.invalid:7700, which does not resolve"), "{log}");

    restarted(pair, &home, &[&home]);
    assert!(wait_until(BACK, || all(pair, connected)) && warnings().iter().all(|text| !text.contains("`public`")));
}

fn planned(pair: &Pair) {
    let (home, moved) = (address(pair, HOME), address(pair, MOVED));
    let host = &pair.coordinator.namespace;
    host.address("eth0", format!("{}/24", pair.network.ip(3, MOVED)).parse().unwrap()).unwrap();
    let everywhere = format!("0.0.0.0:{COORDINATOR_PORT}");
    restarted(pair, &everywhere, &[&home, &moved]);
    // The operator waits until `nodes` shows all.
    let shown = || {
        let nodes = pair.coordinator.json(&["nodes"]).unwrap_or_default();
        let mut nodes = nodes["nodes"].as_array().into_iter().flatten();
        nodes.all(|node| node["connected"] == true) && all(pair, |node| knows(node, &moved))
    };
    assert!(wait_until(BACK, shown));
    restarted(pair, &moved, &[&moved]);
    assert!(wait_until(BACK, || all(pair, |node| connected(node) && !knows(node, &home))));
    let reached = || traffic::seen_as(&pair.a.pod, (pair.vip("web"), 80)).is_ok();
    assert!(wait_until(STARTING, reached));
}

fn by_token(pair: &Pair) {
    let (home, moved) = (address(pair, HOME), address(pair, MOVED));
    let (a, b) = (&pair.a.node, &pair.b.node);
    b.kill();
    // Nobody was told: all that the nodes know is gone.
    restarted(pair, &home, &[&home]);
    b.start().unwrap();
    let lost = |node: &Daemon| node.status().is_ok_and(|s| !s.coordinator.connected && s.coordinator.error.is_some());
    assert!(wait_until(STARTING, || lost(a) && lost(b)));
    assert!(!knows(a, &home) && knows(a, &moved));

    let token = || pair.coordinator.expect(&["token", "create", "--site", "east"]).unwrap().trim().to_owned();
    let began = Instant::now();
    let said = a.expect_config(&["join", &token()]).unwrap();
    assert!(said.contains("already joined") && said.contains(&home), "{said}");
    assert!(connected(a));
    tell(&format!("a node that runs is back {:?} after `meshd join TOKEN`", began.elapsed()));

    assert!(b.terminate());
    let said = b.expect_config(&["join", &token()]).unwrap();
    assert!(said.contains("no meshd runs"), "{said}");
    b.start().unwrap();
    assert!(wait_until(BACK, || connected(b)));
    assert!(wait_until(STARTING, || all(pair, |node| !knows(node, &moved))), "the new map names one address alone");
}
