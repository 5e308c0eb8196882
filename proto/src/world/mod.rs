//! The world: all that is true of the mesh at one revision, and the planner's only input.
//!
//! A value, not a service: the registry makes the next one from a copy, and whoever holds an older one keeps
//! a consistent picture. Copies are cheap (the maps are shared), so that many sessions and the history can
//! hold one each.
//!
//! ```text
//!   services.toml ─▶ services, vips          joins, reports ─▶ nodes          allocate ─▶ pool
//!                          └──────────────────────┴── World ──┴─▶ plan(&world, node) ─▶ NetMap
//! ```

pub mod allocate;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::addr::Flat;
use crate::base::block_map::BlockMap;
use crate::base::clock::UnixTime;
use crate::base::id::{IdentityKey, MeshName, NodeId, NodeName, Revision, ServiceId, ServiceKey, SiteName, TunnelKey};
use crate::model::netmap::Mesh;
use crate::services::{Services, Site};
use crate::trust::audit_log::{LogHead, LogPosition, Roll};
use crate::trust::identity_rotation::Succession;
use crate::trust::network_lock::{LockedMember, Subject};
use crate::trust::signed_record::{Epoch, Signature};
use crate::wire::NodeFacts;
use crate::world::allocate::Pool;

/// All that is true of the mesh at one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// Its number.
    pub revision: Revision,
    /// The mesh's name, range and domains.
    pub mesh: Mesh,
    /// The services.toml in force.
    pub services: Arc<Services>,
    /// The path of that file, as the operator wrote it; empty before there was one.
    pub file: Arc<str>,
    /// The number of the history that the revision counts in: each restore begins another.
    pub epoch: Epoch,
    /// The last entry of the log of operations.
    pub head: LogHead,
    /// The members, and the static nodes of the file.
    pub nodes: Arc<BTreeMap<NodeName, Arc<NodeRecord>>>,
    /// The number and address of every service of the file.
    pub vips: Arc<BTreeMap<ServiceKey, Vip>>,
    /// What was given out and may be given out next.
    pub pool: Arc<Pool>,
    members: Arc<BTreeMap<IdentityKey, NodeName>>,
}

/// A node: a member that joined with a token, or a static one of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its durable number.
    pub id: NodeId,
    /// What it proves itself by on the control channel; `None` for a static node, which has none.
    pub identity: Option<IdentityKey>,
    /// Its site.
    pub site: SiteName,
    /// Its own address.
    pub address: Flat,
    /// Its pod blocks that were accepted, ordered by `real`.
    pub blocks: Vec<BlockMap>,
    /// What it says of itself, as far as it was accepted: `pods` are those of `blocks`.
    pub facts: NodeFacts,
    /// The address that the coordinator last saw it at.
    pub observed: Option<IpAddr>,
    /// The services that its tokens allow it to serve, in order.
    pub grants: Vec<ServiceKey>,
    /// The public half of the token that it last joined with.
    pub token: Option<String>,
    /// When it first joined.
    pub joined_at: UnixTime,
    /// When an ephemeral node was last heard of, to some minutes; none for all others, which stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<UnixTime>,
    /// The lock's signature that admits it; none while it waits for one, or while there is no lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub countersigned: Option<Signature>,
    /// How it came from former identities to this one, the oldest first; at most `succession::MAX_LINEAGE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lineage: Vec<Succession>,
}

/// A service's number and address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// Its durable number.
    pub id: ServiceId,
    /// Its address in the mesh.
    pub address: Flat,
}

impl NodeRecord {
    /// Returns what the lock's key signs of it; `None` of a static node without a tunnel key, which there is none of.
    pub fn member(&self, name: &NodeName) -> Option<LockedMember> {
        let tunnel = || self.facts.lanes.first().map(|lane| Subject::Tunnel(lane.key));
        let subject = self.identity.map(Subject::Identity).or_else(tunnel)?;
        Some(LockedMember { id: self.id, name: name.clone(), site: self.site.clone(), subject })
    }
}

