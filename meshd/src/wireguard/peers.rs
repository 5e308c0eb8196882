//! The peers of a NetMap as the lanes look them up: by number, by key, by address. Made once per map and
//! shared by all lanes; what the lanes learn about a peer lives in its `Cell` and outlasts the map.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_proto::base::addr::Flat;
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::{NodeId, TunnelKey};
use mesh_proto::base::wall_clock::{BootDate, ClockWord};
use mesh_proto::model::netmap::{LaneInfo, NetMap};
use mesh_proto::trust::audit_log::LogPosition;

use crate::io::counters::PeerStats;
use crate::keys::lanes::{MAX_AGREEMENT, MAX_LANES};
use crate::keys::psk_policy::PskMode;
use crate::keys::psk_store::PskStore;
use crate::wireguard::seqlock::Seqlock;
use crate::wireguard::timing::{MOMENT, PATIENCE};

/// Most nodes that are remembered for one address; a NAT hides no more from a lost session's repair.
const MAX_BEHIND: usize = 8;
/// How long a lane believes that lane 0 has no room for a peer's packets.
const FULL: Duration = Duration::from_millis(50);

/// The peers of one NetMap.
#[derive(Debug, Default)]
pub(crate) struct TunnelPeers {
    by_id: HashMap<NodeId, Arc<TunnelPeer>>,
    by_key: HashMap<TunnelKey, (NodeId, usize)>,
    by_agreement: HashMap<TunnelKey, NodeId>,
    by_address: HashMap<IpAddr, Vec<NodeId>>,
    /// This node's own number and address.
    own: (NodeId, Option<Flat>),
    /// The preshared keys; none if this node speaks plain WireGuard with everybody.
    vault: Option<Arc<PskStore>>,
    /// Whether this node calls for such by itself.
    calls: bool,
}

/// A peer that a tunnel can be made to.
#[derive(Debug)]
pub(crate) struct TunnelPeer {
    pub(crate) id: NodeId,
    /// Its lanes; never empty.
    pub(crate) lanes: Vec<LaneInfo>,
    /// Its lanes with the keys that it had before, while it changes them.
    pub(crate) former: Vec<LaneInfo>,
    /// Its keys for agreements, the present one first; none if it is spoken to without a preshared key.
    pub(crate) agreement: Vec<TunnelKey>,
    /// Whether it is spoken to without a preshared key for as long as there is none.
    pub(crate) lenient: bool,
    pub(crate) address: Option<Flat>,
    /// Whether it runs meshd, and answers probes inside its tunnels; plain WireGuard answers handshakes alone.
    pub(crate) is_member: bool,
    endpoints: Vec<SocketAddr>,
    pub(crate) cell: Arc<Cell>,
}

impl TunnelPeers {
    /// Takes the peers out of a map, but for those with an unusable key: our own, zero, or another peer's.
    pub(crate) fn compile(
        netmap: &NetMap,
        own: &[TunnelKey],
        previous: Option<&Self>,
        vault: Option<&Arc<PskStore>>,
    ) -> Self {
        let node = &netmap.node;
        let mode = vault.map_or(PskMode::Off, |vault| vault.mode());
        let vault = vault.filter(|_| mode != PskMode::Off).map(Arc::clone);
        let mut peers = Self { own: (node.id, Some(node.address)), vault, calls: mode.calls(), ..Self::default() };
        for (name, peer) in &netmap.peers {
            let lanes: Vec<LaneInfo> = peer.lanes.iter().copied().take(MAX_LANES).collect();
            let is_new = |key: &TunnelKey| {
                let taken = peers.by_key.contains_key(key) || peers.by_agreement.contains_key(key);
                key.0 != [0; 32] && !own.contains(key) && !taken
            };
            let usable = |lane: &LaneInfo| is_new(&lane.key);
            let agreement: Vec<TunnelKey> = peer.agreement.iter().copied().take(MAX_AGREEMENT).collect();
            let lanes_usable = lanes.iter().all(usable) && agreement.iter().all(is_new);
            if lanes.is_empty() || !lanes_usable || peer.id == netmap.node.id {
                tracing::warn!(peer = %name, "its tunnel keys are unusable; it is left out");
                continue;
            }
            let former: Vec<LaneInfo> = peer.previous.iter().copied().take(lanes.len()).collect();
            let former = if former.iter().all(usable) { former } else { Vec::new() };
            let endpoints: Vec<SocketAddr> = peer.endpoints.iter().copied().filter(can_send_to).collect();
            let known = previous.and_then(|p| p.by_id.get(&peer.id));
            let cell = known.map_or_else(Arc::default, |known| Arc::clone(&known.cell));
            let agreement = if peers.vault.is_some() { agreement } else { Vec::new() };
            if let Some(vault) = peers.vault.as_ref().filter(|_| !agreement.is_empty()) {
                cell.set_preshared(vault.number(peer.id));
            }
            let address = Some(peer.address);
            let lenient = mode.is_lenient();
            let is_member = peer.proof.is_some();
            let peer =
                TunnelPeer { id: peer.id, lanes, former, agreement, lenient, address, is_member, endpoints, cell };
            peers.add(known.filter(|known| known.is_like(&peer)).map_or_else(|| Arc::new(peer), Arc::clone));
        }
        peers
    }

