//! A store in memory, for tests.

use mesh_proto::base::id::Revision;

use super::{Records, Store, StoreError, StoreTable, Write};

/// Holds records until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Memory(Records);

impl Memory {
    /// Makes an empty store.
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

impl Store for Memory {
    fn load(&self) -> Result<Records, StoreError> {
        let mut records = self.0.clone();
        records.records.retain(|(table, _), _| *table != StoreTable::Log);
        Ok(records)
    }

    fn scan(&self, table: StoreTable, from: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let rows = self.0.records.range((table, from.to_owned())..);
        let rows = rows.take_while(|((t, _), _)| *t == table).take(limit);
        Ok(rows.map(|((_, key), value)| (key.clone(), value.clone())).collect())
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
