//! Whose a name is: nodes are told apart by names, and services.toml grants by them.

use std::collections::BTreeSet;

use mesh_proto::base::id::NodeName;
use mesh_proto::model::rules::{RuleTarget, Source};
use mesh_proto::services::Services;
use mesh_proto::world::World;

/// Returns the names of nodes that services.toml refers to and that no node has, in order.
pub fn awaited(world: &World) -> BTreeSet<NodeName> {
    let named = named(&world.services).filter(|name| !world.nodes.contains_key(*name));
    named.cloned().collect()
}

/// Says whether services.toml refers to a node of this name, as a backend or in a rule.
pub fn refers(world: &World, name: &NodeName) -> bool {
    named(&world.services).any(|named| named == name)
}

fn named(services: &Services) -> impl Iterator<Item = &NodeName> {
    let backends = services.services.iter().flat_map(|service| &service.backends).map(|backend| backend.at.node());
    let from = services.allows.iter().flat_map(|allow| &allow.rule.from).filter_map(|source| match source {
        Source::Host(name) | Source::Masqueraded(name) => Some(name),
        Source::Service(_) | Source::Site(_) | Source::Account(..) | Source::Any => None,
    });
    let to = services.allows.iter().flat_map(|allow| &allow.rule.to).filter_map(|target| match target {
        RuleTarget::Host(name) => Some(name),
        RuleTarget::Service(_) | RuleTarget::Port(..) | RuleTarget::Site(_) | RuleTarget::Any => None,
    });
    backends.chain(from).chain(to)
}
