//! Two or more nodes' lanes over links in memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use mesh_proto::model::netmap::LaneInfo;
use proptest::prelude::*;
use x25519_dalek::StaticSecret;

use super::*;
use crate::io::udp_outbox::Outbox;
use crate::keys::lanes::LaneKeys;
use crate::wireguard::peers::{test_peers, test_plain};

mod answers;
mod crossing;
mod hostile;
mod late;
mod many;
mod moving;
mod order;
mod preshared;
mod rotate;
mod switching;

/// Some packet of IPv4, told apart by its last byte.
fn packet(tag: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3];
    packet.push(tag);
    packet
}

struct Node {
    address: IpAddr,
    lanes: Vec<Sessions>,
    counters: Vec<Arc<Counters>>,
    got: Vec<(NodeId, u8)>,
    dropped: Vec<Drop>,
}

/// Nodes at 192.0.2.<id>, and the datagrams between them.
struct Net {
    nodes: BTreeMap<u8, Node>,
    flying: Vec<(Endpoint, SocketAddr, Vec<u8>)>,
    /// Ports that nothing gets through to.
    closed: BTreeSet<u16>,
    now: Timestamp,
}

const PORT: u16 = 51820;

fn keys(id: u8, lanes: usize) -> LaneKeys {
    LaneKeys::derive(&StaticSecret::from([id; 32]), lanes)
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

impl Net {
    /// Makes nodes of these lane counts; `known` says who has the other's address in its map.
    fn new(lanes: &[usize], known: fn(u8, u8) -> Vec<SocketAddr>) -> Self {
        let ids = 1..=lanes.len() as u8;
        let info = |id: u8| -> Vec<LaneInfo> {
            let keys = keys(id, lanes[usize::from(id) - 1]).publics().into_iter();
            keys.zip(PORT..).map(|(key, port)| LaneInfo { key, port }).collect()
        };
        let node = |own: u8| {
            let peers = ids.clone().filter(|&id| id != own).map(|id| (NodeId(id.into()), info(id), known(own, id)));
            let peers = Arc::new(test_peers(peers.collect()));
            let count = lanes[usize::from(own) - 1];
            let counters: Vec<Arc<Counters>> = (0..count).map(|_| Arc::default()).collect();
            let keys = keys(own, count);
            let lane = |i: usize| Sessions::new(i, &keys.of(i), Arc::clone(&peers), Arc::clone(&counters[i]));
            let lanes = (0..count).map(lane).collect();
            Node { address: ip(own), lanes, counters, got: Vec::new(), dropped: Vec::new() }
        };
        let nodes = ids.clone().map(|id| (id, node(id))).collect();
        Self { nodes, flying: Vec::new(), closed: BTreeSet::new(), now: Timestamp::from_millis(1_000_000) }
    }

    fn known(_: u8, to: u8) -> Vec<SocketAddr> {
        vec![SocketAddr::new(ip(to), PORT)]
    }

    fn lane(&mut self, id: u8, lane: usize) -> &mut Sessions {
        &mut self.nodes.get_mut(&id).unwrap().lanes[lane]
    }

    /// Does something with a lane and sends what comes of it.
    fn with<T>(&mut self, id: u8, lane: usize, f: impl FnOnce(&mut Sessions, &mut Outbox, Timestamp) -> T) -> T {
        let mut outbox = Outbox::new(1 << 20);
        let now = self.now;
        let result = f(self.lane(id, lane), &mut outbox, now);
        let source = SocketAddr::new(self.nodes[&id].address, PORT + lane as u16);
        for (to, datagram) in outbox.datagrams() {
            let from = to
                .local
                .filter(|&local| local == source.ip())
                .map_or(source, |local| SocketAddr::new(local, source.port()));
            self.flying.push((from.into(), to.remote, datagram.to_vec()));
        }
        result
    }

    fn send(&mut self, id: u8, lane: usize, to: u8, tag: u8) -> Sealed {
        let peer = NodeId(to.into());
        self.with(id, lane, |s, out, now| s.seal(peer, &packet(tag), Traffic::Payload, out, now))
    }

    /// Delivers everything until nothing flies, without the clock going on.
    fn run_to_rest(&mut self) {
        while let Some((from, to, datagram)) = (!self.flying.is_empty()).then(|| self.flying.remove(0)) {
            self.deliver(from.remote, to, &datagram);
        }
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let Some((&id, _)) = self.nodes.iter().find(|(_, node)| node.address == to.ip()) else { return };
        let lane = usize::from(to.port() - PORT);
        if self.closed.contains(&to.port()) || lane >= self.nodes[&id].lanes.len() {
            return;
        }
        let from = Endpoint { remote: from, local: Some(to.ip()) };
        let outcome = self.with(id, lane, |s, out, now| {
            let mut into = vec![0; 70_000];
            s.begin_turn();
            match s.open(from, datagram, &mut into, out, now) {
                Decrypted::Packet(peer, _, packet) => Some(Ok((peer, *packet.last().unwrap()))),
                Decrypted::Handled => None,
                Decrypted::Dropped(reason) => Some(Err(reason)),
            }
        });
        let node = self.nodes.get_mut(&id).unwrap();
        match outcome {
            Some(Ok(packet)) => node.got.push(packet),
            Some(Err(reason)) => node.dropped.push(reason),
            None => {}
        }
    }

    /// Lets time pass for us; tunnels have a clock of their own.
    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let lanes: Vec<(u8, usize)> =
            self.nodes.iter().flat_map(|(&id, n)| (0..n.lanes.len()).map(move |l| (id, l))).collect();
        for (id, lane) in lanes {
            self.with(id, lane, |s, out, now| s.handle_timeout(out, now));
        }
        self.run_to_rest();
    }

    fn got(&self, id: u8) -> Vec<u8> {
        self.nodes[&id].got.iter().map(|&(_, tag)| tag).collect()
    }

    fn endpoint(&mut self, id: u8, lane: usize) -> Option<IpAddr> {
        let session = self.lane(id, lane).slab.iter().flatten().next();
        session.and_then(|s| s.path.endpoint()).map(|e| e.remote.ip())
    }
}

