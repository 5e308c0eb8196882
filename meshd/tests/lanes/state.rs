//! Where a flow's state lives: in one table for all lanes, so that a flow keeps its backend whichever lane the kernel
//! or the peer chooses for it, however long it was silent, and whatever becomes of the other backends.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use mesh_proto::base::addr::Flat;
use mesh_proto::base::block_map::BlockMap;
use mesh_proto::base::id::{Revision, ServiceId};
use mesh_proto::dataplane::view::View;
use mesh_proto::model::netmap::{Backend, NetMap, Service, ServicePort, Transport};
use mesh_proto::verifier::VerifiedMap;

use crate::namespaces::privileged;
use crate::planes::{PlaneNode, PlaneOptions, at, cabled, map, name, peer};

const VIP: Ipv4Addr = Ipv4Addr::new(241, 0, 0, 10);
const DIALLED: u16 = 80;
const LISTENED: u16 = 8080;
/// Flows of each kind per pair of nodes.
const FLOWS: usize = 6;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the kernel remembers by itself which queue a flow was answered on: 3 s (drivers/net/tun.c).
const LONGER_THAN_THE_KERNEL: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(60);

/// The pod that backs the service under that number, and its image in the mesh.
fn pod(number: u8) -> (Ipv4Addr, Ipv4Addr) {
    (Ipv4Addr::new(10, 9, 0, number), Ipv4Addr::new(241, 16, 2, number))
}

/// The map of node 1 or 2 at a revision: node 2 has the pods, and these back the service with these weights.
fn with_backends(own: u8, lanes: usize, revision: u64, backends: &[(u8, u32)]) -> NetMap {
    let real = "10.9.0.0/24".parse().unwrap();
    let flat = "241.16.2.0/24".parse().unwrap();
    let mut other = peer(3 - own, lanes, at(3 - own));
    if own == 1 {
        other.blocks.push(flat);
    }
    let mut map = map(own, vec![other]);
    if own == 2 {
        map.node.blocks.push(BlockMap { real, flat });
    }
    map.revision = Revision(revision);
    let backend = |&(number, weight): &(u8, u32)| Backend {
        name: None,
        node: name(2),
        address: Flat(pod(number).1),
        port: None,
        weight,
        tier: 0,
    };
    let port = |transport| ServicePort { name: None, transport, port: DIALLED, target: LISTENED };
    let service = Service {
        grants: Default::default(),
        id: ServiceId(1),
        vip: Flat(VIP),
        ports: vec![port(Transport::Tcp), port(Transport::Udp)],
        backends: backends.iter().map(backend).collect(),
        sticky: false,
        strict: false,
    };
    map.services.insert("web".parse().unwrap(), service);
    map
}

/// A backend that answers every byte with its number, until the byte 0 comes by UDP.
fn serve(node: &PlaneNode, number: u8) {
    let address = (pod(number).0, LISTENED);
    node.namespace.address("lo", address.0, 32, u16::MAX);
    let (tcp, udp) = node.run(move || (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()));
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let answer = move || {
                let mut byte = [0];
                while let Ok(1) = stream.read(&mut byte) {
                    stream.write_all(&[number, byte[0]]).unwrap();
                }
            };
            std::thread::spawn(answer);
        }
    });
    std::thread::spawn(move || {
        let mut byte = [0];
        while let Ok((1, from)) = udp.recv_from(&mut byte) {
            let _ = udp.send_to(&[number, byte[0]], from);
        }
    });
}

/// A flow through the VIP.
enum Flow {
    Connection(TcpStream),
    Datagrams(UdpSocket),
}

impl Flow {
    /// Says which backend answers.
    fn ask(&mut self, byte: u8) -> io::Result<u8> {
        let mut answer = [0; 2];
        match self {
            Self::Connection(stream) => {
                stream.write_all(&[byte])?;
                stream.read_exact(&mut answer)?;
            }
            Self::Datagrams(socket) => {
                socket.send(&[byte])?;
                socket.recv(&mut answer)?;
            }
        }
        assert_eq!(answer[1], byte);
        Ok(answer[0])
    }
}

