//! What meshd tells people and programs about itself: the JSON documents of its control socket.
//!
//! `-o json` prints exactly what the socket answers. Every document carries a `schema`; within one schema,
//! fields are added and never renamed or removed, so readers ignore what they do not know.

mod bench;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::base::addr::{Flat, MeshRange};
use crate::base::block_map::BlockMap;
use crate::base::id::{IdentityKey, MeshName, Namespace, NodeName, Revision, ServiceName, SiteName};
use crate::model::netmap::Transport;
use crate::trust::audit_log::LogPosition;
use crate::trust::network_lock::LockedMember;
use crate::wire::ErrorCode;

pub use bench::{BENCH, Bench, BenchPhase, Cpu, RoundTrips};

/// The schema of `Status`.
pub const STATUS: &str = "meshd.status/1";
/// The schema of `Peers`.
pub const PEERS: &str = "meshd.peers/1";
/// The schema of `Services`.
pub const SERVICES: &str = "meshd.services/1";
/// The schema of `Resolve`.
pub const RESOLVE: &str = "meshd.resolve/1";
/// The schema of `Why`.
pub const WHY: &str = "meshd.why/1";
/// The schema of `Flows`.
pub const FLOWS: &str = "meshd.flows/1";
/// The schema of `Check`.
pub const CHECK: &str = "meshd.check/1";
/// The schema of `Lock`.
pub const LOCK: &str = "meshd.lock/1";
/// The schema of `Done`.
pub const DONE: &str = "meshd.done/1";
/// The schema of `Failure`.
pub const ERROR: &str = "meshd.error/1";

/// Everything meshd knows of itself: `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `STATUS`.
    pub schema: String,
    /// The version of the running meshd.
    pub version: String,
    /// How it is, in a word.
    pub state: Health,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Who it is in the mesh; absent until it has joined.
    pub node: Option<NodeStatus>,
    /// Its control channel.
    pub coordinator: CoordinatorStatus,
    /// The other nodes, by name.
    pub peers: Vec<PeerStatus>,
    /// The services, by namespace and name.
    pub services: Vec<ServiceStatus>,
    /// Packets refused or dropped since the start, by reason.
    pub drops: BTreeMap<String, u64>,
    /// What the operator should know, each with what to do about it.
    pub warnings: Vec<String>,
    /// The same, each in its parts; what is an error makes the node degraded.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// The worker threads.
    pub lanes: Vec<LaneStatus>,
    /// The flow table.
    pub flows: FlowCount,
    /// The node's own services.toml.
    pub file: File,
    /// Lines of its log that standard error did not take, since the start.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// The node's own meshd.toml.
    #[serde(default)]
    pub settings: File,
    /// What the state directory did not take: it waits, and is tried again until it is stored.
    #[serde(default)]
    pub unstored: Vec<UnstoredFile>,
    /// How often the state directory refused something, since the start.
    #[serde(default)]
    pub store_failures: u64,
    /// What meshd keeps set in the kernel.
    #[serde(default)]
    pub upkeep: UpkeepStatus,
}

/// A file of the state directory that is not as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnstoredFile {
    /// Its name.
    pub file: String,
    /// Why, what to do, and what a restart does until then.
    pub error: String,
    /// Seconds for which it has waited.
    pub age_s: u64,
    /// How often it was tried.
    pub attempts: u64,
}

/// What meshd keeps set in the kernel: device, addresses, rule, routes, guards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpkeepStatus {
    /// How often something had to be put back, since the start.
    pub mended: u64,
    /// What was put back last.
    pub last_mended: Vec<String>,
    /// What cannot be put back, each with why; it is tried again each second.
    pub failed: Vec<String>,
    /// Whether that stops packets.
    pub stopped: bool,
}

