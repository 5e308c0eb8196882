//! `meshd bench`: one node measures its way to another, inside the tunnel.
//!
//! ```text
//! greet ── an answer ──▶ idle ──▶ small ──▶ bulk ──▶ the figures
//!          handshakes    round    packets   throughput, loss, CPU,
//!          on all lanes  trips    of 92 B   round trips beside it
//! ```
//! Round trips are those of `meshd ping`. The lanes do the rest in turns of their own (`lane_end`); what they share is
//! a `LoadPhase`. Whoever asked holds the `Measurement`: when it goes, because the figures are there or because nobody waits
//! for them any more, the lanes stop.

pub(crate) mod lane_end;

use std::sync::Arc;
use std::time::Duration;

use mesh_host::clock::{cpu_time, now};
use mesh_proto::base::addr::Flat;
use mesh_proto::base::id::{NodeId, NodeName};
use mesh_proto::ops::bench::{BenchReport, Tally};
use mesh_proto::ops::status as doc;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::dataplane::mailbox::Mailbox;
use crate::wireguard::peers::Cell;

use lane_end::{LoadPhase, Phase, SMALLEST};

/// How long each phase with load may take, in seconds.
pub const SECONDS: std::ops::RangeInclusive<u8> = 1..=10;
/// How long it takes unless somebody says otherwise, in seconds.
pub const DEFAULT_SECONDS: u8 = 3;

/// How long a whole measurement takes as a rule, for that many seconds of each phase.
pub fn usual(seconds: u8) -> Duration {
    IDLE_EVERY * IDLE_ECHOES + Duration::from_secs(seconds.into()) * 2
}

/// How long a whole measurement takes at most, for that many seconds of each phase.
pub fn longest(seconds: u8) -> Duration {
    let load = Duration::from_secs(seconds.into()) + LATEST;
    GREETING * GREETINGS + IDLE_EVERY * IDLE_ECHOES + LATEST * 2 + load * 2
}

/// How long the first answer is waited for, each time.
const GREETING: Duration = Duration::from_secs(1);
const GREETINGS: u32 = 4;
/// Round trips without load.
const IDLE_ECHOES: u32 = 200;
const IDLE_EVERY: Duration = Duration::from_millis(5);
/// Round trips beside load, while it lasts.
const LOADED_EVERY: Duration = Duration::from_millis(10);
/// How long the last answers are waited for; a stream gives up sooner.
const LATEST: Duration = Duration::from_millis(1200);
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// Why nothing was measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BenchError {
    /// There is no session, and none can be made.
    #[error(
        "`{0}` does not answer through the tunnel; `meshd peers` shows whether it has an endpoint and a handshake, and its UDP port must be open"
    )]
    NoAnswer(NodeName),
    /// It answers probes and counts no frames.
    #[error(
        "`{0}` answers, but counts nothing: its meshd is older than `meshd bench`; update it there and run it again"
    )]
    Old(NodeName),
    /// Small packets arrive, large ones do not.
    #[error(
        "`{node}` gets small packets, but none of {bytes} bytes: something on the way drops large datagrams or fragments; let them pass, or lower the MTU of the interface beneath the tunnel"
    )]
    Narrow {
        /// The node.
        node: NodeName,
        /// Bytes of the packets, IP header included.
        bytes: usize,
    },
    /// The path went away.
    #[error("`{0}` fell silent while it was measured; `meshd peers` shows whether it is back")]
    Silent(NodeName),
}

/// What is measured, and the right to do so; one at a time. Dropping it ends the measurement.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) peer: NodeId,
    /// Our address, and the peer's.
    pub(crate) way: [Flat; 2],
    /// The largest packet that the way takes, in bytes.
    pub(crate) mtu: u16,
    /// What is known of the peer.
    pub(crate) cell: Arc<Cell>,
    pub(crate) lanes: Arc<[Mailbox]>,
    /// What the lanes do; who measures is who put it there.
    pub(crate) phases: watch::Sender<Phase>,
}

