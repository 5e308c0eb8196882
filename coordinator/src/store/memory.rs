//! A store in memory, for tests and trials.

use mesh_proto::id::Revision;

use super::{Records, Store, StoreError, Write};

/// Holds records until it is dropped.
#[derive(Debug, Default)]
pub struct Memory(Records);

impl Memory {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Store for Memory {
    fn load(&self) -> Result<Records, StoreError> {
        Ok(self.0.clone())
    }

    fn commit(&mut self, expected: Revision, next: Revision, writes: &[Write]) -> Result<(), StoreError> {
        let found = self.0.revision;
        if found != expected {
            return Err(StoreError::Conflict { expected, found });
        }
        self.0.revision = next;
        for write in writes {
            let place = (write.table, write.key.clone());
            match &write.value {
                Some(value) => drop(self.0.records.insert(place, value.clone())),
                None => drop(self.0.records.remove(&place)),
            }
        }
        Ok(())
    }
}
