//! `meshd run`: the one place where everything meets.
//!
//! ```text
//!   idle ── an enrolment appears ──▶ member ── `meshd leave` ──▶ idle
//!     └───────── SIGTERM ─────────────┴──▶ stopped: rule, unreachable route and guards stay
//! ```
//! A member forwards from the cached map before it has said a word to the coordinator; every new map is
//! applied first and stored after.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mesh_host::log::LostLines;
use mesh_host::socket::Socket;
use mesh_host::watched_file::WatchedFile;
use mesh_proto::base::addr::MeshRange;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::api::server;
use crate::base::notes::Notes;
use crate::base::retry::{patient, patient_for};
use crate::base::runtime::Bytes;
use crate::base::starts::{Starts, WELL};
use crate::base::state_dir::{Enrolment, State, StateError, StateLock};
use crate::base::text::{JOIN_HINT, SOCKET};
use crate::base::warning_id::WarningId;
use crate::config::Config;
use crate::config::accepted::{Loaded, Settings};
use crate::dataplane::supervisor::THREAD;
use crate::linux;
use crate::node::error::DaemonError;
use crate::node::lane_deaths::{LaneDeaths, end_with_a_lane};
use crate::node::publisher::Publisher;
use crate::node::requests::{Order, Requests};
use crate::node::services_file::Offers;
use crate::node::{MemberEnd, Membership, cached_map, join, services_file};
use crate::telemetry::prometheus;

/// How long a second daemon waits for the first of the same state directory to end: less than systemd waits for a start
/// (TimeoutStartSec in systemd/meshd.service), so that it says itself why it gave up.
const HAND_OVER: Duration = Duration::from_secs(25);
/// How often an idle daemon looks for an enrolment.
const POLL: Duration = Duration::from_millis(500);

/// Descriptors that a lane needs: a TUN queue, two sockets, what it waits by, what wakes it.
const FOR_A_LANE: u64 = 8;
/// Descriptors for everything else: the log, files, netlink, the coordinator, verbs, names, spliced streams.
const FOR_THE_REST: u64 = 64;

/// Refuses a limit of open files with which parts of the daemon would fail one by one.
fn refuse_few_descriptors(lanes: usize) -> Result<(), DaemonError> {
    let needed = FOR_THE_REST + FOR_A_LANE * lanes as u64;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Err(DaemonError::Descriptors { limit, needed }),
        Some(_) | None => Ok(()),
    }
}