impl Drop for Measurement {
    fn drop(&mut self) {
        self.begin(None);
    }
}

impl Measurement {
    /// Measures, with so long for each phase with load.
    ///
    /// # Errors
    /// `BenchError` that says why nothing could be measured, and what to do.
    pub(crate) async fn run(&self, node: &NodeName, seconds: Duration) -> Result<doc::Bench, BenchError> {
        let node = node.clone();
        // On all lanes, so that all get a session if possible.
        if self.round_trips(self.lanes.len(), GREETING, GREETINGS, |answers| answers > 0).await.is_empty() {
            return Err(BenchError::NoAnswer(node));
        }
        let idle = self.round_trips(1, IDLE_EVERY, IDLE_ECHOES, |answers| answers >= IDLE_ECHOES.into()).await;
        let small = self.load("small", SMALLEST, seconds).await;
        if small.phase.received == 0 {
            return Err(if small.trips.is_empty() { BenchError::Silent(node) } else { BenchError::Old(node) });
        }
        let bulk = self.load("bulk", self.mtu.into(), seconds).await;
        if bulk.phase.received == 0 {
            let (bytes, silent) = (bulk.phase.packet_bytes, bulk.trips.is_empty());
            return Err(if silent { BenchError::Silent(node) } else { BenchError::Narrow { node, bytes } });
        }
        Ok(doc::Bench {
            schema: doc::BENCH.into(),
            node,
            address: self.way[1],
            lanes: bulk.lanes,
            throughput_gbps: bulk.gbits / bulk.phase.seconds,
            loss_percent: bulk.phase.loss_percent,
            packets_per_second: small.phase.received as f64 / small.phase.seconds,
            rtt_us: doc::RoundTrips::of(idle),
            rtt_loaded_us: doc::RoundTrips::of(bulk.trips),
            cpu_s_per_gbit: bulk.cpu.per(bulk.gbits),
            cpu_us_per_packet: small.cpu.per(small.phase.received as f64 / 1e6),
            phases: vec![small.phase, bulk.phase],
        })
    }

    /// Asks for a round trip on so many lanes, and again every so often for so many times, and waits until it is over,
    /// which depends on the number of answers, or until it takes too long. Returns the answers in microseconds.
    async fn round_trips(&self, lanes: usize, every: Duration, times: u32, is_over: impl Fn(u64) -> bool) -> Vec<u32> {
        let known = || self.cell.stats(now()).unwrap_or_default();
        let (began, before, mut trips) = (now(), known().rtt_count, Vec::new());
        let (mut due, mut asked, mut count) = (began, 0, before);
        loop {
            let time = now();
            if due <= time && asked < times {
                self.lanes[..lanes].iter().for_each(|lane| lane.ping(self.peer));
                (due, asked) = (time.max(due + every), asked + 1);
            }
            sleep(LOOK).await;
            let stats = known();
            // Of answers that come at once, one is known.
            if stats.rtt_count > count {
                count = stats.rtt_count;
                trips.extend(stats.rtt.map(|trip| trip.as_micros() as u32));
            }
            if time >= began + every * times + LATEST || is_over(count - before) {
                return trips;
            }
        }
    }

    /// Measures packets of that many bytes.
    async fn load(&self, name: &str, bytes: usize, time: Duration) -> Load {
        let (until, cpu) = (now() + time, cpu_time());
        let bells = self.lanes.iter().map(Mailbox::bell).collect();
        let phase = Arc::new(LoadPhase::new(self.peer, self.way, bytes, until, bells));
        self.begin(Some(Arc::clone(&phase)));
        let is_over = |_| phase.streams().all(|stream| stream.is_finished(now()));
        let times = (time.as_micros() / LOADED_EVERY.as_micros()) as u32;
        let trips = self.round_trips(1, LOADED_EVERY, times, is_over).await;
        let cpu = cpu_time().saturating_sub(cpu);
        let tallies: Vec<Tally> = phase.streams().map(|stream| stream.tally()).collect();
        Load::new(name, phase.packet.len(), cpu, &tallies, trips)
    }

