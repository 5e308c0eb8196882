//! What a node does while it belongs to a mesh: it forwards from the cached map before it has said a word
//! to the coordinator, puts every new map in force before it stores it, and reports what changed.

pub(crate) mod cached_map;
mod clock;
mod clock_watch;
pub mod error;
pub mod facts;
pub(crate) mod host_part;
pub mod identity_rotation;
pub mod join;
mod key_changes;
pub mod lane_deaths;
pub(crate) mod offline_lease;
pub mod psk_rollout;
pub mod publisher;
mod record_conflicts;
pub mod requests;
pub(crate) mod self_record;
pub mod services_file;
pub mod snapshot;
pub mod token_file;
pub(crate) mod tunnel_key_rotation;
pub(crate) mod wished_name;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_host::clock::{now, unix, utc_text};
use mesh_host::table::age;
use mesh_proto::dataplane::view::View;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::trust::offline_lease::Lease;
use mesh_proto::trust::record_conflict::Conflict;
use mesh_proto::verifier::VerifiedMap;
use mesh_proto::wire::{NodeFacts, Report};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::base::entropy::random;
use crate::base::notes::Notes;
use crate::base::retry::patient;
use crate::base::runtime::aside;
use crate::base::state_dir::{Active, Enrolment, State};
use crate::base::warning_id::WarningId;
use crate::config::Config;
use crate::control::log_auditor::LogAuditor;
use crate::control::{AddressBook, ChannelKeeper, ChannelState, Dial, MapGuard};
use crate::dataplane::{Activity, DataPlane, DataPlaneSetup, LaneDeath};
use crate::dns::server;
use crate::keys::handshake_clock::HandshakeClock;
use crate::keys::lanes::LaneKeys;
use crate::keys::node::NodeKeys;
use crate::keys::psk_store::PskStore;
use crate::linux::{self, HostUnderlay, Keeper, MARK, Shape};
use crate::node::clock::ClockWatch;
use crate::node::clock_watch::ClockComparison;
use crate::node::error::DaemonError;
use crate::node::host_part::host_part;
use crate::node::identity_rotation::Renewer;
use crate::node::offline_lease::LastHeard;
use crate::node::psk_rollout::Switch;
use crate::node::publisher::Publisher;
use crate::node::record_conflicts::RecordJudge;
use crate::node::requests::{Order, Requests};
use crate::node::self_record::Author;
use crate::node::services_file::Offers;
use crate::node::tunnel_key_rotation::Rotation;
use crate::proxy::loopback::{self, Splices};

/// How often is looked whether other peers are active than those that are stored; new ones are stored at once.
const ACTIVITY: Duration = Duration::from_secs(10);
/// How often they are stored although they are the same: what is older than ten minutes counts for nothing at a start.
const ACTIVITY_AGAIN: Duration = Duration::from_secs(240);
/// How often is looked whether the keys are to be changed.
const TURN: Duration = Duration::from_secs(1);
/// The least time between two looks at all routes of the host.
const ROUTES: Duration = Duration::from_secs(5);
/// How long each part may take to stop.
const STOP: Duration = Duration::from_millis(400);

/// Why a member stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberEnd {
    /// It was ordered to.
    Ordered,
    /// Another machine has its identity, and signed this number.
    Copied(u64),
}

