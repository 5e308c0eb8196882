//! Clocks that differ, a clock that is set while a node runs, and a name that the coordinator does not have.
//!
//! The programs run behind a library that shifts the time of day by what a file says, and leaves the time since boot alone.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use mesh_tests::daemon::{Binaries, Daemon, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{Pair, PairGround, STARTING};
use mesh_tests::shifted_clocks::{self, ShiftedClocks};
use mesh_tests::topology::Underlay;
use mesh_tests::traffic;
use serde_json::Value;

/// How long a node may take to notice a clock that was set: its own look each second, and a word of others each five.
const NOTICED: Duration = Duration::from_secs(12);
const YEAR: i64 = 365 * 86_400;

/// A pair each program of which has a clock of its own.
struct Ground {
    pair: Pair,
    clocks: ShiftedClocks,
}

const FACTS: &[Fact<Ground>] = &[
    ("clocks_that_agree_are_no_warning", |ground| {
        speak(ground);
        for node in [&ground.pair.a.node, &ground.pair.b.node] {
            assert!(problem(node, "clock").is_none(), "{:?}", problem(node, "clock"));
        }
    }),
    ("a_clock_that_is_set_wrong_is_named_with_both_times_here_and_at_peers_until_it_is_right", wrong_clock),
    ("with_the_coordinators_clock_wrong_the_nodes_name_the_coordinator", wrong_coordinator),
    ("where_nobody_is_heard_a_lease_that_is_over_names_the_clock_and_is_judged_again_once_it_is_set", lease),
    ("a_name_that_the_coordinator_did_not_record_is_told_by_status_and_check", other_name),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.needs(shifted_clocks::are_possible(), "install a C compiler (cc)");
        run.scene("clocks", || set_up(binaries), FACTS);
    })
}

fn set_up(binaries: &Binaries) -> io::Result<Ground> {
    let clocks = ShiftedClocks::new()?;
    let [a, b, coordinator] = ["a", "b", "coordinator"].map(|name| clocks.programs(binaries, name));
    let versions = [a?, b?, coordinator?];
    let ground = PairGround { more: "max_offline = \"1h\"\n", ..PairGround::plain(Underlay::V4, 1) };
    let pair = Pair::start_versions(ground, "ck", [&versions[0], &versions[1], &versions[2]])?;
    traffic::serve_tcp(&pair.b.pod, 8080)?;
    Ok(Ground { pair, clocks })
}

/// Shifts a program's clock by so many seconds from now on.
fn set(ground: &Ground, name: &str, seconds: i64) {
    ground.clocks.set(name, seconds).unwrap();
}

/// Has both nodes talk, so that they probe each other.
fn speak(ground: &Ground) {
    let web = (ground.pair.vip("web"), 80);
    assert!(wait_until(STARTING, || traffic::connect(&ground.pair.a.pod, web).is_ok()));
}

/// Returns a problem of a node's status by its id.
fn problem(node: &Daemon, id: &str) -> Option<Value> {
    let status = node.json(&["status"]).ok()?;
    status["problems"].as_array()?.iter().find(|problem| problem["id"] == id).cloned()
}

/// Waits until a problem is there, or is not, while both nodes talk; returns its cause.
fn wait(ground: &Ground, node: &Daemon, id: &str, is_there: impl Fn(&str) -> bool) -> String {
    let cause = || problem(node, id).map(|problem| problem["cause"].as_str().unwrap().to_owned()).unwrap_or_default();
    let found = wait_until(NOTICED, || {
        let _ = traffic::connect(&ground.pair.a.pod, (ground.pair.vip("web"), 80));
        is_there(&cause())
    });
    assert!(found, "{}: {id}: {:?}", node.name, node.status().map(|status| status.warnings));
    cause()
}

/// The times of day in a sentence, as they are written in RFC 3339.
fn times(sentence: &str) -> usize {
    let is_time =
        |word: &&str| word.trim_end_matches([',', ':', ';']).len() == 20 && word.contains("T") && word.contains('Z');
    sentence.split(' ').filter(is_time).count()
}

