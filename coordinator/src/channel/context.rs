//! What a request on the control channel finds: the shared state, and which member asks.

use std::sync::Arc;

use mesh_proto::base::id::NodeName;
use mesh_proto::wire::ErrorCode;

use crate::base::stop::Stop;
use crate::channel::peer::Peer;
use crate::core::Hub;
use crate::core::failure::Failure;
use crate::registry::Refused;
use crate::registry::identity_rotation::superseded;

/// What every request finds.
#[derive(Clone)]
pub(crate) struct Context {
    /// What all tasks share.
    pub(crate) hub: Arc<Hub>,
    /// Becomes true when everything has to end.
    pub(crate) stop: Stop,
}

/// Returns which member asks, or why it may not.
pub(crate) async fn member(hub: &Arc<Hub>, peer: &Peer) -> Result<NodeName, Failure> {
    let world = hub.world();
    if let Some(node) = world.member(&peer.identity) {
        return Ok(node.clone());
    }
    let _turn = hub.strangers_turn().await?;
    hub.catch_up().await;
    if let Some(node) = hub.world().member(&peer.identity) {
        return Ok(node.clone());
    }
    let identity = peer.identity;
    let known =
        hub.with(move |registry| (registry.is_revoked(&identity), registry.successor(&identity).cloned())).await;
    let refused = if let (_, Some(node)) = known {
        Refused { code: ErrorCode::Superseded, message: superseded(&node) }
    } else if known.0 {
        Refused {
            code: ErrorCode::Revoked,
            message: "this node was revoked; to bring the machine back, run `meshd leave`, make a token with `mesh-coordinator token create --site SITE`, and run `meshd join TOKEN`".into(),
        }
    } else {
        Refused {
            code: ErrorCode::UnknownNode,
            message: "this coordinator does not know this node; make a token with `mesh-coordinator token create --site SITE`, and run `meshd join TOKEN` again".into(),
        }
    };
    Err(refused.into())
}
