//! Committing: one guarded transaction, and certainty about those whose answer was lost.
//!
//! ```text
//!   transaction ─▶ taken ─▶ written          no answer ─▶ our mark is there       ─▶ written
//!               └▶ guard altered ─▶ conflict             ├▶ another commit is there ─▶ conflict
//!                                                        └▶ alter the guard, so that ours comes too late ─▶ again
//! ```

use mesh_proto::base::id::Revision;
use tokio::time::Instant;

use super::client::{CallError, TXN};
use super::message::{Request, RequestOp, TxnRequest, TxnResponse, delete, op, put, read, unaltered};
use super::session::{Cache, Session, ended, record_name};
use crate::store::{StoreError, StoreTable, Write};

/// Most operations on one level of a transaction: three levels of them are within etcd's 128.
pub(super) const LEVEL: usize = 40;
/// Most times that a guard which was altered without a commit is taken up anew.
const MAX_GUARDS: usize = 16;

impl Session {
    /// Makes a commit, or says why not.
    pub(super) async fn commit(
        &self,
        cache: &mut Cache,
        expected: Revision,
        next: Revision,
        writes: &[Write],
    ) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.patience();
        if cache.revision != expected {
            self.refresh(cache).await?;
            if cache.revision != expected {
                return Err(StoreError::Conflict { expected, found: cache.revision });
            }
        }
        let mark = mark()?;
        for _ in 0..MAX_GUARDS {
            let request = self.transaction(cache.guard, next, &mark, writes);
            let answer: TxnResponse = match self.client.call(TXN, &request).await {
                Ok(answer) => answer,
                Err(error @ CallError::Refused { .. }) => return Err(error.explain("write", self.client.tls)),
                Err(lost) => match self.find_out(&lost, expected, &mark, deadline).await? {
                    CommitFate::Written(at) => {
                        self.enter(cache, at, next, &mark, writes);
                        return Ok(());
                    }
                    CommitFate::NotWritten(guard) => {
                        cache.guard = guard;
                        continue;
                    }
                    CommitFate::Overtaken(found) => return Err(StoreError::Conflict { expected, found }),
                },
            };
            if answer.succeeded {
                self.enter(cache, answer.revision(), next, &mark, writes);
                self.note(None);
                return Ok(());
            }
            match answer.found(0).map(|found| self.revision_of(found)).transpose()? {
                // Somebody made sure of the fate of a commit of theirs; nothing was committed.
                Some((revision, guard)) if revision == expected => cache.guard = guard,
                found => {
                    let found = found.map_or(Revision(0), |(revision, _)| revision);
                    return Err(StoreError::Conflict { expected, found });
                }
            }
        }
        Err(StoreError::Conflict { expected, found: expected })
    }

    /// Enters our own commit into the cache: nobody else can have committed in between.
    pub(super) fn enter(&self, cache: &mut Cache, at: i64, next: Revision, mark: &[u8], writes: &[Write]) {
        for write in writes.iter().filter(|write| write.table != StoreTable::Log) {
            let key = record_name(write.table, &write.key);
            match &write.value {
                Some(value) => drop(cache.keys.insert(key, value.clone())),
                None => drop(cache.keys.remove(&key)),
            }
        }
        cache.keys.insert("revision".into(), guard_value(next));
        cache.keys.insert(format!("writer/{}", self.writer), mark.to_vec());
        (cache.at, cache.guard, cache.revision) = (at, at, next);
        self.tell(next);
    }

    /// Makes the transaction of a commit.
    pub(super) fn transaction(&self, guard: i64, next: Revision, mark: &[u8], writes: &[Write]) -> TxnRequest {
        let mut ops = vec![put(&self.guard_key(), guard_value(next)), put(&self.writer_key(), mark.to_vec())];
        ops.extend(writes.iter().map(|write| {
            let key = self.record_key(write.table, &write.key);
            match &write.value {
                Some(value) => put(&key, value.clone()),
                None => delete(&key),
            }
        }));
        TxnRequest {
            compare: vec![unaltered(&self.guard_key(), guard)],
            success: nested(ops),
            failure: vec![read(&self.guard_key())],
        }
    }

    /// Finds out what became of a commit without an answer, and makes sure that it stays so.
    pub(super) async fn find_out(
        &self,
        lost: &CallError,
        expected: Revision,
        mark: &[u8],
        deadline: Instant,
    ) -> Result<CommitFate, StoreError> {
        tracing::warn!(?lost, "a commit has no answer; looking whether it was taken");
        let unknown = || StoreError::Unknown { detail: lost.clone().explain("write", self.client.tls).to_string() };
        let look =
            TxnRequest { success: vec![read(&self.guard_key()), read(&self.writer_key())], ..TxnRequest::default() };
        while Instant::now() < deadline {
            let asked: Result<TxnResponse, _> = self.ask(TXN, &look, deadline).await;
            let Ok(found) = asked else { break };
            if let Some(ours) = found.found(1).filter(|ours| ours.value == mark) {
                return Ok(CommitFate::Written(ours.mod_revision));
            }
            let (revision, guard) = match found.found(0) {
                Some(found) => self.revision_of(found)?,
                None => (Revision(0), 0),
            };
            if revision != expected {
                return Ok(CommitFate::Overtaken(revision));
            }
            // It may still be on its way. Once the guard is altered it comes too late.
            let fence = TxnRequest {
                compare: vec![unaltered(&self.guard_key(), guard)],
                success: vec![put(&self.guard_key(), guard_value(expected))],
                failure: Vec::new(),
            };
            let fenced: Result<TxnResponse, _> = self.client.call(TXN, &fence).await;
            if let Ok(fenced) = fenced
                && fenced.succeeded
            {
                return Ok(CommitFate::NotWritten(fenced.revision()));
            }
        }
        let error = unknown();
        self.note(Some(&error));
        Err(error)
    }
}

/// What became of a commit without an answer.
pub(super) enum CommitFate {
    /// It happened, at this revision of etcd.
    Written(i64),
    /// It did not and will not; this is when the guard was altered.
    NotWritten(i64),
    /// It did not, for somebody else committed this.
    Overtaken(Revision),
}

/// Nests operations until one level holds few enough.
pub(super) fn nested(mut ops: Vec<RequestOp>) -> Vec<RequestOp> {
    while ops.len() > LEVEL {
        let mut rest = ops.into_iter().peekable();
        ops = Vec::new();
        while rest.peek().is_some() {
            let success = rest.by_ref().take(LEVEL).collect();
            ops.push(op(Request::Txn(TxnRequest { success, ..TxnRequest::default() })));
        }
    }
    ops
}

fn guard_value(revision: Revision) -> Vec<u8> {
    format!("{{\"revision\":{revision}}}").into_bytes()
}

/// Makes a mark that no other commit has.
fn mark() -> Result<Vec<u8>, StoreError> {
    let mut bytes = [0; 16];
    let filled = aws_lc_rs::rand::fill(&mut bytes);
    filled.map_err(|_| ended())?;
    Ok(data_encoding::HEXLOWER.encode(&bytes).into_bytes())
}
