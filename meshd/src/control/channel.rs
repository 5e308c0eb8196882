//! One connection to one coordinator: TLS, HTTP/2, and the three requests of the wire.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_host::tls;
use mesh_proto::base::id::{IdentityKey, Revision};
use mesh_proto::trust::audit_log::{LogPage, Roll};
use mesh_proto::trust::high_water_mark::WentBack;
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::query::with_query;
use mesh_proto::wire::{
    About, Copied, Countersign, ErrorBody, ErrorCode, JoinRequest, JoinResponse, LockStanding, MAX_EVENT, MAX_LOG,
    Renewal, Report, ReportResponse, WatchEvent,
};
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::base::runtime::aside;
use crate::control::address_book::AddressBook;
use crate::control::attempts::{Attempts, Stage};
use crate::control::race;
use crate::keys::node::NodeKeys;

/// How long a name may take to be resolved: a resolver that asks a dead server of its two first says so within 10 s.
const RESOLVE: Duration = Duration::from_secs(12);
/// How long a connection may take to be set up, from the address to HTTP/2.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a watch may be silent: the coordinator promises a line in 10 s.
const SILENCE: Duration = Duration::from_secs(15);
/// The largest answer to a report or error that is read, in bytes.
const MAX_ANSWER: usize = 256 * 1024;

/// Why a coordinator did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The name has no address.
    #[error("cannot find the coordinator `{address}`: {error}; check the name and this host's DNS")]
    Resolve {
        /// The coordinator, as configured.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Nothing listens there, or the way is blocked.
    #[error(
        "cannot reach the coordinator at {address}: {error}; check that it runs and that a firewall lets TCP through"
    )]
    Connect {
        /// The coordinator, as configured.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Nothing answered in time.
    #[error("the coordinator at {0} does not answer; check that it runs and that a firewall lets TCP through")]
    Timeout(String),
    /// Who answers is somebody else.
    #[error(
        "the coordinator at {0} has another key than the token's pin: it is not the one that made the token, or it lost its keys; get a new token from the right coordinator"
    )]
    Pin(String),
    /// TLS failed in another way.
    #[error("no secure channel with {address}: {error}; check that it is a mesh-coordinator of a matching version")]
    Tls {
        /// The coordinator, as configured.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// The coordinator said no; it says why and what to do.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// The connection broke.
    #[error("the connection to the coordinator broke: {0}")]
    Broken(String),
    /// The coordinator ended the watch.
    #[error("the coordinator ended the watch")]
    Ended,
    /// The coordinator stops, and says so.
    #[error("the coordinator stops")]
    Leaving,
    /// The coordinator was silent for too long.
    #[error("the coordinator was silent for 15 s")]
    Silent,
    /// What came is not of this protocol.
    #[error("the coordinator's answer cannot be read: {0}; check that both run matching versions")]
    Malformed(String),
    /// It runs on older data than this node has seen.
    #[error(transparent)]
    WentBack(WentBack),
    /// The mesh does not list this coordinator any more.
    #[error("the coordinator at {0} does not serve this mesh any more; going on to another")]
    Retired(String),
    /// The connection's own address is gone, and nothing comes back to it.
    #[error("this host has the address {0} no more; connecting from another")]
    Moved(IpAddr),
    /// The node has another identity key now.
    #[error("the identity key of this node has changed; connecting with the new one")]
    Renewed,
    /// Another machine uses this node's identity.
    #[error(
        "another meshd with this node's identity took over the channel; if that is a copy of this machine, remove the copy's state directory and join it anew"
    )]
    Fenced,
}

impl ChannelError {
    /// Says whether a coordinator said that the identity that asks is no member's.
    pub fn is_disowned(&self) -> bool {
        matches!(self, Self::Refused(body) if matches!(body.error, ErrorCode::Revoked | ErrorCode::UnknownNode))
    }

    /// Returns the sentence with the address that it is about.
    pub(super) fn sentence_of(&self, address: &str) -> String {
        let text = self.to_string();
        if matches!(self, Self::Refused(_)) {
            format!("{address} answered: {text}")
        } else if text.contains(address) {
            text
        } else {
            format!("{address}: {text}")
        }
    }

