//! The data path as the daemon sees it: start it, give it views, ask it what it did, stop it.
//!
//! ```text
//!            DataPlane ── mailbox + eventfd ──▶ worker 0   TUN queue 0, sockets P, tunnels of lane 0, engine
//!   daemon ─▶    │                         └──▶ worker 1   TUN queue 1, sockets P+1, tunnels of lane 1, engine
//!                ◀──── counters, peer cells (atomics) ──── …
//! ```

#[cfg(test)]
pub(crate) mod adversary;
pub(crate) mod bell;
pub mod bench;
mod flow_file;
pub(crate) mod handover;
pub(crate) mod lane;
pub(crate) mod mailbox;
pub(crate) mod supervisor;
pub(crate) mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_host::clock::now;
use mesh_proto::base::id::{NodeId, NodeName, TunnelKey};
use mesh_proto::base::wall_clock::{BootDate, ClockWord};
use mesh_proto::dataplane::engine::NextHop;
use mesh_proto::dataplane::flow::room::flows_for;
use mesh_proto::dataplane::flow::{Direction, Flow, FlowTable, Holder, Key};
use mesh_proto::dataplane::view::{MIN_MTU, View};
use mesh_proto::model::netmap::{NetMap, Peer};
use mesh_proto::trust::audit_log::LogPosition;
use tokio::sync::watch;

use crate::base::retry::{Held, HeldBy};
use crate::base::runtime::aside;
use crate::base::state_dir::advice;
use crate::control::LogGossip;
use crate::dataplane::bench::Measurement;
use crate::dataplane::bench::lane_end::{LaneEnd, Phase};
use crate::dataplane::flow_file::TakenOver;
use crate::dataplane::handover::Handover;
use crate::dataplane::lane::{Lane, Parts};
use crate::dataplane::mailbox::Mailbox;
pub use crate::dataplane::supervisor::LaneDeath;
use crate::dataplane::worker::flow_writer::{FlowWriter, MissingFile};
use crate::dataplane::worker::{Waits, Worker};
use crate::io::counters::Counters;
pub use crate::io::counters::{DataPlaneStats, FlowStats, LaneStats, PeerStats};
pub use crate::io::offloads::{Offload, Offloads};
use crate::io::tun::{self, Queue, TunError};
use crate::io::udp::{Sockets, UdpError};
pub use crate::keys::lanes::{LaneKeys, MAX_LANES};
use crate::keys::psk_policy::PskMode;
use crate::keys::psk_store::PskStore;
use crate::linux::memory;
use crate::wireguard::peers::{Cell, TunnelPeers};

/// How long a tunnel is good after its handshake: Reject-After-Time (WireGuard, section 6.1).
const SESSION: Duration = Duration::from_secs(180);
/// How long a peer counts as active after its last packet.
const ACTIVE: Duration = Duration::from_secs(600);

/// What the data path needs to start.
#[derive(Debug)]
pub struct DataPlaneSetup {
    /// The name of the TUN interface.
    pub interface: String,
    /// How many lanes to run; 1 to `MAX_LANES`.
    pub lanes: usize,
    /// What may be left to the kernel.
    pub offload: Offload,
    /// The UDP port of lane 0; lane i listens on the i-th port after it.
    pub port: u16,
    /// The firewall mark of outer datagrams; 0 sets none.
    pub mark: u32,
    /// The MTU of the TUN interface, in bytes.
    pub mtu: u16,
    /// The keys of the lanes.
    pub keys: LaneKeys,
    /// Where flows outlive this process.
    pub flow_file: Option<PathBuf>,
    /// The preshared keys; `None` for plain WireGuard with everybody.
    pub vault: Option<Arc<PskStore>>,
    /// The NetMap, compiled.
    pub view: Arc<View>,
    /// The host's own underlay addresses.
    pub locals: Arc<[Ipv4Addr]>,
    /// The routers that this host knows.
    pub next_hops: Arc<[NextHop]>,
    /// Peers to hold a handshake with at once.
    pub active: Vec<Activity>,
}

