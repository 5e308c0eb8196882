//! What is to be known of a store that other coordinators may use: does it answer, what did they commit, and whose
//! services.toml is in force.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::sync::lock;
use crate::core::Core;
use crate::store::StoreState;

/// A store that may be shared.
pub(crate) struct SharedStore {
    /// What is seen of it; none if it is ours alone.
    seen: Option<watch::Receiver<StoreState>>,
    /// When we last looked what others committed.
    looked: Mutex<Option<Instant>>,
    /// The file that says which services.toml was last taken from this machine.
    taken: PathBuf,
}

impl SharedStore {
    /// Begins with what is seen of the store, and the file that says which services.toml was last taken.
    pub(crate) fn new(seen: Option<watch::Receiver<StoreState>>, taken: PathBuf) -> Self {
        Self { seen, looked: Mutex::default(), taken }
    }

    /// Returns what is seen of others' commits; none if the store is ours alone.
    pub(crate) fn seen(&self) -> Option<watch::Receiver<StoreState>> {
        self.seen.clone()
    }

    /// Says whether other coordinators may use the same store.
    pub(crate) fn is_shared(&self) -> bool {
        self.seen.is_some()
    }

    /// Returns why the store does not answer, if it does not.
    pub(crate) fn error(&self) -> Option<String> {
        self.seen.as_ref()?.borrow().error.clone()
    }

    /// Takes up what others committed before now. Many who ask at once share one look; while the store does not
    /// answer nobody waits for it.
    pub(crate) async fn catch_up(self: &Arc<Self>, core: &Arc<Core>) {
        if !self.is_shared() || self.error().is_some() {
            return;
        }
        let asked = Instant::now();
        let shared = Arc::clone(self);
        core.with(move |registry| {
            if lock(&shared.looked).is_some_and(|looked| looked >= asked) {
                return;
            }
            let began = Instant::now();
            if let Err(error) = registry.refresh() {
                tracing::warn!(%error, "nobody knows whether another coordinator committed something");
            }
            *lock(&shared.looked) = Some(began);
        })
        .await;
    }

    /// Says whether a services.toml that is read at the start is to be left alone: another coordinator put
    /// another one in force, and this one was not altered since it was last taken from here.
    pub(crate) async fn is_superseded(&self, core: &Arc<Core>, text: &str) -> bool {
        if !self.is_shared() {
            return false;
        }
        let own = text.to_owned();
        let other = core.with(move |registry| registry.accepted().is_some_and(|accepted| accepted.text != own)).await;
        let taken = fs::read_to_string(&self.taken);
        other && taken.map_or(true, |taken| taken.trim() == mark(text))
    }

    /// Says whether another services.toml is in force than the one last taken from here.
    pub(crate) async fn is_other_in_force(&self, core: &Arc<Core>) -> bool {
        if !self.is_shared() {
            return false;
        }
        let Ok(taken) = fs::read_to_string(&self.taken) else { return false };
        core.with(move |registry| registry.accepted().is_some_and(|accepted| mark(&accepted.text) != taken.trim()))
            .await
    }

    /// Notes which services.toml was taken from this machine.
    pub(crate) fn note_taken(&self, text: &str) {
        if !self.is_shared() {
            return;
        }
        let path = &self.taken;
        let draft = path.with_extension("draft");
        let written = fs::write(&draft, mark(text)).and_then(|()| fs::File::open(&draft)?.sync_all());
        let written = written.and_then(|()| fs::rename(&draft, path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "after a restart the file will not be taken until it is saved again");
        }
    }
}

fn mark(text: &str) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}
