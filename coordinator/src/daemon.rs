//! The running coordinator: everything started in order, and stopped within two seconds.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_host::http::host_names::HostNames;
use mesh_host::log::LostLines;
use mesh_host::socket::{Socket, SocketError};
use mesh_host::tls;
use mesh_proto::base::id::IdentityKey;
use mesh_proto::trust::signed_record::Epoch;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::admin::context::AdminState;
use crate::admin::socket;
use crate::base::noted_epoch::{note, noted};
use crate::base::state_files::{JOURNAL, TAKEN};
use crate::base::words::SOCKET;
use crate::channel::context::Context;
use crate::channel::listener;
use crate::channel::own_addresses::OwnAddresses;
use crate::channel::peer::ConnectionLimits;
use crate::config::Config;
use crate::core::Core;
use crate::core::coordinator_list::OwnEntry;
use crate::core::counters::Counters;
use crate::core::earlier_mesh::load_identity;
use crate::core::file_report::FileReport;
use crate::core::file_requests::FileRequests;
use crate::core::limits::Limits;
use crate::core::open_store::{open_store, setup};
use crate::core::pushed_keys::take_pushed;
use crate::core::shared_store::SharedStore;
use crate::core::status_snapshot::StatusSnapshot;
use crate::keys::identity::KeyError;
use crate::oidc::issuers::Issuers;
use crate::registry::OpenError;
use crate::store::StoreError;
use crate::tasks::backups::{self, Backups};
use crate::tasks::ephemeral_nodes::tend;
use crate::tasks::public_addresses::{PublicAddresses, watch_public_addresses};
use crate::tasks::replicas::{enter, keep_up};
use crate::tasks::services_file::{ServicesFile, begin, watch_services_file};
use crate::telemetry::prometheus;

/// How long connections may take to finish when the coordinator stops.
const GRACE: Duration = Duration::from_millis(1500);
/// Connections that the kernel may hold until we take them: one that it drops tries again after a second only.
const BACKLOG: u32 = 4096;

/// The least limit of open files: what it holds itself, and some for verbs and nodes.
const DESCRIPTORS: u64 = 64;

/// Says why the coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no usable identity key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store cannot be opened, or holds what this version does not understand.
    #[error(transparent)]
    Registry(#[from] OpenError),
    /// The admin socket cannot be bound.
    #[error(transparent)]
    Admin(#[from] SocketError),
    /// The TLS library does not take the key.
    #[error("TLS cannot use the identity key: {0}; restore the key from a backup")]
    Tls(#[from] rustls::Error),
    /// The limit of open files is too low.
    #[error(
        "the limit of open files is {0}, and the coordinator needs {DESCRIPTORS} and one for each node; raise it (LimitNOFILE= in the unit, or ulimit -n)"
    )]
    Descriptors(u64),
    /// The control channel's address cannot be bound.
    #[error("cannot listen on {address}: {source}; set `listen` in coordinator.toml to a free address of this machine")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl StartError {
    /// Says whether the store lost the mesh, or the mesh its key: starting again does not bring it back.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Registry(error) => matches!(error, OpenError::Store(StoreError::Lost { .. })),
            Self::Key(error) => matches!(error, KeyError::Lost { .. }),
            Self::Admin(_) | Self::Tls(_) | Self::Descriptors(_) | Self::Listen { .. } => false,
        }
    }
}

/// A running coordinator. Dropping it ends it at once; `stop` lets connections finish.
pub struct RunningCoordinator {
    /// Where the control channel listens.
    pub listen: Vec<SocketAddr>,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// The coordinator's public key.
    pub key: IdentityKey,
    core: Arc<Core>,
    file: FileRequests,
    stop: watch::Sender<bool>,
    servers: JoinSet<()>,
    helpers: JoinSet<()>,
}

