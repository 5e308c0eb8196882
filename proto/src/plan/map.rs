//! The map of one node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::index::PlanIndex;
use super::placement::{bounded, refused_offers};
use super::visibility::{Level, Sight, sight};
use crate::base::addr::{MeshRange, is_forbidden};
use crate::base::id::NodeName;
use crate::model::netmap::{NetMap, OwnNode, Peer, Proof};
use crate::world::NodeRecord;

/// Plans the map of one node: what it may call, who may call it, and the rules on both; `None` if there is no
/// such node.
pub fn netmap(chart: &PlanIndex, node: &NodeName) -> Option<NetMap> {
    let own = chart.node(node)?;
    Some(netmap_of(chart, own, &sight(chart, own), |_| true, |_| true))
}

/// Plans a map with the peers and services for which it is asked.
pub(super) fn netmap_of(
    chart: &PlanIndex,
    own: u32,
    sight: &Sight,
    wants_peer: impl Fn(u32) -> bool,
    wants_service: impl Fn(u32) -> bool,
) -> NetMap {
    let world = &**chart.world();
    let (name, record) = &chart.nodes[own as usize];
    let is_told = |number: u32| wants_peer(number) && !world.waits(&chart.nodes[number as usize].1);
    let peers = sight.peers.iter().filter(|&&number| is_told(number)).map(|&number| {
        let (name, record) = &chart.nodes[number as usize];
        (name.clone(), peer(world.mesh.range, record))
    });
    let services = sight.services.iter().filter(|&(&number, _)| wants_service(number)).map(|(&number, &level)| {
        let key = chart.services[number as usize].key.clone();
        (key, chart.service(number, &record.site, (level == Level::Own).then_some(name)))
    });
    let mut warnings = refused_offers(world, name);
    if world.waits(record) {
        warnings.push(waiting(name));
    }
    let told = sight.services.keys().flat_map(|&number| &chart.services[number as usize].content.warnings);
    warnings.extend(told.cloned());
    NetMap {
        revision: world.revision,
        epoch: world.epoch.clone(),
        mesh: world.mesh.clone(),
        node: OwnNode {
            id: record.id,
            name: name.clone(),
            site: record.site.clone(),
            address: record.address,
            blocks: record.blocks.clone(),
            guarded: record.facts.guarded,
            sequence: record.facts.sequence,
        },
        peers: peers.collect(),
        services: services.collect(),
        names: Arc::clone(&chart.names),
        sites: world.services.sites.iter().map(|site| (site.name.clone(), site.pods.clone())).collect(),
        rules: chart.rules.trimmed(&sight.rules),
        warnings: bounded(warnings),
    }
}

/// Returns what others are told of a node.
pub(super) fn peer(range: MeshRange, record: &NodeRecord) -> Peer {
    Peer {
        id: record.id,
        site: record.site.clone(),
        address: record.address,
        blocks: record.blocks.iter().map(|block| block.flat).collect(),
        lanes: record.facts.lanes.clone(),
        endpoints: endpoints(range, record),
        mtu: record.facts.mtu,
        guarded: record.facts.guarded,
        previous: record.facts.previous.clone(),
        countersigned: record.countersigned,
        agreement: record.facts.agreement.clone(),
        proof: record.identity.zip(record.facts.signed.clone()).map(|(identity, signed)| Proof {
            identity,
            record: signed,
            pods: record.blocks.iter().map(|block| block.real).collect(),
            lineage: record.lineage.clone(),
        }),
    }
}

/// Returns where a node may be reached: what it reports, then where the coordinator sees it.
fn endpoints(range: MeshRange, record: &NodeRecord) -> Vec<SocketAddr> {
    let port = record.facts.lanes.first().map(|lane| lane.port);
    let observed = record.observed.zip(port).map(SocketAddr::from);
    let mut endpoints = Vec::new();
    for endpoint in record.facts.endpoints.iter().copied().chain(observed) {
        let endpoint = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
        let is_usable = endpoint.port() > 0 && is_underlay(range, record, endpoint.ip());
        if is_usable && !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// Says whether an address can be one outside the mesh: a node must not be able to point its peers' tunnels
/// at themselves, at everybody, or into the mesh; the address of its own pod bridge leads nowhere.
fn is_underlay(range: MeshRange, record: &NodeRecord, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let is_pod = record.blocks.iter().any(|block| block.real.contains(&v4));
            !is_forbidden(v4) && !range.contains(v4) && !is_pod
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local()),
    }
}

/// Tells a node that it is not admitted yet.
fn waiting(name: &NodeName) -> String {
    format!(
        "this node waits for the lock's signature, and no other is told of it until then; run `meshd lock sign {name}` on a node where the lock's key lies, and compare the identity with `meshd lock status` here"
    )
}