/// A peer that was active in the last ten minutes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// Its name.
    pub peer: NodeName,
    /// The endpoint at which its lane 0 last answered.
    pub endpoint: SocketAddr,
}

/// Why the data path cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    /// There are more lanes than keys, none, or too many.
    #[error("{0} lanes cannot run: `lanes` is 1 to {MAX_LANES}, and as many keys are needed")]
    Lanes(usize),
    /// The ports of the lanes do not fit below 65536.
    #[error("{lanes} lanes from UDP port {port} on need ports up to 65535 at most; choose a `port` between 1 and {}", 65536 - lanes)]
    Ports {
        /// The port of lane 0.
        port: u16,
        /// The number of lanes.
        lanes: usize,
    },
    /// The TUN device cannot be had.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// A port cannot be had.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// The file of flows cannot be had.
    #[error(
        "cannot open {path}, where connections outlive a restart: {source}; {}",
        advice(source, path, "make its directory writable")
    )]
    FlowFile {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refuses a thread or a descriptor.
    #[error("cannot start a lane: {0}; raise the limits of processes and open files")]
    Thread(io::Error),
}

impl Held for DataPlaneError {
    fn held_by(&self) -> HeldBy {
        match self {
            Self::Udp(UdpError::InUse { .. }) => HeldBy::Somebody,
            Self::Tun(TunError::Create { source, .. })
                if rustix::io::Errno::from_io_error(source) == Some(rustix::io::Errno::BUSY) =>
            {
                HeldBy::Somebody
            }
            Self::Udp(UdpError::Mark { .. } | UdpError::Open { .. })
            | Self::Tun(TunError::Create { .. } | TunError::Name(_) | TunError::Device(_))
            | Self::Lanes(_)
            | Self::Ports { .. }
            | Self::FlowFile { .. }
            | Self::Thread(_) => HeldBy::Nobody,
        }
    }
}

/// A running data path. Dropping it stops it.
#[derive(Debug)]
pub struct DataPlane {
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

/// What a data path is told and asked by. Clones speak to the same one, also after it stopped: then nobody listens.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    flows: Arc<FlowTable>,
    /// Our own keys, present and former, which no peer may have.
    own_keys: Mutex<Vec<TunnelKey>>,
    current: Mutex<(Arc<View>, Arc<TunnelPeers>)>,
    vault: Option<Arc<PskStore>>,
    mailboxes: Arc<[Mailbox]>,
    /// Which lane died first.
    died: watch::Sender<Option<LaneDeath>>,
    /// Where flows outlive this process.
    flow_file: Option<PathBuf>,
    /// How often others were active than before, or elsewhere.
    activity: watch::Sender<u64>,
    /// What each lane counts.
    counters: Vec<Arc<Counters>>,
    /// What the lanes do for who measures.
    phases: watch::Sender<Phase>,
    /// The MTU of the TUN interface, in bytes.
    mtu: AtomicU16,
}

