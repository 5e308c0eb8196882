//! One phase of a measurement: what the lanes share of it, and what it came to.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;
use mesh_proto::dataplane::engine::BenchPacket;
use mesh_proto::ops::bench::{Burst, Echoes, Report, Sender, Tally};
use mesh_proto::ops::status as doc;

use crate::dataplane::bell::Bell;

/// What is done in a phase.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plan {
    /// Shake hands on all lanes, and get one answer.
    Greet,
    /// Ask for round trips.
    Echo {
        /// Time between two.
        every: Duration,
        /// How many.
        count: u32,
    },
    /// Send, and ask for round trips meanwhile.
    Load {
        /// The number of the run.
        run: u32,
        /// Bytes of each packet.
        packet_bytes: usize,
        /// When to end.
        until: Timestamp,
        /// Time between two questions for the round trip.
        every: Duration,
        /// How many.
        count: u32,
    },
}

/// One phase of a measurement, shared by the lanes and by who waits for it. The locks are taken per burst, per
/// report and per round trip, never for a packet of somebody else's.
#[derive(Debug)]
pub(crate) struct Phase {
    peer: NodeId,
    greets: bool,
    answered: AtomicBool,
    packet_bytes: AtomicUsize,
    echoes: Mutex<Echoes>,
    /// One per lane; none without load.
    streams: Vec<Mutex<Sender>>,
    bells: Arc<[Bell]>,
}

impl Phase {
    pub(crate) fn new(peer: NodeId, plan: Plan, bells: &Arc<[Bell]>, now: Timestamp) -> Self {
        let (every, count) = match plan {
            Plan::Greet => (Duration::ZERO, 0),
            Plan::Echo { every, count } | Plan::Load { every, count, .. } => (every, count),
        };
        let (streams, bytes) = match plan {
            Plan::Greet | Plan::Echo { .. } => (Vec::new(), 0),
            Plan::Load { run, packet_bytes, until, .. } => {
                let stream = |lane| Mutex::new(Sender::new(run, lane as u8, packet_bytes, until));
                ((0..bells.len()).map(stream).collect(), packet_bytes)
            }
        };
        Self {
            peer,
            greets: matches!(plan, Plan::Greet),
            answered: AtomicBool::new(false),
            packet_bytes: AtomicUsize::new(bytes),
            echoes: Mutex::new(Echoes::new(every, count, now)),
            streams,
            bells: Arc::clone(bells),
        }
    }

    pub(crate) fn peer(&self) -> NodeId {
        self.peer
    }

    /// Says whether lanes without a session are to make one.
    pub(crate) fn greets(&self) -> bool {
        self.greets
    }

    /// Returns how large the packets are to be; 0 without load.
    pub(crate) fn packet_bytes(&self) -> usize {
        self.packet_bytes.load(Ordering::Relaxed)
    }

