#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;

use super::*;
use crate::base::id::NodeId;
use crate::ops::bench::{BODY, Runs};

const RUN: u32 = 7;
const BYTES: usize = 1400;
const BURST: u32 = 64;

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(1_000_000 + micros)
}

/// A way of one rate, one delay, and a queue that drops what does not fit.
struct Way {
    /// Microseconds per packet.
    pace: u64,
    /// One way, in microseconds.
    delay: u64,
    queue: usize,
    /// Every so many packets one is lost; 0 for none.
    loses: u32,
}

/// What happened on a way.
#[derive(Default)]
struct Story {
    most_on_the_way: u32,
    dropped: u32,
    tally: Tally,
}

/// Runs a stream of that many microseconds over a way, microsecond by microsecond.
fn run(way: &Way, micros: u64) -> Story {
    let mut sender = Sender::new(RUN, 0, BYTES, at(micros));
    let mut runs = Runs::default();
    let mut queue: VecDeque<Data> = VecDeque::new();
    let mut flying: VecDeque<(u64, Data)> = VecDeque::new();
    let mut reports: VecDeque<(u64, Report)> = VecDeque::new();
    let (mut story, mut offered) = (Story::default(), 0);
    for t in 0.. {
        let now = at(t);
        while let Some((_, report)) = reports.pop_front_if(|(due, _)| *due <= t) {
            sender.handle_report(&report, now);
        }
        if sender.is_finished(now) {
            break;
        }
        let due = sender.poll_timeout(now).is_some_and(|due| due <= now);
        let burst = sender.next_burst(BURST, now);
        assert_eq!(burst.left() > 0, due, "poll_timeout and next_burst disagree at {t}");
        for frame in burst {
            offered += 1;
            if queue.len() >= way.queue || way.loses > 0 && offered % way.loses == 0 {
                story.dropped += 1;
            } else {
                queue.push_back(frame);
            }
        }
        story.most_on_the_way = story.most_on_the_way.max(sender.next - sender.done);
        if t % way.pace == 0
            && let Some(frame) = queue.pop_front()
        {
            flying.push_back((t + way.delay, frame));
        }
        while let Some((_, frame)) = flying.pop_front_if(|(due, _)| *due <= t) {
            runs.count(NodeId(1), &frame, BYTES, now);
        }
        if let Some((_, report)) = runs.next_report(|| Duration::ZERO, now) {
            reports.push_back((t + way.delay, report));
        }
    }
    story.tally = sender.tally();
    story
}

#[test]
fn a_way_without_loss_is_filled_and_its_queue_stays_short() {
    let way = Way { pace: 4, delay: 200, queue: 100_000, loses: 0 };
    let story = run(&way, 1_000_000);

    let report = story.tally.latest.unwrap();
    assert_eq!((story.dropped, report.packets), (0, story.tally.sent));
    assert!(report.packets > 240_000, "{}", report.packets);
    // Twice the shortest round trip and 2 ms hold some 700 packets; it grows past by a burst or two.
    assert!(story.most_on_the_way < 2_000, "{}", story.most_on_the_way);
}

#[test]
fn a_short_queue_loses_little() {
    let way = Way { pace: 4, delay: 200, queue: 300, loses: 0 };
    let story = run(&way, 1_000_000);

    assert!(story.tally.latest.unwrap().packets > 200_000, "{:?}", story.tally);
    assert!(story.dropped * 100 < story.tally.sent, "{} of {}", story.dropped, story.tally.sent);
}

#[test]
fn a_path_with_loss_is_not_flooded() {
    let way = Way { pace: 4, delay: 2_000, queue: 100_000, loses: 20 };
    let story = run(&way, 1_000_000);

    assert!(story.most_on_the_way <= 100, "{}", story.most_on_the_way);
    let report = story.tally.latest.unwrap();
    assert_eq!(story.tally.sent - report.packets, story.dropped);
}

#[test]
fn a_long_fat_way_is_filled_as_well() {
    let way = Way { pace: 10, delay: 40_000, queue: 2_000, loses: 0 };
    let story = run(&way, 3_000_000);
    // Half of what it holds, opening included.
    assert!(story.tally.latest.unwrap().packets > 150_000, "{:?}", story.tally);
}

