//! One tunnel between two agreement keys: its handshake, and the exchange that it carries.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::TunnelKey;
use mesh_proto::dataplane::liveness::WAIT;

use crate::io::udp_outbox::{Endpoint, Outbox};
use crate::psk::{Exchange, KemKeypair, MAX_PACKET, PresharedKey, Progress, PskFrame};
use crate::wireguard::endpoint_race::Path;
use crate::wireguard::peers::{TunnelPeer, TunnelPeers};
use crate::wireguard::timing::REPEATS;
use crate::wireguard::tunnel::{HandshakeResponder, INITIATION, Made, Opened, Tunnel};

/// Pause between two initiations once the quick ones are over.
const PAUSE: Duration = Duration::from_secs(5);
/// Initiations before it is given up: without an answer, some 90 s.
const INITIATIONS: usize = 21;
/// How long it stays once the key is there, to answer what is repeated; and how long one that came to nothing.
const LINGER: Duration = Duration::from_secs(10);
/// How long a proposal of the peer's that comes to nothing holds up our own.
const STALLED: Duration = Duration::from_secs(4);

/// Pause before it is tried again to propose a key.
const BLOCKED: Duration = Duration::from_millis(500);

/// A tunnel that carries nothing but an agreement.
pub(super) struct PskExchange {
    pub(super) peer: Arc<TunnelPeer>,
    /// Our agreement key, and the peer's.
    pub(super) keys: (TunnelKey, TunnelKey),
    tunnel: Tunnel,
    pub(super) path: Path,
    pub(super) exchange: Exchange,
    /// Whether our offers go before the peer's.
    goes_first: bool,
    /// Whether there is a session.
    ready: bool,
    /// Whether a key is wanted on this side.
    pub(super) wants: bool,
    /// Whether an initiation of the peer's was answered that nothing has shown yet to be sent by the peer.
    pub(super) unproven: bool,
    /// Initiations so far, when the last was made, and when the next is due.
    initiations: usize,
    called: Option<Timestamp>,
    due: Option<Timestamp>,
    /// When anything of the peer's was last heard, or it began.
    heard: Timestamp,
    /// When to try again to propose a key, which something in another tunnel to the same peer forbids.
    blocked: Option<Timestamp>,
    /// When it is to be looked at, as the queue has it.
    pub(super) queued: Option<Timestamp>,
}

/// What became of a datagram.
pub(super) enum PskOutcome {
    /// It was genuine, and this came of it.
    Heard(Progress),
    /// It was taken in, but does not show who sent it: a cookie.
    Unproven,
    /// It was not.
    Nothing,
}

impl std::fmt::Debug for PskExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Talk({:?}, ready {}, wants {})", self.peer.id, self.ready, self.wants)
    }
}

impl PskExchange {
    /// Makes the tunnel of that number; `None` if the peer's key is no good.
    pub(super) fn new(
        door: &HandshakeResponder,
        key: TunnelKey,
        number: u32,
        peer: &Arc<TunnelPeer>,
        peers: &TunnelPeers,
        now: Timestamp,
    ) -> Option<Self> {
        let keys = (door.key(), key);
        let pair = KemKeypair { own: (peers.own().0, keys.0), peer: (peer.id, key) };
        Some(Self {
            peer: Arc::clone(peer),
            keys,
            tunnel: door.tunnel(key, number, None)?,
            path: Path::default(),
            goes_first: Exchange::goes_first(&pair),
            exchange: Exchange::new(pair),
            ready: false,
            wants: false,
            unproven: false,
            initiations: 0,
            called: None,
            due: None,
            heard: now,
            blocked: None,
            queued: None,
        })
    }

    /// A key is wanted from now on.
    pub(super) fn want(&mut self, now: Timestamp) {
        self.wants = true;
        if !self.ready {
            self.due.get_or_insert(now);
        }
    }

    /// Has it call now if it called in vain and only waits to call again. Says whether it does.
    pub(super) fn hurry(&mut self, now: Timestamp) -> bool {
        let in_vain = |at: Timestamp| now.since(at) >= WAIT;
        let waits = self.wants && !self.ready && self.due.is_some_and(|due| due > now);
        let hurries = waits && self.called.is_some_and(in_vain) && in_vain(self.heard);
        if hurries {
            self.due = Some(now);
        }
        hurries
    }

    /// Says whether it called a moment ago.
    pub(super) fn has_called(&self, now: Timestamp) -> bool {
        self.called.is_some_and(|at| now.since(at) < PAUSE)
    }

    /// Leaves it at the calls that were made, unless one was answered; it goes soon if none is.
    pub(super) fn call_no_more(&mut self) {
        if !self.ready {
            (self.wants, self.due) = (false, None);
        }
    }

    /// There is a key. Says whether it was wanted here.
    pub(super) fn have_key(&mut self, now: Timestamp) -> bool {
        (self.due, self.blocked, self.heard) = (None, None, now);
        std::mem::take(&mut self.wants)
    }

