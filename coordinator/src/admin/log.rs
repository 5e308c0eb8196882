//! `GET /v1/log`: the log of operations, page by page.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use mesh_proto::base::id::NodeName;
use serde::Deserialize;

use crate::core::Core;
use crate::core::documents::{LOG, Log};
use crate::core::failure::{Rejection, words};
use crate::registry::Entry;
use mesh_proto::wire::ErrorCode;

/// Entries shown if it is not said since when.
const RECENT: u64 = 200;
/// Most entries in an answer; the client asks again for the next.
const ANSWER: usize = 1000;

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Which {
    since: Option<u64>,
    node: Option<NodeName>,
}

/// Answers with entries of the log.
pub(crate) async fn log(
    State(core): State<Arc<Core>>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Log>, Rejection> {
    let Which { since, node } = words(which, "/v1/log?since=N&node=NAME")?;
    let head = core.with(|registry| registry.log_head()).await;
    let mut from = since.unwrap_or_else(|| (head.seq + 1).saturating_sub(RECENT));
    let mut answer = Log { schema: LOG.into(), head, entries: Vec::new(), next: None };
    // One page at a time, so that changes are not held up for long.
    loop {
        let page = core.with(move |registry| registry.log(from)).await;
        let page = page.map_err(|error| Rejection::new(ErrorCode::Internal, error.to_string()))?;
        let Some(last) = page.last() else { return Ok(Json(answer)) };
        from = last.entry.seq + 1;
        let concerns = |wanted: &NodeName, entry: &Entry| {
            entry.node.as_ref() == Some(wanted) || entry.who.strip_prefix("node:") == Some(wanted.as_str())
        };
        let page = page.into_iter().filter(|logged| node.as_ref().is_none_or(|node| concerns(node, &logged.entry)));
        answer.entries.extend(page);
        if answer.entries.len() >= ANSWER {
            answer.next = Some(from);
            return Ok(Json(answer));
        }
    }
}
