//! Calls to etcd: one member at a time, each call with a time limit, the next member after a failure.
//!
//! What matters about a failure is whether the request may have been carried out all the same. `Refused` says
//! that it certainly was not; `Lost` says that nobody knows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use hyper::http::uri::PathAndQuery;
use prost::Message;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::message::{
    AuthenticateRequest, AuthenticateResponse, StatusRequest, StatusResponse, WatchRequest, WatchResponse,
};
use super::options::{EtcdOptions, User};
use crate::store::StoreError;

/// How long a connection may take to be set up.
const CONNECT: Duration = Duration::from_secs(1);
/// How long one call may take.
pub(super) const CALL: Duration = Duration::from_secs(2);
/// Reads keys.
pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";
/// Reads and writes keys in one transaction.
pub(super) const TXN: &str = "/etcdserverpb.KV/Txn";
/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why a call gave nothing.
#[derive(Debug, Clone)]
pub(super) enum CallError {
    /// Etcd said no: nothing happened.
    Refused { at: String, code: Code, detail: String },
    /// There was no answer: it may have happened.
    Lost { at: String, detail: String },
}

impl CallError {
    /// Says whether trying again is in vain: the two ends do not agree on TLS.
    pub(super) fn is_hopeless(&self) -> bool {
        let (Self::Refused { detail, .. } | Self::Lost { detail, .. }) = self;
        ["ertificate", "InvalidContentType"].iter().any(|word| detail.contains(word))
    }

    /// Turns it into the store's error.
    pub(super) fn explain(self, doing: &'static str, tls: bool) -> StoreError {
        let (at, code, detail) = match self {
            Self::Refused { at, code, detail } => (at, Some(code), detail),
            Self::Lost { at, detail } => (at, None, detail),
        };
        let is_large = detail.contains("request is too large") || detail.contains("larger than max");
        if is_large || detail.contains("too many operations") {
            return StoreError::TooLarge { detail };
        }
        let advice = advice(code, &detail, tls).into();
        StoreError::Etcd { doing, at, detail, advice }
    }
}

/// Says what to do about a failure.
fn advice(code: Option<Code>, detail: &str, tls: bool) -> &'static str {
    let says = |word: &str| detail.contains(word);
    match code {
        _ if says("invalid user ID or password") => "correct `user` and the password in `password_file` under [etcd]",
        _ if says("user name is empty") || says("user name not found") => {
            "this etcd asks for a user: set `user` and `password_file` under [etcd]"
        }
        Some(Code::PermissionDenied) => "grant the user's role readwrite on our prefix (etcdctl role grant-permission)",
        _ if says("space exceeded") => "compact and defragment etcd, or raise its --quota-backend-bytes",
        _ if says("InvalidContentType") => "this port does not speak TLS: write etcd:// instead of etcds://",
        _ if says("CertificateRequired") || says("BadCertificate") => {
            "this etcd asks for a certificate of its own authority: set `cert` and `key` under [etcd]"
        }
        _ if says("ertificate") && tls => {
            "set `ca` under [etcd] to the authority that signed etcd's certificates, and name its members as they do"
        }
        _ if tls => {
            "check that etcd runs there and that a firewall lets us through; if it does not speak TLS, write etcd://"
        }
        _ => "check that etcd runs there and that a firewall lets us through; if it speaks TLS, write etcds://",
    }
}

/// The way to the members of an etcd.
pub(super) struct Client {
    members: Vec<(String, Channel)>,
    current: AtomicUsize,
    user: Option<User>,
    token: Mutex<Option<Arc<str>>>,
    /// Whether it speaks TLS, for advice.
    pub(super) tls: bool,
}

impl Client {
    /// Prepares the way; needs a runtime, and connects when the first call is made.
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, StoreError> {
        let tls = options.tls()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut members = Vec::new();
        for at in &options.endpoints {
            let wrong = |error: tonic::transport::Error| StoreError::Etcd {
                doing: "use",
                at: at.clone(),
                detail: innermost(&error),
                advice: "check `store` and the files under [etcd] in coordinator.toml".into(),
            };
            let endpoint = Endpoint::from_shared(format!("{scheme}://{at}")).map_err(wrong)?;
            let mut endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
            if let Some(tls) = &tls {
                endpoint = endpoint.tls_config(tls.clone()).map_err(wrong)?;
            }
            members.push((at.clone(), endpoint.connect_lazy()));
        }
        Ok(Self {
            members,
            current: AtomicUsize::new(0),
            user: options.user()?,
            token: Mutex::default(),
            tls: options.tls,
        })
    }

    /// Makes one call of the member whose turn it is. A failure makes it the next one's turn.
    pub(super) async fn call<Q, A>(&self, path: &'static str, request: &Q) -> Result<A, CallError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let place = self.current.load(Ordering::Relaxed) % self.members.len();
        let outcome = self.call_member(place, path, request).await;
        if let Err(CallError::Lost { .. }) = &outcome {
            self.turn_from(place);
        }
        outcome
    }