impl DataPlane {
    /// Opens the TUN queues and sockets and starts one thread per lane.
    ///
    /// # Errors
    /// Says which device, port or file cannot be had, and what to do.
    pub fn start(setup: DataPlaneSetup) -> Result<Self, DataPlaneError> {
        let lanes = setup.lanes;
        if !(1..=setup.keys.lanes()).contains(&lanes) {
            return Err(DataPlaneError::Lanes(lanes));
        }
        if setup.port == 0 || usize::from(setup.port) + lanes > 65536 {
            return Err(DataPlaneError::Ports { port: setup.port, lanes });
        }
        let ports = setup.port..=u16::MAX;
        let open = |port| Sockets::open(port, setup.mark, setup.offload.udp);
        let sockets: Vec<Sockets> = ports.take(lanes).map(open).collect::<Result<_, _>>()?;
        let queues = tun::open(&setup.interface, lanes, setup.offload.tun)?;
        let flows = Arc::new(FlowTable::for_flows(flows_for(memory::limit()), setup.keys.flow_seed()));
        if let Err(error) = memory::in_large_pages(flows.memory()) {
            tracing::debug!(%error, "the flow table lies in small pages");
        }
        let taken = setup.flow_file.as_deref().map(|path| open_flows(path, &flows)).transpose()?;
        let flow_file = taken.flatten().map(Arc::new);
        let is_made = Arc::new(AtomicBool::new(false));
        let own_keys = own_keys(&setup.keys);
        let peers = Arc::new(TunnelPeers::compile(setup.view.netmap(), &own_keys, None, setup.vault.as_ref()));
        let mailboxes: Result<Arc<[Mailbox]>, _> = (0..lanes).map(|_| Mailbox::new()).collect();
        let mailboxes = mailboxes.map_err(|error| DataPlaneError::Thread(error.into()))?;
        let current = Mutex::new((Arc::clone(&setup.view), peers));
        let shared = Shared {
            flows,
            own_keys: Mutex::new(own_keys),
            current,
            vault: setup.vault.clone(),
            mailboxes,
            died: watch::Sender::default(),
            flow_file: setup.flow_file.clone(),
            activity: watch::Sender::default(),
            counters: (0..lanes).map(|_| Arc::default()).collect(),
            phases: watch::Sender::default(),
            mtu: AtomicU16::new(setup.mtu),
        };
        let mut plane = Self { handle: Handle(Arc::new(shared)), threads: Vec::new() };
        let handover = Arc::new(Handover::new());
        for (lane, (queue, sockets)) in queues.into_iter().zip(sockets).enumerate() {
            plane.start_lane(lane, &setup, queue, sockets, &handover, (flow_file.clone(), Arc::clone(&is_made)))?;
        }
        Ok(plane)
    }

    fn start_lane(
        &mut self,
        number: usize,
        setup: &DataPlaneSetup,
        queue: Queue,
        sockets: Sockets,
        handover: &Arc<Handover>,
        (flow_file, is_made): (Option<Arc<File>>, Arc<AtomicBool>),
    ) -> Result<(), DataPlaneError> {
        let shared = &self.handle.0;
        let counters = Arc::clone(&shared.counters[number]);
        let (view, peers) = self.handle.current();
        let mut lane = Lane::new(Parts {
            lane: number,
            key: &setup.keys.of(number),
            view: Arc::clone(&view),
            peers: Arc::clone(&peers),
            flows: Arc::clone(&shared.flows),
            counters: Arc::clone(&counters),
            handover: Arc::clone(handover),
            speaker: LaneEnd::new(number, shared.phases.subscribe(), Arc::clone(&counters)),
            mtu: setup.mtu,
        });
        lane.set_locals(Arc::clone(&setup.locals));
        lane.set_next_hops(Arc::clone(&setup.next_hops));
        for Activity { peer, endpoint } in &setup.active {
            let known = view.netmap().peers.get(peer).and_then(|peer| peers.get(peer.id));
            if let Some(peer) = known {
                peer.cell.set_endpoint(*endpoint);
                peer.cell.set_active(now());
                lane.greet(peer.id);
            }
        }
        let path = setup.flow_file.clone().filter(|_| flow_file.is_none());
        let missing = path.map(|path| MissingFile { path, is_maker: number == 0, is_made });
        let worker = Worker {
            lane,
            queue,
            sockets,
            number,
            mailboxes: Arc::clone(&shared.mailboxes),
            flow_file: FlowWriter::new(flow_file, missing, Arc::clone(&shared.flows)),
            counters,
            interface: setup.interface.clone(),
            offload: setup.offload,
            activity: shared.activity.clone(),
            unanswered: Mailbox::room_for_unanswered(),
        };
        let waits = Waits::new().map_err(|error| DataPlaneError::Thread(error.into()))?;
        let thread = supervisor::spawn(number, shared.died.clone(), || worker.run(waits));
        self.threads.push(thread.map_err(DataPlaneError::Thread)?);
        Ok(())
    }