/// Everything that runs while the node belongs to a mesh.
pub(crate) struct Membership<'d> {
    config: &'d Config,
    state: &'d State,
    publisher: &'d Publisher,
    requests: &'d Requests,
    offers: watch::Receiver<Offers>,
    plane: DataPlane,
    keys: Arc<NodeKeys>,
    lanes: LaneKeys,
    clock: ClockWatch,
    clocks: ClockComparison,
    /// The preshared keys; none for plain WireGuard.
    vault: Option<Arc<PskStore>>,
    switch: Switch,
    /// The number of the record that was reported last.
    sequence: u64,
    author: Author,
    records: RecordJudge,
    renewer: Renewer,
    rotation: Option<Rotation>,
    /// Whether another tunnel key was asked for, which the disk did not take yet.
    is_rotation_wanted: bool,
    /// When it is tried next to change it.
    keys_due: Instant,
    /// When the cached map is no danger to the node; none once that is known.
    trial: Option<Instant>,
    /// The newest map; less of it is in force once no coordinator was heard for too long.
    map: VerifiedMap,
    lease: Lease,
    last_heard: LastHeard,
    host: HostUnderlay,
    /// Whether its routes may have changed since they were read, and when that was.
    are_routes_old: bool,
    routes_read: Instant,
    /// All addresses of this host, for who has a connection from one of them.
    own: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    enrolment: Enrolment,
    /// What is known of the coordinators; the enrolment keeps it.
    book: watch::Sender<AddressBook>,
    shape: Shape,
    keeper: Keeper,
    splices: Splices,
    maps: watch::Receiver<Option<VerifiedMap>>,
    /// The map in force, for the name server.
    view: watch::Sender<Arc<View>>,
    report: watch::Sender<Option<Report>>,
    addresses: mpsc::Receiver<()>,
    store: watch::Sender<Option<Arc<NetMap>>>,
    storing: JoinHandle<()>,
    /// The active peers as they are stored, and since when; none until this process stored them.
    active: Vec<Active>,
    active_stored: Option<Instant>,
    /// Dropping the set ends its tasks: the link, DNS, the address watch.
    tasks: JoinSet<()>,
}

