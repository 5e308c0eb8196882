//! The receiving end: what arrived, by peer, run and stream.

use std::time::Duration;

use super::frame::{Data, Report};
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;

/// Most streams that a lane counts at a time; a new one takes the place of the one that was heard longest ago.
pub const STREAMS: usize = 32;
/// Most streams of one peer; a further one takes the place of that peer's own.
pub const STREAMS_PER_PEER: usize = 16;
/// Least time between two reports of a stream.
const BETWEEN: Duration = Duration::from_micros(500);
/// Least time between two reports of a lane.
const BETWEEN_ANY: Duration = Duration::from_micros(100);

/// The streams that a lane counts.
#[derive(Debug, Default)]
pub struct Runs {
    streams: Vec<Stream>,
    /// The stream of the frame before, which most likely is this one's as well.
    latest: usize,
    /// How many owe a report.
    owing: usize,
    reported: Timestamp,
}

#[derive(Debug)]
struct Stream {
    peer: NodeId,
    /// But for the CPU time, which is read when it is sent.
    report: Report,
    owes: bool,
    reported: Timestamp,
}

impl Stream {
    fn is(&self, peer: NodeId, data: &Data) -> bool {
        self.peer == peer && self.report.run == data.run && self.report.stream == data.stream
    }

    /// Returns when its report may go.
    fn due(&self) -> Timestamp {
        self.reported + BETWEEN
    }
}

impl Runs {
    /// Counts a frame of a peer that was a packet of that many bytes.
    pub fn count(&mut self, peer: NodeId, data: &Data, bytes: usize, now: Timestamp) {
        let index = self.find(peer, data, now);
        self.latest = index;
        let Some(stream) = self.streams.get_mut(index) else { return };
        let report = &mut stream.report;
        report.highest = report.highest.max(data.sequence);
        report.packets = report.packets.saturating_add(1);
        report.bytes = report.bytes.saturating_add(bytes as u64);
        report.echo = data.clock;
        report.last = now;
        if data.wants_report && !stream.owes {
            stream.owes = true;
            self.owing += 1;
        }
    }

    /// Returns the next report that is due, and whom to send it to. The process's CPU time is asked for only then.
    pub fn next_report(&mut self, cpu: impl FnOnce() -> Duration, now: Timestamp) -> Option<(NodeId, Report)> {
        if self.owing == 0 || now < self.reported + BETWEEN_ANY {
            return None;
        }
        // The one that has waited longest, so that many streams share the rate.
        let owing = self.streams.iter_mut().filter(|stream| stream.owes);
        let stream = owing.min_by_key(|stream| stream.reported).filter(|stream| stream.due() <= now)?;
        stream.owes = false;
        stream.reported = now;
        self.owing -= 1;
        self.reported = now;
        Some((stream.peer, Report { cpu: cpu(), ..stream.report }))
    }

    /// Returns when `next_report` has one; `None` if none is owed.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.owing == 0 {
            return None;
        }
        let owing = self.streams.iter().filter(|stream| stream.owes);
        owing.map(Stream::due).min().map(|due| due.max(self.reported + BETWEEN_ANY))
    }

    /// Finds a frame's stream, or begins to count it.
    fn find(&mut self, peer: NodeId, data: &Data, now: Timestamp) -> usize {
        if self.streams.get(self.latest).is_some_and(|stream| stream.is(peer, data)) {
            return self.latest;
        }
        if let Some(index) = self.streams.iter().position(|stream| stream.is(peer, data)) {
            return index;
        }
        let report = Report { run: data.run, stream: data.stream, first: now, ..Report::default() };
        let stream = Stream { peer, report, owes: false, reported: Timestamp::default() };
        let of_peer = self.streams.iter().filter(|stream| stream.peer == peer).count();
        if of_peer < STREAMS_PER_PEER && self.streams.len() < STREAMS {
            self.streams.reserve_exact(STREAMS - self.streams.len());
            self.streams.push(stream);
            return self.streams.len() - 1;
        }
        let own = |stream: &Stream| of_peer < STREAMS_PER_PEER || stream.peer == peer;
        let candidates = self.streams.iter().enumerate().filter(|(_, stream)| own(stream));
        let oldest = candidates.min_by_key(|(_, stream)| stream.report.last).map_or(0, |(index, _)| index);
        self.owing -= usize::from(self.streams[oldest].owes);
        self.streams[oldest] = stream;
        oldest
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const CPU: Duration = Duration::from_millis(7);

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(1_000_000 + micros)
    }

    fn data(run: u32, sequence: u32) -> Data {
        Data { run, stream: 0, sequence, clock: Timestamp::from_micros(9 + u64::from(sequence)), wants_report: true }
    }

    fn packets(runs: &mut Runs, peer: u32, run: u32, micros: u64) -> u32 {
        runs.count(NodeId(peer), &data(run, 0), 100, at(micros));
        runs.streams.iter().find(|s| s.is(NodeId(peer), &data(run, 0))).unwrap().report.packets
    }

    #[test]
    fn what_arrived_is_reported_with_times_and_gaps() {
        let mut runs = Runs::default();
        for (sequence, micros) in [(0, 0), (1, 10), (5, 20), (4, 30)] {
            runs.count(NodeId(1), &data(3, sequence), 1000, at(micros));
        }

        let (peer, report) = runs.next_report(|| CPU, at(40)).unwrap();

        let expected = Report {
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
        assert_eq!((peer, report), (NodeId(1), expected));
    }

    #[test]
    fn a_report_goes_only_when_asked_for_and_at_most_one_in_half_a_millisecond() {
        let mut runs = Runs::default();
        runs.count(NodeId(1), &Data { wants_report: false, ..data(1, 0) }, 100, at(0));
        assert_eq!((runs.poll_timeout(), runs.next_report(|| CPU, at(0))), (None, None));

        let mut sent = Vec::new();
        for micros in 0..2000 {
            runs.count(NodeId(1), &data(1, micros as u32), 100, at(micros));
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
                runs.count(NodeId(1), &data(run, 0), 100, at(micros));
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
}
