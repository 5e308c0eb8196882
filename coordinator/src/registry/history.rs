//! The last worlds, so that a node that knows a recent one can be sent what changed since.

use std::collections::VecDeque;
use std::sync::Arc;

use mesh_proto::base::id::Revision;
use mesh_proto::world::World;

/// Most worlds kept; a node that knows only older ones gets a snapshot.
const KEPT: usize = 64;

/// The last `KEPT` worlds that differ for nodes, oldest first. Each stands for all revisions up to the next one's.
pub(super) struct History {
    kept: VecDeque<Arc<World>>,
    newest: Revision,
}

impl History {
    /// Begins with the present world.
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { newest: world.revision, kept: [world].into() }
    }

    /// Adds a newer world and forgets the oldest above the bound. One that changes no node's map takes no place.
    pub(super) fn push(&mut self, world: Arc<World>) {
        self.newest = world.revision;
        if self.kept.back().is_some_and(|last| last.plans_like(&world)) {
            return;
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(world);
    }

    /// Returns the world of a revision.
    pub(super) fn at(&self, revision: Revision) -> Option<Arc<World>> {
        if revision > self.newest {
            return None;
        }
        let later = self.kept.partition_point(|world| world.revision <= revision);
        let world = self.kept.get(later.checked_sub(1)?)?;
        if world.revision == revision {
            return Some(Arc::clone(world));
        }
        let mut world = World::clone(world);
        world.revision = revision;
        Some(Arc::new(world))
    }
}
