//! What the lanes count, and how others read it: relaxed atomics that one lane writes and anybody reads.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_proto::id::NodeId;
use mesh_proto::verdict::{Drop, Refuse};

/// What the data path knows about itself at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// The peers of the present NetMap that a tunnel was ever opened to.
    pub peers: BTreeMap<NodeId, PeerStats>,
    /// Packets refused and dropped since the start, by the label of the reason; reasons never met are 0.
    pub drops: BTreeMap<&'static str, u64>,
    /// What each lane did.
    pub lanes: Vec<LaneStats>,
    /// Slots of the flow table that hold a flow.
    pub flows: usize,
}

/// What is known about one peer, over all lanes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Where lane 0 sends, once the peer has answered from there.
    pub endpoint: Option<SocketAddr>,
    /// The round trip inside the tunnel, as last measured.
    pub rtt: Option<Duration>,
    /// How often it was measured.
    pub rtt_count: u64,
    /// Time since the latest handshake on any lane.
    pub last_handshake: Option<Duration>,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident),+ $(,)?) => {
        /// What one lane did since the start.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct LaneStats { $($(#[$doc])* pub $field: u64),+ }

        /// The counters of one lane: written by its thread alone, read by anybody.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters { $($(#[$doc])* pub $field: Counter,)+ overflows_seen: [Counter; 2], refused: Reasons, dropped: Reasons }

        impl Counters {
            /// Returns the present values.
            pub fn read(&self) -> LaneStats {
                LaneStats { $($field: self.$field.get()),+ }
            }
        }
    };
}

counters!(
    /// Packets read from the TUN device.
    tun_rx_packets,
    /// Packets written to the TUN device.
    tun_tx_packets,
    /// Datagrams received.
    udp_rx_packets,
    /// Bytes of datagrams received.
    udp_rx_bytes,
    /// Datagrams sent.
    udp_tx_packets,
    /// Bytes of datagrams sent.
    udp_tx_bytes,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    udp_rx_overflows,
    /// Handshakes completed, in either role.
    handshakes,
    /// Initiations sent, repetitions to other candidates included.
    initiations,
    /// Packets handed over to lane 0 because this lane had no session.
    handovers,
);

impl Counters {
    /// Counts a refused packet.
    pub fn count_refused(&self, reason: Refuse) {
        self.refused.add(reason as usize, 1);
    }

    /// Counts a dropped packet.
    pub fn count_dropped(&self, reason: Drop) {
        self.count_dropped_many(reason, 1);
    }

    /// Counts several packets dropped for one reason.
    pub fn count_dropped_many(&self, reason: Drop, count: u64) {
        self.dropped.add(reason as usize, count);
    }

    /// Takes note of the kernel's running count of datagrams lost at one of the two sockets.
    pub fn overflows(&self, socket: usize, count: u32) {
        let seen = &self.overflows_seen[socket.min(1)];
        let before = seen.get();
        let lost = u64::from(count).saturating_sub(before);
        seen.add(lost);
        self.udp_rx_overflows.add(lost);
    }

    /// Adds this lane's refused and dropped packets to a sum by label.
    pub fn add_drops(&self, sum: &mut BTreeMap<&'static str, u64>) {
        for &reason in Refuse::ALL {
            *sum.entry(reason.label()).or_default() += self.refused.get(reason as usize);
        }
        for &reason in Drop::ALL {
            *sum.entry(reason.label()).or_default() += self.dropped.get(reason as usize);
        }
    }
}

/// A number with one writer: adding is a load and a store, not a locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the number; called by the one writer only.
    pub fn add(&self, count: u64) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(count);
        self.0.store(value, Ordering::Relaxed);
    }

    /// Returns the present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Reasons([Counter; MAX_REASONS]);

const MAX_REASONS: usize = 32;
const _: () = assert!(Refuse::ALL.len() <= MAX_REASONS && Drop::ALL.len() <= MAX_REASONS);

impl Reasons {
    fn add(&self, index: usize, count: u64) {
        self.0[index].add(count);
    }

    fn get(&self, index: usize) -> u64 {
        self.0[index].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let counters = Counters::default();
        for (i, &reason) in Refuse::ALL.iter().enumerate() {
            (0..=i).for_each(|_| counters.count_refused(reason));
        }
        for (i, &reason) in Drop::ALL.iter().enumerate() {
            counters.count_dropped_many(reason, 100 + i as u64);
        }

        let mut sum = BTreeMap::new();
        counters.add_drops(&mut sum);

        let refused = Refuse::ALL.iter().enumerate();
        let expected = refused.map(|(i, r)| (r.label(), i as u64 + 1));
        let dropped = Drop::ALL.iter().enumerate();
        let expected = expected.chain(dropped.map(|(i, r)| (r.label(), i as u64 + 100)));
        assert_eq!(sum, expected.collect());
    }
}
