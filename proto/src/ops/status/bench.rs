//! What `meshd bench` measured.

use serde::{Deserialize, Serialize};

use crate::base::addr::Flat;
use crate::base::id::NodeName;

/// The schema of `Bench`.
pub const BENCH: &str = "meshd.bench/1";

/// `POST /v1/bench`: the way to a node, measured inside the tunnel. What arrived is the receiver's word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bench {
    /// `BENCH`.
    pub schema: String,
    /// The node measured.
    pub node: NodeName,
    /// Its address in the mesh.
    pub address: Flat,
    /// Lanes of this node that reached it.
    pub lanes: usize,
    /// Gigabits per second that arrived in packets of the way's MTU, IP headers included.
    pub throughput_gbps: f64,
    /// What of them was lost, in percent.
    pub loss_percent: f64,
    /// Packets per second that arrived of small packets.
    pub packets_per_second: f64,
    /// The round trip without load, in microseconds.
    pub rtt_us: RoundTrips,
    /// The round trip beside packets of the way's MTU, in microseconds.
    pub rtt_loaded_us: RoundTrips,
    /// CPU time of the two processes per gigabit that arrived in packets of the way's MTU, in seconds.
    pub cpu_s_per_gbit: Cpu,
    /// CPU time of the two processes per small packet that arrived, in microseconds.
    pub cpu_us_per_packet: Cpu,
    /// The phases with load, in the order in which they ran.
    pub phases: Vec<BenchPhase>,
}

/// Round trips, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrips {
    /// How many were measured.
    pub samples: usize,
    /// Half of them took no longer; absent without samples.
    pub p50: Option<u32>,
    /// All but one in a hundred took no longer; absent without samples.
    pub p99: Option<u32>,
}

/// CPU time of both ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// Of the process that sent.
    pub sender: Option<f64>,
    /// Of the process that received.
    pub receiver: Option<f64>,
}

/// One phase of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchPhase {
    /// `small` or `bulk`.
    pub name: String,
    /// Bytes of each packet, IP header included.
    pub packet_bytes: usize,
    /// Seconds between the first arrival and the last.
    pub seconds: f64,
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived.
    pub received: u64,
    /// What was lost, in percent.
    pub loss_percent: f64,
}

impl Cpu {
    /// Divides it among so many things.
    pub fn per(self, things: f64) -> Self {
        Self { sender: self.sender.map(|used| used / things), receiver: self.receiver.map(|used| used / things) }
    }
}

impl RoundTrips {
    /// Sums up round trips in microseconds.
    pub fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        // The smallest that `percent` of all do not exceed.
        let at = |percent: usize| micros.get((micros.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Self { samples: micros.len(), p50: at(50), p99: at(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values_and_none_without_any() {
        let of = |micros: Vec<u32>| {
            let trips = RoundTrips::of(micros);
            (trips.samples, trips.p50, trips.p99)
        };
        assert_eq!(of((1..=200).rev().collect()), (200, Some(100), Some(198)));
        assert_eq!(of(vec![3, 1, 2]), (3, Some(2), Some(3)));
        assert_eq!(of(vec![7]), (1, Some(7), Some(7)));
        assert_eq!(of(Vec::new()), (0, None, None));
    }
}
