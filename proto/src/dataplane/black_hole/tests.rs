//! A node and a link in virtual time, a millisecond at a time.

use super::*;
use crate::packet::sample::Dice;

const PEER: NodeId = NodeId(2);
const FULL_SIZE: u16 = 1420;
const START: Timestamp = Timestamp::from_millis(1_000_000);

/// A link to one peer that always answers what reaches it.
struct Link {
    ways: Ways,
    now: Timestamp,
    /// The largest packet that gets through.
    lets_through: u16,
    /// How many of a thousand datagrams are lost, each way.
    loss: usize,
    trip: Duration,
    dice: Dice,
    answers: Vec<(Timestamp, SizeQuestion)>,
    asked: Vec<(Timestamp, SizeQuestion)>,
    full: u16,
}

impl Link {
    fn new(lets_through: u16) -> Self {
        Self {
            ways: Ways::default(),
            now: START,
            lets_through,
            loss: 0,
            trip: Duration::from_millis(3),
            dice: Dice(7),
            answers: Vec::new(),
            asked: Vec::new(),
            full: FULL_SIZE,
        }
    }

    fn is_lost(&mut self) -> bool {
        self.dice.below(1000) < self.loss
    }

    /// Lets time pass, with traffic or without.
    fn pass(&mut self, time: Duration, peers: u32) {
        let end = self.now + time;
        while self.now < end {
            let now = self.now;
            if now.as_millis().is_multiple_of(250) {
                (0..peers).for_each(|n| self.ways.traffic(NodeId(PEER.0 + n), self.full, now));
            }
            let (due, later) = std::mem::take(&mut self.answers).into_iter().partition(|&(at, _)| at <= now);
            self.answers = later;
            let due: Vec<(Timestamp, SizeQuestion)> = due;
            due.iter().for_each(|(_, answer)| self.ways.heard(answer.peer, answer.clock, now));
            while let Some(question) = self.ways.poll(now) {
                assert!(is_question(question.clock) && question.clock <= now.as_micros());
                self.asked.push((now, question));
                let lost = self.is_lost() || self.is_lost();
                if question.bytes <= self.lets_through && !lost {
                    self.answers.push((now + self.trip, question));
                }
            }
            self.now = now + Duration::from_millis(1);
        }
    }

    fn narrow(&self) -> Option<u16> {
        self.ways.narrowed().find(|&(peer, _)| peer == PEER).map(|(_, narrow)| narrow.bytes)
    }
}

#[test]
fn a_hole_is_found_within_two_and_a_half_seconds_and_what_gets_through_is_what_counts() {
    for (lets_through, expected) in [(1419, 1400), (1399, 1380), (1280, 1280), (1005, 1000), (600, 576), (100, 576)] {
        let mut link = Link::new(FULL_SIZE);
        link.pass(Duration::from_secs(20), 1);
        assert_eq!(link.narrow(), None);

        link.lets_through = lets_through;
        link.pass(Duration::from_millis(2500), 1);
        assert_eq!(link.narrow(), Some(expected), "{lets_through}");
        assert!(link.ways.take_changed() && !link.ways.take_changed());

        link.pass(Duration::from_secs(50), 1);
        assert_eq!(link.narrow(), Some(expected), "{lets_through}");
    }
}

#[test]
fn one_datagram_in_five_lost_each_way_for_ten_minutes_is_no_hole() {
    for seed in 1..=20 {
        let mut link = Link::new(FULL_SIZE);
        (link.loss, link.dice) = (200, Dice(seed * 0x9E37_79B9));
        link.pass(Duration::from_secs(600), 1);
        assert_eq!(link.narrow(), None, "{seed}");
        assert!(!link.ways.take_changed(), "{seed}");
    }
}

#[test]
fn a_hole_is_found_beside_such_losses_too() {
    let mut link = Link::new(1300);
    link.loss = 200;
    link.pass(Duration::from_secs(30), 1);
    let narrow = link.narrow().unwrap_or(0);
    assert!((MIN_MTU..=1300).contains(&narrow), "{narrow}");
}

#[test]
fn a_peer_that_answers_nothing_is_no_hole() {
    let mut link = Link::new(0);
    link.loss = 1000;
    link.pass(Duration::from_secs(120), 1);
    assert_eq!(link.narrow(), None);
}

#[test]
fn slow_ways_are_given_the_time_that_they_take() {
    let mut link = Link::new(FULL_SIZE);
    link.trip = Duration::from_millis(700);
    link.pass(Duration::from_secs(60), 1);
    assert_eq!(link.narrow(), None);
    link.lets_through = 1300;
    link.pass(Duration::from_secs(20), 1);
    assert_eq!(link.narrow(), Some(1300));
}

