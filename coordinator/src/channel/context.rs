//! What a request on the control channel finds, and which member asks.

use std::sync::Arc;

use mesh_host::http::Stop;
use mesh_proto::base::id::NodeName;

use crate::channel::peer::Requester;
use crate::core::Core;
use crate::core::coordinator_list::OwnEntry;
use crate::core::counters::Counters;
use crate::core::failure::Rejection;
use crate::core::limits::Limits;
use crate::core::shared_store::SharedStore;
use crate::oidc::issuers::Issuers;
use crate::registry::Refused;
use crate::registry::identity_rotation::superseded;
use mesh_proto::wire::ErrorCode;

/// What every request finds.
#[derive(Clone)]
pub(crate) struct Context {
    /// The registry, and what it published.
    pub(crate) core: Arc<Core>,
    /// Whose turn it is.
    pub(crate) limits: Arc<Limits>,
    /// What other coordinators commit.
    pub(crate) shared: Arc<SharedStore>,
    /// The issuers whose word on a machine is taken.
    pub(crate) issuers: Arc<Issuers>,
    /// This coordinator, as nodes are told of it.
    pub(crate) own: Arc<OwnEntry>,
    /// Counters.
    pub(crate) counters: Counters,
    /// Becomes true when everything has to end.
    pub(crate) stop: Stop,
}

impl Context {
    /// Returns which member asks, or why it may not.
    pub(crate) async fn member(&self, peer: &Requester) -> Result<NodeName, Rejection> {
        let world = self.core.world();
        if let Some(node) = world.member(&peer.identity) {
            return Ok(node.clone());
        }
        let _turn = self.limits.strangers_turn().await?;
        self.shared.catch_up(&self.core).await;
        if let Some(node) = self.core.world().member(&peer.identity) {
            return Ok(node.clone());
        }
        let identity = peer.identity;
        let known = self
            .core
            .with(move |registry| (registry.is_revoked(&identity), registry.successor(&identity).cloned()))
            .await;
        let refused = if let (_, Some(node)) = known {
            Rejection::new(ErrorCode::Superseded, superseded(&node))
        } else if known.0 {
            Rejection::new(
                ErrorCode::Revoked,
                "this node was revoked; a token for its name brings the machine back by `meshd join` (an older meshd has to leave first)",
            )
        } else {
            Rejection::new(
                ErrorCode::UnknownNode,
                "this coordinator does not know this node; a token for its name brings the machine back by `meshd join` (an older meshd has to leave first)",
            )
        };
        Err(refused)
    }

    /// Returns which member asks, unless it asks too often.
    pub(crate) async fn asking_member(&self, peer: &Requester) -> Result<NodeName, Rejection> {
        let node = self.member(peer).await?;
        if self.limits.may_report(&self.core.world(), peer.identity) {
            return Ok(node);
        }
        Err(asks_too_often().into())
    }
}

/// Answers a member that asks more often than it may.
pub(crate) fn asks_too_often() -> Refused {
    let message = "this node asks too often; try again in a second";
    Refused::new(ErrorCode::Busy, message)
}
