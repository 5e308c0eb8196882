//! All tunnels of one lane: which there are, which is used, when they shake hands, where they lead.
//!
//! ```text
//!            own lane i                                   peer with M lanes
//!   seal ──▶ pair tunnel (i, i mod M) ── hears? ──▶ send
//!                │ silent or no session
//!                ├─ lane 0: keep the packet in the tunnel until its handshake is done
//!                └─ other lanes: `Elsewhere` (lane 0 sends it), and shake hands meanwhile
//! ```
//!
//! Handshakes are lazy. Besides a packet to send, these start one: a peer that was active before the restart,
//! a data message for a session that we lost, 12 s of silence after we sent, and a failed attempt while the
//! peer is still wanted. A node whose clock was set back has itself called instead. A tunnel is ticked every 250 ms until it expires and costs nothing after that.
//!
//! A peer that has an agreement key has no tunnel before there is a preshared key with it; lane 0 makes one (`psk_exchanges`). While
//! one of the two does not know that of the other, plain tunnels go on (`upkeep`).

mod answers;
mod moving;
mod psk_exchange;
mod psk_exchanges;
mod session;
mod upkeep;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::handshake_limiter::HandshakeLimiter;
use mesh_proto::base::id::{NodeId, TunnelKey};
use mesh_proto::dataplane::liveness::{Inquiry, WAIT};
use mesh_proto::dataplane::verdict::Drop;
use mesh_proto::packet::Ecn;

use crate::base::entropy::random;
use crate::io::counters::Counters;
use crate::io::offloads::MAX_PACKET;
use crate::io::udp_outbox::{Endpoint, Outbox};
use crate::keys::handshake_clock::HandshakeClock;
use crate::keys::lanes::LaneKey;
use crate::wireguard::lane0_fallback::Lane0Fallback;
use crate::wireguard::peers::TunnelPeers;
use crate::wireguard::sessions::outcome::{Decrypted, Sealed, Traffic, TunnelChoice};
use crate::wireguard::timing::{
    FIRST_BACKOFF, GREETING, GREETINGS_PER_TURN, HANDSHAKES_PER_TURN, LOOKUPS_PER_TURN, NUDGES_PER_TURN, ROOM, TICK,
    WANTED,
};
use crate::wireguard::tunnel::{
    HandshakeResponder, INITIATION, MAX_TUNNELS, MAX_WAITING, Made, Message, OVERHEAD, Opened, Tunnel,
};

use answers::Watches;
use moving::Moving;
use psk_exchanges::PskExchanges;
use session::Session;

/// All tunnels of one lane.
#[derive(Debug)]
pub(crate) struct Sessions {
    lane: usize,
    door: HandshakeResponder,
    /// The door of the key before, while we change it; and whether we call from there.
    former: Option<HandshakeResponder>,
    calls_by_former: bool,
    limiter: HandshakeLimiter,
    /// The times that handshakes of this node have used.
    clock: Arc<HandshakeClock>,
    peers: Arc<TunnelPeers>,
    counters: Arc<Counters>,
    slab: Vec<Option<Session>>,
    free: Vec<u32>,
    by_peer: HashMap<NodeId, Vec<u32>>,
    by_endpoint: HashMap<SocketAddr, u32>,
    /// Tunnels whose timers run.
    ticking: Vec<u32>,
    /// Tunnels that offer an initiation.
    racing: Vec<u32>,
    /// Tunnels with packets that waited for their session.
    flushing: Vec<u32>,
    /// Peers to shake hands with as soon as possible, a few per turn.
    greeting: BTreeSet<NodeId>,
    /// Peers whose round trip is to be measured.
    probes: Vec<NodeId>,
    /// Peers that this lane has a new session with.
    met: Vec<NodeId>,
    /// Peers that there is traffic with on any lane, as lane 0 saw at its last tick.
    active: Vec<NodeId>,
    /// Peers that answered lane 0 from elsewhere.
    roamed: Vec<NodeId>,
    /// What is to be said after an address changed.
    moving: Moving,
    /// The agreements on preshared keys; lane 0's alone.
    talks: PskExchanges,
    detour: Lane0Fallback,
    /// Who left something unanswered.
    watches: Watches,
    next_tick: Option<Timestamp>,
    handshakes_left: u32,
    nudges_left: u32,
    lookups_left: u32,
    scratch: Box<[u8]>,
}

