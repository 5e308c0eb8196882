//! The running coordinator: everything started in order, and stopped within two seconds.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::id::IdentityKey;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::admin::socket;
use crate::admin::socket::SocketError;
use crate::channel::listener;
use crate::channel::peer::Doors;
use crate::cli::restore;
use crate::config::Config;
use crate::core::Hub;
use crate::core::open_store::{open_store, setup};
use crate::keys::identity::{Identity, KeyError};
use crate::keys::tls;
use crate::registry::OpenError;
use crate::tasks::backups;
use crate::tasks::ephemeral_nodes::tend;
use crate::tasks::replicas::{enter, keep_up};
use crate::tasks::services_file::{begin, follow, load};
use crate::telemetry::prometheus;

/// How long connections may take to finish when the coordinator stops.
const GRACE: Duration = Duration::from_millis(1500);

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
    /// The control channel's address cannot be bound.
    #[error("cannot listen on {address}: {source}; set `listen` in coordinator.toml to a free address of this machine")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A running coordinator. Dropping it ends it at once; `stop` lets connections finish.
pub struct Running {
    /// Where the control channel listens.
    pub listen: Vec<SocketAddr>,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// The coordinator's public key.
    pub key: IdentityKey,
    admin_socket: PathBuf,
    hub: Arc<Hub>,
    stop: watch::Sender<bool>,
    servers: JoinSet<()>,
    helpers: JoinSet<()>,
}

/// Starts a coordinator. When this returns, services.toml was looked at and nodes may connect.
///
/// # Errors
/// `StartError` if anything is missing that the mesh needs.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let identity = Identity::load(&config.state_dir)?;
    let setup = setup(&config);
    let underlay = setup.underlay.clone();
    let (mut registry, store) = open_store(&config, identity.public(), setup).await?;
    let epoch = registry.epoch();
    if restore::noted(&config.state_dir) < epoch
        && let Err(error) = restore::note(&config.state_dir, epoch)
    {
        tracing::warn!(%error, "the epoch is noted in the store alone");
    }
    let signed = identity.epoch(epoch);
    registry.set_epoch(signed);
    let acceptor = TlsAcceptor::from(tls::server(&identity)?);
    let mut listeners = Vec::new();
    for &address in &config.listen {
        listeners.push(bind(address).await?);
    }
    let listen: Vec<_> = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
    let admin_listener = socket::bind(&config.admin_socket)?;
    let metrics_listener = match config.metrics {
        Some(address) => prometheus::bind(address).await,
        None => None,
    };
    let metrics = metrics_listener.as_ref().and_then(|l| l.local_addr().ok());
    let admin_socket = config.admin_socket.clone();
    let key = identity.public();
    let unserved = config.metrics.filter(|_| metrics.is_none());
    let hub = Hub::new(config, key, listen.clone(), unserved, store, registry, underlay);
    hub.take_pushed().await;
    begin(&hub).await;
    enter(&hub).await;

    let (stop, stopping) = watch::channel(false);
    let doors = Doors::new();
    let mut servers = JoinSet::new();
    for listener in listeners {
        let (acceptor, hub, doors) = (acceptor.clone(), Arc::clone(&hub), Arc::clone(&doors));
        servers.spawn(listener::serve(listener, acceptor, hub, doors, stopping.clone()));
    }
    servers.spawn(socket::serve(admin_listener, Arc::clone(&hub), stopping));
    let mut helpers = JoinSet::new();
    helpers.spawn(follow(Arc::clone(&hub)));
    helpers.spawn(keep_up(Arc::clone(&hub)));
    helpers.spawn(backups::keep(Arc::clone(&hub)));
    helpers.spawn(tend(Arc::clone(&hub)));
    if let Some(listener) = metrics_listener {
        helpers.spawn(prometheus::serve(listener, Arc::clone(&hub)));
    }
    tracing::info!(?listen, key = %key, revision = %hub.world().revision, "the coordinator is ready");
    Ok(Running { listen, metrics, key, admin_socket, hub, stop, servers, helpers })
}

impl Running {
    /// Reads services.toml again, whether or not it seems to have changed.
    pub async fn reload(&self) {
        load(&self.hub).await;
    }

    /// Waits until the store has failed, and says why. Nothing was acknowledged since; end the process.
    pub async fn failed(&self) -> String {
        self.hub.failed_for_good().await
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
            while Arc::strong_count(&self.hub) > 1 {
                sleep(Duration::from_millis(5)).await;
            }
        });
        if released.await.is_err() {
            tracing::debug!("something still writes at the end");
        }
        let _ = std::fs::remove_file(&self.admin_socket);
    }
}

/// Binds the control channel. A machine without IPv6 has no `[::]`; its IPv4 wildcard says the same.
async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = match TcpListener::bind(address).await {
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            TcpListener::bind(SocketAddr::from(([0u8; 4], address.port()))).await
        }
        bound => bound,
    };
    bound.map_err(|source| StartError::Listen { address, source })
}
