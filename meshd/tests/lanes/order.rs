//! Nothing is reordered inside a flow: what one socket sends arrives at the other in that order.
//!
//! Where the kernel does not let us choose the queue of a flow (no CAP_BPF), this holds between equal lanes only.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_proto::dataplane::view::View;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::verifier::VerifiedMap;

use crate::namespaces::privileged;
use crate::planes::{PlaneNode, PlaneOptions, at, cabled, eventually, flat, map, netmap, pair, peer};
use crate::quiet;

/// Sockets per kind of traffic, each a flow.
const FLOWS: usize = 48;
/// Datagrams that a socket sends before the next socket's turn.
const BURST: usize = 8;
/// Pause after the last socket's turn: queues fill, but not for ever longer, on a slow machine too.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections per direction.
const CONNECTIONS: usize = 12;
/// How long one kind of trouble is watched.
const WHILE: Duration = Duration::from_millis(800);

/// How many datagrams arrived, and how many of them after a later one of their flow.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Arrivals {
    all: u64,
    late: u64,
}

/// The numbers last seen of each flow.
struct Watch {
    last: Vec<u32>,
    arrivals: Arrivals,
}

impl Watch {
    fn new(flows: usize) -> Self {
        Self { last: vec![0; flows], arrivals: Arrivals::default() }
    }

    fn see(&mut self, flow: usize, datagram: &[u8]) {
        let Some(number) = datagram.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else { return };
        self.arrivals.all += 1;
        self.arrivals.late += u64::from(number < self.last[flow]);
        self.last[flow] = self.last[flow].max(number);
    }
}

fn bind(node: &PlaneNode, id: u8, port: u16) -> UdpSocket {
    let socket = node.run(move || UdpSocket::bind((flat(id), port))).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
    socket
}

/// Sends numbers from each socket until told to stop, and watches what comes back.
fn send(sockets: Vec<UdpSocket>, stop: &Arc<AtomicBool>) -> JoinHandle<Arrivals> {
    let stop = Arc::clone(stop);
    sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    std::thread::spawn(move || {
        let mut watch = Watch::new(sockets.len());
        let mut buffer = [0; 2048];
        let mut number = 0u32;
        while !stop.load(Ordering::Relaxed) {
            for (flow, socket) in sockets.iter().enumerate() {
                for step in 0..BURST {
                    number += 1;
                    let mut datagram = [0; 1200];
                    datagram[..4].copy_from_slice(&number.to_be_bytes());
                    let length = [16, 1200, 300, 700][(step + flow) % 4];
                    // Refused while no map has the peer: that one is lost.
                    let _ = socket.send(&datagram[..length]);
                }
                while let Ok(length) = socket.recv(&mut buffer) {
                    watch.see(flow, &buffer[..length]);
                }
            }
            std::thread::sleep(PAUSE);
        }
        watch.arrivals
    })
}

/// Sockets that send to one port of the other node.
fn callers(from: &PlaneNode, ids: [u8; 2], port: u16) -> Vec<UdpSocket> {
    let sockets: Vec<UdpSocket> = (0..FLOWS).map(|_| bind(from, ids[0], 0)).collect();
    sockets.iter().for_each(|socket| socket.connect((flat(ids[1]), port)).unwrap());
    sockets
}

/// Sockets of which each has one of its own at the other node.
fn twins(from: &PlaneNode, ids: [u8; 2]) -> Vec<UdpSocket> {
    let socket = |port: u16| {
        let socket = bind(from, ids[0], port);
        socket.connect((flat(ids[1]), port)).unwrap();
        socket
    };
    (9000..).take(FLOWS).map(socket).collect()
}

/// Watches what arrives at a port until nothing does for a while, and sends it back, if `echoes`.
fn receive(at: &PlaneNode, id: u8, port: u16, echoes: bool) -> JoinHandle<Arrivals> {
    let socket = bind(at, id, port);
    socket.set_read_timeout(Some(WHILE)).unwrap();
    std::thread::spawn(move || {
        let mut watch = Watch::new(1 << 16);
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            watch.see(from.port().into(), &buffer[..length]);
            if echoes {
                let _ = socket.send_to(&buffer[..length.min(100)], from);
            }
        }
        watch.arrivals
    })
}

/// Lets datagrams run in all ways while something happens, and shows that none was late.
fn datagrams(what: &str, [a, b]: [&PlaneNode; 2], meanwhile: impl FnOnce()) {
    let stop = Arc::new(AtomicBool::new(false));
    let receivers = [receive(b, 2, 7001, false), receive(a, 1, 7002, false), receive(b, 2, 7003, true)];
    let senders = [
        send(callers(a, [1, 2], 7001), &stop),
        send(callers(b, [2, 1], 7002), &stop),
        send(callers(a, [1, 2], 7003), &stop),
        send(twins(a, [1, 2]), &stop),
        send(twins(b, [2, 1]), &stop),
    ];
    let start = Instant::now();
    meanwhile();
    std::thread::sleep(WHILE.saturating_sub(start.elapsed()));
    stop.store(true, Ordering::Relaxed);
    let sent = senders.map(|sender| sender.join().unwrap());
    let received = receivers.map(|receiver| receiver.join().unwrap());
    for (way, arrivals) in ["there", "back", "asked"].into_iter().zip(received) {
        assert!(arrivals.all > 1000 && arrivals.late == 0, "{what}, {way}: {arrivals:?}");
    }
    for (way, arrivals) in ["answered", "twin", "other twin"].into_iter().zip(&sent[2..]) {
        assert!(arrivals.all > 0 && arrivals.late == 0, "{what}, {way}: {arrivals:?}");
    }
}

