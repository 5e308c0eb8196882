//! The control socket: HTTP/1.1 over a Unix socket, the same JSON as `-o json` prints.
//!
//! ```text
//! GET  /v1/status  /v1/peers  /v1/services[?name=]  /v1/flows  /v1/resolve?name=  /v1/why?src=&dst=[&udp=1]
//! GET  /v1/metrics          the metrics as text
//! POST /v1/bench?node=[&seconds=]   answers when it has measured; whoever hangs up ends it
//! POST /v1/rotate[?identity=1]      another tunnel key, or another identity key: answers when that is confirmed
//! GET  /v1/lock             who waits for the lock's signature, POST /v1/lock?node=&signature= admits one
//! POST /v1/reload  /v1/leave  /v1/stop  /v1/probe?node=      the round trip is in /v1/peers once it is measured
//! ```
//! Who may ask is decided by the kernel's word (SO_PEERCRED): root, and the user that runs the daemon.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_proto::dataplane::view::View;
use mesh_proto::ops::status as doc;
use mesh_proto::wire::query::parameter;
use mesh_proto::wire::{Countersign, ErrorCode};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::api::bench::MeasureError;

use crate::api::names;
use crate::api::names::NameError;
use crate::api::status;
use crate::base::text::JOIN_HINT;
use crate::control;
use crate::dataplane::bench::{BenchError, DEFAULT_SECONDS, SECONDS};
use crate::node::error::SocketError;
use crate::node::identity_rotation;
use crate::node::publisher::Subscriber;
use crate::node::requests::Requests;
use crate::node::snapshot::Snapshot;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);

/// A bound control socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

/// The daemon as those who ask see it.
#[derive(Debug, Clone)]
struct Daemon {
    subscriber: Subscriber,
    requests: Requests,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Binds the socket; the file of a dead daemon is replaced.
    ///
    /// # Errors
    /// `SocketError` if a living daemon answers on it, or it cannot be made.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |error| SocketError::Io { path: path.into(), error };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(SocketError::Taken(path.into()));
        }
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { path: path.into(), listener })
    }

    /// Answers until the task is dropped; at most 32 connections at a time.
    pub async fn serve(self, subscriber: Subscriber, requests: Requests) {
        let daemon = Daemon { subscriber, requests };
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = self.listener.accept().await else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let daemon = daemon.clone();
            tokio::spawn(async move {
                connection(stream, &daemon).await;
                drop(place);
            });
        }
    }
}

async fn connection(stream: UnixStream, daemon: &Daemon) {
    let uid = stream.peer_cred().map(|cred| cred.uid());
    let own = rustix::process::geteuid().as_raw();
    let trusted = uid.is_ok_and(|uid| uid == 0 || uid == own);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| async move {
        let response = if !trusted {
            let hint = "only root and the user of the daemon may ask; use sudo";
            failure(StatusCode::FORBIDDEN, ErrorCode::Forbidden, hint.into())
        } else if (request.method(), request.uri().path()) == (&Method::POST, "/v1/bench") {
            measure(&daemon.subscriber, request.uri().query().unwrap_or_default()).await
        } else if (request.method(), request.uri().path()) == (&Method::POST, "/v1/rotate")
            && parameter(request.uri().query().unwrap_or_default(), "identity").is_some()
        {
            renew(daemon).await
        } else if request.uri().path() == "/v1/lock" {
            lock(&daemon.subscriber, &request).await
        } else if (request.method(), request.uri().path()) == (&Method::GET, "/v1/why") {
            why(&daemon.subscriber, request.uri().query().unwrap_or_default()).await
        } else {
            answer(daemon, &request)
        };
        Ok::<_, std::convert::Infallible>(response)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "control socket connection ended");
    }
}

