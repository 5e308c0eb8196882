//! One lane: engine and sessions put together, without a syscall.
//!
//! ```text
//! TUN ──▶ handle_packet ───▶ Engine::outbound ─ Forward ─▶ Sessions::seal ─▶ Outbox ──▶ sockets
//!   ▲                             │ Deliver, Reply, Refuse         │ Elsewhere ─▶ Handover ─▶ lane 0
//!   └── Packets ◀─────────────────┘                                │
//! sockets ──▶ handle_datagram ─▶ Sessions::open ─▶ Engine::inbound ┤ Reply, Refuse
//!                                 Deliver ─▶ Packets ──▶ TUN       └─▶ Outbox ──▶ sockets
//! ```

mod gro;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;
use mesh_proto::base::wall_clock::{BootDate, ClockWord};
use mesh_proto::dataplane::black_hole::{self, Ways};
use mesh_proto::dataplane::engine::{Engine, NextHop, PROBE};
use mesh_proto::dataplane::flow::{FlowTable, FlowTraffic};
use mesh_proto::dataplane::verdict::{Drop, Verdict};
use mesh_proto::dataplane::view::View;
use mesh_proto::packet::gso::{Gso, Segments, VnetHeader};
use mesh_proto::packet::{self, Checksum, Header};
use mesh_proto::trust::audit_log::LogPosition;

use crate::dataplane::handover::Handover;
use crate::io::counters::Counters;
use crate::io::tun_outbox::Packets;
use crate::io::udp_outbox::{DatagramRun, Outbox};
use crate::keys::lanes::LaneKey;
use crate::wireguard::peers::TunnelPeers;
use crate::wireguard::sessions::Sessions;
use crate::wireguard::sessions::outcome::{Decrypted, Sealed, Traffic, TunnelChoice};
use crate::wireguard::timing::ROOM;

use self::gro::Train;

/// What a lane wants written. Before each call both sides must have `ROOM`.
#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) tun: Packets,
    pub(crate) udp: Outbox,
}

impl Out {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { tun: Packets::new(bytes), udp: Outbox::new(bytes) }
    }

    /// Says whether one side may lack room for another call.
    pub(crate) fn is_full(&self) -> bool {
        self.tun.room() < ROOM || self.udp.room() < ROOM
    }
}

/// What narrow ways let through, by peer, in bytes.
pub(crate) type NarrowWays = Arc<BTreeMap<NodeId, u16>>;

/// Most answers about sizes that wait to be told to lane 0; there are no more questions in a second.
const MAX_ANSWERS: usize = black_hole::MOST_A_SECOND;

/// Who speaks to peers on the reserved port beside the engine, in what real traffic leaves of a lane's turns.
pub(crate) trait Speaker: std::fmt::Debug + Send {
    /// Takes a packet that the engine found to be for it. Says whether it is any good.
    fn hear(&mut self, from: NodeId, packet: &[u8], now: Timestamp) -> bool;

    /// Sends what is due to peers, at most `ROOM` bytes once sealed.
    fn speak(&mut self, send: &mut dyn FnMut(NodeId, &[u8]) -> Sealed, now: Timestamp);

    /// Returns when `speak` has something to send.
    fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp>;
}

/// What a lane is made of.
pub(crate) struct Parts<'a> {
    pub(crate) lane: usize,
    pub(crate) key: &'a LaneKey,
    pub(crate) view: Arc<View>,
    pub(crate) peers: Arc<TunnelPeers>,
    pub(crate) flows: Arc<FlowTable>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) handover: Arc<Handover>,
    pub(crate) speaker: Box<dyn Speaker>,
    pub(crate) mtu: u16,
}

/// Engine and sessions of one lane.
#[derive(Debug)]
pub(crate) struct Lane {
    engine: Engine,
    sessions: Sessions,
    peers: Arc<TunnelPeers>,
    counters: Arc<Counters>,
    handover: Arc<Handover>,
    /// Whether lane 0 has to be woken.
    handed_over: bool,
    speaker: Box<dyn Speaker>,
    /// Packets received that others may continue.
    train: Option<Train>,
    number: usize,
    /// Which ways swallow large packets; lane 0 finds out for all.
    ways: Ways,
    /// What lane 0 found, for the others.
    narrow: Option<NarrowWays>,
    /// Answers to questions of lane 0's that came to this one.
    answers: Vec<(NodeId, u64)>,
    /// Where a question is written.
    question: Vec<u8>,
}

