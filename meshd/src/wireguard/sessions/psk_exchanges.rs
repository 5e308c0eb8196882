//! Lane 0's agreements on preshared keys, and the packets that wait for them.
//!
//! ```text
//!   a packet for a peer without a key ─▶ held ─┐
//!   an initiation that asks for a lost key ────┼─▶ Talk ─▶ key ─▶ vault ─▶ tunnels of older keys go, what is held leaves
//!   a handshake that does not open ────────────┘    ▲
//!                                     the peer's own call at our agreement key
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::{NodeId, TunnelKey};
use mesh_proto::dataplane::verdict::Drop;

use super::Sessions;
use super::psk_exchange::{Talk, Told, agreed};
use crate::base::entropy::random;
use crate::io::udp_outbox::{Endpoint, Outbox};
use crate::keys::lanes::LaneKey;
use crate::psk::{Preshared, Progress};
use crate::wireguard::peers::Peer;
use crate::wireguard::sessions::outcome::{Received, Sealed, Way};
use crate::wireguard::tunnel::{Door, FIRST_AGREEMENT, MAX_WAITING};

/// Most agreements at the same time; for others packets wait until there is a place.
const MAX_TALKS: usize = 1024;
/// How long after an agreement a handshake that does not open is no sign of another key: it may be an older one's.
const TRUST: Duration = Duration::from_secs(2);
/// Bytes of outbox that one talk may need: a few frames.
const TALK_ROOM: usize = 16 << 10;
/// Pause before a talk goes on that found no room, and between two looks at one.
const AGAIN: Duration = Duration::from_millis(1);

/// The agreements of lane 0.
#[derive(Debug, Default)]
pub(super) struct Talks {
    /// The doors of the agreement key, and of the one before.
    door: Option<Door>,
    former: Option<Door>,
    slab: Vec<Option<Talk>>,
    /// Numbers in the slab that nobody has.
    free: Vec<usize>,
    by_keys: HashMap<(TunnelKey, TunnelKey), usize>,
    /// Those with each peer: while both change their keys, up to four.
    by_peer: HashMap<NodeId, Vec<usize>>,
    /// Which is to be looked at when, so that a turn costs what is due and not what there is.
    queue: BTreeSet<(Timestamp, usize)>,
    /// Whether somebody found no place.
    starved: bool,
    held: HashMap<NodeId, Vec<Vec<u8>>>,
    /// Whether a talk found no room in the outbox.
    crowded: Option<Timestamp>,
}

impl Talks {
    pub(super) fn new(keys: &LaneKey) -> Self {
        let mut talks = Self::default();
        talks.set_keys(keys);
        talks
    }

    pub(super) fn set_keys(&mut self, keys: &LaneKey) {
        self.door = keys.agreement.as_ref().map(Door::new);
        self.former = keys.former_agreement.as_ref().map(Door::new);
    }

