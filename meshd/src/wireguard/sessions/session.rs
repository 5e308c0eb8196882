//! One tunnel to one lane of a peer.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::TunnelKey;

use crate::wireguard::endpoint_race::Path;
use crate::wireguard::peers::TunnelPeer;
use crate::wireguard::timing::{FIRST_BACKOFF, MOMENT, PATIENCE, SILENCE, WANTED};
use crate::wireguard::tunnel::Tunnel;

/// Pause between two round trips while they are measured quickly, and after that.
const QUICK_PROBE: Duration = Duration::from_secs(1);
const PROBE: Duration = Duration::from_secs(5);
/// A peer without traffic for this long is not probed.
const PROBED: Duration = Duration::from_secs(30);

/// One tunnel and what is known about it.
pub(super) struct Session {
    pub(super) tunnel: Tunnel,
    pub(super) key: TunnelKey,
    /// Our own key, of the door that it was made at.
    pub(super) own: TunnelKey,
    /// The number of its preshared key; 0 for none.
    pub(super) preshared: u64,
    /// Whether that was at some time not the preshared key that tunnels to this peer are to have; and when it goes
    /// because of that.
    pub(super) stale: bool,
    pub(super) retires: Option<Timestamp>,
    /// How many of the two keys are present ones, not former ones.
    pub(super) fresh: u8,
    pub(super) peer: Arc<TunnelPeer>,
    pub(super) peer_lane: usize,
    pub(super) path: Path,
    pub(super) ticking: bool,
    /// Whether a packet would be sealed at once.
    pub(super) ready: bool,
    /// Whether we initiated and heard nothing since.
    pub(super) initiated: bool,
    /// When the last initiation was made, and how often it was repeated ahead of WireGuard's own timer.
    pub(super) initiated_at: Option<Timestamp>,
    /// Whether the peer took an initiation of this tunnel, and takes all later ones.
    pub(super) is_taken: bool,
    /// How often we had to have ourselves called.
    pub(super) summoned: u8,
    pub(super) repeated: usize,
    pub(super) expired: bool,
    /// When to start again after giving up, and how long to wait the next time.
    pub(super) retry: Option<Timestamp>,
    pub(super) backoff: Duration,
    /// Since when we send without hearing anything.
    pub(super) unanswered: Option<Timestamp>,
    pub(super) heard: Option<Timestamp>,
    /// When the first packet came along since something was heard of the peer, by any tunnel and lane as far as that is
    /// known. Answers and probes of our own are none: two idle nodes would ask each other for ever.
    pub(super) asked: Option<Timestamp>,
    /// When a data message for an unknown session last made us initiate.
    pub(super) nudged: Option<Timestamp>,
    /// When a packet for the peer last came along.
    pub(super) wanted: Option<Timestamp>,
    /// When a packet last left by it.
    pub(super) carried: Option<Timestamp>,
    pub(super) waiting: u64,
    /// Since when packets wait.
    pub(super) held: Option<Timestamp>,
    pub(super) probe_due: Option<Timestamp>,
    pub(super) quick_probes: u8,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
    pub(super) active: Option<Timestamp>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?} lane {}, ready {})", self.peer.id, self.peer_lane, self.ready)
    }
}

impl Session {
    pub(super) fn new(
        tunnel: Tunnel,
        (own, key): (TunnelKey, TunnelKey),
        peer: Arc<TunnelPeer>,
        peer_lane: usize,
    ) -> Self {
        Self {
            tunnel,
            key,
            own,
            preshared: 0,
            stale: false,
            retires: None,
            fresh: 0,
            peer,
            peer_lane,
            path: Path::default(),
            ticking: false,
            ready: false,
            initiated: false,
            initiated_at: None,
            is_taken: false,
            summoned: 0,
            repeated: 0,
            expired: false,
            retry: None,
            backoff: FIRST_BACKOFF,
            unanswered: None,
            heard: None,
            asked: None,
            nudged: None,
            wanted: None,
            carried: None,
            waiting: 0,
            held: None,
            probe_due: None,
            quick_probes: 0,
            rx_bytes: 0,
            tx_bytes: 0,
            active: None,
        }
    }

    /// Takes note of which of its keys are present ones; `own` is our present key.
    pub(super) fn set_fresh(&mut self, own: TunnelKey) {
        let theirs = self.peer.lanes.get(self.peer_lane).is_some_and(|lane| lane.key == self.key);
        self.fresh = u8::from(theirs) + u8::from(self.own == own);
    }

    /// Says whether the peer is to call, instead of us: twice of three times, for it may have restarted as well, or its
    /// clock may be as wrong as ours.
    pub(super) fn is_next_call_made(&mut self) -> bool {
        self.summoned = (self.summoned + 1) % 3;
        self.summoned != 0
    }

    /// Returns which of several that hear the peer is the one to use: the greatest.
    pub(super) fn rank(&self) -> u8 {
        self.fresh + if self.stale { 0 } else { 3 }
    }

    /// Says whether who asks the peer whether it is there calls it, and no timer does: it does not answer, and nobody wanted
    /// it of late. Each call in vain would otherwise be repeated for 90 s, for ever.
    pub(super) fn is_left_to_ask(&self, now: Timestamp) -> bool {
        let cell = &self.peer.cell;
        let wanted = self.wanted.is_some_and(|at| now.since(at) < WANTED) || cell.wanted_within(WANTED, now);
        cell.is_watched() && !wanted
    }

    /// Says whether its round trip is to be measured now, which is taken to be done.
    pub(super) fn takes_probe(&mut self, now: Timestamp) -> bool {
        if self.probe_due.is_some_and(|due| due > now) {
            return false;
        }
        if self.quick_probes > 0 {
            self.quick_probes -= 1;
            self.probe_due = Some(now + QUICK_PROBE);
        } else if self.peer.cell.active_within(PROBED, now) {
            self.probe_due = Some(now + PROBE);
        } else {
            return false;
        }
        true
    }

    /// Says whether its session hears the peer.
    pub(super) fn hears(&self, now: Timestamp) -> bool {
        self.ready && self.unanswered.is_none_or(|since| now.since(since) < SILENCE)
    }

    /// Says whether it leads to where a peer, as a map describes it, does not say to be.
    pub(super) fn is_elsewhere(&self, peer: &TunnelPeer) -> bool {
        let candidates = || peer.candidates(self.peer_lane, None);
        self.path.endpoint().is_some_and(|endpoint| !candidates().contains(&endpoint.remote))
    }

    /// Takes note that one more packet waits in the tunnel.
    pub(super) fn hold_packet(&mut self, now: Timestamp) {
        self.held.get_or_insert(now);
        self.waiting += 1;
    }

    /// Says whether packets are on their way by it, or wait in it, that newer ones must not overtake.
    pub(super) fn busy(&self, now: Timestamp) -> bool {
        let within = |at: Option<Timestamp>, span| at.is_some_and(|at| now.since(at) < span);
        self.hears(now) && within(self.carried, MOMENT) || self.waiting > 0 && within(self.held, PATIENCE)
    }
}