impl Lane {
    pub(crate) fn new(parts: Parts<'_>) -> Self {
        let Parts { lane, key, view, peers, flows, counters, handover, speaker, mtu } = parts;
        let sessions = Sessions::new(lane, key, Arc::clone(&peers), Arc::clone(&counters));
        let mut engine = Engine::new(view, flows);
        engine.set_mtu(mtu);
        Self {
            engine,
            sessions,
            peers,
            counters,
            handover,
            handed_over: false,
            speaker,
            train: None,
            number: lane,
            ways: Ways::default(),
            narrow: None,
            answers: Vec::new(),
            question: Vec::new(),
        }
    }

    /// Puts another map in force.
    pub(crate) fn set_view(&mut self, view: Arc<View>, peers: Arc<TunnelPeers>) {
        self.engine.set_view(view);
        self.sessions.set_peers(Arc::clone(&peers));
        self.ways.retain(|peer| peers.get(peer).is_some());
        self.peers = peers;
    }

    /// Sets the largest packet that the mesh interface takes, in bytes.
    pub(crate) fn set_mtu(&mut self, mtu: u16) {
        self.engine.set_mtu(mtu);
    }

    /// Says which peers large packets do not reach.
    pub(crate) fn set_narrow(&mut self, narrow: NarrowWays) {
        self.engine.set_narrow(narrow);
    }

    /// This host has these addresses now, and no others.
    pub(crate) fn move_to(&mut self, own: &BTreeSet<IpAddr>, now: Timestamp) {
        self.sessions.move_to(own, now);
    }

    /// A peer answered lane 0's question of that clock.
    pub(crate) fn hear_size(&mut self, peer: NodeId, clock: u64, now: Timestamp) {
        self.ways.heard(peer, clock, now);
    }

    /// Returns what lane 0 found since the last call, for the other lanes.
    pub(crate) fn take_narrow(&mut self) -> Option<NarrowWays> {
        self.narrow.take()
    }

    /// Returns the next answer that is lane 0's.
    pub(crate) fn next_answer(&mut self) -> Option<(NodeId, u64)> {
        self.answers.pop()
    }

    /// Puts other keys of its own in force.
    pub(crate) fn set_key(&mut self, key: &LaneKey) {
        self.sessions.set_keys(key);
    }

    /// Says which addresses outside the mesh are the host's own.
    pub(crate) fn set_locals(&mut self, locals: Arc<[Ipv4Addr]>) {
        self.engine.set_locals(locals);
    }

    /// Says by which routers this host reaches what is not on its own links.
    pub(crate) fn set_next_hops(&mut self, next_hops: Arc<[NextHop]>) {
        self.engine.set_next_hops(next_hops);
    }

    /// Says what peers are told of the log of operations.
    pub(crate) fn set_log_position(&mut self, told: LogPosition) {
        self.engine.set_log_position(Some(told));
    }

    /// Says what this host's clock is, as peers are told of it.
    pub(crate) fn set_date(&mut self, date: BootDate) {
        self.engine.set_date(date);
    }

    /// Asks for a handshake with a peer as soon as possible.
    pub(crate) fn greet(&mut self, peer: NodeId) {
        self.sessions.greet(peer);
    }

    /// Measures the round trip to a peer as soon as possible, after a handshake if there was none.
    pub(crate) fn ping(&mut self, peer: NodeId) {
        self.sessions.ping(peer);
    }

    /// Watches a peer that left unanswered, on another lane, what went out at a time.
    pub(crate) fn watch(&mut self, peer: NodeId, sent: Timestamp) {
        self.sessions.watch(peer, sent);
    }

    /// Returns the next peer that lane 0 is to watch, and since when it leaves something unanswered.
    pub(crate) fn next_noticed(&mut self) -> Option<(NodeId, Timestamp)> {
        self.sessions.next_noticed()
    }

    /// Says whether other peers are active, or elsewhere, than when this was asked last.
    pub(crate) fn take_news(&mut self) -> bool {
        self.sessions.take_news()
    }

    /// Starts a turn: new budgets for what strangers may cause.
    pub(crate) fn begin_turn(&mut self) {
        self.sessions.begin_turn();
    }

