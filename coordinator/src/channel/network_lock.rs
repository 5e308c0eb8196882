//! `/v1/lock`: what members ask about lock mode, and the signatures that they bring.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use mesh_proto::wire::{Countersign, LockStanding, MAX_REQUEST, MAX_WAITING};
use mesh_proto::world::World;

use crate::channel::context::Context;
use crate::channel::peer::Requester;
use crate::core::failure::{Rejection, read};
use crate::core::lock_members::members;
use crate::registry::identity_rotation::aged;
use crate::registry::{Actor, Change, LockStep};

/// Tells a member who waits.
pub(crate) async fn standing(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
) -> Result<Json<LockStanding>, Rejection> {
    context.asking_member(&peer).await?;
    Ok(Json(stands(&context.core.world())))
}

/// Takes a signature that a member brings. What counts is the lock's key, not who brings it.
pub(crate) async fn countersign(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
    request: Request,
) -> Result<Json<LockStanding>, Rejection> {
    let by = Actor::Node(context.asking_member(&peer).await?);
    let Countersign { node, signature } = read(request, MAX_REQUEST).await?;
    let step = LockStep::Admit { node: node.clone(), signature };
    let turn = context.limits.members_turn()?;
    context.core.apply(Change::Lock(step), by).await?;
    drop(turn);
    tracing::info!(%node, "admitted by the lock's key");
    Ok(Json(stands(&context.core.world())))
}

fn stands(world: &World) -> LockStanding {
    LockStanding {
        lock: world.mesh.lock.clone(),
        waiting: members(world, true).take(MAX_WAITING).collect(),
        aged: aged(world).take(MAX_WAITING).collect(),
    }
}
