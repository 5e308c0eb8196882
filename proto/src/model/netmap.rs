//! The NetMap: everything one node needs to know, one value, one revision.
//!
//! The coordinator plans it (`plan`), the channel carries it whole or as a `Delta`, the node caches it and
//! compiles it into a `View` for the engine, the tunnels, the paths and the zone. Nobody writes into it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::base::addr::{Flat, MeshRange};
use crate::base::block_map::BlockMap;
use crate::base::forward_compat;
use crate::base::id::{
    BackendName, Domain, IdentityKey, MeshName, NodeId, NodeName, PortName, Revision, ServiceId, ServiceKey, SiteName,
    TunnelKey,
};
use crate::model::rules::Rule;
use crate::trust::identity_rotation::Succession;
use crate::trust::network_lock::{LockedMember, NetworkLock, Subject};
use crate::trust::signed_record::{Epoch, NextKey, Signature, SignedRecord};

/// Everything one node needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetMap {
    /// The state of the mesh that this map was planned from.
    pub revision: Revision,
    /// The coordinator's history that the revision counts in.
    #[serde(default)]
    pub epoch: Epoch,
    /// What is the same for every node.
    pub mesh: Mesh,
    /// The node that this map is for.
    pub node: OwnNode,
    /// The other nodes that it may call, or that may call it.
    pub peers: BTreeMap<NodeName, Peer>,
    /// The services that it may call, that it backs, or that may call it, with their backends as this node should
    /// prefer them.
    pub services: BTreeMap<ServiceKey, Service>,
    /// The addresses of all services of the mesh: a name that may not be called is refused, and not unknown.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub names: Arc<BTreeMap<ServiceKey, Flat>>,
    /// The prefixes within which a site's nodes may claim pod blocks.
    #[serde(default)]
    pub sites: BTreeMap<SiteName, Vec<Ipv4Net>>,
    /// The permissions that concern it, in the order of the file; those that this version understands.
    #[serde(deserialize_with = "forward_compat::list")]
    pub rules: Vec<Rule>,
    /// Sentences for the operator of this node, such as a refused serve offer.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl NetMap {
    /// Returns the address of a service, whether or not this node may call it.
    pub fn vip(&self, key: &ServiceKey) -> Option<Flat> {
        let seen = self.services.get(key).map(|service| service.vip);
        seen.or_else(|| self.names.get(key).copied())
    }

    /// Returns the service at an address, whether or not this node may call it.
    pub fn service_at(&self, vip: Flat) -> Option<&ServiceKey> {
        let seen = self.services.iter().find(|(_, service)| service.vip == vip).map(|(key, _)| key);
        seen.or_else(|| self.names.iter().find(|(_, address)| **address == vip).map(|(key, _)| key))
    }
}

fn is_empty(names: &Arc<BTreeMap<ServiceKey, Flat>>) -> bool {
    names.is_empty()
}

/// What is the same for every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// The name of the mesh.
    pub name: MeshName,
    /// The range of all flat addresses.
    pub range: MeshRange,
    /// The domains that every node answers for.
    pub domains: Vec<Domain>,
    /// The coordinators, each of which may be asked; none where an older one planned the map.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coordinators: Vec<Coordinator>,
    /// The key that countersigns members, and how it came to be that one; none if there never was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<NetworkLock>,
}

impl Mesh {
    /// Makes one of which no coordinator is told, and that no key locks.
    pub fn new(name: MeshName, range: MeshRange, domains: Vec<Domain>) -> Self {
        Self { name, range, domains, coordinators: Vec::new(), lock: None }
    }
}

/// A coordinator, as nodes need to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coordinator {
    /// The key that it proves itself by.
    pub key: IdentityKey,
    /// Where it is reached, as `host:port`.
    pub addresses: Vec<String>,
    /// The key that it will go on with, while it changes keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextKey>,
}