    /// Returns the doors, the present one first.
    pub(super) fn doors(&self) -> impl Iterator<Item = &Door> {
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

    fn find(&self, peer: NodeId, keys: (TunnelKey, TunnelKey)) -> Option<usize> {
        let at = *self.by_keys.get(&keys)?;
        self.slab[at].as_ref().is_some_and(|talk| talk.peer.id == peer).then_some(at)
    }

    /// Returns the number that the next talk gets; `None` if there are too many.
    fn place(&mut self) -> Option<usize> {
        let place = self.free.last().copied().unwrap_or(self.slab.len());
        self.starved |= place >= MAX_TALKS;
        (place < MAX_TALKS).then_some(place)
    }

    fn begin(&mut self, at: usize, talk: Talk) {
        self.by_keys.insert(talk.keys, at);
        self.by_peer.entry(talk.peer.id).or_default().push(at);
        match self.slab.get_mut(at) {
            Some(place) => *place = Some(talk),
            None => self.slab.push(Some(talk)),
        }
        self.free.pop_if(|free| *free == at);
    }

    fn end(&mut self, at: usize) {
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

    /// Takes note of when a talk is to be looked at next, and that not at once again.
    fn queue(&mut self, at: usize, now: Timestamp) {
        let Some(talk) = self.slab.get_mut(at).and_then(Option::as_mut) else { return };
        let due = talk.poll_timeout().max(now + AGAIN);
        if let Some(before) = talk.queued.replace(due) {
            self.queue.remove(&(before, at));
        }
        self.queue.insert((due, at));
    }

    /// Returns the other talks with the same peer.
    fn others(&self, at: usize) -> impl Iterator<Item = &Talk> {
        let peer = self.slab.get(at).and_then(Option::as_ref).map(|talk| talk.peer.id);
        let all = peer.and_then(|peer| self.by_peer.get(&peer)).into_iter().flatten();
        all.filter(move |&&other| other != at).filter_map(|&other| self.slab[other].as_ref())
    }

    /// Tells the other talks with the same peer what came of one of them: of all offers at most one goes on, and of two
    /// keys both nodes take the newer.
    fn tell_others(&mut self, at: usize, progress: &Progress, now: Timestamp) -> bool {
        let peer = self.slab.get(at).and_then(Option::as_ref).map(|talk| talk.peer.id);
        let all = peer.and_then(|peer| self.by_peer.get(&peer)).cloned().unwrap_or_default();
        let mut wanted = false;
        for other in all.into_iter().filter(|&other| other != at) {
            let Some(talk) = self.slab[other].as_mut() else { continue };
            match progress {
                Progress::Answered => talk.exchange.withdraw(),
                Progress::Agreed(_) => {
                    talk.exchange.supersede();
                    wanted |= talk.settle(now);
                }
                Progress::None | Progress::Unanswered => {}
            }
            self.queue(other, now);
        }
        wanted
    }

    /// Returns the talks of which something holds.
    fn which(&self, holds: impl Fn(&Talk) -> bool) -> Vec<usize> {
        let which = |(at, talk): (usize, &Option<Talk>)| talk.as_ref().is_some_and(&holds).then_some(at);
        self.slab.iter().enumerate().filter_map(which).collect()
    }
}

impl Sessions {
    /// Returns the preshared key of a peer's tunnels and its number; `Some(None)` for one that has none and needs none,
    /// `None` for one that needs one.
    #[expect(clippy::option_option, reason = "no key, and none wanted, are two things")]
    pub(super) fn preshared(&self, peer: &Peer) -> Option<Option<(u64, Preshared)>> {
        if peer.is_plain() || peer.is_plain_meanwhile() {
            return Some(None);
        }
        if peer.cell.preshared() == 0 {
            return None;
        }
        self.peers.vault()?.get(peer.id).map(Some)
    }

    /// Says what is the way to a peer that has no tunnel: none but for one whose key is still to be made.
    pub(super) fn keyless(&self, id: NodeId, now: Timestamp) -> Way {
        let Some(peer) = self.peers.get(id).filter(|peer| peer.lacks_key()) else {
            return Way::None;
        };
        match self.lane {
            0 => Way::Keyless(id),
            _ if peer.cell.is_full(now) => Way::None,
            _ => Way::Elsewhere,
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
        held.push(packet.to_vec());
        peer.cell.set_holds(now, true);
        self.agree(id, None, outbox, now);
        Sealed::Done
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
        let doubted = |peer: &&Arc<Peer>| !peer.is_plain() && !peer.cell.agreed_within(TRUST, now);
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
        let own = former.or(self.talks.door.as_ref()).map(Door::key);
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
        let talk = Talk::new(door, keys.1, FIRST_AGREEMENT + at as u32, peer, &self.peers, now)?;
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
    ) -> Received<'a> {
        let is_new = self.talks.find(id, keys).is_none();
        let Some(at) = self.talk_between(keys, id, now) else { return Received::Dropped(Drop::NoTunnel) };
        let Some(talk) = self.talks.slab[at].as_mut() else { return Received::Dropped(Drop::NoTunnel) };
        let told = talk.handshake(from, datagram, outbox, now);
        let genuine = matches!(told, Told::Heard(_));
        talk.unproven |= genuine;
        if is_new && !genuine {
            // Whose key an initiation names costs nothing to claim.
            self.talks.end(at);
        } else {
            self.talks.queue(at, now);
        }
        match told {
            Told::Heard(_) => {
                // What the peer says next shows that it is there, and costs it what this did: a talk is soon forgotten,
                // and with it which initiations were seen, so that anybody may send one again.
                Received::Handled
            }
            Told::Unproven => Received::Handled,
            Told::Nothing => Received::Dropped(Drop::Unauthenticated),
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
    ) -> Received<'a> {
        let Some((at, talk)) = self.talk_of(number) else { return Received::Dropped(Drop::UnknownSession) };
        match talk.handshake(from, datagram, outbox, now) {
            Told::Heard(_) => {
                talk.found(from, now);
                self.tend_talk(at, outbox, now);
                Received::Handled
            }
            Told::Unproven => Received::Handled,
            Told::Nothing => Received::Dropped(Drop::Unauthenticated),
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
    ) -> Received<'a> {
        let Some((at, _)) = self.talk_of(number) else {
            self.nudge(from, outbox, now);
            return Received::Dropped(Drop::UnknownSession);
        };
        let elsewhere = self.talks.others(at).any(|talk| talk.exchange.is_offering());
        let Some(talk) = self.talks.slab[at].as_mut() else { return Received::Dropped(Drop::UnknownSession) };
        match talk.open(from.remote.ip(), datagram, into, elsewhere, now) {
            Told::Heard(progress) => {
                talk.found(from, now);
                let initiated = std::mem::take(&mut talk.unproven);
                let peer = Arc::clone(&talk.peer);
                let mut wanted = matches!(progress, Progress::Agreed(_)) && talk.settle(now);
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
                Received::Handled
            }
            Told::Unproven => Received::Handled,
            Told::Nothing => Received::Dropped(Drop::Unauthenticated),
        }
    }

    fn talk_of(&mut self, number: u32) -> Option<(usize, &mut Talk)> {
        let at = number.checked_sub(FIRST_AGREEMENT)? as usize;
        Some((at, self.talks.slab.get_mut(at)?.as_mut()?))
    }

    /// Two nodes have a new key: it is kept, tunnels of an older one go, and what waited for it leaves.
    fn take_key(&mut self, peer: &Peer, key: Preshared, wanted: bool, outbox: &mut Outbox, now: Timestamp) {
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
        let own: Vec<TunnelKey> = self.talks.doors().map(Door::key).collect();
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
