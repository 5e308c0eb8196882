//! Whether nodes find a coordinator of this mesh where `public` says.
//!
//! ```text
//!   each `public` ─▶ DNS ─▶ TCP ─▶ TLS, pinned to the mesh's coordinators
//!                     │      │      ├─▶ another key, no TLS of ours: a warning, in the log and in `status`
//!                     │      └──────┴─▶ no connection, no answer: a note in the log, for a router may not lead its own
//!                     └─▶ no such name: a warning                network back to it (no hairpin NAT) and all is well
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mesh_host::identity::Identity;
use mesh_host::tls;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::core::Core;
use crate::core::coordinator_list::{CoordinatorList, OwnEntry};
use crate::core::status_snapshot::StatusSnapshot;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(60);
/// How long each step may take: a name, a connection, a handshake.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most addresses of one name that are tried.
const MAX_RESOLVED: usize = 8;

/// What is looked at, and where it is told.
pub(crate) struct PublicAddresses {
    /// Which coordinators there are.
    pub(crate) core: Arc<Core>,
    /// Where nodes are told that this one is.
    pub(crate) own: Arc<OwnEntry>,
    /// As whom it is asked.
    pub(crate) identity: Identity,
    /// What the status shows.
    pub(crate) shown: watch::Sender<StatusSnapshot>,
}

/// What an address leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// A coordinator of this mesh.
    Coordinator,
    /// Nowhere: the name has no address.
    Nothing(String),
    /// Something else.
    Stranger,
    /// This host's loopback, by a name that has another address elsewhere, or should: Debian gives the host's own name
    /// 127.0.1.1.
    Loopback,
    /// Nobody can say from here.
    Unknown(String),
}

impl Found {
    /// Returns what is wrong with an address of `public`, where something is.
    fn warning(&self, address: &str) -> Option<String> {
        let what = match self {
            Self::Coordinator | Self::Loopback | Self::Unknown(_) => return None,
            Self::Nothing(why) => format!("does not resolve ({why})"),
            Self::Stranger => "leads to something that is no coordinator of this mesh".into(),
        };
        Some(format!(
            "`public` names {address}, which {what}: a node that knows no other address does not come back; mend `public` in coordinator.toml, and restart"
        ))
    }
}

/// Looks at each address, for ever, and tells what changed.
pub(crate) async fn watch_public_addresses(task: PublicAddresses) {
    let mut before = Vec::new();
    loop {
        let found = look(&task).await;
        for (number, (address, found)) in task.own.addresses.iter().zip(&found).enumerate() {
            if before.get(number) != Some(found) {
                tell(address, found);
            }
        }
        let warnings: Vec<String> =
            task.own.addresses.iter().zip(&found).filter_map(|(address, found)| found.warning(address)).collect();
        task.shown.send_if_modified(|shown| std::mem::replace(&mut shown.public, warnings.clone()) != warnings);
        before = found;
        sleep(EVERY).await;
    }
}

fn tell(address: &str, found: &Found) {
    if let Some(warning) = found.warning(address) {
        return tracing::warn!("{warning}");
    }
    match found {
        Found::Coordinator | Found::Nothing(_) | Found::Stranger => {}
        Found::Loopback => tracing::info!(
            "`public` names {address}, which leads to the loopback of this host, as /etc/hosts may say; nodes elsewhere need an address that they reach: ask for the name there"
        ),
        Found::Unknown(why) => tracing::info!(
            "`public` names {address}, which is not reached from here ({why}); that is no fault where this network is not led back to itself"
        ),
    }
}

async fn look(PublicAddresses { core, own, identity, shown: _ }: &PublicAddresses) -> Vec<Found> {
    let pins = CoordinatorList::new(own, &core.world()).pins;
    match tls::client(identity, &pins) {
        Ok(config) => {
            let config = Arc::new(config);
            join_all(own.addresses.iter().map(|address| leads_to(address, &config))).await
        }
        Err(error) => vec![Found::Unknown(error.to_string()); own.addresses.len()],
    }
}