impl World {
    /// Makes the world before anything happened: revision 0, nobody, no services.
    pub fn new(name: MeshName) -> Self {
        let services = Services::default();
        let mesh = Mesh::new(name, services.mesh.range, services.mesh.domains.clone());
        Self {
            revision: Revision::default(),
            epoch: Epoch::default(),
            head: LogHead::default(),
            mesh,
            services: Arc::new(services),
            file: "".into(),
            nodes: Arc::default(),
            vips: Arc::default(),
            pool: Arc::default(),
            members: Arc::default(),
        }
    }

    /// Returns the name of the member with this identity.
    pub fn member(&self, identity: &IdentityKey) -> Option<&NodeName> {
        self.members.get(identity)
    }

    /// Returns the last entry of the log, as nodes are told of it.
    pub fn log_position(&self) -> LogPosition {
        LogPosition { epoch: self.epoch.number, head: self.head }
    }

    /// Returns who belongs to the mesh at this place in the log; not who was expelled.
    pub fn roll(&self) -> Roll {
        let members = self.members.keys().copied().collect();
        let statics = Some(self.statics().collect());
        Roll { told: self.log_position(), revision: self.revision, members, statics, ..Roll::default() }
    }

    /// Returns the tunnel keys of the nodes that have no other key.
    pub fn statics(&self) -> impl Iterator<Item = TunnelKey> {
        let statics = self.nodes.values().filter(|node| node.identity.is_none());
        statics.filter_map(|node| node.facts.lanes.first().map(|lane| lane.key))
    }

    /// Returns a site of the file.
    pub fn site(&self, name: &SiteName) -> Option<&Site> {
        self.services.sites.iter().find(|site| site.name == *name)
    }

    /// Adds a node, or replaces the one of that name.
    pub fn insert_node(&mut self, name: NodeName, record: NodeRecord) {
        self.remove_node(&name);
        if let Some(identity) = record.identity {
            Arc::make_mut(&mut self.members).insert(identity, name.clone());
        }
        Arc::make_mut(&mut self.nodes).insert(name, Arc::new(record));
    }

    /// Takes a node out and returns it.
    pub fn remove_node(&mut self, name: &NodeName) -> Option<Arc<NodeRecord>> {
        let record = Arc::make_mut(&mut self.nodes).remove(name)?;
        if let Some(identity) = record.identity {
            Arc::make_mut(&mut self.members).remove(&identity);
        }
        Some(record)
    }

    /// Says whether this world and another one, made from it or the other way round, lead to the same maps but for
    /// their revision: the parts that are planned from are shared, or differ only in when nodes were heard of. Cheap;
    /// may say no of worlds that are alike.
    pub fn plans_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.vips, &other.vips)
            && Arc::ptr_eq(&self.services, &other.services)
            && Arc::ptr_eq(&self.file, &other.file)
            && self.mesh == other.mesh
            && self.has_nodes_like(other)
    }

    fn has_nodes_like(&self, other: &Self) -> bool {
        let alike = |a: &Arc<NodeRecord>, b: &Arc<NodeRecord>| {
            // Only a contact makes it worth comparing what is not shared.
            let is_touch = a.contact.is_some() && a.contact != b.contact;
            Arc::ptr_eq(a, b) || is_touch && NodeRecord { contact: b.contact, ..NodeRecord::clone(a) } == **b
        };
        Arc::ptr_eq(&self.nodes, &other.nodes)
            || self.nodes.len() == other.nodes.len()
                && self.nodes.iter().zip(&*other.nodes).all(|(a, b)| a.0 == b.0 && alike(a.1, b.1))
    }

    /// Says whether a node waits for the lock's signature: nobody else is told of it until then.
    pub fn waits(&self, node: &NodeRecord) -> bool {
        let is_locked = self.mesh.lock.as_ref().is_some_and(|lock| lock.key.is_some());
        is_locked && node.countersigned.is_none()
    }

    /// Returns the nodes' own addresses.
    pub fn addresses(&self) -> impl Iterator<Item = Flat> {
        self.nodes.values().map(|node| node.address)
    }
}