#[test]
fn a_packet_waits_for_the_handshake_and_both_ways_work() {
    let mut net = Net::new(&[1, 1], Net::known);

    assert_eq!(net.send(1, 0, 2, 7), Sealed::Done);
    assert_eq!(net.send(1, 0, 2, 8), Sealed::Done);
    net.run_to_rest();
    assert_eq!(net.send(2, 0, 1, 9), Sealed::Done);
    net.run_to_rest();

    assert_eq!((net.got(2), net.got(1)), (vec![7, 8], vec![9]));
    assert_eq!(net.nodes[&2].got[0].0, NodeId(1));
    assert_eq!(net.nodes[&1].counters[0].handshakes.get(), 1);
    assert!(net.nodes.values().all(|node| node.dropped.is_empty()));
}

#[test]
fn lanes_pair_by_number_and_unequal_counts_meet() {
    for counts in [[2, 2], [2, 1], [1, 2], [3, 2]] {
        let mut net = Net::new(&counts, Net::known);
        for (from, to) in [(1, 2), (2, 1)] {
            for lane in 0..counts[usize::from(from) - 1] {
                if net.send(from, lane, to, 0) == Sealed::Elsewhere {
                    net.run_to_rest();
                }
                assert_eq!(net.send(from, lane, to, 10 + lane as u8), Sealed::Done, "{counts:?} {from} {lane}");
                net.run_to_rest();
                assert!(net.got(to).contains(&(10 + lane as u8)), "{counts:?} {from} {lane}");
            }
        }
    }
}

#[test]
fn a_lane_whose_port_is_closed_hands_over_to_lane_0() {
    let mut net = Net::new(&[2, 2], Net::known);
    net.closed.insert(PORT + 1);

    for tag in 0..5 {
        assert_eq!(net.send(1, 1, 2, tag), Sealed::Elsewhere);
        net.run_to_rest();
        assert_eq!(net.send(1, 0, 2, tag), Sealed::Done);
        net.run_to_rest();
    }

    assert_eq!(net.got(2), [0, 1, 2, 3, 4]);
    assert_eq!(net.nodes[&1].counters[1].initiations.get(), 1, "one handshake at a time");
}

#[test]
fn a_session_that_hears_nothing_for_12_s_is_not_used_by_other_lanes_and_is_renewed() {
    let mut net = Net::new(&[2, 2], Net::known);
    net.send(1, 1, 2, 0);
    net.run_to_rest();
    assert_eq!(net.send(1, 1, 2, 1), Sealed::Done);
    net.run_to_rest();

    net.closed.insert(PORT + 1);
    assert_eq!(net.send(1, 1, 2, 2), Sealed::Done);
    net.run_to_rest();
    net.pass(Duration::from_secs(11));
    assert_eq!(net.send(1, 1, 2, 3), Sealed::Done);
    net.pass(Duration::from_secs(1));
    assert_eq!(net.send(1, 1, 2, 4), Sealed::Elsewhere);
    assert_eq!(net.nodes[&1].counters[1].initiations.get(), 2);
}

