//! Ours among 1,000 peers, 10 of them active, against ours with one peer.
//!
//! ```text
//!   a ══ one TCP stream ══▶ b          both with a map of 1,000 peers, or of one
//!   ▲
//!   └── pings, 5 per second each ── c1 … c9 (real daemons, in the larger case)
//! ```
//! Eleven nodes join a coordinator, which is then stopped, as it may be for days: nodes live on with the map that they
//! stored. Into the stored maps of a and b go 990 peers more, each with keys, a pod block and an endpoint, that never
//! answer. What is measured is what the size of the map and ten sessions cost; the rest is the same.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipnet::Ipv4Net;
use mesh_host::identity::Identity;
use mesh_proto::base::addr::Flat;
use mesh_proto::base::id::{NodeId, TunnelKey};
use mesh_proto::model::netmap::{LaneInfo, NetMap, Peer, Proof};
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::NodeFacts;
use mesh_tests::daemon::{Binaries, Daemon, Process, wait_until};
use mesh_tests::topology::{Network, PORT, Underlay, start_coordinator, token, write_coordinator, write_node};
use meshd::base::state_dir::State;

use crate::figures::{FEW_ROW, FiguresTable, MANY_ROW};
use crate::ground::{folder, prefix};
use crate::load;
use crate::machine::resident_mib;
use crate::plan::{BenchPlan, Metric};
use crate::system::{BULK_PORT, DialTarget, PONG_PORT};

/// What selects it on the command line.
pub(crate) const NAME: &str = "thousand";
/// Peers in the larger map.
const PEERS: usize = 1000;
/// Peers that a hears of all the time: b and these.
const ACTIVE: usize = 9;
/// How long eleven daemons may take to know each other.
const STARTING: Duration = Duration::from_secs(20);
const SERVICES: &str = "version = 1\n[[site]]\nname = \"lan\"\n[[allow]]\nfrom = [\"any\"]\nto = [\"any\"]\n";

/// Measures both cases, one after the other.
pub(crate) fn measure(binaries: &Binaries, plan: &BenchPlan, table: &mut FiguresTable) -> io::Result<()> {
    let folder = folder()?;
    let network = Network::new(&prefix(), folder.path(), 1, Underlay::V4).map_err(io::Error::other)?;
    let mesh = Mesh::join(&network, binaries, plan.lanes)?;
    let full: Vec<NetMap> = mesh.nodes[..2].iter().map(stored).collect::<io::Result<_>>()?;
    for (row, many) in [(FEW_ROW, false), (MANY_ROW, true)] {
        for (node, map) in mesh.nodes[..2].iter().zip(&full) {
            let map = if many { crowded(map) } else { lonely(map, [1, 0][usize::from(node.name == "n1")]) };
            state(node)?.save_netmap(&map).map_err(io::Error::other)?;
        }
        let running = &mesh.nodes[..if many { 2 + ACTIVE } else { 2 }];
        running.iter().try_for_each(Daemon::start)?;
        let way = way(row, &mesh.nodes[0], &mesh.nodes[1], &full[1]);
        load::await_answer(&way)?;
        let pings = if many { pings(&mesh.nodes[2..], full[0].node.address.0)? } else { Vec::new() };
        table.add(row, Metric::Tcp1, load::rate(&load::iperf(&way, plan.secs, &["-P", "1"])?)?);
        if many {
            table.memory.extend(mesh.nodes[..2].iter().filter_map(|n| resident_mib(n.id()?)).reduce(f64::max));
        }
        drop(pings);
        stop(running);
    }
    Ok(())
}

struct Mesh {
    nodes: Vec<Daemon>,
}

impl Mesh {
    /// Lets all nodes join and learn of each other, then stops everything.
    fn join(network: &Network, binaries: &Binaries, lanes: u16) -> io::Result<Self> {
        let home = |name: &str, host: u8| {
            let folder = network.folder.join(name);
            std::fs::create_dir(&folder)?;
            Ok::<_, io::Error>((network.host(name, 1, host).map_err(io::Error::other)?, folder))
        };
        let (namespace, folder) = home("coordinator", 10)?;
        let coordinator = Daemon::coordinator(&namespace, &folder, binaries);
        write_coordinator(&coordinator, network.ip(1, 10), SERVICES)?;
        start_coordinator(&coordinator, network.ip(1, 10))?;
        let mut nodes = Vec::new();
        for i in 0..2 + ACTIVE {
            let name = format!("n{i}");
            let (namespace, folder) = home(&name, 11 + i as u8)?;
            let node = Daemon::meshd(&name, &namespace, &folder, binaries);
            write_node(&node, None, lanes, "")?;
            node.expect_config(&["join", &token(&coordinator, "lan", &name)?])?;
            node.start()?;
            nodes.push(node);
        }
        let known = || nodes.iter().all(|n| stored(n).is_ok_and(|map| complete(&map)));
        if !wait_until(STARTING, known) {
            return Err(io::Error::other("eleven nodes do not learn of each other"));
        }
        coordinator.terminate();
        stop(&nodes);
        Ok(Self { nodes })
    }
}

