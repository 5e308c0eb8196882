//! Renders a snapshot of the node as the documents of the control socket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use mesh_host::clock::now;
use mesh_host::table::age;
use mesh_proto::base::id::{NodeId, NodeName, ServiceKey};
use mesh_proto::dataplane::explain::{Explanation, explain, explain_stranger};
use mesh_proto::dataplane::flow::{Flow, FlowState, Holder};
use mesh_proto::dataplane::verdict::Refuse;
use mesh_proto::dataplane::view::{MIN_MTU, View};
use mesh_proto::model::netmap::{Peer, Service};
use mesh_proto::ops::status as doc;
use mesh_proto::packet::{FiveTuple, protocol_name};
use mesh_proto::wire::About;

use crate::api::names::{self, NameError};
use crate::base::state_dir::{Enrolment, advice};
use crate::base::text::JOIN_HINT;
use crate::base::unstored::RefusedFile;
use crate::base::warning_id::WarningId;
use crate::base::ways_back;
use crate::config::accepted::Settings;
use crate::control::AddressBook;
use crate::dataplane::{DataPlaneStats, FlowStats};
use crate::keys::psk_policy::PskMode;
use crate::linux::{Obstacle, Upkeep};
use crate::node::services_file::Offers;
use crate::node::snapshot::Snapshot;
use crate::node::wished_name;

/// Most peers that one warning names.
const MAX_NAMED: usize = 5;
/// Most flows that are listed.
const MAX_FLOWS: usize = 10_000;

/// How long a flow table that lost a flow counts as full.
const LOSES: Duration = Duration::from_secs(60);
/// Most peers that do not answer and are named each in a sentence.
const MAX_SILENT: usize = 5;
/// How long after its last packet a peer that does not answer is a trouble of this node's.
const WANTED: Duration = Duration::from_secs(60);

/// Connections alive, by dialled address and backend address.
type Connections = BTreeMap<(Ipv4Addr, Ipv4Addr), u64>;

/// Reads everything.
pub fn status(snapshot: &Snapshot) -> doc::Status {
    let view = snapshot.view.as_deref();
    let idle = DataPlaneStats::default();
    let stats = snapshot.stats.as_ref().unwrap_or(&idle);
    let drops = stats.drops.iter().map(|(&reason, &n)| (reason.into(), n));
    let problems = problems(snapshot);
    doc::Status {
        schema: doc::STATUS.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        state: health(snapshot),
        uptime_s: snapshot.uptime.as_secs(),
        node: node(snapshot),
        coordinator: coordinator(snapshot),
        peers: view.map_or_else(Vec::new, |v| peers(v, stats)),
        services: services(snapshot),
        drops: drops.collect(),
        warnings: problems.iter().map(doc::Problem::sentence).collect(),
        problems,
        lanes: stats.lanes.iter().enumerate().map(|(lane, stats)| stats.status(lane)).collect(),
        flows: flow_count(stats),
        file: file(&snapshot.offers),
        log_lines_dropped: snapshot.log_lines_dropped,
        settings: settings(snapshot),
        unstored: unstored(snapshot),
        store_failures: snapshot.unstored.failures,
        upkeep: upkeep(&snapshot.upkeep),
    }
}

/// Reads the other nodes.
pub fn peer_list(snapshot: &Snapshot) -> Vec<doc::PeerStatus> {
    let idle = DataPlaneStats::default();
    let stats = snapshot.stats.as_ref().unwrap_or(&idle);
    snapshot.view.as_ref().map_or_else(Vec::new, |v| peers(v, stats))
}

/// Reads the services with the connections of this node.
pub fn services(snapshot: &Snapshot) -> Vec<doc::ServiceStatus> {
    let Some(view) = &snapshot.view else { return Vec::new() };
    let connections = connections(snapshot, view);
    let services = view.netmap().services.iter();
    services.map(|(key, s)| service(view, key, s, &connections)).collect()
}

