//! The coordinator is gone: what works goes on, what never met meets, and what dies comes back.

use std::time::{Duration, Instant};

use mesh_tests::daemon::wait_until;
use mesh_tests::pair::Pair;
use mesh_tests::traffic;

use crate::probe::{Probe, said};

/// How long it is gone, in seconds: `MESH_OUTAGE=600` for the ten minutes that are promised.
const SECONDS: &str = "MESH_OUTAGE";
const SHORT: u64 = 10;
/// Pause between two questions of a flow: a long run is to leave the machine to others.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];
/// The promises.
const FIRST: Duration = Duration::from_secs(2);
const RESTART: Duration = Duration::from_secs(1);

pub(crate) fn first_tunnel(pair: &Pair) {
    pair.coordinator.kill();
    let handshakes = || pair.a.node.status().unwrap().peers.iter().filter(|p| p.last_handshake_s.is_some()).count();
    assert_eq!(handshakes(), 0, "they have met already");
    let began = Instant::now();
    assert!(wait_until(FIRST, || traffic::connect(&pair.a.pod, (pair.vip("web"), 80)).is_ok()));
    let took = began.elapsed();
    said(&format!("the first tunnel of two nodes, coordinator dead: {took:?}"));
    assert!(took <= FIRST && handshakes() == 1, "{took:?}");
}

pub(crate) fn nothing_lost(pair: &Pair) {
    let seconds = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(SHORT);
    let (web, back) = (pair.vip("web"), pair.vip("back"));
    assert!(wait_until(FIRST, || traffic::connect(&pair.b.pod, (back, 80)).is_ok()));
    // Of several ports, so that flows of both lanes are among them.
    let pause = PAUSES[usize::from(seconds > 60)];
    let from = |side: &mesh_tests::pair::PairSide, vip| {
        (0..4).map(|_| Probe::udp_every(pause, &side.pod, (vip, 7)).unwrap()).collect::<Vec<_>>()
    };
    let probes = from(&pair.a, web).into_iter().chain(from(&pair.b, back));
    let probes: Vec<Probe> = probes.collect();
    let stream = Probe::tcp_every(pause, &pair.a.pod, (web, 80)).unwrap();
    std::thread::sleep(Duration::from_secs(seconds));
    let counts: Vec<(u64, u64)> = probes.into_iter().chain([stream]).map(Probe::finish).collect();
    let asked: u64 = counts.iter().map(|(asked, _)| asked).sum();
    let lost: u64 = counts.iter().map(|(asked, answered)| asked - answered.min(asked)).sum();
    said(&format!("{seconds} s without a coordinator: {lost} of {asked} requests lost"));
    assert_eq!(lost, 0, "{counts:?}");
    assert!(asked > 100 * seconds, "{counts:?}");
}

pub(crate) fn restarts(pair: &Pair) {
    for side in [&pair.a, &pair.b, &pair.a, &pair.b] {
        let probe = Probe::udp(&pair.a.pod, (pair.vip("web"), 7)).unwrap();
        let answered = |since| wait_until(Duration::from_secs(10), || probe.answered_since(since));
        assert!(answered(Instant::now()));
        side.node.kill();
        let dead = Instant::now();
        side.node.start().unwrap();
        assert!(answered(dead), "nothing is forwarded after the restart of {}", side.node.name);
        let took = dead.elapsed();
        said(&format!("{} forwards {took:?} after its kill, coordinator dead", side.node.name));
        assert!(took <= RESTART, "{took:?}");
    }
}