/// The node that a map is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNode {
    /// Its durable number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its own address in the mesh.
    pub address: Flat,
    /// Its pod blocks and their flat images.
    pub blocks: Vec<BlockMap>,
    /// Whether this node reported that a CNI's masquerading cannot erase its pods' addresses.
    pub guarded: bool,
    /// The number of the last record that the coordinator has of this node.
    #[serde(default)]
    pub sequence: u64,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its durable number.
    pub id: NodeId,
    /// Its site.
    pub site: SiteName,
    /// Its own address in the mesh.
    pub address: Flat,
    /// The flat images of its pod blocks.
    pub blocks: Vec<Ipv4Net>,
    /// Its lanes; lane 0 first, never empty.
    pub lanes: Vec<LaneInfo>,
    /// Candidates for its lane 0, to be tried in this order; lane i listens on the same host at `lanes[i].port`.
    pub endpoints: Vec<SocketAddr>,
    /// The largest inner packet it takes, in bytes.
    pub mtu: u16,
    /// Whether its node address speaks for the services it backs: false while a CNI's masquerading could
    /// hide a pod behind it, so that the address is `host:node` alone.
    pub guarded: bool,
    /// Its lanes with the keys that it had before, while it changes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<LaneInfo>,
    /// The keys at which it agrees on preshared keys, the present one first; none for one that speaks plain WireGuard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agreement: Vec<TunnelKey>,
    /// What shows that all this is true; none for a static node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// The lock's signature that admits it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub countersigned: Option<Signature>,
}

impl Peer {
    /// Returns the key that it is known by; `None` if it has none at all.
    pub fn subject(&self) -> Option<Subject> {
        match &self.proof {
            Some(proof) => Some(Subject::Identity(proof.identity)),
            None => self.lanes.first().map(|lane| Subject::Tunnel(lane.key)),
        }
    }

    /// Returns what the lock's key signs of it; `None` if it has no key at all.
    pub fn member(&self, name: &NodeName) -> Option<LockedMember> {
        let subject = self.subject()?;
        Some(LockedMember { id: self.id, name: name.clone(), site: self.site.clone(), subject })
    }
}

/// What a node signed, and what of it the coordinator made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The key that signed it.
    pub identity: IdentityKey,
    /// What the node says of itself.
    pub record: SignedRecord,
    /// The pod blocks that the peer's `blocks` are images of, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<Ipv4Net>,
    /// How it came from former keys to this one, the oldest first; at most `succession::MAX_LINEAGE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lineage: Vec<Succession>,
}

/// One lane of a node: an independent WireGuard identity on a port of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneInfo {
    /// Its public key.
    pub key: TunnelKey,
    /// Its UDP port.
    pub port: u16,
}

/// A service as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its durable number.
    pub id: ServiceId,
    /// Its address in the mesh.
    pub vip: Flat,
    /// Its ports; empty only where this version understands none of them.
    #[serde(deserialize_with = "forward_compat::list")]
    pub ports: Vec<ServicePort>,
    /// Its live backends, in a stable order.
    pub backends: Vec<Backend>,
    /// The nodes that may carry one.
    #[serde(default, deserialize_with = "forward_compat::map")]
    pub grants: BTreeMap<NodeName, Grant>,
    /// Whether the same client keeps the same backend.
    #[serde(default)]
    pub sticky: bool,
    /// Whether backends refuse this port from outside the mesh.
    #[serde(default)]
    pub strict: bool,
}

/// Why a node may carry backends of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    /// The services.toml of the mesh names it.
    File,
    /// Its join token allows it, and it offers to.
    Token,
}

/// A transport protocol that services speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl Transport {
    /// Returns the IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One port of a service: what callers dial, and what backends listen on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name, where the service has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PortName>,
    /// Its protocol.
    pub transport: Transport,
    /// The port that callers dial at the VIP.
    pub port: u16,
    /// The port that a backend listens on, unless the backend states another.
    pub target: u16,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its name in the file, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<BackendName>,
    /// The node that carries it.
    pub node: NodeName,
    /// Its flat address: the node's own, or a pod's image.
    pub address: Flat,
    /// Its target port, where it differs from the service's. Only for services with one port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its share of new connections among backends of the same tier; 0 drains it.
    pub weight: u32,
    /// Its distance from this node: only the lowest tier with a live backend takes new connections.
    #[serde(default)]
    pub tier: u8,
}

impl Backend {
    /// Returns the port that this backend listens on for a port of its service.
    pub fn target(&self, port: &ServicePort) -> u16 {
        self.port.unwrap_or(port.target)
    }
}