fn open(node: &PlaneNode) -> Vec<Flow> {
    let vip = SocketAddr::from((VIP, DIALLED));
    let connection = |_| {
        let stream = node.run(move || TcpStream::connect_timeout(&vip, ANSWER)).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        stream.set_nodelay(true).unwrap();
        Flow::Connection(stream)
    };
    let datagrams = |_| {
        let socket = node.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect(vip).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        Flow::Datagrams(socket)
    };
    (0..FLOWS).map(connection).chain((0..FLOWS).map(datagrams)).collect()
}

/// One pair of nodes: flows through a VIP that fall silent while backends come, go and change their weights.
fn keeps_backends(lanes: [usize; 2], steers: bool) {
    let what = format!("{lanes:?} lanes, the kernel steered: {steers}");
    let [mut a, mut b] = cabled();
    let first = [(1, 100), (2, 100), (3, 100)];
    a.start(1, with_backends(1, lanes[1], 1, &first), PlaneOptions { steers, ..PlaneOptions::lanes(lanes[0]) });
    b.start(2, with_backends(2, lanes[0], 1, &first), PlaneOptions { steers, ..PlaneOptions::lanes(lanes[1]) });
    (1..=5).for_each(|number| serve(&b, number));
    let set = |revision: u64, backends: &[(u8, u32)]| {
        for (node, own, lanes) in [(&a, 1, lanes[1]), (&b, 2, lanes[0])] {
            let map = with_backends(own, lanes, revision, backends);
            node.plane().set_view(Arc::new(View::compile(VerifiedMap::by_hand(map))));
        }
    };

    let mut flows: Vec<(Flow, u8)> = Vec::new();
    for mut flow in open(&a) {
        let backend = flow.ask(1).unwrap();
        flows.push((flow, backend));
    }
    let used: BTreeSet<u8> = flows.iter().map(|(_, backend)| *backend).collect();
    assert_eq!(used, BTreeSet::from([1, 2, 3]), "{what}");

    // One comes, one goes, the others change their weights, one to nothing.
    set(2, &[(1, 0), (2, 50), (4, 100)]);
    flows.retain(|(_, backend)| *backend != 3);
    let mut all_stay = |moment: &str| {
        for (flow, backend) in &mut flows {
            for byte in 2..12 {
                let answered = flow.ask(byte).map_err(|error| format!("{what}, {moment}: {error}"));
                assert_eq!(answered, Ok(*backend), "{what}, {moment}");
            }
        }
    };
    all_stay("at once");
    sleep(LONGER_THAN_THE_KERNEL);
    all_stay("after 5 s");
    sleep(LONG / 2);
    set(3, &[(5, 100), (1, 10), (2, 1)]);
    sleep(LONG / 2);
    all_stay("after 60 s");
    for mut flow in open(&a).into_iter().take(2) {
        assert_eq!(flow.ask(1).unwrap(), 5, "{what}: new flows go by the new weights");
    }
    // Eight lanes that greet one are more than a source may do at once; they come again with a cookie.
    let expected = ["backend_gone", "handshake_limited"];
    let drops = [&a, &b].map(|node| node.drops().into_keys().filter(|why| !expected.contains(why)).collect::<Vec<_>>());
    assert!(drops.iter().all(Vec::is_empty), "{what}: {drops:?}");
}

#[test]
fn a_flow_keeps_its_backend_over_silences_of_5_and_60_s_for_all_numbers_of_lanes() {
    if !privileged("data paths in namespaces") {
        return;
    }
    let started = Instant::now();
    let counts = [1, 2, 4, 8];
    let pairs = counts.into_iter().flat_map(|a| counts.map(|b| [a, b]));
    // Every other pair without our program in the kernel, where flows change their lanes.
    let tests: Vec<_> = pairs.zip([true, false].into_iter().cycle()).collect();
    let threads = tests.into_iter().map(|(lanes, steers)| std::thread::spawn(move || keeps_backends(lanes, steers)));
    let threads: Vec<_> = threads.collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(started.elapsed() > LONGER_THAN_THE_KERNEL + LONG);
}
