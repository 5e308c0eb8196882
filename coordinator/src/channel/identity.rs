//! `POST /v1/identity`: a member goes on with another identity key, over a channel of the former one.
//!
//! Once it was taken the former key is a stranger's. It may ask again for the same change all the same, as a stranger:
//! the first answer may have been lost.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use mesh_proto::wire::{self, ErrorCode, Renewal, ReportResponse};

use crate::channel::context::{Context, member};
use crate::channel::peer::Peer;
use crate::channel::signed_facts;
use crate::core::Hub;
use crate::core::failure::{Failure, read};
use crate::registry::{Actor, Change, Refused};

/// Takes a change of identity.
pub(crate) async fn renew(
    State(Context { hub, .. }): State<Context>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Json<ReportResponse>, Failure> {
    let by = allowed(&hub, &peer).await?;
    let Renewal { succession, facts } = read(request, wire::MAX_REQUEST).await?;
    let facts = signed_facts::facts(&succession.to, &facts)?;
    let renewal = Renewal { succession, facts };
    let applied = hub.ask(Change::Renew { identity: peer.identity, renewal, observed: peer.observed }, by).await?;
    if let Some(node) = applied.node.filter(|_| applied.altered) {
        tracing::info!(%node, from = %succession.from, to = %succession.to, "another identity key");
    }
    Ok(Json(ReportResponse { observed: peer.observed, refused: applied.refused }))
}

/// Returns who asks: a member, or one that was a member under this key.
async fn allowed(hub: &Arc<Hub>, peer: &Peer) -> Result<Actor, Failure> {
    if let Some(node) = hub.world().member(&peer.identity).cloned() {
        if hub.may_report(peer.identity) {
            return Ok(Actor::Node(node));
        }
        let message = "this node asks too often; try again in a second";
        return Err(Refused { code: ErrorCode::Busy, message: message.into() }.into());
    }
    let _turn = hub.strangers_turn().await?;
    hub.catch_up().await;
    if let Some(node) = hub.world().member(&peer.identity) {
        return Ok(Actor::Node(node.clone()));
    }
    let identity = peer.identity;
    match hub.with(move |registry| registry.successor(&identity).cloned()).await {
        Some(node) => Ok(Actor::Node(node)),
        // It says why.
        None => member(hub, peer).await.map(Actor::Node),
    }
}