impl Sessions {
    pub(crate) fn new(lane: usize, keys: &LaneKey, peers: Arc<TunnelPeers>, counters: Arc<Counters>) -> Self {
        Self {
            lane,
            door: HandshakeResponder::new(&keys.current),
            former: keys.former.as_ref().map(HandshakeResponder::new),
            calls_by_former: keys.calls_by_former,
            limiter: HandshakeLimiter::new(random()),
            clock: Arc::clone(&keys.clock),
            peers,
            counters,
            slab: Vec::new(),
            free: Vec::new(),
            by_peer: HashMap::new(),
            by_endpoint: HashMap::new(),
            ticking: Vec::new(),
            racing: Vec::new(),
            flushing: Vec::new(),
            greeting: BTreeSet::new(),
            probes: Vec::new(),
            met: Vec::new(),
            active: Vec::new(),
            roamed: Vec::new(),
            moving: Moving::default(),
            talks: PskExchanges::new(keys),
            detour: Lane0Fallback::default(),
            watches: Watches::default(),
            next_tick: None,
            handshakes_left: 0,
            nudges_left: 0,
            lookups_left: 0,
            scratch: vec![0; MAX_PACKET + 2 * OVERHEAD].into(),
        }
    }

    /// Asks for a handshake with a peer as soon as possible.
    pub(crate) fn greet(&mut self, peer: NodeId) {
        if self.peers.get(peer).is_none() {
            return;
        }
        self.drop_stale(peer);
        self.greeting.insert(peer);
    }

    /// Asks for a measurement of the round trip. A session that is still to be made measures it by itself.
    pub(crate) fn ping(&mut self, peer: NodeId) {
        let lanes = self.peers.get(peer).map_or(1, |peer| peer.lanes.len());
        let session = self.tunnel_to(peer, self.lane % lanes).and_then(|n| self.slab[n as usize].as_ref());
        if session.is_none_or(|session| !session.ready) {
            self.greet(peer);
        } else if !self.probes.contains(&peer) {
            self.probes.push(peer);
        }
    }

    /// Asks a peer whether it is there: inside its tunnel, if it is a member and has one, and by a handshake where that may
    /// not be enough.
    fn ask(&mut self, id: NodeId, inquiry: Inquiry, outbox: &mut Outbox, now: Timestamp) {
        // Where there is no preshared key yet, the agreement on one is the question.
        let recently = self.peers.get(id).is_some_and(|peer| peer.cell.wanted_within(WANTED, now));
        if recently || self.talks.held.contains_key(&id) {
            self.agree(id, None, outbox, now);
        } else {
            self.call_for_key_once(id, outbox, now);
        }
        let Some(number) = self.tunnel_to(id, 0) else { return };
        self.wake(number, outbox, now);
        let Some(session) = self.slab[number as usize].as_ref() else { return };
        let inside = session.ready && session.path.endpoint().is_some() && session.peer.is_member;
        let under_way = session.initiated && session.initiated_at.is_some_and(|at| now.since(at) < WAIT);
        if inside && !self.probes.contains(&id) {
            self.probes.push(id);
        }
        if !under_way && (!inside || inquiry == Inquiry::Urgent) {
            self.initiate(number, outbox, now);
        }
    }

    /// Calls a peer without a key that nobody wants, to hear whether it is back: once, and only while there is plenty of
    /// room for agreements with others. One that answers gets its key when it is wanted.
    fn call_for_key_once(&mut self, id: NodeId, outbox: &mut Outbox, now: Timestamp) {
        if self.talks.has_plenty_of_room() && !self.talks.has_called(id, now) {
            self.agree(id, None, outbox, now);
            self.talks.call_no_more(id, now);
        }
    }

