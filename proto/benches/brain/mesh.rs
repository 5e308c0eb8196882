//! A mesh of any size as node a sees it, and packets of its flows.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::{Flat, MeshRange};
use mesh_proto::base::block_map::BlockMap;
use mesh_proto::base::id::{NodeId, NodeName, Revision, ServiceId, ServiceKey, SiteName, TunnelKey};
use mesh_proto::model::netmap::{Backend, LaneInfo, Mesh, NetMap, OwnNode, Peer, Service, ServicePort, Transport};
use mesh_proto::model::rules::Rule;
use mesh_proto::packet;

/// A pod behind node a, as its interface carries it.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 10);
/// The peer that backs the services with even numbers.
pub(crate) const PEER: NodeId = NodeId(1000);
/// What every service is dialled at.
pub(crate) const PORT: u16 = 80;
/// Where every backend listens.
pub(crate) const TARGET: u16 = 8080;

/// How large a mesh is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) peers: u16,
    pub(crate) services: u16,
    pub(crate) rules: u32,
}

/// Returns a service's VIP.
pub(crate) fn vip(service: u16) -> Ipv4Addr {
    let [high, low] = service.to_be_bytes();
    Ipv4Addr::new(241, 0, 16 + high, low)
}

/// Returns the image of the pod that backs a service.
pub(crate) fn backend(size: Size, service: u16) -> Ipv4Addr {
    let [high, low] = (service % size.peers).to_be_bytes();
    Ipv4Addr::new(241, 64 + high, low, 10)
}

/// Builds node a's map: rule n lets one service call another, and the last one lets the pod's service, `s0`, call the
/// one before the last.
pub(crate) fn netmap(size: Size) -> NetMap {
    let name = |text: String| -> NodeName { text.parse().expect("letters and digits") };
    let site = |text: &str| -> SiteName { text.parse().expect("letters and digits") };
    let peer = |i: u16| {
        let [high, low] = i.to_be_bytes();
        let mut key = [7; 32];
        key[..2].copy_from_slice(&i.to_be_bytes());
        let peer = Peer {
            previous: Vec::new(),
            countersigned: None,
            agreement: Vec::new(),
            proof: None,
            id: NodeId(PEER.0 + u32::from(i)),
            site: site("far"),
            address: Flat(Ipv4Addr::new(241, 1, 1 + high, low)),
            blocks: vec![Ipv4Net::new_assert(Ipv4Addr::new(241, 64 + high, low, 0), 24)],
            lanes: vec![LaneInfo { key: TunnelKey(key), port: 51820 }],
            endpoints: vec!["192.0.2.2:51820".parse().expect("an address")],
            mtu: 1420,
            guarded: true,
        };
        (name(format!("n{i}")), peer)
    };
    let service = |i: u16| {
        let own = i == 0;
        let address = if own { Ipv4Addr::new(241, 32, 0, 10) } else { backend(size, i) };
        let backend = Backend {
            name: None,
            node: name(if own { "a".into() } else { format!("n{}", i % size.peers) }),
            address: Flat(address),
            port: None,
            weight: 100,
            tier: 0,
        };
        let port = |transport| ServicePort { name: None, transport, port: PORT, target: TARGET };
        let service = Service {
            grants: Default::default(),
            id: ServiceId(u32::from(i) + 1),
            vip: Flat(vip(i)),
            ports: vec![port(Transport::Tcp), port(Transport::Udp)],
            backends: vec![backend],
            sticky: false,
            strict: false,
        };
        (key(i), service)
    };
    let rule = |line: u32| {
        let services = u32::from(size.services);
        let last = line == size.rules;
        let from = if last { 0 } else { line % services };
        let to = if last { services - 2 } else { line / 10 % services };
        let word = |n: u32| key(n as u16).to_string();
        Rule {
            file: "services.toml".into(),
            line,
            from: vec![word(from).parse().expect("a service")],
            to: vec![word(to).parse().expect("a service")],
        }
    };
    NetMap {
        epoch: Default::default(),
        sites: Default::default(),
        revision: Revision(1),
        mesh: Mesh {
            name: "bench".parse().expect("letters"),
            range: MeshRange::default(),
            domains: vec!["mesh.internal".parse().expect("a domain")],
            coordinators: Vec::new(),
            lock: None,
        },
        node: OwnNode {
            sequence: 0,
            id: NodeId(1),
            name: name("a".into()),
            site: site("near"),
            address: Flat(Ipv4Addr::new(241, 1, 0, 1)),
            blocks: vec![BlockMap {
                real: Ipv4Net::new_assert(Ipv4Addr::new(10, 8, 0, 0), 24),
                flat: Ipv4Net::new_assert(Ipv4Addr::new(241, 32, 0, 0), 24),
            }],
            guarded: true,
        },
        peers: (0..size.peers).map(peer).collect(),
        services: (0..size.services).map(service).collect(),
        names: Default::default(),
        rules: (1..=size.rules).map(rule).collect(),
        warnings: Vec::new(),
    }
}

fn key(service: u16) -> ServiceKey {
    format!("s{service}").parse().expect("letters and digits")
}

/// Flags of a packet that opens a connection, and of one in its midst.
pub(crate) const SYN: u8 = 2;
/// See [`SYN`].
pub(crate) const ACK: u8 = 16;

/// Makes a TCP packet with options, as Linux sends it: 20 and 32 bytes of headers, all checksums right.
pub(crate) fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8, sequence: u32, payload: usize) -> Vec<u8> {
    let length = 52 + payload;
    let mut packet = vec![0; length];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[6] = 0x40;
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..16].copy_from_slice(&from.0.octets());
    packet[16..20].copy_from_slice(&to.0.octets());
    let sum = packet[..20].chunks(2).map(|b| u32::from(b[0]) << 8 | u32::from(b[1])).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet[20..22].copy_from_slice(&from.1.to_be_bytes());
    packet[22..24].copy_from_slice(&to.1.to_be_bytes());
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[28..32].copy_from_slice(&1_u32.to_be_bytes());
    packet[32..36].copy_from_slice(&[0x80, flags, 0xff, 0xff]);
    // No-op, no-op, timestamps.
    packet[40..44].copy_from_slice(&[1, 1, 8, 10]);
    for (i, byte) in packet[52..].iter_mut().enumerate() {
        *byte = i as u8;
    }
    let header = packet::Header::parse(&packet).expect("it is well formed");
    packet::complete(&mut packet, &header);
    packet
}