/// Reads the live flows, opener's direction only; at most 10,000.
pub fn flows(snapshot: &Snapshot) -> Vec<doc::FlowStatus> {
    let Some(view) = &snapshot.view else { return Vec::new() };
    let shown = |(tuple, flow): &(FiveTuple, Flow)| doc::FlowStatus {
        transport: protocol_name(tuple.protocol),
        source: format!("{}:{}", tuple.source, tuple.source_port),
        destination: format!("{}:{}", tuple.destination, tuple.destination_port),
        backend: format!("{}:{}", flow.to.destination, flow.to.destination_port),
        peer: flow.remote.and_then(|id| view.peer_name(id).cloned()),
        idle_s: now().since(flow.last_seen).as_secs(),
    };
    opened(snapshot).iter().take(MAX_FLOWS).map(shown).collect()
}

/// Judges a call as the engine would, and says if large packets do not get through; `narrow` tells how large may be what
/// goes to a peer to which they do not.
///
/// # Errors
/// `NameError` if a word names nothing.
pub fn why(
    view: &View,
    source: &str,
    destination: &str,
    udp: bool,
    narrow: impl Fn(NodeId) -> Option<u16>,
) -> Result<doc::Why, NameError> {
    let map = view.netmap();
    let from = names::source(map, source)?;
    let to = names::target(map, destination, udp)?;
    let mut explained = explain(view, from, to.address, to.protocol, to.port).and_answers(view, now());
    let carrier = explained.peer.as_ref().and_then(|name| Some((name, map.peers.get(name)?)));
    if let Some((name, bytes)) = carrier.and_then(|(name, peer)| Some((name, narrow(peer.id)?))) {
        let outcome = format!("packets of more than {bytes} bytes vanish on the way to {name}; smaller ones are sent");
        explained.steps.push(doc::WhyStep { name: "way".into(), outcome, ok: true });
    }
    Ok(why_document((source, from), (destination, to), explained))
}

/// Returns the name or address of the node that is called and that the map does not contain, if that is so.
pub fn stranger(view: &View, source: &str, destination: &str, udp: bool) -> Option<String> {
    let map = view.netmap();
    let from = names::source(map, source).ok()?;
    match names::target(map, destination, udp) {
        Ok(to) => {
            let verdict = explain(view, from, to.address, to.protocol, to.port).verdict;
            (verdict == Refuse::NoRoute.label()).then(|| to.address.to_string())
        }
        Err(_) => names::stranger(destination).map(|(name, _)| name.to_string()),
    }
}

/// Says why a node that the map does not contain cannot be called.
///
/// # Errors
/// `NameError` if a word names nothing.
pub fn why_not(
    view: &View,
    source: &str,
    destination: &str,
    udp: bool,
    stranger: &About,
) -> Result<doc::Why, NameError> {
    let from = names::source(view.netmap(), source)?;
    let to = names::target(view.netmap(), destination, udp).or_else(|error| {
        let (_, port) = names::stranger(destination).ok_or(error)?;
        Ok(names::plain(stranger.address.0, port, udp))
    })?;
    let explained = explain_stranger(view, from, to.address, stranger);
    Ok(why_document((source, from), (destination, to), explained))
}

fn why_document(
    (source, from): (&str, Ipv4Addr),
    (destination, to): (&str, names::NamedTarget),
    explained: Explanation,
) -> doc::Why {
    doc::Why {
        schema: doc::WHY.into(),
        source: source.into(),
        source_address: from,
        destination: destination.into(),
        destination_address: to.address,
        transport: protocol_name(to.protocol),
        port: to.port,
        allowed: explained.allowed,
        verdict: explained.verdict,
        steps: explained.steps,
        rule: explained.rule,
        missing: explained.missing,
        wider: explained.wider,
        backend: explained.backend,
        peer: explained.peer,
    }
}

/// Returns what the operator should know, the gravest first; what is an error makes the node degraded.
pub fn problems(snapshot: &Snapshot) -> Vec<doc::Problem> {
    let mut list = if snapshot.enrolment.is_none() {
        let mut list = vec![problem(WarningId::NotJoined)(format!("this node has not joined a mesh; {JOIN_HINT}"))];
        list.extend(unkept(snapshot));
        list
    } else {
        grave(snapshot)
    };
    list.iter_mut().for_each(|problem| problem.is_error = true);
    list.extend(mild(snapshot));
    let mut seen = BTreeSet::new();
    list.retain(|problem| seen.insert(problem.sentence()));
    list
}

