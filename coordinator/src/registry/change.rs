//! What may be asked of the registry, by whom, and what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, MeshName, NodeName, Revision, ServiceKey, SiteName};
use mesh_proto::services::Services;
use mesh_proto::trust::join_token::TokenSecret;
use mesh_proto::trust::network_lock::LockChange;
use mesh_proto::trust::signed_record::{Epoch, NextKey, Signature, SignedRecord};
use mesh_proto::wire::{ErrorCode, JoinRequest, NodeFacts, Renewal};
use serde::{Deserialize, Serialize};

use super::state::keys::Revoked;
use super::state::oidc::SpentTokens;
use super::state::tokens::TokenRecords;

/// All that can alter the mesh.
#[derive(Debug, Clone)]
pub enum Change {
    /// A services.toml that was read and checked.
    Services {
        /// The path of the file, as the operator wrote it.
        file: String,
        /// Its text, to be kept.
        text: String,
        /// What it says.
        services: Arc<Services>,
    },
    /// A new join token.
    TokenCreate(TokenSpec),
    /// Makes a join token worthless.
    TokenRevoke {
        /// The token's public half.
        id: String,
    },
    /// A machine asks to become a member.
    Join {
        /// The key that the channel proved.
        identity: IdentityKey,
        /// What it asks.
        request: JoinRequest,
        /// The address it comes from.
        observed: IpAddr,
    },
    /// A machine asks to become a member, and an issuer that is trusted vouches for it.
    Vouched {
        /// The key that the channel proved.
        identity: IdentityKey,
        /// What the issuer says, checked.
        vouched: Vouched,
        /// What the machine says of itself.
        facts: NodeFacts,
        /// The address it comes from.
        observed: IpAddr,
    },
    /// The keys of an issuer.
    TrustPush {
        /// The name of its `[[trust]]`.
        trust: String,
        /// Its JWKS.
        jwks: String,
    },
    /// A member says what it is.
    Facts {
        /// The key that the channel proved.
        identity: IdentityKey,
        /// What it says.
        facts: NodeFacts,
        /// The address it comes from.
        observed: IpAddr,
    },
    /// A member goes on with another identity key.
    Renew {
        /// The key that the channel proved: the former one.
        identity: IdentityKey,
        /// What both keys signed, and what the node says of itself with the next one.
        renewal: Renewal,
        /// The address it comes from.
        observed: IpAddr,
    },
    /// Notes which nodes are connected, and takes ephemeral ones out that were not heard of for 10 minutes.
    Tend {
        /// The nodes that are connected.
        connected: BTreeSet<NodeName>,
        /// What was seen of ephemeral nodes.
        seen: BTreeMap<NodeName, Sighting>,
    },
    /// Expels a member for good: its identity is never admitted again.
    Revoke {
        /// The member.
        node: NodeName,
    },
    /// A backup took the place of the store.
    Restored {
        /// The least epoch to go on with.
        epoch: u64,
        /// Where the state comes from, as a sentence.
        source: String,
        /// What was taken away since, as far as it is known, and does not come back.
        since: Option<Withdrawn>,
    },
    /// A coordinator says where nodes reach it.
    Coordinator {
        /// Its key.
        key: IdentityKey,
        /// Its addresses, as `host:port`.
        addresses: Vec<String>,
        /// Its version.
        software: String,
        /// Whether it has the store for itself, so that there are no others.
        is_alone: bool,
    },
    /// Begins, changes or ends lock mode, or admits a node under it.
    Lock(LockStep),
    /// A coordinator will go on with another key.
    CoordinatorNext {
        /// Its present key.
        key: IdentityKey,
        /// The next one, signed by the present.
        next: NextKey,
    },
    /// A coordinator does not serve the mesh any more.
    CoordinatorForget {
        /// Its key.
        key: IdentityKey,
    },
}

impl Change {
    /// Says whether it only takes rights away, which is done on a full disk too.
    pub(super) fn takes_rights(&self) -> bool {
        match self {
            Self::Revoke { .. } | Self::TokenRevoke { .. } | Self::CoordinatorForget { .. } => true,
            Self::Services { .. }
            | Self::TokenCreate(_)
            | Self::Join { .. }
            | Self::Vouched { .. }
            | Self::TrustPush { .. }
            | Self::Facts { .. }
            | Self::Renew { .. }
            | Self::Coordinator { .. }
            | Self::CoordinatorNext { .. }
            | Self::Restored { .. }
            | Self::Lock(_)
            | Self::Tend { .. } => false,
        }
    }
}

/// Who makes a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A user of this machine, over the admin socket.
    Operator {
        /// The user's number, as the kernel says it.
        uid: u32,
    },
    /// services.toml, as it lies on disk.
    File,
    /// A member of the mesh, over its channel.
    Node(NodeName),
    /// Somebody who is no member, over a channel from this address.
    Stranger(IpAddr),
    /// The coordinator itself, when a time has come.
    Coordinator,
}

impl Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator { uid } => write!(f, "operator:{uid}"),
            Self::File => f.write_str("services.toml"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Stranger(address) => write!(f, "stranger:{address}"),
            Self::Coordinator => f.write_str("coordinator"),
        }
    }
}

