//! What a lane does for measurements: it sends the reports that peers' are owed, and the frames of our own, in what
//! real traffic leaves of its turns.

use std::sync::Arc;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;
use mesh_proto::dataplane::verdict::Drop;
use mesh_proto::ops::bench::Report;

use super::{Lane, Out};
use crate::base::clock::cpu_time;
use crate::dataplane::bench::phase::{Part, Phase};
use crate::wireguard::sessions::outcome::{Sealed, Traffic};
use crate::wireguard::timing::ROOM;
use crate::wireguard::tunnel::OVERHEAD;

/// Most bytes sent per turn, and most frames: two runs of segments, well below `ROOM`.
const BURST_BYTES: usize = 128 << 10;
const BURST: u32 = 126;
/// What part of that in a turn that had packets of the host's to send.
const YIELD: u32 = 8;

impl Lane {
    /// Takes part in a phase of our own measurement, or in none.
    pub(crate) fn set_bench(&mut self, phase: Option<Arc<Phase>>) {
        let Some(phase) = phase else {
            self.part = None;
            return;
        };
        if phase.greets() {
            self.sessions.ping(phase.peer());
        }
        let load = Some(phase.packet_bytes()).filter(|&bytes| bytes > 0);
        let packet = load.and_then(|bytes| self.engine.bench_packet(phase.peer(), bytes));
        if let Some(packet) = &packet {
            phase.set_packet_bytes(packet.bytes());
        }
        self.part = Some(Part { phase, packet, host_packets: 0 });
    }

    /// Sends what measurements may send in this turn.
    pub(super) fn measure(&mut self, out: &mut Out, now: Timestamp) {
        while out.udp.room() >= ROOM
            && let Some(peer) = self.engine.bench_report(cpu_time, now)
        {
            self.answer_peer(peer, out, now);
        }
        if let Some(mut part) = self.part.take() {
            self.ask(&part.phase, out, now);
            if out.udp.room() >= ROOM {
                self.send_frames(&mut part, out, now);
            }
            self.part = Some(part);
        }
    }

    /// Returns when `measure` has something to do.
    pub(super) fn measure_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let own = self.part.as_ref().and_then(|part| part.phase.poll_timeout(self.number, now));
        self.engine.bench_timeout().into_iter().chain(own).min()
    }

    /// Takes a peer's account of our measurement.
    pub(super) fn take_report(&self, peer: NodeId, now: Timestamp) {
        let report: &Report = self.engine.reported();
        match self.part.as_ref().filter(|part| part.phase.peer() == peer) {
            Some(part) => part.phase.handle_report(self.number, report, now),
            None => self.counters.count_dropped(Drop::BadProbe),
        }
    }

    /// Takes a round trip, if it is one of the measurement's.
    pub(super) fn take_round_trip(&self, peer: NodeId, micros: u32) {
        if let Some(part) = self.part.as_ref().filter(|part| part.phase.peer() == peer) {
            part.phase.handle_echo(micros);
        }
    }

    fn ask(&mut self, phase: &Phase, out: &mut Out, now: Timestamp) {
        let due = self.number == 0 && out.udp.room() >= ROOM && phase.poll_echo(now);
        if due && self.engine.probe(phase.peer(), now) {
            self.answer_peer(phase.peer(), out, now);
        }
    }

    fn send_frames(&mut self, part: &mut Part, out: &mut Out, now: Timestamp) {
        let Part { phase, packet: Some(packet), host_packets } = part else { return };
        let host = self.counters.tun_rx_packets.get();
        let busy = std::mem::replace(host_packets, host) != host;
        let fits = u32::try_from(BURST_BYTES / (packet.bytes() + OVERHEAD)).unwrap_or(BURST);
        let most = fits.min(BURST) / if busy { YIELD } else { 1 };
        let Some(mut burst) = phase.next_burst(self.number, most.max(1), now) else { return };
        while let Some(frame) = burst.next() {
            match self.sessions.seal(phase.peer(), packet.with(&frame), Traffic::Own, &mut out.udp, now) {
                Sealed::Done => {}
                Sealed::Dropped(reason) => self.counters.count_dropped(reason),
                // Only lane 0 may speak for another lane, and it has frames of its own.
                Sealed::Elsewhere => return phase.postpone(self.number, burst.left() + 1, now),
            }
        }
    }
}
