//! Real data paths in namespaces, with maps made by hand.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_proto::base::addr::{Flat, MeshRange};
use mesh_proto::base::id::{IdentityKey, NodeId, NodeName, Revision};
use mesh_proto::dataplane::view::View;
use mesh_proto::model::netmap::{LaneInfo, Mesh, NetMap, OwnNode, Peer, Proof};
use mesh_proto::model::rules::Rule;
use mesh_proto::trust::signed_record::{Signature, SignedRecord};
use mesh_proto::verifier::VerifiedMap;
use meshd::dataplane::{Activity, DataPlane, DataPlaneSetup, Handle, LaneKeys, LaneStats, MAX_LANES, Offload};
use rustix::thread::CapabilitySet;
use x25519_dalek::StaticSecret;

use crate::namespaces::{ThreadNamespace, link};

/// The UDP port of lane 0 of every node.
pub(crate) const PORT: u16 = 51820;
/// The MTU of the mesh interface over Ethernet.
pub(crate) const MTU: u16 = 1420;

/// The lane keys of a node.
pub(crate) fn keys(id: u8) -> LaneKeys {
    LaneKeys::derive(&StaticSecret::from([id; 32]), MAX_LANES)
}

/// The name of a node.
pub(crate) fn name(id: u8) -> NodeName {
    format!("n{id}").parse().unwrap()
}

/// The address of a node in the mesh.
pub(crate) fn flat(id: u8) -> Ipv4Addr {
    Ipv4Addr::new(241, 1, 0, id)
}

/// The address of a node in the underlay.
pub(crate) fn outer(id: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, id)
}

/// The map of a node that knows these others and lets everybody call everybody.
pub(crate) fn map(own: u8, peers: Vec<Peer>) -> NetMap {
    NetMap {
        epoch: Default::default(),
        sites: Default::default(),
        revision: Revision(1),
        mesh: Mesh {
            name: "test".parse().unwrap(),
            range: MeshRange::default(),
            domains: Vec::new(),
            coordinators: Vec::new(),
            lock: None,
        },
        node: OwnNode {
            sequence: 0,
            id: NodeId(own.into()),
            name: name(own),
            site: "s".parse().unwrap(),
            address: Flat(flat(own)),
            blocks: Vec::new(),
            guarded: true,
        },
        peers: peers.into_iter().map(|peer| (name(peer.id.0 as u8), peer)).collect(),
        services: BTreeMap::new(),
        names: Default::default(),
        rules: vec![Rule {
            file: "f".into(),
            line: 1,
            from: vec!["any".parse().unwrap()],
            to: vec!["any".parse().unwrap()],
        }],
        warnings: Vec::new(),
    }
}

/// A node of that many lanes at these addresses, as others see it.
pub(crate) fn peer(id: u8, lanes: usize, endpoints: Vec<SocketAddr>) -> Peer {
    let publics = keys(id).publics().into_iter().take(lanes);
    Peer {
        previous: Vec::new(),
        countersigned: None,
        agreement: Vec::new(),
        // What makes it a member, which answers probes.
        proof: Some(Proof {
            identity: IdentityKey([id; 32]),
            record: SignedRecord { text: "".into(), signature: Signature([0; 64]) },
            pods: Vec::new(),
            lineage: Vec::new(),
        }),
        id: NodeId(id.into()),
        site: "s".parse().unwrap(),
        address: Flat(flat(id)),
        blocks: Vec::new(),
        lanes: publics.zip(PORT..).map(|(key, port)| LaneInfo { key, port }).collect(),
        endpoints,
        mtu: MTU,
        guarded: true,
    }
}

/// The map of a node that knows one other, of that many lanes, at these addresses.
pub(crate) fn netmap(own: u8, other: u8, lanes: usize, endpoints: Vec<SocketAddr>) -> NetMap {
    map(own, vec![peer(other, lanes, endpoints)])
}

/// A namespace and the data path that runs in it.
pub(crate) struct PlaneNode {
    pub(crate) namespace: ThreadNamespace,
    pub(crate) plane: Option<DataPlane>,
}

/// How a data path is started.
pub(crate) struct PlaneOptions {
    pub(crate) lanes: usize,
    pub(crate) flow_file: Option<PathBuf>,
    pub(crate) active: Vec<Activity>,
    pub(crate) mtu: u16,
    pub(crate) offload: Offload,
    /// Whether it may have the kernel run its program, and so give every flow one lane.
    pub(crate) steers: bool,
}