/// How a node is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It has not joined a mesh.
    NotJoined,
    /// It forwards, and nothing stands in the way.
    Ok,
    /// It does not forward, or something stands in the way: see `warnings`.
    Degraded,
    /// A word that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its address in the mesh.
    pub address: Flat,
    /// The mesh.
    pub mesh: MeshName,
    /// The range of all mesh addresses.
    pub range: MeshRange,
    /// Its pod blocks and their images.
    pub blocks: Vec<BlockMap>,
    /// Its DNS address.
    pub dns: Flat,
    /// Whether masquerading cannot erase its pods' addresses.
    pub guarded: bool,
    /// Whether its tunnels have preshared keys.
    #[serde(default)]
    pub preshared: PresharedStatus,
}

/// How a node stands to preshared keys, in a word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresharedStatus {
    /// It has none with anybody.
    Off,
    /// It was switched on or off, and the coordinator does not know yet: it has those that it has.
    Waits,
    /// It makes them, and speaks plain WireGuard with peers that may not have heard of it.
    Begins,
    /// It has one with every peer that can have one.
    On,
    /// A word that this version does not know, or none by a version that did not say.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The control channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// Whether it is up.
    pub connected: bool,
    /// The revision in force on this node.
    pub revision: Revision,
    /// The coordinator's address, of the channel that is up or was tried last.
    pub address: Option<String>,
    /// All addresses that are tried: those that the newest map or token names, then those that once worked.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Seconds since the coordinator was last heard.
    pub last_heard_s: Option<u64>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// How many records of peers this node refused since it started.
    #[serde(default)]
    pub records_refused: u64,
    /// The key that has to have signed for every peer, if this node ever saw the mesh locked.
    pub lock: Option<IdentityKey>,
    /// The last entry of the coordinator's log of operations that this node was told of.
    pub log: Option<LogPosition>,
    /// How often the log was not what it should be, since the start: see `warnings`.
    #[serde(default)]
    pub log_alarms: u64,
}

/// How the mesh is locked: `GET /v1/lock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockStatus {
    /// `LOCK`.
    pub schema: String,
    /// The mesh.
    pub mesh: MeshName,
    /// The key that has to have signed for every peer of this node; none if it never saw one.
    pub lock: Option<IdentityKey>,
    /// This node.
    pub node: NodeName,
    /// Its own key, for whoever signs to compare.
    pub identity: IdentityKey,
    /// Nodes that wait for a signature, as the coordinator tells it.
    pub waiting: Vec<LockedMember>,
    /// Admitted nodes that need another signature before they may change their identity again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aged: Vec<LockedMember>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its address in the mesh.
    pub address: Flat,
    /// Where its packets go; absent until something answered.
    pub endpoint: Option<SocketAddr>,
    /// The round trip through the tunnel, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// How often it was measured since meshd started.
    #[serde(default)]
    pub rtt_count: u64,
    /// Seconds since the last handshake.
    pub last_handshake_s: Option<u64>,
    /// Whether packets to it are sealed with a preshared key that the two made by ML-KEM-768.
    #[serde(default)]
    pub post_quantum: bool,
    /// Seconds for which it has not answered what this node sent; absent while it answers, or was not sent anything.
    pub not_answering_s: Option<u64>,
    /// Seconds since this node had a packet for it; absent if it never had.
    pub wanted_s: Option<u64>,
    /// Bytes received through the tunnel.
    pub rx_bytes: u64,
    /// Bytes sent through the tunnel.
    pub tx_bytes: u64,
    /// The largest packet that is sent to it, in bytes.
    #[serde(default)]
    pub mtu: u16,
    /// Seconds for which larger packets are known to vanish on the way to it, although both ends and their networks would
    /// take them; absent while none do.
    #[serde(default)]
    pub narrow_s: Option<u64>,
}

/// A service as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its bare name.
    pub name: ServiceName,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its address in the mesh.
    pub vip: Flat,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its live backends.
    pub backends: Vec<BackendStatus>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name, where the service has several.
    pub name: Option<String>,
    /// Its protocol.
    pub transport: Transport,
    /// What callers dial.
    pub port: u16,
    /// What backends listen on.
    pub target: u16,
}

/// A backend of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its name in the file; where it has none, its node's.
    pub name: String,
    /// The node that carries it.
    pub node: NodeName,
    /// Its address in the mesh.
    pub address: Flat,
    /// Its share of new connections.
    pub weight: u32,
    /// Seconds for which its node has not answered this one; absent while it answers, or was not sent anything. New
    /// connections go to other backends meanwhile, if one of them answers.
    pub not_answering_s: Option<u64>,
    /// Connections from this node to it that are alive.
    pub connections: u64,
}