    /// Says whether nobody took the request: another moment may be better.
    pub fn is_unreached(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Timeout(_)
            | Self::Broken(_)
            | Self::Ended
            | Self::Leaving
            | Self::Silent => true,
            Self::Pin(_)
            | Self::Tls { .. }
            | Self::Refused(_)
            | Self::Malformed(_)
            | Self::WentBack(_)
            | Self::Retired(_)
            | Self::Moved(_)
            | Self::Renewed
            | Self::Fenced => false,
        }
    }

    /// Says whether another coordinator of the mesh may answer otherwise.
    pub(super) fn may_differ_elsewhere(&self) -> bool {
        matches!(self, Self::Refused(body) if matches!(body.error, ErrorCode::Busy | ErrorCode::Internal))
    }
}

/// What is needed to reach the coordinators of one mesh. Clones share what is known of them.
#[derive(Debug, Clone)]
pub struct Dial {
    /// Where they are reached, and their keys.
    pub book: watch::Sender<AddressBook>,
    /// The node's own keys: those of the moment.
    pub keys: watch::Receiver<Arc<NodeKeys>>,
    /// What came of each address last.
    pub attempts: Attempts,
}

impl Dial {
    /// Begins with what is known of the coordinators, for the owner of some keys.
    pub fn new(book: AddressBook, keys: watch::Receiver<Arc<NodeKeys>>) -> Self {
        Self { book: watch::Sender::new(book), keys, attempts: Attempts::default() }
    }

    /// Begins with what others learn of the coordinators, too.
    pub fn sharing(book: &watch::Sender<AddressBook>, keys: watch::Receiver<Arc<NodeKeys>>) -> Self {
        Self { book: book.clone(), keys, attempts: Attempts::default() }
    }