    /// Takes note of how large they are: the way may take less.
    pub(crate) fn set_packet_bytes(&self, bytes: usize) {
        self.packet_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the frames that a lane may send now, at most `most`.
    pub(crate) fn next_burst(&self, lane: usize, most: u32, now: Timestamp) -> Option<Burst> {
        let burst = lock(self.streams.get(lane)?).next_burst(most, now);
        (burst.left() > 0).then_some(burst)
    }

    /// Takes back frames that a lane could not send.
    pub(crate) fn postpone(&self, lane: usize, count: u32, now: Timestamp) {
        if let Some(stream) = self.streams.get(lane) {
            lock(stream).postpone(count, now);
        }
    }

    /// Takes a report that came by a lane, not always the one that it is for.
    pub(crate) fn handle_report(&self, lane: usize, report: &Report, now: Timestamp) {
        let stream = usize::from(report.stream);
        let Some(sender) = self.streams.get(stream) else { return };
        lock(sender).handle_report(report, now);
        if let Some(bell) = self.bells.get(stream).filter(|_| stream != lane) {
            bell.ring();
        }
    }

    /// Says whether to ask for a round trip.
    pub(crate) fn poll_echo(&self, now: Timestamp) -> bool {
        lock(&self.echoes).poll(now)
    }

    /// Takes a round trip.
    pub(crate) fn handle_echo(&self, micros: u32) {
        self.answered.store(true, Ordering::Release);
        lock(&self.echoes).handle_answer(micros);
    }

    /// Returns when a lane has something to do. Lane 0 asks for the round trips.
    pub(crate) fn poll_timeout(&self, lane: usize, now: Timestamp) -> Option<Timestamp> {
        let frames = self.streams.get(lane).and_then(|stream| lock(stream).poll_timeout(now));
        let echo = if lane == 0 { lock(&self.echoes).poll_timeout() } else { None };
        frames.into_iter().chain(echo).min()
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Says whether nothing more will come of it. Once the load is over, so are the questions beside it.
    pub(crate) fn is_finished(&self, now: Timestamp) -> bool {
        let over = self.streams.iter().all(|stream| lock(stream).is_finished(now));
        if over && !self.streams.is_empty() {
            lock(&self.echoes).stop();
            return true;
        }
        over && lock(&self.echoes).is_complete()
    }

    pub(crate) fn tallies(&self) -> Vec<Tally> {
        self.streams.iter().map(|stream| lock(stream).tally()).collect()
    }

    pub(crate) fn echoes(&self) -> Vec<u32> {
        lock(&self.echoes).answers().to_vec()
    }
}

/// A lane's part in our own measurement.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) phase: Arc<Phase>,
    /// The packets to send; none without load.
    pub(crate) packet: Option<BenchPacket>,
    /// Packets of the host's at the last turn.
    pub(crate) host_packets: u64,
}

/// What a phase with load came to.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) packet_bytes: usize,
    /// CPU time of this process.
    pub(super) cpu: Duration,
    /// By lane.
    pub(super) tallies: Vec<Tally>,
    /// Round trips beside it, in microseconds.
    pub(super) echoes: Vec<u32>,
}

impl Load {
    pub(super) fn received(&self) -> u64 {
        self.reports().map(|report| u64::from(report.packets)).sum()
    }

    /// Returns the bits that arrived.
    pub(super) fn bits(&self) -> f64 {
        self.reports().map(|report| report.bytes as f64 * 8.0).sum()
    }

    /// Counts the lanes by which anything arrived.
    pub(super) fn lanes(&self) -> usize {
        self.reports().count()
    }

    /// Returns the time between the first arrival and the last, by the receiver's clock; never 0.
    pub(super) fn seconds(&self) -> f64 {
        let first = self.reports().map(|report| report.first).min().unwrap_or_default();
        let last = self.reports().map(|report| report.last).max().unwrap_or_default();
        last.since(first).max(Duration::from_micros(1)).as_secs_f64()
    }

    pub(super) fn loss_percent(&self) -> f64 {
        let sent = self.sent();
        if sent == 0 { 0.0 } else { sent.saturating_sub(self.received()) as f64 * 100.0 / sent as f64 }
    }

    /// Returns the CPU time of both ends for each of so many things that arrived, by the given unit.
    pub(super) fn cpu_per(&self, things: f64, unit: impl Fn(&Duration) -> f64) -> doc::Cpu {
        let sender = (things > 0.0).then(|| unit(&self.cpu) / things);
        // The receiver's time is known from its first report on, so the share that arrived since then counts.
        let begun = || self.tallies.iter().filter_map(|tally| tally.first);
        let before: f64 = begun().map(|report| report.bytes as f64 * 8.0).sum();
        let first = begun().map(|report| report.cpu).min();
        let last = self.reports().map(|report| report.cpu).max();
        let share = if self.bits() > 0.0 { (self.bits() - before) / self.bits() } else { 0.0 };
        let used = first.zip(last).map(|(first, last)| last.saturating_sub(first));
        let receiver = used.filter(|_| share > 0.0 && things > 0.0).map(|used| unit(&used) / (things * share));
        doc::Cpu { sender, receiver }
    }

    pub(super) fn document(&self, name: &str) -> doc::BenchPhase {
        doc::BenchPhase {
            name: name.into(),
            packet_bytes: self.packet_bytes,
            seconds: self.seconds(),
            sent: self.sent(),
            received: self.received(),
            loss_percent: self.loss_percent(),
        }
    }

    fn sent(&self) -> u64 {
        self.tallies.iter().map(|tally| u64::from(tally.sent)).sum()
    }

    fn reports(&self) -> impl Iterator<Item = Report> {
        self.tallies.iter().filter_map(|tally| tally.latest)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