    /// Tells the lanes what to do.
    fn begin(&self, phase: Phase) {
        self.phases.send_replace(phase);
        self.lanes.iter().for_each(Mailbox::ring);
    }
}

/// What a phase with load came to.
struct Load {
    phase: doc::BenchPhase,
    /// Lanes by which anything arrived.
    lanes: usize,
    gbits: f64,
    cpu: doc::Cpu,
    /// Round trips beside it, in microseconds.
    trips: Vec<u32>,
}

impl Load {
    fn new(name: &str, packet_bytes: usize, cpu: Duration, tallies: &[Tally], trips: Vec<u32>) -> Self {
        let first: Vec<BenchReport> = tallies.iter().filter_map(|tally| tally.first).collect();
        let latest: Vec<BenchReport> = tallies.iter().filter_map(|tally| tally.latest).collect();
        let gbits = |reports: &[BenchReport]| reports.iter().map(|report| report.bytes as f64 * 8e-9).sum::<f64>();
        let sent: u64 = tallies.iter().map(|tally| u64::from(tally.sent)).sum();
        let received: u64 = latest.iter().map(|report| u64::from(report.packets)).sum();
        let since = latest.iter().map(|report| report.first).min().unwrap_or_default();
        let until = latest.iter().map(|report| report.last).max().unwrap_or_default();
        // The receiver's time is known from its first report on, so it stands for the share that arrived since then.
        let known = gbits(&latest) - gbits(&first);
        let (from, to) = (first.iter().map(|r| r.cpu).min(), latest.iter().map(|r| r.cpu).max());
        let used = from.zip(to).filter(|_| known > 0.0).map(|(from, to)| to.saturating_sub(from).as_secs_f64());
        let receiver = used.map(|used| used * gbits(&latest) / known);
        Self {
            lanes: latest.len(),
            gbits: gbits(&latest),
            cpu: doc::Cpu { sender: Some(cpu.as_secs_f64()), receiver },
            trips,
            phase: doc::BenchPhase {
                name: name.into(),
                packet_bytes,
                seconds: until.since(since).max(Duration::from_micros(1)).as_secs_f64(),
                sent,
                received,
                loss_percent: sent.saturating_sub(received) as f64 * 100.0 / sent.max(1) as f64,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::base::clock::Timestamp;

    use super::*;

    #[test]
    fn figures_are_of_what_arrived_and_the_receivers_time_of_what_arrived_since_it_is_known() {
        let report = |packets: u32, cpu| BenchReport {
            packets,
            bytes: u64::from(packets) * 1250,
            first: Timestamp::from_millis(1000),
            last: Timestamp::from_millis(3000),
            cpu: Duration::from_millis(cpu),
            ..BenchReport::default()
        };
        let tally = Tally { sent: 1250, first: Some(report(100, 500)), latest: Some(report(1100, 510)) };
        let load = Load::new("bulk", 1250, Duration::from_millis(22), &[tally, Tally::default()], vec![7]);

        let phase = &load.phase;
        assert_eq!((load.lanes, phase.sent, phase.received, phase.loss_percent), (1, 1250, 1100, 12.0));
        let cpu = load.cpu.per(load.gbits);
        let near = |value: Option<f64>, to: f64| value.is_some_and(|value| (value - to).abs() < 1e-6);
        assert!((load.gbits - 0.011).abs() < 1e-9 && (phase.seconds - 2.0).abs() < 1e-9, "{phase:?}");
        assert!(near(cpu.sender, 2.0) && near(cpu.receiver, 1.0), "{cpu:?}");

        let nothing = Load::new("bulk", 1250, Duration::ZERO, &[Tally::default()], Vec::new());
        assert_eq!((nothing.phase.received, nothing.phase.loss_percent, nothing.cpu.receiver), (0, 0.0, None));
    }
}
