//! Now and then: which ephemeral nodes are still there?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::hub::Hub;
use crate::registry::{Actor, Change};

/// How often is looked.
const EVERY: Duration = Duration::from_secs(20);

/// Runs until the task is dropped.
pub(crate) async fn tend(hub: Arc<Hub>) {
    loop {
        sleep(EVERY).await;
        let world = hub.world();
        let mut connected = BTreeSet::new();
        let mut any = false;
        for (name, _) in world.nodes.iter().filter(|(_, node)| node.contact.is_some()) {
            any = true;
            if hub.is_watching(name) {
                connected.insert(name.clone());
            }
        }
        drop(world);
        if !any {
            continue;
        }
        if let Err(refused) = hub.apply(Change::Tend { connected }, Actor::Coordinator).await {
            tracing::warn!(%refused, "ephemeral nodes are not tended; trying again");
        }
    }
}
