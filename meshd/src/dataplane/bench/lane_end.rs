//! What a lane does for measurements: it counts the frames of peers and sends the reports that they are owed, and the
//! frames of our own.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_proto::base::addr::Flat;
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;
use mesh_proto::dataplane::engine::{RESERVED, read_reserved, write_reserved};
use mesh_proto::ops::bench::{DATA, FRAME, Frame, REPORT, Runs, Sender};
use tokio::sync::watch;

use crate::dataplane::bell::Bell;
use crate::dataplane::lane::Speaker;
use crate::io::counters::Counters;
use crate::wireguard::sessions::outcome::Sealed;
use crate::wireguard::tunnel::OVERHEAD;
use mesh_host::clock::cpu_time;

/// Bytes of the smallest packet of a measurement, which is that of a report.
pub(super) const SMALLEST: usize = RESERVED + FRAME;
/// Most bytes sent per turn, and most frames: two runs of segments, well below `ROOM`.
const BURST_BYTES: usize = 128 << 10;
const BURST: u32 = 126;
/// What part of that in a turn that had packets of the host's to send.
const YIELD: u32 = 8;

/// A phase with load of our own measurement, shared by the lanes and by who waits for it. The locks are taken per
/// burst and per report, never for a packet of somebody else's.
#[derive(Debug, Default)]
pub(crate) struct LoadPhase {
    peer: NodeId,
    /// What is sent again and again, with another frame at its start.
    pub(super) packet: Vec<u8>,
    /// One per lane.
    streams: Vec<Mutex<Sender>>,
    bells: Vec<Bell>,
}

impl LoadPhase {
    /// Begins to send packets of that many bytes, but no smaller than a frame, to a peer up to a time, on as many lanes
    /// as there are bells; `way` is our address and its.
    pub(crate) fn new(peer: NodeId, way: [Flat; 2], bytes: usize, until: Timestamp, bells: Vec<Bell>) -> Self {
        let mut packet = vec![0; bytes.max(SMALLEST)];
        write_reserved(&mut packet, way[0], way[1], DATA);
        let stream = |lane| Mutex::new(Sender::new(until.as_micros() as u32, lane as u8, packet.len(), until));
        let streams = (0..bells.len()).map(stream).collect();
        Self { peer, packet, streams, bells }
    }

    /// Returns the stream of each lane.
    pub(crate) fn streams(&self) -> impl Iterator<Item = MutexGuard<'_, Sender>> {
        self.streams.iter().map(lock)
    }
}

/// What the lanes do for our own measurement; none while nobody measures.
pub(crate) type Phase = Option<Arc<LoadPhase>>;

/// A lane's end of all measurements.
#[derive(Debug)]
pub(crate) struct LaneEnd {
    lane: usize,
    /// What peers measure, and our address as they know it.
    counted: Runs,
    address: Flat,
    /// Our own measurement, and the packet to send.
    own: Option<(Arc<LoadPhase>, Vec<u8>)>,
    phases: watch::Receiver<Phase>,
    counters: Arc<Counters>,
    /// Packets of the host's at the last turn.
    host_packets: u64,
}

impl LaneEnd {
    pub(crate) fn new(lane: usize, phases: watch::Receiver<Phase>, counters: Arc<Counters>) -> Box<Self> {
        let address = Flat(Ipv4Addr::UNSPECIFIED);
        Box::new(Self { lane, counted: Runs::default(), address, own: None, phases, counters, host_packets: 0 })
    }
}

impl Speaker for LaneEnd {
    fn hear(&mut self, from: NodeId, packet: &[u8], now: Timestamp) -> bool {
        let address = |at: usize| packet[at..].first_chunk().map(|bytes: &[u8; 4]| Flat(Ipv4Addr::from(*bytes)));
        match read_reserved(packet).and_then(|(kind, rest)| Frame::parse(kind, rest)) {
            Some(Frame::Data(data)) => {
                let (Some(source), Some(own)) = (address(12), address(16)) else { return false };
                self.address = own;
                self.counted.count((from, source), &data, packet.len(), now);
                true
            }
            Some(Frame::Report(report)) => {
                let Some((phase, _)) = self.own.as_ref().filter(|(phase, _)| phase.peer == from) else { return false };
                // Not always by the lane that it is for.
                let stream = usize::from(report.stream);
                if let Some((sender, bell)) = phase.streams.get(stream).zip(phase.bells.get(stream)) {
                    lock(sender).handle_report(&report, now);
                    if stream != self.lane {
                        bell.ring();
                    }
                }
                true
            }
            None => false,
        }
    }

    fn speak(&mut self, send: &mut dyn FnMut(NodeId, &[u8]) -> Sealed, now: Timestamp) {
        if let Some(((peer, address), report)) = self.counted.next_report(cpu_time, now) {
            let mut packet = [0; SMALLEST];
            write_reserved(&mut packet, self.address, address, REPORT);
            Frame::Report(report).write(&mut packet[RESERVED..]);
            send(peer, &packet);
        }
        if self.phases.has_changed().unwrap_or(false) {
            let phase = self.phases.borrow_and_update().clone();
            self.own = phase.map(|phase| (Arc::clone(&phase), phase.packet.clone()));
        }
        let host = self.counters.tun_rx_packets.get();
        let busy = std::mem::replace(&mut self.host_packets, host) != host;
        let Some((phase, packet)) = &mut self.own else { return };
        let Some(stream) = phase.streams.get(self.lane) else { return };
        let fits = u32::try_from(BURST_BYTES / (packet.len() + OVERHEAD)).unwrap_or(BURST).min(BURST);
        let most = if busy { fits / YIELD } else { fits };
        let mut burst = lock(stream).next_burst(most.max(1), now);
        while let Some(data) = burst.next() {
            Frame::Data(data).write(&mut packet[RESERVED..]);
            if send(phase.peer, packet) == Sealed::Elsewhere {
                // Only lane 0 may speak for another lane, and it has frames of its own.
                return lock(stream).postpone(burst.len() as u32 + 1, now);
            }
        }
    }

    fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let stream = self.own.as_ref().and_then(|(phase, _)| phase.streams.get(self.lane));
        let own = stream.and_then(|stream| lock(stream).poll_timeout(now));
        self.counted.poll_timeout().into_iter().chain(own).min()
    }
}

fn lock(stream: &Mutex<Sender>) -> MutexGuard<'_, Sender> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}
