//! What the lanes count, and how others read it: relaxed atomics that one lane writes and anybody reads.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use mesh_proto::base::id::NodeId;
use mesh_proto::dataplane::flow::{Flow, Holder};
use mesh_proto::dataplane::verdict::{Drop, Refuse};
use mesh_proto::ops::status::LaneStatus;
use mesh_proto::packet::FiveTuple;
use rustix::io::Errno;

use crate::io::offloads::Offloads;
use crate::io::tun_outbox::Drained;
use crate::io::udp::{ReceivedBatch, Sent};

/// What the data path knows about itself at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataPlaneStats {
    /// The peers of the present NetMap that a tunnel was ever opened to.
    pub peers: BTreeMap<NodeId, PeerStats>,
    /// The peers whose tunnels have a preshared key.
    pub post_quantum: BTreeSet<NodeId>,
    /// Packets refused and dropped since the start, by the label of the reason; reasons never met are 0.
    pub drops: BTreeMap<&'static str, u64>,
    /// What each lane did.
    pub lanes: Vec<LaneStats>,
    /// The largest packet that the mesh interface takes, in bytes.
    pub mtu: u16,
    /// How full the flow table is.
    pub flows: FlowStats,
    /// The flows that this node's callers opened, as the caller's packets look; at most as many as it holds.
    pub opened: Vec<(FiveTuple, Flow)>,
    /// The file of flows and why it is behind, while it is.
    pub unwritten: Option<(PathBuf, Errno)>,
}

/// How full the flow table is, and of whose flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// The flows in it.
    pub used: usize,
    /// The flows that it can hold.
    pub room: usize,
    /// Flows that had to go for others since the start.
    pub displaced: u64,
    /// How long ago the last one went, or a new one was refused.
    pub last_loss: Option<Duration>,
    /// Who holds most, and how many.
    pub largest: Option<(Holder, usize)>,
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
    /// Time since a packet for it came along.
    pub wanted: Option<Duration>,
    /// Time since the latest handshake on any lane.
    pub last_handshake: Option<Duration>,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// The largest packet that gets through, in bytes, and for how long this is known; none while all that should do.
    pub narrow: Option<(u16, Duration)>,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident),+ $(,)?) => {
        /// What one lane did since the start.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct LaneStats {
            $($(#[$doc])* pub $field: u64,)+
            /// What the kernel does for it.
            pub offloads: Offloads,
            /// Why the file of flows is behind, while it is.
            pub flow_file: Option<Errno>,
            /// Packets refused and dropped, by the label of the reason; reasons never met are absent.
            pub drops: BTreeMap<&'static str, u64>,
        }

        /// The counters of one lane: written by its thread alone, read by anybody.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $($(#[$doc])* pub $field: Counter,)+
            /// Initiations sent, repetitions to other candidates included.
            pub initiations: Counter,
            overflows_seen: [Counter; 2],
            offloads: AtomicU8,
            /// The error number of the file of flows; 0 while it is written.
            flow_file: AtomicI32,
            refused: [Counter; MAX_REASONS],
            dropped: [Counter; MAX_REASONS],
        }

        impl Counters {
            /// Returns the present values.
            pub fn read(&self) -> LaneStats {
                let mut drops = BTreeMap::new();
                self.add_drops(&mut drops);
                drops.retain(|_, count| *count > 0);
                LaneStats { $($field: self.$field.get(),)+ offloads: self.offloads(), flow_file: self.flow_file(), drops }
            }
        }

        impl LaneStats {
            /// Returns it as the status shows it.
            pub fn status(&self, lane: usize) -> LaneStatus {
                LaneStatus {
                    lane,
                    $($field: self.$field,)+
                    offloads: self.offloads.each().into_iter().map(|(name, on)| (name.into(), on)).collect(),
                    drops: self.drops.iter().map(|(&reason, &n)| (reason.into(), n)).collect(),
                }
            }
        }
    };
}

counters!(
    /// Packets read from the TUN device; a super-packet counts as what it is split into.
    tun_rx_packets,
    /// Their bytes, a super-packet's headers once.
    tun_rx_bytes,
    /// Super-packets among them that were split.
    tun_rx_super_packets,
    /// Packets that these were split into.
    tun_rx_super_segments,
    /// Packets written to the TUN device; a super-packet counts as what it was gathered from.
    tun_tx_packets,
    /// Their bytes, a super-packet's headers once.
    tun_tx_bytes,
    /// Super-packets among them.
    tun_tx_super_packets,
    /// Packets that these were gathered from.
    tun_tx_super_segments,
    /// Super-packets that the kernel refused, so that their packets went singly.
    tun_fallbacks,
    /// Datagrams received.
    udp_rx_packets,
    /// Bytes of datagrams received.
    udp_rx_bytes,
    /// Messages of several datagrams that the kernel had joined.
    udp_rx_super_packets,
    /// Datagrams in these.
    udp_rx_super_segments,
    /// Datagrams sent.
    udp_tx_packets,
    /// Bytes of datagrams sent.
    udp_tx_bytes,
    /// Messages of several datagrams that the kernel divided.
    udp_tx_super_packets,
    /// Datagrams in these.
    udp_tx_super_segments,
    /// Messages of several datagrams that the kernel refused, so that they went singly.
    udp_fallbacks,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    udp_rx_overflows,
    /// Data messages that did not authenticate, or that were seen before.
    decrypt_failures,
    /// Handshakes completed, in either role.
    handshakes,
    /// Packets handed over to lane 0 because this lane had no session.
    handovers,
);

impl Counters {
    /// Counts a refused packet.
    pub fn count_refused(&self, reason: Refuse) {
        self.count_refused_many(reason, 1);
    }