#[test]
fn the_endpoint_moves_on_data_and_not_on_an_initiation() {
    let mut net = Net::new(&[1, 1], |own, to| if own == 1 { Net::known(own, to) } else { Vec::new() });
    net.send(1, 0, 2, 1);
    net.run_to_rest();
    assert_eq!(net.endpoint(2, 0), Some(ip(1)));

    net.with(1, 0, |s, out, now| s.initiate(0, out, now));
    let (_, to, initiation) = net.flying.remove(0);
    net.deliver(SocketAddr::new(ip(99), PORT), to, &initiation);
    let (_, answered_to, _) = net.flying[0];
    assert_eq!(answered_to.ip(), ip(99), "the answer goes to where the question came from");
    assert_eq!(net.endpoint(2, 0), Some(ip(1)));
    net.flying.clear();

    net.nodes.get_mut(&1).unwrap().address = ip(50);
    net.send(1, 0, 2, 2);
    net.run_to_rest();
    assert_eq!(net.endpoint(2, 0), Some(ip(50)));
    net.send(2, 0, 1, 3);
    net.run_to_rest();
    assert_eq!(net.got(1), [3]);
}

#[test]
fn replayed_data_does_not_move_the_endpoint() {
    let mut net = Net::new(&[1, 1], Net::known);
    net.send(1, 0, 2, 1);
    net.run_to_rest();
    net.send(1, 0, 2, 2);
    let (from, to, data) = net.flying.remove(0);

    net.deliver(from.remote, to, &data);
    net.deliver(SocketAddr::new(ip(66), PORT), to, &data);

    assert_eq!(net.endpoint(2, 0), Some(ip(1)));
    assert_eq!(net.nodes[&2].dropped, [Drop::Unauthenticated]);
}

#[test]
fn candidates_are_tried_until_one_answers_and_nothing_is_lost() {
    let candidates =
        |_, to| vec![SocketAddr::new(ip(200), PORT), SocketAddr::new(ip(201), PORT), SocketAddr::new(ip(to), PORT)];
    let mut net = Net::new(&[1, 1], candidates);
    net.send(1, 0, 2, 1);
    net.run_to_rest();
    assert!(net.got(2).is_empty());

    net.pass(Duration::from_millis(100));
    assert!(net.got(2).is_empty());
    net.pass(Duration::from_millis(100));

    assert_eq!(net.got(2), [1]);
    assert_eq!(net.endpoint(1, 0), Some(ip(2)));
}

#[test]
fn a_lost_response_is_made_good_by_the_next_initiation() {
    let mut net = Net::new(&[1, 1], Net::known);
    net.send(1, 0, 2, 1);
    let (from, to, initiation) = net.flying.remove(0);
    net.deliver(from.remote, to, &initiation);
    net.flying.clear();

    net.with(1, 0, |s, out, now| s.initiate(0, out, now));
    net.run_to_rest();

    assert_eq!(net.got(2), [1]);
}

#[test]
fn an_unanswered_initiation_is_repeated_soon_and_then_as_often_as_a_silent_peer_is_asked() {
    let mut net = Net::new(&[1, 1], Net::known);
    net.closed.insert(PORT);
    net.send(1, 0, 2, 1);
    net.run_to_rest();
    for _ in 0..40 {
        net.pass(Duration::from_millis(250));
    }
    let initiations = net.nodes[&1].counters[0].initiations.get();
    assert!((6..=9).contains(&initiations), "{initiations}: five soon, then one each 2 s; the rest is boringtun's");

    let mut net = Net::new(&[1, 1], Net::known);
    net.send(1, 0, 2, 1);
    net.flying.clear();
    net.pass(Duration::from_millis(250));
    assert!(net.got(2).is_empty());
    net.pass(Duration::from_millis(250));
    assert_eq!(net.got(2), [1]);
}

#[test]
fn answers_leave_from_the_address_that_was_addressed() {
    let mut net = Net::new(&[1, 1], Net::known);
    net.send(1, 0, 2, 1);
    net.run_to_rest();

    let peer = NodeId(1);
    let locals = net.with(2, 0, |s, out, now| {
        s.seal(peer, &packet(1), Traffic::Payload, out, now);
        out.runs().iter().map(|run| run.endpoint.local).collect::<Vec<_>>()
    });
    assert_eq!(locals, [Some(ip(2))]);
}

#[test]
fn data_for_a_lost_session_from_a_known_address_starts_a_handshake_once_in_5_s() {
    let mut net = Net::new(&[1, 1], Net::known);
    net.send(1, 0, 2, 1);
    net.run_to_rest();
    let mut fresh = Net::new(&[1, 1], Net::known);
    net.nodes.insert(2, fresh.nodes.remove(&2).unwrap());

    for tag in 2..5 {
        net.send(1, 0, 2, tag);
    }
    let data: Vec<_> = net.flying.drain(..).collect();
    for (from, to, datagram) in data {
        net.deliver(from.remote, to, &datagram);
    }

    assert_eq!(net.nodes[&2].dropped, [Drop::UnknownSession; 3]);
    assert_eq!(net.nodes[&2].counters[0].initiations.get(), 1);
    net.run_to_rest();
    net.send(1, 0, 2, 9);
    net.run_to_rest();
    assert_eq!(net.got(2), [9], "and the sender uses the new session at once");
}

