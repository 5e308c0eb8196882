//! Who may call what: every rule, every word, every backend walked each time.

use std::net::Ipv4Addr;

use mesh_proto::base::id::{NodeId, NodeName, ServiceKey, SiteName};
use mesh_proto::model::netmap::NetMap;
use mesh_proto::model::rules::{RuleTarget, Source};

/// What is called.
#[derive(Debug, Clone)]
pub(crate) enum Goal<'a> {
    /// A port of a service, dialled at its VIP.
    Port(&'a ServiceKey, u16),
    /// An address in the mesh: address, protocol, port.
    Address(Ipv4Addr, u8, u16),
}

/// Who carries an address.
#[derive(Debug, Clone)]
pub(crate) struct ModelOwner<'a> {
    /// The peer, or nothing if it is this node.
    pub(crate) peer: Option<NodeId>,
    name: &'a NodeName,
    site: &'a SiteName,
    /// Whether it is the node's own address and not a pod's.
    is_node: bool,
    /// Whether its node's address is surely no pod's: masquerading cannot hide one, or there is none.
    guarded: bool,
}

/// Returns who carries an address.
pub(crate) fn owner(map: &NetMap, address: Ipv4Addr) -> Option<ModelOwner<'_>> {
    let own = &map.node;
    if own.address.0 == address || own.blocks.iter().any(|b| b.flat.contains(&address)) {
        let is_node = own.address.0 == address;
        return Some(ModelOwner {
            peer: None,
            name: &own.name,
            site: &own.site,
            is_node,
            guarded: own.guarded || own.blocks.is_empty(),
        });
    }
    let carries =
        |p: &mesh_proto::model::netmap::Peer| p.address.0 == address || p.blocks.iter().any(|b| b.contains(&address));
    let (name, p) = map.peers.iter().find(|(_, p)| carries(p))?;
    Some(ModelOwner {
        peer: Some(p.id),
        name,
        site: &p.site,
        is_node: p.address.0 == address,
        guarded: p.guarded || p.blocks.is_empty(),
    })
}

/// Says whether some rule lets the carrier of an address call.
pub(crate) fn may(map: &NetMap, caller: Ipv4Addr, goal: &Goal<'_>) -> bool {
    map.rules.iter().any(|rule| {
        rule.from.iter().any(|source| is(map, caller, source)) && rule.to.iter().any(|target| covers(map, target, goal))
    })
}

fn is(map: &NetMap, address: Ipv4Addr, source: &Source) -> bool {
    let Some(owner) = owner(map, address) else {
        return false;
    };
    match source {
        Source::Any => true,
        Source::Site(site) => owner.site == site,
        Source::Host(name) => owner.is_node && owner.name == name,
        // An unguarded node's address may hide a pod, so it is the host's alone.
        Source::Service(key) => {
            let backs = map.services.get(key).is_some_and(|s| s.backends.iter().any(|b| b.address.0 == address));
            backs && (owner.guarded || !owner.is_node)
        }
        // No address of these meshes is a second one.
        Source::Masqueraded(_) | Source::Account(..) => false,
    }
}

fn covers(map: &NetMap, target: &RuleTarget, goal: &Goal<'_>) -> bool {
    match (target, goal) {
        (RuleTarget::Any, _) => true,
        (RuleTarget::Service(key), Goal::Port(called, _)) => key == *called,
        (RuleTarget::Port(key, port), Goal::Port(called, dialled)) => key == *called && port == dialled,
        (RuleTarget::Host(_) | RuleTarget::Site(_), Goal::Port(..)) => false,
        (RuleTarget::Host(name), Goal::Address(address, ..)) => {
            owner(map, *address).is_some_and(|o| o.is_node && o.name == name)
        }
        (RuleTarget::Site(site), Goal::Address(address, ..)) => owner(map, *address).is_some_and(|o| o.site == site),
        (RuleTarget::Service(key), Goal::Address(address, protocol, port)) => {
            backed(map, key, None, *address, *protocol, *port)
        }
        (RuleTarget::Port(key, dialled), Goal::Address(address, protocol, port)) => {
            backed(map, key, Some(*dialled), *address, *protocol, *port)
        }
    }
}

/// Says whether an address and port is where a service's calls end up.
fn backed(map: &NetMap, key: &ServiceKey, dialled: Option<u16>, address: Ipv4Addr, protocol: u8, number: u16) -> bool {
    map.services.get(key).is_some_and(|service| {
        service.ports.iter().any(|port| {
            port.transport.number() == protocol
                && dialled.is_none_or(|d| d == port.port)
                && service.backends.iter().any(|b| b.address.0 == address && b.target(port) == number)
        })
    })
}
