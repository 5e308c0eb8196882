//! Several changes in one transaction: each is decided on what the one before it led to.

use std::sync::Arc;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{NodeName, Revision};
use mesh_proto::wire::ErrorCode;

use super::audit_entry::Deed;
use super::change::{Actor, Applied, Change, Refused};
use super::log::{self, Entry};
use super::refresh::Failed;
use super::state::State;
use super::{Registry, codec};
use crate::store::Write;

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
    /// Decides about changes in turn, and makes all of them durable together with their entries in the log.
    /// With a store that others write to as well each is a transaction of its own.
    pub fn apply_all(&mut self, changes: Vec<(Change, Actor)>, now: UnixTime) -> Vec<Result<Applied, Refused>> {
        if self.follow().is_some() && changes.len() > 1 {
            return changes.into_iter().flat_map(|change| self.apply_all(vec![change], now)).collect();
        }
        if let Some(failure) = &self.failure {
            let refused = Refused::new(ErrorCode::Internal, failure.clone());
            return changes.iter().map(|_| Err(refused.clone())).collect();
        }
        let decided = self.persist(|registry| registry.attempt(&changes, now));
        let results = match decided {
            Ok(results) => results,
            // One alone: whether its refusal stands was looked up.
            Err(Failed::Decided(refused)) => vec![Err(refused)],
            Err(Failed::Stored(error)) => {
                let refused = Refused::from(error);
                return changes.iter().map(|_| Err(refused.clone())).collect();
            }
        };
        for ((change, by), result) in changes.iter().zip(&results) {
            if let Err(refused) = result {
                self.note_refusal(Deed::of(change), by, refused, now);
            }
        }
        results
    }

    fn attempt(&mut self, changes: &[(Change, Actor)], now: UnixTime) -> Result<Vec<Result<Applied, Refused>>, Failed> {
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
        let (next, mut applied) = self.decide(&draft.state, change.clone(), now)?;
        let writes =
            codec::differences(&draft.state, &next).map_err(|error| Refused::new(ErrorCode::Internal, error))?;
        applied.altered = !writes.is_empty();
        if applied.altered {
            let entry = Deed::of(change).done(by, &applied, &draft.state.world, &next.world, now);
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

    /// Writes into the log that somebody failed to join before anything was to be decided, as far as there is room.
    pub(crate) fn note_attempt(&mut self, name: &NodeName, why: &str, by: &Actor, now: UnixTime) {
        self.note(Deed::attempt(name), by, why, now);
    }

    /// Writes a failed attempt into the log, as far as there is room for such.
    fn note_refusal(&mut self, deed: Deed, by: &Actor, refused: &Refused, now: UnixTime) {
        if !deed.is_attempt() || refused.code == ErrorCode::Busy {
            return;
        }
        let why = match deed.presented() {
            Some((token, secret)) if refused.code == ErrorCode::Token => self.state.why_unusable(token, secret, now),
            _ => refused.code.as_str(),
        };
        self.note(deed, by, why, now);
    }

    fn note(&mut self, deed: Deed, by: &Actor, why: &str, now: UnixTime) {
        let Some(more) = self.told.refusal(now) else {
            return;
        };
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
