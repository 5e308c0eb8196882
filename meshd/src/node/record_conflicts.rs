//! What a member does about a record of its own key that it does not know: it forgot it, or another machine has its key.

use std::time::Duration;

use mesh_host::clock::now;
use mesh_proto::base::id::IdentityKey;
use mesh_proto::trust::record_conflict::{Conflict, RecordConflicts};
use mesh_proto::trust::signed_record::SignedRecord;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::control::{self, Dial, RecordsKnown};
use crate::node::self_record::{self, Author};

/// How long a coordinator may take to hear why this node stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// Judges what the coordinators have of one node's records.
pub(super) struct RecordJudge {
    conflicts: RecordConflicts,
    /// What they have.
    pub(super) known: watch::Receiver<RecordsKnown>,
}

impl RecordJudge {
    /// Begins with what they will say.
    pub(super) fn new(known: watch::Receiver<RecordsKnown>) -> Self {
        Self { conflicts: RecordConflicts::default(), known }
    }

    /// Judges by a node's identity, the number of its newest record, and that record; none if there is nothing to judge.
    /// Says what record it judged.
    pub(super) fn judge(
        &mut self,
        identity: &IdentityKey,
        sequence: u64,
        author: &Author,
    ) -> Option<(Conflict, SignedRecord)> {
        let known = self.known.borrow().clone();
        if let Some(taken) = known.taken {
            self.conflicts.taken(taken);
        }
        let record = known.unknown?;
        // Nothing follows from what somebody else signed.
        let stored = self_record::number_by(&record, identity)?;
        Some((self.conflicts.judge(stored, sequence, author.is_last(&record), now()), record))
    }
}

/// Tells the coordinators of a second machine, which signed a record.
pub(super) async fn tell_of_copy(dial: &Dial, record: SignedRecord) {
    match timeout(FAREWELL, control::tell_of_copy(dial, record)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the coordinator is not told of the second machine"),
        Err(_) => tracing::warn!("the coordinator is not told of the second machine: it does not answer"),
    }
}
