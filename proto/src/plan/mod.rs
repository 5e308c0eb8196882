//! From the world to one node's map.
//!
//! A pure function: equal worlds give equal maps, so that any coordinator may answer any node, and a change can
//! be shown before it is made. What the file names and nobody carries yet (a node that has not joined, a pod
//! outside its node's blocks) is left out with a warning, never an error: the mesh grows in any order.

mod delta;
mod diff_text;
mod index;
mod map;
mod placement;
mod rule_index;
#[cfg(test)]
mod tests;
mod visibility;

use std::sync::Arc;

use crate::base::id::NodeName;
use crate::model::netmap::NetMap;
use crate::world::World;

pub use delta::{DeltaKey, Transition};
pub use diff_text::differences;
pub use index::PlanIndex;
pub use map::netmap;
pub use placement::{DEFAULT_WEIGHT, refused_offers, warnings};

/// Plans the map of one node; `None` if there is no such node. Who plans several maps of a world makes a `Chart`.
pub fn plan(world: &World, node: &NodeName) -> Option<NetMap> {
    netmap(&PlanIndex::new(Arc::new(world.clone())), node)
}
