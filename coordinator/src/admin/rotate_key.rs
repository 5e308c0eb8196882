//! `rotate-key`: another identity key for this coordinator, in two steps, so that no node is left behind.
//!
//! ```text
//!   rotate-key           identity.next is made, signed by the present key, and told to all nodes: they trust both
//!   rotate-key --commit  once all nodes have that in force: identity.next becomes identity.key, used from the next start
//!                        on; then nodes are told of the new key alone
//! ```
//! A node that was not there in between knows the former key only, and refuses: a join with a new token, which the
//! coordinator answers as to the member that it is.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use mesh_proto::trust::signed_record::NextKey;
use mesh_proto::wire::{ErrorCode, MAX_REQUEST};

use crate::admin::context::AdminState;
use crate::admin::status;
use crate::core::documents;
use crate::core::failure::{Rejection, read};
use crate::keys::identity::{self, KeyError};
use crate::registry::{Actor, Change};

/// Most nodes that are named in a refusal.
const SHOWN: usize = 5;

/// Announces a next key, or goes on with it.
pub(crate) async fn rotate(
    State(state): State<AdminState>,
    Extension(by): Extension<Actor>,
    request: Request,
) -> Result<Json<documents::DoneDocument>, Rejection> {
    let documents::RotateKey { commit, force } = read(request, MAX_REQUEST).await?;
    let message = if commit { go_on(&state, force).await? } else { announce(&state, by).await? };
    tracing::info!("{message}");
    Ok(Json(documents::DoneDocument::new(message)))
}

async fn announce(AdminState { core, own, state_dir, .. }: &AdminState, by: Actor) -> Result<String, Rejection> {
    let dir = state_dir.clone();
    let made = tokio::task::spawn_blocking(move || Ok((identity::load(&dir)?, identity::next(&dir)?)));
    let (present, next) =
        made.await.map_err(|error| failed(&error.to_string()))?.map_err(|e: KeyError| failed(&e.to_string()))?;
    if present.public() != own.key {
        return Err(refused(
            "a key was committed already; restart this coordinator (systemctl restart mesh-coordinator)",
        ));
    }
    let key = next.public();
    let next = NextKey { key, signature: present.sign(&NextKey::message(&own.key, &key)) };
    let applied = core.apply(Change::CoordinatorNext { key: own.key, next }, by).await?;
    Ok(format!(
        "nodes are told of the next key {key} since revision {}; when mesh-coordinator status shows that live on all nodes, run mesh-coordinator rotate-key --commit",
        applied.revision
    ))
}

async fn go_on(state: &AdminState, force: bool) -> Result<String, Rejection> {
    let AdminState { core, own, state_dir, .. } = state;
    let announced = core.world().mesh.coordinators.iter().find(|one| one.key == own.key).and_then(|one| one.next);
    let Some(announced) = announced else {
        return Err(refused("no next key was announced; run mesh-coordinator rotate-key first"));
    };
    let status = status::status(state).await;
    let missing = status.live.nodes.saturating_sub(status.live.current);
    if missing > 0 && !force {
        let named: Vec<_> = status.behind.iter().take(SHOWN).map(|behind| behind.node.as_str()).collect();
        return Err(refused(&format!(
            "{missing} nodes may not know the next key: {}; wait until mesh-coordinator status shows them live, or say --force, and let them leave and join again",
            named.join(", ")
        )));
    }
    let dir = state_dir.clone();
    let key = announced.key;
    if identity::load(&dir).is_ok_and(|present| present.public() == key) {
        return Err(refused("that was done already; restart this coordinator (systemctl restart mesh-coordinator)"));
    }
    let done = tokio::task::spawn_blocking(move || identity::commit_next(&dir, &key));
    done.await.map_err(|error| failed(&error.to_string()))?.map_err(|error| failed(&error.to_string()))?;
    Ok(format!(
        "{key} is this coordinator's key from its next start on: restart it now (systemctl restart mesh-coordinator), and back up identity.key; the former one is identity.former"
    ))
}

fn refused(message: &str) -> Rejection {
    Rejection::new(ErrorCode::Key, message)
}

fn failed(message: &str) -> Rejection {
    Rejection::new(ErrorCode::Internal, message)
}
