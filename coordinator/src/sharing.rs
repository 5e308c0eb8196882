//! What a coordinator does because others use the same store: it follows their commits, and looks before it
//! refuses.
//!
//! ```text
//! another's commit ─▶ store.follow ─▶ keep_up ─▶ registry.refresh ─▶ the new world ─▶ watches of our nodes
//! a node comes to us ─────────────▶ catch_up ────────┘   so that we never know less than who served it before
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use data_encoding::HEXLOWER;
use mesh_proto::base::id::{IdError, IdentityKey};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::api;
use crate::base::state_files::TAKEN;
use crate::base::sync::lock;
use crate::core::failure::Failure;
use crate::hub::Hub;
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
    Path(key): Path<String>,
) -> Result<Json<api::Done>, Failure> {
    let key: IdentityKey =
        key.parse().map_err(|error: IdError| Failure::new(StatusCode::BAD_REQUEST, "malformed", error.to_string()))?;
    if key == hub.key {
        let message = "this is the coordinator that you speak to; ask another one to forget it";
        return Err(Failure::new(StatusCode::CONFLICT, "name", message));
    }
    let applied = hub.apply(Change::CoordinatorForget { key }, by).await?;
    let message = format!(
        "nodes neither dial nor trust coordinator {key} since revision {}; see to it that it cannot reach the store any more, or it enters itself again when it starts",
        applied.revision
    );
    Ok(Json(api::Done::new(message)))
}

/// Lists the coordinators, and tries whether they can be reached.
pub(crate) async fn replicas(hub: &Arc<Hub>) -> Vec<api::Replica> {
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
        api::Replica { key, addresses, software, since: since.0, here, answers }
    });
    futures_util::future::join_all(tried).await
}

/// Says where nodes reach coordinators, and by which keys they know them.
#[derive(Default)]
pub(crate) struct Told {
    /// Addresses, as `host:port`: our own first, then one of each other, then the rest.
    pub(crate) addresses: Vec<String>,
    /// Keys, our own first.
    pub(crate) pins: Vec<IdentityKey>,
}

impl Hub {
    /// Returns what a node is told of coordinators when it joins.
    pub(crate) fn told(&self) -> Told {
        let world = self.world();
        let others = world.mesh.coordinators.iter().filter(|other| other.key != self.key);
        let mut told = Told { addresses: self.config.public.clone(), pins: vec![self.key] };
        told.pins.extend(others.clone().map(|other| other.key));
        // Those that will be needed soon: a node may join with a token of before.
        told.pins.extend(world.mesh.coordinators.iter().filter_map(|one| one.next).map(|next| next.key));
        let most = others.clone().map(|other| other.addresses.len()).max().unwrap_or(0);
        for turn in 0..most {
            told.addresses.extend(others.clone().filter_map(|other| other.addresses.get(turn).cloned()));
        }
        let mut seen = BTreeSet::new();
        told.addresses.retain(|address| seen.insert(address.clone()));
        told
    }

    /// Says whether other coordinators may use the same store.
    pub(crate) fn is_shared(&self) -> bool {
        self.seen.is_some()
    }

    /// Returns why the store does not answer, if it does not.
    pub(crate) fn store_error(&self) -> Option<String> {
        self.seen.as_ref()?.borrow().error.clone()
    }

    /// Takes up what others committed before now. Many who ask at once share one look; while the store does not
    /// answer nobody waits for it.
    pub(crate) async fn catch_up(self: &Arc<Self>) {
        if !self.is_shared() || self.store_error().is_some() {
            return;
        }
        let asked = Instant::now();
        let hub = Arc::clone(self);
        self.with(move |registry| {
            if lock(&hub.looked).is_some_and(|looked| looked >= asked) {
                return;
            }
            let began = Instant::now();
            if let Err(error) = registry.refresh() {
                tracing::warn!(%error, "nobody knows whether another coordinator committed something");
            }
            *lock(&hub.looked) = Some(began);
        })
        .await;
    }

    /// Says whether a services.toml that is read at the start is to be left alone: another coordinator put
    /// another one in force, and this one was not altered since it was last taken from here.
    pub(crate) async fn is_superseded(self: &Arc<Self>, text: &str) -> bool {
        if !self.is_shared() {
            return false;
        }
        let own = text.to_owned();
        let other = self.with(move |registry| registry.accepted().is_some_and(|accepted| accepted.text != own)).await;
        let taken = std::fs::read_to_string(self.config.state_dir.join(TAKEN));
        other && taken.map_or(true, |taken| taken.trim() == mark(text))
    }

    /// Says whether another services.toml is in force than the one last taken from here.
    pub(crate) async fn is_other_in_force(self: &Arc<Self>) -> bool {
        if !self.is_shared() {
            return false;
        }
        let Ok(taken) = std::fs::read_to_string(self.config.state_dir.join(TAKEN)) else {
            return false;
        };
        self.with(move |registry| registry.accepted().is_some_and(|accepted| mark(&accepted.text) != taken.trim()))
            .await
    }

    /// Notes which services.toml was taken from this machine.
    pub(crate) fn note_taken(&self, text: &str) {
        if !self.is_shared() {
            return;
        }
        let path = self.config.state_dir.join(TAKEN);
        let draft = path.with_extension("draft");
        let written = std::fs::write(&draft, mark(text)).and_then(|()| std::fs::rename(&draft, &path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "after a restart the file will not be taken until it is saved again");
        }
    }
}

fn mark(text: &str) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}