/// A worker thread. Its counts begin at the start of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneStatus {
    /// Its number.
    pub lane: usize,
    /// Packets read from the interface; a super-packet counts as the packets that it was split into.
    pub tun_rx_packets: u64,
    /// Their bytes, a super-packet's headers once.
    pub tun_rx_bytes: u64,
    /// Super-packets among them.
    pub tun_rx_super_packets: u64,
    /// Packets that these were split into.
    pub tun_rx_super_segments: u64,
    /// Packets written to the interface; a super-packet counts as the packets that it was gathered from.
    pub tun_tx_packets: u64,
    /// Their bytes, a super-packet's headers once.
    pub tun_tx_bytes: u64,
    /// Super-packets among them.
    pub tun_tx_super_packets: u64,
    /// Packets that these were gathered from.
    pub tun_tx_super_segments: u64,
    /// Super-packets that the kernel refused, so that their packets went singly.
    pub tun_fallbacks: u64,
    /// Datagrams received.
    pub udp_rx_packets: u64,
    /// Their bytes.
    pub udp_rx_bytes: u64,
    /// Messages in which the kernel had joined several datagrams.
    pub udp_rx_super_packets: u64,
    /// Datagrams in these.
    pub udp_rx_super_segments: u64,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub udp_rx_overflows: u64,
    /// Datagrams sent.
    pub udp_tx_packets: u64,
    /// Their bytes.
    pub udp_tx_bytes: u64,
    /// Messages that the kernel divided into several datagrams.
    pub udp_tx_super_packets: u64,
    /// Datagrams in these.
    pub udp_tx_super_segments: u64,
    /// Messages of several datagrams that the kernel refused, so that they went singly.
    pub udp_fallbacks: u64,
    /// Data messages that did not authenticate, or that were seen before.
    pub decrypt_failures: u64,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Packets that lane 0 sent for it, because it had no session.
    pub handovers: u64,
    /// What the kernel does for it, and what it was not asked to do or cannot: `tun_tcp`, `tun_udp` (super-packets on the
    /// interface), `udp_segment`, `udp_gro` (several datagrams per message).
    pub offloads: BTreeMap<String, bool>,
    /// Packets refused or dropped, by reason; reasons never met are absent.
    pub drops: BTreeMap<String, u64>,
}

/// How full the flow table is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCount {
    /// Flows in it.
    pub used: usize,
    /// Flows it can hold.
    pub slots: usize,
    /// Flows that had to go for others since the start.
    #[serde(default)]
    pub displaced: u64,
}

/// The state of a configuration file that is watched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its path.
    pub path: String,
    /// Whether the file on disk is the one in force.
    pub in_force: bool,
    /// What is wrong with the file on disk.
    pub error: Option<String>,
    /// Seconds for which it has been wrong.
    pub error_age_s: Option<u64>,
}

/// `GET /v1/peers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeersStatus {
    /// `PEERS`.
    pub schema: String,
    /// The other nodes, by name.
    pub peers: Vec<PeerStatus>,
}

/// `GET /v1/services`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesStatus {
    /// `SERVICES`.
    pub schema: String,
    /// The services, by namespace and name.
    pub services: Vec<ServiceStatus>,
}

/// `GET /v1/resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// `RESOLVE`.
    pub schema: String,
    /// What was asked.
    pub name: String,
    /// The addresses; empty if the name exists without one.
    pub addresses: Vec<Ipv4Addr>,
    /// What the name is: `service`, `node`.
    pub kind: String,
    /// The full name.
    pub full_name: String,
}

