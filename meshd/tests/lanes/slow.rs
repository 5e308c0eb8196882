//! A peer that is slow or dead blocks nobody else: what goes to another is answered all the same.
//!
//! The bound is generous, for test machines are slow: no answer, no connection and no stretch of a transfer takes
//! longer than half a second, while as much as the lanes can carry is sent to the dead one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespaces::{link, privileged};
use crate::planes::{MTU, PORT, PlaneNode, PlaneOptions, at, eventually, flat, map, outer, peer, setup};
use crate::quiet;

/// The longest that anything may take that has nothing to do with the dead peer.
const BOUND: Duration = Duration::from_millis(500);
/// How long each is watched.
const WHILE: Duration = Duration::from_secs(2);
const LANES: usize = 4;
/// Flows to the dead peer, so that every lane has some.
const FLOWS: usize = 64;

/// A node's address on the second cable.
fn far(id: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, id)
}

/// PlaneNode 1, cabled to node 2 by one cable and to node 3 by another.
fn star() -> [PlaneNode; 3] {
    let nodes = [PlaneNode::new(), PlaneNode::new(), PlaneNode::new()];
    link(&nodes[0].namespace, &nodes[1].namespace, "eth0");
    link(&nodes[0].namespace, &nodes[2].namespace, "eth1");
    nodes[0].namespace.address("eth0", outer(1), 24, 1500);
    nodes[1].namespace.address("eth0", outer(2), 24, 1500);
    nodes[0].namespace.address("eth1", far(1), 24, 1500);
    nodes[2].namespace.address("eth1", far(3), 24, 1500);
    nodes
}

fn start(nodes: &mut [PlaneNode; 3], third: Ipv4Addr) {
    let third = peer(3, LANES, vec![SocketAddr::from((third, PORT))]);
    nodes[0].start(1, map(1, vec![peer(2, LANES, at(2)), third]), PlaneOptions::lanes(LANES));
    nodes[1].start(2, map(2, vec![peer(1, LANES, at(1))]), PlaneOptions::lanes(LANES));
}

/// Sends to node 3 on all lanes until told to stop, by datagrams and by a connection if there is one.
fn flood(from: &PlaneNode, connection: Option<TcpStream>, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let sockets: Vec<UdpSocket> = (0..FLOWS).map(|_| from.run(|| UdpSocket::bind((flat(1), 0)).unwrap())).collect();
    sockets.iter().for_each(|socket| socket.connect((flat(3), 7200)).unwrap());
    let stopped = Arc::clone(stop);
    let datagrams = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            for socket in &sockets {
                // Refused by and by: nobody is there.
                let _ = socket.send(&[3; 1200]);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let stopped = Arc::clone(stop);
    let bytes = connection.map(|mut stream| {
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = stream.write(&[3; 1 << 16]);
            }
        })
    });
    std::iter::once(datagrams).chain(bytes).collect()
}

/// Answers datagrams, and takes connections and what they bring, at node 2.
fn answer(node: &PlaneNode) -> [JoinHandle<()>; 2] {
    let udp = node.run(|| UdpSocket::bind((flat(2), 7000)).unwrap());
    udp.set_read_timeout(Some(2 * WHILE)).unwrap();
    let listener = node.run(|| TcpListener::bind((flat(2), 7001)).unwrap());
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while let Ok((_, from)) = udp.recv_from(&mut byte) {
            udp.send_to(&byte, from).unwrap();
            if byte == [0] {
                return;
            }
        }
    });
    let sink = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((mut stream, _)) = listener.accept() {
            stream.write_all(b"!").unwrap();
            let mut last = 0;
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                last = buffer[read - 1];
            }
            if last == 9 {
                return;
            }
        }
    });
    [echo, sink]
}

/// The longest that an answer, a connection, and a stretch of a transfer took.
#[derive(Debug, Default)]
struct Longest {
    answer: Duration,
    connect: Duration,
    stretch: Duration,
}

