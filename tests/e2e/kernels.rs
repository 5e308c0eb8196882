//! What differs between hosts: the MTU of the underlay, its IP version, and what the kernel can join and divide.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::ExitCode;

use mesh_tests::daemon::{Binaries, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{Pair, PairGround, PairSide, STARTING};
use mesh_tests::topology::{BRIDGE, Underlay};
use mesh_tests::traffic;

/// What the tunnel adds to a packet at most, in bytes: IPv6, UDP, WireGuard's header and tag, padding.
const OVERHEAD: u16 = 80;
/// IPv4 and UDP headers, in bytes.
const HEADERS: u16 = 28;
/// The bridge port of the one pod, 10.8.0.10.
const POD_PORT: &str = "veth10";
const NO_OFFLOADS: &str = "[offload]\ntun = \"off\"\nudp = \"off\"\n";

const FACTS: &[Fact<(PairGround, Pair)>] = &[
    ("the_largest_datagram_fits", the_largest_datagram_fits),
    ("megabytes_arrive_as_they_were_sent", megabytes_arrive_as_they_were_sent),
    ("a_pod_is_told_what_does_not_fit", a_pod_is_told_what_does_not_fit),
    ("offloads_are_used_where_they_are_allowed", offloads_are_used_where_they_are_allowed),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        for (scene, underlay, mtu, more) in [
            ("ipv4_of_1280_bytes", Underlay::V4, 1280, ""),
            ("ipv6_of_1280_bytes_without_offloads", Underlay::V6, 1280, NO_OFFLOADS),
            ("ipv4_of_1500_bytes_without_offloads", Underlay::V4, 1500, NO_OFFLOADS),
            ("ipv4_of_9000_bytes_without_offloads", Underlay::V4, 9000, NO_OFFLOADS),
            ("ipv6_of_9000_bytes", Underlay::V6, 9000, ""),
        ] {
            let ground = PairGround { underlay, lanes: 2, mtu, more };
            let word = format!(
                "kr{}{mtu}{}",
                if underlay == Underlay::V4 { 4 } else { 6 },
                if more.is_empty() { "x" } else { "n" }
            );
            run.scene(scene, || set_up(binaries, ground, &word), FACTS);
        }
    })
}

fn set_up(binaries: &Binaries, ground: PairGround, word: &str) -> std::io::Result<(PairGround, Pair)> {
    let pair = Pair::start_on(ground, word, binaries)?;
    for side in [&pair.a, &pair.b] {
        let node = &side.node.namespace;
        for (host, interface) in [(node, POD_PORT), (node, BRIDGE), (&side.pod, "eth0")] {
            host.mtu(interface, ground.mtu.max(1500)).map_err(std::io::Error::other)?;
        }
        traffic::serve_tcp(&side.pod, 8080)?;
        traffic::serve_udp(&side.pod, 7)?;
    }
    let reached = wait_until(STARTING, || traffic::seen_as(&pair.a.pod, (pair.vip("web"), 80)).is_ok());
    assert!(reached, "web is not reached");
    Ok((ground, pair))
}

fn the_largest_datagram_fits((ground, pair): &(PairGround, Pair)) {
    let vip = pair.vip("web");
    for bytes in [1, 1000, ground.mtu - OVERHEAD - HEADERS] {
        let who = traffic::udp_echo(&pair.a.pod, (vip, 7), bytes.into()).unwrap();
        assert_eq!(who, (vip, 7).into(), "{bytes} bytes");
    }
}

fn megabytes_arrive_as_they_were_sent((_, pair): &(PairGround, Pair)) {
    for (from, service) in [(&pair.a, "web"), (&pair.b, "back")] {
        let mut stream = traffic::connect(&from.pod, (pair.vip(service), 80)).unwrap();
        traffic::greeting(&mut stream).unwrap();
        assert!(traffic::echoes(&stream, 4 << 20).unwrap(), "{service}");
    }
}

fn a_pod_is_told_what_does_not_fit((ground, pair): &(PairGround, Pair)) {
    let vip = pair.vip("web");
    let bytes = usize::from(ground.mtu - OVERHEAD - HEADERS) + 1;
    // The first may be lost while the pod learns what fits; afterwards its kernel divides what is larger.
    let answered = || traffic::udp_echo(&pair.a.pod, (vip, 7), bytes).is_ok_and(|who| who == (vip, 7).into());
    assert!(wait_until(STARTING, answered), "{bytes} bytes");
}

fn offloads_are_used_where_they_are_allowed((ground, pair): &(PairGround, Pair)) {
    let joined = |side: &PairSide| {
        let lanes = side.node.status().unwrap().lanes;
        lanes.iter().map(|lane| lane.tun_rx_super_packets + lane.udp_tx_super_packets).sum::<u64>()
    };
    assert_eq!(joined(&pair.a) > 0, ground.more.is_empty(), "{}", joined(&pair.a));
}
