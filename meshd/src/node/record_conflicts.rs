//! What a member does about a record of its own key that it does not know: it forgot it, or another machine has its key.

use std::time::Duration;

use mesh_host::clock::now;
use mesh_proto::trust::record_conflict::Conflict;
use mesh_proto::trust::signed_record::SignedRecord;
use tokio::time::timeout;

use super::{MemberEnd, Membership};
use crate::control::{self, Dial};
use crate::node::self_record;

/// How long a coordinator may take to hear why this node stops.
const FAREWELL: Duration = Duration::from_secs(3);

impl Membership<'_> {
    /// Looks at what the coordinators have of this node's records; says if it has to stop for it.
    pub(super) async fn judge_records(&mut self) -> Option<MemberEnd> {
        let known = self.records.borrow().clone();
        if let Some(taken) = known.taken {
            self.conflicts.taken(taken);
        }
        let record = known.unknown?;
        // Nothing follows from what somebody else signed.
        let stored = self_record::number_by(&record, &self.keys.identity())?;
        match self.conflicts.judge(stored, self.sequence, self.author.is_last(&record), now()) {
            Conflict::Settled | Conflict::TooOften => None,
            Conflict::SignAbove(number) => {
                tracing::warn!(
                    number,
                    "the coordinator has a record of this node that its state directory does not know, as after a restore from a snapshot; signing a newer one"
                );
                self.sequence = number.saturating_add(1);
                self.report();
                None
            }
            Conflict::SecondMachine => {
                self.tell_of_copy(record).await;
                Some(MemberEnd::Copied(stored))
            }
        }
    }

    async fn tell_of_copy(&self, record: SignedRecord) {
        let dial = Dial { book: self.book.clone(), keys: self.renewer.keys() };
        match timeout(FAREWELL, control::tell_of_copy(&dial, record)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the coordinator is not told of the second machine"),
            Err(_) => tracing::warn!("the coordinator is not told of the second machine: it does not answer"),
        }
    }
}
