//! Two nodes, engine and all, over a link in memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_proto::base::addr::{Flat, MeshRange};
use mesh_proto::base::id::{IdentityKey, Revision};
use mesh_proto::model::netmap::{LaneInfo, Mesh, NetMap, OwnNode, Peer, Proof};
use mesh_proto::model::rules::Rule;
use mesh_proto::packet::Ecn;
use mesh_proto::trust::signed_record::{Signature, SignedRecord};
use mesh_proto::verifier::VerifiedMap;

use x25519_dalek::StaticSecret;

use tokio::sync::watch;

use super::*;
use crate::dataplane::bench::lane_end::{LaneEnd, Phase};
use crate::io::udp_outbox::Endpoint;

mod bench;
mod hole;
mod told;

use crate::io::tun_outbox::Taken;
use crate::keys::lanes::LaneKeys;

const PORT: u16 = 51820;

struct Node {
    lanes: Vec<Lane>,
    counters: Vec<Arc<Counters>>,
    peers: Arc<TunnelPeers>,
    phases: watch::Sender<Phase>,
    /// What the kernel got: device header and packet.
    delivered: Vec<(VnetHeader, Vec<u8>)>,
}

struct Pair {
    nodes: [Node; 2],
    closed: Option<u16>,
    /// What the way makes of every outer ECN field.
    mark: Option<Ecn>,
    /// The largest datagram to node 1 that the way does not swallow.
    most: Option<usize>,
    now: Timestamp,
}

fn keys(node: usize) -> LaneKeys {
    LaneKeys::derive(&StaticSecret::from([node as u8 + 1; 32]), 2)
}

fn outer(node: usize, lane: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node as u8], PORT + lane as u16))
}

fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(241, 1, 0, node as u8 + 1)
}

pub(crate) fn netmap(own: usize, allowed: bool) -> NetMap {
    let other = 1 - own;
    let lanes = keys(other).publics().into_iter().zip(PORT..).map(|(key, port)| LaneInfo { key, port });
    let record = SignedRecord { text: "".into(), signature: Signature([0; 64]) };
    let peer = Peer {
        previous: Vec::new(),
        countersigned: None,
        agreement: Vec::new(),
        // What makes it a member, which answers probes.
        proof: Some(Proof {
            identity: IdentityKey([other as u8 + 1; 32]),
            record,
            pods: Vec::new(),
            lineage: Vec::new(),
        }),
        id: NodeId(other as u32 + 1),
        site: "s".parse().unwrap(),
        address: Flat(address(other)),
        blocks: Vec::new(),
        lanes: lanes.collect(),
        endpoints: vec![outer(other, 0)],
        mtu: 1420,
        guarded: true,
    };
    let rule = Rule { file: "f".into(), line: 1, from: vec!["any".parse().unwrap()], to: vec!["any".parse().unwrap()] };
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
            id: NodeId(own as u32 + 1),
            name: format!("n{own}").parse().unwrap(),
            site: "s".parse().unwrap(),
            address: Flat(address(own)),
            blocks: Vec::new(),
            guarded: true,
        },
        peers: BTreeMap::from([(format!("n{other}").parse().unwrap(), peer)]),
        services: BTreeMap::new(),
        names: Default::default(),
        rules: if allowed { vec![rule] } else { Vec::new() },
        warnings: Vec::new(),
    }
}

impl Node {
    fn new(own: usize, allowed: bool) -> Self {
        let view = Arc::new(View::compile(VerifiedMap::by_hand(netmap(own, allowed))));
        let keys = keys(own);
        let peers = Arc::new(TunnelPeers::compile(view.netmap(), &keys.publics(), None, None));
        let counters = [Arc::<Counters>::default(), Arc::default()];
        let flows = Arc::new(FlowTable::new(1 << 10));
        let handover = Arc::new(Handover::new());
        let phases = watch::Sender::default();
        let lane = |lane: usize| {
            Lane::new(Parts {
                lane,
                key: &keys.of(lane),
                view: Arc::clone(&view),
                peers: Arc::clone(&peers),
                flows: Arc::clone(&flows),
                counters: Arc::clone(&counters[lane]),
                handover: Arc::clone(&handover),
                speaker: LaneEnd::new(lane, phases.subscribe(), Arc::clone(&counters[lane])),
                mtu: 1420,
            })
        };
        let lanes = vec![lane(0), lane(1)];
        Self { lanes, counters: counters.to_vec(), peers, phases, delivered: Vec::new() }
    }

    fn count(&self, reason: &str) -> u64 {
        let mut drops = BTreeMap::new();
        self.counters.iter().for_each(|counters| counters.add_drops(&mut drops));
        drops[reason]
    }
}

