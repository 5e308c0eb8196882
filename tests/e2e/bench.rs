//! `meshd bench` between two real daemons in namespaces: the shape of its document, figures that can be, and what it
//! says when it cannot measure.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use mesh_proto::ops::status::{BENCH, Bench};
use mesh_tests::daemon::{Binaries, Process, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::topology::Underlay;
use mesh_tests::traffic;

const FACTS: &[Fact<Pair>] = &[
    ("the_figures_are_there_and_can_be", the_figures_are_there_and_can_be),
    ("people_read_what_was_measured", people_read_what_was_measured),
    ("real_traffic_goes_on_meanwhile", real_traffic_goes_on_meanwhile),
    ("one_at_a_time_and_whoever_hangs_up_ends_it", one_at_a_time_and_whoever_hangs_up_ends_it),
    ("a_word_that_names_no_other_node_is_told_so", a_word_that_names_no_other_node_is_told_so),
    ("a_node_that_is_gone_is_told_so", a_node_that_is_gone_is_told_so),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        for (scene, lanes) in [("one_lane", 1), ("two_lanes", 2)] {
            run.scene(scene, || set_up(binaries, lanes), FACTS);
        }
    })
}

fn set_up(binaries: &Binaries, lanes: u16) -> io::Result<Pair> {
    let pair = Pair::start(&format!("bn{lanes}x"), binaries, Underlay::V4, lanes)?;
    let b = pair.address(&pair.b);
    if wait_until(STARTING, || traffic::ping(&pair.a.node.namespace, b).is_ok()) {
        return Ok(pair);
    }
    Err(io::Error::other("the nodes do not reach each other"))
}

fn lanes(pair: &Pair) -> usize {
    pair.a.node.status().unwrap().lanes.len()
}

fn the_figures_are_there_and_can_be(pair: &Pair) {
    let began = Instant::now();
    let document = pair.a.node.json(&["bench", "b", "--seconds", "1"]).unwrap();
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());

    let bench: Bench = serde_json::from_value(document.clone()).unwrap();
    assert_eq!((bench.schema.as_str(), bench.node.as_str()), (BENCH, "b"));
    assert_eq!((bench.address.0, bench.lanes), (pair.address(&pair.b), lanes(pair)));
    assert!((0.01..100.0).contains(&bench.throughput_gbps), "{document}");
    assert!((100.0..1e8).contains(&bench.packets_per_second), "{document}");
    assert!((0.0..10.0).contains(&bench.loss_percent), "{document}");
    for (trips, least) in [(bench.rtt_us, 150), (bench.rtt_loaded_us, 20)] {
        let (p50, p99) = (trips.p50.unwrap(), trips.p99.unwrap());
        assert!(trips.samples >= least && 0 < p50 && p50 <= p99 && p99 < 2_000_000, "{document}");
    }
    let cpu = [bench.cpu_s_per_gbit, bench.cpu_us_per_packet];
    for used in cpu.into_iter().flat_map(|cpu| [cpu.sender, cpu.receiver]) {
        assert!((0.001..1000.0).contains(&used.unwrap()), "{document}");
    }
    let shape: Vec<_> = bench.phases.iter().map(|p| (p.name.as_str(), p.packet_bytes)).collect();
    assert_eq!(shape, [("small", 92), ("bulk", 1420)]);
    for phase in &bench.phases {
        assert!(phase.received <= phase.sent && phase.received > 100, "{document}");
        assert!((0.5..1.5).contains(&phase.seconds), "{document}");
    }
}

fn people_read_what_was_measured(pair: &Pair) {
    let text = pair.a.node.expect(&["bench", "host:b", "--seconds", "1"]).unwrap();
    for word in ["inside the tunnel", "Gbit/s", " /s in packets of 92 B", "p99", "s per Gbit", "not measured: the TUN"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}

fn real_traffic_goes_on_meanwhile(pair: &Pair) {
    let b = pair.address(&pair.b);
    std::thread::scope(|scope| {
        let bench = scope.spawn(|| pair.a.node.expect(&["bench", "b", "--seconds", "2"]));
        let (mut asked, mut answered) = (0, 0);
        while !bench.is_finished() {
            asked += 1;
            answered += usize::from(traffic::ping(&pair.a.node.namespace, b).is_ok());
        }
        bench.join().unwrap().unwrap();
        assert!(asked > 10 && answered * 10 >= asked * 9, "{answered} of {asked}");
    });
}

fn one_at_a_time_and_whoever_hangs_up_ends_it(pair: &Pair) {
    let node = &pair.a.node;
    let program = Binaries::build().unwrap().path("meshd");
    let start = || {
        let mut command = Command::new(&program);
        command.args(["bench", "b", "--seconds", "10", "--socket"]).arg(node.socket());
        Process::start(&node.namespace, command, &node.folder.join("bench.log")).unwrap()
    };
    let mut first = start();
    let refused = || {
        // Where the second comes before the first, the first is the one that is refused.
        if !first.running() {
            first = start();
        }
        let second = node.verb(&["bench", "b", "--seconds", "1"]).unwrap();
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        second.status.code() == Some(1) && said.contains("measures already")
    };
    assert!(wait_until(Duration::from_secs(20), refused));

    first.kill();
    let killed = Instant::now();
    node.expect(&["bench", "b", "--seconds", "1"]).unwrap();
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
}

fn a_word_that_names_no_other_node_is_told_so(pair: &Pair) {
    for (word, said) in [("bb", "did you mean `b`?"), ("something", "`meshd peers` lists them"), ("a", "is this node")]
    {
        let output = pair.a.node.verb(&["bench", word]).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(said), "{word}: {stderr}");
    }
    let usage = pair.a.node.verb(&["bench", "b", "--seconds", "11"]).unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

fn a_node_that_is_gone_is_told_so(pair: &Pair) {
    pair.b.node.kill();
    let output = pair.a.node.verb(&["bench", "b", "--seconds", "1"]).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("does not answer through the tunnel"), "{stderr}");
    pair.b.node.start().unwrap();
    let back = || pair.a.node.expect(&["bench", "b", "--seconds", "1"]).is_ok();
    assert!(wait_until(STARTING, back));
}
