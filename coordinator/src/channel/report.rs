//! `POST /v1/report`: what a member says of itself, what it has in force, and what its operator should know.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use mesh_proto::wire::{self, ErrorCode, Report, ReportResponse};

use crate::channel::context::Context;
use crate::channel::peer::Requester;
use crate::channel::signed_facts;
use crate::core::failure::{Rejection, read};
use crate::registry::{Actor, Change, Refused};
use mesh_host::clock::unix as now;

/// Most sentences of a report that are kept, and the longest.
const MAX_WARNINGS: usize = 32;
const MAX_WARNING: usize = 1024;

/// Takes a report.
pub(crate) async fn report(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
    request: Request,
) -> Result<Json<ReportResponse>, Rejection> {
    let node = context.member(&peer).await?;
    let Context { core, limits, counters, .. } = context;
    counters.report();
    if !limits.may_report(&core.world(), peer.identity) {
        let message = "this node reports too often; its newest report is taken when it tries again in a second";
        return Err(Refused::new(ErrorCode::Busy, message).into());
    }
    let Report { facts, applied, warnings } = read(request, wire::MAX_REQUEST).await?;
    let facts = signed_facts::facts(&peer.identity, &facts)?;
    if !limits.may_alter(&core.world(), peer.identity, &facts, peer.observed) {
        let message =
            "this node changes too often; its newest report is taken when it tries again, in 10 seconds at the latest";
        return Err(Refused::new(ErrorCode::Busy, message).into());
    }
    let change = Change::Facts { identity: peer.identity, facts, observed: peer.observed };
    let outcome = {
        let _turn = limits.members_turn()?;
        core.apply(change, Actor::Node(node.clone())).await?
    };
    let warnings = shortened(warnings);
    let refused = outcome.refused;
    let kept = warnings.into_iter().chain(refused.iter().cloned()).collect();
    core.with(move |registry| {
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