fn stop(nodes: &[Daemon]) {
    for node in nodes {
        node.terminate();
    }
}

/// Says whether a map holds all other nodes, with an endpoint each.
fn complete(map: &NetMap) -> bool {
    map.peers.len() == 1 + ACTIVE && map.peers.values().all(|peer| !peer.endpoints.is_empty())
}

fn state(node: &Daemon) -> io::Result<State> {
    State::open(&node.folder.join("state")).map_err(io::Error::other)
}

fn stored(node: &Daemon) -> io::Result<NetMap> {
    state(node)?.netmap().ok_or_else(|| io::Error::other(format!("{} has stored no map", node.name)))
}

/// Leaves one peer.
fn lonely(map: &NetMap, other: usize) -> NetMap {
    let other = format!("n{other}");
    let mut map = map.clone();
    map.peers.retain(|name, _| name.as_str() == other);
    map
}

/// Adds peers that never answer, each with a record that it signed.
fn crowded(map: &NetMap) -> NetMap {
    let mut map = map.clone();
    let Some(model) = map.peers.values().next().cloned() else { return map };
    let within = map.sites.get(&model.site).and_then(|pods| pods.first());
    let pod = within.map(|within| Ipv4Net::new_assert(within.network(), 24));
    for i in map.peers.len()..PEERS {
        let [high, low] = (i as u16).to_be_bytes();
        let lane = |lane: usize| LaneInfo { key: key(i, lane), port: PORT + lane as u16 };
        let mut peer = Peer {
            id: NodeId(10_000 + i as u32),
            address: Flat(Ipv4Addr::new(241, 1, 128 + high, low)),
            blocks: pod.iter().map(|_| Ipv4Net::new_assert(Ipv4Addr::new(241, 100 + high, low, 0), 24)).collect(),
            lanes: (0..model.lanes.len()).map(lane).collect(),
            agreement: Vec::new(),
            endpoints: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::new(172, 31, 1, 200)), PORT)],
            ..model.clone()
        };
        peer.proof = proof(&peer, pod);
        if let Ok(name) = format!("crowd{i}").parse() {
            map.peers.insert(name, peer);
        }
    }
    map
}

/// Signs what a map says of a peer, as that peer would.
fn proof(peer: &Peer, pod: Option<Ipv4Net>) -> Option<Proof> {
    let identity = Identity::generate().ok()?;
    let facts = NodeFacts {
        lanes: peer.lanes.clone(),
        endpoints: peer.endpoints.clone(),
        pods: pod.into_iter().collect(),
        mtu: peer.mtu,
        guarded: peer.guarded,
        sequence: 1,
        ..NodeFacts::default()
    };
    let text = facts.text();
    let signature = identity.sign(&SignedRecord::message(&text));
    let record = SignedRecord { text: text.into(), signature };
    Some(Proof { identity: identity.public(), record, pods: facts.pods, lineage: Vec::new() })
}

/// Makes a key that nobody has the secret of.
fn key(peer: usize, lane: usize) -> TunnelKey {
    let mut bytes = [9; 32];
    bytes[..8].copy_from_slice(&(peer as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&(lane as u64).to_le_bytes());
    TunnelKey(bytes)
}

fn way(row: &str, from: &Daemon, at: &Daemon, map: &NetMap) -> DialTarget {
    DialTarget {
        name: row.into(),
        from: from.namespace.clone(),
        at: at.namespace.clone(),
        address: map.node.address.0,
        bulk: BULK_PORT,
        pong: PONG_PORT,
        carriers: None,
        columns: &[Metric::Tcp1],
    }
}

/// Pings the sender from each of the active peers, and waits until all are answered.
fn pings(nodes: &[Daemon], to: Ipv4Addr) -> io::Result<Vec<Process>> {
    let mut pings = Vec::new();
    for node in nodes {
        let mut command = Command::new("ping");
        command.args(["-n", "-i", "0.2", &to.to_string()]);
        pings.push((Process::start(&node.namespace, command, &node.folder.join("ping"))?, node.folder.join("ping")));
    }
    let answered = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.contains("bytes from"));
    if wait_until(STARTING, || pings.iter().all(|(_, path)| answered(path))) {
        return Ok(pings.into_iter().map(|(process, _)| process).collect());
    }
    Err(io::Error::other("not all active peers are answered"))
}
