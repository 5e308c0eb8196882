//! What a coordinator does because others use the same store: it follows their commits, and looks before it
//! refuses.
//!
//! ```text
//! another's commit ─▶ store.follow ─▶ keep_up ─▶ registry.refresh ─▶ the new world ─▶ watches of our nodes
//! a node comes to us ─────────────▶ catch_up ────────┘   so that we never know less than who served it before
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::core::Core;
use crate::core::coordinator_list::OwnEntry;
use crate::core::shared_store::SharedStore;
use crate::registry::{Actor, Change};

/// How long the store may be silent before nodes are sent to another coordinator, which may know more.
const CUT_OFF: Duration = Duration::from_secs(10);
/// How long to wait after what others committed could not be taken up.
const PAUSE: Duration = Duration::from_millis(500);

/// Publishes what other coordinators commit, for ever; ends at once if there can be no others.
pub(crate) async fn keep_up(core: Arc<Core>, shared: Arc<SharedStore>) {
    let Some(mut seen) = shared.seen() else { return };
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
        if newest > core.world().revision
            && let Err(error) = core.with(|registry| registry.refresh()).await
        {
            tracing::warn!(%error, "what another coordinator committed is not taken up; trying again");
            sleep(PAUSE).await;
            continue;
        }
        let has_others = core.world().mesh.coordinators.len() > 1;
        let cut_off = down.filter(|_| has_others && !ended).map(|down| down + CUT_OFF);
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            () = sleep_until(cut_off.unwrap_or_else(Instant::now)), if cut_off.is_some() => {
                tracing::warn!("still without the store: nodes are sent to other coordinators, once");
                core.watches().end_all();
                ended = true;
            }
        }
    }
}

/// Enters this coordinator into the list that nodes are told of; `is_alone` if no other can use its store.
pub(crate) async fn enter(core: &Arc<Core>, own: &OwnEntry, is_alone: bool) {
    let change = Change::Coordinator {
        key: own.key,
        addresses: own.addresses.clone(),
        software: env!("CARGO_PKG_VERSION").into(),
        is_alone,
    };
    if let Err(error) = core.apply(change, Actor::Coordinator).await {
        tracing::error!(%error, "nodes are not told of this coordinator");
    }
}