    /// Returns what it is told and asked by.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops the lanes and closes devices and sockets.
    pub fn stop(self) {
        drop(self);
    }
}

impl Handle {
    /// Gives all lanes a new view; they take it before their next packet.
    pub fn set_view(&self, view: Arc<View>) {
        let own = self.0.own_keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        let compile = || TunnelPeers::compile(view.netmap(), &own, Some(&current.1), self.0.vault.as_ref());
        let peers = Arc::new(aside(compile));
        *current = (Arc::clone(&view), Arc::clone(&peers));
        for mailbox in self.0.mailboxes.iter() {
            mailbox.set_view(Arc::clone(&view), Arc::clone(&peers));
        }
    }

    /// Forgets the preshared keys with nodes that are no peers of a map any more: all of it, and not only what is
    /// believed of it for now.
    pub fn retain_keys(&self, map: &NetMap) {
        let Some(vault) = &self.0.vault else { return };
        let peers: BTreeSet<NodeId> = map.peers.values().map(|peer| peer.id).collect();
        vault.retain(|peer| peers.contains(&peer));
    }

    /// Stands so to preshared keys from now on.
    pub fn set_mode(&self, mode: PskMode) {
        let Some(vault) = &self.0.vault else { return };
        vault.set_mode(mode);
        let (view, _) = self.current();
        self.set_view(view);
    }

    /// Gives all lanes other keys of our own: tunnels of keys that are gone are closed, all others go on.
    pub fn set_keys(&self, keys: &LaneKeys) {
        *self.0.own_keys.lock().unwrap_or_else(PoisonError::into_inner) = own_keys(keys);
        for (lane, mailbox) in self.0.mailboxes.iter().enumerate() {
            mailbox.set_key(keys.of(lane));
        }
    }

    /// Gives all lanes the host's own underlay addresses.
    pub fn set_locals(&self, locals: Arc<[Ipv4Addr]>) {
        for mailbox in self.0.mailboxes.iter() {
            mailbox.set_locals(Arc::clone(&locals));
        }
    }

    /// Tells all lanes by which routers this host reaches what is not on its own links.
    pub fn set_next_hops(&self, next_hops: Arc<[NextHop]>) {
        for mailbox in self.0.mailboxes.iter() {
            mailbox.set_next_hops(Arc::clone(&next_hops));
        }
    }

    /// Sets the largest packet that the mesh interface takes, in bytes.
    pub fn set_mtu(&self, mtu: u16) {
        self.0.mtu.store(mtu, Ordering::Relaxed);
        for mailbox in self.0.mailboxes.iter() {
            mailbox.set_mtu(mtu);
        }
    }

    /// This host has these addresses now, and no others: peers hear it by every open tunnel, and those without one are
    /// called, if they ever were spoken to; all are if `all`, as when no coordinator is there to tell them.
    pub fn move_to(&self, own: &Arc<BTreeSet<IpAddr>>, all: bool) {
        let (_, peers) = self.current();
        for (lane, mailbox) in self.0.mailboxes.iter().enumerate() {
            // Lane 0 calls; where it is answered, the others follow.
            let calls = peers.iter().filter(|peer| lane == 0 && (all || peer.cell.endpoint().is_some()));
            mailbox.move_to(Arc::clone(own), calls.map(|peer| peer.id).collect());
        }
    }

    /// Returns the largest packet that gets through to a peer, in bytes, if larger ones vanish on the way.
    pub fn narrow(&self, peer: NodeId) -> Option<u16> {
        let (_, peers) = self.current();
        Some(peers.get(peer)?.cell.narrow()?.0)
    }

    /// Returns the largest packet that may go to a peer now, in bytes.
    fn most(&self, peer: &Peer, cell: &Cell) -> u16 {
        let full = peer.mtu.max(MIN_MTU).min(self.0.mtu.load(Ordering::Relaxed));
        cell.narrow().map_or(full, |(bytes, _)| bytes.min(full))
    }

