//! The engine against a naive oracle, over generated meshes and conversations.
//!
//! Up to three engines talk to each other, each with its own map and two lanes: what one forwards another receives,
//! what is delivered is answered. Every packet's fate and every byte of it is compared with what `model` says, which
//! shares only types with the engine. A failure names its seed and shows the last ten packets;
//! run that seed alone by narrowing `SEEDS`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod generate;
mod model;
mod packet;
mod policy;
mod traffic;
mod witness;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::{NodeId, ServiceKey};
use mesh_proto::dataplane::engine::{Engine, NextHop};
use mesh_proto::dataplane::flow::FlowTable;
use mesh_proto::dataplane::verdict::{Drop, Refuse, Verdict};
use mesh_proto::dataplane::view::View;
use mesh_proto::packet::{Checksum, FiveTuple};
use mesh_proto::verifier::VerifiedMap;

use generate::{Dice, LOCALS, ModelNode, ModelWorld, NEXT_HOP};
use model::{End, Model, candidates};
use packet::{Packet, line};
use traffic::ModelTraffic;

const SEEDS: std::ops::Range<u64> = 0..240;
const STEPS: usize = 110;
/// Far enough apart that the engine's limit on its own answers is not reached.
const MICROS_PER_PACKET: u64 = 20_000;
/// What is delivered or sent longest ago is not followed up.
const REMEMBERED: usize = 40;

/// A node with its engine.
struct Side {
    node: ModelNode,
    lanes: Vec<Engine>,
    model: Model,
    /// New connections per service and backend under the map in force.
    taken: BTreeMap<ServiceKey, BTreeMap<(Ipv4Addr, u16), u64>>,
    /// Services whose count is not known exactly under the map in force.
    unsure: BTreeSet<ServiceKey>,
    /// The backend of each client of a sticky service under the map in force.
    stuck: BTreeMap<(ServiceKey, Ipv4Addr), Ipv4Addr>,
    /// Every tuple that left the kernel.
    asked: BTreeSet<FiveTuple>,
}

/// Several nodes and the packets between them.
struct Mesh {
    seed: u64,
    world: ModelWorld,
    sides: Vec<Side>,
    traffic: ModelTraffic,
    clock: u64,
    /// What was delivered to a side's kernel, and what a side's kernel sent.
    delivered: VecDeque<(usize, Packet)>,
    sent: VecDeque<(usize, Packet)>,
    /// What a side sent to a peer.
    forwarded: VecDeque<(usize, Packet)>,
    log: VecDeque<String>,
    tally: BTreeMap<String, u64>,
}

