//! Three nodes of two lanes, over links in memory and in virtual time: sessions, flows and policy as they ship, and nobody
//! who tells them anything. Compiled only with the feature `virtual-time`, which no program has.
//!
//! ```text
//!   1 ⇄ 2   once a second on both lanes, for ever
//!   1 ⇄ 3   for five minutes of every ten
//!   2 ⇄ 3   once every five minutes: each time the session is long over
//! ```
//! Nobody is killed here, nor silent for more than nine minutes: a tunnel that is made anew stamps its handshakes with the
//! wall clock, which boringtun does not mock, and would be hours behind its peers. `tests/e2e/trust` kills in real time.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::addr::{Flat, MeshRange};
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::{IdentityKey, NodeId, Revision};
use mesh_proto::dataplane::flow::FlowTable;
use mesh_proto::dataplane::view::View;
use mesh_proto::model::netmap::{LaneInfo, Mesh, NetMap, OwnNode, Peer, Proof};
use mesh_proto::model::rules::Rule;
use mesh_proto::packet::gso::VnetHeader;
use mesh_proto::packet::{self, Header};
use mesh_proto::trust::signed_record::{Signature, SignedRecord};
use mesh_proto::verifier::Verifier;
use mesh_proto::wire::NodeFacts;
use tokio::sync::watch;
use x25519_dalek::StaticSecret;

use crate::dataplane::bench::lane_end::LaneEnd;
use crate::dataplane::handover::Handover;
use crate::dataplane::lane::{Lane, Out, Parts};
use crate::io::counters::Counters;
use crate::io::tun_outbox::Taken;
use crate::io::udp_outbox::{DatagramRun, Endpoint};
use crate::keys::lanes::LaneKeys;
use crate::wireguard::peers::TunnelPeers;
use crate::wireguard::timing::ROOM;

const NODES: u8 = 3;
const LANES: usize = 2;
const PORT: u16 = 51820;
/// How often time goes on: boringtun's timers are run that often.
const STEP: Duration = Duration::from_millis(250);
/// The longest that is waited for the first answer, in steps.
const PATIENCE: u32 = 40;

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Requests that were sent.
    pub asked: u64,
    /// Requests without an answer by the end of their second.
    pub lost: u64,
    /// Handshakes that nodes began and finished.
    pub handshakes: u64,
    /// How long the very first request of all took.
    pub first: Duration,
}

/// Lets time pass; `advance` moves the clock of WireGuard.
pub fn run(length: Duration, advance: &mut dyn FnMut(Duration)) -> Outcome {
    let mut net = Net::new(advance);
    let mut outcome = Outcome { first: net.until_answered(1, 2), ..Outcome::default() };
    for second in 1..length.as_secs() {
        let mut asked = BTreeSet::new();
        let mut ask = |net: &mut Net<'_>, a: u8, b: u8| {
            for (from, to) in [(a, b), (b, a)] {
                for lane in 0..LANES {
                    asked.insert(net.ask(from, to, lane));
                }
            }
        };
        ask(&mut net, 1, 2);
        if second % 600 < 300 {
            ask(&mut net, 1, 3);
        }
        if second % 300 == 0 {
            ask(&mut net, 2, 3);
        }
        outcome.asked += asked.len() as u64;
        for _ in 0..4 {
            net.pass();
        }
        outcome.lost += asked.iter().filter(|number| !net.answered.contains(number)).count() as u64;
        net.answered.clear();
    }
    outcome.handshakes = net.nodes[0].counters.iter().map(|counters| counters.handshakes.get()).sum();
    outcome
}

struct Node {
    id: u8,
    lanes: Vec<Lane>,
    counters: Vec<Arc<Counters>>,
    /// What the kernel got.
    delivered: Vec<Vec<u8>>,
}

struct Net<'a> {
    nodes: Vec<Node>,
    /// Where from, where to, and what.
    flying: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    answered: BTreeSet<u64>,
    number: u64,
    now: Timestamp,
    /// What a lane writes into, between two uses.
    spare: Option<Out>,
    advance: &'a mut dyn FnMut(Duration),
}

fn address(id: u8) -> Ipv4Addr {
    Ipv4Addr::new(241, 1, 0, id)
}

fn outer(id: u8, lane: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, id], PORT + lane as u16))
}