impl Pair {
    fn new(allowed: bool) -> Self {
        let nodes = [Node::new(0, allowed), Node::new(1, allowed)];
        Self { nodes, closed: None, mark: None, most: None, now: Timestamp::from_millis(1_000_000) }
    }

    /// Does something with a lane and lets everything that follows happen.
    fn with(&mut self, node: usize, lane: usize, f: impl FnOnce(&mut Lane, &mut Out, Timestamp)) {
        let mut out = Out::new(2 * ROOM);
        f(&mut self.nodes[node].lanes[lane], &mut out, self.now);
        let mut flying: Vec<(usize, usize, Out)> = vec![(node, lane, out)];
        while let Some((node, lane, mut out)) = flying.pop() {
            let delivered = &mut self.nodes[node].delivered;
            out.tun.drain(|parts| {
                let vnet = VnetHeader::parse(parts[0].first_chunk().unwrap()).unwrap();
                delivered.push((vnet, joined(&parts[1..])));
                Taken::Yes
            });
            for run in out.udp.runs() {
                let (to, peer, port) = (run.endpoint, 1 - node, run.endpoint.remote.port());
                if self.closed == Some(port) {
                    continue;
                }
                let message = out.udp.bytes(run);
                if peer == 1 && self.most.is_some_and(|most| run.segment > most) {
                    continue;
                }
                let mut out = Out::new(2 * ROOM);
                let target = usize::from(port - PORT);
                let from = Endpoint { remote: outer(node, lane), local: Some(to.remote.ip()) };
                let receiver = &mut self.nodes[peer].lanes[target];
                receiver.begin_turn();
                let run = DatagramRun { endpoint: from, ecn: self.mark.unwrap_or(run.ecn), ..*run };
                receiver.handle_datagrams(&run, message, &mut out, self.now);
                receiver.finish_train(&mut out, self.now);
                flying.insert(0, (peer, target, out));
            }
            while lane > 0 && self.nodes[node].lanes[lane].take_handed_over() {
                let mut out = Out::new(2 * ROOM);
                while self.nodes[node].lanes[0].handle_handover(&mut out, self.now) {}
                flying.insert(0, (node, 0, out));
            }
        }
    }

    fn send(&mut self, node: usize, lane: usize, mut packet: Vec<u8>, vnet: VnetHeader) {
        self.with(node, lane, |l, out, now| l.handle_packet(&mut packet, Some(vnet), out, now));
    }
}

/// The same packet from a sender that has set these bits of the type of service.
fn with_tos(mut packet: Vec<u8>, tos: u8) -> Vec<u8> {
    let sum = u16::from_be_bytes([packet[10], packet[11]]);
    packet[1] = tos;
    let changed = sum.checked_sub(tos.into()).unwrap_or_else(|| sum.wrapping_sub(u16::from(tos) + 1));
    packet[10..12].copy_from_slice(&changed.to_be_bytes());
    packet
}

