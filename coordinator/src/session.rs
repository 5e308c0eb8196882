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
use mesh_proto::id::{NodeName, Revision};
use mesh_proto::plan::plan;
use mesh_proto::wire::{self, ErrorBody, JoinRequest, JoinResponse, Report, ReportResponse};
use mesh_proto::world::World;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::feed::Feed;
use crate::hub::{Hub, now};
use crate::registry::{Actor, Change, Refused};
use crate::server::{Peer, Stop};

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
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let status = match refused.word {
            "token" => StatusCode::UNAUTHORIZED,
            "unknown_node" | "revoked" => StatusCode::FORBIDDEN,
            "claim" | "name" | "site" | "services" => StatusCode::CONFLICT,
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

#[derive(Clone)]
struct Context {
    hub: Arc<Hub>,
    stop: Stop,
}

/// Returns the routes of the control channel.
pub(crate) fn routes(hub: Arc<Hub>, stop: Stop) -> Router {
    Router::new()
        .route("/v1/join", post(join))
        .route("/v1/watch", get(watch))
        .route("/v1/report", post(report))
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

async fn join(
    State(Context { hub, .. }): State<Context>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Json<JoinResponse>, Failure> {
    let answer = admit(&hub, &peer, request).await;
    match &answer {
        Ok(response) => {
            hub.metrics.enrolment("accepted");
            peer.welcome();
            tracing::info!(node = %response.node, site = %response.site, peer = %peer.observed, "joined");
        }
        Err((word, Failure(_, body))) => {
            hub.metrics.enrolment(word);
            tracing::warn!(peer = %peer.observed, reason = *word, "join refused: {}", body.message);
        }
    }
    answer.map(Json).map_err(|(_, failure)| failure)
}

async fn admit(hub: &Arc<Hub>, peer: &Peer, request: Request) -> Result<JoinResponse, (&'static str, Failure)> {
    let request: JoinRequest = read(request).await.map_err(|failure| ("malformed", failure))?;
    let change = Change::Join { identity: peer.identity, request, observed: peer.observed };
    let by = hub.world().member(&peer.identity).cloned().map_or(Actor::Stranger(peer.observed), Actor::Node);
    let applied = hub.ask(change, by).await;
    let applied = applied.map_err(|refused| (refused.word, refused.into()))?;
    let world = hub.world();
    let response = applied.node.and_then(|node| welcome(hub, &world, node, applied.refused));
    response.ok_or_else(|| ("internal", vanished()))
}

fn welcome(hub: &Hub, world: &World, node: NodeName, refused: Vec<String>) -> Option<JoinResponse> {
    let record = world.nodes.get(&node)?;
    let netmap = plan(world, &node)?;
    Some(JoinResponse {
        version: wire::VERSION,
        id: record.id,
        site: record.site.clone(),
        mesh: world.mesh.name.clone(),
        range: world.mesh.range,
        address: record.address,
        blocks: record.blocks.clone(),
        pins: vec![hub.key],
        coordinators: hub.config.public.clone(),
        netmap,
        refused,
        node,
    })
}

#[derive(Deserialize)]
struct Resume {
    revision: Option<u64>,
}

async fn watch(
    State(Context { hub, stop }): State<Context>,
    Extension(peer): Extension<Peer>,
    resume: Result<Query<Resume>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Failure> {
    let Query(Resume { revision }) = resume.map_err(|rejection| {
        let message = format!("{}; write /v1/watch?revision=N", rejection.body_text());
        Failure::new(StatusCode::BAD_REQUEST, "malformed", message)
    })?;
    let node = member(&hub, &peer).await?;
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
    let Report { facts, applied, warnings } = read(request).await?;
    hub.metrics.report();
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
async fn member(hub: &Arc<Hub>, peer: &Peer) -> Result<NodeName, Failure> {
    let world = hub.world();
    if let Some(node) = world.member(&peer.identity) {
        return Ok(node.clone());
    }
    let identity = peer.identity;
    let refused = if hub.with(move |registry| registry.is_revoked(&identity)).await {
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

/// Reads a JSON body within its limits.
pub(crate) async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    let malformed = |message| Failure::new(StatusCode::BAD_REQUEST, "malformed", message);
    let Ok(body) = timeout(BODY, to_bytes(request.into_body(), wire::MAX_REQUEST)).await else {
        let message = format!("the body did not arrive within {} s; send it again", BODY.as_secs());
        return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "malformed", message));
    };
    let body = body.map_err(|error| {
        if is_too_large(&error) {
            let message = format!("the body is larger than {} bytes; send less", wire::MAX_REQUEST);
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

fn vanished() -> Failure {
    let message = "the node was admitted and is gone already; was it revoked? Join again";
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
}