/// What a new token is for. Its entropy comes from the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSpec {
    /// Its public half, 64 random bits.
    pub id: [u8; 8],
    /// Its secret half, 256 random bits.
    pub secret: TokenSecret,
    /// The site of the nodes that it admits.
    pub site: SiteName,
    /// The name of the node that it admits; the node's own choice if `None`.
    pub name: Option<NodeName>,
    /// The services that these nodes may offer to serve although the file does not name them as backends.
    pub serve: Vec<ServiceKey>,
    /// How long it lives: 1 s to 90 days.
    pub ttl: Duration,
    /// How many nodes it admits: 1 to 1000, and 1 if it has a name.
    pub uses: u32,
    /// Whether these nodes vanish 10 minutes after their last contact.
    pub ephemeral: bool,
}

/// What an issuer that is trusted says of a machine, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// Whether the machine asked to vanish 10 minutes after its last contact.
    pub ephemeral: bool,
    /// The `[[trust]]` that it was taken by.
    pub trust: String,
    /// Whom the issuer speaks of.
    pub subject: String,
    /// The node's name.
    pub node: NodeName,
    /// Its site.
    pub site: SiteName,
    /// The services that it may offer to serve.
    pub serve: Vec<ServiceKey>,
    /// What tells this token from all others, in hexadecimal digits.
    pub mark: String,
    /// When the token is worthless anyway.
    pub over: UnixTime,
}

/// A contact, and since when it is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// As it is stored, by the clock of whoever stored it.
    pub(super) contact: UnixTime,
    /// By our own clock; the beginning of the run at the earliest.
    pub(super) since: UnixTime,
}

/// Signatures by the names of the nodes that they admit.
pub type Signatures = BTreeMap<NodeName, Signature>;

/// A step of lock mode.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockStep {
    /// Lock mode begins.
    Begin {
        /// The public half of the lock's key.
        key: IdentityKey,
        /// It signed for every node that is there.
        signatures: Signatures,
    },
    /// Another key takes the lock's place, or lock mode ends.
    Change {
        /// What the present key says.
        change: LockChange,
        /// The new key signed for every node that is admitted; empty if there is none.
        signatures: Signatures,
    },
    /// Lock mode ends without a word of its key, which is lost: nodes hold to it until each is told otherwise.
    Abandon,
    /// A node that waits is admitted.
    Admit {
        /// The node.
        node: NodeName,
        /// The lock's signature for it.
        signature: Signature,
    },
}

impl LockStep {
    /// Returns a word for the log.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Begin { .. } => "lock_init",
            Self::Change { change, .. } if change.to.is_some() => "lock_replace",
            Self::Change { .. } => "lock_disable",
            Self::Abandon => "lock_abandon",
            Self::Admit { .. } => "lock_sign",
        }
    }

    /// Returns a sentence for the log.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Begin { key, signatures } => {
                format!("locked the mesh with the key {key}, which signed for {} nodes", signatures.len())
            }
            Self::Change { change: LockChange { from, to: Some(to), .. }, signatures } => {
                format!("replaced the lock {from} by {to}, which signed for {} nodes", signatures.len())
            }
            Self::Change { change: LockChange { from, to: None, .. }, .. } => format!("ended the lock {from}"),
            Self::Abandon => "gave the lock up without its key".into(),
            Self::Admit { node, signature: _ } => format!("the lock's key admitted node {node}"),
        }
    }

    /// Returns the node that it is about.
    pub(super) fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Admit { node, .. } => Some(node),
            Self::Begin { .. } | Self::Change { .. } | Self::Abandon => None,
        }
    }
}

/// What a store knows of rights that were taken away or used up.
#[derive(Debug, Clone)]
pub struct Withdrawn {
    pub(super) epoch: u64,
    pub(super) revision: Revision,
    pub(super) revoked: Arc<BTreeMap<IdentityKey, Revoked>>,
    pub(super) spent: Arc<SpentTokens>,
    pub(super) tokens: Arc<TokenRecords>,
}

impl Withdrawn {
    /// Returns the revision that it is of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns the newer one of two.
    #[must_use]
    pub fn newer(self, other: Self) -> Self {
        if other.is_newer(self.epoch, self.revision) { other } else { self }
    }

    /// Says whether it is as new as a state, or newer.
    pub(super) fn is_newer(&self, epoch: u64, revision: Revision) -> bool {
        (self.epoch, self.revision) >= (epoch, revision)
    }
}

/// What a change led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The revision in force afterwards.
    pub revision: Revision,
    /// Whether the change altered anything, and so made a new revision.
    pub altered: bool,
    /// The node that joined, reported or was revoked.
    pub node: Option<NodeName>,
    /// What was not taken of an otherwise good change, in sentences.
    pub refused: Vec<String>,
}

/// Why a change was refused; nothing of it happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// A word for programs: the `error` of `wire::ErrorBody`.
    pub code: ErrorCode,
    /// A sentence for people that ends with what to do.
    pub message: String,
    /// What the node signed that is refused another record: it may have forgotten that.
    pub record: Option<Box<SignedRecord>>,
}

impl Refused {
    /// Makes a refusal.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message, record: None }
    }
}

/// Reads a services.toml: its text and its path. The error is a message for the operator.
pub type Parse = fn(&str, &str) -> Result<Services, String>;

/// What a registry needs to know apart from what it stores.
#[derive(Debug, Clone)]
pub struct RegistrySetup {
    /// The name of the mesh while services.toml says none.
    pub name: MeshName,
    /// The coordinator's own underlay addresses, which no pod block may contain.
    pub underlay: Vec<IpAddr>,
    /// Reads the stored services.toml.
    pub parse: Parse,
    /// The last epoch that the coordinator's key signed.
    pub epoch: Epoch,
}
