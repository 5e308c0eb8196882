//! Group commit: changes that wait for the disk at the same time are made in one transaction.
//!
//! ```text
//!   apply ─┐
//!   apply ─┼─▶ queue ─▶ one worker: decide each on the one before ─▶ one commit ─▶ publish ─▶ an answer each
//!   apply ─┘             (whoever comes meanwhile is in the next group)
//! ```
//! Nobody is answered before the disk has it.

use std::sync::Arc;
use std::thread;

use tokio::sync::oneshot;

use super::Hub;
use crate::base::clock::now;
use crate::base::sync::lock;
use crate::registry::{Actor, Applied, Change, Refused};

/// Most changes in one transaction; more wait for the next.
const MAX_GROUP: usize = 64;

/// A change that waits.
struct Job {
    change: Change,
    by: Actor,
    answer: oneshot::Sender<Result<Applied, Refused>>,
}

/// The changes that wait. Bounded by the callers: each waits for its answer.
#[derive(Default)]
pub(super) struct Queue {
    jobs: Vec<Job>,
    has_worker: bool,
}

impl Hub {
    /// Makes a change that the operator or the coordinator itself asks for.
    pub(crate) async fn apply(self: &Arc<Self>, change: Change, by: Actor) -> Result<Applied, Refused> {
        let (answer, answered) = oneshot::channel();
        let has_worker = {
            let mut queue = lock(&self.queue);
            queue.jobs.push(Job { change, by, answer });
            std::mem::replace(&mut queue.has_worker, true)
        };
        if !has_worker {
            let hub = Arc::clone(self);
            tokio::task::spawn_blocking(move || Worker(&hub).work());
        }
        answered.await.unwrap_or_else(|_| {
            let message = "the coordinator failed at this change; see its log, and try again";
            Err(Refused { word: "internal", message: message.into() })
        })
    }
}

/// The one that empties the queue.
struct Worker<'a>(&'a Arc<Hub>);

impl Worker<'_> {
    fn work(&self) {
        loop {
            let mut registry = lock(&self.0.registry);
            let jobs: Vec<_> = {
                let mut queue = lock(&self.0.queue);
                let count = queue.jobs.len().min(MAX_GROUP);
                queue.has_worker = count > 0;
                queue.jobs.drain(..count).collect()
            };
            if jobs.is_empty() {
                return;
            }
            let (changes, answers): (Vec<_>, Vec<_>) =
                jobs.into_iter().map(|job| ((job.change, job.by), job.answer)).unzip();
            let results = registry.apply_all(changes, now());
            self.0.publish(&registry);
            drop(registry);
            for (answer, result) in answers.into_iter().zip(results) {
                // Who asked may have gone; what it asked for is done all the same.
                let _ = answer.send(result);
            }
            // Those who only look at the registry get their turn.
            thread::yield_now();
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            // Those who wait learn of it, and the next one brings a new worker.
            *lock(&self.0.queue) = Queue::default();
        }
    }
}
