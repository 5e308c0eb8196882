//! A node's side of the control channel that keeps nothing of what it is sent but when it came.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_host::identity::Identity;
use mesh_host::tls;
use mesh_proto::base::id::IdentityKey;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

/// What a watch was sent.
#[derive(Debug)]
pub(crate) struct SeenMap {
    began: Instant,
    /// Lines that carry a map.
    pub(crate) snapshots: AtomicUsize,
    /// Lines that carry a change.
    pub(crate) deltas: AtomicUsize,
    /// Bytes of lines that carry a change.
    pub(crate) bytes: AtomicUsize,
    last: AtomicU64,
}

impl SeenMap {
    pub(crate) fn new(began: Instant) -> Arc<Self> {
        let (snapshots, deltas, bytes) = Default::default();
        Arc::new(Self { began, snapshots, deltas, bytes, last: AtomicU64::new(0) })
    }

    /// When the last change came, since the beginning of all.
    pub(crate) fn last(&self) -> Duration {
        Duration::from_micros(self.last.load(Ordering::Acquire))
    }

    /// Reads lines for as long as they come.
    async fn follow(&self, mut body: Incoming) {
        let mut start = Vec::new();
        let mut length = 0;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(data) = frame.data_ref() else { continue };
            for piece in data.split_inclusive(|&byte| byte == b'\n') {
                let room = 20usize.saturating_sub(start.len());
                start.extend_from_slice(&piece[..piece.len().min(room)]);
                length += piece.len();
                if piece.ends_with(b"\n") {
                    self.note(&start, length);
                    start.clear();
                    length = 0;
                }
            }
        }
    }

    fn note(&self, start: &[u8], length: usize) {
        if start.starts_with(br#"{"type":"snapshot""#) {
            self.snapshots.fetch_add(1, Ordering::AcqRel);
        } else if start.starts_with(br#"{"type":"delta""#) {
            let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.last.store(now, Ordering::Release);
            self.bytes.fetch_add(length, Ordering::AcqRel);
            self.deltas.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// An open connection of a node.
pub(crate) struct ScaleChannel(SendRequest<Full<Bytes>>);

impl ScaleChannel {
    /// Connects from one of many loopback addresses, so that no limit per address is met.
    pub(crate) async fn open(number: usize, identity: &Identity, to: SocketAddr, pin: IdentityKey) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        let from = Ipv4Addr::new(127, 0, 1 + (number / 200 % 200) as u8, 1 + (number % 200) as u8);
        socket.bind((IpAddr::V4(from), 0).into()).unwrap();
        let stream = socket.connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("coordinator").unwrap();
        let stream = TlsConnector::from(config(identity, pin)).connect(name, stream).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Starts a watch, which notes what it is sent for as long as the coordinator lives.
    pub(crate) async fn watch(mut self, seen: Arc<SeenMap>) {
        let request = request(Method::GET, "/v1/watch", Vec::new());
        let response = self.0.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        tokio::spawn(async move {
            seen.follow(response.into_body()).await;
            drop(self);
        });
    }

    pub(crate) async fn post(&mut self, path: &str, body: &impl serde::Serialize) -> (StatusCode, Bytes) {
        let body = serde_json::to_vec(body).unwrap();
        let response = self.0.send_request(request(Method::POST, path, body)).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }
}

fn request(method: Method, path: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(format!("https://coordinator{path}"));
    request.body(Full::new(Bytes::from(body))).unwrap()
}

fn config(identity: &Identity, pin: IdentityKey) -> Arc<ClientConfig> {
    Arc::new(tls::client(identity, &[pin]).unwrap())
}
