//! A new services.toml: what it would break is refused, what it adds gets its address.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::Ipv4Net;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{MeshName, NodeName, SiteName};
use mesh_proto::model::netmap::{LaneInfo, Mesh};
use mesh_proto::services::{Services, StaticNode};
use mesh_proto::wire::{ErrorCode, NodeFacts};
use mesh_proto::world::allocate::{BlockOwner, Exhausted, Pool};
use mesh_proto::world::{NodeRecord, Vip, World};

use super::change::Refused;
use super::state::{Accepted, State, mesh};

/// The port of a static node whose endpoint the file does not state.
const STATIC_PORT: u16 = 51820;
/// The largest inner packet of a static node: WireGuard's usual 1420 bytes.
const STATIC_MTU: u16 = 1420;

impl State {
    /// Takes a file whole or not at all.
    pub(super) fn set_services(
        &mut self,
        accepted: Accepted,
        services: Arc<Services>,
        default_name: &MeshName,
        now: UnixTime,
    ) -> Result<(), Refused> {
        let problems = contradictions(&self.world, &services);
        if !problems.is_empty() {
            return Err(Refused::new(ErrorCode::Services, problems.join("\n")));
        }
        let world = Arc::make_mut(&mut self.world);
        let old_range = world.mesh.range;
        // Members know the mesh by its name: it does not change because a file lost it.
        let has_members = world.nodes.values().any(|node| node.identity.is_some());
        let in_force = world.mesh.name.clone();
        let default_name = if has_members { &in_force } else { default_name };
        let (coordinators, lock) = (std::mem::take(&mut world.mesh.coordinators), world.mesh.lock.take());
        world.mesh = Mesh { coordinators, lock, ..mesh(&services, default_name) };
        self.name = Some(world.mesh.name.clone());
        world.file = accepted.file.as_str().into();
        world.services = services;
        if world.mesh.range != old_range {
            forget_addresses(world);
        }
        remove_static(world, now);
        let allotted = allot_vips(world, now).and_then(|()| allot_static(world, now));
        allotted.map_err(|error| Refused::new(ErrorCode::Services, error.to_string()))?;
        if self.accepted.as_deref() != Some(&accepted) {
            self.accepted = Some(Arc::new(accepted));
        }
        Ok(())
    }
}

/// Says in sentences what a file contradicts of what is.
fn contradictions(world: &World, services: &Services) -> Vec<String> {
    let mut problems = Vec::new();
    let members = || world.nodes.iter().filter(|(_, n)| n.identity.is_some());
    let (old, new) = (world.mesh.range, services.mesh.range);
    if old != new && members().next().is_some() {
        problems.push(format!(
            "[mesh] v4 is {old} and cannot become {new} after the first join: {} nodes have addresses of it; keep {old}, or revoke all nodes first",
            members().count()
        ));
    }
    let old = &world.mesh.name;
    if let Some(new) = services.mesh.name.as_ref().filter(|&new| new != old && members().next().is_some()) {
        problems.push(format!(
            "[mesh] name is {old} and cannot become {new} after the first join: {} nodes would take no map of another mesh; keep name = \"{old}\", or revoke all nodes first and join them anew",
            members().count()
        ));
    }
    for (name, node) in members() {
        let Some(site) = services.sites.iter().find(|site| site.name == node.site) else {
            problems.push(format!(
                "site `{}` is gone, but node `{name}` belongs to it; keep the [[site]], or first run mesh-coordinator revoke {name}",
                node.site
            ));
            continue;
        };
        let outside = node.blocks.iter().map(|block| block.real);
        let outside = outside.filter(|real| !site.pods.iter().any(|pods| pods.contains(real)));
        for real in outside {
            problems.push(format!(
                "the pod block {real} of node `{name}` would lie outside the `pods` of site `{}`; keep a prefix that contains it until the node drops it",
                site.name
            ));
        }
    }
    problems.extend(services.nodes.iter().filter_map(|node| {
        let name = &node.name;
        if members().any(|(member, _)| member == name) {
            return Some(format!(
                "[[node]] `{name}` has the name of a member; choose another, or first run mesh-coordinator revoke {name}"
            ));
        }
        let mut lanes = members().flat_map(|(m, n)| n.facts.lanes.iter().map(move |l| (m, l)));
        if let Some((member, _)) = lanes.find(|(_, lane)| lane.key == node.key) {
            return Some(format!(
                "[[node]] `{name}` has the tunnel key of node `{member}`; give it a key of its own"
            ));
        }
        let is_site = |site: &SiteName| services.sites.iter().any(|s| s.name == *site);
        (node.site.is_none() && is_site(&own_site(name))).then(|| {
            format!(
                "[[node]] `{name}` has the name of a site; state its `site`, or choose another name"
            )
        })
    }));
    problems
}