/// Starts a coordinator, whose log lost these lines. When this returns, services.toml was looked at and nodes may connect.
///
/// # Errors
/// `StartError` if anything is missing that the mesh needs.
pub async fn start(config: Config, lost_lines: LostLines) -> Result<RunningCoordinator, StartError> {
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < DESCRIPTORS => return Err(StartError::Descriptors(limit)),
        Some(_) | None => {}
    }
    let identity = load_identity(&config)?;
    let setup = setup(&config);
    let underlay = setup.underlay.clone();
    let (mut registry, store) = open_store(&config, identity.public(), setup).await?;
    let epoch = registry.epoch();
    if noted(&config.state_dir) < epoch
        && let Err(error) = note(&config.state_dir, epoch)
    {
        tracing::warn!(%error, "the epoch is noted in the store alone");
    }
    let signed = Epoch { number: epoch, signature: Some(identity.sign(&Epoch::message(epoch))) };
    registry.set_epoch(signed);
    let acceptor = TlsAcceptor::from(Arc::new(tls::server(&identity)?));
    let mut listeners = Vec::new();
    for &address in &config.listen {
        listeners.push(bind(address)?);
    }
    let listen: Vec<_> = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
    let admin_socket = Socket::bind(&config.admin_socket, &SOCKET)?;
    let metrics_listener = match config.metrics {
        Some(address) => prometheus::bind(address).await,
        None => None,
    };
    let metrics = metrics_listener.as_ref().and_then(|l| l.local_addr().ok());
    let key = identity.public();
    let shown = watch::Sender::new(StatusSnapshot {
        started: Instant::now(),
        listen: listen.clone(),
        unserved: config.metrics.filter(|_| metrics.is_none()),
        store,
        backups: config.backups.clone(),
        backup_failed: false,
        public: Vec::new(),
        file: FileReport::new(config.services.clone()),
    });
    let shared = Arc::new(SharedStore::new(registry.follow(), config.state_dir.join(TAKEN)));
    let core = Core::new(registry);
    let issuers = Arc::new(Issuers::new(&config.trust));
    let own = Arc::new(OwnEntry { key, addresses: config.public.clone() });
    let counters = Counters::default();
    let services = ServicesFile {
        core: Arc::clone(&core),
        path: config.services.clone(),
        shared: Arc::clone(&shared),
        shown: shown.clone(),
        counters: counters.clone(),
    };
    take_pushed(&core, &issuers).await;
    begin(&services).await;
    enter(&core, &own, !shared.is_shared()).await;

    let (stop, stopping) = watch::channel(false);
    let file = FileRequests::new(shown.subscribe());
    let doors = ConnectionLimits::new(&core.world());
    let admin = AdminState {
        core: Arc::clone(&core),
        shared: Arc::clone(&shared),
        issuers: Arc::clone(&issuers),
        own: Arc::clone(&own),
        state_dir: config.state_dir.clone(),
        doors: Arc::clone(&doors),
        lost_lines,
        file: file.clone(),
        shown: shown.subscribe(),
    };
    let own_entry = Arc::clone(&own);
    let context = Context {
        core: Arc::clone(&core),
        limits: Arc::new(Limits::new()),
        shared: Arc::clone(&shared),
        issuers,
        own,
        counters: counters.clone(),
        stop: stopping.clone(),
    };
    let addresses = OwnAddresses::new(Arc::clone(&core), underlay);
    let mut servers = JoinSet::new();
    for listener in listeners {
        let (acceptor, doors, addresses) = (acceptor.clone(), Arc::clone(&doors), Arc::clone(&addresses));
        servers.spawn(listener::serve(listener, acceptor, context.clone(), doors, addresses));
    }
    servers.spawn(socket::serve(admin_socket, admin.clone(), stopping.clone()));
    let mut helpers = JoinSet::new();
    helpers.spawn(watch_services_file(services, file.numbers()));
    helpers.spawn(keep_up(Arc::clone(&core), Arc::clone(&shared)));
    let journal = config.state_dir.join(JOURNAL);
    let public = PublicAddresses { core: Arc::clone(&core), own: own_entry, identity, shown: shown.clone() };
    helpers.spawn(watch_public_addresses(public));
    helpers.spawn(backups::keep_backups(Backups { core: Arc::clone(&core), dir: config.backups, journal, shown }));
    helpers.spawn(tend(Arc::clone(&core), shared));
    if let (Some(listener), Some(address)) = (metrics_listener, metrics) {
        let names = HostNames::new(&config.metrics_hosts, address);
        helpers.spawn(prometheus::serve(listener, names, admin, counters, stopping));
    }
    tracing::info!(?listen, key = %key, revision = %core.world().revision, "the coordinator is ready");
    Ok(RunningCoordinator { listen, metrics, key, core, file, stop, servers, helpers })
}

impl RunningCoordinator {
    /// Has services.toml read again, whether or not it seems to have changed; what comes of it is in the log.
    pub async fn reload(&self) {
        let _ = self.file.read_again().await;
    }

    /// Waits until the store has failed, and says why. Nothing was acknowledged since; end the process.
    pub async fn failed(&self) -> String {
        self.core.failed_for_good().await
    }

    /// Ends the coordinator: no new connections, watches end, requests under way are answered.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let finished = timeout(GRACE, async { while self.servers.join_next().await.is_some() {} });
        if finished.await.is_err() {
            tracing::debug!("connections were cut off at the end");
        }
        self.servers.shutdown().await;
        self.helpers.shutdown().await;
        // What still writes ends before the store is given up, so that another process can open it at once.
        let released = timeout(GRACE, async {
            while Arc::strong_count(&self.core) > 1 {
                sleep(Duration::from_millis(5)).await;
            }
        });
        if released.await.is_err() {
            tracing::debug!("something still writes at the end");
        }
    }
}

/// Binds the control channel. A machine without IPv6 has no `[::]`; its IPv4 wildcard says the same.
fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = match listen(address) {
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            listen(SocketAddr::from(([0u8; 4], address.port())))
        }
        bound => bound,
    };
    bound.map_err(|source| StartError::Listen { address, source })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
