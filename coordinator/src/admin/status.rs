//! What the operator is told: documents, made from the world and from what nodes last said.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_host::clock::unix as now;
use mesh_proto::base::addr::Flat;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{NodeName, ServiceKey};
use mesh_proto::plan;
use mesh_proto::services::{BackendAt, BackendSpec, ServiceSpec};
use mesh_proto::world::{NodeRecord, World};

use crate::admin::context::AdminState;
use crate::admin::coordinators::replicas;
use crate::admin::gone::Gone;
use crate::core::{Core, documents};
use crate::registry::{LiveNode, TokenRecord};

/// Most nodes that are told to be behind.
const MAX_BEHIND: usize = 100;

/// Says how the mesh is.
pub(crate) async fn status(state: &AdminState) -> documents::StatusDocument {
    let AdminState { core, shared, own, doors, lost_lines, .. } = state;
    let (world, notes) = snapshot(core).await;
    let shown = state.shown.borrow().clone();
    let mut services = shown.file.status();
    if services.state == documents::FileState::Accepted && shared.is_other_in_force(core).await {
        services.state = documents::FileState::Superseded;
    }
    let mut live = documents::LiveDocument { current: 0, connected: 0, nodes: 0, gone: 0 };
    let gone = gone(state, &world, &notes);
    let (mut warnings, mut behind) = (Vec::new(), Vec::new());
    for (name, _) in world.nodes.iter().filter(|(_, node)| node.identity.is_some()) {
        let note = notes.get(name);
        let connected = core.watches().is_open(name);
        let current = note.is_some_and(|note| core.is_current(name, note.applied));
        live.nodes += 1;
        live.connected += usize::from(connected);
        live.gone += usize::from(gone.is(name, true));
        live.current += usize::from(current);
        if !current && behind.len() < MAX_BEHIND {
            let applied = note.map(|note| note.applied).filter(|revision| revision.0 > 0);
            behind.push(documents::Behind { node: name.clone(), connected, applied });
        }
        let said = note.map(|note| told(note, now())).unwrap_or_default();
        warnings.extend(said.iter().map(|warning| format!("{name}: {warning}")));
    }
    if let Some(error) = shared.error() {
        warnings.push(format!("the store does not answer, nodes keep what they have: {error}"));
    }
    warnings.extend(core.with(|registry| registry.shortage()).await);
    if shown.backup_failed {
        let dir = shown.backups.display();
        warnings.push(format!(
            "no backup can be written to {dir}; see the coordinator's log, or set `backups` in coordinator.toml"
        ));
    }
    if own.addresses.is_empty() {
        warnings.push("`public` is not set in coordinator.toml, so that no join token can be made".into());
    }
    warnings.extend(shown.public);
    if let Some(address) = shown.unserved {
        warnings.push(format!(
            "metrics are not served: {address} was taken at the start; set `metrics` in coordinator.toml to a free address and restart"
        ));
    }
    let (strangers, strangers_max) = doors.strangers();
    if strangers >= strangers_max {
        warnings.push(format!(
            "all {strangers_max} places of connections that are no member's are taken; members have places of their own, new nodes may have to try again: look from where they come (ss -tn), and close your firewall to it"
        ));
    }
    warnings.extend(lost_lines.sentence());
    documents::StatusDocument {
        schema: documents::STATUS.into(),
        mesh: world.mesh.name.clone(),
        range: world.mesh.range.net(),
        software: env!("CARGO_PKG_VERSION").into(),
        key: own.key,
        listen: shown.listen,
        public: own.addresses.clone(),
        uptime_s: shown.started.elapsed().as_secs(),
        revision: world.revision,
        live,
        behind,
        store: shown.store,
        store_error: shared.error(),
        shared: shared.is_shared(),
        lock: world.mesh.lock.as_ref().and_then(|lock| lock.key),
        waiting: world.nodes.iter().filter(|(_, n)| world.waits(n)).map(|(n, _)| n.clone()).take(MAX_BEHIND).collect(),
        services,
        idle: world.services.idle.clone(),
        coordinators: replicas(core, own).await,
        log_lines_dropped: lost_lines.count(),
        strangers,
        strangers_max,
        warnings,
    }
}

/// Lists the nodes.
pub(crate) async fn nodes(state: &AdminState) -> documents::Nodes {
    let core = &state.core;
    let (world, notes) = snapshot(core).await;
    let gone = gone(state, &world, &notes);
    let nodes = world.nodes.iter().map(|(name, record)| {
        let connected = core.watches().is_open(name);
        let document = node(name, record, connected, notes.get(name), gone.now);
        let gone = gone.is(name, record.identity.is_some());
        documents::NodeDocument { waits: world.waits(record), gone, ..document }
    });
    documents::Nodes { schema: documents::NODES.into(), revision: world.revision, nodes: nodes.collect() }
}

