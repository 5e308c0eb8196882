//! What nodes ask to follow the log of operations by themselves: its entries as they are hashed, and who belongs to
//! the mesh at its end.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use mesh_proto::trust::audit_log::{LogPage, Roll};
use mesh_proto::wire::MAX_LOG;
use serde::Deserialize;

use crate::channel::context::Context;
use crate::channel::peer::Requester;
use crate::core::failure::{Rejection, words};
use crate::registry::Refused;

/// What an entry may take beside its body in an answer, its escapes included, as a share of the body.
const OVERHEAD: usize = 2;

/// From where on.
#[derive(Deserialize)]
pub(crate) struct After {
    after: u64,
}

/// Answers a member with entries of the log.
pub(crate) async fn log(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
    after: Result<Query<After>, QueryRejection>,
) -> Result<Json<LogPage>, Rejection> {
    let After { after } = words(after, "/v1/log?after=N")?;
    context.asking_member(&peer).await?;
    let read =
        context.core.with(move |registry| (registry.world().log_position(), registry.raw_log(after.saturating_add(1))));
    let (told, entries) = read.await;
    let entries = entries.map_err(|error| Rejection::from(Refused::from(error)))?;
    let mut room = MAX_LOG / 2;
    let fits = entries.into_iter().take_while(|entry| {
        let size = (entry.body.len() + 100) * OVERHEAD;
        let fits = size <= room;
        room = room.saturating_sub(size);
        fits
    });
    Ok(Json(LogPage { told, entries: fits.collect() }))
}

/// Answers a member with the keys of all members, and of those who were expelled.
pub(crate) async fn roll(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
) -> Result<Json<Roll>, Rejection> {
    context.asking_member(&peer).await?;
    let expelled = context.core.with(|registry| registry.expelled()).await;
    Ok(Json(expelled.roll()))
}
