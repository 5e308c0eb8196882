//! What keeps the tunnels of a lane up beside the packets: handshakes, timers, preshared keys.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::handshake_limiter::Admission;
use mesh_proto::base::id::{NodeId, TunnelKey};
use mesh_proto::dataplane::verdict::Drop;

use super::Sessions;
use super::psk_exchange::{PskExchange, PskOutcome, agreed};
use super::psk_exchanges::{AGAIN, TALK_ROOM};
use super::session::Session;
use crate::base::entropy::random;
use crate::io::udp_outbox::{Endpoint, Outbox};
use crate::psk::{PresharedKey, Progress};
use crate::wireguard::peers::TunnelPeer;
use crate::wireguard::sessions::outcome::{Decrypted, Sealed, Traffic, TunnelChoice};
use crate::wireguard::timing::{
    FIRST_BACKOFF, GREETINGS_PER_TURN, LATE_REPEAT, NUDGE_INTERVAL, QUICK_PROBES, REPEATS, ROOM, TALKING, WANTED,
    WORDS_PER_TURN,
};
use crate::wireguard::tunnel::{Bad, Credentials, FIRST_AGREEMENT, HandshakeResponder, INITIATION, MAX_WAITING, Made};

/// The longest pause before starting again once a tunnel gave up.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A peer heard within this time is called again after giving up, even if nothing is to be sent.
const RECENT: Duration = Duration::from_secs(600);
/// A peer with traffic within this time is asked which sizes get through.
const BUSY: Duration = Duration::from_secs(10);
/// How long after an agreement a handshake that does not open is no sign of another key: it may be an older one's.
const TRUST: Duration = Duration::from_secs(2);
/// How long an open tunnel stays that does not fit, at most: less than WireGuard keeps a session (180 s).
const STALE: Duration = Duration::from_secs(170);
/// How long it stays once another hears the peer.
const REPLACED: Duration = Duration::from_secs(5);

