//! A small mesh for unit tests: node a (this one, site s1) with pods, node b (site s2) with pods, three services.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::base::addr::{Flat, MeshRange};
use crate::base::block_map::BlockMap;
use crate::base::id::{IdentityKey, NodeId, Revision, ServiceId, TunnelKey};
use crate::model::netmap::{Backend, LaneInfo, Mesh, NetMap, OwnNode, Peer, Service, ServicePort, Transport};
use crate::model::rules::Rule;
use crate::trust::signed_record::Signature;

/// A rule at a line, from these words, to those.
pub(crate) struct RuleAt<'a>(pub(crate) u32, pub(crate) &'a [&'a str], pub(crate) &'a [&'a str]);

/// Node a's own address.
pub(crate) const NODE_A: &str = "241.1.0.1";
/// Node b's own address.
pub(crate) const NODE_B: &str = "241.1.0.2";
/// The image of 10.8.0.10 at node a: backs `front`.
pub(crate) const POD_A: &str = "241.2.0.10";
/// The image of 10.8.0.11 at node a: backs `near`.
pub(crate) const POD_A2: &str = "241.2.0.11";
/// The image of 10.8.0.10 at node b: backs `cart` at 8070.
pub(crate) const POD_B: &str = "241.2.1.10";
/// The VIP of `cart`, port 7070 to 8070.
pub(crate) const CART: &str = "241.0.0.1";
/// The VIP of `near`, backed by a pod of node a, port 80 to 8080.
pub(crate) const NEAR: &str = "241.0.0.4";
/// The VIP of `store`, backed by node a itself, port 5000, TCP and UDP.
pub(crate) const STORE: &str = "241.0.0.3";
/// Node b's number.
pub(crate) const B: NodeId = NodeId(2);

/// Builds the map of node a.
pub(crate) fn netmap(rules: &[RuleAt<'_>]) -> NetMap {
    let rule = |RuleAt(line, from, to): &RuleAt<'_>| Rule {
        file: "services.toml".into(),
        line: *line,
        from: from.iter().map(|w| w.parse().unwrap()).collect(),
        to: to.iter().map(|w| w.parse().unwrap()).collect(),
    };
    let peer = Peer {
        previous: Vec::new(),
        countersigned: None,
        agreement: vec![TunnelKey([3; 32])],
        proof: None,
        id: B,
        site: "s2".parse().unwrap(),
        address: Flat(NODE_B.parse().unwrap()),
        blocks: vec!["241.2.1.0/24".parse().unwrap()],
        lanes: vec![LaneInfo { key: TunnelKey([2; 32]), port: 51820 }],
        endpoints: vec!["192.0.2.2:51820".parse().unwrap()],
        mtu: 1420,
        guarded: true,
    };
    NetMap {
        epoch: Default::default(),
        sites: Default::default(),
        revision: Revision(1),
        mesh: Mesh {
            name: "test".parse().unwrap(),
            range: MeshRange::default(),
            domains: vec!["mesh.internal".parse().unwrap()],
            coordinators: Vec::new(),
            lock: None,
        },
        node: OwnNode {
            sequence: 0,
            id: NodeId(1),
            name: "a".parse().unwrap(),
            site: "s1".parse().unwrap(),
            address: Flat(NODE_A.parse().unwrap()),
            blocks: vec![BlockMap { real: "10.8.0.0/24".parse().unwrap(), flat: "241.2.0.0/24".parse().unwrap() }],
            guarded: true,
        },
        peers: [("b".parse().unwrap(), peer)].into(),
        services: [
            service("cart", 1, CART, 7070, 8070, "b", POD_B),
            service("front", 2, "241.0.0.2", 80, 8080, "a", POD_A),
            service("store", 3, STORE, 5000, 5000, "a", NODE_A),
            service("near", 4, NEAR, 80, 8080, "a", POD_A2),
        ]
        .into(),
        names: Default::default(),
        rules: rules.iter().map(rule).collect(),
        warnings: Vec::new(),
    }
}

fn service(
    name: &str,
    id: u32,
    vip: &str,
    port: u16,
    target: u16,
    node: &str,
    address: &str,
) -> (crate::base::id::ServiceKey, Service) {
    let port = |transport| ServicePort { name: None, transport, port, target };
    let backend = Backend {
        name: None,
        node: node.parse().unwrap(),
        address: Flat(address.parse().unwrap()),
        port: None,
        weight: 100,
        tier: 0,
    };
    let service = Service {
        grants: Default::default(),
        id: ServiceId(id),
        vip: Flat(vip.parse().unwrap()),
        ports: vec![port(Transport::Tcp), port(Transport::Udp)],
        backends: vec![backend],
        sticky: false,
        strict: false,
    };
    (name.parse().unwrap(), service)
}

/// A stand-in that only whoever has the key can make here: the key, and a sum of the message.
pub(crate) fn sign(key: &IdentityKey, message: &[u8]) -> Signature {
    let sum = message.iter().fold(7u64, |sum, &b| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(b));
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&key.0);
    bytes[32..40].copy_from_slice(&sum.to_le_bytes());
    Signature(bytes)
}

/// Says whether `sign` made it.
pub(crate) fn verify(key: &IdentityKey, message: &[u8], signature: &Signature) -> bool {
    sign(key, message) == *signature
}