fn wrong_clock(ground: &Ground) {
    let (a, b) = (&ground.pair.a.node, &ground.pair.b.node);
    set(ground, "a", 300);
    let is_told =
        |cause: &str| cause.contains("the clock of this host is wrong") && cause.contains("2 of the 2 others");
    let own = wait(ground, a, "clock", is_told);
    assert_eq!(times(&own), 2, "{own}");
    assert_eq!(a.verb(&["status"]).unwrap().status.code(), Some(3));
    assert!(a.status().unwrap().warnings.contains(&own), "the sentence is among the warnings, too");
    // Until it has the coordinator's word, too, it cannot tell who is right.
    let most = "most clocks, this host's among them, say";
    let theirs = wait(ground, b, "clock", |cause| cause.contains("peer `a`") && cause.starts_with(most));
    assert_eq!(times(&theirs), 2, "{theirs}");

    set(ground, "a", 20);
    wait(ground, a, "clock", str::is_empty);
    wait(ground, b, "clock", str::is_empty);
    set(ground, "a", 0);
}

fn wrong_coordinator(ground: &Ground) {
    let nodes = [&ground.pair.a.node, &ground.pair.b.node];
    set(ground, "coordinator", -3600);
    for node in nodes {
        let most = "most clocks, this host's among them";
        let is_told = |cause: &str| cause.contains("that of the coordinator") && cause.contains(most);
        let cause = wait(ground, node, "clock", is_told);
        assert!(cause.contains("(60 min apart)"), "{cause}");
    }
    set(ground, "coordinator", 0);
    for node in nodes {
        wait(ground, node, "clock", str::is_empty);
    }
}

fn lease(ground: &Ground) {
    let (a, b) = (&ground.pair.a.node, &ground.pair.b.node);
    ground.pair.coordinator.terminate();
    b.terminate();
    a.terminate();
    set(ground, "a", YEAR);
    a.start().unwrap();
    let said =
        || problem(a, "max-offline").map(|problem| problem["cause"].as_str().unwrap().to_owned()).unwrap_or_default();
    assert!(wait_until(STARTING, || !said().is_empty()), "{:?}", a.status().map(|status| status.warnings));
    let cause = said();
    assert!(cause.starts_with("no coordinator was heard for longer than `max_offline`"), "{cause}");
    assert!(cause.contains("out of touch") && cause.contains("its clock is wrong") && times(&cause) == 2, "{cause}");
    set(ground, "a", 0);
    assert!(wait_until(NOTICED, || said().is_empty()), "{}", said());

    // Whom nobody may be spoken to before is called again, still without a coordinator.
    b.start().unwrap();
    speak(ground);
    ground.pair.coordinator.start().unwrap();
    let connected = |node: &Daemon| node.status().is_ok_and(|status| status.coordinator.connected);
    assert!(wait_until(STARTING, || connected(a) && connected(b)));
}

fn other_name(ground: &Ground) {
    let a = &ground.pair.a.node;
    assert!(problem(a, "name").is_none());
    let text = std::fs::read_to_string(a.config()).unwrap();
    a.terminate();
    std::fs::write(a.config(), text.replacen("name = \"a\"", "name = \"vm-1\"", 1)).unwrap();
    a.start().unwrap();
    assert!(wait_until(STARTING, || problem(a, "name").is_some()), "{:?}", a.status().map(|status| status.warnings));
    let told = problem(a, "name").unwrap();
    let cause = told["cause"].as_str().unwrap();
    assert!(cause.contains("this node is `a` in the mesh") && cause.contains("not `vm-1`"), "{cause}");
    assert_eq!(told["is_error"], false, "it works all the same");
    let check = String::from_utf8(a.config_verb(&["check"]).unwrap().stdout).unwrap();
    assert!(check.contains("warning[name]: this node is `a` in the mesh"), "{check}");

    a.terminate();
    std::fs::write(a.config(), text).unwrap();
    a.start().unwrap();
    assert!(wait_until(STARTING, || a.status().is_ok_and(|status| status.coordinator.connected)));
    assert!(problem(a, "name").is_none());
}