#[test]
fn without_a_report_it_ends_after_a_burst_and_a_few_questions() {
    let mut sender = Sender::new(RUN, 0, BYTES, at(60_000_000));
    let (mut now, mut sent) = (at(0), Vec::new());
    while let Some(due) = sender.poll_timeout(now) {
        now = due.max(now + Duration::from_micros(1));
        sent.extend(sender.next_burst(BURST, now).map(|frame| frame.sequence));
        if now >= at(10_000_000) {
            break;
        }
    }
    assert!(sender.is_finished(at(2_000_100)) && !sender.is_answered());
    assert!((33..45).contains(&sent.len()), "{}", sent.len());
    assert_eq!(sender.next_burst(BURST, at(2_000_100)).left(), 0);
}

#[test]
fn a_lost_report_is_asked_for_again() {
    let mut sender = Sender::new(RUN, 0, BYTES, at(60_000_000));
    let frames: Vec<_> = sender.next_burst(BURST, at(0)).collect();
    assert_eq!(frames.iter().filter(|f| f.wants_report).count(), 1);
    assert!(frames.last().unwrap().wants_report);
    assert_eq!((sender.poll_timeout(at(1)), sender.next_burst(BURST, at(19_999)).left()), (Some(at(20_000)), 0));
    let questions: Vec<_> = sender.next_burst(BURST, at(20_000)).collect();
    let [question] = questions[..] else { panic!("{questions:?}") };
    assert!(question.wants_report);
    let (highest, packets) = (question.sequence, question.sequence + 1);
    let report = Report { run: RUN, highest, packets, echo: question.clock, ..Report::default() };
    sender.handle_report(&report, at(20_500));

    assert_eq!(sender.next_burst(BURST, at(20_500)).left(), BURST);
}

#[test]
fn reports_that_cannot_be_are_ignored() {
    let mut sender = Sender::new(RUN, 3, BYTES, at(60_000_000));
    assert_eq!(sender.next_burst(10, at(0)).left(), 10);
    let good = Report { run: RUN, stream: 3, highest: 9, packets: 10, ..Report::default() };
    for bad in [
        Report { run: RUN + 1, ..good },
        Report { stream: 2, ..good },
        Report { highest: 10, ..good },
        Report { highest: u32::MAX, ..good },
        Report { packets: 11, ..good },
    ] {
        sender.handle_report(&bad, at(1));
        assert!(!sender.is_answered(), "{bad:?}");
    }
    sender.handle_report(&good, at(1));
    assert_eq!(sender.tally(), Tally { sent: 10, first: Some(good), latest: Some(good) });
}

#[test]
fn a_lane_without_a_session_waits_and_tries_again() {
    let mut sender = Sender::new(RUN, 0, BYTES, at(100_000));
    let mut burst = sender.next_burst(10, at(0));
    assert_eq!(burst.next().map(|frame| frame.sequence), Some(0));
    sender.postpone(burst.left() + 1, at(0));
    assert_eq!((sender.next_burst(10, at(1)).left(), sender.poll_timeout(at(1))), (0, Some(at(20_000))));
    assert_eq!(sender.next_burst(10, at(20_000)).next().map(|frame| frame.sequence), Some(0));
    sender.postpone(10, at(20_000));
    assert!(!sender.is_finished(at(99_999)) && sender.is_finished(at(100_000)));
    assert_eq!(sender.tally(), Tally::default());
}

#[test]
fn who_is_told_to_stop_waits_for_the_last_report_and_no_longer() {
    let mut sender = Sender::new(RUN, 0, BYTES, at(60_000_000));
    assert_eq!(sender.next_burst(1, at(0)).left(), 1);
    sender.stop(at(10));
    assert!(!sender.is_finished(at(10)));
    assert_eq!(sender.next_burst(BURST, at(10)).left(), 0);
    assert!(sender.is_finished(at(1_000_010)));
    sender.handle_report(&Report { run: RUN, packets: 1, ..Report::default() }, at(500));
    assert!(sender.is_finished(at(500)));
}

#[test]
fn no_more_is_on_the_way_than_is_stated() {
    for (bytes, most) in [(1, MAX_FRAMES), (BODY, MAX_FRAMES), (1400, (16 << 20) / 1400), (65_535, 256)] {
        let way = Way { pace: 1, delay: 500_000, queue: usize::MAX, loses: 0 };
        let mut sender = Sender::new(RUN, 0, bytes, at(u64::from(u32::MAX)));
        let mut highest = 0;
        for round in 0..30 {
            let now = at(round * way.delay);
            highest = sender.next_burst(u32::MAX, now).last().map_or(highest, |frame| frame.sequence);
            assert!(sender.next - sender.done <= most, "{bytes}");
            let report = Report { run: RUN, highest, packets: highest + 1, echo: now, ..Report::default() };
            sender.handle_report(&report, now + Duration::from_micros(way.delay));
        }
        assert_eq!(sender.window.size(), most);
    }
}