    /// Returns what is to be tried, beginning at one of the addresses that are named.
    pub fn candidates(&self, turn: usize) -> Vec<String> {
        self.book.borrow().candidates(turn)
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Channel {
    /// The key that the coordinator proved.
    pub key: Option<IdentityKey>,
    /// The own address that it is from.
    pub local: Option<IpAddr>,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Channel {
    /// Connects to a coordinator by one address.
    ///
    /// # Errors
    /// `LinkError` that says which step failed.
    pub async fn open(dial: &Dial, address: &str) -> Result<Self, ChannelError> {
        dial.attempts.wait(address, Stage::Name);
        let resolved = resolve(address).await?;
        dial.attempts.wait(address, Stage::Connection);
        let opened = timeout(CONNECT, Self::dial(dial, address, resolved)).await;
        opened.map_err(|_| ChannelError::Timeout(address.into()))?
    }

    /// Connects by whichever of some addresses leads to a coordinator first, and says which. They are tried beside each
    /// other, a moment apart.
    ///
    /// # Errors
    /// The most telling of what they failed at: a wrong key before anything else, then what the first failed at.
    pub async fn open_first(dial: &Dial, addresses: &[String]) -> Result<(Self, String), ChannelError> {
        dial.attempts.begin(addresses);
        let ways = addresses.iter().cloned().map(|address| Self::open_named(dial.clone(), address));
        race::first(ways).await.map_err(|errors| {
            let mut errors = errors.into_iter().peekable();
            let first = errors.next_if(|error| !matches!(error, ChannelError::Pin(_)));
            let wrong_key = errors.find(|error| matches!(error, ChannelError::Pin(_)));
            wrong_key.or(first).unwrap_or_else(|| ChannelError::Malformed("no coordinator is named".into()))
        })
    }

    async fn open_named(dial: Dial, address: String) -> Result<(Self, String), ChannelError> {
        match Self::open(&dial, &address).await {
            Ok(channel) => Ok((channel, address)),
            Err(error) => {
                tracing::debug!(coordinator = address, %error, "not reached");
                dial.attempts.end(&address, error.sentence_of(&address));
                Err(error)
            }
        }
    }

    async fn dial(dial: &Dial, address: &str, resolved: Vec<SocketAddr>) -> Result<Self, ChannelError> {
        let stream = connect(address, resolved).await?;
        let local = stream.local_addr().ok().map(|local| local.ip());
        stream.set_nodelay(true).ok();
        keep_alive(&stream).ok();
        let named = |error| ChannelError::Tls { address: address.into(), error };
        let keys = Arc::clone(&dial.keys.borrow());
        let pins = dial.book.borrow().pins().to_vec();
        let config = tls::client(keys.own(), &pins).map_err(|e| named(io::Error::other(e)))?;
        let name = ServerName::from(std::net::Ipv4Addr::UNSPECIFIED);
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let stream =
            stream.map_err(|error| if is_pin(&error) { ChannelError::Pin(address.into()) } else { named(error) })?;
        let proven = stream.get_ref().1.peer_certificates().and_then(|keys| keys.first());
        let key = proven.and_then(|key| tls::identity_of(key));
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = handshake.map_err(|e| ChannelError::Broken(e.to_string()))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "control connection ended");
            }
        });
        Ok(Self { key, local, sender, driver })
    }

    /// Asks to become a member.
    ///
    /// # Errors
    /// `LinkError::Refused` with the coordinator's sentence, or why there was no answer.
    pub async fn join(&mut self, request: &JoinRequest) -> Result<JoinResponse, ChannelError> {
        self.post("/v1/join", request, MAX_EVENT).await
    }

    /// Tells what the node is and does.
    ///
    /// # Errors
    /// `LinkError::Refused` with the coordinator's sentence, or why there was no answer.
    pub async fn report(&mut self, report: &Report) -> Result<ReportResponse, ChannelError> {
        self.post("/v1/report", report, MAX_ANSWER).await
    }

    /// Asks to go on with another identity, over a channel of the former one.
    ///
    /// # Errors
    /// `LinkError::Refused` with the coordinator's sentence, or why there was no answer.
    pub async fn renew(&mut self, renewal: &Renewal) -> Result<ReportResponse, ChannelError> {
        self.post("/v1/identity", renewal, MAX_ANSWER).await
    }

    /// Tells that another machine has this node's identity.
    ///
    /// # Errors
    /// `LinkError::Refused` with the coordinator's sentence, or why there was no answer.
    pub async fn copied(&mut self, record: SignedRecord) -> Result<ReportResponse, ChannelError> {
        self.post("/v1/copied", &Copied { record }, MAX_ANSWER).await
    }

    /// Asks about a node that this one is not told of, by its name or address.
    ///
    /// # Errors
    /// `LinkError::Refused` if there is none, or why there was no answer.
    pub async fn about(&mut self, word: &str) -> Result<About, ChannelError> {
        self.get(&with_query("/v1/about", &[("name", word)]), MAX_ANSWER).await
    }

    /// Asks who waits for the lock's signature.
    ///
    /// # Errors
    /// `LinkError::Refused` with the coordinator's sentence, or why there was no answer.
    pub async fn lock(&mut self) -> Result<LockStanding, ChannelError> {
        self.get("/v1/lock", MAX_ANSWER).await
    }

    /// Brings the lock's signature for a node.
    ///
    /// # Errors
    /// `LinkError::Refused` with the coordinator's sentence, or why there was no answer.
    pub async fn countersign(&mut self, signed: &Countersign) -> Result<LockStanding, ChannelError> {
        self.post("/v1/lock", signed, MAX_ANSWER).await
    }

    /// Asks for the entries of the log after one.
    ///
    /// # Errors
    /// `LinkError::Refused` with the coordinator's sentence, or why there was no answer.
    pub async fn log(&mut self, after: u64) -> Result<LogPage, ChannelError> {
        self.get(&with_query("/v1/log", &[("after", &after.to_string())]), MAX_LOG).await
    }

    /// Asks who belongs to the mesh.
    ///
    /// # Errors
    /// `LinkError::Refused` with the coordinator's sentence, or why there was no answer.
    pub async fn roll(&mut self) -> Result<Roll, ChannelError> {
        self.get("/v1/roll", MAX_LOG).await
    }

    async fn get<A: DeserializeOwned>(&mut self, path: &str, most: usize) -> Result<A, ChannelError> {
        let body = self.send(Method::GET, path, Bytes::new()).await?;
        read(body, most).await
    }

    /// Starts a watch from a revision of an epoch on.
    ///
    /// # Errors
    /// `LinkError::Refused` with the coordinator's sentence, or why there was no answer.
    pub async fn watch(&mut self, revision: Revision, epoch: u64) -> Result<Watch, ChannelError> {
        let (revision, epoch) = (revision.to_string(), epoch.to_string());
        let path = with_query("/v1/watch", &[("revision", &revision), ("epoch", &epoch)]);
        let body = self.send(Method::GET, &path, Bytes::new()).await?;
        Ok(Watch { body, buffer: Vec::new(), searched: 0 })
    }

    async fn post<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        path: &str,
        request: &Q,
        most: usize,
    ) -> Result<A, ChannelError> {
        let body = serde_json::to_vec(request).map_err(|e| ChannelError::Malformed(e.to_string()))?;
        let body = self.send(Method::POST, path, body.into()).await?;
        read(body, most).await
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Incoming, ChannelError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://coordinator{path}"))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| ChannelError::Malformed(e.to_string()))?;
        let answered = timeout(ANSWER, self.sender.send_request(request)).await;
        let answered = answered.map_err(|_| ChannelError::Silent)?;
        let response = answered.map_err(|e| ChannelError::Broken(cause(&e)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let bytes = collect(response.into_body(), MAX_ANSWER).await?;
        Err(refusal(status, &bytes))
    }
}

/// The lines of a watch.
#[derive(Debug)]
pub struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are known to hold no line end.
    searched: usize,
}

