//! `/v1/lock`: what the operator asks about lock mode, and the steps that a verb signed.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use mesh_proto::trust::network_lock::LockChange;

use crate::core::failure::{Rejection, read};
use crate::core::lock_members::members;
use crate::core::{Core, documents};
use crate::registry::{Actor, Change, LockStep};

/// The largest step that is read, in bytes: signatures for 10,000 nodes and more.
const MAX_STEP: usize = 4 * 1024 * 1024;

/// Tells the operator who waits, and what there is to be signed.
pub(crate) async fn show(State(core): State<Arc<Core>>) -> Json<documents::LockDocument> {
    let world = core.world();
    Json(documents::LockDocument {
        schema: documents::LOCK.into(),
        mesh: world.mesh.name.clone(),
        lock: world.mesh.lock.clone(),
        members: members(&world, false).collect(),
        waiting: members(&world, true).collect(),
    })
}

/// Takes a step that a verb signed.
pub(crate) async fn step(
    State(core): State<Arc<Core>>,
    Extension(by): Extension<Actor>,
    request: Request,
) -> Result<Json<documents::DoneDocument>, Rejection> {
    let step: LockStep = read(request, MAX_STEP).await?;
    let told = match &step {
        LockStep::Begin { key, signatures } => {
            format!("the mesh is locked by {key}, {} nodes are admitted", signatures.len())
        }
        LockStep::Change { change: LockChange { to: Some(to), .. }, .. } => format!("the mesh is locked by {to}"),
        LockStep::Change { .. } => "the mesh is not locked any more".into(),
        LockStep::Abandon => {
            "the mesh is not locked any more; nodes hold to the lock until you run `meshd lock forget` on each,".into()
        }
        LockStep::Admit { node, .. } => format!("{node} is admitted"),
    };
    let applied = core.apply(Change::Lock(step), by).await?;
    tracing::info!(revision = %applied.revision, "{told}");
    Ok(Json(documents::DoneDocument::new(format!("{told} since revision {}", applied.revision))))
}