/// Frees the VIPs of services that are gone, and gives one to each that is new, in the order of the file.
fn allot_vips(world: &mut World, now: UnixTime) -> Result<(), Exhausted> {
    let wanted: BTreeSet<_> = world.services.services.iter().map(|s| &s.key).collect();
    let old = Arc::clone(&world.vips);
    let pool = Arc::make_mut(&mut world.pool);
    let vips = Arc::make_mut(&mut world.vips);
    for (key, vip) in old.iter().filter(|(key, _)| !wanted.contains(key)) {
        vips.remove(key);
        let owner = BlockOwner::Service(key.clone());
        pool.free(Ipv4Net::from(vip.address.0), owner, now);
    }
    for service in &world.services.services {
        if vips.contains_key(&service.key) {
            continue;
        }
        let live = vips.values().map(|vip| vip.address);
        let address = pool.vip(world.mesh.range, &service.key, live, now)?;
        let id = pool.service_id();
        vips.insert(service.key.clone(), Vip { id, address });
    }
    Ok(())
}

/// Takes out static nodes that the file has no longer.
fn remove_static(world: &mut World, now: UnixTime) {
    let wanted: BTreeSet<_> = world.services.nodes.iter().map(|n| n.name.clone()).collect();
    let nodes = world.nodes.iter();
    let gone = nodes.filter(|(name, node)| node.identity.is_none() && !wanted.contains(name));
    let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
    for name in gone {
        if let Some(node) = world.remove_node(&name) {
            let pool = Arc::make_mut(&mut world.pool);
            pool.free(Ipv4Net::from(node.address.0), BlockOwner::Node(node.id), now);
        }
    }
}

/// Gives each static node of the file its address, and takes up what the file says of it.
fn allot_static(world: &mut World, now: UnixTime) -> Result<(), Exhausted> {
    let services = Arc::clone(&world.services);
    for node in &services.nodes {
        let known = world.nodes.get(&node.name).cloned();
        let (id, address, joined_at) = match &known {
            Some(known) => (known.id, known.address, known.joined_at),
            None => {
                let live: Vec<_> = world.addresses().collect();
                let pool = Arc::make_mut(&mut world.pool);
                let address = pool.node(world.mesh.range, live.into_iter(), now)?;
                (Pool::node_id(pool), address, now)
            }
        };
        let site = node.site.clone().unwrap_or_else(|| own_site(&node.name));
        let facts = static_facts(node);
        let same = |known: &&Arc<NodeRecord>| known.site == site && known.facts.lanes == facts.lanes;
        let countersigned = known.as_ref().filter(same).and_then(|known| known.countersigned);
        let record = NodeRecord {
            contact: None,
            countersigned,
            id,
            identity: None,
            lineage: Vec::new(),
            site,
            address,
            blocks: Vec::new(),
            facts,
            observed: None,
            grants: Vec::new(),
            token: None,
            joined_at,
        };
        if known.as_deref() != Some(&record) {
            world.insert_node(node.name.clone(), record);
        }
    }
    Ok(())
}

fn static_facts(node: &StaticNode) -> NodeFacts {
    let port = node.endpoint.map_or(STATIC_PORT, |endpoint| endpoint.port());
    let key = node.key;
    NodeFacts {
        lanes: vec![LaneInfo { key, port }],
        endpoints: node.endpoint.into_iter().collect(),
        mtu: STATIC_MTU,
        guarded: true,
        software: "static".into(),
        ..NodeFacts::default()
    }
}

/// A static node without a site is one of its own, so that no rule about a site includes it by accident.
fn own_site(name: &NodeName) -> SiteName {
    name.as_str().parse().expect("nodes and sites have the same grammar")
}

/// Takes back all addresses of the former range; only static nodes and services can have one.
fn forget_addresses(world: &mut World) {
    let names: Vec<_> = world.nodes.keys().cloned().collect();
    for name in names {
        world.remove_node(&name);
    }
    world.vips = Arc::default();
    Arc::make_mut(&mut world.pool).forget_places();
}
