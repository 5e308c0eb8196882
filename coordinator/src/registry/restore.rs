//! Going back to a backup, without giving anything back that was taken away since.
//!
//! Nodes remember numbers and keys for longer than a backup does: numbers go on far behind the backup's, and what
//! the store in force until now knows of revocations and used tokens is carried over where it can be read.

use std::sync::Arc;

use mesh_proto::base::clock::UnixTime;

use super::change::Withdrawn;
use super::state::State;

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
        let is_newer = since.is_newer(self.epoch, self.world.revision);
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
