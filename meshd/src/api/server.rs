//! The control socket: HTTP/1.1 over a Unix socket, the same JSON as `-o json` prints.
//!
//! ```text
//! GET  /v1/status  /v1/peers  /v1/services[?name=]  /v1/flows  /v1/resolve?name=  /v1/why?src=&dst=[&udp=1]
//! GET  /v1/metrics          the metrics as text
//! POST /v1/bench?node=[&seconds=]   answers when it has measured; whoever hangs up ends it
//! POST /v1/rotate[?identity=1]      another tunnel key, or another identity key: answers when that is confirmed
//! GET  /v1/lock             who waits for the lock's signature, POST /v1/lock?node=&signature= admits one
//! POST /v1/join?coordinators=&pins= addresses of a token of the same mesh are tried from now on, at once where none works
//! POST /v1/reload           answers when services.toml is in force, or why it is not
//! POST /v1/leave  /v1/stop  /v1/probe?node=      the round trip is in /v1/peers once it is measured
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use mesh_proto::base::id::IdentityKey;
use mesh_proto::dataplane::view::View;
use mesh_proto::ops::status as doc;
use mesh_proto::wire::{Countersign, ErrorCode};
use tokio::time::timeout;

use crate::api::names::{self, NameError};
use crate::api::openmetrics::text_of;
use crate::api::status;
use crate::base::text::JOIN_HINT;
use crate::control;
use crate::dataplane::bench::{BenchError, DEFAULT_SECONDS, SECONDS};
use crate::node::identity_rotation;
use crate::node::join::JoinError;
use crate::node::publisher::Subscriber;
use crate::node::requests::Requests;

/// The daemon as those who ask see it.
#[derive(Debug, Clone)]
struct Daemon {
    subscriber: Subscriber,
    requests: Requests,
}

/// The decoded words of a query.
type Words = Query<BTreeMap<String, String>>;
type Answer<T> = Result<Json<T>, No>;

/// Why a request failed: the status, a word for programs, a sentence for people.
#[derive(Debug)]
struct No(StatusCode, ErrorCode, String);

impl IntoResponse for No {
    fn into_response(self) -> Response {
        let Self(status, error, message) = self;
        (status, Json(doc::Failure { schema: doc::ERROR.into(), error, message })).into_response()
    }
}

impl From<NameError> for No {
    fn from(error: NameError) -> Self {
        Self(StatusCode::NOT_FOUND, ErrorCode::NotFound, error.to_string())
    }
}

impl From<BenchError> for No {
    fn from(error: BenchError) -> Self {
        let (status, word) = match &error {
            BenchError::NoAnswer(_) | BenchError::Silent(_) => (StatusCode::GATEWAY_TIMEOUT, ErrorCode::NoAnswer),
            BenchError::Old(_) => (StatusCode::BAD_GATEWAY, ErrorCode::OldPeer),
            BenchError::Narrow { .. } => (StatusCode::BAD_GATEWAY, ErrorCode::Narrow),
        };
        Self(status, word, error.to_string())
    }
}

/// Returns what is answered.
pub fn routes(subscriber: Subscriber, requests: Requests) -> Router {
    Router::new()
        .route("/v1/status", get(async |State(d): State<Daemon>| Json(status::status(&d.subscriber.snapshot()))))
        .route("/v1/peers", get(peers))
        .route("/v1/services", get(services))
        .route("/v1/flows", get(flows))
        .route("/v1/metrics", get(async |State(d): State<Daemon>| text_of(&d.subscriber.snapshot())))
        .route("/v1/resolve", get(resolve))
        .route("/v1/why", get(why))
        .route("/v1/lock", get(waiting).post(countersign))
        .route("/v1/bench", post(bench))
        .route("/v1/probe", post(probe))
        .route("/v1/rotate", post(rotate))
        .route("/v1/join", post(join))
        .route("/v1/reload", post(reload))
        .route("/v1/leave", post(leave))
        .route("/v1/renounce", post(renounce))
        .route("/v1/stop", post(stop))
        .fallback(nothing)
        .method_not_allowed_fallback(nothing)
        .with_state(Daemon { subscriber, requests })
}

impl Daemon {
    fn view(&self) -> Result<Arc<View>, No> {
        self.subscriber.view.borrow().clone().ok_or_else(no_map)
    }
}

async fn peers(State(daemon): State<Daemon>) -> Json<doc::PeersStatus> {
    Json(doc::PeersStatus { schema: doc::PEERS.into(), peers: status::peer_list(&daemon.subscriber.snapshot()) })
}

async fn flows(State(daemon): State<Daemon>) -> Json<doc::Flows> {
    Json(doc::Flows { schema: doc::FLOWS.into(), flows: status::flows(&daemon.subscriber.snapshot()) })
}