#[test]
fn more_is_tried_after_a_minute_and_then_less_and_less_often() {
    let mut link = Link::new(1300);
    link.pass(Duration::from_secs(5), 1);
    assert_eq!(link.narrow(), Some(1300));
    link.asked.clear();
    link.pass(Duration::from_secs(40 * 60), 1);
    let mut tries: Vec<u64> = { link.asked.iter() }
        .filter(|(_, question)| question.bytes == FULL_SIZE)
        .map(|(at, _)| at.since(START).as_secs())
        .collect();
    tries.dedup_by_key(|at| *at / 10);
    let pauses: Vec<u64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!((59..=63).contains(&tries[0]), "{tries:?}");
    assert_eq!(pauses.len(), 5, "{tries:?}");
    for (pause, expected) in pauses.into_iter().zip([120, 240, 480, 600, 600]) {
        assert!(pause.abs_diff(expected) <= 3, "{tries:?}");
    }

    link.lets_through = 1390;
    link.pass(Duration::from_secs(610), 1);
    assert_eq!(link.narrow(), Some(1380), "part of it is taken back");
    link.lets_through = FULL_SIZE;
    link.pass(Duration::from_secs(610), 1);
    assert_eq!(link.narrow(), None);
}

#[test]
fn a_way_that_becomes_narrower_still_is_found_and_one_that_moved_is_tried_at_once() {
    let mut link = Link::new(1300);
    link.pass(Duration::from_secs(5), 1);
    link.lets_through = 1000;
    link.pass(Duration::from_secs(3), 1);
    assert_eq!(link.narrow(), Some(1000));
    link.lets_through = FULL_SIZE;
    link.ways.moved(PEER, link.now);
    link.pass(Duration::from_secs(3), 1);
    assert_eq!(link.narrow(), None);
}

#[test]
fn the_map_is_believed_where_it_asks_for_less() {
    let mut link = Link::new(1300);
    link.pass(Duration::from_secs(5), 1);
    link.full = 1280;
    link.pass(Duration::from_secs(1), 1);
    assert_eq!(link.narrow(), None);
    link.full = FULL_SIZE;
    link.pass(Duration::from_secs(4), 1);
    assert_eq!(link.narrow(), Some(1300));
    link.ways.retain(|_| false);
    assert_eq!(link.narrow(), None);
}

#[test]
fn no_second_has_more_than_a_hundred_questions_and_all_peers_have_their_turn() {
    let mut link = Link::new(1300);
    link.pass(Duration::from_secs(60), 300);
    let times: Vec<Timestamp> = link.asked.iter().map(|&(at, _)| at).collect();
    for window in times.windows(MOST_A_SECOND + 1) {
        assert!(window[MOST_A_SECOND].since(window[0]) >= Duration::from_secs(1));
    }
    let mut asked: Vec<u32> = link.asked.iter().map(|(_, question)| question.peer.0).collect();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), 300);
    link.pass(Duration::from_secs(60), 300);
    assert!(link.ways.narrowed().count() > 200, "{}", link.ways.narrowed().count());
}

#[test]
fn a_link_that_ten_peers_share_is_known_to_be_narrow_for_all_within_four_seconds() {
    let mut link = Link::new(FULL_SIZE);
    link.pass(Duration::from_secs(10), 10);
    link.lets_through = 1300;
    link.pass(Duration::from_secs(4), 10);
    assert_eq!(link.ways.narrowed().count(), 10);
}

#[test]
fn without_traffic_nothing_is_asked_and_nothing_is_due() {
    let mut link = Link::new(FULL_SIZE);
    link.pass(Duration::from_secs(5), 1);
    link.pass(Duration::from_secs(3), 0);
    link.asked.clear();
    link.pass(Duration::from_secs(60), 0);
    assert!(link.asked.is_empty());
    assert_eq!(link.ways.poll_timeout(), None);
    assert!(link.ways.ways.is_empty());
}

/// How long it takes to say once that there is traffic with each of so many peers; the shortest of some tries.
#[expect(clippy::disallowed_methods, reason = "it is the time that it takes which is measured")]
fn time_of_traffic(peers: u32) -> Duration {
    let mut ways = Ways::default();
    let mut round = || {
        let began = std::time::Instant::now();
        (0..peers).for_each(|n| ways.traffic(NodeId(n), FULL_SIZE, START));
        began.elapsed()
    };
    round();
    (0..5).map(|_| round()).min().unwrap_or_default()
}

#[test]
fn traffic_with_many_peers_costs_as_much_for_each_as_with_few() {
    let (few, many) = (time_of_traffic(500), time_of_traffic(16_000));
    // 32 times as many take 32 times as long, or 1,024 times if each is looked for among all.
    assert!(many < 200 * few, "{few:?} for 500 peers, {many:?} for 16,000");
}

#[test]
fn a_way_is_found_again_after_others_were_forgotten() {
    let mut link = Link::new(1300);
    link.pass(Duration::from_secs(20), 3);
    assert_eq!(link.ways.narrowed().count(), 3);
    link.ways.retain(|peer| peer == NodeId(PEER.0 + 2));
    link.pass(Duration::from_secs(1), 3);
    let known: Vec<NodeId> = link.ways.ways.iter().map(|way| way.peer).collect();
    assert_eq!(known, [NodeId(PEER.0 + 2), PEER, NodeId(PEER.0 + 1)]);
    assert!(known.iter().enumerate().all(|(at, peer)| link.ways.places.get(peer) == Some(&at)));
}
