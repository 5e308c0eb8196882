//! What a node may ask over the control channel, and what it is answered (`mesh_proto::wire`).
//!
//! Who asks is known from the channel's key alone, and looked up on each request and each event: a revoked
//! node is a stranger at once.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use mesh_proto::base::id::Revision;
use mesh_proto::wire::{self, ErrorCode, Report, ReportResponse};
use serde::Deserialize;

use crate::base::clock::now;
use crate::base::stop::Stop;
use crate::channel::context::{Context, member};
use crate::channel::join;
use crate::channel::lookup;
use crate::channel::peer::Peer;
use crate::channel::watch::Feed;
use crate::channel::{identity, log, signed_facts};
use crate::cli::network_lock;
use crate::core::Hub;
use crate::core::failure::{Failure, no_such_path, read, wrong_method};
use crate::registry::{Actor, Change, Refused};

/// Most sentences of a report that are kept, and the longest.
const MAX_WARNINGS: usize = 32;
const MAX_WARNING: usize = 1024;

/// Returns the routes of the control channel.
pub(crate) fn routes(hub: Arc<Hub>, stop: Stop) -> Router {
    Router::new()
        .route("/v1/join", post(join::join))
        .route("/v1/watch", get(watch))
        .route("/v1/report", post(report))
        .route("/v1/identity", post(identity::renew))
        .route("/v1/about", get(lookup::about))
        .route("/v1/log", get(log::log))
        .route("/v1/roll", get(log::roll))
        .route("/v1/lock", get(network_lock::standing).post(network_lock::countersign))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Context { hub, stop })
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
        Failure::new(StatusCode::BAD_REQUEST, ErrorCode::Malformed, message)
    })?;
    hub.catch_up().await;
    // Revisions of another epoch are of another history.
    let revision = revision.filter(|_| epoch.is_none_or(|epoch| epoch == hub.world().epoch.number));
    let node = member(&hub, &peer).await?;
    if hub.is_shared() && revision.is_some_and(|held| held > hub.world().revision.0) {
        let message = "this coordinator is behind the one that the node was connected to, since its store does not answer; try another, or again in a few seconds";
        return Err(Refused { code: ErrorCode::Busy, message: message.into() }.into());
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
        return Err(Refused { code: ErrorCode::Busy, message: message.into() }.into());
    }
    let Report { facts, applied, warnings } = read(request, wire::MAX_REQUEST).await?;
    let facts = signed_facts::facts(&peer.identity, &facts)?;
    if !hub.may_alter(peer.identity, &facts, peer.observed) {
        let message =
            "this node changes too often; its newest report is taken when it tries again, in 10 seconds at the latest";
        return Err(Refused { code: ErrorCode::Busy, message: message.into() }.into());
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

fn shortened(mut warnings: Vec<String>) -> Vec<String> {
    warnings.truncate(MAX_WARNINGS);
    for warning in &mut warnings {
        let end = warning.floor_char_boundary(MAX_WARNING);
        warning.truncate(end);
    }
    warnings
}