async fn services(State(daemon): State<Daemon>, Query(words): Words) -> Answer<doc::ServicesStatus> {
    let snapshot = daemon.subscriber.snapshot();
    let mut services = status::services(&snapshot);
    if let Some(name) = words.get("name") {
        let key = snapshot.view.as_ref().and_then(|v| names::service(v.netmap(), name).map(|(key, _)| key.clone()));
        let key = key.ok_or_else(|| {
            let hidden = snapshot.view.as_ref().and_then(|view| names::hidden(view.netmap(), name));
            if let Some(hidden) = hidden {
                return hidden.into();
            }
            let message = format!("no service of this mesh is called `{name}`; `meshd services` lists them");
            No(StatusCode::NOT_FOUND, ErrorCode::NotFound, message)
        })?;
        services.retain(|s| s.name == key.name && s.namespace == key.namespace);
    }
    Ok(Json(doc::ServicesStatus { schema: doc::SERVICES.into(), services }))
}

async fn resolve(State(daemon): State<Daemon>, Query(words): Words) -> Answer<doc::Resolve> {
    let name = words.get("name").ok_or_else(|| malformed("name"))?;
    let meaning = names::resolve(daemon.view()?.netmap(), name)?;
    Ok(Json(doc::Resolve {
        schema: doc::RESOLVE.into(),
        name: name.clone(),
        addresses: vec![meaning.address],
        kind: meaning.kind.into(),
        full_name: meaning.full_name,
    }))
}

/// Judges a call. Of what the map does not contain the coordinator is asked.
async fn why(State(daemon): State<Daemon>, Query(words): Words) -> Answer<doc::Why> {
    let (src, dst) = words.get("src").zip(words.get("dst")).ok_or_else(|| malformed("src and dst"))?;
    let udp = words.contains_key("udp");
    let view = daemon.view()?;
    let dial = daemon.subscriber.dial.borrow().clone();
    if let Some(dial) = dial
        && let Some(word) = status::stranger(&view, src, dst, udp)
        && let Some(stranger) = control::about(&dial, &word).await
        && let Ok(why) = status::why_not(&view, src, dst, udp, &stranger)
    {
        return Ok(Json(why));
    }
    let plane = daemon.subscriber.plane.borrow().clone();
    let narrow = |peer| plane.as_ref().and_then(|plane| plane.narrow(peer));
    Ok(Json(status::why(&view, src, dst, udp, narrow)?))
}

/// Measures the way to a node. The connection takes this future with it when it ends, and that ends the measurement.
async fn bench(State(daemon): State<Daemon>, Query(words): Words) -> Answer<doc::Bench> {
    let node = words.get("node").ok_or_else(|| malformed("node"))?;
    let seconds = words.get("seconds").map_or(Ok(DEFAULT_SECONDS), |seconds| seconds.parse());
    let seconds = seconds.ok().filter(|seconds| SECONDS.contains(seconds));
    let seconds = seconds.ok_or_else(|| malformed("seconds from 1 to 10"))?;
    let view = daemon.view()?;
    let (name, peer) = names::peer(view.netmap(), node)?;
    let plane = daemon.subscriber.plane.borrow().clone().ok_or_else(no_map)?;
    let bench = plane.bench(peer).ok_or_else(|| {
        let message = "this node measures already: wait for the other `meshd bench` (at most 30 s), or end it";
        No(StatusCode::CONFLICT, ErrorCode::Busy, message.into())
    })?;
    Ok(Json(bench.run(name, Duration::from_secs(seconds.into())).await?))
}

async fn probe(State(daemon): State<Daemon>, Query(words): Words) -> Answer<doc::Done> {
    let name = words.get("node").ok_or_else(|| malformed("node"))?;
    let view = daemon.view()?;
    let (_, peer) = names::peer(view.netmap(), name)?;
    if let Some(plane) = &*daemon.subscriber.plane.borrow() {
        plane.ping(peer.id);
    }
    Ok(done("asking through the tunnel"))
}

async fn rotate(State(Daemon { subscriber, requests }): State<Daemon>, Query(words): Words) -> Answer<doc::Done> {
    let is_connected = subscriber.link.borrow().connected;
    if words.contains_key("identity") {
        return renew(&subscriber, &requests, is_connected).await;
    }
    if !is_connected {
        let message = "a new key has to be told to the peers, but there is no control channel; see `meshd status`";
        return Err(No(StatusCode::CONFLICT, ErrorCode::NotConnected, message.into()));
    }
    requests.rotate();
    Ok(done("another tunnel key is made; the former one is answered until all peers know the new one"))
}

