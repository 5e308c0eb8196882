//! Where nodes reach coordinators, and by which keys they know them.

use std::collections::BTreeSet;

use mesh_proto::base::id::IdentityKey;
use mesh_proto::world::World;

/// This coordinator, as nodes are told of it.
#[derive(Debug)]
pub(crate) struct OwnEntry {
    /// Its public key.
    pub(crate) key: IdentityKey,
    /// Its addresses, as `host:port`.
    pub(crate) addresses: Vec<String>,
}

/// What a node is told of coordinators when it joins.
pub(crate) struct CoordinatorList {
    /// Addresses, as `host:port`: our own first, then one of each other, then the rest.
    pub(crate) addresses: Vec<String>,
    /// Keys, our own first.
    pub(crate) pins: Vec<IdentityKey>,
}

impl CoordinatorList {
    /// Lists the coordinators of a world, beginning with our own entry.
    pub(crate) fn new(own: &OwnEntry, world: &World) -> Self {
        let others = world.mesh.coordinators.iter().filter(|other| other.key != own.key);
        let mut told = Self { addresses: own.addresses.clone(), pins: vec![own.key] };
        told.pins.extend(others.clone().map(|other| other.key));
        // Those that will be needed soon: a node may join with a token of before.
        told.pins.extend(world.mesh.coordinators.iter().filter_map(|one| one.next).map(|next| next.key));
        let most = others.clone().map(|other| other.addresses.len()).max().unwrap_or(0);
        for turn in 0..most {
            told.addresses.extend(others.clone().filter_map(|other| other.addresses.get(turn).cloned()));
        }
        let mut seen = BTreeSet::new();
        told.addresses.retain(|address| seen.insert(address.clone()));
        told
    }
}