impl Mesh {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x1234_5678_9abc_def1));
        let world = ModelWorld::new(&mut dice);
        let side = |i: usize| {
            let map = Arc::new(world.map(i));
            let view = Arc::new(View::compile(VerifiedMap::by_hand(map.clone())));
            let flows = Arc::new(FlowTable::new(1 << 12));
            let lanes = (0..2).map(|_| {
                let mut engine = Engine::new(view.clone(), flows.clone());
                engine.set_locals(Arc::new(LOCALS));
                engine.set_next_hops(Arc::new([NextHop { to: "10.8.0.0/16".parse().unwrap(), router: NEXT_HOP }]));
                engine
            });
            Side {
                node: world.nodes[i].clone(),
                lanes: lanes.collect(),
                model: Model::new(map, LOCALS.to_vec()),
                taken: BTreeMap::new(),
                unsure: BTreeSet::new(),
                stuck: BTreeMap::new(),
                asked: BTreeSet::new(),
            }
        };
        let sides = (0..world.nodes.len().min(3)).map(side).collect();
        Self {
            seed,
            sides,
            world,
            traffic: ModelTraffic::new(dice),
            clock: 0,
            delivered: VecDeque::new(),
            sent: VecDeque::new(),
            forwarded: VecDeque::new(),
            log: VecDeque::new(),
            tally: BTreeMap::new(),
        }
    }

    /// Lets the next thing happen.
    fn step(&mut self) {
        let side = self.traffic.dice.below(self.sides.len());
        match self.traffic.dice.below(100) {
            0..=2 => self.change(),
            3..=39 => {
                let packet = self.traffic.outbound(&self.world, &self.sides[side].node);
                self.send(side, packet);
            }
            40..=74 if !self.delivered.is_empty() => {
                let index = self.traffic.dice.below(self.delivered.len());
                let (side, packet) = self.delivered[index].clone();
                let answer = self.traffic.answer(&self.world, &self.sides[side].node, &packet);
                self.send(side, answer);
            }
            75..=91 if !self.sent.is_empty() => {
                let index = self.traffic.dice.below(self.sent.len());
                let (side, packet) = self.sent[index].clone();
                let next = self.traffic.next(&packet);
                self.send(side, next);
            }
            _ => {
                let here = self.sides[side].node.clone();
                let others: Vec<_> = self.world.nodes.iter().filter(|n| n.id != here.id).cloned().collect();
                if !others.is_empty() && !self.forwarded.is_empty() && self.traffic.dice.chance(25) {
                    let index = self.traffic.dice.below(self.forwarded.len());
                    let (side, about) = self.forwarded[index].clone();
                    let from = self.traffic.dice.pick(&self.world.nodes);
                    if from.id != self.sides[side].node.id {
                        let packet = self.traffic.hearsay(&from, &about);
                        self.carry(side, End::Peer(from.id), packet, true);
                    }
                } else if !others.is_empty() {
                    let from = self.traffic.dice.pick(&others);
                    let packet = self.traffic.inbound(&self.world, &here, &from);
                    self.carry(side, End::Peer(from.id), packet, true);
                }
            }
        }
    }

    /// Changes the mesh; some nodes hear of it later.
    fn change(&mut self) {
        let what = self.world.change(&mut self.traffic.dice, self.sides.len());
        self.note(format!("revision {}: {what}", self.world.revision));
        for i in 0..self.sides.len() {
            self.sides[i].node = self.world.nodes[i].clone();
            if self.traffic.dice.chance(85) {
                let map = Arc::new(self.world.map(i));
                let view = Arc::new(View::compile(VerifiedMap::by_hand(map.clone())));
                self.note(format!("  n{i} has heard of it"));
                let side = &mut self.sides[i];
                side.lanes.iter_mut().for_each(|engine| engine.set_view(view.clone()));
                side.model.map = map;
                side.taken.clear();
                side.unsure.clear();
                side.stuck.clear();
            }
        }
    }

    /// Lets a side's kernel send a packet, whole or in fragments.
    fn send(&mut self, side: usize, packet: Packet) {
        self.sides[side].asked.insert(packet.tuple);
        remember(&mut self.sent, (side, packet.clone()));
        let pieces = if self.traffic.dice.chance(12) { self.traffic.fragments(&packet) } else { vec![packet] };
        for piece in pieces {
            self.carry(side, End::Tun, piece, false);
        }
    }

    /// Takes a packet all the way, with the answers of the engines to it.
    fn carry(&mut self, side: usize, from: End, packet: Packet, forged: bool) {
        let mut way = VecDeque::from([(side, from, packet)]);
        while let Some((side, from, packet)) = way.pop_front() {
            let (verdict, after, reply) = self.check(side, from, &packet, forged);
            let id = self.sides[side].node.id;
            match (verdict, after) {
                (Verdict::Forward(peer), Some(after)) => {
                    remember(&mut self.forwarded, (side, Packet { partial: false, ..after.clone() }));
                    if let Some(there) = self.side(peer) {
                        way.push_back((there, End::Peer(id), Packet { partial: false, ..after }));
                    }
                }
                (Verdict::Deliver, Some(after)) => {
                    remember(&mut self.delivered, (side, Packet { partial: false, ..after }));
                }
                _ => {}
            }
            if let (End::Peer(peer), Some(reply)) = (from, reply)
                && let Some(there) = self.side(peer)
            {
                way.push_back((there, End::Peer(id), reply));
            }
        }
    }

    fn side(&self, id: NodeId) -> Option<usize> {
        self.sides.iter().position(|s| s.node.id == id)
    }

    /// Gives a packet to the engine and compares what it does with what the oracle says.
    fn check(
        &mut self,
        at: usize,
        from: End,
        packet: &Packet,
        forged: bool,
    ) -> (Verdict, Option<Packet>, Option<Packet>) {
        self.clock += MICROS_PER_PACKET;
        let now = Timestamp::from_micros(self.clock);
        // Fragments take the lane that their addresses name, other packets any.
        let fixed = packet.id as usize % 2;
        let lane = if packet.piece.is_some() { fixed } else { self.traffic.dice.below(2) };
        let whence = if forged { " forged" } else { "" };
        self.note(format!("n{at} lane {lane} from {from:?}{whence}: {}", line(packet)));

        let side = &mut self.sides[at];
        let wants = side.model.judge(from, packet);
        let mut bytes = packet.bytes();
        let checksum = if packet.partial { Checksum::Partial } else { Checksum::Complete };
        let verdict = match from {
            End::Tun => side.lanes[lane].outbound(&mut bytes, checksum, now),
            End::Peer(peer) => side.lanes[lane].inbound(peer, &mut bytes, now),
        };
        let reply = match verdict {
            Verdict::Reply | Verdict::Refuse(_) => side.lanes[lane].reply().to_vec(),
            Verdict::Forward(_) | Verdict::Deliver | Verdict::Drop(_) | Verdict::RoundTrip(_) | Verdict::Bench => {
                Vec::new()
            }
        };
        let chosen = wants.iter().find_map(|want| witness::fits(&side.model, want, verdict, &bytes));
        let Some(chosen) = chosen else {
            let said = if matches!(verdict, Verdict::Forward(_) | Verdict::Deliver) {
                witness::hex(&bytes)
            } else {
                String::new()
            };
            let wants = witness::wishes(&wants);
            self.fail(&format!("the engine said {verdict:?} {said}\nthe oracle says one of\n{wants}"));
        };
        let answer = side.model.answers(from, packet, &chosen);
        side.model.settle(from, packet, &chosen, verdict);

        let name = format!("{} {verdict:?}", if from == End::Tun { "outbound" } else { "inbound" });
        *self.tally.entry(name.split("NodeId").next().unwrap_or(&name).to_owned()).or_default() += 1;
        if let Some(after) = &chosen.after {
            let mtu = match verdict {
                Verdict::Forward(peer) => self.sides[at].model.mtu(peer),
                Verdict::Deliver
                | Verdict::Reply
                | Verdict::Refuse(_)
                | Verdict::Drop(_)
                | Verdict::RoundTrip(_)
                | Verdict::Bench => 0,
            };
            let side = &self.sides[at];
            if let Err(why) = witness::invariants(&side.model, from, after, &bytes, verdict, mtu) {
                self.fail(&why);
            }
            if answer && verdict == Verdict::Deliver && !packet.later() && !side.asked.contains(&after.tuple.reverse())
            {
                self.fail("an answer does not come from where the question went");
            }
        }
        if let Some(flow) = &chosen.open {
            self.count(at, flow, packet);
        } else if chosen.keep.is_some() {
            // Perhaps a new connection that got the backend of the old one: its ticket was drawn, or not.
            let drawn = wants.iter().filter_map(|o| o.open.as_ref()?.service.as_ref());
            self.sides[at].unsure.extend(drawn.map(|(key, _)| key.clone()));
        } else if matches!(verdict, Verdict::Refuse(Refuse::TooBig) | Verdict::Drop(Drop::Oversized)) {
            // Perhaps a new connection, too, whose next packets fit.
            let side = &mut self.sides[at];
            let dialled = side.model.map.services.iter().find(|(_, s)| s.vip.0 == packet.tuple.destination);
            side.unsure.extend(dialled.map(|(key, _)| key.clone()));
        }
        let reply = match verdict {
            Verdict::Reply | Verdict::Refuse(_) => {
                match witness::answer(&self.sides[at].model, from, packet, verdict, &reply) {
                    Ok(reply) => reply,
                    Err(why) => self.fail(&why),
                }
            }
            Verdict::Forward(_) | Verdict::Deliver | Verdict::Drop(_) | Verdict::RoundTrip(_) | Verdict::Bench => None,
        };
        (verdict, chosen.after, reply)
    }

    /// Counts a new connection of a service: weights are exact over whole cycles, and sticky clients stay.
    fn count(&mut self, at: usize, flow: &model::ModelFlow, packet: &Packet) {
        let Some((key, _)) = &flow.service else {
            return;
        };
        let side = &mut self.sides[at];
        let service = &side.model.map.services[key];
        let backend = flow.goal;
        if service.sticky {
            let client = (key.clone(), packet.tuple.source);
            let before = *side.stuck.entry(client).or_insert(backend.0);
            if before != backend.0 {
                self.fail(&format!("a sticky client went from {before} to {}", backend.0));
            }
            return;
        }
        let taken = side.taken.entry(key.clone()).or_default();
        *taken.entry(backend).or_default() += 1;
        let weights: Vec<_> = candidates(service).iter().map(|b| (b.address.0, u64::from(b.weight))).collect();
        let divisor = weights.iter().fold(0, |d, (_, w)| gcd(d, *w));
        let cycle: u64 = weights.iter().map(|(_, w)| w / divisor).sum();
        let total: u64 = taken.values().sum();
        let of = |address| taken.iter().filter(|((a, _), _)| *a == address).map(|(_, n)| n).sum::<u64>();
        let exact = weights.iter().all(|(a, w)| of(*a) == total / cycle * (w / divisor));
        if total.is_multiple_of(cycle) && !exact && !side.unsure.contains(key) {
            let text = format!("{key} shared {total} connections as {taken:?}, but its weights are {weights:?}");
            self.fail(&text);
        }
    }

    fn note(&mut self, text: String) {
        self.log.push_back(text);
        if self.log.len() > 10 {
            self.log.pop_front();
        }
    }

    /// Fails with the seed and the last packets.
    fn fail(&self, why: &str) -> ! {
        let log: Vec<_> = self.log.iter().map(String::as_str).collect();
        let words = |r: &mesh_proto::model::rules::Rule| {
            let from: Vec<_> = r.from.iter().map(ToString::to_string).collect();
            let to: Vec<_> = r.to.iter().map(ToString::to_string).collect();
            format!("{} -> {}", from.join(", "), to.join(", "))
        };
        let mut rules: Vec<_> = self.world.rules.iter().map(words).collect();
        for (key, s) in &self.world.services {
            let backends: Vec<_> = s
                .backends
                .iter()
                .map(|b| format!("{} :{:?} weight {} tier {}", b.address, b.port, b.weight, b.tier))
                .collect();
            let ports: Vec<_> = s.ports.iter().map(|p| format!("{} {} to {}", p.transport, p.port, p.target)).collect();
            rules.push(format!("{key} {} [{}] on [{}]", s.vip, ports.join(", "), backends.join(", ")));
        }
        for n in &self.world.nodes {
            rules.push(format!("{n:?}"));
        }
        panic!("seed {}: {why}\n\nlast packets:\n{}\n\nworld:\n{}", self.seed, log.join("\n"), rules.join("\n"));
    }
}

fn remember(list: &mut VecDeque<(usize, Packet)>, item: (usize, Packet)) {
    list.push_back(item);
    if list.len() > REMEMBERED {
        list.pop_front();
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn run(seed: u64, tally: &mut BTreeMap<String, u64>) {
    let mut mesh = Mesh::new(seed);
    for _ in 0..STEPS {
        mesh.step();
    }
    for (name, count) in mesh.tally {
        *tally.entry(name).or_default() += count;
    }
}

#[test]
fn every_packet_meets_the_fate_that_the_specification_gives_it() {
    let mut tally = BTreeMap::new();
    for seed in SEEDS {
        run(seed, &mut tally);
    }

    let packets: u64 = tally.values().sum();
    assert!(packets >= 20_000, "only {packets} packets: {tally:#?}");
    let every =
        ["outbound Forward(", "outbound Deliver", "inbound Deliver", "inbound Refuse(Denied)", "outbound Reply"];
    for fate in every {
        assert!(tally.get(fate).is_some_and(|n| *n > 100), "{fate} is rare: {tally:#?}");
    }
}
