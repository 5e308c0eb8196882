//! All that is stored: the world, and what the planner need not know of it.

pub(super) mod coordinators;
pub(super) mod keys;
pub(super) mod oidc;
pub(super) mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::Ipv4Net;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, MeshName, NodeName};
use mesh_proto::model::netmap::Mesh;
use mesh_proto::services::Services;
use mesh_proto::world::allocate::BlockOwner;
use mesh_proto::world::{NodeRecord, World};
use serde::{Deserialize, Serialize};

use super::log::Ends;
use coordinators::CoordinatorRecord;
use keys::Revoked;
use oidc::{PushedKeys, SpentTokens};
use tokens::TokenRecords;

/// One state of the mesh. Copies are cheap: the parts are shared until one is altered.
#[derive(Clone)]
pub(super) struct State {
    /// What the planner reads.
    pub(super) world: Arc<World>,
    /// Join tokens by their public half.
    pub(super) tokens: Arc<TokenRecords>,
    /// Identities that are never admitted again.
    pub(super) revoked: Arc<BTreeMap<IdentityKey, Revoked>>,
    /// The name that the mesh has in force, so that it has it still when a file lost it; older stores have none.
    pub(super) name: Option<MeshName>,
    /// The last accepted services.toml.
    pub(super) accepted: Option<Arc<Accepted>>,
    /// Issuers' keys that the operator pushed.
    pub(super) pushed: Arc<PushedKeys>,
    /// Issuers' tokens that were used and are not over.
    pub(super) spent: Arc<SpentTokens>,
    /// The coordinators by their keys; `world.mesh` tells nodes of them.
    pub(super) coordinators: Arc<BTreeMap<IdentityKey, CoordinatorRecord>>,
    /// Where the log of operations begins and ends.
    pub(super) log: Ends,
    /// How often the state went back to a backup, counted from 1.
    pub(super) epoch: u64,
    /// Whether the stored pool holds what rests as one list, as an earlier version wrote it.
    pub(super) is_pool_whole: bool,
}

/// A services.toml that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its path, as the operator wrote it.
    pub file: String,
    /// Its text.
    pub text: String,
}

impl State {
    /// Takes a node out and puts what it held into quarantine.
    pub(super) fn remove(&mut self, name: &NodeName, now: UnixTime) {
        let world = Arc::make_mut(&mut self.world);
        let Some(record) = world.remove_node(name) else { return };
        let NodeRecord { id, address, .. } = *record;
        let pool = Arc::make_mut(&mut world.pool);
        pool.free(Ipv4Net::from(address.0), BlockOwner::Node(id), now);
        for block in &record.blocks {
            pool.free(block.flat, BlockOwner::Block(id, block.real), now);
        }
    }
}

/// Returns what a file says of the mesh as a whole.
pub(super) fn mesh(services: &Services, default_name: &MeshName) -> Mesh {
    let section = &services.mesh;
    let name = section.name.as_ref().unwrap_or(default_name);
    Mesh::new(name.clone(), section.range, section.domains.clone())
}