    /// Seals a packet for a peer into the outbox, which must have `ROOM`.
    pub(crate) fn seal(
        &mut self,
        peer: NodeId,
        packet: &[u8],
        traffic: Traffic,
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> Sealed {
        let way = self.way(peer, packet, traffic, outbox, now);
        self.seal_by(way, packet, outbox, now)
    }

    /// Finds the way to a peer, for one packet or all segments of a super-packet.
    pub(crate) fn way(
        &mut self,
        peer: NodeId,
        packet: &[u8],
        traffic: Traffic,
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> TunnelChoice {
        let Some(index) = self.choose(peer, now) else { return self.keyless(peer, now) };
        let Some(session) = self.slab[index as usize].as_mut() else { return TunnelChoice::None };
        if traffic == Traffic::Payload {
            session.wanted = Some(now);
            session.active = Some(now);
            session.asked.get_or_insert(now);
        }
        if self.lane > 0 {
            let hears = session.hears(now);
            if !hears || self.detour.has(packet, &session.peer.cell, now) {
                self.detour.note(packet, now);
                let full = session.peer.cell.is_full(now);
                if !hears {
                    self.shake_hands(index, outbox, now);
                }
                return if full { TunnelChoice::None } else { TunnelChoice::Elsewhere };
            }
        }
        TunnelChoice::Tunnel(index)
    }

    /// Seals a packet into the outbox by a way that was just found.
    pub(crate) fn seal_by(&mut self, way: TunnelChoice, packet: &[u8], outbox: &mut Outbox, now: Timestamp) -> Sealed {
        let index = match way {
            TunnelChoice::Tunnel(index) => index,
            TunnelChoice::Elsewhere => return Sealed::Elsewhere,
            TunnelChoice::Keyless(peer) => return self.hold_for_key(peer, packet, outbox, now),
            TunnelChoice::None => return Sealed::Dropped(Drop::NoTunnel),
        };
        let Some(session) = self.slab[index as usize].as_mut() else { return Sealed::Dropped(Drop::NoTunnel) };
        if !session.ready && session.peer.is_plain_meanwhile() {
            return self.hold_in_doubt(index, packet, outbox, now);
        }
        if !session.ready {
            return self.hold(index, packet, outbox, now);
        }
        let Some(endpoint) = session.path.endpoint() else { return Sealed::Dropped(Drop::NoEndpoint) };
        match session.tunnel.seal(packet, outbox.space()) {
            Some(Made::Message(len)) if session.peer.cell.narrow().is_some() => {
                outbox.commit_alone(len, endpoint, Ecn::of_packet(packet));
            }
            Some(Made::Message(len)) => outbox.commit_with(len, endpoint, Ecn::of_packet(packet)),
            Some(Made::Initiation | Made::Nothing | Made::Expired) => return self.lost_session(index, outbox, now),
            None => return Sealed::Dropped(Drop::SocketFull),
        }
        session.unanswered.get_or_insert(now);
        session.carried = Some(now);
        session.tx_bytes += packet.len() as u64;
        Sealed::Done
    }

    /// Opens a datagram into `into`, which must hold as many bytes; what is to be answered goes to the outbox,
    /// which must have `ROOM`.
    pub(crate) fn open<'a>(
        &mut self,
        from: Endpoint,
        datagram: &[u8],
        into: &'a mut [u8],
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> Decrypted<'a> {
        let number = match HandshakeResponder::sort(datagram) {
            None => return Decrypted::Dropped(Drop::NotWireguard),
            Some(Message::Initiation) => return self.initiation(from, datagram, outbox, now),
            Some(Message::Response(number) | Message::Cookie(number)) => {
                return self.response(number, from, datagram, outbox, now);
            }
            Some(Message::Data(number)) => number,
        };
        self.wake(number, outbox, now);
        let Some(session) = self.slab.get_mut(number as usize).and_then(Option::as_mut) else {
            return self.strange(number, from, datagram, into, outbox, now);
        };
        match session.tunnel.open(from.remote.ip(), datagram, into) {
            Opened::Packet(packet) => {
                session.rx_bytes += packet.len() as u64;
                let peer = session.peer.id;
                self.peer_is_at(number, from, outbox, now);
                Decrypted::Packet(peer, number, packet)
            }
            Opened::Keepalive => {
                self.peer_is_at(number, from, outbox, now);
                Decrypted::Handled
            }
            Opened::NotIpv4 => Decrypted::Dropped(Drop::NotIpv4),
            Opened::Malformed => Decrypted::Dropped(Drop::Malformed),
            Opened::Unauthenticated => {
                self.counters.decrypt_failures.add(1);
                Decrypted::Dropped(Drop::Unauthenticated)
            }
            Opened::UnknownSession => {
                self.nudge(from, outbox, now);
                Decrypted::Dropped(Drop::UnknownSession)
            }
        }
    }

    /// Takes note that a packet that came by a tunnel was meant for somebody here.
    pub(crate) fn delivered(&mut self, number: u32, now: Timestamp) {
        if let Some(session) = self.slab.get_mut(number as usize).and_then(Option::as_mut) {
            session.active = Some(now);
        }
    }

    /// Has lane 0 watch a peer that left unanswered what another lane sent at a time.
    pub(crate) fn watch(&mut self, peer: NodeId, sent: Timestamp) {
        if let Some(peer) = self.peers.get(peer) {
            self.watches.watch(peer, sent);
        }
    }

    /// Returns the next peer that lane 0 is to watch, and since when it leaves something unanswered.
    pub(crate) fn next_noticed(&mut self) -> Option<(NodeId, Timestamp)> {
        self.watches.next_noticed()
    }

    /// Returns the next peer that fell silent, and since when, or that answers again.
    pub(crate) fn next_found(&mut self) -> Option<(NodeId, Option<Timestamp>)> {
        self.watches.next_found()
    }

    /// Says whether other peers are active, or elsewhere, than when this was asked last.
    pub(crate) fn take_news(&mut self) -> bool {
        self.watches.take_news()
    }

    /// Returns the next peer whose round trip is to be measured.
    pub(crate) fn next_probe(&mut self) -> Option<NodeId> {
        self.probes.pop()
    }

    /// Returns the next peer that this lane has a new session with.
    pub(crate) fn next_met(&mut self) -> Option<NodeId> {
        self.met.pop()
    }

    /// Returns the next peer that there was traffic with in the last 10 s; lane 0's alone.
    pub(crate) fn next_active(&mut self) -> Option<NodeId> {
        self.active.pop()
    }

    /// Returns the next peer that was heard from elsewhere; lane 0's alone.
    pub(crate) fn next_roamed(&mut self) -> Option<NodeId> {
        self.roamed.pop()
    }

    /// This host has these addresses now, and no others: what left from one that is gone leaves from another, and every
    /// open tunnel says so.
    pub(crate) fn move_to(&mut self, own: &BTreeSet<IpAddr>, now: Timestamp) {
        for (number, session) in self.slab.iter_mut().enumerate() {
            let Some(session) = session else { continue };
            session.path.leave_local(|local| own.contains(&local));
            let calls = session.initiated || session.retry.is_some() || session.waiting > 0;
            if !session.ready && calls {
                // It calls from where it was, or rests because nobody answered there.
                (session.repeated, session.retry, session.backoff) = (0, None, FIRST_BACKOFF);
                self.moving.displace(number as u32);
            }
        }
        self.moving.begin(now);
    }

    /// Starts a turn: new budgets for what strangers may cause.
    pub(crate) fn begin_turn(&mut self) {
        self.handshakes_left = HANDSHAKES_PER_TURN;
        self.nudges_left = NUDGES_PER_TURN;
        self.lookups_left = LOOKUPS_PER_TURN;
    }

    /// Does what is due. The outbox must have `ROOM`.
    pub(crate) fn handle_timeout(&mut self, outbox: &mut Outbox, now: Timestamp) {
        self.flush(outbox, now);
        self.race(outbox, now);
        self.tend_talks(outbox, now);
        self.say_where(outbox, now);
        for _ in 0..GREETINGS_PER_TURN {
            let Some(peer) = self.greeting.pop_first() else { break };
            self.greet_now(peer, outbox, now);
        }
        if self.next_tick.is_none_or(|due| due <= now) {
            let ticking = std::mem::take(&mut self.ticking);
            for &number in &ticking {
                self.tick(number, outbox, now);
            }
            // Those that started to tick meanwhile are at the front; those that stopped are left out.
            let goes_on = |n: &u32| self.slab[*n as usize].as_ref().is_some_and(|s| s.ticking);
            let started = std::mem::take(&mut self.ticking);
            self.ticking = ticking;
            self.ticking.retain(goes_on);
            self.ticking.extend(started);
            self.next_tick = (!self.ticking.is_empty()).then(|| now + TICK);
        }
        let Self { watches, peers, by_peer, slab, .. } = self;
        let heard = |id: NodeId| by_peer.get(&id)?.iter().filter_map(|&n| slab[n as usize].as_ref()?.heard).max();
        watches.judge(peers, heard, now);
        while let Some((id, inquiry)) = self.watches.next_to_ask() {
            self.ask(id, inquiry, outbox, now);
        }
    }

    /// Returns when `handle_timeout` has something to do; `None` if nothing will be due.
    pub(crate) fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let races = self.racing.iter().filter_map(|&n| self.slab[n as usize].as_ref()?.path.poll_timeout());
        let tick = if self.ticking.is_empty() { None } else { Some(self.next_tick.unwrap_or(now)) };
        let greeting = (!self.greeting.is_empty()).then(|| now + GREETING);
        let flushing = (!self.flushing.is_empty()).then_some(now);
        let (talks, watches) = (self.talks.poll_timeout(), self.watches.poll_timeout());
        let moving = self.moving.poll_timeout(now);
        races.chain(tick).chain(greeting).chain(flushing).chain(talks).chain(watches).chain(moving).min()
    }

