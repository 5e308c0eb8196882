//! Lane 0's agreements on preshared keys, and the packets that wait for them.
//!
//! ```text
//!   a packet for a peer without a key ─▶ held ─┐
//!   an initiation that asks for a lost key ────┼─▶ Talk ─▶ key ─▶ vault ─▶ tunnels of older keys go, what is held leaves
//!   a handshake that does not open ────────────┘    ▲
//!                                     the peer's own call at our agreement key
//! ```

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::{NodeId, TunnelKey};

use super::psk_exchange::PskExchange;
use crate::keys::lanes::LaneKey;
use crate::psk::Progress;
use crate::wireguard::tunnel::HandshakeResponder;

/// Most agreements at the same time; for others packets wait until there is a place.
const MAX_TALKS: usize = 1024;
/// Bytes of outbox that one talk may need: a few frames.
pub(super) const TALK_ROOM: usize = 16 << 10;
/// Pause before a talk goes on that found no room, and between two looks at one.
pub(super) const AGAIN: Duration = Duration::from_millis(1);

/// The agreements of lane 0.
#[derive(Debug, Default)]
pub(super) struct PskExchanges {
    /// The doors of the agreement key, and of the one before.
    pub(super) door: Option<HandshakeResponder>,
    pub(super) former: Option<HandshakeResponder>,
    pub(super) slab: Vec<Option<PskExchange>>,
    /// Numbers in the slab that nobody has.
    pub(super) free: Vec<usize>,
    pub(super) by_keys: HashMap<(TunnelKey, TunnelKey), usize>,
    /// Those with each peer: while both change their keys, up to four.
    pub(super) by_peer: HashMap<NodeId, Vec<usize>>,
    /// Which is to be looked at when, so that a turn costs what is due and not what there is.
    pub(super) queue: BTreeSet<(Timestamp, usize)>,
    /// Whether somebody found no place.
    pub(super) starved: bool,
    pub(super) held: HashMap<NodeId, Vec<Vec<u8>>>,
    /// Whether a talk found no room in the outbox.
    pub(super) crowded: Option<Timestamp>,
}

impl PskExchanges {
    pub(super) fn new(keys: &LaneKey) -> Self {
        let mut talks = Self::default();
        talks.set_keys(keys);
        talks
    }

    pub(super) fn set_keys(&mut self, keys: &LaneKey) {
        self.door = keys.agreement.as_ref().map(HandshakeResponder::new);
        self.former = keys.former_agreement.as_ref().map(HandshakeResponder::new);
    }

    /// Returns the doors, the present one first.
    pub(super) fn doors(&self) -> impl Iterator<Item = &HandshakeResponder> {
        self.door.iter().chain(&self.former)
    }

    /// Takes out what waits for a peer.
    pub(super) fn take_held(&mut self, peer: NodeId) -> Vec<Vec<u8>> {
        self.held.remove(&peer).unwrap_or_default()
    }

