//! Numbers that only grow, on machines that go back in time: a node's records, and the clock of its handshakes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::NodeFacts;
use mesh_tests::daemon::{Binaries, Daemon, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{PODS, Pair, PairGround, STARTING};
use mesh_tests::shifted_clocks::{self, ShiftedClocks};
use mesh_tests::topology::{Underlay, write_node};
use mesh_tests::traffic;
use meshd::base::state_dir::State;
use meshd::keys::node::NodeKeys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a node may take to hear that it was overtaken: it lets the other have the channel for so long.
const OVERTAKEN: Duration = Duration::from_secs(40);
/// How soon a call has to be answered though the clock was set back.
const FIRST: Duration = Duration::from_secs(1);

type Ground = (Pair, Binaries);

const CLOCK: &[Fact<Ground>] = &[("a_node_whose_clock_was_set_back_is_called_within_a_second_and_says_so", set_back)];
const AHEAD: &[Fact<(Pair, ShiftedClocks)>] =
    &[("a_clock_that_was_an_hour_ahead_when_it_called_and_is_right_again_costs_no_second", put_right)];
const RECORDS: &[Fact<Ground>] = &[
    ("a_state_directory_of_a_snapshot_signs_above_what_it_forgot", snapshot),
    ("a_second_machine_with_one_identity_is_told_by_the_node_and_the_coordinator", second_machine),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.scene("clock", || set_up(binaries, "nc"), CLOCK);
        run.scene("records", || set_up(binaries, "nr"), RECORDS);
        run.needs(shifted_clocks::are_possible(), "install a C compiler (cc)");
        run.scene("ahead", || with_a_clock(binaries), AHEAD);
    })
}

fn set_up(binaries: &Binaries, word: &str) -> io::Result<Ground> {
    let pair = Pair::start(word, binaries, Underlay::V4, 1)?;
    traffic::serve_tcp(&pair.b.pod, 8080)?;
    let web = pair.vip("web");
    assert!(wait_until(STARTING, || traffic::connect(&pair.a.pod, (web, 80)).is_ok()));
    Ok((pair, binaries.clone()))
}

/// A pair whose first node has a clock of its own.
fn with_a_clock(binaries: &Binaries) -> io::Result<(Pair, ShiftedClocks)> {
    let clocks = ShiftedClocks::new()?;
    let shifted = clocks.programs(binaries, "a")?;
    let pair = Pair::start_versions(PairGround::plain(Underlay::V4, 1), "na", [&shifted, binaries, binaries])?;
    traffic::serve_tcp(&pair.b.pod, 8080)?;
    let web = pair.vip("web");
    assert!(wait_until(STARTING, || traffic::connect(&pair.a.pod, (web, 80)).is_ok()));
    Ok((pair, clocks))
}

/// Tells a figure.
fn tell(figure: &str) {
    let _ = writeln!(io::stdout(), "    {figure}");
}

