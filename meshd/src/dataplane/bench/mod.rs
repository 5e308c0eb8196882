//! `meshd bench`: one node measures its way to another, inside the tunnel.
//!
//! ```text
//! greet ── an answer ──▶ idle ──▶ small ──▶ bulk ──▶ the figures
//!          handshakes    round    packets   throughput, loss, CPU,
//!          on all lanes  trips    of 92 B   round trips beside it
//! ```
//! The lanes do the work in turns of their own (`lane::bench`); what they share is a `Phase`. Whoever asked holds the
//! `Bench`: when it goes, because the figures are there or because nobody waits for them any more, the lanes stop.

pub(crate) mod phase;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_proto::base::id::{NodeId, NodeName};
use mesh_proto::dataplane::engine::SMALLEST_BENCH;
use mesh_proto::model::netmap::Peer;
use mesh_proto::ops::status as doc;
use tokio::time::sleep;

use crate::base::clock::{cpu_time, now};
use crate::dataplane::bell::Bell;
use crate::dataplane::mailbox::Mailbox;

use phase::{Load, Phase, Plan};

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
    GREETING * GREETINGS + IDLE_EVERY * IDLE_ECHOES + LATEST + load * 2
}

/// How long the first answer is waited for, each time.
const GREETING: Duration = Duration::from_secs(1);
const GREETINGS: u32 = 5;
/// Round trips without load.
const IDLE_ECHOES: u32 = 200;
const IDLE_EVERY: Duration = Duration::from_millis(5);
/// Round trips beside load, while it lasts.
const LOADED_EVERY: Duration = Duration::from_millis(10);
/// How long the last answers are waited for; a stream gives up sooner.
const LATEST: Duration = Duration::from_millis(1200);
/// How often the lanes' progress is looked at.
const LOOK: Duration = Duration::from_millis(5);

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

/// The right to measure; one at a time. Dropping it ends the measurement.
#[derive(Debug)]
pub(crate) struct Bench {
    peer: NodeId,
    lanes: Arc<[Mailbox]>,
    bells: Arc<[Bell]>,
    busy: Arc<AtomicBool>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.set_bench(None));
        self.busy.store(false, Ordering::Release);
    }
}

impl Bench {
    /// Takes the right to measure; `None` if somebody has it.
    pub(crate) fn begin(peer: NodeId, lanes: Arc<[Mailbox]>, busy: &Arc<AtomicBool>) -> Option<Self> {
        let taken = busy.swap(true, Ordering::AcqRel);
        let bells = lanes.iter().map(Mailbox::bell).collect();
        (!taken).then(|| Self { peer, lanes, bells, busy: Arc::clone(busy) })
    }

    /// Measures, with so long for each phase with load.
    ///
    /// # Errors
    /// `BenchError` that says why nothing could be measured, and what to do.
    pub(crate) async fn run(&self, node: &NodeName, peer: &Peer, seconds: Duration) -> Result<doc::Bench, BenchError> {
        let node = node.clone();
        self.greet(&node).await?;
        let idle = self.idle().await;
        let small = self.load(SMALLEST_BENCH, seconds).await;
        if small.received() == 0 {
            return Err(if small.echoes.is_empty() { BenchError::Silent(node) } else { BenchError::Old(node) });
        }
        let bulk = self.load(peer.mtu.into(), seconds).await;
        if bulk.received() == 0 {
            let silent = bulk.echoes.is_empty();
            let bytes = bulk.packet_bytes;
            return Err(if silent { BenchError::Silent(node) } else { BenchError::Narrow { node, bytes } });
        }
        Ok(doc::Bench {
            schema: doc::BENCH.into(),
            node,
            address: peer.address,
            lanes: bulk.lanes(),
            throughput_gbps: bulk.bits() / 1e9 / bulk.seconds(),
            loss_percent: bulk.loss_percent(),
            packets_per_second: small.received() as f64 / small.seconds(),
            rtt_us: doc::RoundTrips::of(idle),
            cpu_s_per_gbit: bulk.cpu_per(bulk.bits() / 1e9, Duration::as_secs_f64),
            cpu_us_per_packet: small.cpu_per(small.received() as f64, |cpu| cpu.as_secs_f64() * 1e6),
            phases: vec![small.document("small"), bulk.document("bulk")],
            rtt_loaded_us: doc::RoundTrips::of(bulk.echoes),
        })
    }

    /// Makes sure that there are sessions, on all lanes if possible.
    async fn greet(&self, node: &NodeName) -> Result<(), BenchError> {
        let phase = Arc::new(Phase::new(self.peer, Plan::Greet, &self.bells, now()));
        for _ in 0..GREETINGS {
            self.begin_phase(&phase);
            if until(GREETING, || phase.is_answered()).await {
                return Ok(());
            }
        }
        Err(BenchError::NoAnswer(node.clone()))
    }

    /// Measures round trips without load.
    async fn idle(&self) -> Vec<u32> {
        let plan = Plan::Echo { every: IDLE_EVERY, count: IDLE_ECHOES };
        let phase = Arc::new(Phase::new(self.peer, plan, &self.bells, now()));
        self.begin_phase(&phase);
        until(IDLE_EVERY * IDLE_ECHOES + LATEST, || phase.is_finished(now())).await;
        phase.echoes()
    }

    /// Measures packets of that many bytes.
    async fn load(&self, packet_bytes: usize, time: Duration) -> Load {
        let began = now();
        let echoes = (time.as_micros() / LOADED_EVERY.as_micros()) as u32;
        let plan = Plan::Load {
            run: began.as_micros() as u32,
            packet_bytes,
            until: began + time,
            every: LOADED_EVERY,
            count: echoes,
        };
        let cpu = cpu_time();
        let phase = Arc::new(Phase::new(self.peer, plan, &self.bells, began));
        self.begin_phase(&phase);
        until(time + LATEST, || phase.is_finished(now())).await;
        let cpu = cpu_time().saturating_sub(cpu);
        Load { packet_bytes: phase.packet_bytes(), cpu, tallies: phase.tallies(), echoes: phase.echoes() }
    }

    fn begin_phase(&self, phase: &Arc<Phase>) {
        self.lanes.iter().for_each(|lane| lane.set_bench(Some(Arc::clone(phase))));
    }
}

/// Waits for a condition; says whether it came in time.
async fn until(patience: Duration, condition: impl Fn() -> bool) -> bool {
    let end = now() + patience;
    while !condition() {
        if now() >= end {
            return false;
        }
        sleep(LOOK).await;
    }
    true
}
