//! What a node may ask over the control channel, and what it is answered (`mesh_proto::wire`).
//!
//! Who asks is known from the channel's key alone, and looked up on each request and each event: a revoked
//! node is a stranger at once.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use mesh_proto::base::id::{NodeName, Revision};
use mesh_proto::wire::{self, ErrorBody, Report, ReportResponse};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::about;
use crate::enrol;
use crate::feed::Feed;
use crate::hub::{Hub, now};
use crate::registry::succession::superseded;
use crate::registry::{Actor, Change, Refused};
use crate::server::{Peer, Stop};
use crate::{locking, renewing, signed, witness};

/// How long a node may take to send a body.
const BODY: Duration = Duration::from_secs(10);
/// Most sentences of a report that are kept, and the longest.
const MAX_WARNINGS: usize = 32;
const MAX_WARNING: usize = 1024;

/// Why a request failed, as a status and a body.
#[derive(Debug)]
pub(crate) struct Failure(StatusCode, ErrorBody);

impl Failure {
    /// Makes a failure.
    pub(crate) fn new(status: StatusCode, word: &str, message: impl Into<String>) -> Self {
        let error = word.into();
        let message = message.into();
        Self(status, ErrorBody { error, message })
    }

    /// Returns what the peer is told.
    pub(crate) fn body(&self) -> &ErrorBody {
        &self.1
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let status = match refused.word {
            "token" => StatusCode::UNAUTHORIZED,
            "unknown_node" | "revoked" | "superseded" => StatusCode::FORBIDDEN,
            "claim" | "name" | "site" | "services" | "lock" | "identity" => StatusCode::CONFLICT,
            "malformed" => StatusCode::BAD_REQUEST,
            "busy" => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, refused.word, refused.message)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

/// What every request finds.
#[derive(Clone)]
pub(crate) struct Context {
    /// What all tasks share.
    pub(crate) hub: Arc<Hub>,
    stop: Stop,
}

/// Returns the routes of the control channel.
pub(crate) fn routes(hub: Arc<Hub>, stop: Stop) -> Router {
    Router::new()
        .route("/v1/join", post(enrol::join))
        .route("/v1/watch", get(watch))
        .route("/v1/report", post(report))
        .route("/v1/identity", post(renewing::renew))
        .route("/v1/about", get(about::about))
        .route("/v1/log", get(witness::log))
        .route("/v1/roll", get(witness::roll))
        .route("/v1/lock", get(locking::standing).post(locking::countersign))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Context { hub, stop })
}

/// Answers for a path that does not exist.
pub(crate) async fn no_such_path(request: Request) -> Failure {
    let message = format!(
        "there is no {}; this is mesh-coordinator {}: are both ends of one version?",
        request.uri().path(),
        env!("CARGO_PKG_VERSION")
    );
    Failure::new(StatusCode::NOT_FOUND, "malformed", message)
}

/// Answers for a method that a path does not have.
pub(crate) async fn wrong_method(request: Request) -> Failure {
    let message = format!("{} does not take {}; are both ends of one version?", request.uri().path(), request.method());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "malformed", message)
}

#[derive(Deserialize)]
struct Resume {
    revision: Option<u64>,
    epoch: Option<u64>,
}