    /// Returns what the data path did so far. It reads the whole flow table: not for a loop.
    pub fn stats(&self) -> DataPlaneStats {
        let now = now();
        let (_, peers) = self.current();
        let post_quantum = peers.iter().filter(|peer| peer.is_post_quantum()).map(|peer| peer.id).collect();
        let peers = peers.iter().filter_map(|peer| Some((peer.id, peer.cell.stats(now)?))).collect();
        let mut drops = BTreeMap::new();
        self.0.counters.iter().for_each(|lane| lane.add_drops(&mut drops));
        let mut entries = 0usize;
        let mut opened = Vec::new();
        let mut held = BTreeMap::<Holder, usize>::new();
        let look = |key: Key, flow: Flow| {
            entries += 1;
            if flow.opened {
                *held.entry(key.holder(&flow)).or_default() += 1;
            }
            if flow.opened && key.side == Direction::Outbound {
                opened.push((key.tuple, flow));
            }
        };
        aside(|| self.0.flows.for_each(now, look));
        let lanes: Vec<LaneStats> = self.0.counters.iter().map(|lane| lane.read()).collect();
        let refused = lanes.iter().find_map(|lane| lane.flow_file);
        let unwritten = self.0.flow_file.clone().zip(refused);
        let mtu = self.0.mtu.load(Ordering::Relaxed);
        let flows = FlowStats {
            used: entries.div_ceil(2),
            room: self.0.flows.flows(),
            displaced: self.0.flows.displaced(),
            last_loss: self.0.flows.last_loss().map(|at| now.since(at)),
            largest: held.into_iter().max_by_key(|&(_, count)| count),
        };
        DataPlaneStats { peers, post_quantum, drops, lanes, mtu, flows, opened, unwritten }
    }

    /// Returns the peers that sent or received a packet in the last ten minutes, with their endpoints.
    pub fn activity(&self) -> Vec<Activity> {
        let now = now();
        let (view, peers) = self.current();
        let active = peers.iter().filter(|peer| peer.cell.active_within(ACTIVE, now));
        let named = active.filter_map(|peer| {
            let name = view.peer_name(peer.id)?.clone();
            Some(Activity { peer: name, endpoint: peer.cell.endpoint()? })
        });
        named.collect()
    }

    /// Returns what changes whenever others are active than before, or elsewhere: `activity` differs.
    pub fn activity_changes(&self) -> watch::Receiver<u64> {
        self.0.activity.subscribe()
    }

    /// Returns the peers with a tunnel that can carry packets.
    pub fn talking(&self) -> BTreeSet<NodeName> {
        let now = now();
        let (view, peers) = self.current();
        let open = peers.iter().filter(|peer| peer.cell.shook_hands_within(SESSION, now));
        open.filter_map(|peer| view.peer_name(peer.id).cloned()).collect()
    }

    /// Says what this host's clock is: peers are told of it from the next probe on.
    pub fn set_date(&self, date: BootDate) {
        self.0.mailboxes.iter().for_each(|mailbox| mailbox.set_date(date));
    }

    /// Returns what the clocks of peers said last, as far as that still counts.
    pub fn peer_clocks(&self) -> Vec<(NodeName, ClockWord)> {
        let now = now();
        let (view, peers) = self.current();
        let said =
            peers.iter().filter_map(|peer| Some((peer.id, peer.cell.clock().filter(|word| word.is_fresh(now))?)));
        said.filter_map(|(id, word)| Some((view.peer_name(id)?.clone(), word))).collect()
    }

    /// Measures the round trip to a peer now; the figure and its count are in `stats`.
    pub fn ping(&self, peer: NodeId) {
        self.0.mailboxes[0].ping(peer);
    }

