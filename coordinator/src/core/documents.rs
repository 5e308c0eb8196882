//! What the admin socket says, and what `-o json` prints: the same documents.
//!
//! ```text
//! GET    /v1/status            Status          POST   /v1/tokens   NewToken ─▶ TokenLine
//! GET    /v1/nodes             Nodes           DELETE /v1/tokens/ID         ─▶ Done
//! GET    /v1/services          Services        DELETE /v1/nodes/NAME        ─▶ Done
//! GET    /v1/tokens            Tokens          POST   /v1/plan     Proposal ─▶ Plan
//! GET    /v1/trust             Trusts          POST   /v1/trust/NAME NewKeys ─▶ Done
//! DELETE /v1/coordinators/KEY                   ─▶ Done
//! any failure                  wire::ErrorBody POST   /v1/backup   Backup   ─▶ Done
//! GET    /v1/log?since=N&node= Log          GET    /v1/export            all that is stored
//! GET    /v1/lock              Lock            POST   /v1/lock     LockStep ─▶ Done
//! ```
//! Each document carries a `schema`; within one schema fields are only ever added.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::Flat;
use mesh_proto::base::block_map::BlockMap;
use mesh_proto::base::id::{
    BackendName, IdentityKey, MeshName, Namespace, NodeName, Revision, ServiceKey, ServiceName, SiteName,
};
use mesh_proto::model::netmap::ServicePort;
use mesh_proto::trust::network_lock::LockedMember;
use serde::{Deserialize, Serialize};

use crate::registry::{LogHead, Logged};

/// The schema of `Status`.
pub const STATUS: &str = "coordinator.status/1";
/// The schema of `Nodes`.
pub const NODES: &str = "coordinator.nodes/1";
/// The schema of `Services`.
pub const SERVICES: &str = "coordinator.services/1";
/// The schema of `Tokens`.
pub const TOKENS: &str = "coordinator.tokens/1";
/// The schema of `Trusts`.
pub const TRUSTS: &str = "coordinator.trusts/1";
/// The schema of `Plan`.
pub const PLAN: &str = "coordinator.plan/1";
/// The schema of `InForceDocument`.
pub const IN_FORCE: &str = "coordinator.in_force/1";
/// The schema of `Log`.
pub const LOG: &str = "coordinator.log/1";
/// The schema of `Lock`.
pub const LOCK: &str = "coordinator.lock/1";
/// The schema of `TokenLine` and `Done`.
pub const DONE: &str = "coordinator.done/1";

/// How the mesh is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusDocument {
    /// `STATUS`.
    pub schema: String,
    /// The name of the mesh.
    pub mesh: MeshName,
    /// The mesh range.
    pub range: Ipv4Net,
    /// The version of the coordinator.
    pub software: String,
    /// The coordinator's public key, which nodes pin.
    pub key: IdentityKey,
    /// Where the control channel listens.
    pub listen: Vec<SocketAddr>,
    /// What join tokens tell nodes to dial.
    pub public: Vec<String>,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The revision in force.
    pub revision: Revision,
    /// Which nodes have it in force.
    pub live: LiveDocument,
    /// Nodes that have not, at most 100.
    #[serde(default)]
    pub behind: Vec<Behind>,
    /// The store's file, or where its etcd is.
    pub store: PathBuf,
    /// Why the store does not answer; none if it does.
    pub store_error: Option<String>,
    /// Whether other coordinators may use the same store.
    #[serde(default)]
    pub shared: bool,
    /// The services.toml.
    pub services: FileStatus,
    /// Words of the text in force that do nothing, a line each with file, line and column; at most 100.
    #[serde(default)]
    pub idle: Vec<String>,
    /// The key that has to sign for every node, if the mesh is locked.
    pub lock: Option<IdentityKey>,
    /// Nodes that wait for its signature, at most 100.
    #[serde(default)]
    pub waiting: Vec<NodeName>,
    /// The coordinators of the mesh.
    #[serde(default)]
    pub coordinators: Vec<Replica>,
    /// Lines of its log that standard error did not take, since the start.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// Connections of peers that are no members, or not yet known, from addresses that no member came from.
    #[serde(default)]
    pub strangers: usize,
    /// Most of these; above it the oldest of the address block with most goes.
    #[serde(default)]
    pub strangers_max: usize,
    /// Sentences for the operator.
    pub warnings: Vec<String>,
}