#[test]
fn data_from_an_unknown_address_starts_nothing() {
    let mut net = Net::new(&[1, 1], Net::known);
    let mut data = vec![4, 0, 0, 0];
    data.resize(100, 7);
    net.deliver(SocketAddr::new(ip(77), PORT), SocketAddr::new(ip(2), PORT), &data);
    assert_eq!(net.nodes[&2].dropped, [Drop::UnknownSession]);
    assert!(net.flying.is_empty());
}

#[test]
fn peers_of_before_are_greeted_on_each_lane() {
    let mut net = Net::new(&[2, 2], Net::known);
    for lane in 0..2 {
        net.lane(1, lane).greet(NodeId(2));
    }
    net.pass(Duration::ZERO);
    assert_eq!(net.send(1, 1, 2, 1), Sealed::Done);
    net.run_to_rest();
    assert_eq!(net.got(2), [1]);
    assert!(net.nodes[&1].counters.iter().all(|c| c.handshakes.get() == 1));
}

#[test]
fn a_peer_without_address_is_said_to_have_none() {
    let mut net = Net::new(&[1, 1], |_, _| Vec::new());
    assert_eq!(net.send(1, 0, 2, 1), Sealed::Dropped(Drop::NoEndpoint));
}

#[test]
fn what_waits_is_bounded() {
    let mut net = Net::new(&[1, 1], Net::known);
    for _ in 0..MAX_WAITING {
        assert_eq!(net.send(1, 0, 2, 1), Sealed::Done);
    }
    assert_eq!(net.send(1, 0, 2, 2), Sealed::Dropped(Drop::NoTunnel));
    net.run_to_rest();
    assert_eq!(net.got(2).len() as u64, MAX_WAITING);
}

#[test]
fn a_peer_that_leaves_the_map_is_heard_no_more_and_its_number_is_used_again() {
    let mut net = Net::new(&[1, 1, 1], Net::known);
    net.send(1, 0, 2, 1);
    net.run_to_rest();
    let info = LaneInfo { key: keys(1, 1).public(0), port: PORT };
    let only_1 = Arc::new(test_peers(vec![(NodeId(1), vec![info], Net::known(2, 1))]));
    let only_3 = Arc::new(test_peers(vec![(
        NodeId(3),
        vec![LaneInfo { key: keys(3, 1).public(0), port: PORT }],
        Net::known(2, 3),
    )]));

    net.lane(2, 0).set_peers(only_3);
    net.send(1, 0, 2, 2);
    net.run_to_rest();
    assert_eq!(net.got(2), [1]);
    assert_eq!(net.nodes[&2].dropped.first(), Some(&Drop::UnknownSession));
    net.send(2, 0, 3, 3);
    net.run_to_rest();
    assert_eq!(net.got(3), [3]);
    assert_eq!(net.lane(2, 0).slab.len(), 1);

    net.lane(2, 0).set_peers(only_1);
    assert_eq!(net.send(2, 0, 3, 4), Sealed::Dropped(Drop::NoTunnel));
}

#[test]
fn an_idle_tunnel_asks_for_nothing_but_its_ticks() {
    let mut net = Net::new(&[1, 1], Net::known);
    assert_eq!(net.lane(1, 0).poll_timeout(Timestamp::default()), None);
    net.send(1, 0, 2, 1);
    net.run_to_rest();
    net.pass(Duration::from_millis(250));
    let now = net.now;
    assert_eq!(net.lane(1, 0).poll_timeout(now), Some(now + Duration::from_millis(250)));
}

#[test]
fn round_trips_are_asked_for_while_there_is_traffic_and_not_when_idle() {
    let mut net = Net::new(&[1, 1], Net::known);
    net.send(1, 0, 2, 1);
    net.run_to_rest();
    let mut probes = Vec::new();
    for second in 0..120 {
        net.pass(Duration::from_secs(1));
        while net.lane(1, 0).next_probe().is_some() {
            probes.push(second);
        }
        // What comes back keeps the session alive, as an answer to the probe would.
        net.lane(1, 0).slab[0].as_mut().unwrap().unanswered = None;
    }
    assert_eq!(probes, [0, 1, 2, 3, 4, 5, 10, 15, 20, 25]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_datagram_makes_it_panic_and_each_is_counted(kind in 0u8..6, mut bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut net = Net::new(&[1, 1], Net::known);
        for (at, byte) in [kind, 0, 0, 0].into_iter().enumerate() {
            if let Some(b) = bytes.get_mut(at) { *b = byte; }
        }
        net.deliver(SocketAddr::new(ip(9), 1), SocketAddr::new(ip(2), PORT), &bytes);
        prop_assert_eq!(net.nodes[&2].dropped.len(), 1);
    }
}
