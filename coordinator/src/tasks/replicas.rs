//! What a coordinator does because others use the same store: it follows their commits, and looks before it
//! refuses.
//!
//! ```text
//! another's commit ─▶ store.follow ─▶ keep_up ─▶ registry.refresh ─▶ the new world ─▶ watches of our nodes
//! a node comes to us ─────────────▶ catch_up ────────┘   so that we never know less than who served it before
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use mesh_proto::base::id::{IdError, IdentityKey};
use mesh_proto::wire::ErrorCode;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::core::Hub;
use crate::core::documents;
use crate::core::failure::{Failure, Segment};
use crate::registry::{Actor, Change, CoordinatorRecord};

/// How long the store may be silent before nodes are sent to another coordinator, which may know more.
const CUT_OFF: Duration = Duration::from_secs(10);
/// How long another coordinator may take to be reached, for the status.
const DIAL: Duration = Duration::from_millis(500);
/// How long to wait after what others committed could not be taken up.
const PAUSE: Duration = Duration::from_millis(500);

/// Publishes what other coordinators commit, for ever; ends at once if there can be no others.
pub(crate) async fn keep_up(hub: Arc<Hub>) {
    let Some(mut seen) = hub.seen.clone() else { return };
    let mut down: Option<Instant> = None;
    let mut ended = false;
    loop {
        let (newest, error) = {
            let seen = seen.borrow_and_update();
            (seen.revision, seen.error.clone())
        };
        match error {
            Some(error) if down.is_none() => {
                tracing::warn!(%error, "the store does not answer; nodes keep what they have");
                (down, ended) = (Some(Instant::now()), false);
            }
            None if down.take().is_some() => tracing::info!("the store answers again"),
            Some(_) | None => {}
        }
        if newest > hub.world().revision
            && let Err(error) = hub.with(|registry| registry.refresh()).await
        {
            tracing::warn!(%error, "what another coordinator committed is not taken up; trying again");
            sleep(PAUSE).await;
            continue;
        }
        let has_others = hub.world().mesh.coordinators.len() > 1;
        let cut_off = down.filter(|_| has_others && !ended).map(|down| down + CUT_OFF);
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            () = sleep_until(cut_off.unwrap_or_else(Instant::now)), if cut_off.is_some() => {
                tracing::warn!("still without the store: nodes are sent to other coordinators, once");
                hub.end_watches();
                ended = true;
            }
        }
    }
}

/// Enters this coordinator into the list that nodes are told of.
pub(crate) async fn enter(hub: &Arc<Hub>) {
    let change = Change::Coordinator {
        key: hub.key,
        addresses: hub.config.public.clone(),
        software: env!("CARGO_PKG_VERSION").into(),
        is_alone: !hub.is_shared(),
    };
    if let Err(error) = hub.apply(change, Actor::Coordinator).await {
        tracing::error!(%error, "nodes are not told of this coordinator");
    }
}

/// Takes a coordinator out of the list, for the operator.
pub(crate) async fn forget(
    State(hub): State<Arc<Hub>>,
    Extension(by): Extension<Actor>,
    Segment(key): Segment,
) -> Result<Json<documents::Done>, Failure> {
    let key: IdentityKey = key
        .parse()
        .map_err(|error: IdError| Failure::new(StatusCode::BAD_REQUEST, ErrorCode::Malformed, error.to_string()))?;
    if key == hub.key {
        let message = "this is the coordinator that you speak to; ask another one to forget it";
        return Err(Failure::new(StatusCode::CONFLICT, ErrorCode::Name, message));
    }
    let applied = hub.apply(Change::CoordinatorForget { key }, by).await?;
    let message = format!(
        "nodes neither dial nor trust coordinator {key} since revision {}; see to it that it cannot reach the store any more, or it enters itself again when it starts",
        applied.revision
    );
    Ok(Json(documents::Done::new(message)))
}

/// Lists the coordinators, and tries whether they can be reached.
pub(crate) async fn replicas(hub: &Arc<Hub>) -> Vec<documents::Replica> {
    let list = hub.with(|registry| {
        let coordinators = registry.coordinators();
        coordinators.map(|(key, record)| (*key, record.clone())).collect::<Vec<_>>()
    });
    let tried = list.await.into_iter().map(|(key, record)| async move {
        let here = key == hub.key;
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
