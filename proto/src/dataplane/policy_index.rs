//! Who may call what, compiled: rules of identities turned into a hash look-up per identity of the caller.
//!
//! An address has few identities: every member is `any`, belongs to a site, perhaps is a node itself, and
//! backs some services. A question is answered by one look-up per pair of the caller's identities and the
//! target's names, so ten thousand rules cost what ten do.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::base::addr::Flat;
use crate::base::hash::OwnMap;
use crate::base::id::{NodeName, ServiceKey, SiteName};
use crate::base::lpm::PrefixTable;
use crate::model::netmap::{NetMap, Service};
use crate::model::rules::{Rule, RuleTarget, Source};

/// Most services of one address that count as identities; a pod that backs more keeps the first ones.
const MAX_SERVICES: usize = 64;

/// The compiled rules of a map.
#[derive(Debug, Default)]
pub struct Access {
    /// The first rule that allows a pair.
    allowed: OwnMap<(Identity, Name), usize>,
    /// Who is behind an address.
    members: PrefixTable<Member>,
    /// The services that an address backs, as a caller.
    backed: OwnMap<Ipv4Addr, Vec<u32>>,
    /// The service ports that a backend's address and port serve.
    served: OwnMap<(Ipv4Addr, u8, u16), Vec<(u32, u16)>>,
}

/// The node and site behind an address.
#[derive(Debug, Clone, Copy)]
struct Member {
    node: u32,
    site: u32,
    what: Place,
}

/// What of a node an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The node itself.
    Host,
    /// A pod behind it.
    Pod,
    /// Networks behind it that are no pods of it.
    Masqueraded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Identity {
    Any,
    Site(u32),
    Host(u32),
    Service(u32),
    Masqueraded(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Name {
    Any,
    Site(u32),
    Host(u32),
    Service(u32),
    Port(u32, u16),
}

/// What a caller wants to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The caller.
    pub source: Flat,
    /// The address that carries the target: a node's or a pod's image, never a VIP.
    pub destination: Flat,
    /// The protocol.
    pub protocol: u8,
    /// The port at the destination.
    pub port: u16,
    /// The service and its port as dialled, if a VIP was.
    pub service: Option<(u32, u16)>,
}

/// Gives names of a map their numbers: the place in its ordered listing.
struct Numbers<'a> {
    services: HashMap<&'a ServiceKey, u32>,
    nodes: HashMap<&'a NodeName, u32>,
    sites: HashMap<&'a SiteName, u32>,
}

impl Access {
    /// Compiles the rules of a map.
    pub fn compile(map: &NetMap) -> Self {
        let numbers = Numbers::of(map);
        let mut access = Self::default();
        access.add_members(map, &numbers);
        for (key, service) in &map.services {
            access.add_backends(map, service, numbers.services[key]);
        }
        for (index, rule) in map.rules.iter().enumerate() {
            access.add_rule(rule, index, &numbers);
        }
        access
    }

    fn add_members(&mut self, map: &NetMap, numbers: &Numbers<'_>) {
        let own = &map.node;
        let own_blocks = own.blocks.iter().map(|b| b.flat).collect::<Vec<_>>();
        let itself = (&own.name, &own.site, own.address, own_blocks);
        let peers = map.peers.iter().map(|(name, p)| (name, &p.site, p.address, p.blocks.clone()));
        for (name, site, address, blocks) in std::iter::once(itself).chain(peers) {
            let member = Member { node: numbers.nodes[name], site: numbers.sites[site], what: Place::Host };
            self.members.insert(address.0.into(), member);
            for block in blocks {
                self.members.insert(block, Member { what: Place::Pod, ..member });
            }
        }
        // Behind all nodes' own: what is one of those stays it.
        let addresses = map.peers.iter().map(|(name, p)| (name, &p.site, p.address));
        for (name, site, address) in std::iter::once((&own.name, &own.site, own.address)).chain(addresses) {
            let (node, site) = (numbers.nodes[name], numbers.sites[site]);
            let second = map.mesh.range.second(address);
            self.members.insert(second.0.into(), Member { node, site, what: Place::Masqueraded });
        }
    }

    fn add_backends(&mut self, map: &NetMap, service: &Service, number: u32) {
        for backend in &service.backends {
            for port in &service.ports {
                let key = (backend.address.0, port.transport.number(), backend.target(port));
                self.served.entry(key).or_default().push((number, port.port));
            }
            if speaks_for_itself(map, backend.address) {
                let backed = self.backed.entry(backend.address.0).or_default();
                if !backed.contains(&number) && backed.len() < MAX_SERVICES {
                    backed.push(number);
                }
            }
        }
    }