/// What changed between two maps of the same node. Applying it to the first gives the second, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The revision it applies to.
    pub from: Revision,
    /// The revision it leads to.
    pub to: Revision,
    /// The new value of `epoch`, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The new value of `mesh`, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<Mesh>,
    /// The new value of `node`, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<OwnNode>,
    /// Peers that are new or changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<NodeName, Peer>,
    /// Peers that are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers_gone: Vec<NodeName>,
    /// Services that are new or changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<ServiceKey, Service>,
    /// Services that are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services_gone: Vec<ServiceKey>,
    /// Names of services that are new or have another address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<ServiceKey, Flat>,
    /// Names of services that are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names_gone: Vec<ServiceKey>,
    /// The new value of `sites`, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<BTreeMap<SiteName, Vec<Ipv4Net>>>,
    /// The new rules, if they changed; those that this version understands.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "forward_compat::some_list")]
    pub rules: Option<Vec<Rule>>,
    /// The new warnings, if they changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<String>>,
}

/// A delta that does not fit the map it was applied to; the node asks for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the update starts at revision {from}, but this node is at {at}; asking for a snapshot")]
pub struct DeltaMismatch {
    /// The revision that the delta starts from.
    pub from: Revision,
    /// The revision that the node holds.
    pub at: Revision,
}

impl Delta {
    /// Computes what leads from `old` to `new`.
    pub fn between(old: &NetMap, new: &NetMap) -> Self {
        fn changed<T: PartialEq + Clone>(old: &T, new: &T) -> Option<T> {
            (old != new).then(|| new.clone())
        }
        fn set<K: Ord + Clone, V: PartialEq + Clone>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeMap<K, V> {
            let differs = |(k, v): &(&K, &V)| old.get(*k) != Some(*v);
            new.iter().filter(differs).map(|(k, v)| (k.clone(), v.clone())).collect()
        }
        fn gone<K: Ord + Clone, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
            old.keys().filter(|k| !new.contains_key(k)).cloned().collect()
        }
        let same_names = Arc::ptr_eq(&old.names, &new.names);
        Self {
            from: old.revision,
            to: new.revision,
            epoch: changed(&old.epoch, &new.epoch),
            mesh: changed(&old.mesh, &new.mesh),
            node: changed(&old.node, &new.node),
            peers: set(&old.peers, &new.peers),
            peers_gone: gone(&old.peers, &new.peers),
            services: set(&old.services, &new.services),
            services_gone: gone(&old.services, &new.services),
            names: if same_names { BTreeMap::new() } else { set(&old.names, &new.names) },
            names_gone: if same_names { Vec::new() } else { gone(&old.names, &new.names) },
            sites: changed(&old.sites, &new.sites),
            rules: changed(&old.rules, &new.rules),
            warnings: changed(&old.warnings, &new.warnings),
        }
    }

    /// Says whether it changes nothing but the revision.
    pub fn is_empty(&self) -> bool {
        let Self {
            from: _,
            to: _,
            epoch,
            mesh,
            node,
            peers,
            peers_gone,
            services,
            services_gone,
            names,
            names_gone,
            sites,
            rules,
            warnings,
        } = self;
        let lists = peers.is_empty() && peers_gone.is_empty() && services.is_empty() && services_gone.is_empty();
        let lists = lists && names.is_empty() && names_gone.is_empty() && epoch.is_none() && sites.is_none();
        lists && mesh.is_none() && node.is_none() && rules.is_none() && warnings.is_none()
    }

    /// Applies the delta.
    ///
    /// # Errors
    /// `DeltaMismatch` if `old` is not at the revision that the delta starts from.
    pub fn apply(self, old: &NetMap) -> Result<NetMap, DeltaMismatch> {
        if self.from != old.revision {
            return Err(DeltaMismatch { from: self.from, at: old.revision });
        }
        let mut new = old.clone();
        new.revision = self.to;
        new.epoch = self.epoch.unwrap_or(new.epoch);
        new.mesh = self.mesh.unwrap_or(new.mesh);
        new.node = self.node.unwrap_or(new.node);
        new.sites = self.sites.unwrap_or(new.sites);
        new.rules = self.rules.unwrap_or(new.rules);
        new.warnings = self.warnings.unwrap_or(new.warnings);
        new.peers.retain(|name, _| !self.peers_gone.contains(name));
        new.peers.extend(self.peers);
        new.services.retain(|key, _| !self.services_gone.contains(key));
        new.services.extend(self.services);
        if !self.names.is_empty() || !self.names_gone.is_empty() {
            let names = Arc::make_mut(&mut new.names);
            names.retain(|key, _| !self.names_gone.contains(key));
            names.extend(self.names);
        }
        Ok(new)
    }
}