fn set_back((pair, _): &Ground) {
    let (a, web) = (&pair.a.node, pair.vip("web"));
    let file = a.folder.join("state/handshake.time");
    assert!(wait_until(STARTING, || file.exists()), "the time of handshakes is not stored");
    assert!(a.terminate());
    // As if the clock had been an hour ahead, and was put right meanwhile.
    let text = std::fs::read_to_string(&file).unwrap();
    let (key, used) = text.trim().split_once(' ').unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(used.parse::<u64>().unwrap().abs_diff(now) < 60, "{text}");
    std::fs::write(&file, format!("{key} {}\n", now + 3600)).unwrap();

    a.start().unwrap();
    assert!(wait_until(STARTING, || a
        .status()
        .is_ok_and(|status| status.state != mesh_proto::ops::status::Health::NotJoined)));
    let began = Instant::now();
    assert!(wait_until(FIRST, || traffic::connect(&pair.a.pod, (web, 80)).is_ok()));
    let took = began.elapsed();
    tell(&format!("the first call of a node whose clock was set back: {took:?}"));
    assert!(took <= FIRST, "{took:?}");
    let says =
        |word: &str| a.status().is_ok_and(|s| s.warnings.iter().any(|w| w.contains("clock") && w.contains(word)));
    assert!(wait_until(STARTING, || says("59 min") || says("60 min")), "{:?}", a.status().unwrap().warnings);

    // The advice: another key has used no time yet.
    a.terminate();
    std::fs::remove_file(&file).unwrap();
    a.start().unwrap();
    assert!(wait_until(STARTING, || a.status().is_ok_and(|s| s.warnings.iter().all(|w| !w.contains("clock")))));
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Has a node that is stopped say that it is reached at some endpoint.
fn say_endpoint(node: &Daemon, endpoint: &str) {
    let text = std::fs::read_to_string(node.config()).unwrap();
    let rest: Vec<&str> = text.lines().filter(|line| !line.starts_with("endpoints")).collect();
    std::fs::write(node.config(), format!("endpoints = [\"{endpoint}\"]\n{}\n", rest.join("\n"))).unwrap();
}

/// Says whether the coordinator has an endpoint of node `a`.
fn has_endpoint(pair: &Pair, endpoint: &str) -> bool {
    node_a(pair)["endpoints"].to_string().contains(endpoint)
}

fn node_a(pair: &Pair) -> serde_json::Value {
    let nodes = pair.coordinator.json(&["nodes"]).unwrap_or_default();
    let found = nodes["nodes"].as_array().into_iter().flatten().find(|node| node["name"] == "a").cloned();
    found.unwrap_or_default()
}

/// Numbers a stopped node's record far above the clock, so that later ones follow it one by one.
fn number_above_the_clock(state: &Path) {
    let keys = NodeKeys::load(&State::open(state).unwrap()).unwrap();
    let file = state.join("record.json");
    let record: SignedRecord = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let facts = NodeFacts::of(&record).unwrap();
    let text = NodeFacts { sequence: facts.sequence + 1_000_000, signed: None, ..facts }.text();
    let signature = keys.sign(&SignedRecord::message(&text));
    let record = SignedRecord { text: text.into(), signature };
    std::fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
}

fn put_right((pair, clocks): &(Pair, ShiftedClocks)) {
    let (a, web) = (&pair.a.node, pair.vip("web"));
    let answered = || traffic::connect(&pair.a.pod, (web, 80)).is_ok();
    a.terminate();
    // Stopped meanwhile, its peer cannot be quicker to call.
    let signal = |what| kill(Pid::from_raw(pair.b.node.id().unwrap().cast_signed()), what).unwrap();
    signal(Signal::SIGSTOP);
    clocks.set("a", 3600).unwrap();
    a.start().unwrap();
    assert!(wait_until(STARTING, || a.status().is_ok()));
    assert!((0..2).all(|_| !answered()), "its peer is stopped");
    signal(Signal::SIGCONT);
    assert!(wait_until(STARTING, answered), "it does not call while its clock is ahead");
    assert!(a.terminate());

    clocks.set("a", 0).unwrap();
    a.start().unwrap();
    let is_member = || a.status().is_ok_and(|status| status.state != mesh_proto::ops::status::Health::NotJoined);
    assert!(wait_until(STARTING, is_member));
    let began = Instant::now();
    assert!(wait_until(STARTING, answered), "no call is answered");
    let took = began.elapsed();
    tell(&format!("the first call of a node whose clock was put right: {took:?}"));
    assert!(took <= FIRST, "{took:?}");
    assert!(a.status().is_ok_and(|status| status.warnings.iter().any(|warning| warning.contains("clock"))));
}

fn snapshot((pair, _): &Ground) {
    let a = &pair.a.node;
    let (state, kept) = (a.folder.join("state"), a.folder.join("snapshot"));
    assert!(a.terminate());
    number_above_the_clock(&state);
    a.start().unwrap();
    let connected =
        || a.status().is_ok_and(|status| status.coordinator.connected && status.coordinator.error.is_none());
    assert!(wait_until(STARTING, connected));
    std::thread::sleep(Duration::from_secs(1));
    assert!(a.terminate());
    copy(&state, &kept);

    say_endpoint(a, "203.0.113.1:51820");
    a.start().unwrap();
    assert!(wait_until(STARTING, || has_endpoint(pair, "203.0.113.1")));
    assert!(a.terminate());

    // Brought back, it says something else under the number that it used already.
    copy(&kept, &state);
    say_endpoint(a, "203.0.113.2:51820");
    a.start().unwrap();
    assert!(wait_until(STARTING, || has_endpoint(pair, "203.0.113.2")), "{:?}", a.status().unwrap().warnings);
    assert!(wait_until(STARTING, || a.status().is_ok_and(|s| s.warnings.iter().all(|w| !w.contains("record")))));
    let log = std::fs::read_to_string(a.log()).unwrap();
    assert!(log.contains("its state directory does not know"), "{log}");
}

fn second_machine((pair, binaries): &Ground) {
    let a = &pair.a.node;
    let connected = |node: &Daemon| node.status().is_ok_and(|status| status.coordinator.connected);
    assert!(wait_until(STARTING, || connected(a)));
    let host = pair.network.host("copy", 1, 12).unwrap();
    let folder = pair.network.folder.join("copy");
    std::fs::create_dir_all(&folder).unwrap();
    let twin = Daemon::meshd("a", &host, &folder, binaries);
    write_node(&twin, Some(PODS), 1, "").unwrap();
    copy(&a.folder.join("state"), &folder.join("state"));
    twin.start().unwrap();

    let began = Instant::now();
    assert!(
        wait_until(OVERTAKEN, || !a.running()),
        "the node goes on beside its copy: {:?}",
        a.status().unwrap().warnings
    );
    tell(&format!("the node that was overtaken by its copy ends after {:?}", began.elapsed()));
    assert_eq!(a.exit_code(), Some(78), "a unit does not start it again");
    let log = std::fs::read_to_string(a.log()).unwrap();
    assert!(log.contains("another machine has this node's identity"), "{log}");
    let told = |text: String| text.contains("two machines have this node's identity");
    assert!(told(node_a(pair)["warnings"].to_string()), "{}", node_a(pair));
    assert!(told(pair.coordinator.json(&["status"]).unwrap()["warnings"].to_string()));
    assert!(std::fs::read_to_string(pair.coordinator.log()).unwrap().contains("two machines have the identity"));
    // It was that of the state directory that is used still.
    assert!(wait_until(OVERTAKEN, || connected(&twin)));
}
