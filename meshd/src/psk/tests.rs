//! Two sides over a bad network.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use mesh_proto::base::addr::Flat;
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::{NodeId, TunnelKey};
use proptest::prelude::*;

use super::frame::PskStep;
use super::*;

const START: Timestamp = Timestamp::from_millis(1_000_000);

fn pair(own: u32) -> KemKeypair {
    let of = |n: u32| (NodeId(n), TunnelKey([n as u8; 32]));
    KemKeypair { own: of(own), peer: of(3 - own) }
}

/// Nodes 1 and 2, what flies between them, and the keys that they have.
struct Net {
    sides: [Exchange; 2],
    keys: [Option<PresharedKey>; 2],
    /// To whom, and what.
    flying: Vec<(usize, PskFrame)>,
    ids: u64,
    now: Timestamp,
}

impl Net {
    fn new() -> Self {
        let sides = [Exchange::new(pair(1)), Exchange::new(pair(2))];
        Self { sides, keys: [None, None], flying: Vec::new(), ids: 0, now: START }
    }

    fn propose(&mut self, side: usize) {
        self.ids += 1;
        self.sides[side].propose(self.ids, self.now);
        self.collect();
    }

    fn collect(&mut self) {
        for side in 0..2 {
            while let Some(frame) = self.sides[side].next_frame() {
                self.flying.push((1 - side, frame));
            }
        }
    }

    fn deliver(&mut self, to: usize, frame: &PskFrame) -> Progress {
        // As it comes out of a tunnel.
        let mut packet = [0; MAX_PACKET];
        let address = |n: usize| Flat([241, 1, 0, n as u8].into());
        let length = frame.write(address(1 - to), address(to), &mut packet);
        let read = PskFrame::read(&packet[..length]).unwrap();
        assert_eq!(read, *frame);
        let progress = self.sides[to].handle(&read, self.now);
        if let Progress::Agreed(key) = &progress {
            self.keys[to] = Some(key.clone());
        }
        self.collect();
        progress
    }

