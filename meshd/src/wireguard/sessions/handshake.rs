//! Handshakes as they come in: what strangers may cost us, and what follows from an answer.

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::handshake_limiter::Admission;
use mesh_proto::dataplane::verdict::Drop;

use super::Sessions;
use crate::io::udp_outbox::{Endpoint, Outbox};
use crate::wireguard::sessions::outcome::Received;
use crate::wireguard::timing::{FIRST_BACKOFF, NUDGE_INTERVAL, QUICK_PROBES};
use crate::wireguard::tunnel::{Bad, Credentials, Made};

impl Sessions {
    /// Somebody wants a session: cheap checks first, a bounded number of costly ones per turn.
    pub(super) fn initiation<'a>(
        &mut self,
        from: Endpoint,
        datagram: &[u8],
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> Received<'a> {
        if self.handshakes_left == 0 {
            return Received::Dropped(Drop::HandshakeLimited);
        }
        let source = from.remote.ip();
        // While keys change, whoever does not know the present one may know the former.
        let doors = std::iter::once(&self.door).chain(&self.former).chain(self.talks.doors());
        let known = doors.map(|door| (door, door.check(source, datagram, outbox.space())));
        let Some((door, credentials)) = { known }.find(|(_, credentials)| *credentials != Credentials::None) else {
            return Received::Dropped(Drop::Unauthenticated);
        };
        let (cookie, demand) = match credentials {
            Credentials::Cookie => (true, 0),
            Credentials::Key(demand) => (false, demand),
            Credentials::None => return Received::Dropped(Drop::Unauthenticated),
        };
        match self.limiter.admit(source, cookie, now) {
            Admission::Admit => {}
            Admission::DemandCookie => {
                outbox.commit(demand, from);
                return Received::Dropped(Drop::HandshakeLimited);
            }
            Admission::Drop => return Received::Dropped(Drop::HandshakeLimited),
        }
        self.handshakes_left -= 1;
        let (own, initiator) = (door.key(), door.initiator(datagram));
        let Some(key) = initiator else {
            return Received::Dropped(Drop::Unauthenticated);
        };
        let agrees = self.talks.doors().any(|door| door.key() == own);
        let known = match agrees {
            true => self.peers.by_agreement(key).map(|peer| (peer.id, 0)),
            false => self.peers.by_key(key).map(|(peer, lane)| (peer.id, lane)),
        };
        let Some((id, lane)) = known else {
            return Received::Dropped(Drop::UnknownPeer);
        };
        if !self.limiter.admit_peer(id, now) {
            return Received::Dropped(Drop::HandshakeLimited);
        }
        if agrees {
            return self.talk_begins((own, key), id, from, datagram, outbox, now);
        }
        self.drop_stale(id);
        let Some(number) = self.tunnel_between(own, id, lane, key) else {
            // The peer has a key that we lost, or has none of its own and does not know yet that it needs one.
            self.agree(id, Some(from), outbox, now);
            return Received::Dropped(Drop::NoTunnel);
        };
        self.wake(number, outbox, now);
        let Some(session) = self.slab[number as usize].as_mut() else {
            return Received::Dropped(Drop::UnknownPeer);
        };
        // The answer goes to where the question came from, but that is not yet the peer's endpoint: a captured
        // initiation can be sent from anywhere. What the peer then sends under the new session proves it.
        let Ok(Made::Message(len)) = session.tunnel.handshake(source, datagram, outbox.space()) else {
            return Received::Dropped(Drop::Unauthenticated);
        };
        outbox.commit(len, from);
        // Not before: whose key an initiation names costs nothing to claim.
        self.limiter.charge_peer(id, now);
        session.peer.cell.set_handshake(now);
        self.counters.handshakes.add(1);
        self.keep_ticking(number);
        Received::Handled
    }

    /// A response to our initiation, or a demand for a cookie.
    pub(super) fn response<'a>(
        &mut self,
        number: u32,
        from: Endpoint,
        datagram: &[u8],
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> Received<'a> {
        let Some(session) = self.slab.get_mut(number as usize).and_then(Option::as_mut) else {
            return self.talk_response(number, from, datagram, outbox, now);
        };
        match session.tunnel.handshake(from.remote.ip(), datagram, outbox.space()) {
            Ok(Made::Message(len)) => outbox.commit(len, from),
            // A cookie: the next initiation, sent by the timers, shows it. It proves nothing about the sender.
            Ok(Made::Nothing | Made::Initiation | Made::Expired) => return Received::Handled,
            Err(bad) => {
                let peer = session.peer.id;
                // One that has a session has the same key, whatever somebody sends in the peer's name.
                if bad == Bad::Undecryptable && !session.ready {
                    self.doubt(peer, outbox, now);
                }
                return Received::Dropped(Drop::Unauthenticated);
            }
        }
        session.backoff = FIRST_BACKOFF;
        session.peer.cell.set_handshake(now);
        self.counters.handshakes.add(1);
        self.heard(number, from, outbox, now);
        Received::Handled
    }

    /// Something genuine came from a peer: that is where it is, and what waited can go.
    pub(super) fn heard(&mut self, number: u32, from: Endpoint, outbox: &mut Outbox, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        session.heard = Some(now);
        session.unanswered = None;
        session.initiated = false;
        session.repeated = 0;
        if let Some(former) = session.path.heard(from) {
            tracing::debug!(peer = %session.peer.id, lane = self.lane, endpoint = %from.remote, "endpoint");
            if let Some(former) = former.filter(|former| former.remote != from.remote) {
                self.by_endpoint.remove(&former.remote);
            }
            self.by_endpoint.insert(from.remote, number);
            if self.lane == 0 && session.peer_lane == 0 {
                session.peer.cell.set_endpoint(from.remote);
            }
        }
        if !session.ready && session.tunnel.has_session() {
            session.ready = true;
            session.quick_probes = QUICK_PROBES;
            session.probe_due = Some(now);
            let id = session.peer.id;
            self.met.push(id);
            self.opens(number, id, outbox, now);
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
        let Some(left) = self.nudges_left.checked_sub(1) else { return };
        self.nudges_left = left;
        let known = self.by_endpoint.get(&from.remote).copied();
        let number = known.or_else(|| {
            let (peer, lane) = self.peers.by_address(from.remote)?;
            let id = peer.id;
            let number = self.tunnel_to(id, lane);
            if number.is_none() {
                self.agree(id, None, outbox, now);
            }
            number
        });
        let Some(session) = number.and_then(|n| self.slab[n as usize].as_mut()) else { return };
        let recent = |at: Option<Timestamp>| at.is_some_and(|at| now.since(at) < NUDGE_INTERVAL);
        if recent(session.nudged) || session.ready && recent(session.heard) {
            return;
        }
        session.nudged = Some(now);
        let Some(number) = number else { return };
        self.wake(number, outbox, now);
        self.initiate(number, outbox, now);
    }
}