/// Returns what is to be known although the node works.
fn mild(snapshot: &Snapshot) -> Vec<doc::Problem> {
    let lost = snapshot.log_loss.clone().map(problem(WarningId::LogLines));
    if snapshot.enrolment.is_none() {
        return lost.into_iter().collect();
    }
    let mut list: Vec<doc::Problem> =
        unnamed(snapshot).map(problem(WarningId::CoordinatorAddress)).into_iter().collect();
    list.extend(other_name(snapshot).map(problem(WarningId::Name)));
    list.extend(snapshot.lane_death.clone().map(problem(WarningId::LaneDeath)));
    list.extend(narrow_ways(snapshot).into_iter().map(problem(WarningId::NarrowWay)));
    list.extend(flow_table(snapshot, false).map(problem(WarningId::FlowsNearlyFull)));
    list.extend(lost);
    list.extend(snapshot.offers.warnings.iter().cloned().map(problem(WarningId::ServicesWords)));
    list.extend(snapshot.preshared.1.clone().map(problem(WarningId::Preshared)));
    let told = snapshot.view.iter().flat_map(|v| v.netmap().warnings.iter().cloned());
    list.extend(told.map(problem(WarningId::Mesh)));
    list
}

/// Makes a problem without a command of a sentence.
fn problem(id: WarningId) -> impl Fn(String) -> doc::Problem {
    move |cause| doc::Problem { id: id.word().into(), is_error: false, cause, command: String::new(), safe: false }
}

/// Says that the coordinator is reached where it does not say that it is.
fn unnamed(snapshot: &Snapshot) -> Option<String> {
    let (link, enrolment) = (&snapshot.link, snapshot.enrolment.as_ref()?);
    let address = link.address.as_ref().filter(|_| link.connected)?;
    let named = &enrolment.coordinators;
    (!named.contains(address)).then(|| {
        format!(
            "the coordinator is reached at {address}, which it does not name any more, but {}: see that `public` in coordinator.toml is right; this node keeps the address until all of those have worked",
            named.join(", ")
        )
    })
}

/// Says that the node is called otherwise than its meshd.toml wishes: the coordinator, or its token, decided.
fn other_name(snapshot: &Snapshot) -> Option<String> {
    let enrolment = snapshot.enrolment.as_ref()?;
    wished_name::differs(snapshot.wished_name.as_ref()?, &enrolment.node)
}

/// What makes a node degraded.
fn grave(snapshot: &Snapshot) -> Vec<doc::Problem> {
    let Snapshot { upkeep, link, offers, .. } = snapshot;
    let obstacle = |Obstacle { id, sentence, command, is_safe }: &Obstacle| doc::Problem {
        id: (*id).into(),
        is_error: false,
        cause: sentence.clone(),
        command: command.clone(),
        safe: *is_safe,
    };
    let mut list: Vec<doc::Problem> = upkeep.obstacles.iter().map(obstacle).collect();
    list.extend(upkeep.guards.missing.iter().cloned().map(problem(WarningId::Guards)));
    let failed = upkeep.failed.iter().map(|error| {
        format!("{error} (what meshd keeps set in the kernel is not as it should be; it is tried again each second)")
    });
    list.extend(failed.map(problem(WarningId::Upkeep)));
    if let Some((error, since)) = &offers.error {
        let age = age(since.elapsed().as_secs(), 1);
        let cause = format!("{error} (wrong for {age}; the file before stays in force)");
        list.push(problem(WarningId::ServicesFile)(cause));
    }
    if let Some(error) = link.error.as_ref().filter(|_| !link.connected) {
        list.push(problem(WarningId::NoCoordinator)(format!("no control channel: {error}")));
        let back = |e: &Enrolment| problem(WarningId::Disowned)(ways_back::with_token(&e.node, &e.site));
        list.extend(snapshot.enrolment.as_ref().filter(|_| link.disowned).map(back));
    }
    list.extend(flow_table(snapshot, true).map(problem(WarningId::FlowsFull)));
    list.extend(silences(snapshot).into_iter().map(problem(WarningId::PeerSilent)));
    list.extend(link.alarms.iter().cloned().map(problem(WarningId::LogAlarm)));
    list.extend(link.refused.iter().cloned().map(problem(WarningId::FactsRefused)));
    list.extend(link.rejected.iter().cloned().map(problem(WarningId::MapRefused)));
    list.extend(unkept(snapshot));
    list
}

