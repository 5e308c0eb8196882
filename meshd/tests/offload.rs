//! Super-packets: used where they may be, on no side where they may not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod namespaces;
mod planes;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use meshd::dataplane::{LaneStats, Offload, Offloads};
use meshd::io::udp::Sockets;
use meshd::io::udp_outbox::Outbox;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use namespaces::skip::skip;
use namespaces::{link, privileged};
use planes::{MTU, PORT, PlaneNode, PlaneOptions, at, cabled, connect, eventually, flat, netmap, outer};

/// Bytes of a transfer: some thousand packets.
const BULK: usize = 4 << 20;

fn with(offload: [Offload; 2]) -> [PlaneNode; 2] {
    let [mut a, mut b] = cabled();
    a.start(1, netmap(1, 2, 1, at(2)), PlaneOptions { offload: offload[0], ..PlaneOptions::lanes(1) });
    b.start(2, netmap(2, 1, 1, at(1)), PlaneOptions { offload: offload[1], ..PlaneOptions::lanes(1) });
    [a, b]
}

/// Sends `BULK` bytes by TCP from one to the other and back again.
fn there_and_back(a: &PlaneNode, b: &PlaneNode) {
    let data: Vec<u8> = (0..BULK).map(|i| (i % 251) as u8).collect();
    let listener = b.run(|| TcpListener::bind((flat(2), 7000)).unwrap());
    let mut near = connect(a, 2);
    let (mut far, _) = listener.accept().unwrap();
    let expected = data.clone();
    let other = std::thread::spawn(move || {
        let mut got = vec![0; BULK];
        far.read_exact(&mut got).unwrap();
        assert!(got == expected, "the bytes arrive as they were sent");
        far.write_all(&got).unwrap();
    });
    near.write_all(&data).unwrap();
    let mut back = vec![0; BULK];
    near.read_exact(&mut back).unwrap();
    other.join().unwrap();
    assert!(back == data, "and come back so");
}

/// Super-packets in and out, on the interface and on the sockets.
fn supers(lane: &LaneStats) -> [[u64; 2]; 2] {
    [[lane.tun_rx_super_packets, lane.tun_tx_super_packets], [lane.udp_rx_super_packets, lane.udp_tx_super_packets]]
}

#[test]
fn what_is_switched_off_is_not_used_in_either_direction() {
    if !privileged("offloads in namespaces") {
        return;
    }
    let switches = |on: [bool; 2]| Offload { tun: on[0], udp: on[1] };
    let all = [[true, true], [false, true], [true, false], [false, false]].map(switches);
    for (own, other) in all.into_iter().flat_map(|own| [(own, all[0]), (own, all[3])]) {
        let [a, b] = with([own, other]);

        there_and_back(&a, &b);

        let used = |on: bool, count: u64| if on { count > 0 } else { count == 0 };
        for (node, offload, facing) in [(&a, own, other), (&b, other, own)] {
            let lane = node.lane();
            let [on_tun, on_udp] = supers(&lane);
            assert!(on_tun.into_iter().all(|count| used(offload.tun, count)), "{own:?} {other:?} {lane:?}");
            assert!(used(offload.udp, on_udp[1]), "{own:?} {other:?} {lane:?}");
            // What arrives joined, the other side sent so: a veth joins nothing by itself.
            assert!(used(offload.udp && facing.udp, on_udp[0]), "{own:?} {other:?} {lane:?}");
            assert_eq!((lane.tun_fallbacks, lane.udp_fallbacks), (0, 0));
            let Offloads { tun_tcp, tun_udp, udp_segment, udp_gro } = lane.offloads;
            assert_eq!((tun_tcp, udp_segment, udp_gro), (offload.tun, offload.udp, offload.udp));
            assert!(offload.tun || !tun_udp);
            if !offload.tun {
                assert!(lane.tun_rx_bytes <= lane.tun_rx_packets * u64::from(MTU), "{lane:?}");
            }
        }
        assert!(a.drops().is_empty() && b.drops().is_empty(), "{:?} {:?}", a.drops(), b.drops());
    }
}

