//! The View: a NetMap compiled for look-ups. Every lane reads the same one. Immutable but for one word per peer: since
//! when it does not answer, which outlasts the map.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::base::addr::{Flat, MeshRange, Real};
use crate::base::clock::Timestamp;
use crate::base::hash::OwnMap;
use crate::base::id::{NodeId, NodeName, Revision, ServiceKey};
use crate::base::lpm::PrefixTable;
use crate::dataplane::balancer::Balancer;
use crate::dataplane::liveness::Silence;
use crate::dataplane::policy_index::Access;
use crate::model::netmap::{NetMap, Peer, Service, ServicePort};
use crate::verifier::VerifiedMap;

/// A NetMap compiled for look-ups.
#[derive(Debug)]
pub struct View {
    netmap: Arc<NetMap>,
    stamp: Revision,
    names: BTreeMap<NodeId, NodeName>,
    mtus: OwnMap<NodeId, u16>,
    silences: OwnMap<NodeId, Arc<Silence>>,
    owners: PrefixTable<AddressOwner>,
    by_vip: OwnMap<Ipv4Addr, usize>,
    named: OwnMap<Ipv4Addr, ServiceKey>,
    services: Vec<ServiceView>,
    access: Access,
}

/// Who carries a flat address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressOwner {
    /// This node.
    Own,
    /// Another node.
    Peer(NodeId),
}

/// A service, compiled.
#[derive(Debug)]
pub struct ServiceView {
    /// Its full name.
    pub key: ServiceKey,
    /// Which backend takes the next connection.
    pub balancer: Balancer,
    ports: Vec<ServicePort>,
}

impl View {
    /// Compiles a map; every account of connections starts anew.
    pub fn compile(map: VerifiedMap) -> Self {
        Self::build(map, None)
    }

    /// Compiles a map and keeps the accounts of services whose backends did not change, so that
    /// weights stay exact across revisions, and what is known of who does not answer.
    pub fn compile_after(map: VerifiedMap, previous: &Self) -> Self {
        Self::build(map, Some(previous))
    }

    fn build(map: VerifiedMap, previous: Option<&Self>) -> Self {
        let netmap = Arc::clone(map.netmap());
        let mut owners = PrefixTable::default();
        let host = |address: Flat| Ipv4Net::from(address.0);
        owners.insert(host(netmap.node.address), AddressOwner::Own);
        for block in &netmap.node.blocks {
            owners.insert(block.flat, AddressOwner::Own);
        }
        let (mut names, mut mtus, mut silences) = (BTreeMap::new(), OwnMap::default(), OwnMap::default());
        for (name, peer) in &netmap.peers {
            names.insert(peer.id, name.clone());
            mtus.insert(peer.id, peer.mtu.max(MIN_MTU));
            let known = previous.and_then(|view| view.silences.get(&peer.id));
            silences.insert(peer.id, known.map_or_else(Arc::default, Arc::clone));
            owners.insert(host(peer.address), AddressOwner::Peer(peer.id));
            for &block in &peer.blocks {
                owners.insert(block, AddressOwner::Peer(peer.id));
            }
        }
        // Behind all nodes' own: what is one of those stays it.
        let second = |address: Flat| host(netmap.mesh.range.second(address));
        owners.insert(second(netmap.node.address), AddressOwner::Own);
        for peer in netmap.peers.values() {
            owners.insert(second(peer.address), AddressOwner::Peer(peer.id));
        }
        let silence = |node: &NodeName| silences.get(&netmap.peers.get(node)?.id).map(Arc::clone);
        let mut by_vip = OwnMap::default();
        let mut services = Vec::new();
        for (key, service) in &netmap.services {
            by_vip.insert(service.vip.0, services.len());
            let before = previous.and_then(|view| view.service_by_key(key));
            let balancer = Balancer::new(service, silence, before.map(|s| &s.balancer));
            services.push(ServiceView { key: key.clone(), balancer, ports: service.ports.clone() });
        }
        let named = netmap.names.iter().map(|(key, vip)| (vip.0, key.clone())).collect();
        let access = Access::compile(&netmap);
        // Revisions of two epochs may be equal.
        let stamp = match netmap.epoch.number.rotate_right(16) ^ netmap.revision.0 {
            // That of what no map has judged.
            0 => Revision(u64::MAX),
            stamp => Revision(stamp),
        };
        Self { netmap, stamp, names, mtus, silences, owners, by_vip, named, services, access }
    }

    /// Returns the map that this view was compiled from.
    pub fn netmap(&self) -> &Arc<NetMap> {
        &self.netmap
    }