/// Runs with what was read of meshd.toml until a signal or `/v1/stop` ends it; `lost_lines` counts what its log lost.
///
/// # Errors
/// `DaemonError` that says what cannot be had, and what to do.
pub async fn run(loaded: Loaded, lost_lines: LostLines) -> Result<(), DaemonError> {
    let Loaded { config, settings } = loaded;
    refuse_few_descriptors(config.lanes)?;
    let (publisher, requests) = (Publisher::default(), Requests::default());
    let state = State::open(&config.state_dir)?.telling(publisher.unstored.clone());
    let _lock = locked(&state).await?;
    let flow_file = config.flow_file();
    let folder = flow_file.parent().unwrap_or(&config.runtime_dir);
    std::fs::create_dir_all(folder).map_err(|error| DaemonError::Runtime { path: folder.into(), error })?;
    let _flows = patient(|| hold(folder)).await?;
    let deaths_file = LaneDeaths::file(&config.runtime_dir);
    let lane_deaths = LaneDeaths::read(&deaths_file);
    end_with_a_lane(THREAD, deaths_file.clone());
    publisher.settings.send_replace(settings.clone());
    publisher.wished_name.send_replace(config.is_name_set.then(|| config.name.clone()));
    let offers = watch::Sender::new(Offers { path: config.services.clone(), ..Offers::default() });
    let subscriber = publisher.subscribe(offers.subscribe(), lane_deaths.clone(), lost_lines);
    let bytes = Bytes::start().map_err(DaemonError::Threads)?;
    // The first report must already say what the node serves, or its backends would be gone for a moment.
    services_file::load(&offers, &config.services, &state);
    let mut socket = Some(patient(|| Socket::bind(&config.socket, &SOCKET)).await?);
    let (_stop, stopping) = watch::channel(false);
    // Dropping the set ends its tasks.
    let mut background = JoinSet::new();
    background.spawn(state.clone().tend());
    background.spawn(tell_of_settings(settings.clone(), publisher.notes.clone()));
    background.spawn(tell_of_socket(socket.as_ref().map(Socket::trouble), publisher.notes.clone()));
    background.spawn(signals(requests.clone())?);
    background.spawn(services_file::watch_services_file(offers.clone(), state.clone(), requests.clone()));
    if let Some(listen) = config.metrics {
        background.spawn(prometheus::serve(listen, config.metrics_hosts.clone(), subscriber.clone(), stopping.clone()));
    }
    // Who asks a member that is starting waits until it has a map in force, instead of reading that there is none.
    let routes = server::routes(subscriber, requests.clone());
    let serve = |socket: Socket| {
        let routes = routes.clone();
        socket.serve(move |_| routes.clone(), stopping.clone())
    };
    let starts = Starts::file(&config.runtime_dir);
    // Once it works with it, and not before, it is what the next start may fall back on.
    let works = |background: &mut JoinSet<()>, socket: Option<Socket>| {
        let Some(socket) = socket else { return };
        background.spawn(serve(socket));
        settings.accept(&state);
        let starts = starts.clone();
        background.spawn(async move {
            sleep(WELL).await;
            Starts::forget(&starts);
        });
    };
    let mut order = requests.order();
    while *order.borrow_and_update() != Order::Stop {
        if !matches!(state.enrolment(), Ok(Some(_))) {
            works(&mut background, socket.take());
        }
        let Some(enrolment) = enrolled(&state, &publisher, &requests, &mut order).await? else { continue };
        let range = enrolment.range;
        // Held until the range is left or the process ends; before anything is set in the kernel.
        let claim = linux::claim(&join::shape_to_close(&config, &enrolment)).await?;
        let started =
            Membership::start(&config, &state, &publisher, &requests, offers.subscribe(), enrolment, bytes.handle());
        let mut member = match started.await {
            Ok(member) => member,
            Err(error) => {
                // A port that is taken says nothing against the cached map.
                cached_map::pass(&state);
                return Err(error);
            }
        };
        works(&mut background, socket.take());
        tell(NotifyState::Ready);
        let ended = match member.run().await {
            Ok(ended) => ended,
            Err(death) => {
                let _left_as_it_is = ManuallyDrop::new((member, claim));
                if let Err(error) = lane_deaths.add(death.to_string(), SystemTime::now(), &deaths_file) {
                    tracing::warn!(%error, "the next start does not tell that a lane died");
                }
                return Err(death.into());
            }
        };
        member.stop().await;
        if let MemberEnd::Copied(number) = ended {
            return Err(DaemonError::Copied(number));
        }
        let ordered = *order.borrow_and_update();
        if matches!(ordered, Order::Leave | Order::Renounce) {
            // Who joins again right away leaves no moment in which packets to the range find another way.
            let opened = (ordered == Order::Leave).then_some(range);
            match leave(&config, &state, &publisher, opened).await {
                // A disk that keeps the enrolment keeps the node in the mesh.
                Err(DaemonError::State(error)) if !matches!(state.enrolment(), Ok(None)) => {
                    tracing::error!(%error, "the mesh is not left");
                    publisher.notes.set(
                        WarningId::Leave,
                        Some(format!("the mesh is not left: {error}. Run `meshd leave` again then")),
                    );
                }
                left => left?,
            }
            requests.left();
        }
        drop(claim);
    }
    tell(NotifyState::Stopping);
    tracing::info!("stopped; the mesh range stays closed until `meshd leave` or `meshd cleanup`");
    background.shutdown().await;
    // What waits has no other chance.
    state.store_waiting();
    Ok(())
}

/// Takes the state directory, once the daemon that has it ends; no other trouble is waited for so long.
async fn locked(state: &State) -> Result<StateLock, StateError> {
    match state.lock() {
        Err(StateError::Locked { .. }) => patient_for(HAND_OVER, || state.lock()).await,
        Err(_) => patient(|| state.lock()).await,
        Ok(lock) => Ok(lock),
    }
}