/// What the kernel's TCP noticed in a namespace so far.
fn tcp_notes(node: &PlaneNode) -> BTreeMap<String, u64> {
    let text = node.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().take(2).map(|line| line.split_whitespace().skip(1).collect()).collect();
    lines[0].iter().zip(&lines[1]).map(|(name, count)| ((*name).to_owned(), count.parse().unwrap_or(0))).collect()
}

/// Lets connections carry bytes both ways and shows that no sender saw its segments overtake each other.
fn connections(what: &str, [a, b]: [&PlaneNode; 2]) {
    let before = [a, b].map(tcp_notes);
    let ends = |from: &PlaneNode, to: &PlaneNode, id: u8| -> Vec<(TcpStream, TcpStream)> {
        let listener = to.run(move || TcpListener::bind((flat(id), 7100))).unwrap();
        let connect = || {
            let near = from.run(move || TcpStream::connect((flat(id), 7100))).unwrap();
            (near, listener.accept().unwrap().0)
        };
        (0..CONNECTIONS).map(|_| connect()).collect()
    };
    let pairs = ends(a, b, 2).into_iter().chain(ends(b, a, 1));
    let start = Instant::now();
    let threads = pairs.flat_map(|(mut near, mut far)| {
        let sender = std::thread::spawn(move || {
            let data = [7; 40_000];
            while start.elapsed() < WHILE {
                near.write_all(&data).unwrap();
            }
        });
        let receiver = std::thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            while let Ok(1..) = far.read(&mut buffer) {}
        });
        [sender, receiver]
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for (before, after) in before.iter().zip([a, b].map(tcp_notes)) {
        for note in ["TCPSACKReorder", "TCPRenoReorder", "TCPTSReorder"] {
            assert_eq!(after[note] - before[note], 0, "{what}: {note}, {:?}", [a, b].map(PlaneNode::drops));
        }
    }
}

fn set_map(node: &PlaneNode, map: NetMap) {
    node.plane().set_view(Arc::new(View::compile(VerifiedMap::by_hand(map))));
}

#[test]
fn nothing_is_reordered_inside_a_flow_over_eight_lanes() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let _quiet = quiet();
    let nodes = pair([8, 8]);
    let [a, b] = [&nodes[0], &nodes[1]];
    datagrams("while sessions begin", [a, b], || {});
    let handed = |node: &PlaneNode| node.plane().stats().lanes.iter().map(|lane| lane.handovers).sum::<u64>();
    assert!(handed(a) + handed(b) > 0, "nothing went by lane 0");
    datagrams("with sessions", [a, b], || {});
    connections("with sessions", [a, b]);
    datagrams("while a peer goes and comes", [a, b], || {
        std::thread::sleep(WHILE / 4);
        set_map(a, map(1, Vec::new()));
        // Longer than what is on its way.
        std::thread::sleep(WHILE / 2);
        set_map(a, netmap(1, 2, 8, at(2)));
        std::thread::sleep(WHILE / 2);
    });
    for node in [a, b] {
        let stats = node.plane().stats();
        assert!(stats.lanes.iter().all(|lane| lane.udp_tx_packets > 100), "a lane is idle: {stats:?}");
    }
}

#[test]
fn nothing_is_reordered_while_lanes_begin_to_work() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let _quiet = quiet();
    let [mut a, mut b] = cabled();
    let mut other = peer(2, 8, at(2));
    other.lanes[1..].iter_mut().for_each(|lane| lane.port = 9);
    a.start(1, map(1, vec![other]), PlaneOptions::lanes(8));
    b.start(2, map(2, vec![peer(1, 8, Vec::new())]), PlaneOptions::lanes(8));
    datagrams("while lanes begin to work", [&a, &b], || {
        std::thread::sleep(WHILE / 4);
        set_map(&a, netmap(1, 2, 8, at(2)));
        let stats = || a.plane().stats().lanes.into_iter();
        eventually(|| stats().all(|lane| lane.handshakes > 0).then_some(()));
        std::thread::sleep(WHILE / 2);
    });
}

#[test]
fn nothing_is_reordered_between_nodes_of_other_numbers_of_lanes() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let _quiet = quiet();
    for lanes in [[8, 2], [2, 8], [8, 1]] {
        let nodes = pair(lanes);
        let [a, b] = [&nodes[0], &nodes[1]];
        datagrams(&format!("{lanes:?}, while sessions begin"), [a, b], || {});
        connections(&format!("{lanes:?}"), [a, b]);
    }
}