fn node(
    name: &NodeName,
    record: &NodeRecord,
    connected: bool,
    note: Option<&LiveNode>,
    now: UnixTime,
) -> documents::NodeDocument {
    let observed = record.observed.zip(record.facts.lanes.first());
    let observed = observed.map(|(address, lane)| (address, lane.port).into());
    let mut endpoints = record.facts.endpoints.clone();
    endpoints.extend(observed.filter(|seen| !endpoints.contains(seen)));
    let heard = note.map(|note| now.since(note.last_seen).as_secs());
    documents::NodeDocument {
        name: name.clone(),
        site: record.site.clone(),
        address: record.address,
        r#static: record.identity.is_none(),
        connected,
        applied: note.map(|note| note.applied).filter(|revision| revision.0 > 0),
        endpoints,
        blocks: record.blocks.clone(),
        // An open watch answers pings all the time.
        gone: false,
        last_seen_s: if connected { Some(0) } else { heard },
        software: record.facts.software.clone(),
        waits: false,
        identity: record.identity,
        identity_changes: record.lineage.len(),
        warnings: note.map(|note| told(note, now)).unwrap_or_default(),
    }
}

/// What the operator should know of a node: what it said last, and what outlives that.
fn told(note: &LiveNode, now: UnixTime) -> Vec<String> {
    note.copy_warning(now).into_iter().chain(note.warnings.iter().cloned()).collect()
}

/// Lists the services, as the file has them and as nodes are told of them.
pub(crate) async fn services(state: &AdminState) -> documents::ServicesDocument {
    let (world, notes) = snapshot(&state.core).await;
    let world = &*world;
    let gone = gone(state, world, &notes);
    let mut told = told_backends(world);
    for backend in told.values_mut().flatten() {
        let is_member = world.nodes.get(&backend.node).is_some_and(|node| node.identity.is_some());
        backend.gone = gone.is(&backend.node, is_member);
        backend.live = !backend.gone;
    }
    let services = world.services.services.iter().filter_map(|spec| {
        let vip = world.vips.get(&spec.key)?.address;
        let told = told.get(&spec.key).map(Vec::as_slice).unwrap_or_default();
        Some(documents::ServiceDocument {
            name: spec.key.name.clone(),
            namespace: spec.key.namespace.clone(),
            vip,
            ports: spec.ports.clone(),
            backends: backends(world, spec, told),
        })
    });
    let mut services: Vec<_> = services.collect();
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    documents::ServicesDocument { schema: documents::SERVICES.into(), revision: world.revision, services }
}

/// The backends of every service that nodes are told of; the same for every node but for their order.
fn told_backends(world: &World) -> BTreeMap<ServiceKey, Vec<documents::BackendDocument>> {
    let chart = plan::PlanIndex::new(Arc::new(world.clone()));
    let told = chart.all_services().map(|(key, service)| {
        let backends = service.backends.into_iter().map(|backend| documents::BackendDocument {
            name: backend.name,
            node: backend.node,
            address: Some(backend.address),
            weight: backend.weight,
            live: true,
            gone: false,
        });
        (key.clone(), backends.collect())
    });
    told.collect()
}

fn backends(world: &World, spec: &ServiceSpec, told: &[documents::BackendDocument]) -> Vec<documents::BackendDocument> {
    let mut all = told.to_vec();
    for backend in &spec.backends {
        let address = address(world, backend);
        let is_told = |t: &documents::BackendDocument| t.node == *backend.at.node() && t.address == address;
        if !told.iter().any(is_told) {
            all.push(documents::BackendDocument {
                name: backend.name.clone(),
                node: backend.at.node().clone(),
                address,
                weight: backend.weight.unwrap_or(100),
                live: false,
                gone: false,
            });
        }
    }
    all.sort_by(|a, b| (&a.node, a.address).cmp(&(&b.node, b.address)));
    all
}

fn address(world: &World, backend: &BackendSpec) -> Option<Flat> {
    let record = world.nodes.get(backend.at.node())?;
    let BackendAt::Pod { addr, .. } = &backend.at else { return Some(record.address) };
    let block = record.blocks.iter().find(|block| block.real.contains(addr))?;
    let host = u32::from(*addr) & u32::from(block.real.hostmask());
    Some(Flat((u32::from(block.flat.network()) | host).into()))
}

/// Lists the join tokens.
pub(crate) async fn tokens(core: &Arc<Core>) -> documents::TokensDocument {
    let now = now();
    let list = core.with(move |registry| {
        let tokens = registry.tokens().map(|(id, record)| token(id, record, now));
        tokens.collect()
    });
    documents::TokensDocument { schema: documents::TOKENS.into(), tokens: list.await }
}

fn token(id: &str, record: &TokenRecord, now: UnixTime) -> documents::TokenDocument {
    documents::TokenDocument {
        id: id.into(),
        name: record.name.clone(),
        site: record.site.clone(),
        serve: record.serve.clone(),
        created: record.created.0,
        expires: record.expires.0,
        expires_in_s: record.expires.since(now).as_secs(),
        uses_left: record.uses_left,
        usable: record.is_usable(now),
    }
}

/// What says which nodes are gone.
fn gone<'n>(state: &'n AdminState, world: &World, notes: &'n BTreeMap<NodeName, LiveNode>) -> Gone<'n> {
    let started = state.shown.borrow().started;
    Gone { watches: state.core.watches(), notes, started, now: now(), is_alone: Gone::is_alone(world) }
}

/// The world, and what is known of its nodes, at one moment.
async fn snapshot(core: &Arc<Core>) -> (Arc<World>, BTreeMap<NodeName, LiveNode>) {
    core.with(|registry| {
        let notes = registry.live().nodes();
        let notes = notes.map(|(name, note)| (name.clone(), note.clone()));
        (registry.world(), notes.collect())
    })
    .await
}
