//! No coordinator for longer than `max_offline`: who speaks goes on, a new start speaks to nobody, until one is heard.

use std::time::{Duration, Instant};

use mesh_tests::daemon::wait_until;
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::traffic;

use crate::probe::{Probe, said};

/// The shortest that may be configured.
const MAX_OFFLINE: &str = "max_offline = \"10s\"\n";

pub(crate) fn runs_out(pair: &Pair) {
    let (a, web) = (&pair.a.node, pair.vip("web"));
    let config = std::fs::read_to_string(a.config()).unwrap();
    std::fs::write(a.config(), MAX_OFFLINE.to_owned() + &config).unwrap();
    a.kill();
    a.start().unwrap();
    let reached = || wait_until(STARTING, || traffic::connect(&pair.a.pod, (web, 80)).is_ok());
    let says = |words: &str| a.status().is_ok_and(|s| s.warnings.iter().any(|text| text.contains(words)));
    let warned = || says("longer than `max_offline`");
    let half = || says("half of `max_offline`");
    assert!(reached() && wait_until(STARTING, || a.status().is_ok_and(|s| s.coordinator.connected)));
    let probe = Probe::udp(&pair.a.pod, (web, 7)).unwrap();

    pair.coordinator.kill();
    let began = Instant::now();
    assert!(wait_until(Duration::from_secs(10), half), "nobody is told when it ends");
    assert!(began.elapsed() > Duration::from_secs(3) && !warned());
    assert_eq!(a.verb(&["status"]).unwrap().status.code(), Some(3));
    assert!(wait_until(Duration::from_secs(30), warned));
    let took = began.elapsed();
    assert!(took > Duration::from_secs(8), "{took:?}");
    let over = Instant::now();
    assert!(wait_until(STARTING, || probe.answered_since(over)), "an open tunnel goes on");
    let (asked, answered) = probe.finish();
    assert_eq!(asked, answered, "an open tunnel loses nothing");

    a.kill();
    a.start().unwrap();
    assert!(wait_until(STARTING, warned));
    let refused = traffic::connect(&pair.a.pod, (web, 80));
    assert!(refused.is_err(), "a new tunnel was begun");
    assert!(a.status().unwrap().peers.is_empty());

    pair.coordinator.start().unwrap();
    assert!(reached() && !warned() && !half(), "the coordinator's word brings all back");
    said(&format!("max_offline of 10 s was over after {took:?}; 0 of {asked} requests of an open tunnel lost"));
}