fn answer(daemon: &Daemon, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let Daemon { subscriber, requests } = daemon;
    let query = request.uri().query().unwrap_or_default();
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/status") => json(&status::status(&subscriber.snapshot())),
        (&Method::GET, "/v1/peers") => {
            json(&doc::Peers { schema: doc::PEERS.into(), peers: status::peer_list(&subscriber.snapshot()) })
        }
        (&Method::GET, "/v1/services") => services(&subscriber.snapshot(), parameter(query, "name")),
        (&Method::GET, "/v1/flows") => {
            json(&doc::Flows { schema: doc::FLOWS.into(), flows: status::flows(&subscriber.snapshot()) })
        }
        (&Method::GET, "/v1/metrics") => {
            let snapshot = subscriber.snapshot();
            text(crate::api::openmetrics::text(&status::status(&snapshot), snapshot.lane_deaths))
        }
        (&Method::GET, "/v1/resolve") => {
            let Some(name) = parameter(query, "name") else {
                return malformed("name");
            };
            with_view(subscriber, |view| {
                let meaning = names::resolve(view.netmap(), &name)?;
                Ok(json(&doc::Resolve {
                    schema: doc::RESOLVE.into(),
                    name: name.clone(),
                    addresses: vec![meaning.address],
                    kind: meaning.kind.into(),
                    full_name: meaning.full_name,
                }))
            })
        }
        (&Method::POST, "/v1/probe") => {
            let Some(name) = parameter(query, "node") else {
                return malformed("node");
            };
            with_view(subscriber, |view| {
                let (_, peer) = names::peer(view.netmap(), &name)?;
                if let Some(plane) = &*subscriber.plane.borrow() {
                    plane.ping(peer.id);
                }
                Ok(done("asking through the tunnel"))
            })
        }
        (&Method::POST, "/v1/reload") => {
            requests.reload();
            done("services.toml is read again")
        }
        (&Method::POST, "/v1/rotate") if !subscriber.link.borrow().connected => failure(
            StatusCode::CONFLICT,
            ErrorCode::NotConnected,
            "a new key has to be told to the peers, but there is no control channel; see `meshd status`".into(),
        ),
        (&Method::POST, "/v1/rotate") => {
            requests.rotate();
            done("another tunnel key is made; the former one is answered until all peers know the new one")
        }
        (&Method::POST, "/v1/leave") => {
            if requests.leave() {
                return done("leaving the mesh");
            }
            let message = "meshd is stopping and stays in the mesh; run `meshd leave` again once it has ended";
            failure(StatusCode::CONFLICT, ErrorCode::Stopping, message.into())
        }
        (&Method::POST, "/v1/stop") => {
            requests.stop();
            done("stopping")
        }
        _ => failure(
            StatusCode::NOT_FOUND,
            ErrorCode::NotFound,
            "there is no such request; `meshd --help` lists the verbs".into(),
        ),
    }
}

/// Judges a call. Of what the map does not contain the coordinator is asked.
async fn why(subscriber: &Subscriber, query: &str) -> Response<Full<Bytes>> {
    let (Some(src), Some(dst)) = (parameter(query, "src"), parameter(query, "dst")) else {
        return malformed("src and dst");
    };
    let udp = parameter(query, "udp").is_some();
    let view = subscriber.view.borrow().clone();
    let dial = subscriber.dial.borrow().clone();
    if let Some((view, dial)) = view.zip(dial)
        && let Some(word) = status::stranger(&view, &src, &dst, udp)
        && let Some(stranger) = control::about(&dial, &word).await
        && let Ok(why) = status::why_not(&view, &src, &dst, udp, &stranger)
    {
        return json(&why);
    }
    with_view(subscriber, |view| Ok(json(&status::why(view, &src, &dst, udp)?)))
}