    /// Says whether what waited for a session is still to be sent: before anything newer, lest that overtakes it.
    pub(crate) fn is_flushing(&self) -> bool {
        !self.flushing.is_empty()
    }

    /// Sends what waited for a session, as far as there is room.
    pub(crate) fn flush(&mut self, outbox: &mut Outbox, now: Timestamp) {
        while let Some(&number) = self.flushing.last() {
            let Some(session) = self.slab[number as usize].as_mut() else {
                self.flushing.pop();
                continue;
            };
            let endpoint = session.path.endpoint();
            while outbox.room() >= ROOM {
                match (session.tunnel.flush(outbox.space()), endpoint) {
                    (Made::Message(len), Some(endpoint)) => {
                        session.tx_bytes += len.saturating_sub(OVERHEAD) as u64;
                        session.waiting = session.waiting.saturating_sub(1);
                        session.carried = Some(now);
                        outbox.commit(len, endpoint);
                    }
                    (Made::Message(_) | Made::Nothing | Made::Initiation | Made::Expired, _) => {
                        session.waiting = 0;
                        session.unanswered.get_or_insert(now);
                        break;
                    }
                }
            }
            if session.waiting > 0 {
                return;
            }
            session.held = None;
            session.peer.cell.set_holds(now, false);
            self.flushing.pop();
        }
    }

