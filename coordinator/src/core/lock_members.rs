//! Whom the lock's key has to sign for, as it signs them.

use mesh_proto::trust::network_lock::LockedMember;
use mesh_proto::world::World;

/// Lists the nodes that wait for the signature, or those that do not.
pub(crate) fn members(world: &World, waiting: bool) -> impl Iterator<Item = LockedMember> {
    let nodes = world.nodes.iter().filter(move |(_, record)| world.waits(record) == waiting);
    nodes.filter_map(|(name, record)| record.member(name))
}