/// Has the identity key changed, and waits for what comes of it.
async fn renew(subscriber: &Subscriber, requests: &Requests, is_connected: bool) -> Answer<doc::Done> {
    if subscriber.enrolment.borrow().is_none() {
        return Err(not_joined());
    }
    if !is_connected {
        let message = "a coordinator has to confirm another identity key, but there is no control channel; a change that was begun is finished when it is back. See `meshd status`";
        return Err(No(StatusCode::CONFLICT, ErrorCode::NotConnected, message.into()));
    }
    let mut renewed = subscriber.renewed.clone();
    renewed.mark_unchanged();
    requests.renew();
    let is_late = timeout(identity_rotation::PATIENCE, renewed.changed()).await.is_err();
    let outcome = renewed.borrow().clone();
    match outcome.filter(|_| !is_late) {
        Some(Ok((from, to))) => Ok(done(format!("the identity key is changed from {from} to {to}"))),
        Some(Err(why)) => {
            Err(No(StatusCode::CONFLICT, ErrorCode::Identity, format!("the identity key stays as it is: {why}")))
        }
        None => {
            let message = "no coordinator has confirmed the other identity key yet; meshd goes on asking, and the change is finished when `meshd status` does not speak of it any more";
            Err(No(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Pending, message.into()))
        }
    }
}

/// Asks the coordinator who waits for the lock's signature.
async fn waiting(State(daemon): State<Daemon>) -> Answer<doc::LockStatus> {
    lock(&daemon.subscriber, None).await
}

/// Brings the coordinator the lock's signature for one who waits.
async fn countersign(State(daemon): State<Daemon>, Query(words): Words) -> Answer<doc::LockStatus> {
    let node = words.get("node").and_then(|node| node.parse().ok());
    let signature = words.get("signature").and_then(|signature| signature.parse().ok());
    let (node, signature) = node.zip(signature).ok_or_else(|| malformed("node and signature"))?;
    lock(&daemon.subscriber, Some(&Countersign { node, signature })).await
}

async fn lock(subscriber: &Subscriber, signed: Option<&Countersign>) -> Answer<doc::LockStatus> {
    let (enrolment, dial) = (subscriber.enrolment.borrow().clone(), subscriber.dial.borrow().clone());
    let (enrolment, dial) = enrolment.zip(dial).ok_or_else(not_joined)?;
    let told = control::lock_standing(&dial, signed).await;
    let standing = told.map_err(|error| No(StatusCode::BAD_GATEWAY, ErrorCode::Coordinator, error.to_string()))?;
    Ok(Json(doc::LockStatus {
        schema: doc::LOCK.into(),
        mesh: enrolment.mesh,
        lock: subscriber.link.borrow().lock,
        node: enrolment.node,
        identity: dial.keys.borrow().identity(),
        waiting: standing.waiting,
        aged: standing.aged,
    }))
}

/// Takes up where the coordinators are, as another token of this node's mesh says.
async fn join(State(daemon): State<Daemon>, Query(words): Words) -> Answer<doc::Done> {
    let list = |name| words.get(name).map(|text| text.split(',').filter(|word| !word.is_empty()));
    let (addresses, pins) = list("coordinators").zip(list("pins")).ok_or_else(|| malformed("coordinators and pins"))?;
    let addresses: Vec<String> = addresses.map(str::to_owned).collect();
    let pins: Vec<IdentityKey> = pins.filter_map(|pin| pin.parse().ok()).collect();
    let (enrolment, dial) = (daemon.subscriber.enrolment.borrow().clone(), daemon.subscriber.dial.borrow().clone());
    let (enrolment, dial) = enrolment.zip(dial).ok_or_else(not_joined)?;
    if !enrolment.pins.iter().any(|pin| pins.contains(pin)) {
        let elsewhere = JoinError::Elsewhere { mesh: enrolment.mesh, node: enrolment.node };
        return Err(No(StatusCode::CONFLICT, ErrorCode::Exists, elsewhere.to_string()));
    }
    dial.book.send_modify(|book| {
        if book.take_token(&addresses) {
            tracing::info!(coordinators = ?addresses, "a token names other addresses of the coordinators; they are tried first");
        }
    });
    Ok(done("the token's addresses are tried first"))
}