/// A coordinator of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its key, which nodes pin.
    pub key: IdentityKey,
    /// Where nodes reach it.
    pub addresses: Vec<String>,
    /// Its version, when it started last.
    pub software: String,
    /// When it first served the mesh, in seconds since 1970.
    pub since: u64,
    /// Whether it is the one that answers here.
    pub here: bool,
    /// Whether its first address can be reached from here; none for the one that answers here.
    pub answers: Option<bool>,
}

/// How many nodes have the present revision in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveDocument {
    /// Nodes connected with the present revision in force.
    pub current: usize,
    /// Nodes connected.
    pub connected: usize,
    /// All nodes that have joined.
    pub nodes: usize,
    /// Those of them whose control channel ended, or that did not come since the start; 0 where another coordinator may
    /// have their channels.
    #[serde(default)]
    pub gone: usize,
}

/// A node that has not the present revision in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Its name.
    pub node: NodeName,
    /// Whether it has a watch open.
    pub connected: bool,
    /// The revision that it last said it had in force.
    pub applied: Option<Revision>,
}

/// How the services.toml is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Its path.
    pub path: PathBuf,
    /// What became of it.
    pub state: FileState,
    /// Seconds it has been in that state.
    pub age_s: u64,
    /// Seconds since the text in force was taken, if this process took it.
    pub accepted_age_s: Option<u64>,
    /// What is wrong with it, one line each.
    pub errors: Vec<String>,
    /// The same, drawn with the lines of the file.
    #[serde(default)]
    pub rendered: String,
    /// What the operator should know all the same.
    pub warnings: Vec<String>,
}

/// What became of a services.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// It was not looked at yet.
    Unread,
    /// It is in force.
    Accepted,
    /// It has errors; what was in force before still is.
    Rejected,
    /// It is missing or cannot be read; what was in force before still is.
    Unreadable,
    /// Another coordinator's file is in force, and differs.
    Superseded,
}

/// The nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// `NODES`.
    pub schema: String,
    /// The revision that this was true at.
    pub revision: Revision,
    /// The nodes, by name.
    pub nodes: Vec<NodeDocument>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDocument {
    /// Its name.
    pub name: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its address in the mesh.
    pub address: Flat,
    /// Whether it is a plain WireGuard peer of services.toml, without a control channel.
    pub r#static: bool,
    /// Whether it has a watch open.
    pub connected: bool,
    /// The revision it has in force, if it said.
    pub applied: Option<Revision>,
    /// Its UDP endpoints, the likeliest first.
    pub endpoints: Vec<SocketAddr>,
    /// Its pod blocks and their images.
    pub blocks: Vec<BlockMap>,
    /// Whether its control channel ended, or it did not come since the start.
    #[serde(default)]
    pub gone: bool,
    /// Seconds since it was last heard of; none if it was not since the coordinator started.
    pub last_seen_s: Option<u64>,
    /// The version of its meshd.
    pub software: String,
    /// Whether it waits for the lock's signature.
    #[serde(default)]
    pub waits: bool,
    /// Its identity key; none for a static one.
    pub identity: Option<IdentityKey>,
    /// How often it changed that; the last 16 are counted.
    #[serde(default)]
    pub identity_changes: usize,
    /// Its sentences for the operator.
    pub warnings: Vec<String>,
}

/// The services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesDocument {
    /// `SERVICES`.
    pub schema: String,
    /// The revision that this was true at.
    pub revision: Revision,
    /// The services, by namespace and name.
    pub services: Vec<ServiceDocument>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDocument {
    /// Its bare name.
    pub name: ServiceName,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its address in the mesh.
    pub vip: Flat,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its backends.
    pub backends: Vec<BackendDocument>,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendDocument {
    /// Its name, if it has one.
    pub name: Option<BackendName>,
    /// The node that carries it.
    pub node: NodeName,
    /// Its address in the mesh; none until its node has joined.
    pub address: Option<Flat>,
    /// Its share of new connections.
    pub weight: u32,
    /// Whether nodes are told of it, and its node is not gone.
    pub live: bool,
    /// Whether its node is gone: nodes are told of it, and use others if it does not answer.
    #[serde(default)]
    pub gone: bool,
}

/// The join tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensDocument {
    /// `TOKENS`.
    pub schema: String,
    /// The tokens, by id.
    pub tokens: Vec<TokenDocument>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDocument {
    /// Its public half.
    pub id: String,
    /// The name of the node that it admits.
    pub name: Option<NodeName>,
    /// The site that its nodes belong to.
    pub site: SiteName,
    /// What its nodes may serve.
    pub serve: Vec<ServiceKey>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// Seconds until it ends; 0 if it has ended.
    pub expires_in_s: u64,
    /// How many nodes it still admits.
    pub uses_left: u32,
    /// Whether it still admits a node.
    pub usable: bool,
}

/// Asks for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// The site that its nodes belong to.
    pub site: SiteName,
    /// The name of the node that it admits.
    pub name: Option<NodeName>,
    /// Seconds that it lives.
    pub ttl_s: u64,
    /// What its nodes may serve.
    pub serve: Vec<ServiceKey>,
    /// How many nodes it admits.
    pub uses: u32,
    /// Whether these nodes vanish 10 minutes after their last contact.
    #[serde(default)]
    pub ephemeral: bool,
}

