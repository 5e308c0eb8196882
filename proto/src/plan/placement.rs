//! Which nodes carry which backends, and why one that the file or a node names does not count.

use std::collections::BTreeMap;

use crate::base::addr::{Flat, Real};
use crate::base::id::{BackendName, NodeName, ServiceKey, SiteName};
use crate::services::{BackendAt, Prefer, ServiceSpec};
use crate::wire::ServeOffer;
use crate::world::{NodeRecord, World};

/// The weight of a backend for which the file states none.
pub const DEFAULT_WEIGHT: u32 = 100;
/// Most sentences of a map; what is more is counted in the last one.
pub(super) const MAX_WARNINGS: usize = 20;

/// Says in sentences what the file names and nobody carries, so that it is left out of every map.
pub fn warnings(world: &World) -> Vec<String> {
    let offers = offers(world);
    let mut warnings = Vec::new();
    for spec in &world.services.services {
        placed(world, spec, &offers, &mut warnings);
    }
    warnings
}

/// Says in sentences which serve offers of a node, or ports of such, are not taken.
pub fn refused_offers(world: &World, node: &NodeName) -> Vec<String> {
    let Some(record) = world.nodes.get(node) else { return Vec::new() };
    let offers = record.facts.serve.iter();
    offers.filter_map(|offer| refusal(world, node, record, offer)).collect()
}

fn refusal(world: &World, node: &NodeName, record: &NodeRecord, offer: &ServeOffer) -> Option<String> {
    let key = &offer.service;
    let mut specs = world.services.services.iter();
    let Some(spec) = specs.find(|spec| spec.key == *key) else {
        return Some(format!(
            "node `{node}` offers to serve `{key}`, but no [[service]] has that name; add it to the coordinator's services.toml, or remove the [[serve]]"
        ));
    };
    if !is_granted(spec, node, record) {
        return Some(format!(
            "node `{node}` offers to serve `{key}`, which neither its token nor the file grants; add {{ host = \"{node}\" }} to the backends of `{key}`, or join with a token made with --serve {key}"
        ));
    }
    let port = offer.port.filter(|_| spec.ports.len() > 1)?;
    Some(format!(
        "node `{node}` offers to serve `{key}` on port {port}, which is ignored since `{key}` has several ports; remove `port` from the [[serve]]"
    ))
}

/// Says whether a node may serve: its token says so, or the file names it as one that carries a backend.
fn is_granted(spec: &ServiceSpec, node: &NodeName, record: &NodeRecord) -> bool {
    let named = spec.backends.iter().any(|backend| backend.at.node() == node);
    named || record.grants.contains(&spec.key)
}

/// A backend that a node carries.
pub(super) struct Placed<'a> {
    pub(super) name: Option<&'a BackendName>,
    pub(super) node: &'a NodeName,
    pub(super) record: &'a NodeRecord,
    pub(super) address: Flat,
    pub(super) port: Option<u16>,
    pub(super) weight: u32,
}

/// What nodes offer to serve, by service.
pub(super) type Offers<'a> = BTreeMap<&'a ServiceKey, Vec<(&'a NodeName, &'a NodeRecord, &'a ServeOffer)>>;

/// Gathers what nodes offer.
pub(super) fn offers(world: &World) -> Offers<'_> {
    let mut offers = Offers::new();
    for (name, record) in &*world.nodes {
        for offer in &record.facts.serve {
            let entry = offers.entry(&offer.service).or_default();
            // The first offer of a node for a service is its only one.
            if entry.last().is_none_or(|(last, ..)| *last != name) {
                entry.push((name, record, offer));
            }
        }
    }
    offers
}

/// Returns a service's backends: those of the file in its order, then those that nodes offer and may.
pub(super) fn placed<'a>(
    world: &'a World,
    spec: &'a ServiceSpec,
    offers: &Offers<'a>,
    warnings: &mut Vec<String>,
) -> Vec<Placed<'a>> {
    let key = &spec.key;
    let offered = offers.get(key).map_or(&[][..], Vec::as_slice);
    let has_one_port = spec.ports.len() == 1;
    let mut placed = Vec::new();
    for backend in &spec.backends {
        let node = backend.at.node();
        let Some(record) = world.nodes.get(node) else {
            warnings.push(format!(
                "{key}: node `{node}` has not joined, so its backend is left out; join it, or remove the backend"
            ));
            continue;
        };
        if world.waits(record) {
            warnings.push(format!(
                "{key}: node `{node}` waits for the lock's signature, so its backend is left out; run `meshd lock sign {node}` where the lock's key lies"
            ));
            continue;
        }
        let offer = offered.iter().find(|(name, ..)| *name == node);
        let (address, override_port) = match backend.at {
            BackendAt::Host(_) => (record.address, offer.and_then(|(.., offer)| offer.port)),
            BackendAt::Pod { addr, .. } => {
                let mut blocks = record.blocks.iter();
                let Some(flat) = blocks.find_map(|block| block.to_flat(Real(addr))) else {
                    warnings.push(format!(
                        "{key}: no pod block of node `{node}` contains {addr}, so that backend is left out; correct `addr` or `node`, or set `pods` in that node's meshd.toml"
                    ));
                    continue;
                };
                (flat, None)
            }
        };
        placed.push(Placed {
            name: backend.name.as_ref(),
            node,
            record,
            address,
            port: override_port.filter(|_| has_one_port).or(backend.port),
            weight: backend.weight.unwrap_or(DEFAULT_WEIGHT),
        });
    }
    for &(node, record, offer) in offered {
        let is_host = |at: &BackendAt| matches!(at, BackendAt::Host(host) if host == node);
        let is_named = spec.backends.iter().any(|backend| is_host(&backend.at));
        if is_named || world.waits(record) || !is_granted(spec, node, record) {
            continue;
        }
        placed.push(Placed {
            name: None,
            node,
            record,
            address: record.address,
            port: offer.port.filter(|_| has_one_port),
            weight: DEFAULT_WEIGHT,
        });
    }
    placed
}

/// Returns what a service prefers: who states weights wants them kept over all backends.
pub(super) fn preference(spec: &ServiceSpec) -> Prefer {
    let has_weights = spec.backends.iter().any(|backend| backend.weight.is_some());
    let default = if has_weights { Prefer::Spread } else { Prefer::Locality };
    spec.route.prefer.clone().unwrap_or(default)
}

/// Returns how far a backend's site is from this node's.
pub(super) fn tier(world: &World, prefer: &Prefer, own: &SiteName, other: &SiteName) -> u8 {
    match prefer {
        Prefer::Spread => 0,
        Prefer::Sites(sites) => {
            let place = sites.iter().position(|site| site == other);
            u8::try_from(place.unwrap_or(sites.len())).unwrap_or(u8::MAX)
        }
        Prefer::Locality if own == other => 0,
        Prefer::Locality => {
            let locality = |site| world.site(site).map_or(&[][..], |site| &site.locality);
            let shared = locality(own).iter().zip(locality(other));
            match shared.take_while(|(a, b)| a == b).count() {
                0 => 3,
                1 => 2,
                _ => 1,
            }
        }
    }
}

/// Counts what is beyond `MAX_WARNINGS`.
pub(super) fn bounded(mut warnings: Vec<String>) -> Vec<String> {
    if warnings.len() > MAX_WARNINGS {
        let more = warnings.len() - (MAX_WARNINGS - 1);
        warnings.truncate(MAX_WARNINGS - 1);
        warnings.push(format!("{more} more warnings of this kind; see mesh-coordinator status"));
    }
    warnings
}
