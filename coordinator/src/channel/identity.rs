//! `POST /v1/identity`: a member goes on with another identity key, over a channel of the former one.
//!
//! Once it was taken the former key is a stranger's. It may ask again for the same change all the same, as a stranger:
//! the first answer may have been lost.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use mesh_proto::wire::{self, Renewal, ReportResponse};

use crate::channel::context::{Context, asks_too_often};
use crate::channel::peer::Requester;
use crate::channel::signed_facts;
use crate::core::failure::{Rejection, read};
use crate::registry::{Actor, Change};

/// Takes a change of identity.
pub(crate) async fn renew(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
    request: Request,
) -> Result<Json<ReportResponse>, Rejection> {
    let by = allowed(&context, &peer).await?;
    let Renewal { succession, facts } = read(request, wire::MAX_REQUEST).await?;
    let facts = signed_facts::facts(&succession.to, &facts)?;
    let renewal = Renewal { succession, facts };
    let _turn = context.limits.members_turn()?;
    let applied =
        context.core.apply(Change::Renew { identity: peer.identity, renewal, observed: peer.observed }, by).await?;
    if let Some(node) = applied.node.filter(|_| applied.altered) {
        tracing::info!(%node, from = %succession.from, to = %succession.to, "another identity key");
    }
    Ok(Json(ReportResponse { observed: peer.observed, refused: applied.refused }))
}

/// Returns who asks: a member, or one that was a member under this key.
async fn allowed(context: &Context, peer: &Requester) -> Result<Actor, Rejection> {
    let Context { core, limits, shared, .. } = context;
    let world = core.world();
    if let Some(node) = world.member(&peer.identity) {
        if limits.may_report(&world, peer.identity) {
            return Ok(Actor::Node(node.clone()));
        }
        return Err(asks_too_often().into());
    }
    let _turn = limits.strangers_turn().await?;
    shared.catch_up(core).await;
    if let Some(node) = core.world().member(&peer.identity) {
        return Ok(Actor::Node(node.clone()));
    }
    let identity = peer.identity;
    match core.with(move |registry| registry.successor(&identity).cloned()).await {
        Some(node) => Ok(Actor::Node(node)),
        // It says why.
        None => context.member(peer).await.map(Actor::Node),
    }
}
