//! `mesh-coordinator log`: the log of operations, asked for page by page.

use mesh_host::client::{AskError, Client};
use mesh_host::clock::utc_text;
use mesh_host::table::table;
use mesh_proto::base::id::NodeName;
use mesh_proto::wire::query::with_query;

use crate::cli::render::shown;
use crate::core::documents::Log;

/// Asks the running coordinator for entries of its log.
pub(crate) async fn read(client: &Client, since: Option<u64>, node: Option<&NodeName>) -> Result<Log, AskError> {
    let path = |since: Option<u64>| {
        let since = since.map(|since| since.to_string());
        let since = since.as_deref().map(|since| ("since", since));
        let node = node.map(|node| ("node", node.as_str()));
        with_query("/v1/log", &since.into_iter().chain(node).collect::<Vec<_>>())
    };
    // Of one node all is shown: there is no telling which numbers its last entries have.
    let since = if node.is_some() { since.or(Some(0)) } else { since };
    let mut all: Log = client.get(&path(since)).await?;
    while let Some(next) = all.next {
        let more: Log = client.get(&path(Some(next))).await?;
        all.entries.extend(more.entries);
        all.next = more.next;
    }
    Ok(all)
}

/// Writes entries for people.
pub(crate) fn render(log: &Log) -> String {
    let mut table = table(&["SEQ", "TIME", "WHO", "REVISION", "WHAT"], &[]);
    for logged in &log.entries {
        let entry = &logged.entry;
        let revision = format!("{} → {}", entry.from, entry.to);
        table.add_row([
            entry.seq.to_string(),
            utc_text(entry.at.0),
            entry.who.clone(),
            revision,
            format!("{}: {}", entry.kind, entry.text),
        ]);
    }
    let shown = shown(&table, log.entries.len(), "no such entries");
    format!("{shown}head {} {}\n", log.head.seq, log.head.hash)
}
