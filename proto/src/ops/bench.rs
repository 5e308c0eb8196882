//! Measuring the way to another node: frames on the reserved port between nodes, and both ends' decisions.
//!
//! ```text
//! sender                                                     receiver
//! Sender ── Data: run, stream, sequence, clock, padding ──▶ Runs: counts, never delivers, never sends data
//!    ▲                                                          │
//!    └────────── Report: what arrived, when, CPU time ◀─────────┘ when asked, rarely, no larger than a Data
//!
//!         6        7       8     12          16        20   24      32     40      48     56    64
//! Data    │ stream │ flags │ run │ sequence  │ clock          │ padding …                       │
//! Report  │ stream │ 0     │ run │ highest   │ packets │ 0    │ bytes  │ echo │ first │ last │ CPU │
//! ```
//!
//! A *run* is one phase of one measurement; each lane of the sender is a *stream* of it with a window of its own,
//! which grows while reports come in time and without loss, and which stops the stream when they stop. The receiver
//! keeps a bounded table and answers a frame with at most one that is no larger: nobody can make it send a flood.
//!
//! Frames follow "MESH", the version and the kind. Numbers are big-endian; times are microseconds: clock and echo by
//! the sender's clock, first and last by the receiver's. Flags that a version does not know are ignored.

use std::time::Duration;

use crate::base::addr::Flat;
use crate::base::clock::Timestamp;
use crate::base::id::NodeId;

/// The kind of a `Data` on the reserved port.
pub const DATA: u8 = 3;
/// The kind of a `Report` on the reserved port.
pub const REPORT: u8 = 4;
/// Bytes of a frame after its kind. A report has just these, so that it is never larger than what asked for it.
pub const FRAME: usize = 58;
const WANTS_REPORT: u8 = 1;

/// Most bytes on the way: what 1 Gbit/s with 130 ms of round trip holds.
const MAX_BYTES: usize = 16 << 20;
/// Frames on the way: the most, those at the start, which are one burst, and the least that a window shrinks to.
const MAX_FRAMES: u32 = 1 << 15;
const FIRST_FRAMES: u32 = 32;
const LEAST_FRAMES: u32 = 4;
/// A queue that makes the round trip longer by this is long enough. Less is the scheduling of busy machines.
const QUEUE: Duration = Duration::from_millis(2);
/// A report is wanted with the last frame of each burst, and with every so many within one.
const REPORT_EVERY: u32 = 32;
/// How long to wait after a frame that could not be sent.
const PAUSE: Duration = Duration::from_millis(20);
/// How long to wait for a report before asking again; it doubles up to the longest.
const PATIENCE: Duration = Duration::from_millis(20);
const LONGEST_PATIENCE: Duration = Duration::from_millis(500);
/// Without a report for so long the stream ends.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the last report is waited for.
const DRAIN: Duration = Duration::from_secs(1);

/// Most streams that a lane counts at a time; a new one takes the place of the one that was heard longest ago.
const STREAMS: usize = 32;
/// Most streams of one peer; a further one takes the place of that peer's own.
const STREAMS_PER_PEER: usize = 16;
/// Least time between two reports of a stream.
const BETWEEN: Duration = Duration::from_micros(500);
/// Least time between two reports of a lane.
const BETWEEN_ANY: Duration = Duration::from_micros(100);

/// A frame of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Something to count.
    Data(Data),
    /// What was counted.
    Report(BenchReport),
}

/// Something to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// The sender's number for the phase.
    pub run: u32,
    /// The sender's lane.
    pub stream: u8,
    /// Its place in the stream, from 0.
    pub sequence: u32,
    /// When it was made, by the sender's clock.
    pub clock: Timestamp,
    /// Whether the sender wants to know how the stream stands.
    pub wants_report: bool,
}

/// What a receiver counted of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BenchReport {
    /// The sender's number for the phase.
    pub run: u32,
    /// The sender's lane.
    pub stream: u8,
    /// The highest sequence that arrived.
    pub highest: u32,
    /// Packets that arrived.
    pub packets: u32,
    /// Their bytes, IP headers included.
    pub bytes: u64,
    /// The clock in the frame that arrived last.
    pub echo: Timestamp,
    /// When the first arrived, by the receiver's clock.
    pub first: Timestamp,
    /// When the last arrived, by the receiver's clock.
    pub last: Timestamp,
    /// CPU time that the receiving process has used since its start.
    pub cpu: Duration,
}