/// Has the identity key changed, and waits for what comes of it.
async fn renew(daemon: &Daemon) -> Response<Full<Bytes>> {
    let Daemon { subscriber, requests } = daemon;
    if subscriber.enrolment.borrow().is_none() {
        let message = format!("this node has not joined a mesh; {}", JOIN_HINT);
        return failure(StatusCode::CONFLICT, ErrorCode::NotJoined, message);
    }
    if !subscriber.link.borrow().connected {
        let message = "a coordinator has to confirm another identity key, but there is no control channel; a change that was begun is finished when it is back. See `meshd status`";
        return failure(StatusCode::CONFLICT, ErrorCode::NotConnected, message.into());
    }
    let mut renewed = subscriber.renewed.clone();
    renewed.mark_unchanged();
    requests.renew();
    let is_late = timeout(identity_rotation::PATIENCE, renewed.changed()).await.is_err();
    let outcome = renewed.borrow().clone();
    match outcome.filter(|_| !is_late) {
        Some(Ok((from, to))) => done(&format!("the identity key is changed from {from} to {to}")),
        Some(Err(why)) => {
            failure(StatusCode::CONFLICT, ErrorCode::Identity, format!("the identity key stays as it is: {why}"))
        }
        None => {
            let message = "no coordinator has confirmed the other identity key yet; meshd goes on asking, and the change is finished when `meshd status` does not speak of it any more";
            failure(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Pending, message.into())
        }
    }
}

/// Asks the coordinator who waits for the lock's signature, or brings it one.
async fn lock(subscriber: &Subscriber, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (Some(enrolment), Some(dial)) = (subscriber.enrolment.borrow().clone(), subscriber.dial.borrow().clone())
    else {
        let message = format!("this node has not joined a mesh; {}", JOIN_HINT);
        return failure(StatusCode::CONFLICT, ErrorCode::NotJoined, message);
    };
    let query = request.uri().query().unwrap_or_default();
    let told = if request.method() == Method::POST {
        let named = parameter(query, "node").and_then(|node| node.parse().ok());
        let signature = parameter(query, "signature").and_then(|signature| signature.parse().ok());
        let (Some(node), Some(signature)) = (named, signature) else {
            return malformed("node and signature");
        };
        control::countersign(&dial, &Countersign { node, signature }).await
    } else {
        control::standing(&dial).await
    };
    match told {
        Ok(standing) => json(&doc::Lock {
            schema: doc::LOCK.into(),
            mesh: enrolment.mesh,
            lock: subscriber.link.borrow().lock,
            node: enrolment.node,
            identity: dial.keys.borrow().identity(),
            waiting: standing.waiting,
            aged: standing.aged,
        }),
        Err(error) => failure(StatusCode::BAD_GATEWAY, ErrorCode::Coordinator, error.to_string()),
    }
}

/// Measures the way to a node. The connection takes this future with it when it ends, and that ends the measurement.
async fn measure(subscriber: &Subscriber, query: &str) -> Response<Full<Bytes>> {
    let Some(node) = parameter(query, "node") else {
        return malformed("node");
    };
    let seconds = parameter(query, "seconds").map_or(Ok(DEFAULT_SECONDS), |seconds| seconds.parse());
    let Some(seconds) = seconds.ok().filter(|seconds| SECONDS.contains(seconds)) else {
        return malformed("seconds from 1 to 10");
    };
    match crate::api::bench::measure(subscriber, &node, seconds).await {
        Ok(measured) => json(&measured),
        Err(error) => {
            let (status, code) = match &error {
                MeasureError::Name(_) => (StatusCode::NOT_FOUND, ErrorCode::NotFound),
                MeasureError::NotJoined => (StatusCode::CONFLICT, ErrorCode::NotJoined),
                MeasureError::Busy => (StatusCode::CONFLICT, ErrorCode::Busy),
                MeasureError::Bench(BenchError::NoAnswer(_) | BenchError::Silent(_)) => {
                    (StatusCode::GATEWAY_TIMEOUT, ErrorCode::NoAnswer)
                }
                MeasureError::Bench(BenchError::Old(_)) => (StatusCode::BAD_GATEWAY, ErrorCode::OldPeer),
                MeasureError::Bench(BenchError::Narrow { .. }) => (StatusCode::BAD_GATEWAY, ErrorCode::Narrow),
            };
            failure(status, code, error.to_string())
        }
    }
}