fn keys(id: u8) -> LaneKeys {
    LaneKeys::derive(&StaticSecret::from([id; 32]), LANES)
}

fn peer(id: u8) -> Peer {
    let lanes = keys(id).publics().into_iter().zip(PORT..).map(|(key, port)| LaneInfo { key, port });
    let facts = NodeFacts {
        lanes: lanes.collect(),
        endpoints: vec![outer(id, 0)],
        mtu: 1420,
        guarded: true,
        sequence: 1,
        ..NodeFacts::default()
    };
    let record = SignedRecord { text: facts.text().into(), signature: Signature([0; 64]) };
    Peer {
        id: NodeId(id.into()),
        site: name("s"),
        address: Flat(address(id)),
        blocks: Vec::new(),
        lanes: facts.lanes,
        endpoints: facts.endpoints,
        mtu: facts.mtu,
        guarded: facts.guarded,
        previous: Vec::new(),
        proof: Some(Proof { identity: IdentityKey([id; 32]), record, pods: Vec::new(), lineage: Vec::new() }),
        countersigned: None,
        agreement: Vec::new(),
    }
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(word: &str) -> T {
    word.parse().expect("a name")
}

fn netmap(own: u8) -> NetMap {
    let peers = (1..=NODES).filter(|&id| id != own).map(|id| (name(&format!("n{id}")), peer(id)));
    NetMap {
        epoch: Default::default(),
        sites: Default::default(),
        revision: Revision(1),
        mesh: Mesh {
            name: name("test"),
            range: MeshRange::default(),
            domains: Vec::new(),
            coordinators: Vec::new(),
            lock: None,
        },
        node: OwnNode {
            sequence: 0,
            id: NodeId(own.into()),
            name: name(&format!("n{own}")),
            site: name("s"),
            address: Flat(address(own)),
            blocks: Vec::new(),
            guarded: true,
        },
        peers: peers.collect(),
        services: Default::default(),
        names: Default::default(),
        rules: vec![Rule { file: "f".into(), line: 1, from: vec![name("any")], to: vec![name("any")] }],
        warnings: Vec::new(),
    }
}

impl Node {
    fn new(id: u8) -> Self {
        let admitted = Verifier::new(|_, _, _| true).admit(Arc::new(netmap(id)));
        assert!(admitted.refused.is_empty(), "{:?}", admitted.refused);
        let view = Arc::new(View::compile(admitted.map));
        let keys = keys(id);
        let peers = Arc::new(TunnelPeers::compile(view.netmap(), &keys.publics(), None, None));
        let counters: Vec<Arc<Counters>> = (0..LANES).map(|_| Arc::default()).collect();
        let flows = Arc::new(FlowTable::new(1 << 10));
        let handover = Arc::new(Handover::new());
        let lane = |lane: usize| {
            Lane::new(Parts {
                lane,
                key: &keys.of(lane),
                view: Arc::clone(&view),
                peers: Arc::clone(&peers),
                flows: Arc::clone(&flows),
                counters: Arc::clone(&counters[lane]),
                handover: Arc::clone(&handover),
                // Nobody measures here.
                speaker: LaneEnd::new(lane, watch::channel(Default::default()).1, Arc::clone(&counters[lane])),
                mtu: 1420,
            })
        };
        let lanes = (0..LANES).map(lane).collect();
        Self { id, lanes, counters, delivered: Vec::new() }
    }
}

impl<'a> Net<'a> {
    fn new(advance: &'a mut dyn FnMut(Duration)) -> Self {
        let node = |id| Node::new(id);
        Self {
            nodes: (1..=NODES).map(node).collect(),
            flying: Vec::new(),
            answered: BTreeSet::new(),
            number: 0,
            now: Timestamp::from_millis(1_000_000),
            spare: None,
            advance,
        }
    }

    /// Does something with a lane, and all that its worker would do after it.
    fn with(&mut self, id: u8, lane: usize, f: impl FnOnce(&mut Lane, &mut Out, Timestamp)) {
        let node = &mut self.nodes[usize::from(id) - 1];
        let mut out = self.spare.take().unwrap_or_else(|| Out::new(4 * ROOM));
        node.lanes[lane].begin_turn();
        f(&mut node.lanes[lane], &mut out, self.now);
        node.lanes[lane].finish_train(&mut out, self.now);
        while node.lanes[lane].is_flushing() {
            node.lanes[lane].flush(&mut out, self.now);
        }
        while let Some(peer) = node.lanes[lane].next_met() {
            (0..LANES).filter(|&other| other != lane).for_each(|other| node.lanes[other].greet(peer));
        }
        let handed_over = node.lanes[lane].take_handed_over();
        node.lanes[lane].drain_dirty(|_, _| {});
        out.tun.drain(|parts| {
            node.delivered.push(parts[1..].iter().flat_map(|part| part.iter().copied()).collect());
            Taken::Yes
        });
        let from = outer(id, lane);
        self.flying.extend(out.udp.datagrams().map(|(to, datagram)| (from, to.remote, datagram.to_vec())));
        out.udp.clear();
        self.spare = Some(out);
        if handed_over {
            self.hand_over(id);
        }
    }

    /// Lets lane 0 send what others have no session for.
    fn hand_over(&mut self, id: u8) {
        self.with(id, 0, |lane, out, now| while lane.handle_handover(out, now) {});
    }

    /// Delivers all that flies, and lets programs answer what they are asked.
    fn run_to_rest(&mut self) {
        loop {
            if !self.flying.is_empty() {
                let (from, to, datagram) = self.flying.remove(0);
                let SocketAddr::V4(v4) = to else { continue };
                let (id, lane) = (v4.ip().octets()[3], usize::from(to.port() - PORT));
                let endpoint = Endpoint { remote: from, local: Some(to.ip()) };
                let run = DatagramRun {
                    endpoint,
                    start: 0,
                    len: datagram.len(),
                    segment: datagram.len(),
                    ecn: Default::default(),
                };
                self.with(id, lane, |lane, out, now| lane.handle_datagrams(&run, &datagram, out, now));
            } else if let Some((id, packet)) = self.nodes.iter_mut().find_map(|n| Some((n.id, n.delivered.pop()?))) {
                self.take(id, &packet);
            } else {
                return;
            }
        }
    }

    /// A program gets a packet: a question is answered, an answer is noted.
    fn take(&mut self, id: u8, packet: &[u8]) {
        let tuple = Header::parse(packet).expect("it was let in").tuple;
        let number = u64::from_be_bytes(packet[28..36].try_into().expect("eight bytes"));
        if tuple.destination_port == 7 {
            let lane = usize::from(tuple.source_port % 2);
            self.send(id, lane, udp((tuple.destination, 7), (tuple.source, tuple.source_port), number));
        } else {
            self.answered.insert(number);
        }
    }

    fn send(&mut self, id: u8, lane: usize, mut packet: Vec<u8>) {
        self.with(id, lane, |lane, out, now| lane.handle_packet(&mut packet, Some(VnetHeader::default()), out, now));
    }

    /// Asks another node something, and returns the number of the question.
    fn ask(&mut self, from: u8, to: u8, lane: usize) -> u64 {
        self.number += 1;
        let port = 40_000 + 2 * u16::from(to) + lane as u16;
        self.send(from, lane, udp((address(from), port), (address(to), 7), self.number));
        self.run_to_rest();
        self.number
    }

    /// Asks on lane 0 until an answer comes, and returns how long that took.
    fn until_answered(&mut self, from: u8, to: u8) -> Duration {
        for step in 0..PATIENCE {
            let number = self.ask(from, to, 0);
            if self.answered.contains(&number) {
                return step * STEP;
            }
            self.pass();
        }
        PATIENCE * STEP
    }

    /// Lets a step of time pass, everywhere.
    fn pass(&mut self) {
        (self.advance)(STEP);
        self.now = self.now + STEP;
        for id in 1..=NODES {
            for lane in 0..LANES {
                self.with(id, lane, Lane::handle_timeout);
            }
        }
        self.run_to_rest();
    }
}

/// A datagram that carries a number.
fn udp((from, sport): (Ipv4Addr, u16), (to, dport): (Ipv4Addr, u16), number: u64) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend([sport.to_be_bytes(), dport.to_be_bytes(), [0, 16], [0, 0]].concat());
    packet.extend(number.to_be_bytes());
    let mut sum = packet[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let header = Header::parse(&packet).expect("it is whole");
    packet::complete(&mut packet, &header);
    packet
}