impl Frame {
    /// Reads what follows the kind; `None` if it is no frame of a measurement.
    pub fn parse(kind: u8, rest: &[u8]) -> Option<Self> {
        let (head, longs) = rest.first_chunk::<FRAME>()?.split_first_chunk()?;
        let &[stream, flags, r0, r1, r2, r3, p0, p1, p2, p3] = head;
        let (run, place) = (u32::from_be_bytes([r0, r1, r2, r3]), u32::from_be_bytes([p0, p1, p2, p3]));
        let long = |i: usize| longs[8 * i..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let time = |i| Timestamp::from_micros(long(i));
        match kind {
            DATA => {
                let wants_report = flags & WANTS_REPORT != 0;
                Some(Self::Data(Data { run, stream, sequence: place, clock: time(0), wants_report }))
            }
            REPORT => {
                let (packets, cpu) = ((long(0) >> 32) as u32, Duration::from_micros(long(5)));
                let (echo, first, last) = (time(2), time(3), time(4));
                Some(Self::Report(BenchReport {
                    run,
                    stream,
                    highest: place,
                    packets,
                    bytes: long(1),
                    echo,
                    first,
                    last,
                    cpu,
                }))
            }
            _ => None,
        }
    }

    /// Writes what follows the kind over the beginning of `rest`, if it has room.
    pub fn write(&self, rest: &mut [u8]) {
        let (stream, flags, run, place, longs) = match self {
            Self::Data(data) => {
                let flags = if data.wants_report { WANTS_REPORT } else { 0 };
                (data.stream, flags, data.run, data.sequence, [data.clock.as_micros(), 0, 0, 0, 0, 0])
            }
            Self::Report(r) => {
                let cpu = u64::try_from(r.cpu.as_micros()).unwrap_or(u64::MAX);
                let [echo, first, last] = [r.echo, r.first, r.last].map(Timestamp::as_micros);
                (r.stream, 0, r.run, r.highest, [u64::from(r.packets) << 32, r.bytes, echo, first, last, cpu])
            }
        };
        let Some((head, rest)) = rest.split_first_chunk_mut::<10>() else { return };
        head[..2].copy_from_slice(&[stream, flags]);
        head[2..6].copy_from_slice(&run.to_be_bytes());
        head[6..].copy_from_slice(&place.to_be_bytes());
        for (into, long) in rest.chunks_exact_mut(8).zip(longs) {
            into.copy_from_slice(&long.to_be_bytes());
        }
    }
}

/// The sending end of one stream: how much may be sent, and when it is over.
///
/// ```text
/// sending ── the time is up ──▶ draining ── the last frame is reported, or 1 s ──▶ finished
///    └──────────── no report for 2 s while frames are on the way ────────────────────▲
/// ```
/// When the window is full and nothing is heard, single frames ask for a report, ever more slowly: the report may
/// have been lost. Loss alone would fill the largest queue on the way before it says anything, and real traffic waits
/// in the same queue; so a round trip that has become long makes the window smaller as well.
#[derive(Debug, Default)]
pub struct Sender {
    run: u32,
    stream: u8,
    until: Timestamp,
    /// The sequence of the next frame, and so the number of those sent.
    next: u32,
    /// Frames up to the highest that arrived.
    done: u32,
    began: Option<Timestamp>,
    sent: Timestamp,
    heard: Option<Timestamp>,
    /// Frames sent beside the window since the last report.
    asked: u32,
    not_before: Timestamp,
    lost: u32,
    first: Option<BenchReport>,
    latest: Option<BenchReport>,
    /// How many frames may be on the way, and the most that ever may.
    window: u32,
    most: u32,
    /// Whether the window does not double with every round any more, and frames that arrived since it last grew then.
    opened: bool,
    arrived: u32,
    /// It shrinks no more until this frame has arrived: what is lost before was sent before it shrank.
    shrunk: u32,
    shortest: Option<Duration>,
}

/// What came of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames sent.
    pub sent: u32,
    /// The first report, from shortly after the beginning.
    pub first: Option<BenchReport>,
    /// The latest report.
    pub latest: Option<BenchReport>,
}