async fn watch(
    State(Context { hub, stop }): State<Context>,
    Extension(peer): Extension<Peer>,
    resume: Result<Query<Resume>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Failure> {
    let Query(Resume { revision, epoch }) = resume.map_err(|rejection| {
        let message = format!("{}; write /v1/watch?revision=N&epoch=N", rejection.body_text());
        Failure::new(StatusCode::BAD_REQUEST, "malformed", message)
    })?;
    hub.catch_up().await;
    // Revisions of another epoch are of another history.
    let revision = revision.filter(|_| epoch.is_none_or(|epoch| epoch == hub.world().epoch.number));
    let node = member(&hub, &peer).await?;
    if hub.is_shared() && revision.is_some_and(|held| held > hub.world().revision.0) {
        let message = "this coordinator is behind the one that the node was connected to, since its store does not answer; try another, or again in a few seconds";
        return Err(Refused { word: "busy", message: message.into() }.into());
    }
    let feed = Feed::open(hub, peer.identity, node, revision.map(Revision), stop).await;
    let body = Body::from_stream(feed.into_stream());
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

async fn report(
    State(Context { hub, .. }): State<Context>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Json<ReportResponse>, Failure> {
    let node = member(&hub, &peer).await?;
    hub.metrics.report();
    if !hub.may_report(peer.identity) {
        let message = "this node reports too often; its newest report is taken when it tries again in a second";
        return Err(Refused { word: "busy", message: message.into() }.into());
    }
    let Report { facts, applied, warnings } = read(request, wire::MAX_REQUEST).await?;
    let facts = signed::facts(&peer.identity, &facts)?;
    if !hub.may_alter(peer.identity, &facts, peer.observed) {
        let message =
            "this node changes too often; its newest report is taken when it tries again, in 10 seconds at the latest";
        return Err(Refused { word: "busy", message: message.into() }.into());
    }
    let change = Change::Facts { identity: peer.identity, facts, observed: peer.observed };
    let outcome = hub.ask(change, Actor::Node(node.clone())).await?;
    let warnings = shortened(warnings);
    let refused = outcome.refused;
    let kept = warnings.into_iter().chain(refused.iter().cloned()).collect();
    hub.with(move |registry| {
        // A node cannot have in force what does not exist yet.
        let applied = applied.min(registry.world().revision);
        if registry.world().nodes.contains_key(&node) {
            registry.live_mut().reported(&node, applied, kept, now());
        }
    })
    .await;
    Ok(Json(ReportResponse { observed: peer.observed, refused }))
}

/// Returns which member asks, or why it may not.
pub(crate) async fn member(hub: &Arc<Hub>, peer: &Peer) -> Result<NodeName, Failure> {
    let world = hub.world();
    if let Some(node) = world.member(&peer.identity) {
        return Ok(node.clone());
    }
    let _turn = hub.strangers_turn().await?;
    hub.catch_up().await;
    if let Some(node) = hub.world().member(&peer.identity) {
        return Ok(node.clone());
    }
    let identity = peer.identity;
    let known =
        hub.with(move |registry| (registry.is_revoked(&identity), registry.successor(&identity).cloned())).await;
    let refused = if let (_, Some(node)) = known {
        Refused { word: "superseded", message: superseded(&node) }
    } else if known.0 {
        Refused {
            word: "revoked",
            message: "this node was revoked; to bring the machine back, run `meshd leave`, make a token with `mesh-coordinator token create --site SITE`, and run `meshd join TOKEN`".into(),
        }
    } else {
        Refused {
            word: "unknown_node",
            message: "this coordinator does not know this node; make a token with `mesh-coordinator token create --site SITE`, and run `meshd join TOKEN` again".into(),
        }
    };
    Err(refused.into())
}

/// Reads a JSON body of at most `most` bytes, in time.
pub(crate) async fn read<T: DeserializeOwned>(request: Request, most: usize) -> Result<T, Failure> {
    let malformed = |message| Failure::new(StatusCode::BAD_REQUEST, "malformed", message);
    let Ok(body) = timeout(BODY, to_bytes(request.into_body(), most)).await else {
        let message = format!("the body did not arrive within {} s; send it again", BODY.as_secs());
        return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "malformed", message));
    };
    let body = body.map_err(|error| {
        if is_too_large(&error) {
            let message = format!("the body is larger than {most} bytes; send less");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "malformed", message)
        } else {
            malformed(format!("the body did not arrive: {error}; send it again"))
        }
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        malformed(format!("the body is not what is expected here: {error}; are both ends of one version?"))
    })
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn shortened(mut warnings: Vec<String>) -> Vec<String> {
    warnings.truncate(MAX_WARNINGS);
    for warning in &mut warnings {
        let end = warning.floor_char_boundary(MAX_WARNING);
        warning.truncate(end);
    }
    warnings
}
