//! Copies of all that is stored.

use mesh_proto::base::id::Revision;
use serde::de::DeserializeOwned;

use super::log::{Ends, PAGE};
use crate::store::{Store, StoreError, StoreTable, Write};

/// Returns the present revision, and the writes that lead to it from nothing, the log included.
///
/// # Errors
/// If the store cannot be read.
pub(super) fn snapshot(store: &dyn Store) -> Result<(Revision, Vec<Write>), StoreError> {
    let stored = store.load()?;
    let writes = stored.records.into_iter().map(|((table, key), value)| Write { table, key, value: Some(value) });
    let mut writes: Vec<_> = writes.collect();
    // In a store that others use too there may be more entries by now.
    let ends: Option<Ends> = record(&writes, StoreTable::Meta, "log");
    let newest = ends.map_or(u64::MAX, |ends| ends.head.seq);
    let mut from = String::new();
    loop {
        let page = store.scan(StoreTable::Log, &from, PAGE)?;
        let Some((last, _)) = page.last() else { return Ok((stored.revision, writes)) };
        // The least key above the last one.
        from = format!("{last}\0");
        let page = page.into_iter().filter(|(key, _)| key.parse().is_ok_and(|seq: u64| seq <= newest));
        writes.extend(page.map(|(key, value)| Write { table: StoreTable::Log, key, value: Some(value) }));
    }
}

/// Reads a record among writes.
fn record<T: DeserializeOwned>(writes: &[Write], table: StoreTable, key: &str) -> Option<T> {
    let write = writes.iter().find(|write| write.table == table && write.key == key)?;
    serde_json::from_slice(write.value.as_ref()?).ok()
}