/// A TCP packet from one node to the other, with a checksum that is right.
fn tcp(from: usize, flags: u8, payload: usize) -> Vec<u8> {
    let mut packet = vec![0; 40 + payload];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(40 + payload as u16).to_be_bytes());
    packet[6] = 0x40;
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..16].copy_from_slice(&address(from).octets());
    packet[16..20].copy_from_slice(&address(1 - from).octets());
    let ports = if from == 0 { [1000u16, 80] } else { [80, 1000] };
    packet[20..22].copy_from_slice(&ports[0].to_be_bytes());
    packet[22..24].copy_from_slice(&ports[1].to_be_bytes());
    packet[32..34].copy_from_slice(&[0x50, flags]);
    (40..packet.len()).for_each(|i| packet[i] = (i * 7) as u8);
    let sum = packet[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let header = Header::parse(&packet).unwrap();
    packet::complete(&mut packet, &header);
    packet
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// The same with the checksum left to the device.
fn partial(mut packet: Vec<u8>, gso: Gso, gso_size: u16) -> (Vec<u8>, VnetHeader) {
    // The sum of the pseudo-header: both addresses, the protocol, the length.
    let words = packet[12..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum = words.sum::<u32>() + 6 + (packet.len() as u32 - 20);
    packet[36..38].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
    let vnet = VnetHeader { needs_checksum: true, gso, gso_size, checksum_start: 20, checksum_offset: 16 };
    (packet, vnet)
}

#[test]
fn packets_pass_both_ways_on_either_lane() {
    for lane in 0..2 {
        let mut pair = Pair::new(true);
        pair.send(0, lane, tcp(0, SYN, 0), VnetHeader::default());
        pair.send(1, lane, tcp(1, SYN | ACK, 0), VnetHeader::default());
        pair.send(0, lane, tcp(0, ACK, 1000), VnetHeader::default());

        assert_eq!(pair.nodes[1].delivered.len(), 2);
        assert_eq!(pair.nodes[1].delivered[1].1, tcp(0, ACK, 1000));
        assert_eq!(pair.nodes[0].delivered[0].1, tcp(1, SYN | ACK, 0));
    }
}

#[test]
fn a_lane_without_a_session_sends_by_lane_0_and_loses_nothing() {
    let mut pair = Pair::new(true);
    pair.closed = Some(PORT + 1);
    for _ in 0..10 {
        pair.send(0, 1, tcp(0, SYN, 0), VnetHeader::default());
    }
    assert_eq!(pair.nodes[1].delivered.len(), 10);
    assert_eq!(pair.nodes[0].counters[1].handovers.get(), 10);
}

#[test]
fn a_partial_checksum_is_completed_before_the_packet_leaves() {
    let mut pair = Pair::new(true);
    let whole = tcp(0, SYN, 0);
    let (packet, vnet) = partial(whole.clone(), Gso::None, 0);
    pair.send(0, 0, packet, vnet);
    assert_eq!(pair.nodes[1].delivered, [(VnetHeader::default(), whole)]);
}

#[test]
fn a_super_packet_is_split_on_the_way_and_gathered_at_the_other_end() {
    let mut pair = Pair::new(true);
    pair.send(0, 0, tcp(0, SYN, 0), VnetHeader::default());
    pair.send(1, 0, tcp(1, SYN | ACK, 0), VnetHeader::default());
    let (packet, vnet) = partial(tcp(0, ACK, 1380 * 10 + 77), Gso::Tcp4 { ecn: false }, 1380);

    // All segments in one batch, as a socket gives them.
    let mut out = Out::new(2 * ROOM);
    let now = pair.now;
    pair.nodes[0].lanes[0].handle_packet(&mut packet.clone(), Some(vnet), &mut out, now);
    assert_eq!(out.udp.runs().len(), 1, "one call to the kernel");
    let mut received = Out::new(2 * ROOM);
    let from = Endpoint { remote: outer(0, 0), local: None };
    for run in out.udp.runs() {
        let message = DatagramRun { endpoint: from, ..*run };
        pair.nodes[1].lanes[0].handle_datagrams(&message, out.udp.bytes(run), &mut received, now);
    }
    pair.nodes[1].lanes[0].finish_train(&mut received, now);
    let mut written = Vec::new();
    let drained = received.tun.drain(|parts| {
        written.push((VnetHeader::parse(parts[0].first_chunk().unwrap()).unwrap(), joined(&parts[1..])));
        Taken::Yes
    });

    assert_eq!((drained.packets, drained.super_packets, written.len()), (11, 1, 1));
    assert_eq!(written[0], (vnet, packet));
}

#[test]
fn the_way_sees_whose_sender_understands_marks_and_handshakes_are_none_of_them() {
    let mut pair = Pair::new(true);
    let mut out = Out::new(2 * ROOM);
    let syn = with_tos(tcp(0, SYN, 0), 0xb8 | 2);
    pair.nodes[0].lanes[0].handle_packet(&mut syn.clone(), Some(VnetHeader::default()), &mut out, pair.now);
    assert!(out.udp.runs().iter().all(|run| run.ecn == Ecn::NotEct) && !out.udp.is_empty(), "the handshake");

    let mut pair = Pair::new(true);
    pair.send(0, 0, syn, VnetHeader::default());
    pair.send(1, 0, tcp(1, SYN | ACK, 0), VnetHeader::default());
    let (mut packet, vnet) = partial(with_tos(tcp(0, ACK, 13_800), 0xb8 | 2), Gso::Tcp4 { ecn: false }, 1380);
    let mut out = Out::new(2 * ROOM);
    pair.nodes[0].lanes[0].handle_packet(&mut packet, Some(vnet), &mut out, pair.now);
    let runs: Vec<_> = out.udp.runs().iter().map(|run| (run.ecn, run.count())).collect();
    assert_eq!(runs, [(Ecn::Ect0, 10)]);
}

#[test]
fn congestion_on_the_way_arrives_as_a_mark_or_where_none_is_understood_as_a_loss() {
    let mut pair = Pair::new(true);
    pair.send(0, 0, tcp(0, SYN, 0), VnetHeader::default());
    pair.send(1, 0, tcp(1, SYN | ACK, 0), VnetHeader::default());
    pair.mark = Some(Ecn::Ce);
    let delivered = pair.nodes[1].delivered.len();

    pair.send(0, 0, with_tos(tcp(0, ACK, 100), 0xb8 | 2), VnetHeader::default());
    pair.send(0, 0, tcp(0, ACK, 100), VnetHeader::default());

    assert_eq!(pair.nodes[1].delivered.len(), delivered + 1);
    assert_eq!(pair.nodes[1].delivered[delivered].1, with_tos(tcp(0, ACK, 100), 0xb8 | 3));
    assert_eq!(pair.nodes[1].count("congestion_marked"), 1);
}

#[test]
fn a_device_header_that_lies_is_a_malformed_packet() {
    let mut pair = Pair::new(true);
    let (packet, mut vnet) = partial(tcp(0, SYN, 0), Gso::None, 0);
    vnet.checksum_start = 9000;
    pair.send(0, 0, packet, vnet);
    pair.with(0, 0, |lane, out, now| lane.handle_packet(&mut tcp(0, SYN, 0), None, out, now));
    assert_eq!(pair.nodes[0].count("malformed"), 2);
}

#[test]
fn a_super_packet_of_ipv6_is_no_malformed_packet() {
    let mut pair = Pair::new(true);
    let mut packet = vec![0; 3000];
    packet[0] = 0x60;
    for gso in [Gso::Tcp6 { ecn: false }, Gso::Udp, Gso::None] {
        let vnet = VnetHeader { needs_checksum: true, gso, gso_size: 1220, checksum_start: 40, checksum_offset: 16 };
        pair.send(0, 0, packet.clone(), vnet);
    }
    assert_eq!((pair.nodes[0].count("not_ipv4"), pair.nodes[0].count("malformed")), (3, 0));
}

#[test]
fn a_denied_call_is_answered_where_it_came_from() {
    let mut pair = Pair::new(false);
    pair.send(0, 0, tcp(0, SYN, 0), VnetHeader::default());
    assert_eq!(pair.nodes[0].count("denied"), 1);
    let (_, reply) = &pair.nodes[0].delivered[0];
    assert_eq!(reply[33] & 4, 4, "a reset");
    assert!(pair.nodes[1].delivered.is_empty());
}

#[test]
fn the_serving_node_refuses_what_its_caller_lets_through() {
    let mut pair = Pair::new(true);
    pair.nodes[1] = Node::new(1, false);
    pair.send(0, 0, tcp(0, SYN, 0), VnetHeader::default());
    assert_eq!(pair.nodes[1].count("denied"), 1);
    assert!(pair.nodes[1].delivered.is_empty());
    assert_eq!(pair.nodes[0].delivered.len(), 1, "the caller is told");
}

#[test]
fn the_round_trip_is_measured_after_a_session_began() {
    let mut pair = Pair::new(true);
    pair.send(0, 0, tcp(0, SYN, 0), VnetHeader::default());
    pair.now = pair.now + Duration::from_millis(250);
    pair.with(0, 0, |lane, out, now| lane.handle_timeout(out, now));
    let peer = pair.nodes[0].peers.get(NodeId(2)).unwrap();
    assert!(peer.cell.stats(pair.now).unwrap().rtt.is_some());
}

#[test]
fn what_is_no_wireguard_is_counted() {
    let mut pair = Pair::new(true);
    let endpoint = Endpoint { remote: outer(1, 0), local: None };
    let run = DatagramRun { endpoint, start: 0, len: 10, segment: 10, ecn: Ecn::NotEct };
    pair.with(0, 0, |lane, out, now| lane.handle_datagrams(&run, b"clear text", out, now));
    assert_eq!(pair.nodes[0].count("not_wireguard"), 1);
}

#[test]
fn a_full_inbox_of_lane_0_is_counted_and_takes_no_more() {
    let mut pair = Pair::new(true);
    let mut out = Out::new(2 * ROOM);
    let now = pair.now;
    let lane = &mut pair.nodes[0].lanes[1];
    for _ in 0..1025 {
        lane.handle_packet(&mut tcp(0, SYN, 0), Some(VnetHeader::default()), &mut out, now);
    }
    assert_eq!(pair.nodes[0].count("lane_full"), 1);
}

#[test]
fn a_device_and_a_socket_without_room_lose_packets_by_name() {
    let mut pair = Pair::new(true);
    pair.send(0, 0, tcp(0, SYN, 0), VnetHeader::default());
    pair.send(1, 0, tcp(1, SYN | ACK, 0), VnetHeader::default());
    let now = pair.now;
    let mut none = Out::new(0);
    pair.nodes[0].lanes[0].handle_packet(&mut tcp(0, ACK, 100), Some(VnetHeader::default()), &mut none, now);
    assert_eq!(pair.nodes[0].count("socket_full"), 1);
    let mut denied = Pair::new(false);
    denied.nodes[0].lanes[0].handle_packet(&mut tcp(0, SYN, 0), Some(VnetHeader::default()), &mut none, now);
    assert_eq!(denied.nodes[0].count("device_full"), 1);
}

fn joined(parts: &[std::io::IoSlice<'_>]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.iter().copied()).collect()
}
