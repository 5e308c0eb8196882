//! Tunnels of a peer that begins or ceases to use a preshared key: the open one carries everything until one that fits
//! hears the peer, and goes a little later, because what is on its way by it is still to arrive.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;

use super::Sessions;
use crate::io::udp_outbox::Outbox;
use crate::wireguard::peers::Peers;
use crate::wireguard::sessions::outcome::{Sealed, Traffic};

/// How long an open tunnel stays that does not fit, at most: less than WireGuard keeps a session (180 s).
const STALE: Duration = Duration::from_secs(170);
/// How long it stays once another hears the peer.
const REPLACED: Duration = Duration::from_secs(5);

impl Sessions {
    /// Puts the peers of another map in force; tunnels to keys that are gone are closed.
    pub(crate) fn set_peers(&mut self, peers: Arc<Peers>) {
        self.peers = peers;
        self.limiter.retain_peers(|id| self.peers.get(id).is_some());
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
            return Sealed::Dropped(mesh_proto::dataplane::verdict::Drop::NoTunnel);
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
}
