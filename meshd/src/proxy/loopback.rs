//! `[[serve]] bind`: connections to the node's mesh address are carried to a server that listens on loopback.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::model::netmap::{NetMap, Transport};
use mesh_proto::services::ServeSpec;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::base::notes::Notes;
use crate::base::warning_id::WarningId;

/// Most connections at a time of one `[[serve]]`.
const MAX_CONNECTIONS: usize = 1024;
/// How often listening is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The listeners that run, by where they listen and where they lead.
#[derive(Debug)]
pub struct Splices {
    running: BTreeMap<(SocketAddr, SocketAddr), JoinHandle<()>>,
    /// The runtime that carries the bytes.
    bytes: Handle,
}

impl Drop for Splices {
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

impl Splices {
    /// Starts none yet; those to come run on `bytes`.
    pub fn new(bytes: Handle) -> Self {
        Self { running: BTreeMap::new(), bytes }
    }

    /// Starts and ends listeners so that they are what the file says.
    pub fn set(&mut self, wanted: &[(SocketAddr, SocketAddr)], notes: &Notes) {
        self.running.retain(|pair, task| {
            let keep = wanted.contains(pair);
            if !keep {
                task.abort();
            }
            keep
        });
        for &(listen, to) in wanted {
            let start = || self.bytes.spawn(run(listen, to, notes.clone()));
            self.running.entry((listen, to)).or_insert_with(start);
        }
        if self.running.is_empty() {
            notes.set(WarningId::Splice, None);
        }
    }
}

/// Returns where to listen and where to lead, for every `[[serve]]` with a `bind`.
pub fn wanted(map: &NetMap, serve: &[ServeSpec]) -> Vec<(SocketAddr, SocketAddr)> {
    let own: Ipv4Addr = map.node.address.0;
    let pair = |spec: &ServeSpec| {
        let tcp = |service: &mesh_proto::model::netmap::Service| {
            let mut ports = service.ports.iter();
            ports.find(|p| p.transport == Transport::Tcp).map(|p| p.target)
        };
        let to = spec.bind?;
        let known = || map.services.get(&spec.service).and_then(tcp);
        let port = spec.port.or_else(known)?;
        Some((SocketAddr::from((own, port)), to))
    };
    serve.iter().filter_map(pair).collect()
}

async fn run(listen: SocketAddr, to: SocketAddr, notes: Notes) {
    let listener = loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) => {
                let hint = "let the server listen on its `bind` address alone";
                let sentence = format!("[[serve]] cannot listen on {listen}: {error}; {hint}");
                if !notes.all().iter().any(|(_, said)| *said == sentence) {
                    tracing::warn!("{sentence}");
                }
                notes.set(WarningId::Splice, Some(sentence));
                sleep(RETRY).await;
            }
        }
    };
    notes.set(WarningId::Splice, None);
    tracing::info!(%listen, %to, "serving a loopback server");
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((mut caller, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(async move {
            match TcpStream::connect(to).await {
                Ok(mut server) => {
                    let _ = caller.set_nodelay(true);
                    let _ = server.set_nodelay(true);
                    let _ = copy_bidirectional(&mut caller, &mut server).await;
                }
                Err(error) => tracing::debug!(%to, %error, "the server does not listen"),
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use mesh_proto::base::addr::Flat;
    use mesh_proto::base::id::NodeId;
    use mesh_proto::model::netmap::{Mesh, OwnNode};
    use mesh_proto::services::parse_node;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// The map of a node at this address that knows nobody.
    fn map(address: Ipv4Addr) -> NetMap {
        NetMap {
            epoch: Default::default(),
            sites: Default::default(),
            revision: Default::default(),
            mesh: Mesh {
                name: "m".parse().unwrap(),
                range: Default::default(),
                domains: Vec::new(),
                coordinators: Vec::new(),
                lock: None,
            },
            node: OwnNode {
                sequence: 0,
                id: NodeId(1),
                name: "n1".parse().unwrap(),
                site: "dc".parse().unwrap(),
                address: Flat(address),
                blocks: Vec::new(),
                guarded: true,
            },
            peers: Default::default(),
            services: Default::default(),
            names: Default::default(),
            rules: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_bind_leads_to_the_loopback_server() {
        let servers =
            [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = free.local_addr().unwrap();
        drop(free);
        let map = map(Ipv4Addr::LOCALHOST);
        let (notes, mut splices) = (Notes::default(), Splices::new(Handle::current()));
        let text = format!("version = 1\n[[serve]]\nservice = \"cart\"\nport = {}\n", listen.port());
        let wanted_by = |bind: &str| wanted(&map, &parse_node(&format!("{text}{bind}"), "f").unwrap().0);
        assert_eq!(wanted_by(""), [], "without it the server listens on the node's address itself");
        for server in &servers {
            let bind = server.local_addr().unwrap();
            splices.set(&wanted_by(&format!("bind = \"{bind}\"\n")), &notes);
            let accepted = async {
                loop {
                    let _caller = TcpStream::connect(listen).await;
                    if let Ok(accepted) = tokio::time::timeout(Duration::from_millis(50), server.accept()).await {
                        return accepted;
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(20), accepted).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_listener_ends_when_it_is_no_longer_wanted() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = free.local_addr().unwrap();
        drop(free);
        let notes = Notes::default();
        let mut splices = Splices::new(Handle::current());
        splices.set(&[(listen, to)], &notes);

        let mut caller = loop {
            match TcpStream::connect(listen).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let (mut accepted, _) = server.accept().await.unwrap();
        caller.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        accepted.read_exact(&mut got).await.unwrap();
        accepted.write_all(b"pong").await.unwrap();
        caller.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"pong");

        splices.set(&[], &notes);
        while TcpStream::connect(listen).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
