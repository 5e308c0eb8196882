//! Seeing what other coordinators commit: a watch on the guard, and a look at it every second.
//!
//! ```text
//! look ─▶ watch from there on ─▶ an event: somebody committed
//!   ▲                         └▶ 1 s without: look, so that a watch that says nothing is noticed
//!   └── the watch ended, was compacted, or says nothing: begin again, at the next member
//! ```
//! Only the revision is taken from an event. What it contains is read afterwards, at one revision of etcd, so that
//! a watch that lost an event or came back in time loses nobody anything.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::id::Revision;
use tokio::time::{Instant, sleep, timeout};

use super::message::{WatchCreateRequest, WatchRequest};
use super::session::Session;
use crate::store::StoreError;

/// How often the guard is looked at although the watch says nothing.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait after a failure.
const PAUSE: Duration = Duration::from_millis(100);
/// How many looks may find what the watch did not tell, before it is opened anew.
const MAX_MISSED: usize = 2;

/// Follows the guard until the store is dropped.
pub(super) async fn follow(session: Arc<Session>) {
    loop {
        match watch(&session).await {
            Ok(why) => tracing::debug!(why, "the watch of etcd begins again"),
            Err(error) => {
                tracing::debug!(%error, "etcd cannot be watched");
                session.note(Some(&error));
            }
        }
        sleep(PAUSE).await;
    }
}

/// Watches until there is a reason to begin again, which it returns.
async fn watch(session: &Session) -> Result<String, StoreError> {
    let mut newest = look(session).await?;
    let create = WatchCreateRequest { key: session.guard_key().into(), start_revision: newest.1 + 1 };
    let opened = session.client.watch(WatchRequest { create: Some(create) }).await;
    let mut events = opened.map_err(|error| error.explain("watch", session.client.tls))?;
    let mut missed = 0;
    loop {
        match timeout(LOOK, events.message()).await {
            Ok(Ok(Some(message))) if message.canceled => return Ok(message.cancel_reason),
            Ok(Ok(Some(message))) => {
                missed = 0;
                let last = message.events.iter().filter_map(|event| event.kv.as_ref()).next_back();
                if let Some(found) = last {
                    newest = session.revision_of(found)?;
                    session.tell(newest.0);
                }
            }
            Ok(Ok(None)) => return Ok("it ended".into()),
            Ok(Err(status)) => {
                session.client.turn();
                return Ok(status.message().to_owned());
            }
            Err(_) => {
                let found = look(session).await?;
                missed = if found.1 > newest.1 { missed + 1 } else { 0 };
                if missed >= MAX_MISSED {
                    session.client.turn();
                    return Ok("it said nothing of a commit".into());
                }
            }
        }
    }
}

/// Reads the guard, and tells of it.
async fn look(session: &Session) -> Result<(Revision, i64), StoreError> {
    let found = session.guard(Instant::now() + super::client::CALL).await?;
    let found = found.unwrap_or_default();
    session.tell(found.0);
    Ok(found)
}
