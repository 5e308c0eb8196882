#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const RUN: u32 = 7;
const BYTES: usize = 1400;
const BURST: u32 = 64;

fn peer(id: u32) -> (NodeId, Flat) {
    (NodeId(id), Flat([241, 1, 0, id as u8].into()))
}

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(1_000_000 + micros)
}

/// A way of one rate, one delay, and a queue that drops what does not fit.
struct TestPath {
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
fn run(way: &TestPath, micros: u64) -> Story {
    let mut sender = Sender::new(RUN, 0, BYTES, at(micros));
    let mut runs = Runs::default();
    let mut queue: VecDeque<Data> = VecDeque::new();
    let mut flying: VecDeque<(u64, Data)> = VecDeque::new();
    let mut reports: VecDeque<(u64, BenchReport)> = VecDeque::new();
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
        assert_eq!(burst.len() > 0, due, "poll_timeout and next_burst disagree at {t}");
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
            runs.count(peer(1), &frame, BYTES, now);
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
    let way = TestPath { pace: 4, delay: 200, queue: 100_000, loses: 0 };
    let story = run(&way, 1_000_000);

    let report = story.tally.latest.unwrap();
    assert_eq!((story.dropped, report.packets), (0, story.tally.sent));
    assert!(report.packets > 240_000, "{}", report.packets);
    // Twice the shortest round trip and 2 ms hold some 700 packets; it grows past by a burst or two.
    assert!(story.most_on_the_way < 2_000, "{}", story.most_on_the_way);
}

#[test]
fn a_short_queue_loses_little() {
    let way = TestPath { pace: 4, delay: 200, queue: 300, loses: 0 };
    let story = run(&way, 1_000_000);

    assert!(story.tally.latest.unwrap().packets > 200_000, "{:?}", story.tally);
    assert!(story.dropped * 100 < story.tally.sent, "{} of {}", story.dropped, story.tally.sent);
}

#[test]
fn a_path_with_loss_is_not_flooded() {
    let way = TestPath { pace: 4, delay: 2_000, queue: 100_000, loses: 20 };
    let story = run(&way, 1_000_000);

    assert!(story.most_on_the_way <= 100, "{}", story.most_on_the_way);
    let report = story.tally.latest.unwrap();
    assert_eq!(story.tally.sent - report.packets, story.dropped);
}

#[test]
fn a_long_fat_way_is_filled_as_well() {
    let way = TestPath { pace: 10, delay: 40_000, queue: 2_000, loses: 0 };
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
    assert!(sender.is_finished(at(2_000_100)) && sender.tally().latest.is_none());
    assert!((33..45).contains(&sent.len()), "{}", sent.len());
    assert_eq!(sender.next_burst(BURST, at(2_000_100)).len(), 0);
}

#[test]
fn a_lost_report_is_asked_for_again() {
    let mut sender = Sender::new(RUN, 0, BYTES, at(60_000_000));
    let frames: Vec<_> = sender.next_burst(BURST, at(0)).collect();
    assert_eq!(frames.iter().filter(|f| f.wants_report).count(), 1);
    assert!(frames.last().unwrap().wants_report);
    assert_eq!((sender.poll_timeout(at(1)), sender.next_burst(BURST, at(19_999)).len()), (Some(at(20_000)), 0));
    let questions: Vec<_> = sender.next_burst(BURST, at(20_000)).collect();
    let [question] = questions[..] else { panic!("{questions:?}") };
    assert!(question.wants_report);
    let (highest, packets) = (question.sequence, question.sequence + 1);
    let report = BenchReport { run: RUN, highest, packets, echo: question.clock, ..BenchReport::default() };
    sender.handle_report(&report, at(20_500));

    assert_eq!(sender.next_burst(BURST, at(20_500)).len(), BURST as usize);
}

#[test]
fn reports_that_cannot_be_are_ignored() {
    let mut sender = Sender::new(RUN, 3, BYTES, at(60_000_000));
    assert_eq!(sender.next_burst(10, at(0)).len(), 10);
    let good = BenchReport { run: RUN, stream: 3, highest: 9, packets: 10, ..BenchReport::default() };
    for bad in [
        BenchReport { run: RUN + 1, ..good },
        BenchReport { stream: 2, ..good },
        BenchReport { highest: 10, ..good },
        BenchReport { highest: u32::MAX, ..good },
        BenchReport { packets: 11, ..good },
    ] {
        sender.handle_report(&bad, at(1));
        assert!(sender.tally().latest.is_none(), "{bad:?}");
    }
    sender.handle_report(&good, at(1));
    assert_eq!(sender.tally(), Tally { sent: 10, first: Some(good), latest: Some(good) });
}

#[test]
fn a_lane_without_a_session_waits_and_tries_again() {
    let mut sender = Sender::new(RUN, 0, BYTES, at(100_000));
    let mut burst = sender.next_burst(10, at(0));
    assert_eq!(burst.next().map(|frame| frame.sequence), Some(0));
    sender.postpone(burst.len() as u32 + 1, at(0));
    assert_eq!((sender.next_burst(10, at(1)).len(), sender.poll_timeout(at(1))), (0, Some(at(20_000))));
    assert_eq!(sender.next_burst(10, at(20_000)).next().map(|frame| frame.sequence), Some(0));
    sender.postpone(10, at(20_000));
    assert!(!sender.is_finished(at(99_999)) && sender.is_finished(at(100_000)));
    assert_eq!(sender.tally(), Tally::default());
}

#[test]
fn whose_time_is_up_waits_for_the_last_report_and_no_longer() {
    let mut sender = Sender::new(RUN, 0, BYTES, at(10));
    assert_eq!(sender.next_burst(1, at(0)).len(), 1);
    assert!(!sender.is_finished(at(10)));
    assert_eq!(sender.next_burst(BURST, at(10)).len(), 0);
    assert!(sender.is_finished(at(1_000_010)));
    sender.handle_report(&BenchReport { run: RUN, packets: 1, ..BenchReport::default() }, at(500));
    assert!(sender.is_finished(at(500)));
}

#[test]
fn no_more_is_on_the_way_than_is_stated() {
    for (bytes, most) in [(1, MAX_FRAMES), (64, MAX_FRAMES), (1400, (16 << 20) / 1400), (65_535, 256)] {
        let way = TestPath { pace: 1, delay: 500_000, queue: usize::MAX, loses: 0 };
        let mut sender = Sender::new(RUN, 0, bytes, at(u64::from(u32::MAX)));
        let mut highest = 0;
        for round in 0..30 {
            let now = at(round * way.delay);
            highest = sender.next_burst(u32::MAX, now).last().map_or(highest, |frame| frame.sequence);
            assert!(sender.next - sender.done <= most, "{bytes}");
            let report = BenchReport { run: RUN, highest, packets: highest + 1, echo: now, ..BenchReport::default() };
            sender.handle_report(&report, now + Duration::from_micros(way.delay));
        }
        assert_eq!(sender.window, most);
    }
}

const CPU: Duration = Duration::from_millis(7);

fn data(run: u32, sequence: u32) -> Data {
    Data { run, stream: 0, sequence, clock: Timestamp::from_micros(9 + u64::from(sequence)), wants_report: true }
}

/// Counts a packet; says how many there are of its stream.
fn packets(runs: &mut Runs, id: u32, run: u32, micros: u64) -> u32 {
    runs.count(peer(id), &data(run, 0), 100, at(micros));
    runs.streams.iter().find(|s| s.peer == peer(id) && s.report.run == run).unwrap().report.packets
}

#[test]
fn what_arrived_is_reported_with_times_and_gaps() {
    let mut runs = Runs::default();
    for (sequence, micros) in [(0, 0), (1, 10), (5, 20), (4, 30)] {
        runs.count(peer(1), &data(3, sequence), 1000, at(micros));
    }

    let (from, report) = runs.next_report(|| CPU, at(40)).unwrap();

    let expected = BenchReport {
        run: 3,
        stream: 0,
        highest: 5,
        packets: 4,
        bytes: 4000,
        echo: Timestamp::from_micros(13),
        first: at(0),
        last: at(30),
        cpu: CPU,
    };
    assert_eq!((from, report), (peer(1), expected));
}

#[test]
fn a_report_goes_only_when_asked_for_and_at_most_one_in_half_a_millisecond() {
    let mut runs = Runs::default();
    runs.count(peer(1), &Data { wants_report: false, ..data(1, 0) }, 100, at(0));
    assert_eq!((runs.poll_timeout(), runs.next_report(|| CPU, at(0))), (None, None));

    let mut sent = Vec::new();
    for micros in 0..2000 {
        runs.count(peer(1), &data(1, micros as u32), 100, at(micros));
        assert_eq!(runs.poll_timeout().is_some_and(|due| due <= at(micros)), {
            let report = runs.next_report(|| CPU, at(micros));
            sent.extend(report.map(|_| micros));
            report.is_some()
        });
    }

    assert_eq!(sent, [0, 500, 1000, 1500]);
    assert_eq!(runs.poll_timeout(), Some(at(2000)));
}

#[test]
fn many_streams_share_the_rate_of_a_lane() {
    let mut runs = Runs::default();
    let mut sent = [0; 8];
    for micros in 0..10_000 {
        for run in 0..8 {
            runs.count(peer(1), &data(run, 0), 100, at(micros));
        }
        if let Some((_, report)) = runs.next_report(|| CPU, at(micros)) {
            sent[report.run as usize] += 1;
        }
    }
    assert_eq!(sent.iter().sum::<i32>(), 100);
    assert!(sent.iter().all(|&n| (12..=13).contains(&n)), "{sent:?}");
}

#[test]
fn the_table_is_bounded_and_the_oldest_goes() {
    let mut runs = Runs::default();
    for peer in 0..2 * STREAMS as u32 {
        packets(&mut runs, peer, 1, u64::from(peer));
    }
    assert_eq!((runs.streams.len(), runs.owing), (STREAMS, STREAMS));
    assert_eq!(packets(&mut runs, STREAMS as u32, 1, 100), 2);
    assert_eq!(packets(&mut runs, 0, 1, 101), 1);
    assert_eq!(packets(&mut runs, STREAMS as u32 + 1, 1, 102), 1);
}

#[test]
fn a_peer_that_begins_run_after_run_takes_no_place_from_others() {
    let mut runs = Runs::default();
    packets(&mut runs, 1, 1, 0);
    for run in 0..1000 {
        packets(&mut runs, 2, run, 1 + u64::from(run));
    }
    assert_eq!(runs.streams.len(), 1 + STREAMS_PER_PEER);
    assert_eq!(packets(&mut runs, 1, 1, 2000), 2);
}

fn any_data() -> impl Strategy<Value = Data> {
    (any::<u32>(), any::<u8>(), any::<u32>(), any::<u64>(), any::<bool>()).prop_map(
        |(run, stream, sequence, clock, wants_report)| Data {
            run,
            stream,
            sequence,
            clock: Timestamp::from_micros(clock),
            wants_report,
        },
    )
}

fn any_report() -> impl Strategy<Value = BenchReport> {
    let times = [any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()];
    (any::<u32>(), any::<u8>(), any::<u32>(), any::<u32>(), any::<u64>(), times).prop_map(
        |(run, stream, highest, packets, bytes, [echo, first, last, cpu])| BenchReport {
            run,
            stream,
            highest,
            packets,
            bytes,
            echo: Timestamp::from_micros(echo),
            first: Timestamp::from_micros(first),
            last: Timestamp::from_micros(last),
            cpu: Duration::from_micros(cpu),
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(data in any_data(), report in any_report(), dirt in any::<u8>()) {
        for (kind, frame) in [(DATA, Frame::Data(data)), (REPORT, Frame::Report(report))] {
            let mut rest = [dirt; FRAME];
            frame.write(&mut rest);
            prop_assert_eq!(Frame::parse(kind, &rest), Some(frame));
        }
    }

    #[test]
    fn mangled_frames_are_read_without_a_panic(data in any_data(), at in 0..FRAME, byte in any::<u8>(), len in 0..2 * FRAME) {
        let mut rest = [0; 2 * FRAME];
        Frame::Data(data).write(&mut rest);
        rest[at] = byte;
        let read = Frame::parse(byte, &rest[..len]);
        prop_assert_eq!(read.is_some(), len >= FRAME && matches!(byte, DATA | REPORT));
    }
}

#[test]
fn frames_lie_as_older_nodes_know_them() {
    let data = Data { run: 0x0102_0304, stream: 5, sequence: 6, clock: Timestamp::from_micros(7), wants_report: true };
    let mut rest = [9; FRAME];
    Frame::Data(data).write(&mut rest);
    assert_eq!(rest[..18], [5, 1, 1, 2, 3, 4, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 7]);
    let time = Timestamp::from_micros;
    let (echo, first, last, cpu) = (time(9), time(10), time(11), Duration::from_micros(12));
    let report = BenchReport { run: 1, stream: 2, highest: 3, packets: 4, bytes: 8, echo, first, last, cpu };
    Frame::Report(report).write(&mut rest);
    assert_eq!(rest[..18], [2, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0]);
    let longs = rest[18..].chunks(8).map(|long| u64::from_be_bytes(long.try_into().unwrap()));
    assert_eq!(longs.collect::<Vec<_>>(), [8, 9, 10, 11, 12]);
}

#[test]
fn an_unknown_kind_is_no_frame_and_an_unknown_flag_is_ignored() {
    let data = Data { run: 1, stream: 2, sequence: 3, clock: Timestamp::from_micros(4), wants_report: true };
    let mut rest = [0; FRAME];
    Frame::Data(data).write(&mut rest);
    assert_eq!((Frame::parse(5, &rest), Frame::parse(1, &rest)), (None, None));
    rest[1] = 0x81;
    assert_eq!(Frame::parse(DATA, &rest), Some(Frame::Data(data)));
}
