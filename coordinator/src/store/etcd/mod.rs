//! The store in etcd, which several coordinators share.
//!
//! ```text
//! PREFIX/mesh/revision          {"revision": 42}              guards every commit: who altered it first has won
//! PREFIX/mesh/writer/ID         the mark of ID's last commit  tells ID whether one without an answer got through
//! PREFIX/mesh/record/TABLE/KEY  a record
//! PREFIX/log/SEQ                an entry of the log of operations
//! ```
//! A commit is one transaction: if the revision is as we last saw it, all writes happen, else none. Etcd
//! takes 128 operations on one level of a transaction; larger commits nest levels, up to 64,000 writes. It takes
//! 1.5 MiB in one request; larger commits are refused (`StoreError::TooLarge`).
//!
//! An answer that was lost is looked for before anything else is said: the writer's mark tells whether the commit
//! happened. If it did not happen yet, altering the guard makes sure that it never will. Locks and leases are not
//! used.

mod client;
mod commit;
mod follow;
mod message;
mod options;
mod session;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, mpsc};

use mesh_proto::base::id::Revision;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Records, Store, StoreError, StoreState, StoreTable, Write};
use client::Client;
use message::{KeyValue, RangeRequest};
pub use options::EtcdOptions;
use session::{Cache, Session, ended};

/// The store in etcd.
pub struct Etcd {
    /// Always there until the end; its threads do the talking, so that any thread may wait for them.
    runtime: Option<Runtime>,
    session: Arc<Session>,
    cache: Arc<tokio::sync::Mutex<Cache>>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("prefix", &self.session.prefix).finish_non_exhaustive()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Etcd {
    /// Connects, checks the members' versions, and begins to follow what others commit. `prefix` is for options
    /// that have none; `writer` tells this process from others that use the same prefix. Waits, hence not for
    /// asynchronous code.
    ///
    /// # Errors
    /// If no member answers, one is too old, or user, password or certificates are not accepted.
    pub fn open(options: &EtcdOptions, prefix: &str, writer: &str) -> Result<Self, StoreError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("etcd").enable_all().build();
        let runtime = runtime.map_err(|error| StoreError::Etcd {
            doing: "use",
            at: options.endpoints.join(","),
            detail: error.to_string(),
            advice: "raise the limit of processes".into(),
        })?;
        let client = {
            let _inside = runtime.enter();
            Client::new(options)?
        };
        let prefix = options.prefix.as_deref().unwrap_or(prefix).trim_end_matches('/').to_owned();
        let seen = watch::Sender::new(StoreState::default());
        let session = Arc::new(Session { client, prefix, writer: writer.to_owned(), seen });
        let etcd = Self { runtime: Some(runtime), session, cache: Arc::default() };
        let session = Arc::clone(&etcd.session);
        etcd.wait(async move { session.check_members().await })?;
        etcd.load()?;
        etcd.runtime()?.spawn(follow::follow(Arc::clone(&etcd.session)));
        Ok(etcd)
    }

    fn runtime(&self) -> Result<&Runtime, StoreError> {
        self.runtime.as_ref().ok_or_else(ended)
    }

    /// Lets our own threads do something and waits for it, whatever thread we are on.
    fn wait<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, result) = mpsc::sync_channel(1);
        self.runtime()?.spawn(async move {
            // The receiver waits below.
            let _ = done.send(task.await);
        });
        result.recv().unwrap_or_else(|_| Err(ended()))
    }
}

impl Store for Etcd {
    fn load(&self) -> Result<Records, StoreError> {
        let (session, cache) = (Arc::clone(&self.session), Arc::clone(&self.cache));
        self.wait(async move {
            let mut cache = cache.lock().await;
            session.refresh(&mut cache).await?;
            session.records(&cache)
        })
    }

    fn scan(&self, table: StoreTable, from: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let first = self.session.record_key(table, "");
        let request = RangeRequest {
            key: format!("{first}{from}").into(),
            range_end: format!("{}0", first.trim_end_matches('/')).into(),
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            ..RangeRequest::default()
        };
        let session = Arc::clone(&self.session);
        let found = self.wait(async move { session.get(request, Instant::now() + session.patience()).await })?;
        let row = |kv: KeyValue| {
            let key = String::from_utf8(kv.key).ok()?;
            Some((key.strip_prefix(&first)?.to_owned(), kv.value))
        };
        Ok(found.kvs.into_iter().filter_map(row).collect())
    }

    fn commit(&mut self, expected: Revision, next: Revision, writes: &[Write]) -> Result<(), StoreError> {
        let (session, cache) = (Arc::clone(&self.session), Arc::clone(&self.cache));
        let writes = writes.to_vec();
        self.wait(async move {
            let mut cache = cache.lock().await;
            session.commit(&mut cache, expected, next, &writes).await
        })
    }

    fn follow(&self) -> Option<watch::Receiver<StoreState>> {
        Some(self.session.seen.subscribe())
    }

    fn newest(&self) -> Result<Option<Revision>, StoreError> {
        let session = Arc::clone(&self.session);
        self.wait(async move {
            let found = session.guard(Instant::now() + session.patience()).await?;
            Ok(Some(found.map_or(Revision(0), |(revision, _)| revision)))
        })
    }
}