/// What would be lost, and what has no place of its own.
fn unkept(snapshot: &Snapshot) -> Vec<doc::Problem> {
    let stored = snapshot.unstored.sentences().cloned().map(problem(WarningId::Unstored));
    let flows = flow_file(snapshot).map(problem(WarningId::FlowFile));
    let notes = snapshot.notes.iter().map(|(topic, sentence)| problem(*topic)(sentence.clone()));
    stored.chain(flows).chain(notes).collect()
}

fn flow_count(stats: &DataPlaneStats) -> doc::FlowCount {
    let FlowStats { used, room, displaced, .. } = stats.flows;
    doc::FlowCount { used, slots: room, displaced }
}

/// Tells of a flow table that is nearly full, or of one that is `full`, so that flows were lost in the last minute.
fn flow_table(snapshot: &Snapshot, full: bool) -> Option<String> {
    let FlowStats { used, room, last_loss, largest, .. } = snapshot.stats.as_ref()?.flows;
    let loses = last_loss.is_some_and(|ago| ago <= LOSES);
    if loses != full || used <= room / 5 * 4 && !full {
        return None;
    }
    let most = largest.map_or_else(String::new, |(holder, count)| {
        let peer = |id| snapshot.view.as_deref().and_then(|view| view.peer_name(id));
        let holder = match holder {
            Holder::Own(address) => format!("{address} of this node"),
            Holder::Peer(id) => peer(id).map_or_else(|| "a former peer".to_owned(), |name| format!("peer {name}")),
        };
        format!(", {count} of them opened by {holder}")
    });
    let what = if full {
        "is full: the cheapest flow of whoever holds most goes for each new one"
    } else {
        "is nearly full; when it is, the cheapest flow of whoever holds most goes for each new one"
    };
    let hint = "`meshd flows` lists them: let the caller reuse connections and source ports";
    Some(format!("the flow table {what} ({used} of {room} flows{most}); {hint}"))
}

fn health(snapshot: &Snapshot) -> doc::Health {
    if snapshot.enrolment.is_none() {
        doc::Health::NotJoined
    } else if snapshot.view.is_none() || snapshot.stats.is_none() || !grave(snapshot).is_empty() {
        doc::Health::Degraded
    } else {
        doc::Health::Ok
    }
}

fn node(snapshot: &Snapshot) -> Option<doc::NodeStatus> {
    let enrolment = snapshot.enrolment.clone()?;
    let view = snapshot.view.as_deref();
    let own = view.map(|v| v.netmap().node.clone());
    let range = view.map_or(enrolment.range, |v| v.netmap().mesh.range);
    Some(doc::NodeStatus {
        name: enrolment.node,
        site: enrolment.site,
        address: own.as_ref().map_or(enrolment.address, |n| n.address),
        mesh: enrolment.mesh,
        range,
        blocks: own.map_or(enrolment.blocks, |n| n.blocks),
        dns: range.dns(),
        guarded: snapshot.upkeep.guards.masquerade,
        preshared: match snapshot.preshared.0 {
            PskMode::Off => doc::PresharedStatus::Off,
            PskMode::Accept => doc::PresharedStatus::Waits,
            PskMode::Offer => doc::PresharedStatus::Begins,
            PskMode::Require => doc::PresharedStatus::On,
        },
    })
}

fn coordinator(snapshot: &Snapshot) -> doc::CoordinatorStatus {
    let link = &snapshot.link;
    doc::CoordinatorStatus {
        connected: link.connected,
        revision: snapshot.view.as_deref().map(View::revision).unwrap_or_default(),
        address: link.address.clone(),
        addresses: snapshot.enrolment.as_ref().map_or_else(Vec::new, |e| AddressBook::of(e).candidates(0)),
        last_heard_s: link.last_heard.map(|at| at.elapsed().as_secs()),
        error: link.error.clone(),
        records_refused: link.records_refused,
        lock: link.lock,
        log: link.log,
        log_alarms: link.alarms.len() as u64,
    }
}