impl Sender {
    /// Begins a stream of packets of that many bytes; it sends up to a time.
    pub fn new(run: u32, stream: u8, packet_bytes: usize, until: Timestamp) -> Self {
        let most = u32::try_from(MAX_BYTES / packet_bytes.max(1)).unwrap_or(MAX_FRAMES);
        let most = most.clamp(LEAST_FRAMES, MAX_FRAMES);
        Self { run, stream, until, most, window: FIRST_FRAMES.min(most), ..Self::default() }
    }

    /// Returns the frames to send now, at most `most`. They count as sent.
    pub fn next_burst(&mut self, most: u32, now: Timestamp) -> impl ExactSizeIterator<Item = Data> + use<> {
        let (run, stream, first, free) = (self.run, self.stream, self.next, self.free(now));
        let count = if self.poll_timeout(now).is_some_and(|due| due <= now) { free.max(1).min(most) } else { 0 };
        if count > 0 {
            // With a full window one frame asks for a report.
            self.asked += u32::from(free == 0);
            self.next = first.saturating_add(count);
            self.began.get_or_insert(now);
            self.sent = now;
        }
        let end = self.next;
        (first..end).map(move |sequence| {
            let wants_report = sequence + 1 == end || sequence % REPORT_EVERY == REPORT_EVERY - 1;
            Data { run, stream, sequence, clock: now, wants_report }
        })
    }

    /// Takes back that many of the frames of the last burst: they could not be sent, nor could others for a while.
    pub fn postpone(&mut self, count: u32, now: Timestamp) {
        self.next = self.next.saturating_sub(count).max(self.done);
        self.not_before = now + PAUSE;
        if self.next == 0 {
            self.began = None;
        }
    }

    /// Takes a report. One of another run or stream, and one that counts what was never sent, is ignored.
    pub fn handle_report(&mut self, report: &BenchReport, now: Timestamp) {
        let ours = report.run == self.run && report.stream == self.stream;
        let done = report.highest.saturating_add(1);
        if !ours || done > self.next || report.packets > done {
            return;
        }
        self.heard = Some(now);
        self.asked = 0;
        self.first.get_or_insert(*report);
        if self.latest.is_none_or(|latest| latest.packets < report.packets) {
            self.latest = Some(*report);
        }
        let arrived = done.saturating_sub(self.done);
        self.done = self.done.max(done);
        let lost = done - report.packets;
        let loses = lost > std::mem::replace(&mut self.lost, lost);
        if arrived > 0 {
            self.resize(arrived, loses, now.since(report.echo));
        }
    }

    /// Returns when a frame may be sent, unless a report comes first; `None` once the stream is finished.
    pub fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        if self.is_finished(now) {
            return None;
        }
        let due = if self.free(now) > 0 { Some(now) } else { self.ask_at() };
        due.map(|due| due.max(self.not_before))
    }

    /// Says whether nothing more will come of it.
    pub fn is_finished(&self, now: Timestamp) -> bool {
        let on_the_way = self.next > self.done;
        let silent = self.heard.max(self.began).is_some_and(|since| now.since(since) >= SILENCE);
        let over = now >= self.until && (!on_the_way || now >= self.until + DRAIN);
        over || silent && on_the_way
    }

    /// Returns what came of it so far.
    pub fn tally(&self) -> Tally {
        Tally { sent: self.next, first: self.first, latest: self.latest }
    }

    /// Returns how many frames the window lets through.
    fn free(&self, now: Timestamp) -> u32 {
        if now >= self.until { 0 } else { self.window.saturating_sub(self.next - self.done) }
    }

    /// Returns when to ask for a report; `None` if nothing is on the way.
    fn ask_at(&self) -> Option<Timestamp> {
        if self.next == self.done {
            return None;
        }
        let usual = self.shortest.map_or(PATIENCE, |shortest| PATIENCE.max(shortest * 2));
        let patience = usual.saturating_mul(1 << self.asked.min(8)).min(LONGEST_PATIENCE.max(usual));
        Some(self.heard.unwrap_or_default().max(self.sent) + patience)
    }

    /// Sets the window after a report: how many more frames arrived, whether some are lost, and how long the last took
    /// to be reported.
    fn resize(&mut self, arrived: u32, loses: bool, took: Duration) {
        let shortest = self.shortest.map_or(took, |shortest| shortest.min(took));
        self.shortest = Some(shortest);
        if loses || took > shortest.saturating_mul(2) + QUEUE {
            self.opened = true;
            self.arrived = 0;
            if self.done >= self.shrunk {
                let less = if loses { self.window * 3 / 10 } else { self.window / 8 };
                self.window = (self.window - less).max(LEAST_FRAMES);
                self.shrunk = self.next;
            }
        } else if !self.opened {
            self.window = self.window.saturating_add(arrived).min(self.most);
        } else {
            self.arrived = self.arrived.saturating_add(arrived);
            if self.arrived >= self.window {
                self.arrived = 0;
                self.window = (self.window + (self.window / 32).max(1)).min(self.most);
            }
        }
    }
}