/// Says what an address leads to, by the best of those that its name has.
async fn leads_to(address: &str, config: &Arc<ClientConfig>) -> Found {
    let resolved: Vec<SocketAddr> = match timeout(PATIENCE, lookup_host(address)).await {
        Ok(Ok(resolved)) => resolved.take(MAX_RESOLVED).collect(),
        Ok(Err(error)) => return Found::Nothing(error.to_string()),
        Err(_) => return Found::Nothing("no answer from DNS".into()),
    };
    let is_name = address.parse::<SocketAddr>().is_err();
    if is_name && !resolved.is_empty() && resolved.iter().all(|socket| socket.ip().is_loopback()) {
        return Found::Loopback;
    }
    let mut found = join_all(resolved.into_iter().map(|socket| answers(socket, config))).await;
    let best = [Found::Coordinator, Found::Stranger].into_iter().find(|best| found.contains(best));
    best.or_else(|| found.pop()).unwrap_or_else(|| Found::Nothing("no address".into()))
}

async fn answers(socket: SocketAddr, config: &Arc<ClientConfig>) -> Found {
    let unknown = |error: io::Error| Found::Unknown(error.to_string());
    let stream = match timeout(PATIENCE, TcpStream::connect(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return unknown(error),
        Err(_) => return unknown(io::ErrorKind::TimedOut.into()),
    };
    let name = ServerName::from(Ipv4Addr::UNSPECIFIED);
    match timeout(PATIENCE, TlsConnector::from(Arc::clone(config)).connect(name, stream)).await {
        Ok(Ok(_)) => Found::Coordinator,
        // It said something, and that was none of our TLS, or by another key.
        Ok(Err(error)) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => Found::Stranger,
        Ok(Err(error)) => unknown(error),
        Err(_) => unknown(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::keys::identity::load_or_create;

    fn identity() -> (Identity, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (load_or_create(dir.path()).unwrap().0, dir)
    }

    /// Listens, and does something with each connection.
    async fn listen<F: Future<Output = ()> + Send>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn what_an_address_leads_to_is_told_apart_by_the_key() {
        let (own, _dir) = identity();
        let (other, _other_dir) = identity();
        let acceptor = TlsAcceptor::from(Arc::new(tls::server(&own).unwrap()));
        let coordinator = listen(move |stream| {
            let acceptor = acceptor.clone();
            async move { drop(acceptor.accept(stream).await) }
        })
        .await;
        let config = |identity: &Identity| Arc::new(tls::client(identity, &[identity.public()]).unwrap());
        assert_eq!(leads_to(&coordinator, &config(&own)).await, Found::Coordinator);
        assert_eq!(leads_to(&coordinator, &config(&other)).await, Found::Stranger, "another mesh's");

        let web = listen(|mut stream| async move {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        })
        .await;
        assert_eq!(leads_to(&web, &config(&own)).await, Found::Stranger);
        let shut = listen(|stream| async move { drop(stream) }).await;
        assert!(
            matches!(leads_to(&shut, &config(&own)).await, Found::Unknown(_)),
            "a door that is full is no stranger"
        );

        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let unreached = leads_to(&gone, &config(&own)).await;
        assert!(matches!(unreached, Found::Unknown(_)) && unreached.warning(&gone).is_none(), "{unreached:?}");
        let port = coordinator.rsplit_once(':').unwrap().1;
        let by_name = leads_to(&format!("localhost:{port}"), &config(&own)).await;
        assert_eq!(by_name, Found::Loopback, "it shows nothing of what others find");

        let unresolved = leads_to("no-such-name.invalid:7700", &config(&own)).await;
        let warning = unresolved.warning("no-such-name.invalid:7700").unwrap();
        assert!(warning.contains("does not resolve") && warning.contains("coordinator.toml"), "{warning}");
    }
}