/// Talks to node 2 in all ways for a while.
fn talk(from: &PlaneNode) -> Longest {
    let mut longest = Longest::default();
    let connect = || {
        let mut stream = from.run(|| TcpStream::connect_timeout(&(flat(2), 7001).into(), 2 * WHILE)).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    let socket = || {
        let socket = from.run(|| UdpSocket::bind((flat(1), 0)).unwrap());
        socket.connect((flat(2), 7000)).unwrap();
        socket.set_read_timeout(Some(2 * WHILE)).unwrap();
        socket
    };
    let sockets: Vec<UdpSocket> = (0..16).map(|_| socket()).collect();
    let begin = Instant::now();
    let time = |longest: &mut Duration, f: &mut dyn FnMut()| {
        let before = Instant::now();
        f();
        *longest = before.elapsed().max(*longest);
    };
    while begin.elapsed() < WHILE {
        for socket in &sockets {
            time(&mut longest.answer, &mut || {
                socket.send(&[1]).unwrap();
                socket.recv(&mut [0]).unwrap();
            });
        }
        let mut stream = None;
        time(&mut longest.connect, &mut || stream = Some(connect()));
        for _ in 0..16 {
            // As much as a full window, so that it waits for the other end.
            time(&mut longest.stretch, &mut || stream.as_mut().unwrap().write_all(&[1; 1 << 17]).unwrap());
        }
    }
    sockets[0].send(&[0]).unwrap();
    connect().write_all(&[9]).unwrap();
    longest
}

/// Floods node 3, which is dead by now, and shows that node 2 is none the worse for it.
fn others_are_answered(what: &str, nodes: &[PlaneNode; 3], connection: Option<TcpStream>) {
    let servers = answer(&nodes[1]);
    let stop = Arc::default();
    let flood = flood(&nodes[0], connection, &stop);
    std::thread::sleep(WHILE / 4);

    let longest = talk(&nodes[0]);

    stop.store(true, Ordering::Relaxed);
    flood.into_iter().chain(servers).for_each(|thread| thread.join().unwrap());
    let Longest { answer, connect, stretch } = longest;
    assert!([answer, connect, stretch].into_iter().all(|took| took < BOUND), "{what}: {longest:?}");
}

/// Makes sure that node 1 has a session with node 3 on every lane, and returns a connection that nobody reads from.
fn befriend(nodes: &[PlaneNode; 3]) -> TcpStream {
    let listener = nodes[2].run(|| TcpListener::bind((flat(3), 7300)).unwrap());
    let stream = nodes[0].run(|| TcpStream::connect((flat(3), 7300)).unwrap());
    listener.accept().unwrap();
    let stats = || nodes[0].plane().stats();
    eventually(|| stats().lanes.iter().all(|lane| lane.handshakes > 0).then_some(()));
    stream
}

#[test]
fn a_peer_that_never_answers_blocks_nobody_not_even_a_first_contact() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let _quiet = quiet();
    let mut nodes = star();
    // No neighbour has that address.
    start(&mut nodes, far(99));

    others_are_answered("a peer that never answers", &nodes, None);

    let lost = nodes[0].drops();
    assert!(lost["no_tunnel"] > 1000 && lost.len() == 1, "what goes to the dead one is counted as such: {lost:?}");
}

#[test]
fn a_peer_that_vanishes_blocks_nobody() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let _quiet = quiet();
    let mut nodes = star();
    start(&mut nodes, far(3));
    nodes[2].start(3, map(3, vec![peer(1, LANES, vec![SocketAddr::from((far(1), PORT))])]), PlaneOptions::lanes(LANES));
    let connection = befriend(&nodes);

    // Frames still arrive for as long as the neighbour is remembered, and are dropped; then nobody answers for it.
    nodes[2].namespace.take_address("eth1", far(3));
    others_are_answered("a peer that vanishes", &nodes, Some(connection));
}

/// PlaneNode 3 as a process of its own, which can be stopped.
struct Process(Child, #[expect(dead_code, reason = "it ends when this is closed")] Option<ChildStdin>);

impl Process {
    fn start(inside: &PlaneNode) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "slow::node_3_as_a_process", "--ignored"]).env(NODE_3, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = inside.run(move || command.spawn().unwrap());
        let stdin = child.stdin.take();
        Self(child, stdin)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says to the process that it is node 3.
const NODE_3: &str = "MESH_TEST_NODE_3";

#[test]
#[ignore = "part of another test"]
fn node_3_as_a_process() {
    if std::env::var_os(NODE_3).is_none() {
        return;
    }
    let other = peer(1, LANES, vec![SocketAddr::from((far(1), PORT))]);
    let plane = meshd::dataplane::DataPlane::start(setup(3, map(3, vec![other]), PlaneOptions::lanes(LANES))).unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    plane.stop();
}

#[test]
fn a_peer_that_is_stopped_with_full_buffers_blocks_nobody_and_goes_on_later() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let _quiet = quiet();
    let mut nodes = star();
    start(&mut nodes, far(3));
    let process = Process::start(&nodes[2]);
    eventually(|| nodes[2].namespace.exists("mesh0").then_some(()));
    nodes[2].namespace.address("mesh0", flat(3), 8, MTU);
    let connection = befriend(&nodes);

    process.signal(Signal::SIGSTOP);
    others_are_answered("a stopped peer", &nodes, Some(connection));
    process.signal(Signal::SIGCONT);
    befriend(&nodes);
}
