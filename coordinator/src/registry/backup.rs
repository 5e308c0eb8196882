//! A copy of the store in a file of its own, which a coordinator can open in place of the store.

use std::path::Path;

use mesh_proto::id::Revision;

use super::Registry;
use crate::store::{StoreError, Write, open_embedded};

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
        let writes: Vec<_> = writes.collect();
        let copied = open_embedded(path).and_then(|mut copy| copy.commit(Revision(0), revision, &writes));
        if copied.is_err() {
            let _ = std::fs::remove_file(path);
        }
        copied.map(|()| revision)
    }
}