impl<'d> Membership<'d> {
    /// Closes the range, starts the data path from the cached map, and everything else behind it.
    ///
    /// # Errors
    /// `DaemonError` that says what cannot be had.
    pub(crate) async fn start(
        config: &'d Config,
        state: &'d State,
        publisher: &'d Publisher,
        requests: &'d Requests,
        offers: watch::Receiver<Offers>,
        enrolment: Enrolment,
        bytes: &Handle,
    ) -> Result<Self, DaemonError> {
        let keys = Arc::new(NodeKeys::load(state)?);
        let lanes = keys.lanes(config.lanes);
        let clock = HandshakeClock::load(state, &lanes.public(0));
        let lanes = lanes.timed_by(Arc::clone(&clock));
        let (switch, vault) = Switch::start(state, config.keys.preshared);
        publisher.preshared.send_replace((switch.mode(), switch.sentence()));
        let known = linux::host_facts().await?;
        let next_hops: Arc<[_]> = facts::next_hops(&known).into();
        let host = known.underlay;
        let own = watch::Sender::new(Arc::new(host.own.clone()));
        let shape = join::shape(config, &enrolment, facts::mtu(config, &host));
        let guards = linux::close_range(&shape).await?;
        publisher.upkeep.send_modify(|upkeep| upkeep.guards = guards);
        let mut guard = MapGuard::new(Some(state.clone())).claiming(config.pods.clone());
        let cached_map::Start { map, current, note, on_trial } = cached_map::start(state, &enrolment, &mut guard);
        publisher.notes.set(WarningId::Cache, note);
        let mut last_heard = LastHeard::new(state);
        let lease = Lease::new(config.max_offline, last_heard.before(SystemTime::now(), now()), now());
        let active = state.activity();
        let view = Arc::new(aside(|| View::compile(believed(&map, &lease))));
        let open = || {
            DataPlane::start(DataPlaneSetup {
                interface: config.interface.clone(),
                lanes: config.lanes,
                offload: config.offload,
                port: config.port,
                mark: MARK,
                mtu: shape.mtu,
                keys: lanes.clone(),
                flow_file: Some(config.flow_file()),
                vault: vault.clone(),
                view: Arc::clone(&view),
                locals: facts::locals(&host).into(),
                next_hops: Arc::clone(&next_hops),
                active: active.iter().map(activity).collect(),
            })
        };
        let plane = patient(open).await?;
        publisher.view.send_replace(Some(Arc::clone(&view)));
        let view = watch::Sender::new(view);
        publisher.plane.send_replace(Some(plane.handle().clone()));
        linux::attach(&shape).await?;
        let keeper = Keeper::start(shape.clone(), publisher.upkeep.clone())?;
        keeper.set_part(host_part(config, &map));
        let mut tasks = JoinSet::new();
        let (tell, addresses) = mpsc::channel(1);
        tasks.spawn(facts::changes(tell));
        if let Some(vault) = vault.clone() {
            tasks.spawn(vault.keep(state.clone()));
        }
        if config.dns.enabled {
            let upstreams = config.dns.upstreams.clone();
            let view = view.subscribe();
            tasks.spawn_on(names(view, shape.dns(), upstreams, publisher.notes.clone()), bytes);
        }
        let author = Author::new(state);
        let (notes, renewed) = (publisher.notes.clone(), publisher.renewed.clone());
        let renewer = Renewer::new(state, notes, renewed, enrolment.id, Arc::clone(&keys));
        let report = watch::Sender::new(None);
        let maps = watch::Sender::new(None);
        let records = watch::Sender::default();
        let (store, storing) = storing(state.clone());
        let mut member = Self {
            config,
            state,
            publisher,
            requests,
            offers,
            plane,
            keys,
            lanes,
            clock: ClockWatch::new(clock, state, &publisher.notes),
            clocks: ClockComparison::new(&publisher.notes),
            vault,
            switch,
            // The coordinator may have the record that the next key signed.
            sequence: renewer.next().map_or(0, |next| author.number(&next.identity())),
            author,
            records: RecordJudge::new(records.subscribe()),
            renewer,
            rotation: None,
            is_rotation_wanted: false,
            keys_due: Instant::now(),
            trial: on_trial.then(|| Instant::now() + cached_map::WELL),
            map,
            lease,
            last_heard,
            host,
            are_routes_old: false,
            routes_read: Instant::now(),
            own,
            shape,
            keeper,
            splices: Splices::new(bytes.clone()),
            maps: maps.subscribe(),
            view,
            report: report.clone(),
            addresses,
            store,
            storing,
            active,
            active_stored: None,
            tasks,
            book: watch::Sender::new(AddressBook::of(&enrolment)),
            enrolment,
        };
        member.say_lease();
        member.look_at_clocks();
        member.report();
        let dial = Dial::sharing(&member.book, member.renewer.keys());
        publisher.dial.send_replace(Some(dial.clone()));
        let expelled = watch::Sender::default();
        let link = ChannelKeeper {
            dial: dial.clone(),
            turn: usize::from(random() as u16),
            current,
            guard,
            maps,
            state: publisher.link.clone(),
            report: report.subscribe(),
            records,
            expelled: expelled.subscribe(),
            own: member.own.subscribe(),
        };
        let mut member = member;
        if !member.lanes.former_publics().is_empty() {
            member.rotation = Some(Rotation::begun(member.sequence));
        }
        member.tasks.spawn(link.run());
        let (view, link) = (publisher.view.subscribe(), publisher.link.clone());
        let gossip = member.plane.handle().clone();
        member.tasks.spawn(LogAuditor::new(state.clone(), dial, view, link, expelled, gossip).run());
        member.splice();
        let node = &member.enrolment.node;
        tracing::info!(%node, mesh = %member.enrolment.mesh, revision = %member.map.revision, "forwarding");
        Ok(member)
    }

