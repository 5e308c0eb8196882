//! Several changes in one transaction: each is decided on what the one before it led to.

use std::sync::Arc;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::Revision;
use mesh_proto::wire::ErrorCode;

use super::audit_entry::AuditEntry;
use super::change::{Actor, Applied, Change, Refused};
use super::log::{self, Entry};
use super::open_error::OpenError;
use super::refresh::{Failed, MAX_ATTEMPTS, keep_alike};
use super::state::State;
use super::{Registry, codec};
use crate::store::{StoreError, Write};

/// What is decided and not stored yet.
struct Draft {
    state: State,
    writes: Vec<Write>,
}

impl Draft {
    /// Adds a state, the writes that lead to it, and the log entry that tells of it, if it is worth one.
    fn add(&mut self, mut next: State, writes: Vec<Write>, entry: Option<Entry>) -> Result<(), Refused> {
        let internal = |error| Refused::new(ErrorCode::Internal, error);
        let from = self.state.world.revision;
        let to = Revision(from.0 + 1);
        self.writes.extend(writes);
        if let Some(entry) = entry {
            self.writes.push(next.log.append(Entry { from, to, ..entry }).map_err(internal)?);
        }
        let world = Arc::make_mut(&mut next.world);
        (world.revision, world.head) = (to, next.log.head);
        self.state = next;
        Ok(())
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

    pub(super) fn reload(&mut self) -> Result<bool, OpenError> {
        let mut state = codec::read(&self.store.load()?, &self.setup)?;
        let (from, to) = (self.state.world.revision, state.world.revision);
        // Only a restore goes back, and begins an epoch.
        if (state.epoch, to) < (self.state.epoch, from) {
            return Err(StoreError::WentBack { from, to }.into());
        }
        keep_alike(Arc::make_mut(&mut state.world), &self.state.world);
        if state.world.revision == self.state.world.revision {
            return Ok(false);
        }
        self.history.push(Arc::clone(&state.world));
        self.live.retain(&state.world);
        self.state = state;
        Ok(true)
    }

    pub(super) fn attempt(
        &mut self,
        changes: &[(Change, Actor)],
        now: UnixTime,
    ) -> Result<Vec<Result<Applied, Refused>>, Failed> {
        let mut draft = self.draft();
        let mut results = Vec::with_capacity(changes.len());
        let shortage = self.store.shortage();
        for (change, by) in changes {
            let result = match &shortage {
                Some(shortage) if !change.takes_rights() => Err(Refused::new(ErrorCode::Busy, shortage.clone())),
                _ => self.decide_on(&mut draft, change, by, now),
            };
            if let (Err(refused), [_]) = (&result, changes) {
                return Err(refused.clone().into());
            }
            results.push(result);
        }
        self.commit(draft)?;
        Ok(results)
    }

    fn decide_on(&mut self, draft: &mut Draft, change: &Change, by: &Actor, now: UnixTime) -> Result<Applied, Refused> {
        let (mut next, mut applied) = self.decide(&draft.state, change.clone(), now)?;
        let writes =
            codec::differences(&draft.state, &next).map_err(|error| Refused::new(ErrorCode::Internal, error))?;
        applied.altered = !writes.is_empty();
        next.is_pool_whole &= draft.state.world.pool == next.world.pool;
        if applied.altered {
            let entry = AuditEntry::of(change).done(by, &applied, &draft.state.world, &next.world, now);
            let entry = entry.and_then(|entry| self.told.admit(entry, &next.world));
            let entry = entry.map(|entry| Entry { expels: next.expels(&draft.state), ..entry });
            draft.add(next, writes, entry)?;
        }
        applied.revision = draft.state.world.revision;
        Ok(applied)
    }

    fn draft(&self) -> Draft {
        Draft { state: self.state.clone(), writes: Vec::new() }
    }

    /// Stores what was decided, and puts it in force.
    fn commit(&mut self, draft: Draft) -> Result<(), Failed> {
        let Draft { state: mut next, mut writes } = draft;
        if writes.is_empty() {
            return Ok(());
        }
        let gone = next.log.compact(&*self.store, log::MAX_ENTRIES);
        writes.extend(gone.map_err(Failed::Stored)?);
        let ends = codec::ends(&next.log).map_err(|error| Refused::new(ErrorCode::Internal, error))?;
        writes.push(ends);
        let (expected, revision) = (self.state.world.revision, next.world.revision);
        self.store.commit(expected, revision, &writes).map_err(Failed::Stored)?;
        self.history.push(Arc::clone(&next.world));
        self.live.retain(&next.world);
        self.state = next;
        Ok(())
    }

    /// Writes a failed attempt into the log, as far as there is room for such.
    pub(super) fn note_refusal(&mut self, deed: AuditEntry, by: &Actor, refused: &Refused, now: UnixTime) {
        if !deed.is_attempt() || refused.code == ErrorCode::Busy {
            return;
        }
        let why = match deed.presented() {
            Some((token, secret)) if refused.code == ErrorCode::Token => self.state.why_unusable(token, secret, now),
            _ => refused.code.as_str(),
        };
        self.note(deed, by, why, now);
    }

    pub(super) fn note(&mut self, deed: AuditEntry, by: &Actor, why: &str, now: UnixTime) {
        let Some(more) = self.told.refusal(now) else { return };
        let entry = deed.refused(by, why, more, now);
        let noted = self.persist(|registry| {
            let mut draft = registry.draft();
            draft.add(registry.state.clone(), Vec::new(), Some(entry.clone()))?;
            registry.commit(draft)
        });
        if let Err(Failed::Stored(error)) = noted {
            tracing::warn!(%error, "a refused attempt is missing in the log of operations");
        }
    }
}