/// The receiving end: the streams that a lane counts, by peer, run and number.
#[derive(Debug, Default)]
pub struct Runs {
    /// The one that was counted last comes first.
    streams: Vec<Stream>,
    /// How many owe a report.
    owing: usize,
    reported: Timestamp,
}

#[derive(Debug)]
struct Stream {
    peer: (NodeId, Flat),
    /// But for the CPU time, which is read when it is sent.
    report: BenchReport,
    owes: bool,
    reported: Timestamp,
}

impl Runs {
    /// Counts a frame of a peer, from its address, that was a packet of that many bytes.
    pub fn count(&mut self, peer: (NodeId, Flat), data: &Data, bytes: usize, now: Timestamp) {
        let of = |s: &Stream| s.peer.0 == peer.0 && s.report.run == data.run && s.report.stream == data.stream;
        let index = self.streams.iter().position(of).unwrap_or_else(|| self.begin(peer, data, now));
        self.streams.swap(0, index);
        let stream = &mut self.streams[0];
        let report = &mut stream.report;
        report.highest = report.highest.max(data.sequence);
        report.packets = report.packets.saturating_add(1);
        report.bytes = report.bytes.saturating_add(bytes as u64);
        report.echo = data.clock;
        report.last = now;
        self.owing += usize::from(data.wants_report && !stream.owes);
        stream.owes |= data.wants_report;
    }

    /// Returns the next report that is due, and whom to send it to. The process's CPU time is asked for only then.
    pub fn next_report(
        &mut self,
        cpu: impl FnOnce() -> Duration,
        now: Timestamp,
    ) -> Option<((NodeId, Flat), BenchReport)> {
        if self.poll_timeout()? > now {
            return None;
        }
        // The one that has waited longest, so that many streams share the rate.
        let owing = self.streams.iter_mut().filter(|stream| stream.owes);
        let stream = owing.min_by_key(|stream| stream.reported)?;
        stream.owes = false;
        stream.reported = now;
        self.owing -= 1;
        self.reported = now;
        Some((stream.peer, BenchReport { cpu: cpu(), ..stream.report }))
    }

    /// Returns when `next_report` has one; `None` if none is owed.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.owing == 0 {
            return None;
        }
        let owing = self.streams.iter().filter(|stream| stream.owes);
        owing.map(|stream| stream.reported + BETWEEN).min().map(|due| due.max(self.reported + BETWEEN_ANY))
    }

    /// Begins to count a stream. Returns its place.
    fn begin(&mut self, peer: (NodeId, Flat), data: &Data, now: Timestamp) -> usize {
        let report = BenchReport { run: data.run, stream: data.stream, first: now, ..BenchReport::default() };
        let stream = Stream { peer, report, owes: false, reported: Timestamp::default() };
        let of_peer = self.streams.iter().filter(|stream| stream.peer.0 == peer.0).count();
        if of_peer < STREAMS_PER_PEER && self.streams.len() < STREAMS {
            self.streams.reserve_exact(STREAMS - self.streams.len());
            self.streams.push(stream);
            return self.streams.len() - 1;
        }
        let may_go = |stream: &Stream| of_peer < STREAMS_PER_PEER || stream.peer.0 == peer.0;
        let candidates = self.streams.iter().enumerate().filter(|(_, stream)| may_go(stream));
        let oldest = candidates.min_by_key(|(_, stream)| stream.report.last).map_or(0, |(index, _)| index);
        self.owing -= usize::from(self.streams[oldest].owes);
        self.streams[oldest] = stream;
        oldest
    }
}

#[cfg(test)]
mod tests;