    /// Puts the peers of another map in force; tunnels to keys that are gone are closed.
    pub(crate) fn set_peers(&mut self, peers: Arc<TunnelPeers>) {
        self.peers = peers;
        self.limiter.retain_peers(|id| self.peers.get(id).is_some());
        self.watches.review(&self.peers);
        let (mut unfit, mut gone) = (Vec::new(), Vec::new());
        for index in 0..self.slab.len() {
            let Some(session) = &mut self.slab[index] else { continue };
            let known = self.peers.get(session.peer.id);
            // What the map tells anew as it was stays where it is.
            if known.is_none_or(|peer| !Arc::ptr_eq(peer, &session.peer)) {
                let owner = self.peers.by_key(session.key);
                let Some((peer, _)) = owner.filter(|(p, lane)| p.id == session.peer.id && *lane == session.peer_lane)
                else {
                    gone.push(index as u32);
                    continue;
                };
                if peer.moved_since(&session.peer) && session.is_elsewhere(peer) {
                    self.moving.displace(index as u32);
                }
                session.peer = Arc::clone(peer);
                session.set_fresh(self.door.key());
            }
            let peer = &session.peer;
            if session.ready && (!peer.admits(session.preshared) || peer.is_plain_meanwhile() && self.peers.calls()) {
                unfit.push(peer.id);
            }
        }
        self.remove_all(&gone);
        unfit.into_iter().for_each(|peer| self.greet(peer));
        self.renew();
        self.review_talks();
    }

    /// Puts other keys of our own in force; tunnels of a key that is gone are closed.
    pub(crate) fn set_keys(&mut self, keys: &LaneKey) {
        self.door = HandshakeResponder::new(&keys.current);
        self.former = keys.former.as_ref().map(HandshakeResponder::new);
        self.calls_by_former = keys.calls_by_former;
        self.clock = Arc::clone(&keys.clock);
        let (present, former) = (self.door.key(), self.former.as_ref().map(HandshakeResponder::key));
        let mut gone = Vec::new();
        for index in 0..self.slab.len() {
            let Some(session) = &mut self.slab[index] else { continue };
            if session.own == present || Some(session.own) == former {
                session.set_fresh(present);
            } else {
                gone.push(index as u32);
            }
        }
        self.remove_all(&gone);
        self.renew();
        self.talks.set_keys(keys);
        self.review_talks();
    }