/// `GET /v1/why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// `WHY`.
    pub schema: String,
    /// Who calls, as asked.
    pub source: String,
    /// The caller's address that was judged.
    pub source_address: Ipv4Addr,
    /// What is called, as asked.
    pub destination: String,
    /// The called address that was judged.
    pub destination_address: Ipv4Addr,
    /// The protocol's name.
    pub transport: String,
    /// The port, 0 where the protocol has none.
    pub port: u16,
    /// Whether packets get through.
    pub allowed: bool,
    /// `forward`, `deliver`, `not_answering`, or the reason why it is refused or dropped.
    pub verdict: String,
    /// The engine's steps, in order, up to the one that decided.
    pub steps: Vec<WhyStep>,
    /// The rule that allows it.
    pub rule: Option<RuleAt>,
    /// The rule that is missing, as the operator would write it: the narrowest that there is.
    pub missing: Option<String>,
    /// What that rule opens beside what was asked; none if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wider: Option<String>,
    /// The backend that the next connection would get.
    pub backend: Option<WhyBackend>,
    /// The node that it would go to.
    pub peer: Option<NodeName>,
}

/// One step of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyStep {
    /// Its name.
    pub name: String,
    /// What came of it.
    pub outcome: String,
    /// Whether the packet went on.
    pub ok: bool,
}

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleAt {
    /// The file.
    pub file: String,
    /// The line.
    pub line: u32,
}

/// A backend that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyBackend {
    /// The node that carries it.
    pub node: NodeName,
    /// Its address in the mesh.
    pub address: Flat,
    /// The port it listens on.
    pub port: u16,
}

/// `GET /v1/flows`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// `FLOWS`.
    pub schema: String,
    /// The live flows, bounded by the table's size.
    pub flows: Vec<FlowStatus>,
}

/// A live flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// The protocol's name.
    pub transport: String,
    /// Who called, `address:port`.
    pub source: String,
    /// What was dialled, `address:port`.
    pub destination: String,
    /// Where it goes, `address:port`.
    pub backend: String,
    /// The other node; absent for a flow that stays on this node.
    pub peer: Option<NodeName>,
    /// Seconds since its last packet.
    pub idle_s: u64,
}

/// What `meshd check` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// `CHECK`.
    pub schema: String,
    /// What will not work, each with what to do.
    pub errors: Vec<String>,
    /// What may not work as expected, each with what to do.
    pub warnings: Vec<String>,
    /// What is good to know, and needs no mending: what a guard does not hold on this host, and what it dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Both again, each in its parts; mistakes of services.toml are among the errors alone.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Those of the notes that have a word of their own, each in its parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named_notes: Vec<Note>,
    /// What `--fix` ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixed: Vec<Fixed>,
}

/// Something that is good to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What it is, in a word that stays the same.
    pub id: String,
    /// What it is and what it means.
    pub cause: String,
    /// The command that would have it otherwise; empty if there is no single one.
    pub command: String,
}

impl Note {
    /// Says what it is, and what would have it otherwise.
    pub fn sentence(&self) -> String {
        with_command(&self.cause, &self.command)
    }
}

/// A command that `meshd check --fix` ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixed {
    /// The problem's word.
    pub id: String,
    /// The command.
    pub command: String,
    /// Why it failed; absent if it ended with 0.
    pub error: Option<String>,
}

fn with_command(cause: &str, command: &str) -> String {
    match command {
        "" => cause.to_owned(),
        command => format!("{cause}; run `{command}`"),
    }
}

/// Something that does not work, or may not: a line of `meshd check` or `meshd status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it is, in a word that stays the same.
    pub id: String,
    /// Whether it keeps this node from working.
    pub is_error: bool,
    /// What it is and what it does.
    pub cause: String,
    /// The command that mends it; empty if there is no single one.
    pub command: String,
    /// Whether the command touches nothing but what is of the mesh, so that `--fix` may run it.
    #[serde(default)]
    pub safe: bool,
}

impl Problem {
    /// Says what it is, and what mends it.
    pub fn sentence(&self) -> String {
        with_command(&self.cause, &self.command)
    }
}

/// The answer to a command that changes something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// `DONE`.
    pub schema: String,
    /// What was done, in sentences.
    pub done: Vec<String>,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `ERROR`.
    pub schema: String,
    /// A word for programs.
    pub error: ErrorCode,
    /// A sentence for people that ends with what to do.
    pub message: String,
}
