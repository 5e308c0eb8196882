//! Two nodes and a coordinator, the real binaries in namespaces: every protocol, both ways, over IPv4 and
//! IPv6 underlays, with one lane and with two.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mesh_tests::daemon::{Binaries, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{Pair, PairSide, STARTING};
use mesh_tests::topology::Underlay;
use mesh_tests::traffic;

const DNS: Ipv4Addr = Ipv4Addr::new(241, 0, 0, 53);

const FACTS: &[Fact<Pair>] = &[
    ("tcp_reaches_the_backend_both_ways", tcp_reaches_the_backend_both_ways),
    ("udp_is_answered_from_the_vip", udp_is_answered_from_the_vip),
    ("hosts_ping_each_other", hosts_ping_each_other),
    ("megabytes_arrive_as_they_were_sent", megabytes_arrive_as_they_were_sent),
    ("names_resolve_over_udp_and_tcp", names_resolve_over_udp_and_tcp),
    ("what_no_rule_allows_is_refused_at_once", what_no_rule_allows_is_refused_at_once),
    ("a_node_restarts_without_the_coordinator", a_node_restarts_without_the_coordinator),
    ("a_node_that_moves_is_found_again", a_node_that_moves_is_found_again),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        for (scene, underlay, lanes) in [
            ("one_lane_over_ipv4", Underlay::V4, 1),
            ("two_lanes_over_ipv4", Underlay::V4, 2),
            ("one_lane_over_ipv6", Underlay::V6, 1),
            ("two_lanes_over_ipv6", Underlay::V6, 2),
        ] {
            run.scene(scene, || set_up(binaries, underlay, lanes), FACTS);
        }
    })
}

fn set_up(binaries: &Binaries, underlay: Underlay, lanes: u16) -> io::Result<Pair> {
    let version = if underlay == Underlay::V4 { 4 } else { 6 };
    let pair = Pair::start(&format!("pr{version}{lanes}x"), binaries, underlay, lanes)?;
    for side in [&pair.a, &pair.b] {
        traffic::serve_tcp(&side.pod, 8080)?;
        traffic::serve_udp(&side.pod, 7)?;
    }
    Ok(pair)
}

fn works(pair: &Pair, from: &PairSide, service: &str) {
    let vip = pair.vip(service);
    let mut said = String::new();
    let reached = wait_until(STARTING, || match traffic::seen_as(&from.pod, (vip, 80)) {
        Ok(_) => true,
        Err(e) => {
            said = e.to_string();
            false
        }
    });
    assert!(reached, "{service} is not reached from {}: {said}", from.node.name);
}

fn tcp_reaches_the_backend_both_ways(pair: &Pair) {
    works(pair, &pair.a, "web");
    works(pair, &pair.b, "back");
    let flat = |service: &str| {
        let services = pair.a.node.status().unwrap().services;
        let service = services.into_iter().find(|s| s.name.as_str() == service);
        service.unwrap().backends[0].address.0
    };

    let a_is_seen_as = traffic::seen_as(&pair.a.pod, (pair.vip("web"), 80)).unwrap();
    let b_is_seen_as = traffic::seen_as(&pair.b.pod, (pair.vip("back"), 80)).unwrap();

    assert_eq!((a_is_seen_as, b_is_seen_as), (flat("back"), flat("web")));
    assert_ne!(a_is_seen_as, b_is_seen_as);
}

fn udp_is_answered_from_the_vip(pair: &Pair) {
    for (from, service) in [(&pair.a, "web"), (&pair.b, "back")] {
        works(pair, from, service);
        let vip = pair.vip(service);
        for bytes in [1, 100, 1300] {
            let who = traffic::udp_echo(&from.pod, (vip, 7), bytes).unwrap();
            assert_eq!(who, (vip, 7).into());
        }
    }
}

fn hosts_ping_each_other(pair: &Pair) {
    for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
        let address = pair.address(to);
        let answered = wait_until(STARTING, || traffic::ping(&from.node.namespace, address).is_ok());
        assert!(answered, "{} does not answer {}", to.node.name, from.node.name);
    }
}

fn megabytes_arrive_as_they_were_sent(pair: &Pair) {
    works(pair, &pair.a, "web");
    let mut stream = traffic::connect(&pair.a.pod, (pair.vip("web"), 80)).unwrap();
    traffic::greeting(&mut stream).unwrap();
    assert!(traffic::echoes(&stream, 4 << 20).unwrap());
}

fn names_resolve_over_udp_and_tcp(pair: &Pair) {
    let vip = pair.vip("web");
    for tcp in [false, true] {
        for name in ["web.mesh.internal", "web.default.mesh.internal"] {
            let answer = traffic::resolve(&pair.a.pod, DNS, name, tcp).unwrap();
            assert_eq!((answer.code, &answer.addresses), (0, &vec![vip]), "{name}");
        }
        let missing = traffic::resolve(&pair.a.pod, DNS, "wep.mesh.internal", tcp).unwrap();
        assert_eq!((missing.code, missing.authoritative), (3, true));
    }
}

fn what_no_rule_allows_is_refused_at_once(pair: &Pair) {
    works(pair, &pair.a, "web");
    let closed = pair.vip("closed");
    for (caller, to) in [
        (&pair.a.pod, (closed, 81)),
        (&pair.a.pod, (pair.vip("web"), 81)),
        (&pair.a.node.namespace, (pair.vip("web"), 80)),
    ] {
        let began = Instant::now();
        let refused = traffic::connect(caller, to).unwrap_err();
        assert_ne!(refused.kind(), io::ErrorKind::TimedOut, "{to:?}");
        assert!(began.elapsed() < Duration::from_millis(200), "{to:?}");
    }
    let why = pair.a.node.verb(&["why", "back", "closed:81"]).unwrap();
    assert_eq!(why.status.code(), Some(5));
}

fn a_node_restarts_without_the_coordinator(pair: &Pair) {
    works(pair, &pair.a, "web");
    let vip = pair.vip("web");
    pair.coordinator.kill();
    for side in [&pair.a, &pair.b] {
        side.node.kill();
        side.node.start().unwrap();
        let began = Instant::now();
        let forwards = wait_until(STARTING, || traffic::seen_as(&pair.a.pod, (vip, 80)).is_ok());
        assert!(forwards, "after the restart of {}", side.node.name);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    pair.coordinator.start().unwrap();
    let connected = || pair.a.node.status().is_ok_and(|s| s.coordinator.connected);
    assert!(wait_until(STARTING, connected));
}

fn a_node_that_moves_is_found_again(pair: &Pair) {
    works(pair, &pair.a, "web");
    pair.network.renumber(&pair.b.node.namespace, 2, 11, 21).unwrap();
    let moved = Instant::now();
    works(pair, &pair.b, "back");
    works(pair, &pair.a, "web");
    assert!(moved.elapsed() < Duration::from_secs(10), "{:?}", moved.elapsed());
    let endpoint = || {
        let peers = pair.a.node.status().map(|s| s.peers).unwrap_or_default();
        let of_b = peers.into_iter().find(|p| p.name.as_str() == "b");
        of_b.and_then(|p| p.endpoint).map(|e| e.ip())
    };
    let expected = Some(pair.network.ip(2, 21));
    assert!(wait_until(Duration::from_secs(10), || endpoint() == expected), "{:?}", endpoint());
}