    /// Shakes hands anew with peers whose tunnels use a former key, while those still carry everything.
    pub(super) fn renew(&mut self) {
        let (calling, present) = (self.caller().key(), self.door.key());
        let is_new = |s: &Session| {
            let theirs = s.peer.lanes.get(s.peer_lane).is_some_and(|lane| lane.key == s.key);
            theirs && (s.own == calling || s.own == present)
        };
        let stale = self.slab.iter().flatten().filter(|session| session.ready && !is_new(session));
        let stale: Vec<NodeId> = stale.map(|session| session.peer.id).collect();
        stale.into_iter().for_each(|peer| self.greet(peer));
    }

    /// The door that we call from.
    pub(super) fn caller(&self) -> &HandshakeResponder {
        self.former.as_ref().filter(|_| self.calls_by_former).unwrap_or(&self.door)
    }

    /// Chooses the tunnel to send by: the pair's, or another that hears the peer while that does not; but the one
    /// that is busy for as long as it is. While keys change, one of newer keys as soon as it hears the peer: it shares
    /// the way of the older, so that nothing is overtaken.
    fn choose(&mut self, peer: NodeId, now: Timestamp) -> Option<u32> {
        let lane = self.lane;
        if let Some(numbers) = self.by_peer.get(&peer) {
            let at = |number: &u32| self.slab[*number as usize].as_ref();
            let hears = |number: &&u32| at(number).is_some_and(|s| s.hears(now));
            let fresh = |number: &u32| at(number).map_or(0, Session::rank);
            let freshest = numbers.iter().filter(hears).map(fresh).max();
            let good = || numbers.iter().filter(|number| freshest.is_none_or(|most| fresh(number) == most));
            let pair = |number: &&u32| at(number).is_some_and(|s| s.peer_lane == lane % s.peer.lanes.len());
            let busy = good().find(|number| at(number).is_some_and(|s| s.busy(now)));
            let paired = || good().find(pair).filter(hears);
            if let Some(&number) = busy.or_else(paired).or_else(|| good().find(hears)) {
                return Some(number);
            }
        }
        let lanes = self.peers.get(peer)?.lanes.len();
        self.tunnel_to(peer, lane % lanes)
    }

    /// Returns the tunnel to a peer's lane and makes it if need be; `None` if its key is no good.
    fn tunnel_to(&mut self, id: NodeId, peer_lane: usize) -> Option<u32> {
        let key = self.peers.get(id)?.lanes.get(peer_lane)?.key;
        self.tunnel_between(self.caller().key(), id, peer_lane, key)
    }

    /// Returns the tunnel between a key of ours and one of a peer's lane; `None` as well without a preshared key where
    /// one is needed.
    fn tunnel_between(&mut self, own: TunnelKey, id: NodeId, peer_lane: usize, key: TunnelKey) -> Option<u32> {
        let peer = Arc::clone(self.peers.get(id)?);
        let known = self.by_peer.get(&id).into_iter().flatten();
        let fits = |s: &Session| s.own == own && s.key == key && !s.stale && peer.admits(s.preshared);
        if let Some(&number) = { known }.find(|n| self.slab[**n as usize].as_ref().is_some_and(fits)) {
            return Some(number);
        }
        let (generation, preshared) = self.preshared(&peer)?.unzip();
        let number = self.free.last().copied().unwrap_or(self.slab.len() as u32);
        let door = self.former.as_ref().filter(|door| door.key() == own).unwrap_or(&self.door);
        let tunnel = door.tunnel(key, number, preshared.as_ref()).filter(|_| number < MAX_TUNNELS)?;
        let mut session = Session::new(tunnel, (own, key), peer, peer_lane);
        session.preshared = generation.unwrap_or(0);
        session.set_fresh(self.door.key());
        match self.free.pop() {
            Some(free) => self.slab[free as usize] = Some(session),
            None => self.slab.push(Some(session)),
        }
        self.by_peer.entry(id).or_default().push(number);
        Some(number)
    }