impl PlaneOptions {
    pub(crate) fn lanes(lanes: usize) -> Self {
        Self { lanes, flow_file: None, active: Vec::new(), mtu: MTU, offload: Offload::default(), steers: true }
    }
}

/// What a node starts its data path with.
pub(crate) fn setup(own: u8, map: NetMap, options: PlaneOptions) -> DataPlaneSetup {
    DataPlaneSetup {
        interface: "mesh0".into(),
        lanes: options.lanes,
        offload: options.offload,
        port: PORT,
        mark: 0x6d65,
        mtu: options.mtu,
        keys: keys(own),
        flow_file: options.flow_file,
        vault: None,
        view: Arc::new(View::compile(VerifiedMap::by_hand(map))),
        locals: Arc::from([outer(own)]),
        next_hops: Arc::from([]),
        active: options.active,
    }
}

impl PlaneNode {
    pub(crate) fn new() -> Self {
        Self { namespace: ThreadNamespace::new(), plane: None }
    }

    pub(crate) fn start(&mut self, own: u8, map: NetMap, options: PlaneOptions) {
        let (steers, mtu) = (options.steers, options.mtu);
        let setup = setup(own, map, options);
        let start = move || {
            if !steers {
                let mut sets = rustix::thread::capabilities(None).unwrap();
                sets.effective.remove(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN);
                rustix::thread::set_capabilities(None, sets).unwrap();
            }
            DataPlane::start(setup)
        };
        self.plane = Some(self.namespace.run(start).unwrap());
        self.namespace.address("mesh0", flat(own), 8, mtu);
    }

    pub(crate) fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.namespace.run(f)
    }

    pub(crate) fn plane(&self) -> &Handle {
        self.plane.as_ref().unwrap().handle()
    }

    /// What the node's only, or first, lane did.
    pub(crate) fn lane(&self) -> LaneStats {
        self.plane().stats().lanes.remove(0)
    }

    pub(crate) fn drops(&self) -> BTreeMap<&'static str, u64> {
        let drops = self.plane().stats().drops;
        // The kernel asks for IPv6 routers on every interface.
        drops.into_iter().filter(|&(reason, count)| count > 0 && reason != "not_ipv4").collect()
    }
}

/// Two namespaces joined by a cable; node i has 192.0.2.i.
pub(crate) fn cabled() -> [PlaneNode; 2] {
    let nodes = [PlaneNode::new(), PlaneNode::new()];
    link(&nodes[0].namespace, &nodes[1].namespace, "eth0");
    for (node, id) in nodes.iter().zip(1..) {
        node.namespace.address("eth0", outer(id), 24, 1500);
        node.namespace.address6("eth0", format!("fd00::{id}").parse().unwrap(), 64);
    }
    nodes
}

/// Where a node's lane 0 is to be found.
pub(crate) fn at(id: u8) -> Vec<SocketAddr> {
    vec![SocketAddr::from((outer(id), PORT))]
}

/// Two nodes of these lane counts that know each other.
pub(crate) fn pair(lanes: [usize; 2]) -> [PlaneNode; 2] {
    let [mut a, mut b] = cabled();
    a.start(1, netmap(1, 2, lanes[1], at(2)), PlaneOptions::lanes(lanes[0]));
    b.start(2, netmap(2, 1, lanes[0], at(1)), PlaneOptions::lanes(lanes[1]));
    [a, b]
}

/// Echoes on TCP, one connection after the other, until a byte 0 comes first.
pub(crate) fn echo_server(node: &PlaneNode, id: u8) -> JoinHandle<()> {
    let listener = node.run(move || TcpListener::bind((flat(id), 7000)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                if byte == [0] {
                    return;
                }
                stream.write_all(&byte).unwrap();
            }
        }
    })
}

/// Connects to the echo server of a node.
pub(crate) fn connect(node: &PlaneNode, to: u8) -> TcpStream {
    let address = SocketAddr::from((flat(to), 7000));
    let stream = node.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)));
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

pub(crate) fn echo(stream: &mut TcpStream, byte: u8) {
    stream.write_all(&[byte]).unwrap();
    let mut back = [0];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, [byte]);
}

/// What `what` says, once it says something; waits at most 5 s.
pub(crate) fn eventually<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = what() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "it never happened");
        std::thread::yield_now();
    }
}
