//! What a coordinator does because others use the same store: it follows their commits, and looks before it
//! refuses.
//!
//! ```text
//! another's commit ─▶ store.follow ─▶ keep_up ─▶ registry.refresh ─▶ the new world ─▶ watches of our nodes
//! a node comes to us ─────────────▶ catch_up ────────┘   so that we never know less than who served it before
//! ```

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use tokio::time::{Instant, sleep};

use crate::hub::{Hub, lock};

/// The file inside the state directory that says which services.toml was last taken from this machine.
const TAKEN: &str = "services.taken";
/// How long to wait after what others committed could not be taken up.
const PAUSE: Duration = Duration::from_millis(500);

/// Publishes what other coordinators commit, for ever; ends at once if there can be no others.
pub(crate) async fn keep_up(hub: Arc<Hub>) {
    let Some(mut seen) = hub.seen.clone() else { return };
    let mut down = false;
    loop {
        let (newest, error) = {
            let seen = seen.borrow_and_update();
            (seen.revision, seen.error.clone())
        };
        match error {
            Some(error) if !down => tracing::warn!(%error, "the store does not answer; nodes keep what they have"),
            None if down => tracing::info!("the store answers again"),
            _ => {}
        }
        down = seen.borrow().error.is_some();
        if newest > hub.world().revision
            && let Err(error) = hub.with(|registry| registry.refresh()).await
        {
            tracing::warn!(%error, "what another coordinator committed is not taken up; trying again");
            sleep(PAUSE).await;
            continue;
        }
        if seen.changed().await.is_err() {
            return;
        }
    }
}

impl Hub {
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
