//! The coordinators of the mesh, as the operator sees them: which can be reached, and which is to be forgotten.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use mesh_proto::base::id::{IdError, IdentityKey};
use mesh_proto::wire::ErrorCode;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admin::context::AdminState;
use crate::core::coordinator_list::OwnEntry;
use crate::core::failure::{Rejection, Segment};
use crate::core::{Core, documents};
use crate::registry::{Actor, Change, CoordinatorRecord};

/// How long another coordinator may take to be reached.
const DIAL: Duration = Duration::from_millis(500);

/// Takes a coordinator out of the list, for the operator.
pub(crate) async fn forget(
    State(AdminState { core, own, .. }): State<AdminState>,
    Extension(by): Extension<Actor>,
    Segment(key): Segment,
) -> Result<Json<documents::DoneDocument>, Rejection> {
    let key: IdentityKey =
        key.parse().map_err(|error: IdError| Rejection::new(ErrorCode::Malformed, error.to_string()))?;
    if key == own.key {
        let message = "this is the coordinator that you speak to; ask another one to forget it";
        return Err(Rejection::new(ErrorCode::Name, message));
    }
    let applied = core.apply(Change::CoordinatorForget { key }, by).await?;
    let message = format!(
        "nodes neither dial nor trust coordinator {key} since revision {}; see to it that it cannot reach the store any more, or it enters itself again when it starts",
        applied.revision
    );
    Ok(Json(documents::DoneDocument::new(message)))
}

/// Lists the coordinators, and tries whether they can be reached.
pub(crate) async fn replicas(core: &Arc<Core>, own: &OwnEntry) -> Vec<documents::Replica> {
    let list = core.with(|registry| {
        let coordinators = registry.coordinators();
        coordinators.map(|(key, record)| (*key, record.clone())).collect::<Vec<_>>()
    });
    let tried = list.await.into_iter().map(|(key, record)| async move {
        let here = key == own.key;
        let dialled = record.addresses.first().filter(|_| !here);
        let answers = match dialled {
            Some(address) => {
                Some(timeout(DIAL, TcpStream::connect(address)).await.is_ok_and(|dialled| dialled.is_ok()))
            }
            None => None,
        };
        let CoordinatorRecord { addresses, software, since, next: _ } = record;
        documents::Replica { key, addresses, software, since: since.0, here, answers }
    });
    futures_util::future::join_all(tried).await
}
