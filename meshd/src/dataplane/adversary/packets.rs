//! Packets in the names of others.

use std::net::Ipv4Addr;
use std::sync::Arc;

use mesh_host::identity::verify;
use mesh_proto::base::clock::Timestamp;
use mesh_proto::dataplane::flow::FlowTable;
use mesh_proto::dataplane::view::View;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::packet::Ecn;
use mesh_proto::packet::gso::VnetHeader;
use mesh_proto::verifier::Verifier;
use tokio::sync::watch;
use x25519_dalek::StaticSecret;

use super::{CART, Dice, EVIL, FRONT, HONEST, VICTIM, World, address, home, lanes, outer, pod};
use crate::dataplane::bench::lane_end::{LaneEnd, Phase};
use crate::dataplane::handover::Handover;
use crate::dataplane::lane::{Lane, Out, Parts};
use crate::io::counters::Counters;
use crate::io::tun_outbox::Taken;
use crate::io::udp_outbox::{DatagramRun, Endpoint};
use crate::wireguard::peers::TunnelPeers;
use crate::wireguard::timing::ROOM;
use crate::wireguard::tunnel::{HandshakeResponder, INITIATION, Made, Opened, Tunnel};

/// How many packets are forged.
const FORGED: usize = 80_000;
const NOW: Timestamp = Timestamp::from_millis(5_000_000);

/// A real lane, and the tunnels of those who talk to it.
struct Victim {
    lane: Lane,
    out: Out,
}

struct Member {
    id: u8,
    tunnel: Tunnel,
}

impl Victim {
    fn new(map: &NetMap) -> Self {
        let admitted = Verifier::new(verify).claiming(vec![home(VICTIM)]).admit(Arc::new(map.clone()));
        assert_eq!((&**admitted.map.netmap(), &admitted.refused), (map, &Vec::new()), "what is genuine is believed");
        let view = Arc::new(View::compile(admitted.map));
        let keys = lanes(VICTIM);
        let lane = Lane::new(Parts {
            lane: 0,
            key: &keys.of(0),
            peers: Arc::new(TunnelPeers::compile(view.netmap(), &keys.publics(), None, None)),
            view,
            flows: Arc::new(FlowTable::new(1 << 12)),
            counters: Arc::<Counters>::default(),
            handover: Arc::new(Handover::new()),
            speaker: LaneEnd::new(0, watch::Sender::<Phase>::default().subscribe(), Arc::default()),
            mtu: 1420,
        });
        Self { lane, out: Out::new(2 * ROOM) }
    }

    /// Takes a datagram; returns what is sent for it, and how many bytes the kernel gets.
    fn takes(&mut self, from: u8, datagram: &[u8]) -> (Vec<Vec<u8>>, usize) {
        self.out.udp.clear();
        let endpoint = Endpoint { remote: outer(from), local: Some(outer(VICTIM).ip()) };
        let run = DatagramRun { endpoint, segment: datagram.len(), ecn: Ecn::default(), start: 0, len: datagram.len() };
        self.lane.begin_turn();
        self.lane.handle_datagrams(&run, datagram, &mut self.out, NOW);
        self.lane.finish_train(&mut self.out, NOW);
        (self.sent(), self.kernel())
    }

    /// Takes a packet of the victim's own pods or processes.
    fn sends(&mut self, mut packet: Vec<u8>) -> Vec<Vec<u8>> {
        self.out.udp.clear();
        self.lane.handle_packet(&mut packet, Some(VnetHeader::default()), &mut self.out, NOW);
        self.kernel();
        self.sent()
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        self.out.udp.datagrams().map(|(_, datagram)| datagram.to_vec()).collect()
    }

    /// Empties what the kernel gets, and returns how many bytes it was.
    fn kernel(&mut self) -> usize {
        let mut bytes = 0;
        self.out.tun.drain(|parts| {
            bytes += parts[1..].iter().map(|part| part.len()).sum::<usize>();
            Taken::Yes
        });
        bytes
    }
}

impl Member {
    /// Shakes hands with the victim by its own key.
    fn connect(id: u8, victim: &mut Victim) -> Self {
        let door = HandshakeResponder::new(&StaticSecret::from([id; 32]));
        let mut member = Self { id, tunnel: door.tunnel(lanes(VICTIM).public(0), id.into(), None).unwrap() };
        let mut initiation = [0; INITIATION];
        assert!(member.tunnel.initiate(&mut initiation));
        let (answers, _) = victim.takes(id, &initiation);
        let mut into = vec![0; 2048];
        let Ok(Made::Message(length)) = member.tunnel.handshake(outer(VICTIM).ip(), &answers[0], &mut into) else {
            panic!("node {id} is not let in");
        };
        victim.takes(id, &into[..length]);
        member
    }

    fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut into = vec![0; 2048];
        let Some(Made::Message(length)) = self.tunnel.seal(packet, &mut into) else { panic!("the session is gone") };
        into.truncate(length);
        into
    }

    /// Sends a packet without any check; returns how many bytes of it the victim's kernel gets.
    fn send(&mut self, victim: &mut Victim, packet: &[u8]) -> usize {
        let sealed = self.seal(packet);
        victim.takes(self.id, &sealed).1
    }

    fn opens(&mut self, datagram: &[u8]) -> bool {
        matches!(self.tunnel.open(outer(VICTIM).ip(), datagram, &mut vec![0; 2048]), Opened::Packet(_))
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let word = |w: &[u8]| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IPv4 packet with right checksums.
fn ip(protocol: u8, fragment: u16, from: Ipv4Addr, to: Ipv4Addr, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend(body);
    let length = packet.len() as u16;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let place = match protocol {
        6 => 36,
        17 => 26,
        _ => return packet,
    };
    if fragment == 0 {
        let pseudo = [&packet[12..20], &[0, protocol], &(length - 20).to_be_bytes(), &packet[20..]].concat();
        let sum = checksum(&pseudo);
        packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn tcp((from, sport): (Ipv4Addr, u16), (to, dport): (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let mut body = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    body.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    ip(6, 0, from, to, &body)
}

fn udp((from, sport): (Ipv4Addr, u16), (to, dport): (Ipv4Addr, u16), fragment: u16) -> Vec<u8> {
    let mut body = [sport.to_be_bytes(), dport.to_be_bytes(), [0, 16], [0, 0]].concat();
    body.extend([7; 8]);
    ip(17, fragment, from, to, &body)
}

fn icmp(kind: u8, from: Ipv4Addr, to: Ipv4Addr, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 0, 1, 0, 1];
    body.extend(rest);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(1, 0, from, to, &body)
}

/// A packet that evil has no right to send.
fn forged(dice: &mut Dice) -> Vec<u8> {
    let any = Ipv4Addr::from(dice.roll() as u32);
    let last = dice.of(&[1, 10, 11, 99]);
    let others = [
        address(HONEST),
        pod(HONEST, 10),
        pod(HONEST, last),
        address(VICTIM),
        pod(VICTIM, 10),
        pod(VICTIM, last),
        Ipv4Addr::new(10, 8, 1, last),
        Ipv4Addr::new(10, 8, 3, last),
        FRONT,
        CART,
        Ipv4Addr::new(241, 0, 0, 53),
        Ipv4Addr::new(241, 9, 9, 9),
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(192, 0, 2, HONEST),
        any,
    ];
    // What evil owns may be its source as well, but for the one call that is allowed.
    let mut from = dice.of(&others);
    let to = dice.of(&others);
    let own = dice.of(&[address(EVIL), pod(EVIL, 10), pod(EVIL, 7)]);
    let allowed = own == address(EVIL) && to == pod(VICTIM, 10);
    if dice.below(4) == 0 && !allowed {
        from = own;
    }
    let ports = [80, 8080, 7070, 8070, 40_000, 40_001, 50_000, 53, 22, dice.roll() as u16];
    let (sport, dport) = (dice.of(&ports), dice.of(&ports));
    // What an error speaks of: the flows that are open, from either end, and others.
    let flow = dice.of(&[
        (pod(VICTIM, 10), 8080, pod(HONEST, 10), 40_000),
        (pod(VICTIM, 10), 50_000, pod(HONEST, 10), 8070),
        (pod(HONEST, 10), 8070, pod(VICTIM, 10), 50_000),
        (to, dport, from, sport),
    ]);
    let quoted = tcp((flow.0, flow.1), (flow.2, flow.3), 16);
    match dice.below(10) {
        0 => tcp((from, sport), (to, dport), 2),
        1 => tcp((from, sport), (to, dport), 18),
        2 => tcp((from, sport), (to, dport), dice.roll() as u8),
        3 => udp((from, sport), (to, dport), 0),
        4 => udp((from, sport), (to, dport), 0x2000),
        5 => ip(17, 1 + dice.below(4) as u16, from, to, &[7; 16]),
        6 => icmp(dice.of(&[0, 8]), from, to, &[7; 16]),
        7 => icmp(dice.of(&[3, 11, 12]), from, to, &quoted),
        // An error from its own address about a flow of others.
        8 => icmp(dice.of(&[3, 11, 12]), own, to, &tcp((flow.0, flow.1), (flow.2, flow.3), 16)),
        _ => ip(dice.roll() as u8, 0, from, to, &[7; 24]),
    }
}

#[test]
fn nothing_that_an_evil_node_forges_reaches_the_victims_kernel() {
    let world = World::new();
    let mut victim = Victim::new(&world.map);
    let mut honest = Member::connect(HONEST, &mut victim);
    let mut evil = Member::connect(EVIL, &mut victim);
    // Flows that are worth something: to the victim, and from it.
    let call = tcp((pod(HONEST, 10), 40_000), (pod(VICTIM, 10), 8080), 2);
    assert_eq!(honest.send(&mut victim, &call), 40, "who may, gets through");
    let sent = victim.sends(tcp((Ipv4Addr::new(10, 8, 1, 10), 50_000), (CART, 7070), 2));
    assert!(honest.opens(&sent[0]));
    let mine = tcp((address(EVIL), 40_000), (pod(VICTIM, 10), 8080), 2);
    assert_eq!(evil.send(&mut victim, &mine), 40, "even evil gets through where it may");

    let mut dice = Dice(4);
    let mut accepted = Vec::new();
    for case in 0..FORGED {
        let packet = forged(&mut dice);
        if evil.send(&mut victim, &packet) > 0 {
            accepted.push((case, packet));
        }
        // In the session of another, and under another's address.
        if case % 100 == 0 {
            let genuine = honest.seal(&call);
            let mut stolen = evil.seal(&call);
            stolen[4..8].copy_from_slice(&genuine[4..8]);
            let mut bent = genuine.clone();
            let at = 16 + dice.below(bent.len() - 16);
            bent[at] ^= 1 << dice.below(8);
            for datagram in [&stolen, &bent] {
                if victim.takes(HONEST, datagram).1 > 0 {
                    accepted.push((case, datagram.clone()));
                }
            }
            assert_eq!(victim.takes(HONEST, &genuine).1, 40, "the genuine one is still taken");
            if victim.takes(EVIL, &genuine).1 > 0 {
                accepted.push((case, genuine));
            }
        }
    }
    let first = accepted.first();
    assert_eq!(accepted.len(), 0, "of {FORGED} forged packets; the first: {first:02x?}");
}