fn services(snapshot: &Snapshot, name: Option<String>) -> Response<Full<Bytes>> {
    let mut list = status::services(snapshot);
    if let Some(name) = name {
        let key = snapshot.view.as_ref().and_then(|v| names::service(v.netmap(), &name).map(|(key, _)| key.clone()));
        let Some(key) = key else {
            let message = format!("no service of this mesh is called `{name}`; `meshd services` lists them");
            return failure(StatusCode::NOT_FOUND, ErrorCode::NotFound, message);
        };
        list.retain(|s| s.name == key.name && s.namespace == key.namespace);
    }
    json(&doc::Services { schema: doc::SERVICES.into(), services: list })
}

fn with_view(
    subscriber: &Subscriber,
    ask: impl FnOnce(&View) -> Result<Response<Full<Bytes>>, NameError>,
) -> Response<Full<Bytes>> {
    let Some(view) = subscriber.view.borrow().clone() else {
        let message = format!("this node has no map of a mesh yet; {}", JOIN_HINT);
        return failure(StatusCode::CONFLICT, ErrorCode::NotJoined, message);
    };
    ask(&view).unwrap_or_else(|e| failure(StatusCode::NOT_FOUND, ErrorCode::NotFound, e.to_string()))
}

fn malformed(what: &str) -> Response<Full<Bytes>> {
    let message = format!("the request lacks {what}; see `meshd --help`");
    failure(StatusCode::BAD_REQUEST, ErrorCode::Malformed, message)
}

fn done(sentence: &str) -> Response<Full<Bytes>> {
    json(&doc::Done { schema: doc::DONE.into(), done: vec![sentence.into()] })
}

fn failure(status: StatusCode, error: ErrorCode, message: String) -> Response<Full<Bytes>> {
    let mut response = json(&doc::Failure { schema: doc::ERROR.into(), error, message });
    *response.status_mut() = status;
    response
}

fn json<T: Serialize>(value: &T) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(value).expect("documents have string keys and no failing parts");
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let kind = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

fn text(body: String) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from(body)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use mesh_proto::wire::query::with_query;
    use tokio::sync::watch;

    use crate::cli::client::{Client, ClientError};
    use crate::node::lane_deaths::LaneDeaths;
    use crate::node::publisher::Publisher;
    use crate::node::requests::Order;

    #[tokio::test]
    async fn a_dead_socket_file_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

        let socket = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken(_))));

        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_socket_answers_before_the_node_has_joined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        let requests = Requests::default();
        let subscriber = Publisher::default().subscribe(watch::Sender::default().subscribe(), LaneDeaths::default());
        let socket = Socket::bind(&path).unwrap();
        let server = tokio::spawn(socket.serve(subscriber, requests.clone()));

        let client = Client::new(path.clone());
        let status: doc::Status = client.get("/v1/status").await.unwrap();
        assert_eq!((status.schema.as_str(), status.node), (doc::STATUS, None));
        assert!(status.warnings[0].contains("meshd join"), "{:?}", status.warnings);
        let why = client.get::<doc::Why>("/v1/why?src=a&dst=b").await.unwrap_err();
        assert!(why.to_string().contains("meshd join"), "{why}");
        let _: doc::Done = client.post("/v1/stop").await.unwrap();
        assert_eq!(*requests.order().borrow(), Order::Stop);
        let refused = client.post::<doc::Done>("/v1/leave").await.unwrap_err();
        assert!(refused.to_string().contains("meshd is stopping"), "{refused}");
        assert!(
            matches!(&refused, ClientError::Refused(failure) if failure.error.as_str() == "stopping"),
            "{refused:?}"
        );
        assert_eq!(*requests.order().borrow(), Order::Stop);

        for name in ["a&name=b", "a=b", "100%", "%41", "a+b", "a b", "ä⛵", "a#b"] {
            let path = with_query("/v1/services", &[("name", name)]);
            let unknown = client.get::<doc::Services>(&path).await.unwrap_err();
            assert!(matches!(&unknown, ClientError::Refused(failure) if failure.error == ErrorCode::NotFound));
            assert!(unknown.to_string().contains(&format!("`{name}`")), "{path}: {unknown}");
        }

        server.abort();
    }
}