#[test]
fn an_applications_runs_of_datagrams_stay_runs_from_end_to_end() {
    if !privileged("offloads in namespaces") {
        return;
    }
    const SIZE: usize = 1200;
    for tun in [true, false] {
        let offload = Offload { tun, udp: true };
        let [a, b] = with([offload, offload]);
        let server = b.run(|| UdpSocket::bind((flat(2), 7000)).unwrap());
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let client = a.run(|| UdpSocket::bind((flat(1), 0)).unwrap());
        client.connect((flat(2), 7000)).unwrap();
        let mut buffer = vec![0; 65_536];
        // The first waits for the handshake, and opens the flow.
        client.send(&[0]).unwrap();
        assert_eq!(server.recv(&mut buffer).unwrap(), 1);
        setsockopt(&client, UdpGsoSegment, &(SIZE as i32)).unwrap();

        let run: Vec<u8> = (0..SIZE * 30 + 77).map(|i| (i / SIZE * 7 + i) as u8).collect();
        client.send(&run).unwrap();

        for datagram in run.chunks(SIZE) {
            let length = server.recv(&mut buffer).unwrap();
            assert!(buffer[..length] == *datagram, "a datagram of {length} bytes, tun {tun}");
        }
        let (near, far) = (a.lane(), eventually(|| Some(b.lane()).filter(|lane| lane.tun_tx_packets >= 32)));
        let expected = if tun { (1, 31) } else { (0, 0) };
        assert_eq!((near.tun_rx_super_packets, near.tun_rx_super_segments), expected, "{near:?}");
        assert_eq!(far.tun_tx_super_packets > 0, tun, "{far:?}");
        assert!(near.tun_rx_packets >= 32, "{near:?}");
        assert_eq!(far.tun_fallbacks, 0);
    }
}

#[test]
fn a_path_too_narrow_for_a_run_gets_its_datagrams_singly_and_turns_nothing_off() {
    if !privileged("a narrow path in namespaces") {
        return;
    }
    let [a, b] = [PlaneNode::new(), PlaneNode::new()];
    link(&a.namespace, &b.namespace, "eth0");
    a.namespace.address("eth0", outer(1), 24, 1280);
    b.namespace.address("eth0", outer(2), 24, 1280);
    let [from, to] = [&a, &b].map(|node| node.run(|| Sockets::open(PORT, 0, true).unwrap()));
    let mut outbox = Outbox::new(1 << 20);
    from.prepare(&mut outbox);
    let mut send = |size: usize| {
        (0..10).for_each(|_| assert!(outbox.push(&vec![4; size], SocketAddr::from((outer(2), PORT)).into())));
        from.send(&mut outbox)
    };

    let (wide, narrow) = (send(1400), send(1200));

    assert_eq!((wide.datagrams, wide.super_packets, wide.fallbacks, wide.lost), (10, 0, 1, 0));
    assert_eq!((narrow.datagrams, narrow.super_packets, narrow.fallbacks, narrow.lost), (10, 1, 0, 0));
    let mut inbox = meshd::io::udp::Inbox::default();
    let mut got = 0;
    eventually(|| {
        got += to.each().next().unwrap().receive(&mut inbox).map(|_| inbox.received().datagrams).unwrap();
        (got == 20).then_some(())
    });
}

#[test]
fn a_line_that_is_full_loses_datagrams_by_count_and_holds_nobody_up() {
    if !privileged("a slow line in namespaces") {
        return;
    }
    let [a, _b] = cabled();
    let tc = "qdisc add dev eth0 root tbf rate 8mbit burst 100kb limit 100mb";
    let Ok(status) = a.run(move || Command::new("tc").args(tc.split(' ')).status()) else {
        return skip("a slow line", "apt-get install iproute2");
    };
    assert!(status.success(), "tc refuses the queue");
    let sockets = a.run(|| Sockets::open(PORT, 0, true).unwrap());
    let mut outbox = Outbox::new(1 << 20);
    let start = Instant::now();
    let (mut sent, mut lost, mut batches) = (0, 0, 0);
    while lost == 0 && batches < 100 {
        sockets.prepare(&mut outbox);
        (0..700).for_each(|_| assert!(outbox.push(&[4; 1400], SocketAddr::from((outer(2), PORT)).into())));
        let batch = sockets.send(&mut outbox);
        assert_eq!(batch.datagrams + batch.lost, 700);
        (sent, lost, batches) = (sent + batch.datagrams, lost + batch.lost, batches + 1);
    }
    assert!(lost > 0 && sent > 0, "{sent} {lost}");
    // The line would need 1 s for every MB of it.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?} for {batches} batches", start.elapsed());
}
