//! Group commit: changes that wait for the disk at the same time are made in one transaction.
//!
//! ```text
//!   apply ─┐
//!   apply ─┼─▶ queue ─▶ one worker: decide each on the one before ─▶ one commit ─▶ publish ─▶ an answer each
//!   apply ─┘             (whoever comes meanwhile is in the next group)
//! ```
//! Nobody is answered before the disk has it.

use tokio::sync::oneshot;

use crate::registry::{Actor, Applied, Change, Refused};

/// Most changes in one transaction; more wait for the next.
const MAX_GROUP: usize = 64;

/// A change that waits.
pub(super) struct Job {
    /// What is asked.
    pub(super) change: Change,
    /// By whom.
    pub(super) by: Actor,
    /// Where the answer goes.
    pub(super) answer: oneshot::Sender<Result<Applied, Refused>>,
}

/// The changes that wait. Bounded by the callers: each waits for its answer.
#[derive(Default)]
pub(super) struct Queue {
    jobs: Vec<Job>,
    has_worker: bool,
}

impl Queue {
    /// Adds a change. Says whether a worker is there to make it; if not, whoever added it brings one.
    pub(super) fn push(&mut self, job: Job) -> bool {
        self.jobs.push(job);
        std::mem::replace(&mut self.has_worker, true)
    }

    /// Takes the changes of the next transaction; the worker ends if there are none.
    pub(super) fn take(&mut self) -> Vec<Job> {
        let count = self.jobs.len().min(MAX_GROUP);
        self.has_worker = count > 0;
        self.jobs.drain(..count).collect()
    }
}
