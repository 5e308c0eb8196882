//! A copy of the store in a file of its own, which a coordinator can open in place of the store.

use std::path::Path;

use mesh_proto::id::Revision;

use super::Registry;
use super::log::PAGE;
use crate::store::{StoreError, Table, Write, open_embedded};

impl Registry {
    /// Writes all that is stored into a new file, and returns the revision it is of.
    ///
    /// # Errors
    /// If the file exists or cannot be written; then no file is left behind.
    pub fn backup(&self, path: &Path) -> Result<Revision, StoreError> {
        if path.symlink_metadata().is_ok() {
            return Err(StoreError::Exists { path: path.display().to_string() });
        }
        let stored = self.store.load()?;
        let revision = stored.revision;
        let writes = stored.records.into_iter().map(|((table, key), value)| Write { table, key, value: Some(value) });
        let mut writes: Vec<_> = writes.collect();
        writes.extend(self.log_writes()?);
        let copied = open_embedded(path).and_then(|mut copy| copy.commit(Revision(0), revision, &writes));
        if copied.is_err() {
            let _ = std::fs::remove_file(path);
        }
        copied.map(|()| revision)
    }

    /// Returns the writes that make a copy of the log.
    fn log_writes(&self) -> Result<Vec<Write>, StoreError> {
        let mut writes = Vec::new();
        let mut from = String::new();
        loop {
            let page = self.store.scan(Table::Log, &from, PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(writes);
            };
            // The least key above the last one.
            from = format!("{last}\0");
            let page = page.into_iter();
            writes.extend(page.map(|(key, value)| Write { table: Table::Log, key, value: Some(value) }));
        }
    }
}
