//! The keys of a node, and what is stored of those that never come back.

use std::collections::BTreeSet;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{NodeName, TunnelKey};
use mesh_proto::trust::identity_rotation::Succession;
use mesh_proto::wire::NodeFacts;
use serde::{Deserialize, Serialize};

/// A member that was expelled, or a key that a member replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The name it had.
    pub name: NodeName,
    /// When it was expelled.
    pub at: UnixTime,
    /// The tunnel keys it had.
    #[serde(default)]
    pub tunnels: Vec<TunnelKey>,
    /// How the member went on with another identity; none if it was expelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succession: Option<Succession>,
}

/// Returns all tunnel keys that a node answers to.
pub(crate) fn tunnel_keys(facts: &NodeFacts) -> BTreeSet<TunnelKey> {
    facts.lanes.iter().chain(&facts.previous).map(|lane| lane.key).chain(facts.agreement.iter().copied()).collect()
}