fn peers(view: &View, stats: &DataPlaneStats) -> Vec<doc::PeerStatus> {
    let peer = |(name, peer): (&NodeName, &Peer)| {
        let seen = stats.peers.get(&peer.id).cloned().unwrap_or_default();
        doc::PeerStatus {
            name: name.clone(),
            site: peer.site.clone(),
            address: peer.address,
            endpoint: seen.endpoint,
            rtt_ms: seen.rtt.map(|rtt| rtt.as_micros() as f64 / 1000.0),
            rtt_count: seen.rtt_count,
            last_handshake_s: seen.last_handshake.map(|age| age.as_secs()),
            post_quantum: stats.post_quantum.contains(&peer.id),
            not_answering_s: not_answering_s(view, peer.id),
            wanted_s: seen.wanted.map(|age| age.as_secs()),
            rx_bytes: seen.rx_bytes,
            tx_bytes: seen.tx_bytes,
            mtu: most(peer, stats),
            narrow_s: seen.narrow.map(|(_, age)| age.as_secs()),
        }
    };
    view.netmap().peers.iter().map(peer).collect()
}

/// The largest packet that is sent to a peer, in bytes.
fn most(peer: &Peer, stats: &DataPlaneStats) -> u16 {
    let seen = stats.peers.get(&peer.id).and_then(|seen| seen.narrow);
    // Without a data path nothing is known of this end.
    let own = if stats.mtu == 0 { u16::MAX } else { stats.mtu };
    let full = peer.mtu.max(MIN_MTU).min(own);
    seen.map_or(full, |(bytes, _)| bytes.min(full))
}

/// Says to whom large packets do not get through, and what the operator can do about it.
fn narrow_ways(snapshot: &Snapshot) -> Vec<String> {
    let Some((view, stats)) = snapshot.view.as_ref().zip(snapshot.stats.as_ref()) else { return Vec::new() };
    let narrow = |peer: &Peer| stats.peers.get(&peer.id).and_then(|seen| seen.narrow);
    let narrow = view.netmap().peers.iter().filter_map(|(name, peer)| Some((name, most(peer, stats), narrow(peer)?)));
    let narrow: Vec<_> = narrow.collect();
    let Some(least) = narrow.iter().map(|(_, most, _)| *most).min() else { return Vec::new() };
    let named: Vec<String> = { narrow.iter().take(MAX_NAMED) }
        .map(|(name, most, (_, since))| format!("`{name}` ({most} bytes, for {})", age(since.as_secs(), 1)))
        .collect();
    let more = match narrow.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    vec![format!(
        "larger packets vanish on the way to {}{more}: smaller ones are sent, and more is tried now and then; let ICMP \"fragmentation needed\" and fragments pass there, or set `mtu = {least}` in meshd.toml",
        named.join(", "),
    )]
}

fn not_answering_s(view: &View, peer: NodeId) -> Option<u64> {
    view.silent_since(peer).map(|since| now().since(since).as_secs())
}

/// What to do about peers that do not answer although packets for them came along in the last minute.
fn silences(snapshot: &Snapshot) -> Vec<String> {
    let Some((view, stats)) = snapshot.view.as_deref().zip(snapshot.stats.as_ref()) else { return Vec::new() };
    let wanted = |id: &NodeId| {
        let wanted = stats.peers.get(id).and_then(|peer| peer.wanted);
        wanted.is_some_and(|age| age <= WANTED)
    };
    let peers = view.netmap().peers.iter().filter(|(_, peer)| wanted(&peer.id));
    let silent: Vec<_> = peers.filter_map(|(name, peer)| Some((name, peer, not_answering_s(view, peer.id)?))).collect();
    let sentence = |(name, peer, seconds): &(&NodeName, &Peer, u64)| {
        let seen = stats.peers.get(&peer.id).and_then(|peer| peer.endpoint);
        let at = seen.or_else(|| peer.endpoints.first().copied());
        let at = at.map_or_else(|| "at no known address".into(), |at| format!("at UDP {at}"));
        format!(
            "{name} has not answered {at} for {}, although packets go to it: see there whether meshd runs (`systemctl status meshd`), and whether a firewall on the way drops that port; other backends are used meanwhile",
            age(*seconds, 1)
        )
    };
    let mut list: Vec<String> = silent.iter().take(MAX_SILENT).map(sentence).collect();
    if let Some(more @ 1..) = silent.len().checked_sub(MAX_SILENT) {
        list.push(format!("{more} more peers do not answer: `meshd peers` lists them"));
    }
    list
}

