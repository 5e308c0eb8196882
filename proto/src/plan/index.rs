//! A world laid out for planning: who backs what, and which rules name whom, so that a node's map costs what the
//! node may see and not what the mesh holds.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::placement::{Offers, offers, placed, preference, tier};
use super::rule_index::Rules;
use crate::base::addr::Flat;
use crate::base::id::{BackendName, NodeName, Revision, ServiceKey, SiteName};
use crate::model::netmap::{Backend, Grant, Service, ServicePort};
use crate::services::{Prefer, ServiceSpec};
use crate::world::{NodeRecord, Vip, World};

/// A world laid out for planning.
#[derive(Debug)]
pub struct PlanIndex {
    pub(super) world: Arc<World>,
    /// The nodes by name; a node's number is its place here.
    pub(super) nodes: Vec<(NodeName, Arc<NodeRecord>)>,
    /// The services that have an address, by key; a service's number is its place here.
    pub(super) services: Vec<Served>,
    /// The services that each node backs, in order.
    pub(super) backs: Vec<Vec<u32>>,
    /// The nodes of each site, in order.
    pub(super) sites: HashMap<SiteName, Vec<u32>>,
    /// The rules, by whom they name.
    pub(super) rules: Rules,
    /// The addresses of all services, which every map lists.
    pub(super) names: Arc<BTreeMap<ServiceKey, Flat>>,
}

/// A service and who backs it.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) key: ServiceKey,
    pub(super) content: Content,
    /// The nodes that carry a backend, in order.
    pub(super) carriers: Vec<u32>,
}

/// What nodes are told of a service; it says the same in every chart.
#[derive(Debug, PartialEq)]
pub(super) struct Content {
    vip: Vip,
    ports: Vec<ServicePort>,
    prefer: Prefer,
    sticky: bool,
    strict: bool,
    backends: Vec<Instance>,
    grants: BTreeMap<NodeName, Grant>,
    pub(super) warnings: Vec<String>,
}

impl Served {
    /// Says whether something of it is left out.
    pub(super) fn has_warnings(&self) -> bool {
        !self.content.warnings.is_empty()
    }
}

/// A backend that a node carries.
#[derive(Debug, PartialEq)]
struct Instance {
    name: Option<BackendName>,
    node: NodeName,
    site: SiteName,
    address: Flat,
    port: Option<u16>,
    weight: u32,
}

impl PlanIndex {
    /// Lays out a world.
    pub fn new(world: Arc<World>) -> Self {
        let nodes: Vec<_> = world.nodes.iter().map(|(name, record)| (name.clone(), Arc::clone(record))).collect();
        let mut sites: HashMap<SiteName, Vec<u32>> = HashMap::new();
        for (number, (_, record)) in (0..).zip(&nodes) {
            sites.entry(record.site.clone()).or_default().push(number);
        }
        let offers = offers(&world);
        let specs: BTreeMap<_, _> = world.services.services.iter().map(|spec| (&spec.key, spec)).collect();
        let with_vip = specs.into_iter().filter_map(|(key, spec)| Some((spec, *world.vips.get(key)?)));
        let services: Vec<_> = with_vip.map(|(spec, vip)| served(&world, &nodes, spec, vip, &offers)).collect();
        let mut backs = vec![Vec::new(); nodes.len()];
        for (number, service) in (0..).zip(&services) {
            for &carrier in &service.carriers {
                backs[carrier as usize].push(number);
            }
        }
        drop(offers);
        let rules = {
            let node = |name: &NodeName| number(&nodes, |(other, _)| other.cmp(name));
            Rules::index(&world, node, |key| number(&services, |other| other.key.cmp(key)))
        };
        let names = Arc::new(world.vips.iter().map(|(key, vip)| (key.clone(), vip.address)).collect());
        Self { world, nodes, services, backs, sites, rules, names }
    }

    /// Returns the world that it is made of.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Returns the world's revision.
    pub fn revision(&self) -> Revision {
        self.world.revision
    }

    /// Returns a node's number.
    pub(super) fn node(&self, name: &NodeName) -> Option<u32> {
        number(&self.nodes, |(other, _)| other.cmp(name))
    }

    /// Returns a service's number.
    pub(super) fn service_number(&self, key: &ServiceKey) -> Option<u32> {
        number(&self.services, |other| other.key.cmp(key))
    }

    /// Returns a service as nodes of a site see it: all of its backends, or those of one node.
    pub(super) fn service(&self, number: u32, site: &SiteName, only: Option<&NodeName>) -> Service {
        let Content { vip, ports, prefer, sticky, strict, backends, grants, warnings: _ } =
            &self.services[number as usize].content;
        let backends = backends.iter().filter(|instance| only.is_none_or(|node| instance.node == *node));
        let backends = backends.map(|instance| Backend {
            tier: tier(&self.world, prefer, site, &instance.site),
            port: instance.port,
            name: instance.name.clone(),
            node: instance.node.clone(),
            address: instance.address,
            weight: instance.weight,
        });
        Service {
            id: vip.id,
            vip: vip.address,
            ports: ports.clone(),
            grants: grants
                .iter()
                .filter(|(node, _)| only.is_none_or(|only| *node == only))
                .map(|(n, g)| (n.clone(), *g))
                .collect(),
            backends: backends.collect(),
            sticky: *sticky,
            strict: *strict,
        }
    }

    /// Returns all services with all their backends, as no node in particular sees them.
    pub fn all_services(&self) -> impl Iterator<Item = (&ServiceKey, Service)> {
        let nowhere = self.world.services.sites.first().map(|site| site.name.clone());
        (0..).zip(&self.services).filter_map(move |(number, served)| {
            let site = nowhere.as_ref().or_else(|| served.content.backends.first().map(|b| &b.site));
            site.map(|site| (&served.key, self.service(number, site, None)))
        })
    }
}

/// Returns the number of what is looked for in a list in order.
fn number<T>(list: &[T], order: impl Fn(&T) -> Ordering) -> Option<u32> {
    list.binary_search_by(order).ok().and_then(|place| u32::try_from(place).ok())
}

fn served<'a>(
    world: &'a World,
    nodes: &[(NodeName, Arc<NodeRecord>)],
    spec: &'a ServiceSpec,
    vip: Vip,
    offers: &Offers<'a>,
) -> Served {
    let mut warnings = Vec::new();
    let placed = placed(world, spec, offers, &mut warnings);
    let place = |node: &NodeName| nodes.binary_search_by(|(other, _)| other.cmp(node)).ok();
    let carriers = placed.iter().filter_map(|placed| u32::try_from(place(placed.node)?).ok());
    let mut carriers: Vec<_> = carriers.collect();
    carriers.sort_unstable();
    carriers.dedup();
    let named = |node: &NodeName| spec.backends.iter().any(|backend| backend.at.node() == node);
    let grant = |node| if named(node) { Grant::File } else { Grant::Token };
    let grants = placed.iter().map(|placed| (placed.node.clone(), grant(placed.node))).collect();
    let backends = placed.into_iter().map(|placed| Instance {
        name: placed.name.cloned(),
        node: placed.node.clone(),
        site: placed.record.site.clone(),
        address: placed.address,
        port: placed.port.filter(|&port| !spec.ports.iter().all(|p| p.target == port)),
        weight: placed.weight,
    });
    let content = Content {
        vip,
        ports: spec.ports.clone(),
        prefer: preference(spec),
        sticky: spec.route.sticky,
        strict: spec.strict,
        backends: backends.collect(),
        grants,
        warnings,
    };
    Served { key: spec.key.clone(), content, carriers }
}