    /// Offers an initiation, if it is time, to where `also` says and to the peer's addresses. Says whether it did.
    pub(super) fn initiate(&mut self, also: Option<Endpoint>, now: Timestamp) -> bool {
        let mut initiation = [0; INITIATION];
        if self.due.is_none_or(|due| due > now) || !self.tunnel.initiate(&mut initiation) {
            return false;
        }
        let pause = REPEATS.get(self.initiations).copied().unwrap_or(PAUSE);
        self.initiations += 1;
        self.called = Some(now);
        self.due = Some(now + pause);
        let mut candidates = self.peer.candidates(0, self.peer.cell.endpoint());
        if let Some(also) = also.map(|also| also.remote).filter(|also| !candidates.contains(also)) {
            candidates.insert(0, also);
        }
        self.path.offer(&initiation, &candidates, now)
    }

    /// Takes an initiation or a response. What is to be answered is sent at once.
    pub(super) fn handshake(
        &mut self,
        from: Endpoint,
        datagram: &[u8],
        outbox: &mut Outbox,
        now: Timestamp,
    ) -> PskOutcome {
        match self.tunnel.handshake(from.remote.ip(), datagram, outbox.space()) {
            Ok(Made::Message(len)) => outbox.commit(len, from),
            Ok(Made::Nothing | Made::Initiation | Made::Expired) => return PskOutcome::Unproven,
            Err(_) => return PskOutcome::Nothing,
        }
        self.heard = now;
        PskOutcome::Heard(Progress::None)
    }

    /// The peer answered, so that it is where this came from.
    pub(super) fn found(&mut self, from: Endpoint, now: Timestamp) {
        if self.path.heard_from(from).is_some() {
            self.peer.cell.set_endpoint(from.remote);
        }
        self.ready = self.tunnel.has_session();
        if self.ready {
            self.due = None;
        }
        self.heard = now;
    }

    /// Takes a data message; `elsewhere` says whether an offer of ours is under way in another tunnel to the peer.
    pub(super) fn open(
        &mut self,
        source: IpAddr,
        datagram: &[u8],
        into: &mut [u8],
        elsewhere: bool,
        now: Timestamp,
    ) -> PskOutcome {
        match self.tunnel.open(source, datagram, into) {
            Opened::Packet(packet) => match PskFrame::read(packet) {
                Some(frame) if elsewhere && frame.is_offer() && self.goes_first => PskOutcome::Heard(Progress::None),
                Some(frame) => PskOutcome::Heard(self.exchange.handle(&frame, now)),
                // Whatever else it carries, nobody here wants it.
                None => PskOutcome::Nothing,
            },
            Opened::Keepalive => PskOutcome::Heard(Progress::None),
            Opened::NotIpv4 | Opened::Malformed | Opened::Unauthenticated | Opened::UnknownSession => {
                PskOutcome::Nothing
            }
        }
    }

    /// Proposes a key under this number if one is wanted and nothing is under way `elsewhere`, and sends what the exchange
    /// has to say. The outbox must have room for some frames.
    pub(super) fn speak(&mut self, id: u64, elsewhere: bool, peers: &TunnelPeers, outbox: &mut Outbox, now: Timestamp) {
        let Some(endpoint) = self.path.endpoint().filter(|_| self.ready) else { return };
        self.blocked = Some(now + BLOCKED).filter(|_| self.wants && elsewhere);
        if self.wants && !elsewhere {
            self.exchange.propose(id, now);
        }
        let (Some(own), Some(peer)) = (peers.own().1, self.peer.address) else { return };
        let mut packet = [0; MAX_PACKET];
        while let Some(frame) = self.exchange.next_frame() {
            let length = frame.write(own, peer, &mut packet);
            if let Some(Made::Message(len)) = self.tunnel.seal(&packet[..length], outbox.space()) {
                outbox.commit(len, endpoint);
            }
        }
    }

    /// Repeats what is due.
    pub(super) fn handle_timeout(&mut self, now: Timestamp) -> Progress {
        if !self.ready {
            return Progress::None;
        }
        let progress = self.exchange.handle_timeout(now);
        if progress == Progress::Unanswered {
            // The peer lost this session, most likely by a restart.
            self.ready = false;
            self.due = self.wants.then_some(now);
        }
        progress
    }

    /// Returns when it has something to do. It always ends at some time.
    pub(super) fn poll_timeout(&self) -> Timestamp {
        let end = self.heard + if self.wants { STALLED } else { LINGER };
        let exchange = self.exchange.poll_timeout().filter(|_| self.ready);
        // One that is wanted and ready proposes as soon as the peer's own proposal came to nothing.
        let waits = if self.wants && (self.due.is_some() || exchange.is_some()) { None } else { Some(end) };
        let dues = self.path.poll_timeout().into_iter().chain(self.due).chain(self.blocked).chain(exchange);
        dues.chain(waits).min().unwrap_or(end)
    }

    /// Says whether it is over: the key is there and nothing is repeated any more, or nobody answers.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        let idle = now.since(self.heard) >= LINGER && !(self.wants && (self.due.is_some() || self.ready));
        idle && !self.exchange.is_proposing() || self.initiations >= INITIATIONS
    }
}

/// The preshared key that a call brought, if it did.
pub(super) fn agreed(progress: Progress) -> Option<PresharedKey> {
    match progress {
        Progress::Agreed(key) => Some(key),
        Progress::None | Progress::Answered | Progress::Unanswered => None,
    }
}