fn service(view: &View, key: &ServiceKey, service: &Service, connections: &Connections) -> doc::ServiceStatus {
    let port = |p: &mesh_proto::model::netmap::ServicePort| doc::Port {
        name: p.name.as_ref().map(ToString::to_string),
        transport: p.transport,
        port: p.port,
        target: p.target,
    };
    let backend = |b: &mesh_proto::model::netmap::Backend| doc::BackendStatus {
        name: b.name.as_ref().map_or_else(|| b.node.to_string(), ToString::to_string),
        node: b.node.clone(),
        address: b.address,
        weight: b.weight,
        not_answering_s: view.netmap().peers.get(&b.node).and_then(|peer| not_answering_s(view, peer.id)),
        connections: connections.get(&(service.vip.0, b.address.0)).copied().unwrap_or(0),
    };
    doc::ServiceStatus {
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        vip: service.vip,
        ports: service.ports.iter().map(port).collect(),
        backends: service.backends.iter().map(backend).collect(),
    }
}

/// Counts the connections through VIPs that this node's callers hold open. A backend on this node is
/// met by its real address.
fn connections(snapshot: &Snapshot, view: &View) -> Connections {
    let mut connections = Connections::new();
    for (tuple, flow) in opened(snapshot) {
        if view.is_vip(tuple.destination) && matches!(flow.state, FlowState::Open | FlowState::HalfOpen) {
            let to = flow.to.destination;
            let flat = view.flat(mesh_proto::base::addr::Real(to)).map_or(to, |flat| flat.0);
            *connections.entry((tuple.destination, flat)).or_default() += 1;
        }
    }
    connections
}

fn opened(snapshot: &Snapshot) -> &[(FiveTuple, Flow)] {
    snapshot.stats.as_ref().map(|stats| stats.opened.as_slice()).unwrap_or_default()
}

fn settings(snapshot: &Snapshot) -> doc::File {
    let Settings { path, text: _, error } = &snapshot.settings;
    doc::File {
        path: path.display().to_string(),
        in_force: error.is_none(),
        error: error.clone(),
        // It was read when the daemon started.
        error_age_s: error.as_ref().map(|_| snapshot.uptime.as_secs()),
    }
}

fn unstored(snapshot: &Snapshot) -> Vec<doc::UnstoredFile> {
    let shown = |(file, refused): (&&str, &RefusedFile)| doc::UnstoredFile {
        file: (*file).into(),
        error: refused.sentence.clone(),
        age_s: refused.since.elapsed().as_secs(),
        attempts: refused.attempts,
    };
    let mut list: Vec<_> = snapshot.unstored.files.iter().map(shown).collect();
    let flows = flow_file(snapshot);
    list.extend(flows.map(|error| doc::UnstoredFile { file: "flows".into(), error, ..doc::UnstoredFile::default() }));
    list
}

/// Says why connections would be cut by a restart.
fn flow_file(snapshot: &Snapshot) -> Option<String> {
    let (path, error) = snapshot.stats.as_ref()?.unwritten.as_ref()?;
    let advice = advice(&(*error).into(), path, "see the kernel's log (`dmesg`)");
    Some(format!(
        "cannot write {}: {error}; {advice}. It is tried again until it works; before that a restart cuts connections that are open",
        path.display()
    ))
}

fn upkeep(upkeep: &Upkeep) -> doc::UpkeepStatus {
    doc::UpkeepStatus {
        mended: upkeep.mended,
        last_mended: upkeep.last_mended.clone(),
        failed: upkeep.failed.iter().map(ToString::to_string).collect(),
        stopped: upkeep.stopped,
    }
}

