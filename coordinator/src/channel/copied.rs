//! `POST /v1/copied`: a member found that another machine has its identity, and stops.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use mesh_host::clock::unix as now;
use mesh_proto::wire::{self, Copied, ReportResponse};

use crate::channel::context::Context;
use crate::channel::peer::Requester;
use crate::core::failure::{Rejection, read};

/// Notes it for the operator. Whoever has a node's key may say so of that node, and of no other.
pub(crate) async fn copied(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
    request: Request,
) -> Result<Json<ReportResponse>, Rejection> {
    let node = context.asking_member(&peer).await?;
    let Copied { record: _ } = read(request, wire::MAX_REQUEST).await?;
    tracing::warn!(%node, from = %peer.observed, "two machines have the identity of this node; this one stops");
    context
        .core
        .with(move |registry| {
            if registry.world().nodes.contains_key(&node) {
                registry.live_mut().copied(&node, peer.observed, now());
            }
        })
        .await;
    Ok(Json(ReportResponse { observed: peer.observed, refused: Vec::new() }))
}