impl Watch {
    /// Waits for the next event; a line is at most `MAX_EVENT` bytes.
    ///
    /// # Errors
    /// `LinkError` when the watch is over; it never goes on after that.
    pub async fn next(&mut self) -> Result<WatchEvent, ChannelError> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|&b| b == b'\n');
            if let Some(end) = end.map(|i| i + self.searched) {
                let event = aside(|| serde_json::from_slice(&self.buffer[..end]));
                self.buffer.drain(..=end);
                self.buffer.shrink_to(64 * 1024);
                self.searched = 0;
                return event.map_err(|e| ChannelError::Malformed(e.to_string()));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_EVENT {
                return Err(ChannelError::Malformed("a line without end".into()));
            }
            let frame = timeout(SILENCE, self.body.frame()).await;
            let frame = frame.map_err(|_| ChannelError::Silent)?;
            let frame = frame.ok_or(ChannelError::Ended)?;
            let frame = frame.map_err(|e| ChannelError::Broken(cause(&e)))?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// Asks the host's resolver for the addresses of a coordinator. It waits for a while only, though the thread that asks
/// cannot be called back.
async fn resolve(address: &str) -> Result<Vec<SocketAddr>, ChannelError> {
    let resolved = match timeout(RESOLVE, tokio::net::lookup_host(address)).await {
        Ok(resolved) => resolved.map(Vec::from_iter),
        Err(_) => {
            let silent = format!("this host's resolver has not answered in {} s", RESOLVE.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, silent))
        }
    };
    resolved.map_err(|error| ChannelError::Resolve { address: address.into(), error })
}

async fn connect(address: &str, resolved: Vec<SocketAddr>) -> Result<TcpStream, ChannelError> {
    let connected = race::first(resolved.into_iter().map(TcpStream::connect)).await;
    connected.map_err(|errors| {
        let error = errors.into_iter().next_back();
        let error = error.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable));
        ChannelError::Connect { address: address.into(), error }
    })
}

/// Lets the kernel notice a dead path under a connection that has data in flight or is idle.
fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_user_timeout(stream, 12_000)
}

fn is_pin(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)))
}

async fn read<A: DeserializeOwned>(body: Incoming, most: usize) -> Result<A, ChannelError> {
    let bytes = collect(body, most).await?;
    serde_json::from_slice(&bytes).map_err(|e| ChannelError::Malformed(e.to_string()))
}

async fn collect(body: Incoming, most: usize) -> Result<Bytes, ChannelError> {
    let collected = timeout(ANSWER, Limited::new(body, most).collect()).await;
    let collected = collected.map_err(|_| ChannelError::Silent)?;
    let collected = collected.map_err(|e| ChannelError::Broken(e.to_string()))?;
    Ok(collected.to_bytes())
}

fn refusal(status: StatusCode, bytes: &[u8]) -> ChannelError {
    match serde_json::from_slice(bytes) {
        Ok(body) => ChannelError::Refused(body),
        Err(_) => ChannelError::Malformed(format!("status {status} without a reason")),
    }
}

/// Returns the innermost reason; hyper's own is only "http2 error".
fn cause(error: &hyper::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    let text = inner.to_string();
    // What rustls says of a process that was killed is addressed to programmers.
    if text.contains("close_notify") { "it was closed at the other end".into() } else { text }
}
