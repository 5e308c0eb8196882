//! `mesh-coordinator log`: the log of operations, asked for page by page.

use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use mesh_proto::base::id::NodeName;
use mesh_proto::wire::ErrorCode;
use mesh_proto::wire::query::with_query;
use serde::Deserialize;

use crate::base::text_time::time;
use crate::cli::client::{AskError, fetch};
use crate::cli::render::{shown, table};
use crate::core::Hub;
use crate::core::documents::{LOG, Log};
use crate::core::failure::Failure;

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
    State(hub): State<Arc<Hub>>,
    which: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Log>, Failure> {
    let Query(Which { since, node }) = which.map_err(|rejection| {
        let message = format!("{}; write /v1/log?since=N&node=NAME", rejection.body_text());
        Failure::new(StatusCode::BAD_REQUEST, ErrorCode::Malformed, message)
    })?;
    let head = hub.with(|registry| registry.log_head()).await;
    let mut from = since.unwrap_or_else(|| (head.seq + 1).saturating_sub(RECENT));
    let mut answer = Log { schema: LOG.into(), head, entries: Vec::new(), next: None };
    // One page at a time, so that changes are not held up for long.
    loop {
        let page = hub.with(move |registry| registry.log(from)).await;
        let page = page
            .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal, error.to_string()))?;
        let Some(last) = page.last() else {
            return Ok(Json(answer));
        };
        from = last.entry.seq + 1;
        let concerns = |wanted: &NodeName, entry: &crate::registry::Entry| {
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

/// Asks the running coordinator for entries of its log.
pub(crate) async fn read(socket: &Path, since: Option<u64>, node: Option<&NodeName>) -> Result<Log, AskError> {
    let path = |since: Option<u64>| {
        let since = since.map(|since| since.to_string());
        let since = since.as_deref().map(|since| ("since", since));
        let node = node.map(|node| ("node", node.as_str()));
        with_query("/v1/log", &since.into_iter().chain(node).collect::<Vec<_>>())
    };
    // Of one node all is shown: there is no telling which numbers its last entries have.
    let since = if node.is_some() { since.or(Some(0)) } else { since };
    let mut all: Log = fetch(socket, &path(since)).await?;
    while let Some(next) = all.next {
        let more: Log = fetch(socket, &path(Some(next))).await?;
        all.entries.extend(more.entries);
        all.next = more.next;
    }
    Ok(all)
}

/// Writes entries for people.
pub(crate) fn render(log: &Log) -> String {
    let mut table = table(["SEQ", "TIME", "WHO", "REVISION", "WHAT"]);
    for logged in &log.entries {
        let entry = &logged.entry;
        let revision = format!("{} → {}", entry.from, entry.to);
        table.add_row([
            entry.seq.to_string(),
            time(entry.at.0),
            entry.who.clone(),
            revision,
            format!("{}: {}", entry.kind, entry.text),
        ]);
    }
    let shown = shown(&table, log.entries.len(), "no such entries");
    format!("{shown}head {} {}\n", log.head.seq, log.head.hash)
}