    /// Takes a packet, or a super-packet, from the TUN; `vnet` is `None` if the device asks for what was not agreed.
    pub(crate) fn handle_packet(&mut self, packet: &mut [u8], vnet: Option<VnetHeader>, out: &mut Out, now: Timestamp) {
        if packet.first().is_some_and(|first| first >> 4 != 4) {
            return self.counters.count_dropped(Drop::NotIpv4);
        }
        let settled = vnet.and_then(|vnet| Some((vnet, finish_checksum(packet, vnet)?)));
        let Some((vnet, checksum)) = settled else { return self.counters.count_dropped(Drop::Malformed) };
        let verdict = match vnet.gso {
            Gso::None => self.engine.outbound(packet, checksum, now),
            Gso::Tcp4 { .. } | Gso::Tcp6 { .. } | Gso::Udp => {
                self.engine.outbound_super(packet, vnet.gso_size, checksum, now)
            }
        };
        match verdict {
            Verdict::Forward(peer) if vnet.gso == Gso::None => self.forward(peer, packet, &mut out.udp, now),
            Verdict::Forward(peer) => self.split(peer, packet, vnet, checksum, out, now),
            Verdict::Deliver => {
                let needs_checksum = checksum == Checksum::Partial;
                self.deliver(packet, VnetHeader { needs_checksum, ..vnet }, out);
            }
            Verdict::Reply => self.answer_tun(out),
            Verdict::Refuse(reason) => {
                self.counters.count_refused(reason);
                self.answer_tun(out);
            }
            Verdict::Drop(reason) => self.counters.count_dropped(reason),
            Verdict::RoundTrip(_) | Verdict::Bench => self.counters.count_dropped(Drop::BadProbe),
        }
    }

    /// Takes the datagrams of one message from a socket. The last packets may wait for those that continue them; `settle` ends that.
    pub(crate) fn handle_datagrams(&mut self, run: &DatagramRun, message: &[u8], out: &mut Out, now: Timestamp) {
        // An empty datagram is one, too.
        let empty = message.is_empty().then_some(message);
        for datagram in message.chunks(run.segment.max(1)).chain(empty) {
            let waiting = self.train.as_ref().map_or(0, |train| train.len);
            let Out { tun, udp } = &mut *out;
            let gathers = tun.gathers();
            match self.sessions.open(run.endpoint, datagram, &mut tun.space()[waiting..], udp, now) {
                Decrypted::Packet(peer, tunnel, packet) => {
                    if !packet::bring_ecn(packet, run.ecn) {
                        self.counters.count_dropped(Drop::CongestionMarked);
                        continue;
                    }
                    let continues = |train: &mut Train| train.take(peer, tunnel, packet);
                    if !self.train.as_mut().is_some_and(continues) {
                        let next = Train::begin(peer, tunnel, packet, gathers);
                        self.finish_train(out, now);
                        self.train = Some(next);
                    }
                }
                Decrypted::Handled => {}
                Decrypted::Dropped(reason) => self.counters.count_dropped(reason),
            }
        }
    }

    /// Finishes what was received so far. To be called before `Out` is written.
    pub(crate) fn finish_train(&mut self, out: &mut Out, now: Timestamp) {
        if let Some(train) = self.train.take() {
            self.arrive(train, out, now);
        }
    }

    /// Decides what becomes of packets that came out of a tunnel and continue each other; they lie at the start of
    /// the free space for the TUN device. The first stands for all.
    fn arrive(&mut self, train: Train, out: &mut Out, now: Timestamp) {
        let Train { peer, tunnel, first, len, count, run } = train;
        let packet = &mut out.tun.space()[..first];
        let verdict = self.engine.inbound(peer, packet, now);
        if matches!(verdict, Verdict::Reply | Verdict::RoundTrip(_))
            && let Some(peer) = self.peers.get(peer)
        {
            self.engine.take_log_position().into_iter().for_each(|told| peer.cell.note_log_position(told));
            self.engine.take_date().into_iter().for_each(|date| peer.cell.note_clock(ClockWord { date, at: now }));
        }
        match verdict {
            Verdict::Deliver => {
                self.sessions.delivered(tunnel, now);
                let Some(mut run) = run.filter(|_| count > 1) else {
                    return out.tun.commit(len, VnetHeader::default());
                };
                let more = FlowTraffic { packets: count - 1, tcp_flags: run.tcp_flags() };
                self.engine.more(more, now);
                let stride = run.stride();
                match run.finish_as(packet) {
                    Some((vnet, headers)) => return out.tun.commit_run(len, stride, vnet, headers),
                    None => self.counters.count_dropped_many(Drop::Malformed, u64::from(count)),
                }
            }
            // What makes a run is delivered or lost; only a single packet is ever sent on.
            Verdict::Forward(to) => self.forward(to, packet, &mut out.udp, now),
            Verdict::Reply => self.answer_peer(peer, out, now),
            Verdict::Refuse(reason) => {
                self.counters.count_refused_many(reason, u64::from(count));
                self.answer_peer(peer, out, now);
            }
            Verdict::Drop(reason) => self.counters.count_dropped_many(reason, u64::from(count)),
            Verdict::RoundTrip(micros) => {
                let clock = now.as_micros().saturating_sub(micros.into());
                if black_hole::is_question(clock) {
                    self.take_answer(peer, clock, now);
                } else if let Some(peer) = self.peers.get(peer) {
                    peer.cell.set_rtt(micros);
                }
            }
            Verdict::Bench if self.speaker.hear(peer, packet, now) => {}
            Verdict::Bench => self.counters.count_dropped(Drop::BadProbe),
        }
        out.tun.skip(len);
    }

