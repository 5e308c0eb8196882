//! Now and then: which ephemeral nodes are still there?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mesh_host::clock::unix as now;
use tokio::time::sleep;

use crate::core::Core;
use crate::core::shared_store::SharedStore;
use crate::registry::{Actor, Change, Sightings};

/// How often is looked.
const EVERY: Duration = Duration::from_secs(20);

/// Runs until the task is dropped.
pub(crate) async fn tend(core: Arc<Core>, shared: Arc<SharedStore>) {
    let mut sightings = Sightings::default();
    loop {
        sleep(EVERY).await;
        let world = core.world();
        let mut connected = BTreeSet::new();
        for (name, _) in world.nodes.iter().filter(|(_, node)| node.contact.is_some()) {
            if core.watches().is_open(name) {
                connected.insert(name.clone());
            }
        }
        let seen = sightings.look(&world, now());
        drop(world);
        if shared.error().is_some() {
            sightings.interrupt();
            continue;
        }
        if seen.is_empty() {
            continue;
        }
        if let Err(refused) = core.apply(Change::Tend { connected, seen }, Actor::Coordinator).await {
            sightings.interrupt();
            tracing::warn!(%refused, "ephemeral nodes are not tended; trying again");
        }
    }
}