/// Says what is wrong with a meshd.toml that does not run, for as long as the daemon runs with the one before.
async fn tell_of_settings(settings: Settings, notes: Notes) {
    let mut file = WatchedFile::new(&settings.path);
    while settings.error.is_some() {
        notes.set(WarningId::Settings, settings.sentence());
        file.changed().await;
    }
}

/// Says why no verb reaches this daemon: the metrics and the log tell it.
async fn tell_of_socket(trouble: Option<watch::Receiver<Option<String>>>, notes: Notes) {
    let Some(mut trouble) = trouble else { return };
    while trouble.changed().await.is_ok() {
        notes.set(WarningId::Socket, trouble.borrow_and_update().clone());
    }
}

/// Waits until the node belongs to a mesh; `None` if the daemon is to do something else.
///
/// # Errors
/// `DaemonError::Trust` if it belonged to one, and whom to trust there is lost.
async fn enrolled(
    state: &State,
    publisher: &Publisher,
    requests: &Requests,
    order: &mut watch::Receiver<Order>,
) -> Result<Option<Enrolment>, DaemonError> {
    let mut told = false;
    loop {
        match state.enrolment() {
            Ok(Some(enrolment)) => {
                publisher.notes.set(WarningId::Enrolment, None);
                publisher.enrolment.send_replace(Some(enrolment.clone()));
                return Ok(Some(enrolment));
            }
            Ok(None) if told => {}
            Ok(None) => {
                tracing::info!("not joined; {}", JOIN_HINT);
                tell(NotifyState::Ready);
                tell(NotifyState::Status("not joined"));
            }
            Err(error) if error.is_of_trust() => return Err(error.into()),
            Err(error) if told => publisher.notes.set(WarningId::Enrolment, Some(error.to_string())),
            Err(error) => tracing::error!(%error, "enrolment not read"),
        }
        told = true;
        tokio::select! {
            () = sleep(POLL) => {}
            Ok(()) = order.changed() => {
                requests.left();
                return Ok(None);
            }
        }
    }
}

/// Keeps every other daemon from the folder of the flow table, as long as what is returned is open.
fn hold(folder: &Path) -> Result<File, DaemonError> {
    let open = File::open(folder).map_err(|error| DaemonError::Runtime { path: folder.into(), error })?;
    match rustix::fs::flock(&open, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(DaemonError::FlowsTaken(folder.into())),
        // A file system without locks holds nobody off.
        Ok(()) | Err(_) => Ok(open),
    }
}

/// Forgets the mesh, and undoes what keeps a range closed.
async fn leave(
    config: &Config,
    state: &State,
    publisher: &Publisher,
    opened: Option<MeshRange>,
) -> Result<(), DaemonError> {
    let forgotten = state.forget();
    if let Err(error) = &forgotten
        && matches!(state.enrolment(), Ok(None))
    {
        tracing::warn!(%error, "some of the files of the mesh stay");
    } else {
        forgotten?;
    }
    publisher.notes.set(WarningId::Leave, None);
    publisher.clear();
    let Some(range) = opened else {
        tracing::info!("left a mesh that disowned this node; its range stays closed");
        return Ok(());
    };
    for removed in linux::forget(range, &config.interface).await? {
        tracing::info!(removed, "kernel set-up undone");
    }
    tracing::info!("left the mesh");
    Ok(())
}

fn signals(requests: Requests) -> Result<impl Future<Output = ()> + use<>, DaemonError> {
    let open = |kind| signal(kind).map_err(DaemonError::Signals);
    let mut terminate = open(SignalKind::terminate())?;
    let mut interrupt = open(SignalKind::interrupt())?;
    let mut hangup = open(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                Some(()) = terminate.recv() => requests.stop(),
                Some(()) = interrupt.recv() => requests.stop(),
                Some(()) = hangup.recv() => drop(requests.reload()),
            }
        }
    })
}

/// Tells systemd, where it listens.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd not told");
    }
}