    /// Asks each member how it is.
    pub(super) async fn statuses(&self) -> Vec<Result<StatusResponse, CallError>> {
        let asked = (0..self.members.len()).map(|place| async move {
            let path = "/etcdserverpb.Maintenance/Status";
            self.call_member(place, path, &StatusRequest::default()).await
        });
        futures_util::future::join_all(asked).await
    }

    /// Opens a watch at the member whose turn it is.
    pub(super) async fn watch(&self, request: WatchRequest) -> Result<Streaming<WatchResponse>, CallError> {
        let place = self.current.load(Ordering::Relaxed) % self.members.len();
        let (at, channel) = &self.members[place];
        let opened = async {
            let token = self.token(place).await?;
            let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
            ready(&mut grpc).await.map_err(|status| classify(at, &status))?;
            // The request's stream stays open: its end would end the watch.
            let requests = stream::once(std::future::ready(request)).chain(stream::pending());
            let mut requests = with_token(Request::new(requests), token.as_deref());
            // A member that lost touch with the others ends the watch instead of staying silent.
            requests.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let opened = grpc.streaming(requests, path, codec).await;
            opened.map(tonic::Response::into_inner).map_err(|status| classify(at, &status))
        };
        let outcome = match timeout(CALL, opened).await {
            Ok(outcome) => outcome,
            Err(_) => Err(silent(at)),
        };
        if outcome.is_err() {
            self.turn_from(place);
        }
        outcome
    }

    /// Makes it another member's turn, unless it is already.
    pub(super) fn turn(&self) {
        self.turn_from(self.current.load(Ordering::Relaxed) % self.members.len());
    }

    fn turn_from(&self, place: usize) {
        let next = (place + 1) % self.members.len();
        // If this fails, somebody else turned already.
        let _ = self.current.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn call_member<Q, A>(&self, place: usize, path: &'static str, request: &Q) -> Result<A, CallError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let token = self.token(place).await?;
        let first = self.send(place, path, request.clone(), token.as_deref()).await;
        match first {
            // Tokens end with the member that gave them or after a time, and users are altered.
            Err(CallError::Refused { code, detail, .. }) if self.user.is_some() && is_stale(code, &detail) => {
                self.keep(None);
                let token = self.token(place).await?;
                self.send(place, path, request.clone(), token.as_deref()).await
            }
            outcome => outcome,
        }
    }

    async fn send<Q, A>(
        &self,
        place: usize,
        path: &'static str,
        request: Q,
        token: Option<&str>,
    ) -> Result<A, CallError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let (at, channel) = &self.members[place];
        let answered = timeout(CALL, async {
            let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
            ready(&mut grpc).await?;
            let codec = ProstCodec::<Q, A>::default();
            let request = with_token(Request::new(request), token);
            grpc.unary(request, PathAndQuery::from_static(path), codec).await
        });
        match answered.await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(classify(at, &status)),
            Err(_) => Err(silent(at)),
        }
    }

    /// Returns the token to present, after asking for one if there is none.
    async fn token(&self, place: usize) -> Result<Option<Arc<str>>, CallError> {
        let Some(user) = &self.user else { return Ok(None) };
        let known = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return Ok(known);
        }
        let request = AuthenticateRequest { name: user.name.clone(), password: (*user.password).clone() };
        let asked = self.send(place, "/etcdserverpb.Auth/Authenticate", request, None).await;
        let token: Option<Arc<str>> = match asked {
            Ok(AuthenticateResponse { token }) => Some(token.into()),
            Err(CallError::Refused { detail, .. }) if detail.contains("authentication is not enabled") => None,
            Err(error) => return Err(error),
        };
        self.keep(token.clone());
        Ok(token)
    }

    fn keep(&self, token: Option<Arc<str>>) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::unavailable(innermost(&error)))
}

fn with_token<T>(mut request: Request<T>, token: Option<&str>) -> Request<T> {
    let value = token.and_then(|token| AsciiMetadataValue::try_from(token).ok());
    if let Some(mut value) = value {
        value.set_sensitive(true);
        request.metadata_mut().insert("token", value);
    }
    request
}

fn is_stale(code: Code, detail: &str) -> bool {
    code == Code::Unauthenticated || detail.contains("revision of auth store is old")
}

fn silent(at: &str) -> CallError {
    CallError::Lost { at: at.to_owned(), detail: format!("no answer in {} s", CALL.as_secs()) }
}

/// Tells a refusal from a lost answer, by the status that gRPC has for each.
fn classify(at: &str, status: &Status) -> CallError {
    let at = at.to_owned();
    let has_cause = std::error::Error::source(status).is_some();
    let detail = if has_cause { innermost(status) } else { status.message().to_owned() };
    match status.code() {
        code @ (Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated) => CallError::Refused { at, code, detail },
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => CallError::Lost { at, detail },
    }
}

/// Returns the innermost reason: the outer ones only say that something failed.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
