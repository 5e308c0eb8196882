//! What is sent over a way, and what is counted: bulk by iperf3, questions and answers by our own ping-pong.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::daemon::{Process, run, wait_until};
use serde_json::Value;

use crate::machine;
use crate::pingpong::PongAnswer;
use crate::plan::{BenchPlan, Metric};
use crate::system::{BULK_PORT, DialTarget, PONG_PORT};

/// How long a server may take to listen, and a way to carry the first answer.
const STARTING: Duration = Duration::from_secs(10);
/// How long a stream runs before round trips beside it are measured.
const SETTLING: Duration = Duration::from_millis(500);

/// Measures every wanted column of a way.
pub(crate) fn measure(way: &DialTarget, plan: &BenchPlan) -> io::Result<Vec<(Metric, f64)>> {
    let wanted = |metric: Metric| way.columns.contains(&metric) && plan.columns.contains(&metric);
    let mut found = Vec::new();
    if wanted(Metric::Tcp1) || wanted(Metric::SenderCpu) || wanted(Metric::ReceiverCpu) {
        found.extend(one_stream(way, plan.secs)?.into_iter().filter(|(metric, _)| wanted(*metric)));
    }
    if wanted(Metric::Tcp4) {
        found.push((Metric::Tcp4, rate(&iperf(way, plan.secs, &["-P", "4"])?)?));
    }
    for (metric, size) in [(Metric::Udp1200, "1200"), (Metric::Udp64, "64")] {
        if wanted(metric) {
            found.push((metric, delivered(&iperf(way, plan.secs, &["-u", "-b", "0", "-l", size])?)?));
        }
    }
    let (trips, connects) = (wanted(Metric::TripP50) || wanted(Metric::TripP99), wanted(Metric::Connects));
    if trips || connects {
        let secs = |wanted: bool| if wanted { plan.secs as f64 } else { 0.0 };
        let _server = pong(way)?;
        let answer = ask(way, secs(trips), secs(connects))?;
        let all = [(Metric::TripP50, answer.p50), (Metric::TripP99, answer.p99), (Metric::Connects, answer.connects)];
        found.extend(all.into_iter().filter(|(metric, _)| wanted(*metric)));
    }
    if wanted(Metric::LoadedP99) {
        found.push((Metric::LoadedP99, beside_a_stream(way, plan.secs)?));
    }
    Ok(found)
}

/// Waits until a way carries a question and its answer.
pub(crate) fn await_answer(way: &DialTarget) -> io::Result<()> {
    let _server = pong(way)?;
    let mut why = None;
    let answered = || ask(way, 0.05, 0.0).map_err(|e| why = Some(e)).is_ok();
    if wait_until(STARTING, answered) {
        return Ok(());
    }
    Err(io::Error::other(format!("{} answers nothing: {}", way.name, why.map(|e| e.to_string()).unwrap_or_default())))
}

/// One TCP stream, with what it costs whoever carries it.
fn one_stream(way: &DialTarget, secs: u64) -> io::Result<Vec<(Metric, f64)>> {
    let spent = || way.carriers.and_then(|(a, b)| machine::cpu_seconds(a).zip(machine::cpu_seconds(b)));
    let before = spent();
    let end = iperf(way, secs, &["-P", "1"])?;
    let after = spent();
    let mut found = vec![(Metric::Tcp1, rate(&end)?)];
    if let (Some(before), Some(after)) = (before, after) {
        let gbits = number(&end, &["sum_received", "bytes"])? * 8.0 / 1e9;
        found.push((Metric::SenderCpu, (after.0 - before.0) / gbits));
        found.push((Metric::ReceiverCpu, (after.1 - before.1) / gbits));
    }
    Ok(found)
}

/// Round trips while one TCP stream fills the way.
fn beside_a_stream(way: &DialTarget, secs: u64) -> io::Result<f64> {
    let _server = pong(way)?;
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| iperf(way, secs + 1, &["-P", "1"]));
        std::thread::sleep(SETTLING);
        let answer = ask(way, secs as f64, 0.0);
        stream.join().map_err(|_| io::Error::other("a thread panicked"))??;
        answer.map(|answer| answer.p99)
    })
}

/// Runs iperf3 over a way and returns what it sums up at the end.
pub(crate) fn iperf(way: &DialTarget, secs: u64, words: &[&str]) -> io::Result<Value> {
    let mut server = Command::new("iperf3");
    server.args(["-s", "-1", "-p", &BULK_PORT.to_string()]);
    let mut server = Process::start(&way.at, server, Path::new("/dev/null"))?;
    if !wait_until(STARTING, || listens(server.id(), BULK_PORT) || !server.running()) {
        return Err(io::Error::other("iperf3 does not listen"));
    }
    let mut client = Command::new("iperf3");
    client.args(["-c", &way.address.to_string(), "-p", &way.bulk.to_string(), "-t", &secs.to_string(), "-J"]);
    client.args(words);
    let output = run(&way.from, client)?;
    let mut said: Value = serde_json::from_slice(&output.stdout)?;
    match said.get("error") {
        Some(error) => Err(io::Error::other(format!("iperf3 {words:?}: {error}"))),
        None => Ok(said["end"].take()),
    }
}

/// Gbit per second received.
pub(crate) fn rate(end: &Value) -> io::Result<f64> {
    Ok(number(end, &["sum_received", "bits_per_second"])? / 1e9)
}

/// Thousand datagrams per second received.
fn delivered(end: &Value) -> io::Result<f64> {
    let of = |name| number(end, &["sum", name]);
    Ok(of("packets")? * (1.0 - of("lost_percent")? / 100.0) / of("seconds")? / 1e3)
}

fn number(value: &Value, path: &[&str]) -> io::Result<f64> {
    let found = path.iter().try_fold(value, |value, name| value.get(name)).and_then(Value::as_f64);
    found.ok_or_else(|| io::Error::other(format!("iperf3 does not say {}", path.join("."))))
}

/// Starts the server of ping-pong.
fn pong(way: &DialTarget) -> io::Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["pong", &PONG_PORT.to_string()]);
    let mut server = Process::start(&way.at, command, Path::new("/dev/null"))?;
    if wait_until(STARTING, || listens(server.id(), PONG_PORT) || !server.running()) && server.running() {
        return Ok(server);
    }
    Err(io::Error::other("the answering side does not listen"))
}

fn ask(way: &DialTarget, trips: f64, connects: f64) -> io::Result<PongAnswer> {
    let mut command = Command::new(std::env::current_exe()?);
    let to = SocketAddr::new(way.address.into(), way.pong);
    command.args(["ping", &to.to_string(), "--trips", &trips.to_string(), "--connects", &connects.to_string()]);
    let output = run(&way.from, command)?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Says whether somebody in a process's namespace listens on a TCP port.
pub(crate) fn listens(process: u32, port: u16) -> bool {
    let sockets = std::fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap_or_default()
        + &std::fs::read_to_string(format!("/proc/{process}/net/tcp6")).unwrap_or_default();
    let place = format!(":{port:04X}");
    sockets.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        // The local address, the remote one, and 0A for LISTEN.
        words.next().is_some_and(|local| local.ends_with(&place)) && words.nth(1) == Some("0A")
    })
}
