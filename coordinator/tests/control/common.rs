//! A coordinator on loopback, and a node's side of the control channel, as small as they can be.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use coordinator::base::words::SOCKET;
use coordinator::config::Config;
use coordinator::core::documents;
use coordinator::daemon::{self, RunningCoordinator};
use coordinator::keys::identity;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_host::client::Client;
use mesh_host::identity::Identity;
use mesh_host::log::LostLines;
use mesh_host::tls;
use mesh_proto::base::id::{IdentityKey, TunnelKey};
use mesh_proto::model::netmap::LaneInfo;
use mesh_proto::trust::join_token::JoinToken;
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::{self, ErrorBody, JoinRequest, JoinResponse, NodeFacts, WatchEvent};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A file with two sites, one service with two backends, and one rule.
pub(crate) const SERVICES: &str = r#"version = 1
[mesh]
name = "boutique"
[[site]]
name = "dc"
[[site]]
name = "c1"
kind = "kubernetes"
pods = ["10.8.0.0/16"]
[[service]]
name = "cart"
port = 7070
backends = [{ host = "n1", weight = 80 }, { host = "n2", weight = 20 }]
[[allow]]
from = ["any"]
to = ["cart"]
"#;

/// A coordinator in this process, with files in a directory of its own.
pub(crate) struct TestCoordinator {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) running: RunningCoordinator,
}

impl TestCoordinator {
    /// Starts one with `SERVICES`.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("services.toml"), SERVICES).unwrap();
        Self::start_in(dir).await
    }

    /// Starts one with `SERVICES`, and more lines in coordinator.toml.
    pub(crate) async fn start_with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("services.toml"), SERVICES).unwrap();
        std::fs::write(dir.path().join("more.toml"), more).unwrap();
        Self::start_in(dir).await
    }

    /// Starts one on the files of a directory.
    pub(crate) async fn start_in(dir: tempfile::TempDir) -> Self {
        identity::load_or_create(&dir.path().join("state")).unwrap();
        let running = daemon::start(config(dir.path()), LostLines::default()).await.unwrap();
        Self { dir, running }
    }

    /// Reads its metrics.
    pub(crate) async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.running.metrics.unwrap()).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    /// Stops it, and starts another on the same files.
    pub(crate) async fn restart(self) -> Self {
        self.running.stop().await;
        Self::start_in(self.dir).await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.listen[0]
    }

    pub(crate) fn services(&self) -> PathBuf {
        self.dir.path().join("services.toml")
    }

    /// Saves services.toml by writing into it.
    pub(crate) fn save(&self, text: &str) {
        std::fs::write(self.services(), text).unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("state/admin.sock")
    }

    pub(crate) async fn fetch<A: DeserializeOwned>(&self, path: &str) -> A {
        Client::new(&SOCKET, self.socket()).get(path).await.unwrap()
    }

    pub(crate) async fn status(&self) -> documents::StatusDocument {
        self.fetch("/v1/status").await
    }

    /// Makes a token for one node of site `dc`.
    pub(crate) async fn token(&self) -> JoinToken {
        self.token_for(&serde_json::json!({"site": "dc", "name": null, "ttl_s": 600, "serve": [], "uses": 1})).await
    }

    pub(crate) async fn token_for(&self, wanted: &serde_json::Value) -> JoinToken {
        let line: documents::TokenLine =
            Client::new(&SOCKET, self.socket()).ask(Method::POST, "/v1/tokens", Some(wanted)).await.unwrap();
        line.token.parse().unwrap()
    }

    /// Joins a new node.
    pub(crate) async fn join(&self, name: &str) -> (TestNode, JoinResponse) {
        let node = TestNode::new(self, name);
        let joined = node.connect().await.join(&self.token().await).await.unwrap();
        (node, joined)
    }
}

/// Waits until a condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < DEADLINE, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for something to end.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("ends in time")
}

pub(crate) fn config(dir: &Path) -> Config {
    let text = "listen = \"127.0.0.1:0\"\npublic = \"127.0.0.1:7700\"\nstate_dir = \"state\"\n\
                services = \"services.toml\"\nadmin_socket = \"state/admin.sock\"\nmetrics = \"127.0.0.1:0\"\n";
    let more = std::fs::read_to_string(dir.join("more.toml")).unwrap_or_default();
    Config::parse(&format!("{text}{more}"), &dir.join("coordinator.toml")).unwrap()
}

