//! The last worlds, so that a node that knows a recent one can be sent what changed since.

use std::collections::VecDeque;
use std::sync::Arc;

use mesh_proto::id::Revision;
use mesh_proto::world::World;

/// Most worlds kept; a node that knows only older ones gets a snapshot.
const KEPT: usize = 64;

/// The last `KEPT` worlds, oldest first.
pub(super) struct History(VecDeque<Arc<World>>);

impl History {
    /// Begins with the present world.
    pub(super) fn new(world: Arc<World>) -> Self {
        Self([world].into())
    }

    /// Adds a newer world and forgets the oldest above the bound.
    pub(super) fn push(&mut self, world: Arc<World>) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(world);
    }

    /// Returns the world of a revision.
    pub(super) fn at(&self, revision: Revision) -> Option<Arc<World>> {
        let place = self.0.binary_search_by_key(&revision, |w| w.revision).ok()?;
        self.0.get(place).cloned()
    }
}
