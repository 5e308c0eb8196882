//! Going back to a backup, without giving anything back that was taken away since.
//!
//! Nodes remember numbers and keys for longer than a backup does: numbers go on far behind the backup's, and what
//! the store in force until now knows of revocations and used tokens is carried over where it can be read.

use std::sync::Arc;

use mesh_proto::base::clock::UnixTime;

use super::Registry;
use super::change::Withdrawn;
use super::state::State;

impl Withdrawn {
    /// Says whether it is as new as what a registry holds, or newer.
    pub fn is_newer_than(&self, registry: &Registry) -> bool {
        self.is_newer(&registry.state)
    }

    fn is_newer(&self, state: &State) -> bool {
        (self.epoch, self.revision) >= (state.epoch, state.world.revision)
    }
}

impl Registry {
    /// Returns what must not come back with an older state.
    pub fn withdrawn(&self) -> Withdrawn {
        let State { epoch, revoked, spent, tokens, .. } = self.state.clone();
        Withdrawn { epoch, revision: self.state.world.revision, revoked, spent, tokens }
    }

    /// Returns when the last entry of the log was written.
    pub fn last_entry(&self) -> Option<UnixTime> {
        let entries = self.log(self.log_head().seq).ok()?;
        entries.last().map(|logged| logged.entry.at)
    }
}

impl State {
    /// Begins an epoch, of at least this number, after the state went back.
    pub(super) fn restored(&mut self, epoch: u64, since: Option<&Withdrawn>, now: UnixTime) {
        if let Some(since) = since {
            self.withdraw(since, now);
        }
        self.epoch = epoch.max(self.epoch + 1);
        Arc::make_mut(&mut Arc::make_mut(&mut self.world).pool).leap(self.epoch);
    }

    fn withdraw(&mut self, since: &Withdrawn, now: UnixTime) {
        let is_newer = since.is_newer(self);
        let revoked = since.revoked.iter().map(|(identity, entry)| (*identity, entry.clone()));
        Arc::make_mut(&mut self.revoked).extend(revoked);
        let spent = since.spent.iter().map(|(mark, entry)| (mark.clone(), entry.clone()));
        Arc::make_mut(&mut self.spent).extend(spent);
        Arc::make_mut(&mut self.tokens).retain(|id, token| match since.tokens.get(id) {
            Some(known) => {
                token.uses_left = token.uses_left.min(known.uses_left);
                true
            }
            // Revoked, or forgotten long after its end.
            None => !is_newer,
        });
        self.follow_successions();
        let nodes = self.world.nodes.iter();
        let expelled = nodes.filter(|(_, node)| node.identity.is_some_and(|key| self.revoked.contains_key(&key)));
        for name in expelled.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.remove(&name, now);
        }
    }
}