/// A node: a key, a name, and where its coordinator is.
pub(crate) struct TestNode {
    pub(crate) name: String,
    pub(crate) identity: Identity,
    pub(crate) address: SocketAddr,
    pub(crate) pin: IdentityKey,
}

impl TestNode {
    pub(crate) fn new(coordinator: &TestCoordinator, name: &str) -> Self {
        Self {
            name: name.into(),
            identity: Identity::generate().unwrap(),
            address: coordinator.address(),
            pin: coordinator.running.key,
        }
    }

    /// What it says of itself.
    pub(crate) fn facts(&self) -> NodeFacts {
        let key = TunnelKey(self.identity.public().0);
        self.signed(NodeFacts {
            lanes: vec![LaneInfo { key, port: 51820 }],
            mtu: 1420,
            guarded: true,
            software: "test".into(),
            ..NodeFacts::default()
        })
    }

    /// Signs what it says of itself.
    pub(crate) fn signed(&self, facts: NodeFacts) -> NodeFacts {
        let text = facts.text();
        let signature = self.identity.sign(&SignedRecord::message(&text));
        NodeFacts { signed: Some(SignedRecord { text: text.into(), signature }), ..facts }
    }

    pub(crate) async fn dial(&self) -> std::io::Result<TlsStream<TcpStream>> {
        self.shake_hands(TcpStream::connect(self.address).await?).await
    }

    async fn shake_hands(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("coordinator").unwrap();
        TlsConnector::from(self.tls()).connect(name, stream).await
    }

    fn tls(&self) -> Arc<ClientConfig> {
        Arc::new(tls::client(&self.identity, &[self.pin]).unwrap())
    }

    pub(crate) async fn connect(&self) -> NodeChannel<'_> {
        self.speak(self.dial().await.unwrap()).await
    }

    /// Goes on over a connection that was made from somewhere.
    pub(crate) async fn connect_over(&self, stream: TcpStream) -> NodeChannel<'_> {
        self.speak(self.shake_hands(stream).await.unwrap()).await
    }

    /// Speaks HTTP/2 over a connection.
    pub(crate) async fn speak(&self, stream: TlsStream<TcpStream>) -> NodeChannel<'_> {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        NodeChannel { node: self, sender }
    }
}

/// A node's connection.
pub(crate) struct NodeChannel<'a> {
    node: &'a TestNode,
    pub(crate) sender: http2::SendRequest<Full<Bytes>>,
}

impl NodeChannel<'_> {
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> hyper::Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(format!("https://coordinator{path}"));
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        soon(self.sender.send_request(request)).await
    }

    pub(crate) async fn post<A: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, (StatusCode, ErrorBody)> {
        let body = serde_json::to_vec(body).unwrap();
        let response = self.send(Method::POST, path, body).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        if status == StatusCode::OK {
            Ok(serde_json::from_slice(&bytes).unwrap())
        } else {
            Err((status, serde_json::from_slice(&bytes).unwrap()))
        }
    }

    pub(crate) async fn join(&mut self, token: &JoinToken) -> Result<JoinResponse, (StatusCode, ErrorBody)> {
        let request = JoinRequest {
            ephemeral: false,
            version: wire::VERSION,
            token: token.id_text(),
            secret: token.secret.clone(),
            oidc: None,
            name: self.node.name.parse().unwrap(),
            facts: self.node.facts(),
        };
        self.post("/v1/join", &request).await
    }

    pub(crate) async fn watch(&mut self, revision: Option<u64>) -> Result<Lines, (StatusCode, ErrorBody)> {
        let query = revision.map(|n| format!("?revision={n}")).unwrap_or_default();
        let response = self.send(Method::GET, &format!("/v1/watch{query}"), Vec::new()).await.unwrap();
        let status = response.status();
        let body = response.into_body();
        if status == StatusCode::OK {
            return Ok(Lines { body, rest: Vec::new() });
        }
        let bytes = body.collect().await.unwrap().to_bytes();
        Err((status, serde_json::from_slice(&bytes).unwrap()))
    }
}

/// The lines of a watch.
pub(crate) struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// Returns the next line; none at the end.
    pub(crate) async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(end) = self.rest.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = soon(self.body.frame()).await?.ok()?;
            self.rest.extend_from_slice(frame.data_ref().unwrap());
        }
    }
}