    /// Returns when `tend_talks` has something to do; `None` if nothing will be due.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.crowded.or_else(|| self.queue.first().map(|&(due, _)| due))
    }

    pub(super) fn find(&self, peer: NodeId, keys: (TunnelKey, TunnelKey)) -> Option<usize> {
        let at = *self.by_keys.get(&keys)?;
        self.slab[at].as_ref().is_some_and(|talk| talk.peer.id == peer).then_some(at)
    }

    /// Returns the number that the next talk gets; `None` if there are too many.
    pub(super) fn place(&mut self) -> Option<usize> {
        let place = self.free.last().copied().unwrap_or(self.slab.len());
        self.starved |= place >= MAX_TALKS;
        (place < MAX_TALKS).then_some(place)
    }

    pub(super) fn begin(&mut self, at: usize, talk: PskExchange) {
        self.by_keys.insert(talk.keys, at);
        self.by_peer.entry(talk.peer.id).or_default().push(at);
        match self.slab.get_mut(at) {
            Some(place) => *place = Some(talk),
            None => self.slab.push(Some(talk)),
        }
        self.free.pop_if(|free| *free == at);
    }

    pub(super) fn end(&mut self, at: usize) {
        let Some(talk) = self.slab.get_mut(at).and_then(Option::take) else { return };
        self.by_keys.remove(&talk.keys);
        if let Some(all) = self.by_peer.get_mut(&talk.peer.id) {
            all.retain(|&other| other != at);
            if all.is_empty() {
                self.by_peer.remove(&talk.peer.id);
            }
        }
        talk.queued.map(|due| self.queue.remove(&(due, at)));
        self.free.push(at);
        if self.free.len() == self.slab.len() {
            (self.slab, self.free) = (Vec::new(), Vec::new());
        }
    }

    /// Says whether at least half of all places are free.
    pub(super) fn has_plenty_of_room(&self) -> bool {
        self.slab.len() - self.free.len() < MAX_TALKS / 2
    }

    /// Says whether a key with a peer is wanted already.
    pub(super) fn wants_key(&self, peer: NodeId) -> bool {
        self.with(peer).any(|talk| talk.wants)
    }

    /// Says whether a peer is being called for a key, or was a moment ago.
    pub(super) fn has_called(&self, peer: NodeId, now: Timestamp) -> bool {
        self.with(peer).any(|talk| talk.wants || talk.has_called(now))
    }

    /// Leaves calls to a peer at those that were made.
    pub(super) fn call_no_more(&mut self, peer: NodeId, now: Timestamp) {
        for at in self.by_peer.get(&peer).cloned().unwrap_or_default() {
            self.slab[at].as_mut().into_iter().for_each(PskExchange::call_no_more);
            self.queue(at, now);
        }
    }

    fn with(&self, peer: NodeId) -> impl Iterator<Item = &PskExchange> {
        self.by_peer.get(&peer).into_iter().flatten().filter_map(|&at| self.slab[at].as_ref())
    }

    /// Takes note of when a talk is to be looked at next, and that not at once again.
    pub(super) fn queue(&mut self, at: usize, now: Timestamp) {
        let Some(talk) = self.slab.get_mut(at).and_then(Option::as_mut) else { return };
        let due = talk.poll_timeout().max(now + AGAIN);
        if let Some(before) = talk.queued.replace(due) {
            self.queue.remove(&(before, at));
        }
        self.queue.insert((due, at));
    }

    /// Returns the other talks with the same peer.
    pub(super) fn others(&self, at: usize) -> impl Iterator<Item = &PskExchange> {
        let peer = self.slab.get(at).and_then(Option::as_ref).map(|talk| talk.peer.id);
        let all = peer.and_then(|peer| self.by_peer.get(&peer)).into_iter().flatten();
        all.filter(move |&&other| other != at).filter_map(|&other| self.slab[other].as_ref())
    }

    /// Tells the other talks with the same peer what came of one of them: of all offers at most one goes on, and of two
    /// keys both nodes take the newer.
    pub(super) fn tell_others(&mut self, at: usize, progress: &Progress, now: Timestamp) -> bool {
        let peer = self.slab.get(at).and_then(Option::as_ref).map(|talk| talk.peer.id);
        let all = peer.and_then(|peer| self.by_peer.get(&peer)).cloned().unwrap_or_default();
        let mut wanted = false;
        for other in all.into_iter().filter(|&other| other != at) {
            let Some(talk) = self.slab[other].as_mut() else { continue };
            match progress {
                Progress::Answered => talk.exchange.withdraw(),
                Progress::Agreed(_) => {
                    talk.exchange.supersede();
                    wanted |= talk.have_key(now);
                }
                Progress::None | Progress::Unanswered => {}
            }
            self.queue(other, now);
        }
        wanted
    }

    /// Returns the talks of which something holds.
    pub(super) fn which(&self, holds: impl Fn(&PskExchange) -> bool) -> Vec<usize> {
        let which = |(at, talk): (usize, &Option<PskExchange>)| talk.as_ref().is_some_and(&holds).then_some(at);
        self.slab.iter().enumerate().filter_map(which).collect()
    }
}