/// Handshakes as they come in: what strangers may cost us, and what follows from an answer. Then what tunnels do by the
/// clock. Then tunnels of a peer that begins or ceases to use a preshared key: the open one carries everything until one
/// that fits hears the peer, and goes a little later, because what is on its way by it is still to arrive. Then lane 0's
/// agreements on such keys, and the packets that wait for them.
impl Sessions {
    /// Somebody wants a session: cheap checks first, a bounded number of costly ones per turn.
    pub(super) fn initiation<'a>(
        &mut self,
        from: Endpoint,
        datagram: &[u8],
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> Decrypted<'a> {
        if self.handshakes_left == 0 {
            return Decrypted::Dropped(Drop::HandshakeLimited);
        }
        let source = from.remote.ip();
        // While keys change, whoever does not know the present one may know the former.
        let doors = std::iter::once(&self.door).chain(&self.former).chain(self.talks.doors());
        let known = doors.map(|door| (door, door.check(source, datagram, outbox.space())));
        let Some((door, credentials)) = { known }.find(|(_, credentials)| *credentials != Credentials::None) else {
            return Decrypted::Dropped(Drop::Unauthenticated);
        };
        let (cookie, demand) = match credentials {
            Credentials::Cookie => (true, 0),
            Credentials::Key(demand) => (false, demand),
            Credentials::None => return Decrypted::Dropped(Drop::Unauthenticated),
        };
        match self.limiter.admit(source, cookie, now) {
            Admission::Admit => {}
            Admission::DemandCookie => {
                outbox.commit(demand, from);
                return Decrypted::Dropped(Drop::HandshakeLimited);
            }
            Admission::Drop => return Decrypted::Dropped(Drop::HandshakeLimited),
        }
        self.handshakes_left -= 1;
        let (own, initiator) = (door.key(), door.initiator(datagram));
        let Some(key) = initiator else { return Decrypted::Dropped(Drop::Unauthenticated) };
        let agrees = self.talks.doors().any(|door| door.key() == own);
        let known = match agrees {
            true => self.peers.by_agreement(key).map(|peer| (peer.id, 0)),
            false => self.peers.by_key(key).map(|(peer, lane)| (peer.id, lane)),
        };
        let Some((id, lane)) = known else { return Decrypted::Dropped(Drop::UnknownPeer) };
        if !self.limiter.admit_peer(id, now) {
            return Decrypted::Dropped(Drop::HandshakeLimited);
        }
        if agrees {
            return self.talk_begins((own, key), id, from, datagram, outbox, now);
        }
        self.drop_stale(id);
        let Some(number) = self.tunnel_between(own, id, lane, key) else {
            // The peer has a key that we lost, or has none of its own and does not know yet that it needs one.
            self.agree(id, Some(from), outbox, now);
            return Decrypted::Dropped(Drop::NoTunnel);
        };
        self.wake(number, outbox, now);
        let Some(session) = self.slab[number as usize].as_mut() else { return Decrypted::Dropped(Drop::UnknownPeer) };
        // The answer goes to where the question came from, but that is not yet the peer's endpoint: a captured
        // initiation can be sent from anywhere. What the peer then sends under the new session proves it.
        let Ok(Made::Message(len)) = session.tunnel.handshake(source, datagram, outbox.space()) else {
            return Decrypted::Dropped(Drop::Unauthenticated);
        };
        outbox.commit(len, from);
        // Not before: whose key an initiation names costs nothing to claim.
        self.limiter.charge_peer(id, now);
        session.peer.cell.set_handshake(now);
        self.counters.handshakes.add(1);
        self.keep_ticking(number);
        Decrypted::Handled
    }

    /// A response to our initiation, or a demand for a cookie.
    pub(super) fn response<'a>(
        &mut self,
        number: u32,
        from: Endpoint,
        datagram: &[u8],
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> Decrypted<'a> {
        let Some(session) = self.slab.get_mut(number as usize).and_then(Option::as_mut) else {
            return self.talk_response(number, from, datagram, outbox, now);
        };
        match session.tunnel.handshake(from.remote.ip(), datagram, outbox.space()) {
            Ok(Made::Message(len)) => outbox.commit(len, from),
            // A cookie: the next initiation, sent by the timers, shows it. It proves nothing about the sender.
            Ok(Made::Nothing | Made::Initiation | Made::Expired) => return Decrypted::Handled,
            Err(bad) => {
                let peer = session.peer.id;
                // One that has a session has the same key, whatever somebody sends in the peer's name.
                if bad == Bad::Undecryptable && !session.ready {
                    self.doubt(peer, outbox, now);
                }
                return Decrypted::Dropped(Drop::Unauthenticated);
            }
        }
        session.is_taken = true;
        session.backoff = FIRST_BACKOFF;
        session.peer.cell.set_handshake(now);
        self.counters.handshakes.add(1);
        self.peer_is_at(number, from, outbox, now);
        Decrypted::Handled
    }

    /// Something genuine came from a peer: that is where it is, and what waited can go.
    pub(super) fn peer_is_at(&mut self, number: u32, from: Endpoint, outbox: &mut Outbox, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        session.heard = Some(now);
        session.unanswered = None;
        session.asked = None;
        session.initiated = false;
        session.repeated = 0;
        if let Some(former) = session.path.heard_from(from) {
            tracing::debug!(peer = %session.peer.id, lane = self.lane, endpoint = %from.remote, "endpoint");
            if let Some(former) = former.filter(|former| former.remote != from.remote) {
                self.by_endpoint.remove(&former.remote);
            }
            self.by_endpoint.insert(from.remote, number);
            if self.lane == 0 && session.peer_lane == 0 {
                session.peer.cell.set_endpoint(from.remote);
                self.roamed.push(session.peer.id);
                self.watches.note_news();
            }
        }
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        if !session.ready && session.tunnel.has_session() {
            session.ready = true;
            session.quick_probes = QUICK_PROBES;
            session.probe_due = Some(now);
            let id = session.peer.id;
            self.met.push(id);
            self.opens(number, id, outbox, now);
            self.publish(number, now);
        }
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        if session.ready && session.waiting > 0 && !self.flushing.contains(&number) {
            self.flushing.push(number);
            self.flush(outbox, now);
        }
    }

    /// A data message came for a session that we do not have, from where a peer is known to be: we lost it, most
    /// likely by a restart, and the peer would go on talking to us in vain.
    pub(super) fn nudge(&mut self, from: Endpoint, outbox: &mut Outbox, now: Timestamp) {
        if self.nudges_left == 0 {
            return;
        }
        let Some(number) = self.tunnel_at(from, outbox, now) else { return };
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        let within = |at: Option<Timestamp>, span| at.is_some_and(|at| now.since(at) < span);
        if within(session.nudged, NUDGE_INTERVAL) || session.ready && within(session.heard, TALKING) {
            return;
        }
        session.nudged = Some(now);
        // Not before: strangers must not use up what is for peers.
        self.nudges_left -= 1;
        self.wake(number, outbox, now);
        self.initiate(number, outbox, now);
    }

    /// Returns the tunnel to the peer that is known to be at an address; where a key is to be made first, begins that.
    fn tunnel_at(&mut self, from: Endpoint, outbox: &mut Outbox, now: Timestamp) -> Option<u32> {
        if let Some(&number) = self.by_endpoint.get(&from.remote) {
            return Some(number);
        }
        if !self.peers.has_any_at(from.remote.ip()) {
            return None;
        }
        self.lookups_left = self.lookups_left.checked_sub(1)?;
        let (peer, lane) = self.peers.by_address(from.remote)?;
        let (id, lacks_key) = (peer.id, self.peers.calls() && peer.lacks_key());
        let number = self.tunnel_to(id, lane);
        if number.is_none() && lacks_key && !self.talks.wants_key(id) {
            self.nudges_left -= 1;
            self.agree(id, None, outbox, now);
        }
        number
    }

    /// Makes sure that a tunnel's timers run, and that its clock is right before it is used.
    pub(super) fn wake(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) {
        let Some(session) = self.slab.get_mut(number as usize).and_then(Option::as_mut) else { return };
        if session.ticking {
            return;
        }
        let mut message = [0; INITIATION];
        let made = session.tunnel.tick(&mut message);
        session.ready = session.tunnel.has_session();
        if made != Made::Expired {
            self.keep_ticking(number);
            self.send_timed(number, made, &message, outbox, now);
        }
    }

    /// Makes sure that a tunnel's timers go on running.
    pub(super) fn keep_ticking(&mut self, number: u32) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        if !session.ticking {
            session.ticking = true;
            self.ticking.push(number);
        }
    }

    /// Sends the initiations that are due.
    pub(super) fn race(&mut self, outbox: &mut Outbox, now: Timestamp) {
        let Self { racing, slab, counters, .. } = self;
        racing.retain(|&number| {
            let Some(session) = slab[number as usize].as_mut() else { return false };
            while let Some((to, initiation)) = session.path.poll(now) {
                if outbox.push(initiation, to) {
                    counters.initiations.add(1);
                }
            }
            session.path.poll_timeout().is_some()
        });
    }

    /// Says from where it speaks now, and calls who is elsewhere, as far as that is due and there is room.
    pub(super) fn say_where(&mut self, outbox: &mut Outbox, now: Timestamp) {
        for _ in 0..GREETINGS_PER_TURN {
            let Some(number) = self.moving.next_call() else { break };
            self.wake(number, outbox, now);
            self.initiate(number, outbox, now);
        }
        if let Some(moved) = self.moving.begin_round(now) {
            let unheard = |s: &Session| s.ready && s.heard.is_none_or(|heard| heard < moved);
            let numbers = (0..).zip(&self.slab).filter(|(_, session)| session.as_ref().is_some_and(unheard));
            numbers.for_each(|(number, _)| self.moving.add(number));
        }
        for _ in 0..WORDS_PER_TURN {
            if outbox.room() < ROOM {
                return;
            }
            let Some(number) = self.moving.next_word() else { return };
            let Some(session) = self.slab[number as usize].as_mut() else { continue };
            let open = session.ready && session.tunnel.has_session();
            let Some(endpoint) = session.path.endpoint().filter(|_| open) else { continue };
            let mut word = [0; INITIATION];
            if let Some(Made::Message(len)) = session.tunnel.seal(&[], &mut word) {
                outbox.push(&word[..len], endpoint);
            }
        }
    }

    pub(super) fn greet_now(&mut self, peer: NodeId, outbox: &mut Outbox, now: Timestamp) {
        let Some(lanes) = self.peers.get(peer).map(|peer| peer.lanes.len()) else { return };
        if self.lane == 0 {
            self.agree(peer, None, outbox, now);
        }
        let Some(number) = self.tunnel_to(peer, self.lane % lanes) else { return };
        let ready = self.slab[number as usize].as_ref().is_some_and(|s| s.ready);
        if !ready {
            self.shake_hands(number, outbox, now);
        }
    }

    pub(super) fn tick(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) {
        if self.retire(number, now) {
            return;
        }
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        let mut message = [0; INITIATION];
        let made = session.tunnel.tick(&mut message);
        let was_ready = std::mem::replace(&mut session.ready, session.tunnel.has_session());
        if session.ready && !was_ready {
            let id = session.peer.id;
            self.met.push(id);
            if session.waiting > 0 && !self.flushing.contains(&number) {
                self.flushing.push(number);
            }
            self.opens(number, id, outbox, now);
        }
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        let calls = !session.is_left_to_ask(now);
        let silent = calls && session.ready && !session.hears(now) && !session.initiated;
        let waited = session.initiated_at.filter(|_| calls && session.initiated).map(|at| now.since(at));
        let is_late = !session.is_taken && self.clock.is_past(session.tunnel.stamp());
        let most = REPEATS.get(session.repeated).map(|&most| if is_late { LATE_REPEAT } else { most });
        let overdue = most.is_some_and(|most| waited.is_some_and(|waited| waited >= most));
        session.repeated += usize::from(overdue);
        if made == Made::Nothing && (silent || overdue) {
            self.initiate(number, outbox, now);
        } else {
            self.send_timed(number, made, &message, outbox, now);
        }
        self.publish(number, now);
        if let Some(session) = self.slab[number as usize].as_mut() {
            self.watches.notice(self.lane, session, now);
        }
        self.ask_for_probe(number, now);
    }

    /// Sends what a tunnel's timers made.
    pub(super) fn send_timed(
        &mut self,
        number: u32,
        made: Made,
        message: &[u8; INITIATION],
        outbox: &mut Outbox,
        now: Timestamp,
    ) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        session.expired &= made == Made::Expired;
        match made {
            Made::Nothing => {}
            Made::Message(len) => {
                if let (Some(endpoint), Some(message)) = (session.path.endpoint(), message.get(..len)) {
                    outbox.push(message, endpoint);
                }
            }
            Made::Initiation if session.is_left_to_ask(now) => {}
            Made::Initiation => {
                self.scratch[..INITIATION].copy_from_slice(message);
                self.offer_scratch(number, outbox, now);
            }
            Made::Expired => self.give_up(number, outbox, now),
        }
    }

    /// A tunnel gave up. If the peer is still wanted it starts again after a pause, otherwise it rests.
    fn give_up(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        if !session.expired {
            session.expired = true;
            self.counters.count_dropped_many(Drop::NoTunnel, std::mem::take(&mut session.waiting));
            session.held = None;
            session.peer.cell.forget_holds();
            let in_doubt = Some(session.peer.id).filter(|_| session.peer.is_plain_meanwhile());
            let recent = |at: Option<_>, span| at.is_some_and(|at| now.since(at) < span);
            // Without an initiation it is the end of a session that nobody used.
            let missed = session.initiated && recent(session.heard, RECENT);
            if !session.is_left_to_ask(now) && (recent(session.wanted, WANTED) || missed) {
                session.retry = Some(now + session.backoff);
                tracing::info!(peer = %session.peer.id, lane = self.lane, "no answer for 90 s; trying again");
                session.backoff = (session.backoff * 2).min(LONGEST_BACKOFF);
            }
            session.initiated = false;
            session.repeated = 0;
            if let Some(id) = in_doubt {
                self.drop_held(id);
            }
        }
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        session.retry = session.retry.filter(|_| !session.is_left_to_ask(now));
        match session.retry {
            Some(due) if due <= now => self.initiate(number, outbox, now),
            Some(_) => {}
            None => session.ticking = false,
        }
    }

    /// Makes known what this lane learned about the peer.
    fn publish(&mut self, number: u32, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        let cell = &session.peer.cell;
        if session.rx_bytes | session.tx_bytes > 0 {
            cell.add(std::mem::take(&mut session.rx_bytes), std::mem::take(&mut session.tx_bytes));
        }
        session.heard.into_iter().for_each(|at| cell.note_heard(at));
        session.wanted.into_iter().for_each(|at| cell.note_wanted(at));
        if let Some(at) = session.active.take() {
            if !cell.active_within(RECENT, now) {
                self.watches.note_news();
            }
            cell.set_active(at);
        }
    }

    /// Lane 0 measures the round trip to a member that there is traffic with, on any lane, and has it asked which sizes get
    /// through; plain WireGuard knows neither question.
    fn ask_for_probe(&mut self, number: u32, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        if self.lane > 0 || session.peer_lane > 0 || !session.peer.is_member || !session.hears(now) {
            return;
        }
        if session.peer.cell.active_within(BUSY, now) {
            self.active.push(session.peer.id);
        }
        if session.takes_probe(now) {
            self.probes.push(session.peer.id);
        }
    }

    /// Closes a peer's tunnels that have not the preshared key that they should have, but for open ones where there was none
    /// before, or is to be none any more. Says whether there were any.
    pub(super) fn drop_stale(&mut self, id: NodeId) -> bool {
        let Some(peer) = self.peers.get(id).map(Arc::clone) else { return false };
        let mut any = false;
        for number in self.by_peer.get(&id).cloned().unwrap_or_default() {
            let Some(session) = self.slab[number as usize].as_mut() else { continue };
            // Once and for all: if the peer turns back, it may have lost this session meanwhile.
            session.stale |= !peer.admits(session.preshared);
            any |= session.stale;
            let turned = session.preshared == 0 || peer.is_plain() || peer.admits(session.preshared);
            if session.stale && !(turned && session.ready && session.ticking) {
                self.remove(number);
            }
        }
        any
    }

    /// A tunnel has a session from now on.
    pub(super) fn opens(&mut self, number: u32, peer: NodeId, outbox: &mut Outbox, now: Timestamp) {
        self.replaces(number, now);
        if self.lane == 0 {
            // The peer speaks plain at least; a key is made beside it.
            self.agree(peer, None, outbox, now);
            self.send_held(peer, outbox, now);
        }
    }

    /// A tunnel that fits hears the peer: those that it takes the place of go soon.
    fn replaces(&mut self, number: u32, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_ref().filter(|session| !session.stale) else { return };
        let (id, lane) = (session.peer.id, session.peer_lane);
        for &other in self.by_peer.get(&id).into_iter().flatten() {
            let other = self.slab[other as usize].as_mut().filter(|other| other.stale && other.peer_lane == lane);
            if let Some(other) = other {
                let soon = now + REPLACED;
                other.retires = Some(other.retires.map_or(soon, |retires| retires.min(soon)));
            }
        }
    }

    /// Closes a tunnel that does not fit, if it is time. Says whether it did.
    pub(super) fn retire(&mut self, number: u32, now: Timestamp) -> bool {
        let Some(session) = self.slab[number as usize].as_mut().filter(|session| session.stale) else { return false };
        let over = *session.retires.get_or_insert(now + STALE) <= now || !session.tunnel.has_session();
        if over {
            self.remove(number);
        }
        over
    }

    /// Lets a packet wait for a tunnel to a peer of which is not known yet whether that will have a preshared key.
    pub(super) fn hold_in_doubt(&mut self, number: u32, packet: &[u8], outbox: &mut Outbox, now: Timestamp) -> Sealed {
        let Some(id) = self.slab[number as usize].as_ref().map(|session| session.peer.id) else {
            return Sealed::Dropped(Drop::NoTunnel);
        };
        self.shake_hands(number, outbox, now);
        self.hold_for_key(id, packet, outbox, now)
    }

    /// Sends what waited for a peer's key, or for a tunnel without one.
    pub(super) fn send_held(&mut self, id: NodeId, outbox: &mut Outbox, now: Timestamp) {
        let held = self.talks.take_held(id);
        for packet in &held {
            if let Sealed::Dropped(reason) = self.seal(id, packet, Traffic::Payload, outbox, now) {
                self.counters.count_dropped(reason);
            }
        }
        let mut tunnels = self.by_peer.get(&id).into_iter().flatten();
        let waits = tunnels.any(|&n| self.slab[n as usize].as_ref().is_some_and(|s| s.waiting > 0));
        if let Some(peer) = self.peers.get(id).filter(|_| !held.is_empty() && !waits) {
            peer.cell.set_holds(now, false);
        }
    }

    /// Returns the preshared key of a peer's tunnels and its number; `Some(None)` for one that has none and needs none,
    /// `None` for one that needs one.
    #[expect(clippy::option_option, reason = "no key, and none wanted, are two things")]
    pub(super) fn preshared(&self, peer: &TunnelPeer) -> Option<Option<(u64, PresharedKey)>> {
        if peer.is_plain() || peer.is_plain_meanwhile() {
            return Some(None);
        }
        if peer.cell.preshared() == 0 {
            return None;
        }
        self.peers.vault()?.get(peer.id).map(Some)
    }

    /// Says what is the way to a peer that has no tunnel: none but for one whose key is still to be made.
    pub(super) fn keyless(&self, id: NodeId, now: Timestamp) -> TunnelChoice {
        let Some(peer) = self.peers.get(id).filter(|peer| peer.lacks_key()) else { return TunnelChoice::None };
        match self.lane {
            0 => TunnelChoice::Keyless(id),
            _ if peer.cell.is_full(now) => TunnelChoice::None,
            _ => TunnelChoice::Elsewhere,
        }
    }

    /// Lets a packet wait for a peer's key.
    pub(super) fn hold_for_key(&mut self, id: NodeId, packet: &[u8], outbox: &mut Outbox, now: Timestamp) -> Sealed {
        let Some(peer) = self.peers.get(id) else { return Sealed::Dropped(Drop::NoTunnel) };
        if peer.candidates(0, peer.cell.endpoint()).is_empty() {
            return Sealed::Dropped(Drop::NoEndpoint);
        }
        let held = self.talks.held.entry(id).or_default();
        if held.len() as u64 >= MAX_WAITING {
            peer.cell.set_full(now);
            return Sealed::Dropped(Drop::NoTunnel);
        }
        let is_first = held.is_empty();
        held.push(packet.to_vec());
        peer.cell.set_holds(now, true);
        peer.cell.note_wanted(now);
        if !peer.cell.is_watched() {
            self.watch(id, now);
        }
        self.agree(id, None, outbox, now);
        if is_first {
            self.hurry_talk(id, outbox, now);
        }
        Sealed::Done
    }

    /// The first packet for a peer does not wait for the next turn of a talk that nobody answered.
    fn hurry_talk(&mut self, id: NodeId, outbox: &mut Outbox, now: Timestamp) {
        let hurries =
            |talk: &mut Option<PskExchange>| talk.as_mut().is_some_and(|talk| talk.peer.id == id && talk.hurry(now));
        if let Some(at) = self.talks.slab.iter_mut().position(hurries) {
            self.tend_talk(at, outbox, now);
        }
    }

    /// Makes a preshared key with a peer that needs one and has none, unless peers are to call first. `from` is where it
    /// was just seen.
    pub(super) fn agree(&mut self, id: NodeId, from: Option<Endpoint>, outbox: &mut Outbox, now: Timestamp) {
        if self.peers.calls() && self.peers.get(id).is_some_and(|peer| peer.lacks_key()) {
            self.talk_to(id, from, outbox, now);
        }
    }

    /// A handshake with a peer does not open: the peer has another preshared key, or has one where we have none.
    pub(super) fn doubt(&mut self, id: NodeId, outbox: &mut Outbox, now: Timestamp) {
        let doubted = |peer: &&Arc<TunnelPeer>| !peer.is_plain() && !peer.cell.agreed_within(TRUST, now);
        if self.peers.get(id).is_some_and(|peer| doubted(&peer)) {
            self.talk_to(id, None, outbox, now);
        }
    }

    fn talk_to(&mut self, id: NodeId, from: Option<Endpoint>, outbox: &mut Outbox, now: Timestamp) {
        if self.lane > 0 {
            // Other lanes are told, and lane 0 does it.
            return self.met.push(id);
        }
        let former = self.talks.former.as_ref().filter(|_| self.calls_by_former);
        let own = former.or(self.talks.door.as_ref()).map(HandshakeResponder::key);
        let key = self.peers.get(id).and_then(|peer| peer.agreement.first().copied());
        let Some(at) = own.zip(key).and_then(|keys| self.talk_between(keys, id, now)) else { return };
        let Some(talk) = self.talks.slab[at].as_mut().filter(|talk| !talk.wants) else { return };
        talk.want(now);
        talk.initiate(from, now);
        self.tend_talk(at, outbox, now);
    }

    /// Returns the talk between two agreement keys, and makes it if need be and there is a place.
    fn talk_between(&mut self, keys: (TunnelKey, TunnelKey), id: NodeId, now: Timestamp) -> Option<usize> {
        if let Some(at) = self.talks.find(id, keys) {
            return Some(at);
        }
        let peer = self.peers.get(id)?;
        let at = self.talks.place()?;
        let door = self.talks.doors().find(|door| door.key() == keys.0)?;
        let talk = PskExchange::new(door, keys.1, FIRST_AGREEMENT + at as u32, peer, &self.peers, now)?;
        self.talks.begin(at, talk);
        Some(at)
    }

    /// Somebody calls at our agreement key in a peer's name. What is not genuine leaves nothing behind.
    pub(super) fn talk_begins<'a>(
        &mut self,
        keys: (TunnelKey, TunnelKey),
        id: NodeId,
        from: Endpoint,
        datagram: &[u8],
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> Decrypted<'a> {
        let is_new = self.talks.find(id, keys).is_none();
        let Some(at) = self.talk_between(keys, id, now) else { return Decrypted::Dropped(Drop::NoTunnel) };
        let Some(talk) = self.talks.slab[at].as_mut() else { return Decrypted::Dropped(Drop::NoTunnel) };
        let told = talk.handshake(from, datagram, outbox, now);
        let genuine = matches!(told, PskOutcome::Heard(_));
        talk.unproven |= genuine;
        if is_new && !genuine {
            // Whose key an initiation names costs nothing to claim.
            self.talks.end(at);
        } else {
            self.talks.queue(at, now);
        }
        match told {
            PskOutcome::Heard(_) => {
                // What the peer says next shows that it is there, and costs it what this did: a talk is soon forgotten,
                // and with it which initiations were seen, so that anybody may send one again.
                Decrypted::Handled
            }
            PskOutcome::Unproven => Decrypted::Handled,
            PskOutcome::Nothing => Decrypted::Dropped(Drop::Unauthenticated),
        }
    }

    /// A response for a tunnel that is none of the lanes'.
    pub(super) fn talk_response<'a>(
        &mut self,
        number: u32,
        from: Endpoint,
        datagram: &[u8],
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> Decrypted<'a> {
        let Some((at, talk)) = self.talk_of(number) else { return Decrypted::Dropped(Drop::UnknownSession) };
        match talk.handshake(from, datagram, outbox, now) {
            PskOutcome::Heard(_) => {
                talk.found(from, now);
                talk.peer.cell.note_heard(now);
                self.tend_talk(at, outbox, now);
                Decrypted::Handled
            }
            PskOutcome::Unproven => Decrypted::Handled,
            PskOutcome::Nothing => Decrypted::Dropped(Drop::Unauthenticated),
        }
    }

    /// A data message for a tunnel that is none of the lanes'.
    pub(super) fn strange<'a>(
        &mut self,
        number: u32,
        from: Endpoint,
        datagram: &[u8],
        into: &mut [u8],
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> Decrypted<'a> {
        let Some((at, _)) = self.talk_of(number) else {
            self.nudge(from, outbox, now);
            return Decrypted::Dropped(Drop::UnknownSession);
        };
        let elsewhere = self.talks.others(at).any(|talk| talk.exchange.is_offering());
        let Some(talk) = self.talks.slab[at].as_mut() else { return Decrypted::Dropped(Drop::UnknownSession) };
        match talk.open(from.remote.ip(), datagram, into, elsewhere, now) {
            PskOutcome::Heard(progress) => {
                talk.found(from, now);
                let initiated = std::mem::take(&mut talk.unproven);
                let peer = Arc::clone(&talk.peer);
                peer.cell.note_heard(now);
                let mut wanted = matches!(progress, Progress::Agreed(_)) && talk.have_key(now);
                wanted |= self.talks.tell_others(at, &progress, now);
                let key = agreed(progress);
                // The peer hears that there is a key before it gets anything that was sealed with it.
                self.tend_talk(at, outbox, now);
                if initiated {
                    self.limiter.charge_peer(peer.id, now);
                }
                if let Some(key) = key {
                    self.take_key(&peer, key, wanted, outbox, now);
                }
                Decrypted::Handled
            }
            PskOutcome::Unproven => Decrypted::Handled,
            PskOutcome::Nothing => Decrypted::Dropped(Drop::Unauthenticated),
        }
    }

    fn talk_of(&mut self, number: u32) -> Option<(usize, &mut PskExchange)> {
        let at = number.checked_sub(FIRST_AGREEMENT)? as usize;
        Some((at, self.talks.slab.get_mut(at)?.as_mut()?))
    }

    /// Two nodes have a new key: it is kept, tunnels of an older one go, and what waited for it leaves.
    fn take_key(&mut self, peer: &TunnelPeer, key: PresharedKey, wanted: bool, outbox: &mut Outbox, now: Timestamp) {
        let Some(vault) = self.peers.vault() else { return };
        peer.cell.set_preshared(vault.put(peer.id, key));
        peer.cell.set_agreed(now);
        tracing::debug!(peer = %peer.id, "agreed on a preshared key");
        let had_tunnels = self.drop_stale(peer.id);
        if wanted || had_tunnels {
            self.greet(peer.id);
        }
        self.send_held(peer.id, outbox, now);
    }

    /// Does what is due in all talks. Returns how many it looked at.
    pub(super) fn tend_talks(&mut self, outbox: &mut Outbox, now: Timestamp) -> usize {
        let (mut looked_at, mut ended) = (0, false);
        self.talks.crowded = None;
        while let Some(&(_, at)) = self.talks.queue.first().filter(|(due, _)| *due <= now) {
            if outbox.room() < TALK_ROOM {
                self.talks.crowded = Some(now + AGAIN);
                break;
            }
            looked_at += 1;
            self.tend_talk(at, outbox, now);
            let Some(talk) = self.talks.slab[at].as_ref().filter(|talk| talk.is_over(now)) else { continue };
            let (peer, wants) = (talk.peer.id, talk.wants);
            self.talks.end(at);
            ended = true;
            if wants {
                self.drop_held(peer);
            }
        }
        if ended && std::mem::take(&mut self.talks.starved) {
            // There is a place for whom there was none.
            self.greet_held();
        }
        looked_at
    }

    /// Sends what a talk has to say, and its initiation.
    fn tend_talk(&mut self, at: usize, outbox: &mut Outbox, now: Timestamp) {
        let Self { talks, peers, counters, .. } = self;
        let elsewhere = talks.others(at).any(|talk| talk.exchange.is_under_way(now));
        let Some(talk) = talks.slab.get_mut(at).and_then(Option::as_mut) else { return };
        talk.handle_timeout(now);
        talk.initiate(None, now);
        while let Some((to, initiation)) = talk.path.poll(now) {
            if outbox.push(initiation, to) {
                counters.initiations.add(1);
            }
        }
        talk.speak(random(), elsewhere, peers, outbox, now);
        talks.queue(at, now);
    }

    /// Ends talks with nodes that left the map or changed their keys, and drops what waits for them.
    pub(super) fn review_talks(&mut self) {
        if self.talks.slab.is_empty() && self.talks.held.is_empty() {
            return;
        }
        let peers = Arc::clone(&self.peers);
        let own: Vec<TunnelKey> = self.talks.doors().map(HandshakeResponder::key).collect();
        let over = self.talks.which(|talk| {
            let known = peers.get(talk.peer.id).is_some_and(|peer| peer.agreement.contains(&talk.keys.1));
            !known || !own.contains(&talk.keys.0)
        });
        over.into_iter().for_each(|at| self.talks.end(at));
        for talk in self.talks.slab.iter_mut().flatten() {
            if let Some(peer) = peers.get(talk.peer.id) {
                talk.peer = Arc::clone(peer);
            }
        }
        let gone = |id: &&NodeId| peers.get(**id).is_none_or(|peer| peer.is_plain());
        let gone: Vec<NodeId> = self.talks.held.keys().filter(gone).copied().collect();
        gone.into_iter().for_each(|id| self.drop_held(id));
        self.greet_held();
    }

    /// Begins again with peers for which packets wait, where the talk ended.
    fn greet_held(&mut self) {
        let waiting: Vec<NodeId> = self.talks.held.keys().copied().collect();
        waiting.into_iter().for_each(|id| self.greet(id));
    }

    pub(super) fn drop_held(&mut self, id: NodeId) {
        let held = self.talks.held.remove(&id).unwrap_or_default();
        self.counters.count_dropped_many(Drop::NoTunnel, held.len() as u64);
        if let Some(peer) = self.peers.get(id).filter(|_| !held.is_empty()) {
            peer.cell.forget_holds();
        }
    }
}