    /// Takes a packet that another lane had no session for. Says whether there was one.
    pub(crate) fn handle_handover(&mut self, out: &mut Out, now: Timestamp) -> bool {
        let Some((peer, packet)) = self.handover.pop() else { return false };
        let sealed = self.sessions.seal(peer, &packet, Traffic::Payload, &mut out.udp, now);
        if let Sealed::Dropped(reason) = sealed {
            self.counters.count_dropped(reason);
        }
        self.handover.done(packet);
        true
    }

    /// Says whether packets that waited for a session are still to be sent, before any other.
    pub(crate) fn is_flushing(&self) -> bool {
        self.sessions.is_flushing()
    }

    /// Sends packets that waited for a session, as many as there is room for.
    pub(crate) fn flush(&mut self, out: &mut Out, now: Timestamp) {
        self.sessions.flush(&mut out.udp, now);
    }

    /// Returns the next peer that this lane has a new session with.
    pub(crate) fn next_met(&mut self) -> Option<NodeId> {
        self.sessions.next_met()
    }

    /// Says whether a packet was handed over since the last call, so that lane 0 has to be woken.
    pub(crate) fn take_handed_over(&mut self) -> bool {
        std::mem::take(&mut self.handed_over)
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, out: &mut Out, now: Timestamp) {
        self.sessions.handle_timeout(&mut out.udp, now);
        while let Some((peer, since)) = self.sessions.next_found() {
            self.engine.note_silence(peer, since);
        }
        while out.udp.room() >= ROOM
            && let Some(peer) = self.sessions.next_probe()
        {
            if self.engine.probe(peer, now) {
                self.answer_peer(peer, out, now);
            }
        }
        self.watch_ways(out, now);
        if out.udp.room() >= ROOM {
            let Self { speaker, sessions, counters, .. } = self;
            let mut send = |peer, packet: &[u8]| {
                let sealed = sessions.seal(peer, packet, Traffic::Own, &mut out.udp, now);
                if let Sealed::Dropped(reason) = sealed {
                    counters.count_dropped(reason);
                }
                sealed
            };
            speaker.speak(&mut send, now);
        }
    }