    fn add_rule(&mut self, rule: &Rule, index: usize, numbers: &Numbers<'_>) {
        for from in rule.from.iter().filter_map(|source| numbers.identity(source)) {
            for to in rule.to.iter().filter_map(|target| numbers.name(target)) {
                self.allowed.entry((from, to)).or_insert(index);
            }
        }
    }

    /// Returns the index of a rule that allows it, or none: then it is denied.
    pub fn judge(&self, question: &Question) -> Option<usize> {
        if let Some((service, port)) = question.service {
            return self.judge_service(question.source, service, port);
        }
        let asked =
            |service: u32, port: u16| self.allows(question.source, [Name::Port(service, port), Name::Service(service)]);
        let served = self.served.get(&(question.destination.0, question.protocol, question.port));
        if let Some(rule) = served.into_iter().flatten().find_map(|&(service, port)| asked(service, port)) {
            return Some(rule);
        }
        let member = self.members.find(question.destination.0)?;
        let host = match member.what {
            Place::Host => Name::Host(member.node),
            Place::Pod => Name::Any,
            // It calls and is not called.
            Place::Masqueraded => return None,
        };
        self.allows(question.source, [Name::Any, Name::Site(member.site), host])
    }

    /// Returns the services that count as identities of a caller.
    pub fn services_of(&self, source: Flat) -> impl Iterator<Item = u32> {
        self.backed.get(&source.0).into_iter().flatten().copied()
    }

    /// Returns the services that are reached where a question leads, each with its port as callers dial it.
    pub fn served_at(&self, question: &Question) -> impl Iterator<Item = (u32, u16)> {
        self.served.get(&(question.destination.0, question.protocol, question.port)).into_iter().flatten().copied()
    }

    /// Returns the index of a rule that lets a caller dial a service's port, or none. Rules for hosts and sites
    /// are about plain addresses: if they counted, the answer would change with the backend that is chosen.
    pub fn judge_service(&self, source: Flat, service: u32, port: u16) -> Option<usize> {
        self.allows(source, [Name::Port(service, port), Name::Service(service), Name::Any])
    }

    fn allows<const N: usize>(&self, source: Flat, names: [Name; N]) -> Option<usize> {
        let member = self.members.find(source.0)?;
        let ask = |identity: Identity| names.iter().find_map(|&name| self.allowed.get(&(identity, name)).copied());
        if member.what == Place::Masqueraded {
            return ask(Identity::Masqueraded(member.node));
        }
        let itself = (member.what == Place::Host).then_some(Identity::Host(member.node));
        let backed = self.backed.get(&source.0).into_iter().flatten().map(|&s| Identity::Service(s));
        let identities = [Identity::Any, Identity::Site(member.site)].into_iter().chain(itself).chain(backed);
        identities.into_iter().find_map(ask)
    }
}

/// Says whether an address is surely its owner's: not a node address that masquerading may have put in
/// place of a pod's.
fn speaks_for_itself(map: &NetMap, address: Flat) -> bool {
    if address == map.node.address {
        return map.node.guarded || map.node.blocks.is_empty();
    }
    let peer = map.peers.values().find(|p| p.address == address);
    peer.is_none_or(|p| p.guarded || p.blocks.is_empty())
}

impl<'a> Numbers<'a> {
    fn of(map: &'a NetMap) -> Self {
        let mut sites = HashMap::new();
        for site in std::iter::once(&map.node.site).chain(map.peers.values().map(|p| &p.site)) {
            let next = sites.len() as u32;
            sites.entry(site).or_insert(next);
        }
        let nodes = std::iter::once(&map.node.name).chain(map.peers.keys());
        Self { services: map.services.keys().zip(0..).collect(), nodes: nodes.zip(0..).collect(), sites }
    }

    fn identity(&self, source: &Source) -> Option<Identity> {
        match source {
            Source::Any => Some(Identity::Any),
            Source::Service(key) => self.services.get(key).copied().map(Identity::Service),
            Source::Host(node) => self.nodes.get(node).copied().map(Identity::Host),
            Source::Masqueraded(node) => self.nodes.get(node).copied().map(Identity::Masqueraded),
            Source::Site(site) => self.sites.get(site).copied().map(Identity::Site),
            // Pods carry no account until Kubernetes discovery names them, so the rule allows nobody.
            Source::Account(..) => None,
        }
    }

    fn name(&self, target: &RuleTarget) -> Option<Name> {
        match target {
            RuleTarget::Any => Some(Name::Any),
            RuleTarget::Service(key) => self.services.get(key).copied().map(Name::Service),
            RuleTarget::Port(key, port) => self.services.get(key).map(|&s| Name::Port(s, *port)),
            RuleTarget::Host(node) => self.nodes.get(node).copied().map(Name::Host),
            RuleTarget::Site(site) => self.sites.get(site).copied().map(Name::Site),
        }
    }
}

#[cfg(test)]
#[path = "policy_index/tests.rs"]
mod tests;