    fn run_to_rest(&mut self) {
        while !self.flying.is_empty() {
            let (to, frame) = self.flying.remove(0);
            self.deliver(to, &frame);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        for side in &mut self.sides {
            side.handle_timeout(self.now);
        }
        self.collect();
    }

    fn agree(&self) -> bool {
        self.keys[0].is_some() && self.keys[0] == self.keys[1]
    }

    /// A node starts anew without its key, and in a tunnel of its own.
    fn lose(&mut self, side: usize) {
        self.sides[side] = Exchange::new(pair(side as u32 + 1));
        self.keys[side] = None;
        self.flying.clear();
    }
}

#[test]
fn one_offer_gives_both_the_same_key_and_every_other_another() {
    let mut net = Net::new();
    net.propose(1);
    net.run_to_rest();
    assert!(net.agree());
    assert!(!net.sides[1].is_proposing(), "the confirmation was confirmed");
    let first = net.keys[0].clone();

    net.propose(0);
    net.run_to_rest();
    assert!(net.agree());
    assert_ne!(net.keys[0], first);
    assert_eq!(format!("{:?}", net.keys[0]), "Some(Preshared([redacted]))");
}

#[test]
fn the_key_is_bound_to_both_nodes_and_both_keys() {
    let other = TunnelKey([9; 32]);
    let honest = pair(2);
    for wrong in [
        KemKeypair { own: (NodeId(7), honest.own.1), ..honest },
        KemKeypair { own: (honest.own.0, other), ..honest },
        KemKeypair { peer: (NodeId(7), honest.peer.1), ..honest },
        KemKeypair { peer: (honest.peer.0, other), ..honest },
    ] {
        let mut net = Net::new();
        net.sides[1] = Exchange::new(wrong);
        net.propose(0);
        net.run_to_rest();
        assert_eq!(net.keys, [None, None], "{wrong:?}");
    }
}

#[test]
fn of_two_offers_that_cross_the_lesser_nodes_goes_on() {
    let mut net = Net::new();
    net.propose(0);
    net.propose(1);
    net.run_to_rest();
    assert!(net.agree());
    assert!(!net.sides[1].is_proposing());
    net.pass(Duration::from_secs(10));
    assert_eq!(net.flying, []);
}

#[test]
fn an_offer_without_an_answer_is_repeated_a_few_times_and_given_up() {
    let mut net = Net::new();
    net.propose(0);
    let mut times = Vec::new();
    net.flying.clear();
    while let Some(due) = net.sides[0].poll_timeout() {
        net.now = due;
        match net.sides[0].handle_timeout(due) {
            Progress::None => times.push(due.since(START).as_millis()),
            outcome @ (Progress::Unanswered | Progress::Answered | Progress::Agreed(_)) => {
                assert_eq!(outcome, Progress::Unanswered);
            }
        }
        let frames = std::iter::from_fn(|| net.sides[0].next_frame()).count();
        assert!(frames == 3 || !net.sides[0].is_proposing());
    }
    assert_eq!(times, [250, 750, 1750, 2750]);
}

#[test]
fn a_byte_that_was_altered_never_leads_to_a_key() {
    for step in [PskStep::Offer, PskStep::Answer, PskStep::Confirm] {
        let mut net = Net::new();
        net.propose(0);
        while let Some((to, mut frame)) = (!net.flying.is_empty()).then(|| net.flying.remove(0)) {
            if frame.step == step {
                frame.bytes[17] ^= 1;
            }
            net.deliver(to, &frame);
        }
        assert_eq!(net.keys[1], None, "{step:?}");
        assert_eq!(net.keys[0].is_some(), step == PskStep::Confirm, "{step:?}");
    }
}

#[test]
fn every_packet_fits_the_smallest_underlay() {
    let wireguard = 32;
    let (udp, ipv4) = (8, 20);
    assert!(MAX_PACKET + wireguard + udp + ipv4 <= 576);
}

#[derive(Debug, Clone)]
enum Event {
    Deliver(usize),
    Twice(usize),
    Lose(usize),
    Wait(u64),
    Propose(usize),
    Restart(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        12 => (0usize..64).prop_map(Event::Deliver),
        3 => (0usize..64).prop_map(Event::Twice),
        3 => (0usize..64).prop_map(Event::Lose),
        4 => (1u64..2000).prop_map(Event::Wait),
        2 => (0usize..2).prop_map(Event::Propose),
        1 => (0usize..2).prop_map(Event::Restart),
    ];
    prop::collection::vec(event, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn whatever_was_lost_doubled_or_overtaken_both_end_with_one_key(
        events in events(),
        last in 0usize..2,
    ) {
        let mut net = Net::new();
        for event in events {
            let count = net.flying.len().max(1);
            match event {
                Event::Deliver(n) if !net.flying.is_empty() => {
                    let (to, frame) = net.flying.remove(n % count);
                    net.deliver(to, &frame);
                }
                Event::Twice(n) if !net.flying.is_empty() => {
                    let (to, frame) = net.flying[n % count].clone();
                    net.deliver(to, &frame);
                }
                Event::Lose(n) if !net.flying.is_empty() => drop(net.flying.remove(n % count)),
                Event::Deliver(_) | Event::Twice(_) | Event::Lose(_) => {}
                Event::Wait(ms) => net.pass(Duration::from_millis(ms)),
                Event::Propose(side) => net.propose(side),
                Event::Restart(side) => net.lose(side),
            }
        }
        // From now on nothing is lost; a side without a key, or one whose handshakes fail, wants one.
        for _ in 0..200 {
            net.run_to_rest();
            if net.agree() && net.flying.is_empty() && !net.sides.iter().any(Exchange::is_proposing) {
                break;
            }
            net.pass(Duration::from_millis(50));
            let wanting = if net.keys[last].is_none() || net.keys[0] != net.keys[1] { last } else { 1 - last };
            if !net.agree() {
                net.propose(wanting);
                if net.keys[1 - wanting].is_none() {
                    net.propose(1 - wanting);
                }
            }
        }
        prop_assert!(net.agree(), "{:?}", net.now.since(START));
        prop_assert!(net.sides.iter().all(|side| !side.is_proposing()));
    }

    #[test]
    fn crossed_offers_in_any_order_give_one_key(order in prop::collection::vec(0usize..64, 40)) {
        let mut net = Net::new();
        net.propose(0);
        net.propose(1);
        let mut order = order.into_iter();
        while !net.flying.is_empty() {
            let n = order.next().unwrap_or(0) % net.flying.len();
            let (to, frame) = net.flying.remove(n);
            net.deliver(to, &frame);
        }
        for _ in 0..20 {
            net.pass(Duration::from_millis(250));
            net.run_to_rest();
        }
        prop_assert!(net.agree());
    }

    #[test]
    fn no_bytes_are_a_frame_that_panics(bytes in prop::collection::vec(any::<u8>(), 0..600), steps in 0u8..8, part in any::<u8>()) {
        let _ = PskFrame::read(&bytes);
        let mut packet = [0; MAX_PACKET];
        let frame = PskFrame { step: PskStep::Offer, part: 0, id: 1, bytes: bytes.iter().copied().take(424).collect() };
        let length = frame.write(Flat([241, 1, 0, 1].into()), Flat([241, 1, 0, 2].into()), &mut packet);
        let head = MAX_PACKET - 424 - 10;
        (packet[head], packet[head + 1]) = (steps, part);
        if let Some(frame) = PskFrame::read(&packet[..length]) {
            let mut exchange = Exchange::new(pair(2));
            exchange.propose(1, START);
            exchange.handle(&frame, START);
        }
    }
}

#[test]
fn a_peer_that_offers_without_end_is_answered_now_and_then() {
    let mut net = Net::new();
    let offer = kem::Offer::make().unwrap();
    for id in 0..1_000 {
        for frame in PskFrame::all(PskStep::Offer, id, &offer.bytes) {
            net.deliver(0, &frame);
        }
        net.now = net.now + Duration::from_millis(5);
    }
    let answers = net.flying.iter().filter(|(_, frame)| frame.step == PskStep::Answer && frame.part == 0).count();
    assert!((8..=14).contains(&answers), "{answers} in 5 s");
}