    /// Returns when `handle_timeout` has something to do; `None` if nothing will be due.
    pub(crate) fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let (sessions, speaker) = (self.sessions.poll_timeout(now), self.speaker.poll_timeout(now));
        sessions.into_iter().chain(speaker).chain(self.ways.poll_timeout()).min()
    }

    /// Finds out which ways swallow large packets.
    fn watch_ways(&mut self, out: &mut Out, now: Timestamp) {
        while let Some(peer) = self.sessions.next_roamed() {
            self.ways.moved(peer, now);
        }
        while let Some(peer) = self.sessions.next_active() {
            self.ways.traffic(peer, self.engine.full(peer), now);
        }
        while out.udp.room() >= ROOM
            && let Some(asked) = self.ways.poll(now)
        {
            self.question.resize(usize::from(asked.bytes).max(PROBE), 0);
            if !self.engine.ask_size(asked.peer, asked.clock, &mut self.question) {
                continue;
            }
            let sealed = self.sessions.seal(asked.peer, &self.question, Traffic::Own, &mut out.udp, now);
            if let Sealed::Dropped(reason) = sealed {
                self.counters.count_dropped(reason);
            }
        }
        if self.ways.take_changed() {
            self.tell_narrow();
        }
    }

    /// Puts in force, and makes known, which ways are narrow.
    fn tell_narrow(&mut self) {
        let narrow: BTreeMap<_, _> = self.ways.narrowed().collect();
        for peer in self.peers.iter() {
            let known = narrow.get(&peer.id).map(|narrow| (narrow.bytes, narrow.since));
            let before = peer.cell.narrow();
            peer.cell.set_narrow(known);
            match (before, known) {
                (Some(_), None) => tracing::info!(peer = %peer.id, "large packets get through again"),
                (before, Some((bytes, _))) if before.is_none_or(|(before, _)| before != bytes) => {
                    tracing::warn!(peer = %peer.id, bytes, "larger packets vanish on the way: none are sent");
                }
                (Some(_) | None, Some(_) | None) => {}
            }
        }
        let narrow: NarrowWays = Arc::new(narrow.into_iter().map(|(peer, narrow)| (peer, narrow.bytes)).collect());
        self.engine.set_narrow(Arc::clone(&narrow));
        self.narrow = Some(narrow);
    }

    /// Takes an answer about a size, or keeps it for lane 0.
    fn take_answer(&mut self, peer: NodeId, clock: u64, now: Timestamp) {
        if self.number == 0 {
            self.ways.heard(peer, clock, now);
        } else if self.answers.len() < MAX_ANSWERS {
            self.answers.push((peer, clock));
        }
    }

    /// Calls `f` with every flow entry that changed since the last call.
    pub(crate) fn drain_dirty(&mut self, f: impl FnMut(usize, &[u8])) {
        self.engine.drain_dirty(f);
    }

    fn forward(&mut self, peer: NodeId, packet: &[u8], udp: &mut Outbox, now: Timestamp) {
        let way = self.sessions.way(peer, packet, Traffic::Payload, udp, now);
        self.seal(way, peer, packet, udp, now);
    }

    /// Forwards a super-packet, segment by segment.
    fn split(
        &mut self,
        peer: NodeId,
        packet: &mut [u8],
        vnet: VnetHeader,
        checksum: Checksum,
        out: &mut Out,
        now: Timestamp,
    ) {
        let way = self.sessions.way(peer, packet, Traffic::Payload, &mut out.udp, now);
        let segments =
            Header::parse(packet).ok().map(|header| Segments::new(packet, &header, vnet.gso, vnet.gso_size, checksum));
        let Some(Ok(mut segments)) = segments else { return self.counters.count_dropped(Drop::Malformed) };
        self.counters.split(segments.remaining());
        while let Some(segment) = segments.next_segment() {
            self.seal(way, peer, segment, &mut out.udp, now);
        }
    }

    fn seal(&mut self, way: TunnelChoice, peer: NodeId, packet: &[u8], udp: &mut Outbox, now: Timestamp) {
        match self.sessions.seal_by(way, packet, udp, now) {
            Sealed::Done => {}
            Sealed::Dropped(reason) => self.counters.count_dropped(reason),
            Sealed::Elsewhere if self.handover.push(peer, packet) => {
                self.counters.handovers.add(1);
                self.handed_over = true;
            }
            Sealed::Elsewhere => self.counters.count_dropped(Drop::LaneFull),
        }
    }

    fn deliver(&self, packet: &[u8], vnet: VnetHeader, out: &mut Out) {
        if !out.tun.push(packet, vnet) {
            self.counters.count_dropped(Drop::DeviceFull);
        }
    }

    /// Sends the engine's answer to the TUN, from where the question came.
    fn answer_tun(&self, out: &mut Out) {
        let reply = self.engine.reply();
        if !reply.is_empty() {
            self.deliver(reply, VnetHeader::default(), out);
        }
    }

    /// Sends the engine's answer to the peer that the question came from.
    fn answer_peer(&mut self, peer: NodeId, out: &mut Out, now: Timestamp) {
        let reply = self.engine.reply();
        if reply.is_empty() {
            return;
        }
        match self.sessions.seal(peer, reply, Traffic::Own, &mut out.udp, now) {
            Sealed::Done => {}
            Sealed::Dropped(reason) => self.counters.count_dropped(reason),
            Sealed::Elsewhere if self.handover.push(peer, reply) => self.handed_over = true,
            Sealed::Elsewhere => self.counters.count_dropped(Drop::LaneFull),
        }
    }
}

/// Says how a packet's checksum stands. A plain packet's is completed here: nobody after us could, and the engine
/// keeps it right from then on. A super-packet's stays partial, for each segment gets its own.
fn finish_checksum(packet: &mut [u8], vnet: VnetHeader) -> Option<Checksum> {
    if !vnet.needs_checksum {
        return Some(Checksum::Complete);
    }
    let header = Header::parse(packet).ok()?;
    let checksum = vnet.finish_checksum(packet, &header)?;
    if checksum == Checksum::Partial && vnet.gso == Gso::None {
        packet::complete(packet, &header);
        return Some(Checksum::Complete);
    }
    Some(checksum)
}

#[cfg(test)]
pub(crate) mod tests;
