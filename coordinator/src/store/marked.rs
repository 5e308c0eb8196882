//! A store beside which a marker is put once something was committed to it.

use std::path::{Path, PathBuf};

use mesh_proto::base::id::Revision;
use tokio::sync::watch;

use super::{Records, Store, StoreError, StoreState, StoreTable, Write};
use crate::base::founded::found;

/// A store whose first commit is followed by the marker.
pub(crate) struct Marked<S> {
    store: S,
    state: PathBuf,
    is_marked: bool,
}

impl<S: Store> Marked<S> {
    /// Puts the marker into the state directory after the next commit, if it is not there.
    pub(crate) fn new(store: S, state: &Path) -> Self {
        Self { store, state: state.to_owned(), is_marked: false }
    }
}

impl<S: Store> Store for Marked<S> {
    fn load(&self) -> Result<Records, StoreError> {
        self.store.load()
    }

    fn scan(&self, table: StoreTable, from: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.store.scan(table, from, limit)
    }

    fn commit(&mut self, expected: Revision, next: Revision, writes: &[Write]) -> Result<(), StoreError> {
        self.store.commit(expected, next, writes)?;
        if !self.is_marked {
            // What was committed is acknowledged all the same; the next commit tries again.
            self.is_marked = found(&self.state);
        }
        Ok(())
    }

    fn shortage(&mut self) -> Option<String> {
        self.store.shortage()
    }

    fn follow(&self) -> Option<watch::Receiver<StoreState>> {
        self.store.follow()
    }

    fn newest(&self) -> Result<Option<Revision>, StoreError> {
        self.store.newest()
    }
}