    /// Runs until the daemon is ordered to do something else, or finds another machine with its identity.
    ///
    /// # Errors
    /// If a lane died: then it is not to be stopped but left as it is, for who waits for a lane that hangs waits for ever.
    pub(crate) async fn run(&mut self) -> Result<MemberEnd, LaneDeath> {
        let mut order = self.requests.order();
        let mut rotations = self.requests.rotations();
        let mut renewals = self.requests.renewals();
        let mut offers = self.offers.clone();
        offers.mark_unchanged();
        let mut upkeep = self.publisher.upkeep.subscribe();
        let mut link = self.publisher.link.subscribe();
        let mut book = self.book.subscribe();
        let mut records = self.records.known.clone();
        let mut tick = interval(ACTIVITY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = interval(TURN);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let plane = self.plane.handle().clone();
        let mut activity = plane.activity_changes();
        let first_death = plane.first_death();
        tokio::pin!(first_death);
        loop {
            tokio::select! {
                biased;
                _ = order.wait_for(|&order| order != Order::Run) => return Ok(MemberEnd::Ordered),
                death = &mut first_death => return Err(death),
                changed = self.maps.changed() => {
                    let newest = self.maps.borrow_and_update().clone();
                    match (changed, newest) {
                        (Ok(()), Some(map)) => self.apply(map).await,
                        (Ok(()), None) => {}
                        // The link never ends by itself; if it did, forwarding goes on.
                        (Err(_), _) => sleep(ACTIVITY).await,
                    }
                }
                Ok(()) = offers.changed() => {
                    self.splice();
                    self.report();
                }
                Ok(()) = upkeep.changed() => self.report(),
                Ok(()) = records.changed() => if let Some(end) = self.judge_records().await {
                    return Ok(end);
                },
                Ok(()) = book.changed() => self.keep(self.enrolment.clone()),
                Ok(()) = link.changed(), if self.trial.is_some() || self.lease.left().is_some() => {
                    self.try_cache(&link.borrow_and_update().clone());
                    self.look_at_lease();
                }
                Some(()) = self.addresses.recv() => self.refresh_host().await,
                Ok(()) = rotations.changed() => self.rotate(),
                Ok(()) = renewals.changed() => self.renew(),
                Some(answer) = self.renewer.next_answer() => self.conclude_identity(answer),
                _ = turn.tick() => {
                    self.try_cache(&ChannelState::default());
                    self.look_at_lease();
                    self.look_at_clocks();
                    self.turn();
                    self.read_routes().await;
                    self.ask_for_identity();
                    self.switch_preshared();
                    if let Some(end) = self.judge_records().await {
                        return Ok(end);
                    }
                }
                Ok(()) = activity.changed() => self.save_activity(),
                _ = tick.tick() => self.save_activity(),
            }
        }
    }

    /// Ends every part; rule, unreachable route and guards stay.
    pub(crate) async fn stop(mut self) {
        cached_map::pass(self.state);
        self.clock.look(&self.lanes.public(0));
        self.tasks.shutdown().await;
        self.publisher.plane.send_replace(None);
        let stopped = tokio::task::spawn_blocking(|| self.plane.stop());
        let _ = timeout(STOP, self.keeper.stop()).await;
        drop(self.store);
        let _ = timeout(STOP, self.storing).await;
        let _ = timeout(STOP, stopped).await;
        if let Some(Err(error)) = self.vault.map(|vault| vault.save(self.state)) {
            tracing::error!(%error, "preshared keys not stored; the next start makes new ones");
        }
    }

    /// Puts a map in force: the data path first, then names, kernel, disk, and the word to the coordinator.
    async fn apply(&mut self, map: VerifiedMap) {
        if !cached_map::belongs(&map, &self.enrolment) {
            tracing::warn!(node = %map.node.name, "a map for another node is ignored");
            return;
        }
        self.map = map.clone();
        self.put_in_force();
        self.publisher.notes.set(WarningId::Cache, None);
        tracing::info!(revision = %map.revision, peers = map.peers.len(), services = map.services.len(), "map in force");
        self.enrol(&map).await;
        self.keeper.set_part(host_part(self.config, &map));
        self.store.send_replace(Some(Arc::clone(map.netmap())));
        self.splice();
        self.report();
        self.switch_preshared();
    }

    /// Gives the data path and the names what is believed of the map.
    fn put_in_force(&self) {
        let map = believed(&self.map, &self.lease);
        let before = self.publisher.view.borrow().clone();
        let view = Arc::new(aside(|| match &before {
            Some(before) => View::compile_after(map, before),
            None => View::compile(map),
        }));
        self.plane.handle().set_view(Arc::clone(&view));
        self.plane.handle().retain_keys(&self.map);
        self.view.send_replace(Arc::clone(&view));
        self.publisher.view.send_replace(Some(view));
    }

    /// Believes less of the map once no coordinator was heard for too long, and all of it when one is.
    fn look_at_lease(&mut self) {
        let now = now();
        let changed = if self.publisher.link.borrow().connected {
            self.last_heard.note(SystemTime::now(), now);
            self.lease.hears(now)
        } else {
            let plane = self.plane.handle();
            self.lease.look(|| plane.talking(), now)
        };
        if changed {
            self.put_in_force();
            self.say_lease();
            self.splice();
        }
        self.publisher
            .notes
            .set(WarningId::HalfOffline, self.lease.runs_out(now).map(|left| runs_out(left, self.lease.offline(now))));
    }

    /// Looks whether this host's clock is behind its handshakes or apart from others', and was set.
    fn look_at_clocks(&mut self) {
        self.clock.look(&self.lanes.public(0));
        let link = self.publisher.link.borrow().clone();
        if self.clocks.look(&link, self.plane.handle()) {
            self.correct_lease();
        }
    }

    /// Judges again what the clock said of the time before the start: it was set.
    fn correct_lease(&mut self) {
        let now = now();
        let Some(before) = self.last_heard.corrected(SystemTime::now(), now) else { return };
        let plane = self.plane.handle();
        if self.lease.correct(before, || plane.talking(), now) {
            self.put_in_force();
            self.say_lease();
            self.splice();
        }
    }

    fn say_lease(&self) {
        let sentence = self.lease.left().map(|left| over(self.map.peers.len(), left.len(), self.lease.offline(now())));
        sentence.iter().for_each(|sentence| tracing::error!("{sentence}"));
        self.publisher.notes.set(WarningId::MaxOffline, sentence);
    }

    /// Follows a change of the node's own address or blocks.
    async fn enrol(&mut self, map: &NetMap) {
        let mut enrolment = self.enrolment.clone();
        enrolment.site = map.node.site.clone();
        enrolment.address = map.node.address;
        enrolment.blocks = map.node.blocks.clone();
        enrolment.domains = map.mesh.domains.clone();
        let shape = join::shape(self.config, &enrolment, self.shape.mtu);
        self.keep(enrolment);
        if shape == self.shape {
            return;
        }
        self.shape = shape;
        self.keeper.set_shape(self.shape.clone());
        if let Err(error) = linux::attach(&self.shape).await {
            tracing::error!(%error, "new address not set; it is tried again");
        }
    }

    /// Stores an enrolment, with what is known of the coordinators by now, if it is another one.
    fn keep(&mut self, mut enrolment: Enrolment) {
        self.book.borrow().keep_in(&mut enrolment);
        if enrolment == self.enrolment {
            return;
        }
        self.enrolment = enrolment;
        self.publisher.enrolment.send_replace(Some(self.enrolment.clone()));
        if let Err(error) = self.state.keep_enrolment(&self.enrolment) {
            tracing::error!(%error, "enrolment not stored");
        }
    }

    /// Looks at what lies beneath the tunnel, and tells everybody what changed.
    async fn refresh_host(&mut self) {
        let mut host = match linux::underlay().await {
            Ok(host) => host,
            Err(error) => return tracing::warn!(%error, "addresses of this host not read"),
        };
        if host.mtu == 0 {
            // Without an interface: the next one may well be as the last one was.
            host.mtu = self.host.mtu;
        }
        self.are_routes_old = true;
        self.read_routes().await;
        if host == self.host {
            return;
        }
        let before = std::mem::replace(&mut self.host, host);
        if self.host.addresses != before.addresses || self.host.own != before.own {
            let own = Arc::new(self.host.own.clone());
            let locals: Arc<[_]> = facts::locals(&self.host).into();
            let plane = self.plane.handle();
            plane.set_locals(locals);
            if self.host.addresses != before.addresses {
                tracing::info!(addresses = ?self.host.addresses, "addresses of this host changed");
                plane.move_to(&own, !self.publisher.link.borrow().connected);
            }
            self.own.send_replace(own);
        }
        self.follow_mtu().await;
        self.report();
    }

    /// Reads by which routers this host reaches what is not on its links, if that may have changed. A host with many routes
    /// is asked no more often than each `ROUTES`.
    async fn read_routes(&mut self) {
        if !self.are_routes_old || self.routes_read.elapsed() < ROUTES {
            return;
        }
        (self.are_routes_old, self.routes_read) = (false, Instant::now());
        match linux::host_facts().await {
            Ok(known) => self.plane.handle().set_next_hops(facts::next_hops(&known).into()),
            Err(error) => tracing::warn!(%error, "routes of this host not read"),
        }
    }

    /// Has interface and data path take packets as large as the underlay leaves.
    async fn follow_mtu(&mut self) {
        let mtu = facts::mtu(self.config, &self.host);
        if mtu == self.shape.mtu {
            return;
        }
        tracing::info!(from = self.shape.mtu, to = mtu, "the MTU of the mesh interface follows the underlay's");
        self.shape.mtu = mtu;
        self.keeper.set_shape(self.shape.clone());
        self.plane.handle().set_mtu(mtu);
        if let Err(error) = linux::attach(&self.shape).await {
            tracing::error!(%error, "new MTU not set; it is tried again");
        }
    }

    fn splice(&mut self) {
        let view = self.publisher.view.borrow().clone();
        let serve = self.offers.borrow().serve.clone();
        let wanted = view.map_or_else(Vec::new, |v| loopback::wanted(v.netmap(), &serve));
        self.splices.set(&wanted, &self.publisher.notes);
    }

    /// Looks at what the coordinators have of this node's records; says if it has to stop for it.
    async fn judge_records(&mut self) -> Option<MemberEnd> {
        let (conflict, record) = self.records.judge(&self.keys.identity(), self.sequence, &self.author)?;
        match conflict {
            Conflict::Settled | Conflict::TooOften => None,
            Conflict::SignAbove(number) => {
                tracing::warn!(
                    number,
                    "the coordinator has a record of this node that its state directory does not know, as after a restore from a snapshot; signing a newer one"
                );
                self.sequence = number.saturating_add(1);
                self.report();
                None
            }
            Conflict::SecondMachine(number) => {
                let dial = Dial::sharing(&self.book, self.renewer.keys());
                record_conflicts::tell_of_copy(&dial, record).await;
                Some(MemberEnd::Copied(number))
            }
        }
    }

    /// Signs what this node says of itself.
    fn sealed(&mut self, keys: &NodeKeys) -> NodeFacts {
        let guarded = self.publisher.upkeep.borrow().guards.masquerade;
        let serve = self.offers.borrow().serve.clone();
        let facts = facts::gather(self.config, &self.lanes, &self.host, &serve, guarded);
        let told = self.publisher.view.borrow().as_ref().map_or(0, |view| view.netmap().node.sequence);
        let known = if self.records.known.borrow().may_follow_map() { told } else { 0 };
        // Whichever key signed the last one, and whether or not it was heard.
        let facts = self.author.sealed(keys, facts, known.max(self.sequence));
        self.sequence = facts.sequence;
        facts
    }

    fn report(&mut self) {
        let upkeep = self.publisher.upkeep.borrow().clone();
        let applied = self.publisher.view.borrow().as_ref().map(|v| v.revision());
        let obstacles = upkeep.obstacles.iter().map(|o| o.sentence.clone());
        let facts = self.sealed(&Arc::clone(&self.keys));
        self.switch.reported(facts.sequence);
        let report = Report {
            facts,
            applied: applied.unwrap_or_default(),
            warnings: obstacles.chain(upkeep.guards.missing.iter().cloned()).collect(),
        };
        self.report.send_if_modified(|last| {
            let changed = last.as_ref() != Some(&report);
            if changed {
                *last = Some(report);
            }
            changed
        });
    }

    /// Goes on with a change of how this node stands to preshared keys.
    fn switch_preshared(&mut self) {
        let connected = self.publisher.link.borrow().connected;
        if self.switch.advance(self.map.node.sequence, connected, self.config.keys.overlap) {
            self.publisher.preshared.send_replace((self.switch.mode(), self.switch.sentence()));
            self.plane.handle().set_mode(self.switch.mode());
        }
    }

    /// Ends the trial of the cached map once the coordinator is heard, or the node has lived on it for a while.
    fn try_cache(&mut self, link: &ChannelState) {
        if link.connected || self.trial.is_some_and(|until| Instant::now() >= until) {
            self.trial = None;
            cached_map::pass(self.state);
        }
    }

    fn save_activity(&mut self) {
        let active = self.plane.handle().activity();
        let active: Vec<Active> = active.into_iter().map(|a| Active { peer: a.peer, endpoint: a.endpoint }).collect();
        let is_fresh = self.active_stored.is_some_and(|at| at.elapsed() < ACTIVITY_AGAIN);
        if active == self.active && (is_fresh || active.is_empty()) {
            return;
        }
        if let Err(error) = self.state.save_activity(&active) {
            tracing::warn!(%error, "active peers not stored");
        }
        self.active = active;
        self.active_stored = Some(Instant::now());
    }
}

/// Says when a lease ends, of which so much is left.
fn runs_out(left: Duration, offline: Duration) -> String {
    let (end, offline) = (utc_text(unix().0.saturating_add(left.as_secs())), age(offline.as_secs(), 1));
    format!(
        "no coordinator was heard for {offline}, half of `max_offline` and more: if none is heard before {end}, this node goes on with those peers alone that it is speaking to then; see that a coordinator can be reached"
    )
}

/// Says that a lease is over: of so many peers, so many are left. Where nobody is, nobody tells the time either, and the
/// clock may be what is wrong.
fn over(peers: usize, left: usize, offline: Duration) -> String {
    let stay = format!(
        "no coordinator was heard for longer than `max_offline`: of {peers} peers, only the {left} stay that this node is speaking to"
    );
    if left > 0 {
        return format!("{stay}; see that a coordinator can be reached");
    }
    let now = unix().0;
    let (now, heard) = (utc_text(now), utc_text(now.saturating_sub(offline.as_secs())));
    format!(
        "{stay}; either this node is out of touch: see that a coordinator can be reached; or its clock is wrong: it says {now}, by which a coordinator was last heard at {heard} (see `timedatectl`; a clock that is set is judged again)"
    )
}

/// Returns what of a map may be acted on.
pub(crate) fn believed(map: &VerifiedMap, lease: &Lease) -> VerifiedMap {
    lease.left().map_or_else(|| map.clone(), |left| map.only(left))
}

fn activity(active: &Active) -> Activity {
    Activity { peer: active.peer.clone(), endpoint: active.endpoint }
}

/// Stores maps beside the control loop; of several that wait, only the newest.
fn storing(state: State) -> (watch::Sender<Option<Arc<NetMap>>>, JoinHandle<()>) {
    let (store, mut maps) = watch::channel(None::<Arc<NetMap>>);
    let task = tokio::spawn(async move {
        while maps.changed().await.is_ok() {
            let Some(map) = maps.borrow_and_update().clone() else { continue };
            let state = state.clone();
            let saved = tokio::task::spawn_blocking(move || state.keep_netmap(&map)).await;
            if let Ok(Err(error)) = saved {
                tracing::error!(%error, "map not stored; a restart would begin with an older one");
            }
        }
    });
    (store, task)
}

/// Answers names until the task is dropped; a port that cannot be had is a note, and tried again.
async fn names(view: watch::Receiver<Arc<View>>, address: Ipv4Addr, upstreams: Vec<SocketAddr>, notes: Notes) {
    loop {
        let listen = vec![(address, 53).into()];
        let never = std::future::pending();
        if let Err(error) = server::serve(listen, view.clone(), upstreams.clone(), never).await {
            let hint = "see who listens there with `ss -lunp`";
            notes.set(WarningId::Dns, Some(format!("no DNS on {address}:53: {error}; {hint}")));
        }
        sleep(Duration::from_secs(1)).await;
        notes.set(WarningId::Dns, None);
    }
}