/// Has the node's services.toml read, and answers when it is in force, or why it is not.
async fn reload(State(daemon): State<Daemon>) -> Answer<doc::Done> {
    let number = daemon.requests.reload();
    let reading = daemon.requests.reading(number).await;
    if let Some(error) = reading.error {
        let message = format!("services.toml is refused; the one before stays in force\n{error}");
        return Err(No(StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::Services, message));
    }
    let Json(mut answer) = done(format!("services.toml is in force, with {} [[serve]]", reading.serve));
    answer.done.extend(reading.warnings.iter().map(|warning| format!("warning: {warning}")));
    if reading.serve > 0 && !daemon.subscriber.snapshot().link.connected {
        answer.done.push(
            "warning: no coordinator is reached, which has to admit each [[serve]] before anybody calls it".into(),
        );
    }
    Ok(Json(answer))
}

async fn leave(State(daemon): State<Daemon>) -> Answer<doc::Done> {
    leaving(daemon.requests.leave(), "leaving the mesh")
}

/// Leaves a mesh whose coordinator disowned this node; its range stays closed.
async fn renounce(State(daemon): State<Daemon>) -> Answer<doc::Done> {
    leaving(daemon.requests.renounce(), "leaving the mesh, whose range stays closed")
}

fn leaving(is_obeyed: bool, sentence: &str) -> Answer<doc::Done> {
    if is_obeyed {
        return Ok(done(sentence));
    }
    let message = "meshd is stopping and stays in the mesh; run `meshd leave` again once it has ended";
    Err(No(StatusCode::CONFLICT, ErrorCode::Stopping, message.into()))
}

async fn stop(State(daemon): State<Daemon>) -> Json<doc::Done> {
    daemon.requests.stop();
    done("stopping")
}

async fn nothing() -> No {
    No(StatusCode::NOT_FOUND, ErrorCode::NotFound, "there is no such request; `meshd --help` lists the verbs".into())
}

fn not_joined() -> No {
    No(StatusCode::CONFLICT, ErrorCode::NotJoined, format!("this node has not joined a mesh; {JOIN_HINT}"))
}

fn no_map() -> No {
    No(StatusCode::CONFLICT, ErrorCode::NotJoined, format!("this node has no map of a mesh yet; {JOIN_HINT}"))
}

fn malformed(what: &str) -> No {
    No(StatusCode::BAD_REQUEST, ErrorCode::Malformed, format!("the request lacks {what}; see `meshd --help`"))
}

fn done(sentence: impl Into<String>) -> Json<doc::Done> {
    Json(doc::Done { schema: doc::DONE.into(), done: vec![sentence.into()] })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use mesh_host::client::{AskError, Client};
    use mesh_host::log::LostLines;
    use mesh_host::socket::Socket;
    use mesh_proto::wire::query::with_query;
    use tokio::sync::watch;

    use super::*;

    use crate::base::text::SOCKET;
    use crate::node::lane_deaths::LaneDeaths;
    use crate::node::publisher::Publisher;
    use crate::node::requests::Order;

    #[tokio::test]
    async fn the_socket_answers_before_the_node_has_joined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        let requests = Requests::default();
        let subscriber = Publisher::default().subscribe(
            watch::Sender::default().subscribe(),
            LaneDeaths::default(),
            LostLines::default(),
        );
        let routes = routes(subscriber, requests.clone());
        let (_stop, stopping) = watch::channel(false);
        let socket = Socket::bind(&path, &SOCKET).unwrap();
        let server = tokio::spawn(socket.serve(move |_| routes.clone(), stopping));

        let client = Client::new(&SOCKET, path);
        let status: doc::Status = client.get("/v1/status").await.unwrap();
        assert_eq!((status.schema.as_str(), status.node), (doc::STATUS, None));
        assert!(status.warnings[0].contains("meshd join"), "{:?}", status.warnings);
        let why = client.get::<doc::Why>("/v1/why?src=a&dst=b").await.unwrap_err();
        assert!(why.to_string().contains("meshd join"), "{why}");
        let _: doc::Done = client.post("/v1/stop").await.unwrap();
        assert_eq!(*requests.order().borrow(), Order::Stop);
        let refused = client.post::<doc::Done>("/v1/leave").await.unwrap_err();
        assert!(refused.to_string().contains("meshd is stopping"), "{refused}");
        assert!(matches!(&refused, AskError::Refused(failure) if failure.error.as_str() == "stopping"), "{refused:?}");
        assert_eq!(*requests.order().borrow(), Order::Stop);

        for name in ["a&name=b", "a=b", "100%", "%41", "a+b", "a b", "ä⛵", "a#b"] {
            let path = with_query("/v1/services", &[("name", name)]);
            let unknown = client.get::<doc::ServicesStatus>(&path).await.unwrap_err();
            assert!(matches!(&unknown, AskError::Refused(failure) if failure.error == ErrorCode::NotFound));
            assert!(unknown.to_string().contains(&format!("`{name}`")), "{path}: {unknown}");
        }

        server.abort();
    }
}
