//! `mesh-coordinator log`: the log of operations, asked for page by page.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use mesh_proto::base::id::NodeName;
use serde::Deserialize;

use crate::api::{LOG, Log};
use crate::client::{AskError, fetch};
use crate::hub::Hub;
use crate::render::{shown, table};
use crate::session::Failure;

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
        Failure::new(StatusCode::BAD_REQUEST, "malformed", message)
    })?;
    let head = hub.with(|registry| registry.log_head()).await;
    let mut from = since.unwrap_or_else(|| (head.seq + 1).saturating_sub(RECENT));
    let mut answer = Log { schema: LOG.into(), head, entries: Vec::new(), next: None };
    // One page at a time, so that changes are not held up for long.
    loop {
        let page = hub.with(move |registry| registry.log(from)).await;
        let page =
            page.map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()))?;
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
        let mut path = "/v1/log?".to_owned();
        if let Some(since) = since {
            let _ = write!(path, "since={since}&");
        }
        if let Some(node) = node {
            let _ = write!(path, "node={node}");
        }
        path
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

/// Writes a time of day in UTC, as in RFC 3339.
pub(crate) fn time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Turns days since 1970 into year, month and day. Years are counted from 1 March, so that a leap day is the
/// last of its year, and in eras of 400 years.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(time(seconds), text);
        }
    }
}