    /// Takes the right to measure the way to a peer; `None` if somebody has it.
    pub(crate) fn bench(&self, peer: &Peer) -> Option<Measurement> {
        let (view, peers) = self.current();
        let take = |phase: &mut Phase| phase.is_none() && phase.replace(Arc::default()).is_none();
        let cell = peers.get(peer.id).map_or_else(Arc::default, |peer| Arc::clone(&peer.cell));
        self.0.phases.send_if_modified(take).then(|| Measurement {
            peer: peer.id,
            way: [view.address(), peer.address],
            mtu: self.most(peer, &cell),
            cell,
            lanes: Arc::clone(&self.0.mailboxes),
            phases: self.0.phases.clone(),
        })
    }

    /// Waits until a lane does nothing any more. It has to be asked all the time, or it counts from the start.
    pub async fn first_death(&self) -> LaneDeath {
        supervisor::first_death(self.0.died.subscribe(), &self.0.mailboxes, supervisor::TURN).await
    }

    fn current(&self) -> (Arc<View>, Arc<TunnelPeers>) {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl LogGossip for Handle {
    fn set_log_position(&self, told: LogPosition) {
        for mailbox in self.0.mailboxes.iter() {
            mailbox.set_log_position(told);
        }
    }

    fn peer_log_positions(&self) -> Vec<(NodeName, LogPosition)> {
        let (view, peers) = self.current();
        let heard = peers.iter().filter_map(|peer| Some((view.peer_name(peer.id)?.clone(), peer.cell.log_position()?)));
        heard.collect()
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.handle.0.mailboxes.iter().for_each(Mailbox::stop);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn own_keys(keys: &LaneKeys) -> Vec<TunnelKey> {
    [keys.publics(), keys.former_publics(), keys.agreement_publics()].concat()
}

/// Takes over the flows of before. Without room for a new file the node goes on; lane 0 makes it as soon as there is some.
fn open_flows(path: &Path, flows: &FlowTable) -> Result<Option<File>, DataPlaneError> {
    let fail = |source| DataPlaneError::FlowFile { path: path.to_owned(), source };
    match flow_file::take_over(path, flows) {
        Ok((file, TakenOver { taken, left })) => {
            tracing::info!(entries = taken, left, room = flows.flows(), "connections of before go on");
            Ok(Some(file))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            let path = path.display();
            tracing::warn!(%error, %path, "flows are not saved yet: a restart would cut connections; make room");
            Ok(None)
        }
        Err(error) => Err(fail(error)),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use mesh_proto::verifier::VerifiedMap;

    use super::*;
    use crate::base::state_dir::State;
    use crate::dataplane::lane::tests::netmap;
    use crate::psk::PresharedKey;

    #[test]
    fn a_peer_that_is_not_believed_in_for_now_keeps_its_preshared_key_and_one_that_left_loses_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let vault = Arc::new(PskStore::load(&state));
        vault.put(NodeId(2), PresharedKey::new([5; 32]));
        let stored = || {
            vault.save(&state).unwrap();
            PskStore::load(&state).get(NodeId(2)).is_some()
        };
        let all = VerifiedMap::by_hand(netmap(0, true));
        let less = all.only(&BTreeSet::new());
        let view = |map: &VerifiedMap| Arc::new(View::compile(map.clone()));
        let plane = Handle(Arc::new(Shared {
            flows: Arc::new(FlowTable::new(1 << 10)),
            own_keys: Mutex::default(),
            current: Mutex::new((view(&all), Arc::default())),
            vault: Some(Arc::clone(&vault)),
            mailboxes: Arc::new([]),
            died: watch::Sender::default(),
            flow_file: None,
            activity: watch::Sender::default(),
            counters: Vec::new(),
            phases: watch::Sender::default(),
            mtu: AtomicU16::new(1420),
        }));
        let retain = |shown: &VerifiedMap, full: &VerifiedMap| {
            plane.set_view(view(shown));
            plane.retain_keys(full);
            plane.set_mode(PskMode::Require);
            stored()
        };
        assert!(retain(&all, &all));
        assert!(retain(&less, &all), "the lease is over");
        assert!(retain(&all, &all), "the coordinator is back");
        assert!(!retain(&less, &less), "it left the mesh");
    }
}