    /// Counts several packets refused for one reason.
    pub fn count_refused_many(&self, reason: Refuse, count: u64) {
        self.refused[reason as usize].add(count);
    }

    /// Counts a dropped packet.
    pub fn count_dropped(&self, reason: Drop) {
        self.count_dropped_many(reason, 1);
    }

    /// Counts several packets dropped for one reason.
    pub fn count_dropped_many(&self, reason: Drop, count: u64) {
        self.dropped[reason as usize].add(count);
    }

    /// Takes note of what the kernel does for this lane.
    pub fn set_offloads(&self, offloads: Offloads) {
        let bits = offloads.each().into_iter().enumerate().map(|(i, (_, on))| u8::from(on) << i).sum();
        self.offloads.store(bits, Ordering::Relaxed);
    }

    /// Takes note of why the file of flows is behind, or that it is not.
    pub fn set_flow_file(&self, error: Option<&io::Error>) {
        let number = error.map_or(0, |error| error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()));
        self.flow_file.store(number, Ordering::Relaxed);
    }

    fn flow_file(&self) -> Option<Errno> {
        let number = self.flow_file.load(Ordering::Relaxed);
        (number != 0).then(|| Errno::from_raw_os_error(number))
    }

    fn offloads(&self) -> Offloads {
        let bits = self.offloads.load(Ordering::Relaxed);
        let on = |i: u8| bits & 1 << i != 0;
        Offloads { tun_tcp: on(0), tun_udp: on(1), udp_segment: on(2), udp_gro: on(3) }
    }

    /// Counts a super-packet of the TUN device, already counted as one packet, as what it is split into.
    pub fn split(&self, segments: usize) {
        if segments > 1 {
            self.tun_rx_packets.add(segments as u64 - 1);
            self.tun_rx_super_packets.add(1);
            self.tun_rx_super_segments.add(segments as u64);
        }
    }

    /// Counts what came from one of the two sockets.
    pub fn received(&self, socket: usize, received: ReceivedBatch) {
        self.udp_rx_packets.add(received.datagrams);
        self.udp_rx_bytes.add(received.bytes);
        self.udp_rx_super_packets.add(received.super_packets);
        self.udp_rx_super_segments.add(received.super_segments);
        self.count_dropped_many(Drop::NotWireguard, received.cut);
        if let Some(count) = received.overflows {
            self.overflows(socket, count);
        }
    }

    /// Returns the bytes that came so far, from either side.
    pub fn received_bytes(&self) -> u64 {
        self.tun_rx_bytes.get() + self.udp_rx_bytes.get()
    }

    /// Counts what went to the sockets.
    pub fn sent(&self, sent: Sent) {
        self.udp_tx_packets.add(sent.datagrams);
        self.udp_tx_bytes.add(sent.bytes);
        self.udp_tx_super_packets.add(sent.super_packets);
        self.udp_tx_super_segments.add(sent.super_segments);
        self.udp_fallbacks.add(sent.fallbacks);
        self.count_dropped_many(Drop::SocketFull, sent.lost);
    }

    /// Counts what went to the TUN device.
    pub fn drained(&self, drained: Drained) {
        self.tun_tx_packets.add(drained.packets);
        self.tun_tx_bytes.add(drained.bytes);
        self.tun_tx_super_packets.add(drained.super_packets);
        self.tun_tx_super_segments.add(drained.super_segments);
        self.tun_fallbacks.add(drained.fallbacks);
        self.count_dropped_many(Drop::DeviceFull, drained.lost);
    }

    /// Takes note of the kernel's running count of datagrams lost at one of the two sockets.
    pub fn overflows(&self, socket: usize, count: u32) {
        let seen = &self.overflows_seen[socket.min(1)];
        // The kernel's count is 32 bits wide, and so are the lower half of ours.
        let lost = u64::from(count.wrapping_sub(seen.get() as u32));
        seen.add(lost);
        self.udp_rx_overflows.add(lost);
    }

    /// Adds this lane's refused and dropped packets to a sum by label.
    pub fn add_drops(&self, sum: &mut BTreeMap<&'static str, u64>) {
        for &reason in Refuse::ALL {
            *sum.entry(reason.label()).or_default() += self.refused[reason as usize].get();
        }
        for &reason in Drop::ALL {
            *sum.entry(reason.label()).or_default() += self.dropped[reason as usize].get();
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

const MAX_REASONS: usize = 32;
const _: () = assert!(Refuse::ALL.len() <= MAX_REASONS && Drop::ALL.len() <= MAX_REASONS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_lane_uses_reads_as_it_was_noted() {
        let counters = Counters::default();
        assert_eq!(counters.read(), LaneStats::default());
        for bits in 0..16 {
            let on = |i: u8| bits & 1 << i != 0;
            let offloads = Offloads { tun_tcp: on(0), tun_udp: on(1), udp_segment: on(2), udp_gro: on(3) };
            counters.set_offloads(offloads);
            assert_eq!(counters.read().offloads, offloads);
        }
        counters.count_refused(Refuse::Denied);
        assert_eq!(counters.read().drops, BTreeMap::from([("denied", 1)]));
    }

    #[test]
    fn overflows_are_counted_by_socket_and_over_the_end_of_the_kernels_count() {
        let counters = Counters::default();
        for (socket, count) in [(0, 5), (1, 7), (0, 5), (0, u32::MAX), (0, 2), (1, 8)] {
            counters.overflows(socket, count);
        }
        assert_eq!(counters.udp_rx_overflows.get(), u64::from(u32::MAX) + 3 + 8);
    }

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
