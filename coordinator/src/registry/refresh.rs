//! Deciding beside other coordinators that use the same store.
//!
//! A change is decided on what we know and committed only if nobody was quicker. If somebody was, or if it is
//! refused while we are behind, it is decided again on what the store holds now.

use std::sync::Arc;

use mesh_proto::wire::ErrorCode;
use mesh_proto::world::World;
use tokio::sync::watch;

use super::change::Refused;
use super::open_error::OpenError;
use super::{Registry, codec};
use crate::store::{Seen, StoreError};

/// Most times that a change is decided. Who fails was overtaken by somebody who succeeded, so that with three
/// coordinators that write without a pause one change in 400,000 is answered `busy`.
pub(super) const MAX_ATTEMPTS: usize = 32;

/// Why one attempt led to nothing.
pub(super) enum Failed {
    /// It was decided that the change may not happen.
    Decided(Refused),
    /// It could not be stored.
    Stored(StoreError),
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self::Decided(refused)
    }
}

impl Registry {
    /// Makes attempts until one is decided on the newest revision.
    pub(super) fn persist<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Result<T, Failed>) -> Result<T, Failed> {
        let mut was_full = false;
        for _ in 1..MAX_ATTEMPTS {
            let failed = match attempt(self) {
                Ok(done) => return Ok(done),
                Err(failed) => failed,
            };
            let again = match &failed {
                Failed::Decided(_) => self.refresh(),
                Failed::Stored(error) if error.is_final() => return Err(self.fail(failed)),
                Failed::Stored(StoreError::Conflict { .. }) => self.reload(),
                // The reserve is given up for what takes rights away.
                Failed::Stored(StoreError::Full { .. }) if !std::mem::replace(&mut was_full, true) => {
                    self.reload().map(|_| true)
                }
                // Our own commit may have got through although its acknowledgement did not.
                Failed::Stored(_) => self.reload().map(|_| false),
            };
            match (again, failed) {
                (Ok(true), _) => {}
                // Whether a refusal stands nobody knows while the store does not answer.
                (Err(OpenError::Store(error)), Failed::Decided(_)) => return Err(Failed::Stored(error)),
                (_, failed) => return Err(failed),
            }
        }
        match attempt(self) {
            Err(Failed::Stored(error)) if error.is_final() => Err(self.fail(Failed::Stored(error))),
            Err(Failed::Stored(error)) => {
                let _ = self.reload();
                Err(Failed::Stored(error))
            }
            last => last,
        }
    }

    /// Notes that the store is not to be trusted any more.
    fn fail(&mut self, failed: Failed) -> Failed {
        if let Failed::Stored(error) = &failed {
            self.failure = Some(error.to_string());
        }
        failed
    }

    /// Takes up what other coordinators committed. Says whether there was anything.
    ///
    /// # Errors
    /// If the store does not answer, or holds what this version does not understand.
    pub fn refresh(&mut self) -> Result<bool, OpenError> {
        let newest = self.store.newest()?;
        if newest.is_none_or(|newest| newest == self.state.world.revision) {
            return Ok(false);
        }
        self.reload()
    }

    /// Returns what is seen of others' commits; none if nobody else can write to the store.
    pub fn follow(&self) -> Option<watch::Receiver<Seen>> {
        self.store.follow()
    }

    fn reload(&mut self) -> Result<bool, OpenError> {
        let mut state = codec::read(&self.store.load()?, &self.setup)?;
        keep_alike(Arc::make_mut(&mut state.world), &self.state.world);
        if state.world.revision == self.state.world.revision {
            return Ok(false);
        }
        self.history.push(Arc::clone(&state.world));
        self.live.retain(&state.world);
        self.state = state;
        Ok(true)
    }
}

/// Keeps of an older world what is alike, so that nobody takes it for news.
fn keep_alike(world: &mut World, old: &World) {
    fn keep<T: PartialEq + ?Sized>(new: &mut Arc<T>, old: &Arc<T>) {
        if *new == *old {
            *new = Arc::clone(old);
        }
    }
    keep(&mut world.services, &old.services);
    keep(&mut world.file, &old.file);
    keep(&mut world.vips, &old.vips);
    for (name, record) in Arc::make_mut(&mut world.nodes) {
        old.nodes.get(name).into_iter().for_each(|known| keep(record, known));
    }
    keep(&mut world.nodes, &old.nodes);
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::Conflict { .. } | StoreError::Full { .. } => ErrorCode::Busy,
            StoreError::TooLarge { .. } => ErrorCode::TooLarge,
            StoreError::Io { .. }
            | StoreError::Locked { .. }
            | StoreError::Exists { .. }
            | StoreError::Damaged { .. }
            | StoreError::Etcd { .. }
            | StoreError::Unknown { .. } => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}