    /// Returns the map's revision.
    pub fn revision(&self) -> Revision {
        self.netmap.revision
    }

    /// Returns what tells flows of this map from those of another: its revision, with its epoch in the upper 16 bits.
    pub fn stamp(&self) -> Revision {
        self.stamp
    }

    /// Returns the mesh range.
    pub fn range(&self) -> MeshRange {
        self.netmap.mesh.range
    }

    /// Returns this node's own address.
    pub fn address(&self) -> Flat {
        self.netmap.node.address
    }

    /// Returns a peer's name.
    pub fn peer_name(&self, id: NodeId) -> Option<&NodeName> {
        self.names.get(&id)
    }

    /// Returns a peer.
    pub fn peer(&self, id: NodeId) -> Option<&Peer> {
        self.names.get(&id).and_then(|name| self.netmap.peers.get(name))
    }

    /// Returns since when a peer does not answer; `None` if it does, was never asked, or is no peer.
    pub fn silent_since(&self, peer: NodeId) -> Option<Timestamp> {
        self.silences.get(&peer)?.since()
    }

    /// Makes known since when a peer does not answer, to all lanes and to the views of later maps.
    pub fn set_silent(&self, peer: NodeId, since: Option<Timestamp>) {
        if let Some(silence) = self.silences.get(&peer) {
            silence.set(since);
        }
    }

    /// Returns who carries a flat address: the longest prefix of the whole mesh decides, not a list per peer.
    pub fn owner(&self, address: Flat) -> Option<AddressOwner> {
        self.owners.find(address.0).copied()
    }

    /// Returns the second address of this node, as which networks behind it speak that are no pods of it.
    pub fn second(&self) -> Flat {
        self.range().second(self.address())
    }

    /// Returns the flat image of an address behind this node; the node's own addresses are their own images.
    pub fn flat(&self, real: Real) -> Option<Flat> {
        let own = [self.address(), self.second()].into_iter().find(|own| own.0 == real.0);
        if own.is_some() {
            return own;
        }
        self.netmap.node.blocks.iter().find_map(|block| block.to_flat(real))
    }

    /// Returns the address behind this node that a flat one is the image of; none for the second address, which answers
    /// to what was asked as it, and nothing else.
    pub fn real(&self, flat: Flat) -> Option<Real> {
        if flat == self.netmap.node.address {
            return Some(Real(flat.0));
        }
        self.netmap.node.blocks.iter().find_map(|block| block.to_real(flat))
    }

    /// Says whether an address belongs to the part of the range that VIPs are taken from.
    pub fn is_vip(&self, address: Ipv4Addr) -> bool {
        self.range().vips().contains(&address)
    }

    /// Returns the service at a VIP.
    pub fn service_by_vip(&self, vip: Ipv4Addr) -> Option<(usize, &ServiceView)> {
        self.by_vip.get(&vip).map(|&index| (index, &self.services[index]))
    }

    /// Returns the name of a VIP, of services too that this node may neither call nor serve.
    pub fn name_of_vip(&self, vip: Ipv4Addr) -> Option<&ServiceKey> {
        self.service_by_vip(vip).map(|(_, service)| &service.key).or_else(|| self.named.get(&vip))
    }

    /// Returns a service by name.
    pub fn service_by_key(&self, key: &ServiceKey) -> Option<&ServiceView> {
        let service = self.netmap.services.get(key)?;
        self.service_by_vip(service.vip.0).map(|(_, view)| view)
    }

    /// Returns what may call what.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Returns the largest packet that may go to a peer, in bytes.
    pub fn mtu(&self, peer: NodeId) -> u16 {
        self.mtus.get(&peer).copied().unwrap_or(DEFAULT_MTU)
    }

    /// Returns the name of the service at a place in the map.
    pub fn service_key(&self, index: usize) -> Option<&ServiceKey> {
        self.services.get(index).map(|service| &service.key)
    }

    /// Returns a service by its place in the map.
    pub fn service(&self, index: usize) -> Option<&Service> {
        self.services.get(index).and_then(|service| self.netmap.services.get(&service.key))
    }

    /// Returns the port of a service that callers dial, with its service.
    pub fn port(&self, index: usize, protocol: u8, port: u16) -> Option<&ServicePort> {
        self.services.get(index)?.ports.iter().find(|p| p.transport.number() == protocol && p.port == port)
    }
}

/// What a peer takes that said nothing: 1500 less the outer IPv6, UDP and WireGuard headers, in bytes.
pub const DEFAULT_MTU: u16 = 1420;
/// No way is narrower, whatever a peer says (RFC 791's 576), in bytes.
pub const MIN_MTU: u16 = 576;