    /// Returns this node's own number and address.
    pub(crate) fn own(&self) -> (NodeId, Option<Flat>) {
        self.own
    }

    /// Returns the preshared keys, if this node uses such.
    pub(crate) fn vault(&self) -> Option<&Arc<PskStore>> {
        self.vault.as_ref()
    }

    /// Says whether this node calls for preshared keys by itself.
    pub(crate) fn calls(&self) -> bool {
        self.calls
    }

    fn add(&mut self, peer: Arc<TunnelPeer>) {
        self.by_agreement.extend(peer.agreement.iter().map(|&key| (key, peer.id)));
        self.by_key.extend(peer.former.iter().enumerate().map(|(i, lane)| (lane.key, (peer.id, i))));
        self.by_key.extend(peer.lanes.iter().enumerate().map(|(i, lane)| (lane.key, (peer.id, i))));
        for endpoint in &peer.endpoints {
            let behind = self.by_address.entry(endpoint.ip()).or_default();
            if behind.len() < MAX_BEHIND && !behind.contains(&peer.id) {
                behind.push(peer.id);
            }
        }
        self.by_id.insert(peer.id, peer);
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Arc<TunnelPeer>> {
        self.by_id.get(&id)
    }

    /// Says whose key it is, present or former, and which of its lanes'.
    pub(crate) fn by_key(&self, key: TunnelKey) -> Option<(&Arc<TunnelPeer>, usize)> {
        let &(id, lane) = self.by_key.get(&key)?;
        Some((self.by_id.get(&id)?, lane))
    }

    /// Says whose agreement key it is.
    pub(crate) fn by_agreement(&self, key: TunnelKey) -> Option<&Arc<TunnelPeer>> {
        self.by_id.get(self.by_agreement.get(&key)?)
    }

    /// Says whether a peer is expected at an address, whatever the port.
    pub(crate) fn has_any_at(&self, address: IpAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// Says which peer's lane is expected at an address.
    pub(crate) fn by_address(&self, address: SocketAddr) -> Option<(&Arc<TunnelPeer>, usize)> {
        let behind = self.by_address.get(&address.ip())?;
        let lane_at = |id: &NodeId| {
            let peer = self.by_id.get(id)?;
            let lane = (0..peer.lanes.len()).find(|&lane| peer.candidates(lane, None).contains(&address))?;
            Some((peer, lane))
        };
        behind.iter().find_map(lane_at)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<TunnelPeer>> {
        self.by_id.values()
    }
}

impl TunnelPeer {
    /// Says whether a map tells the same of it.
    fn is_like(&self, other: &Self) -> bool {
        let Self { id, lanes, former, agreement, lenient, address, is_member, endpoints, cell } = self;
        Arc::ptr_eq(cell, &other.cell)
            && (*id, *lenient, *address, *is_member) == (other.id, other.lenient, other.address, other.is_member)
            && (lanes, former, agreement) == (&other.lanes, &other.former, &other.agreement)
            && *endpoints == other.endpoints
    }

    /// Says whether it is spoken to without a preshared key.
    pub(crate) fn is_plain(&self) -> bool {
        self.agreement.is_empty()
    }

    /// Says whether its tunnels have a preshared key.
    pub(crate) fn is_post_quantum(&self) -> bool {
        !self.is_plain() && self.cell.preshared() > 0
    }

    /// Says whether it has no preshared key yet, and is to have one.
    pub(crate) fn lacks_key(&self) -> bool {
        !self.is_plain() && !self.is_post_quantum()
    }

    /// Says whether it is spoken to without a preshared key until there is one.
    pub(crate) fn is_plain_meanwhile(&self) -> bool {
        self.lenient && self.lacks_key()
    }

    /// Says whether its tunnels are to have the preshared key of that number; 0 is none.
    pub(crate) fn admits(&self, preshared: u64) -> bool {
        if self.is_plain() || self.is_plain_meanwhile() {
            preshared == 0
        } else {
            preshared > 0 && preshared == self.cell.preshared()
        }
    }

    /// Says whether a map tells of other endpoints than the one before did.
    pub(crate) fn moved_since(&self, before: &Self) -> bool {
        self.endpoints != before.endpoints
    }

    /// Returns where a lane may be, in the order to be tried: where lane 0 answered last, then what the map says.
    pub(crate) fn candidates(&self, lane: usize, last: Option<SocketAddr>) -> Vec<SocketAddr> {
        let port = self.lanes.get(lane).map(|info| info.port).filter(|_| lane > 0);
        let at_lane = |address: SocketAddr| match port {
            Some(port) => SocketAddr::new(address.ip(), port),
            None => address,
        };
        let mut candidates = Vec::with_capacity(self.endpoints.len() + 1);
        for address in last.into_iter().chain(self.endpoints.iter().copied()).map(at_lane) {
            if !candidates.contains(&address) {
                candidates.push(address);
            }
        }
        candidates
    }
}

fn can_send_to(address: &SocketAddr) -> bool {
    !address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0
}

/// What the lanes learned about a peer. Lanes add to it four times a second, not per packet.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    endpoint: Mutex<Option<SocketAddr>>,
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
    /// Microseconds; 0 is never.
    rtt: AtomicU64,
    /// How often the round trip was measured.
    rtt_count: AtomicU64,
    handshake: AtomicU64,
    active: AtomicU64,
    /// When something genuine came last, and when a packet for it did: microseconds, 0 is never.
    heard_at: AtomicU64,
    wanted: AtomicU64,
    /// Whether lane 0 asks it whether it is there.
    watched: AtomicBool,
    /// Since when packets wait on lane 0, and until when they did: microseconds, 0 is never.
    held: AtomicU64,
    released: AtomicU64,
    /// When lane 0 last had no room for one more to wait, in microseconds.
    full: AtomicU64,
    /// The number of the newest preshared key; 0 is none.
    preshared: AtomicU64,
    /// When it was agreed on, in microseconds.
    agreed: AtomicU64,
    /// What it said last of the log.
    heard: Seqlock,
    /// What its clock said last, and when that was: microseconds, 0 is never. Two lanes may mix two words: they say the
    /// same, but for the time that they were on their way.
    clock: AtomicI64,
    clock_at: AtomicU64,
    /// The largest packet that gets through in the low 16 bits, since when above them in microseconds; 0 while nothing
    /// is known to be swallowed.
    narrow: AtomicU64,
}

impl Cell {
    /// Takes note of a newer preshared key.
    pub(crate) fn set_preshared(&self, number: u64) {
        self.preshared.fetch_max(number, Ordering::Release);
    }

    /// Returns the number of the newest preshared key; 0 if there is none.
    pub(crate) fn preshared(&self) -> u64 {
        self.preshared.load(Ordering::Acquire)
    }

    /// Takes note that a key was agreed on just now.
    pub(crate) fn set_agreed(&self, now: Timestamp) {
        self.agreed.store(now.as_micros().max(1), Ordering::Relaxed);
    }

    /// Says whether a key was agreed on within some time.
    pub(crate) fn agreed_within(&self, span: Duration, now: Timestamp) -> bool {
        let at = self.agreed.load(Ordering::Relaxed);
        at != 0 && now.since(Timestamp::from_micros(at)) <= span
    }

    /// Takes note of where lane 0 answered.
    pub(crate) fn set_endpoint(&self, endpoint: SocketAddr) {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = Some(endpoint);
    }

    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, rx_bytes: u64, tx_bytes: u64) {
        self.rx_bytes.fetch_add(rx_bytes, Ordering::Relaxed);
        self.tx_bytes.fetch_add(tx_bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_rtt(&self, micros: u32) {
        self.rtt.store(u64::from(micros.max(1)), Ordering::Relaxed);
        self.rtt_count.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn set_handshake(&self, now: Timestamp) {
        self.handshake.fetch_max(now.as_micros(), Ordering::Relaxed);
    }

    /// Says whether a lane had a handshake with the peer in the last `span`.
    pub(crate) fn shook_hands_within(&self, span: Duration, now: Timestamp) -> bool {
        let at = self.handshake.load(Ordering::Relaxed);
        at != 0 && now.since(Timestamp::from_micros(at)) <= span
    }

    /// Takes note that something genuine came from it.
    pub(crate) fn note_heard(&self, at: Timestamp) {
        self.heard_at.fetch_max(at.as_micros(), Ordering::Relaxed);
    }

    /// Returns when something genuine came from it last, on any lane; up to a tick late.
    pub(crate) fn heard(&self) -> Option<Timestamp> {
        Some(self.heard_at.load(Ordering::Relaxed)).filter(|&at| at != 0).map(Timestamp::from_micros)
    }

    /// Takes note that a packet for it came along.
    pub(crate) fn note_wanted(&self, at: Timestamp) {
        self.wanted.fetch_max(at.as_micros(), Ordering::Relaxed);
    }

    /// Says whether a packet for it came along in the last `span`, on any lane; up to a tick late.
    pub(crate) fn wanted_within(&self, span: Duration, now: Timestamp) -> bool {
        let at = self.wanted.load(Ordering::Relaxed);
        at != 0 && now.since(Timestamp::from_micros(at)) < span
    }

    /// Says whether lane 0 asks it from now on whether it is there.
    pub(crate) fn set_watched(&self, watched: bool) {
        self.watched.store(watched, Ordering::Relaxed);
    }

    /// Says whether lane 0 asks it whether it is there.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    pub(crate) fn set_active(&self, at: Timestamp) {
        self.active.fetch_max(at.as_micros(), Ordering::Relaxed);
    }

    /// Takes note that packets wait on lane 0 from now on, or no longer.
    pub(crate) fn set_holds(&self, now: Timestamp, holds: bool) {
        let (held, released) = (self.held.load(Ordering::Relaxed), self.released.load(Ordering::Relaxed));
        if holds && held <= released {
            self.held.store(now.as_micros().max(released + 1), Ordering::Release);
        } else if !holds && held > released {
            self.released.store(now.as_micros().max(held), Ordering::Release);
        }
    }

    /// Takes note that what waited on lane 0 is lost.
    pub(crate) fn forget_holds(&self) {
        self.released.store(0, Ordering::Relaxed);
        self.held.store(0, Ordering::Release);
    }

    /// Says whether what was handed to lane 0 at a time may have waited there so long that it is still on its way.
    pub(crate) fn may_hold(&self, handed: Timestamp, now: Timestamp) -> bool {
        let held = self.held.load(Ordering::Acquire);
        if held == 0 || handed + MOMENT < Timestamp::from_micros(held) {
            return false;
        }
        let released = self.released.load(Ordering::Acquire);
        let (since, most) = if released < held { (held, PATIENCE) } else { (released, MOMENT) };
        now.since(Timestamp::from_micros(since)) < most
    }

    /// Takes note of what the peer says of the log.
    pub(crate) fn note_log_position(&self, told: LogPosition) {
        self.heard.put(told);
    }

    /// Returns what the peer said last of the log.
    pub(crate) fn log_position(&self) -> Option<LogPosition> {
        self.heard.get()
    }

    /// Takes note of what its clock says.
    pub(crate) fn note_clock(&self, word: ClockWord) {
        self.clock.store(word.date.micros(), Ordering::Relaxed);
        self.clock_at.store(word.at.as_micros().max(1), Ordering::Release);
    }

    /// Returns what its clock said last.
    pub(crate) fn clock(&self) -> Option<ClockWord> {
        let at = Some(self.clock_at.load(Ordering::Acquire)).filter(|&at| at != 0)?;
        let date = BootDate::from_micros(self.clock.load(Ordering::Relaxed));
        Some(ClockWord { date, at: Timestamp::from_micros(at) })
    }

    /// Takes note of the largest packet that gets through, and since when this is known; none for all that should.
    pub(crate) fn set_narrow(&self, narrow: Option<(u16, Timestamp)>) {
        let word = narrow.map_or(0, |(bytes, since)| since.as_micros() << 16 | u64::from(bytes));
        self.narrow.store(word, Ordering::Relaxed);
    }

    /// Returns the largest packet that gets through, and since when this is known; none while all do.
    pub(crate) fn narrow(&self) -> Option<(u16, Timestamp)> {
        let word = self.narrow.load(Ordering::Relaxed);
        (word != 0).then_some((word as u16, Timestamp::from_micros(word >> 16)))
    }

    /// Takes note that lane 0 has no room for one more packet to wait.
    pub(crate) fn set_full(&self, now: Timestamp) {
        self.full.store(now.as_micros(), Ordering::Relaxed);
    }

    /// Says whether lane 0 had no room a moment ago, so that others need not hand it more, in the way of other peers.
    pub(crate) fn is_full(&self, now: Timestamp) -> bool {
        let at = self.full.load(Ordering::Relaxed);
        at != 0 && now.since(Timestamp::from_micros(at)) < FULL
    }

    /// Says whether a packet was sent to or received from the peer in the last `span`, on any lane.
    pub(crate) fn active_within(&self, span: Duration, now: Timestamp) -> bool {
        let at = self.active.load(Ordering::Relaxed);
        at != 0 && now.since(Timestamp::from_micros(at)) <= span
    }

    /// Returns what is known; `None` before the first handshake and without traffic.
    pub(crate) fn stats(&self, now: Timestamp) -> Option<PeerStats> {
        let micros = |cell: &AtomicU64| Some(cell.load(Ordering::Relaxed)).filter(|&v| v != 0);
        // Before the round trip itself, so that whoever saw the count grow sees the new figure.
        let rtt_count = self.rtt_count.load(Ordering::Acquire);
        let stats = PeerStats {
            endpoint: self.endpoint(),
            rtt_count,
            rtt: micros(&self.rtt).map(Duration::from_micros),
            wanted: micros(&self.wanted).map(|at| now.since(Timestamp::from_micros(at))),
            last_handshake: micros(&self.handshake).map(|at| now.since(Timestamp::from_micros(at))),
            rx_bytes: self.rx_bytes.load(Ordering::Relaxed),
            tx_bytes: self.tx_bytes.load(Ordering::Relaxed),
            narrow: self.narrow().map(|(bytes, since)| (bytes, now.since(since))),
        };
        (stats != PeerStats::default()).then_some(stats)
    }
}

/// Peers made by hand for tests.
#[cfg(test)]
pub(crate) fn test_peers(list: Vec<(NodeId, Vec<LaneInfo>, Vec<SocketAddr>)>) -> TunnelPeers {
    let mut peers = TunnelPeers::default();
    for (id, lanes, endpoints) in list {
        peers.add(Arc::new(test_one(id, lanes, Vec::new(), endpoints)));
    }
    peers
}

/// The same with one more, which speaks plain WireGuard.
#[cfg(test)]
pub(crate) fn test_plain(mut peers: TunnelPeers, peer: &TunnelPeer) -> TunnelPeers {
    let plain = test_one(peer.id, peer.lanes.clone(), Vec::new(), peer.endpoints.clone());
    peers.add(Arc::new(TunnelPeer { is_member: false, ..plain }));
    peers
}

/// One peer made by hand that changes its keys.
#[cfg(test)]
pub(crate) fn test_peer(
    id: NodeId,
    lanes: Vec<LaneInfo>,
    former: Vec<LaneInfo>,
    endpoints: Vec<SocketAddr>,
) -> TunnelPeers {
    let mut peers = TunnelPeers::default();
    peers.add(Arc::new(test_one(id, lanes, former, endpoints)));
    peers
}

/// Peers made by hand that use preshared keys, if this node has a vault.
#[cfg(test)]
pub(crate) fn test_agreeing(own: NodeId, vault: Option<Arc<PskStore>>, list: Vec<TunnelPeer>) -> TunnelPeers {
    let address = Flat(std::net::Ipv4Addr::new(241, 1, 0, own.0 as u8));
    let mode = vault.as_ref().map_or(PskMode::Off, |vault| vault.mode());
    let vault = vault.filter(|_| mode != PskMode::Off);
    let mut peers = TunnelPeers { own: (own, Some(address)), vault, calls: mode.calls(), ..TunnelPeers::default() };
    for mut peer in list {
        peer.lenient = mode.is_lenient();
        match &peers.vault {
            Some(vault) => peer.cell.set_preshared(vault.number(peer.id)),
            None => peer.agreement.clear(),
        }
        peers.add(Arc::new(peer));
    }
    peers
}

/// A peer made by hand.
#[cfg(test)]
pub(crate) fn test_one(
    id: NodeId,
    lanes: Vec<LaneInfo>,
    former: Vec<LaneInfo>,
    endpoints: Vec<SocketAddr>,
) -> TunnelPeer {
    let address = Some(Flat(std::net::Ipv4Addr::new(241, 1, 0, id.0 as u8)));
    let (agreement, cell) = (Vec::new(), Arc::default());
    TunnelPeer { id, lanes, former, agreement, lenient: false, address, is_member: true, endpoints, cell }
}