fn file(offers: &Offers) -> doc::File {
    doc::File {
        path: offers.path.display().to_string(),
        in_force: offers.error.is_none(),
        error: offers.error.as_ref().map(|(error, _)| error.clone()),
        error_age_s: offers.error.as_ref().map(|(_, since)| since.elapsed().as_secs()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::Arc;

    use mesh_proto::base::clock::Timestamp;
    use mesh_proto::model::netmap::NetMap;
    use mesh_proto::verifier::VerifiedMap;

    use super::*;
    use crate::dataplane::PeerStats;
    use crate::dataplane::lane::tests::netmap;
    use crate::linux::KernelError;

    #[test]
    fn a_flow_table_that_fills_is_told_of_before_it_loses_anything() {
        let told = |used, last_loss| {
            let largest = Some((Holder::Own(Ipv4Addr::new(10, 8, 0, 10)), 700));
            let flows = FlowStats { used, room: 1000, displaced: 0, last_loss, largest };
            let stats = Some(DataPlaneStats { flows, ..DataPlaneStats::default() });
            let snapshot = Snapshot { stats, ..Snapshot::default() };
            let is_grave = grave(&snapshot).iter().any(|problem| problem.id == "flows-full");
            (flow_table(&snapshot, false), is_grave, flow_table(&snapshot, true))
        };
        assert_eq!(told(800, None), (None, false, None));
        let (warning, is_grave, full) = told(801, Some(LOSES + Duration::from_secs(1)));
        let warning = warning.unwrap_or_default();
        assert_eq!((is_grave, full), (false, None), "nothing is lost yet");
        assert!(
            warning.contains("nearly full") && warning.contains("801 of 1000 flows, 700 of them opened by 10.8.0.10")
        );
        let (warning, is_grave, full) = told(990, Some(LOSES));
        assert_eq!((warning, is_grave), (None, true));
        assert!(full.is_some_and(|full| full.contains("is full")));
    }

    /// A node with one peer, which was wanted so long ago.
    fn wanted(ago: u64) -> Snapshot {
        let map = netmap(0, true);
        let enrolment = Enrolment {
            version: 1,
            coordinators: Vec::new(),
            worked: Vec::new(),
            pins: Vec::new(),
            node: map.node.name.clone(),
            id: map.node.id,
            site: map.node.site.clone(),
            mesh: map.mesh.name.clone(),
            range: map.mesh.range,
            address: map.node.address,
            blocks: Vec::new(),
            domains: Vec::new(),
        };
        let peer = PeerStats { wanted: Some(Duration::from_secs(ago)), ..PeerStats::default() };
        let stats = DataPlaneStats { peers: [(NodeId(2), peer)].into(), ..DataPlaneStats::default() };
        let view = Some(Arc::new(View::compile(VerifiedMap::by_hand(map))));
        Snapshot { enrolment: Some(enrolment), view, stats: Some(stats), ..Snapshot::default() }
    }

    #[test]
    fn a_silent_peer_degrades_the_node_for_as_long_as_it_was_wanted_in_the_last_minute() {
        for (ago, silent, expected) in
            [(59, true, doc::Health::Degraded), (59, false, doc::Health::Ok), (61, true, doc::Health::Ok)]
        {
            let snapshot = wanted(ago);
            let since = silent.then(|| Timestamp::from_micros(now().as_micros().saturating_sub(20_000_000)));
            snapshot.view.as_ref().unwrap().set_silent(NodeId(2), since);
            let status = status(&snapshot);
            assert_eq!(status.state, expected, "{ago} {silent}: {:?}", status.warnings);
            assert_eq!(status.peers[0].not_answering_s.is_some(), silent, "it is shown all the same");
            assert_eq!(
                status.warnings.iter().any(|w| w.starts_with("n1 has not answered at UDP")),
                status.state == doc::Health::Degraded
            );
        }
    }

    #[test]
    fn every_warning_has_the_id_of_its_producer_and_the_same_words_as_before() {
        use WarningId as Id;
        let mut snapshot = wanted(1);
        snapshot.enrolment.as_mut().unwrap().coordinators = vec!["named:7700".into()];
        let map = NetMap { warnings: vec!["a backend is gone".into()], ..netmap(0, true) };
        snapshot.view = Some(Arc::new(View::compile(VerifiedMap::by_hand(map))));
        let silent = Timestamp::from_micros(now().as_micros().saturating_sub(20_000_000));
        snapshot.view.as_ref().unwrap().set_silent(NodeId(2), Some(silent));
        let obstacle = Obstacle::new("a rule is in the way", "ip rule del");
        snapshot.upkeep.obstacles = vec![obstacle];
        snapshot.upkeep.guards.missing = vec!["a guard is missing".into()];
        snapshot.upkeep.failed = vec![KernelError::NoInterface("mesh0".into())];
        snapshot.offers.error = Some(("a mistake".into(), std::time::Instant::now()));
        snapshot.offers.warnings = vec!["a word does nothing".into()];
        snapshot.link.alarms = vec!["the log forks".into()];
        snapshot.link.refused = vec!["a name is taken".into()];
        snapshot.link.rejected = vec!["a record is refused".into()];
        (snapshot.link.error, snapshot.link.disowned) = (Some("nobody answers".into()), true);
        snapshot.unstored.directory = Some("the disk is full".into());
        snapshot.wished_name = Some("wish".parse().unwrap());
        snapshot.lane_death = Some("a lane died".into());
        snapshot.log_loss = Some("lines were lost".into());
        snapshot.preshared.1 = Some("keys come later".into());
        let stats = snapshot.stats.as_mut().unwrap();
        stats.unwritten = Some(("/run/flows".into(), rustix::io::Errno::NOSPC));
        stats.flows = FlowStats { used: 900, room: 1000, last_loss: Some(LOSES), ..FlowStats::default() };
        stats.peers.get_mut(&NodeId(2)).unwrap().narrow = Some((1300, LOSES));
        let posted = [Id::Cache, Id::Clock, Id::HandshakeClock, Id::Dns, Id::Identity, Id::Keys, Id::MaxOffline]
            .into_iter()
            .chain([Id::HalfOffline, Id::Settings, Id::Socket, Id::Enrolment, Id::Leave, Id::Metrics, Id::Splice]);
        snapshot.notes = posted.map(|id| (id, format!("a note of {}", id.word()))).collect();

        let told = status(&snapshot);
        let mut ids: BTreeSet<&str> = told.problems.iter().map(|problem| &*problem.id).collect();
        assert_eq!(ids.len(), told.problems.len(), "one of each: {:?}", told.problems);
        assert_eq!(told.warnings, told.problems.iter().map(doc::Problem::sentence).collect::<Vec<_>>());
        let id = |word: &str| told.problems.iter().find(|p| p.cause.contains(word)).map(|p| (&*p.id, p.is_error));
        for (word, expected) in [
            ("a rule is in the way", ("host", true)),
            ("a guard is missing", ("guards", true)),
            ("no control channel: nobody answers", ("no-coordinator", true)),
            ("has not answered", ("peer-silent", true)),
            ("the flow table is full", ("flows-full", true)),
            ("a note of clock", ("clock", true)),
            ("larger packets vanish", ("narrow-way", false)),
            ("a lane died", ("lane-death", false)),
            ("in the mesh, as the coordinator recorded", ("name", false)),
        ] {
            assert_eq!(id(word), Some(expected), "{word}");
        }
        assert!(told.warnings[0].ends_with("; run `ip rule del`"), "{}", told.warnings[0]);

        // Those of other states.
        let mut connected = snapshot.clone();
        (connected.link.connected, connected.link.address) = (true, Some("192.0.2.1:7700".into()));
        connected.stats.as_mut().unwrap().flows.last_loss = None;
        let other = problems(&connected);
        let stranger = problems(&Snapshot::default());
        ids.extend(other.iter().chain(&stranger).map(|problem| &*problem.id));
        let left: Vec<Id> = Id::ALL.into_iter().filter(|id| !ids.contains(id.word())).collect();
        assert_eq!(left, [], "nobody makes them");
    }
}
