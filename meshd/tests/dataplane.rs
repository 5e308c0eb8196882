//! Two data paths in two network namespaces over a veth pair, with maps made by hand.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod namespaces;
mod planes;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::base::id::NodeId;
use mesh_proto::dataplane::view::View;
use mesh_proto::verifier::VerifiedMap;
use meshd::dataplane::{Activity, DataPlane, DataPlaneError, DataPlaneSetup, Offload};
use namespaces::privileged;
use planes::{
    MTU, PORT, PlaneNode, PlaneOptions, at, cabled, connect, echo, echo_server, eventually, flat, keys, name, netmap,
    outer, pair,
};

#[test]
fn connections_pass_between_nodes_of_equal_and_unequal_lanes() {
    if !privileged("data paths in namespaces") {
        return;
    }
    for lanes in [[1, 1], [2, 2], [1, 2], [2, 1]] {
        let [a, b] = pair(lanes);
        let server = echo_server(&b, 2);

        for round in 1..=20 {
            let mut stream = connect(&a, 2);
            echo(&mut stream, round);
        }

        connect(&a, 2).write_all(&[0]).unwrap();
        server.join().unwrap();
        let stats = a.plane().stats();
        let peer = &stats.peers[&NodeId(2)];
        assert_eq!(peer.endpoint, Some(SocketAddr::from((outer(2), PORT))), "{lanes:?}");
        assert!(peer.last_handshake.is_some(), "{lanes:?} {stats:?}");
        assert_eq!((a.drops(), b.drops()), (BTreeMap::new(), BTreeMap::new()), "{lanes:?}");
        assert_eq!(a.plane().activity().len(), 1);
    }
}

#[test]
fn the_round_trip_is_measured() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let [a, b] = pair([1, 1]);
    let server = echo_server(&b, 2);
    let mut stream = connect(&a, 2);
    echo(&mut stream, 1);

    let rtt = eventually(|| a.plane().stats().peers.get(&NodeId(2))?.rtt);

    assert!(rtt < Duration::from_secs(1), "{rtt:?}");
    stream.write_all(&[0]).unwrap();
    server.join().unwrap();
}

#[test]
fn the_tunnel_runs_over_ipv6() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let [mut a, mut b] = cabled();
    let at = |id: u8| vec![SocketAddr::new(format!("fd00::{id}").parse().unwrap(), PORT)];
    a.start(1, netmap(1, 2, 1, at(2)), PlaneOptions::lanes(1));
    b.start(2, netmap(2, 1, 1, at(1)), PlaneOptions::lanes(1));
    let server = echo_server(&b, 2);
    let mut stream = connect(&a, 2);
    echo(&mut stream, 1);
    stream.write_all(&[0]).unwrap();
    server.join().unwrap();
    assert_eq!(a.plane().stats().peers[&NodeId(2)].endpoint, Some(at(2)[0]));
}

#[test]
fn an_answer_leaves_from_the_second_address_that_was_addressed() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let [mut a, mut b] = cabled();
    b.namespace.address("eth0", outer(77), 24, 1500);
    let second = SocketAddr::from((outer(77), PORT));
    a.start(1, netmap(1, 2, 1, vec![second]), PlaneOptions::lanes(1));
    b.start(2, netmap(2, 1, 1, Vec::new()), PlaneOptions::lanes(1));
    let server = echo_server(&b, 2);

    let mut stream = connect(&a, 2);
    echo(&mut stream, 1);

    assert_eq!(a.plane().stats().peers[&NodeId(2)].endpoint, Some(second));
    stream.write_all(&[0]).unwrap();
    server.join().unwrap();
}

#[test]
fn with_only_the_first_port_open_nothing_is_lost() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let [mut a, mut b] = cabled();
    a.start(1, netmap(1, 2, 2, at(2)), PlaneOptions::lanes(2));
    // It has one lane but its peers believe in two: nobody listens on the second port.
    b.start(2, netmap(2, 1, 2, at(1)), PlaneOptions::lanes(1));
    let server = echo_server(&b, 2);

    for round in 1..=50 {
        let mut stream = connect(&a, 2);
        echo(&mut stream, round);
    }

    connect(&a, 2).write_all(&[0]).unwrap();
    server.join().unwrap();
    let drops = a.drops();
    assert!(drops.is_empty(), "{drops:?}");
}

#[test]
fn a_restarted_node_goes_on_with_its_connections_and_shakes_hands_by_itself() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |id: u8| Some(folder.path().join(format!("flows{id}")));
    let [mut a, mut b] = cabled();
    a.start(1, netmap(1, 2, 2, at(2)), PlaneOptions { flow_file: file(1), ..PlaneOptions::lanes(2) });
    b.start(2, netmap(2, 1, 2, at(1)), PlaneOptions { flow_file: file(2), ..PlaneOptions::lanes(2) });
    let server = echo_server(&b, 2);
    let mut stream = connect(&a, 2);
    echo(&mut stream, 1);
    let flows = b.plane().stats().flows;

    b.plane = None;
    let active = vec![Activity { peer: name(1), endpoint: at(1)[0] }];
    b.start(2, netmap(2, 1, 2, Vec::new()), PlaneOptions { flow_file: file(2), active, ..PlaneOptions::lanes(2) });

    eventually(|| b.plane().stats().peers.get(&NodeId(1))?.last_handshake);
    assert_eq!(b.plane().stats().flows, flows);
    echo(&mut stream, 2);
    stream.write_all(&[0]).unwrap();
    server.join().unwrap();
}