    fn remove(&mut self, number: u32) {
        self.remove_all(&[number]);
    }

    /// Closes tunnels; what is kept of all tunnels is gone through once, however many they are.
    fn remove_all(&mut self, numbers: &[u32]) {
        let before = self.free.len();
        for &number in numbers {
            let Some(session) = self.slab[number as usize].take() else { continue };
            self.counters.count_dropped_many(Drop::NoTunnel, session.waiting);
            session.peer.cell.forget_holds();
            if let Some(numbers) = self.by_peer.get_mut(&session.peer.id) {
                numbers.retain(|&n| n != number);
                if numbers.is_empty() {
                    self.by_peer.remove(&session.peer.id);
                }
            }
            self.free.push(number);
        }
        if self.free.len() == before {
            return;
        }
        let slab = &self.slab;
        let is_open = |number: u32| slab[number as usize].is_some();
        self.by_endpoint.retain(|_, &mut number| is_open(number));
        for list in [&mut self.ticking, &mut self.racing, &mut self.flushing] {
            list.retain(|&number| is_open(number));
        }
        self.moving.retain(is_open);
    }

    /// Lets a packet wait in its tunnel for the handshake.
    fn hold(&mut self, number: u32, packet: &[u8], outbox: &mut Outbox, now: Timestamp) -> Sealed {
        self.wake(number, outbox, now);
        let Some(session) = self.slab[number as usize].as_mut() else { return Sealed::Dropped(Drop::NoTunnel) };
        if session.waiting >= MAX_WAITING {
            session.peer.cell.set_full(now);
            return Sealed::Dropped(Drop::NoTunnel);
        }
        let last = session.peer.cell.endpoint();
        if session.path.endpoint().is_none() && session.peer.candidates(session.peer_lane, last).is_empty() {
            return Sealed::Dropped(Drop::NoEndpoint);
        }
        let Some(made) = session.tunnel.seal(packet, &mut self.scratch) else {
            return Sealed::Dropped(Drop::Oversized);
        };
        session.hold_packet(now);
        session.peer.cell.set_holds(now, true);
        if made == Made::Initiation {
            self.offer_scratch(number, outbox, now);
        }
        Sealed::Done
    }

    /// The tunnel kept the packet instead of sealing it: the session went between two ticks.
    fn lost_session(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) -> Sealed {
        if let Some(session) = self.slab[number as usize].as_mut() {
            session.ready = false;
            session.hold_packet(now);
        }
        self.initiate(number, outbox, now);
        Sealed::Done
    }

    /// Starts a handshake unless one is under way or to be awaited.
    fn shake_hands(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) {
        self.wake(number, outbox, now);
        let session = self.slab[number as usize].as_ref();
        if session.is_some_and(|s| !s.initiated && s.retry.is_none()) {
            self.initiate(number, outbox, now);
        }
    }

    /// Makes an initiation and offers it; none for a tunnel that is on its way out.
    fn initiate(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_mut().filter(|session| !session.stale) else { return };
        let Some(scratch) = self.scratch.first_chunk_mut::<INITIATION>() else { return };
        if session.tunnel.initiate(scratch) {
            self.offer_scratch(number, outbox, now);
        }
    }

    /// Offers the initiation that stands at the start of the scratch buffer to the peer's addresses; or, where our clock
    /// was set back, has the peer call us, which would not take it.
    fn offer_scratch(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) {
        let Some(initiation) = self.scratch.first_chunk_mut::<INITIATION>() else { return };
        let Some(session) = self.slab[number as usize].as_mut().filter(|session| !session.stale) else { return };
        let stamp = session.tunnel.stamp();
        if session.is_taken || !self.clock.is_past(stamp) {
            self.clock.used(stamp);
        } else if session.is_next_call_made() {
            Tunnel::write_nudge(initiation);
        }
        let candidates = session.peer.candidates(session.peer_lane, session.peer.cell.endpoint());
        session.initiated = true;
        session.initiated_at = Some(now);
        session.expired = false;
        session.retry = None;
        if session.path.offer(initiation, &candidates, now) && !self.racing.contains(&number) {
            self.racing.push(number);
        }
        self.keep_ticking(number);
        self.race(outbox, now);
    }
}

pub(crate) mod outcome;
#[cfg(test)]
mod tests;