/// A new join token. The one document that carries a secret, hence no `Debug`.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenLine {
    /// `DONE`.
    pub schema: String,
    /// Its public half.
    pub id: String,
    /// The token, the secret included.
    pub token: String,
    /// What the operator should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The issuers that are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuersDocument {
    /// `TRUSTS`.
    pub schema: String,
    /// The issuers, in the order of coordinator.toml.
    pub trusts: Vec<IssuerDocument>,
}

/// An issuer that is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerDocument {
    /// Its name in coordinator.toml.
    pub name: String,
    /// The `iss` of its tokens.
    pub issuer: String,
    /// The `aud` that its tokens must have.
    pub audience: String,
    /// The site of the nodes that it vouches for.
    pub site: SiteName,
    /// The `sub` that its tokens may have.
    pub subjects: Vec<String>,
    /// Where its keys come from: a URL, a file, or `push`.
    pub jwks: String,
    /// How many keys are known; they are fetched when a node joins.
    pub keys: usize,
    /// Seconds since they were taken.
    pub keys_age_s: Option<u64>,
    /// Why newer ones could not be had.
    pub error: Option<String>,
}

/// Brings an issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKeys {
    /// Its JWKS document.
    pub jwks: String,
}

/// Asks what a services.toml would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Its path, for messages.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// What a services.toml would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanDocument {
    /// `PLAN`.
    pub schema: String,
    /// The revision that it was compared with.
    pub revision: Revision,
    /// What would change, and for whom, in sentences; empty if nothing would.
    pub changes: Vec<String>,
    /// What the operator should know all the same.
    pub warnings: Vec<String>,
}

/// A services.toml is in force as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForceDocument {
    /// `IN_FORCE`.
    pub schema: String,
    /// Its path.
    pub file: PathBuf,
    /// The revision that holds it, or a later one.
    pub revision: Revision,
    /// The SHA-256 of its text, as 64 hexadecimal digits.
    pub digest: String,
    /// What the operator should know all the same.
    pub warnings: Vec<String>,
}

/// The header of a copy of the store that tells its revision.
pub const BACKUP_REVISION: &str = "mesh-revision";
/// The header of a copy of the store that tells where the identity key is, which it does not hold.
pub const BACKUP_IDENTITY: &str = "mesh-identity-key";

/// Asks for a copy of the store in a file that the coordinator writes, as an older `mesh-coordinator backup` does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupDocument {
    /// The file to write, absolute; it must not exist.
    pub file: PathBuf,
}

/// Entries of the log of operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// `LOG`.
    pub schema: String,
    /// The last entry of the whole log.
    pub head: LogHead,
    /// The entries, in order.
    pub entries: Vec<Logged>,
    /// The number to ask for next, if there may be more.
    pub next: Option<u64>,
}

/// How the mesh is locked, and who is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockDocument {
    /// `LOCK`.
    pub schema: String,
    /// The name of the mesh.
    pub mesh: MeshName,
    /// The lock; none if there never was one.
    pub lock: Option<mesh_proto::trust::network_lock::NetworkLock>,
    /// The nodes that are admitted, as the lock's key signs them.
    pub members: Vec<LockedMember>,
    /// The nodes that wait for its signature.
    pub waiting: Vec<LockedMember>,
}

/// Asks for another identity key of the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateKey {
    /// Whether to go on with the key that was announced, and not to announce one.
    pub commit: bool,
    /// Whether to do so although some nodes may not know it.
    pub force: bool,
}

/// Something was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneDocument {
    /// `DONE`.
    pub schema: String,
    /// What was done, as a sentence.
    pub message: String,
}

impl DoneDocument {
    /// Says what was done.
    pub fn new(message: impl Into<String>) -> Self {
        Self { schema: DONE.into(), message: message.into() }
    }
}