#[test]
fn a_deleted_device_comes_back() {
    if !privileged("data paths in namespaces") {
        return;
    }
    for lanes in [1, 2] {
        let [a, b] = pair([lanes, lanes]);
        let server = echo_server(&b, 2);
        echo(&mut connect(&a, 2), 1);

        a.namespace.delete("mesh0");
        eventually(|| a.namespace.exists("mesh0").then_some(()));
        a.namespace.address("mesh0", flat(1), 8, MTU);

        connect(&a, 2).write_all(&[0]).unwrap();
        server.join().unwrap();
    }
}

#[test]
fn a_port_in_use_is_said_to_be() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let mut node = PlaneNode::new();
    let _holder = node.run(|| UdpSocket::bind(("0.0.0.0", PORT + 1)).unwrap());
    let view = Arc::new(View::compile(VerifiedMap::by_hand(netmap(1, 2, 1, Vec::new()))));
    let setup = |port: u16, lanes: usize| DataPlaneSetup {
        interface: "mesh0".into(),
        lanes,
        offload: Offload::default(),
        port,
        mark: 0,
        mtu: MTU,
        keys: keys(1),
        flow_file: None,
        vault: None,
        view: Arc::clone(&view),
        locals: Arc::from([]),
        next_hops: Arc::from([]),
        active: Vec::new(),
    };
    let (in_use, too_high) = (setup(PORT, 2), setup(65535, 2));

    let error = node.run(move || DataPlane::start(in_use)).unwrap_err();
    assert!(error.to_string().contains("UDP port 51821 is in use"), "{error}");
    let error = node.run(move || DataPlane::start(too_high)).unwrap_err();
    assert!(matches!(error, DataPlaneError::Ports { .. }), "{error}");
    node.plane = Some(node.run({
        let fits = setup(PORT, 1);
        move || DataPlane::start(fits).unwrap()
    }));
}

/// Longer than two lifetimes of a session (120 s each); run with `--ignored`.
#[test]
#[ignore = "takes ten minutes"]
fn sessions_are_renewed_without_losing_a_packet() {
    if !privileged("data paths in namespaces") {
        return;
    }
    for lanes in [1, 2] {
        let [a, b] = pair([lanes, lanes]);
        let server = b.run(|| UdpSocket::bind((flat(2), 7000)).unwrap());
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let echo = std::thread::spawn(move || {
            let mut packet = [0; 8];
            while let Ok((length, from)) = server.recv_from(&mut packet) {
                server.send_to(&packet[..length], from).unwrap();
            }
        });
        // Several flows, so that each lane has some.
        let flows: Vec<UdpSocket> = (0..8).map(|_| a.run(|| UdpSocket::bind((flat(1), 0)).unwrap())).collect();
        for flow in &flows {
            flow.connect((flat(2), 7000)).unwrap();
            flow.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        }
        let start = Instant::now();
        let mut number = 0u64;
        while start.elapsed() < Duration::from_secs(290) {
            for flow in &flows {
                number += 1;
                flow.send(&number.to_be_bytes()).unwrap();
                let mut back = [0; 8];
                let received = flow.recv(&mut back);
                assert!(received.is_ok(), "packet {number} lost after {:?}: {:?}", start.elapsed(), a.drops());
                assert_eq!(u64::from_be_bytes(back), number);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let handshakes: Vec<u64> = a.plane().stats().lanes.iter().map(|l| l.handshakes).collect();
        assert!(handshakes[0] >= 3, "{handshakes:?}");
        assert_eq!((a.drops(), b.drops()), (BTreeMap::new(), BTreeMap::new()));
        drop(flows);
        echo.join().unwrap();
    }
}

/// Two idle nodes that have sessions; prints what they cost. Run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn idle_cost() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let [a, b] = pair([2, 2]);
    let server = echo_server(&b, 2);
    (0..10).for_each(|_| echo(&mut connect(&a, 2), 1));
    connect(&a, 2).write_all(&[0]).unwrap();
    server.join().unwrap();

    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let before = cpu();
    std::thread::sleep(Duration::from_secs(20));
    let share = (cpu() - before) / 20.0 / 2.0 * 100.0;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let memory = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
    writeln!(std::io::stdout(), "idle: {share:.3} % of a core per node; both together {memory}").unwrap();
    drop((a, b));
}

/// Bulk data from a to b; prints what it reached. Run with `--ignored --nocapture`, best with `--release`.
#[test]
#[ignore = "a measurement"]
fn bulk_throughput() {
    if !privileged("data paths in namespaces") {
        return;
    }
    for (lanes, streams) in [(1, 1), (2, 1), (2, 4)] {
        let [a, b] = pair([lanes, lanes]);
        let listener = b.run(|| TcpListener::bind((flat(2), 7000)).unwrap());
        let time = Duration::from_secs(3);
        let sink = std::thread::spawn(move || {
            let readers = (0..streams).map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 1 << 20];
                    let mut total = 0;
                    while let Ok(read @ 1..) = stream.read(&mut buffer) {
                        total += read;
                    }
                    total
                })
            });
            let readers: Vec<_> = readers.collect();
            readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>()
        });
        let start = Instant::now();
        let writers = (0..streams).map(|_| {
            let mut stream = connect(&a, 2);
            std::thread::spawn(move || {
                let data = vec![0; 1 << 18];
                while start.elapsed() < time && stream.write_all(&data).is_ok() {}
            })
        });
        let writers: Vec<_> = writers.collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let bytes = sink.join().unwrap();
        let rate = bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9;
        let mut out = std::io::stdout();
        writeln!(out, "{lanes} lanes, {streams} streams: {rate:.2} Gbit/s; {:?} {:?}", a.drops(), b.drops()).unwrap();
    }
}
