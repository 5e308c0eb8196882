//! The registry: the one door through which the mesh can be altered.
//!
//! ```text
//!   apply(change, by, now):   copy ─▶ decide ─▶ store.commit(expected revision, with a log entry) ─▶ visible
//!                                       └─ Refused: a word and a sentence; nothing happened
//! ```
//! Whoever asks, whatever for: the change is decided on a copy of the state, committed in one transaction, and
//! only then seen by anybody. A change that alters nothing costs no write and no revision. Time and entropy
//! come from outside.

mod backup;
mod claims;
mod coordinators;
mod deed;
mod ephemeral;
mod expelled;
mod group;
mod history;
mod join;
mod live;
pub mod lock;
mod log;
pub mod names;
mod records;
mod renewal;
mod restoring;
mod services;
mod sharing;
mod state;
pub(crate) mod succession;
#[cfg(test)]
mod tests;
mod tokens;
pub(crate) mod vouch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, MeshName, NodeName, Revision};
use mesh_proto::services::Services;
use mesh_proto::trust::audit_log::RawEntry;
use mesh_proto::trust::join_token::TokenSecret;
use mesh_proto::trust::signed_record::{Epoch, NextKey};
use mesh_proto::wire::{JoinRequest, NodeFacts, Renewal};
use mesh_proto::world::World;

use crate::store::{Store, StoreError};
pub use coordinators::CoordinatorRecord;
pub use deed::Actor;
use deed::Told;
pub use ephemeral::{Sighting, Sightings};
pub use expelled::Expelled;
use history::History;
pub use live::{Live, LiveNode};
pub use lock::LockStep;
pub use log::{Entry, LogHash, LogHead, Logged};
pub use restoring::Withdrawn;
use state::State;
pub use state::{Accepted, Revoked};
pub use tokens::{TokenRecord, TokenSpec};
pub use vouch::{Pushed, Vouched};

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
    fn takes_rights(&self) -> bool {
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
    pub word: &'static str,
    /// A sentence for people that ends with what to do.
    pub message: String,
}

impl Refused {
    fn new(word: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { word, message }
    }
}

/// Reads a services.toml: its text and its path. The error is a message for the operator.
pub type Parse = fn(&str, &str) -> Result<Services, String>;

/// What a registry needs to know apart from what it stores.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The name of the mesh while services.toml says none.
    pub name: MeshName,
    /// The coordinator's own underlay addresses, which no pod block may contain.
    pub underlay: Vec<IpAddr>,
    /// Reads the stored services.toml.
    pub parse: Parse,
    /// The last epoch that the coordinator's key signed.
    pub epoch: Epoch,
}

/// Why a registry cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record does not read.
    #[error(
        "the stored record {table}/{key} does not read: {detail}; restore a backup (mesh-coordinator restore), or run the version of mesh-coordinator that wrote it"
    )]
    Record {
        /// The record's table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The log of operations was altered, or lost a part.
    #[error(
        "the log of operations does not verify at entry {seq}: {detail}; somebody altered the store, or the disk did: restore a backup (mesh-coordinator restore), and compare the two with mesh-coordinator log"
    )]
    Log {
        /// The number of the first entry that is not as it was written.
        seq: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// The stored services.toml is not understood.
    #[error(
        "the last accepted services.toml, as stored, is not understood: {0}; run the version of mesh-coordinator that accepted it"
    )]
    Services(String),
}

/// Decides about every change, and keeps what was decided.
pub struct Registry {
    store: Box<dyn Store>,
    setup: Setup,
    state: State,
    history: History,
    live: Live,
    told: Told,
    failure: Option<String>,
}

impl Registry {
    /// Opens the registry on what the store holds.
    ///
    /// # Errors
    /// If the store cannot be read, holds what this version does not understand, or its log does not verify.
    pub fn open(store: Box<dyn Store>, setup: Setup) -> Result<Self, OpenError> {
        let state = records::read(&store.load()?, &setup)?;
        state.log.verify(&*store)?;
        let history = History::new(Arc::clone(&state.world));
        Ok(Self { store, setup, state, history, live: Live::default(), told: Told::default(), failure: None })
    }

    /// Decides about a change that somebody makes, and makes it durable together with its entry in the log;
    /// what it leads to is visible afterwards.
    ///
    /// # Errors
    /// `Refused` if the change may not happen, or could not be stored; then nothing of it happened.
    pub fn apply(&mut self, change: Change, by: Actor, now: UnixTime) -> Result<Applied, Refused> {
        let mut results = self.apply_all(vec![(change, by)], now);
        results.pop().unwrap_or_else(|| Err(Refused::new("internal", "the change was lost; try again")))
    }

    /// Returns the world that a change would lead to, without making it happen. Its revision is the present one.
    ///
    /// # Errors
    /// `Refused` if the change may not happen.
    pub fn preview(&self, change: Change, now: UnixTime) -> Result<Arc<World>, Refused> {
        Ok(self.decide(&self.state, change, now)?.0.world)
    }

    /// Returns all that is true at the present revision.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.state.world)
    }

    /// Returns all that was true at one of the last 64 revisions.
    pub fn world_at(&self, revision: Revision) -> Option<Arc<World>> {
        self.history.at(revision)
    }

    /// Returns the name of the member with this identity.
    pub fn member(&self, identity: &IdentityKey) -> Option<&NodeName> {
        self.state.world.member(identity)
    }

    /// Says whether a member with this identity was revoked.
    pub fn is_revoked(&self, identity: &IdentityKey) -> bool {
        self.state.revoked.contains_key(identity)
    }

    /// Returns the join tokens by their public half, those used up or expired of late included.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, &TokenRecord)> {
        self.state.tokens.iter().map(|(id, token)| (&**id, token))
    }

    /// Returns a join token by its public half.
    pub fn token(&self, id: &str) -> Option<&TokenRecord> {
        self.state.tokens.get(id)
    }

    /// Says why a token was refused, for the operator's eyes alone: whoever presented it is told the same always.
    pub fn why_unusable(&self, id: &str, secret: &TokenSecret, now: UnixTime) -> &'static str {
        self.state.why_unusable(id, secret, now)
    }

    /// Returns the keys that were pushed for a `[[trust]]`.
    pub fn pushed(&self, trust: &str) -> Option<&Pushed> {
        self.state.pushed.get(trust)
    }

    /// Says whether an issuer's token was used by another machine.
    pub fn is_spent_by_another(&self, mark: &str, identity: &IdentityKey) -> bool {
        self.state.is_spent_by_another(mark, identity)
    }

    /// Returns the last accepted services.toml.
    pub fn accepted(&self) -> Option<&Accepted> {
        self.state.accepted.as_deref()
    }

    /// Says why only revocations are stored now, if so.
    pub fn shortage(&mut self) -> Option<String> {
        self.store.shortage()
    }

    /// Returns why nothing can be stored any more, if so: a disk that failed to sync may have lost what it was
    /// given, and may say otherwise when it is asked again. Only a new start finds out what is there.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Takes up what the coordinator's key signed for the epoch in force, without which nodes follow into no other.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        Arc::make_mut(&mut self.state.world).epoch = epoch.clone();
        self.setup.epoch = epoch;
    }

    /// Returns the epoch: 1 at first, and more after each restore. Revisions count on within an epoch only.
    pub fn epoch(&self) -> u64 {
        self.state.epoch
    }

    /// Returns the coordinators by their keys.
    pub fn coordinators(&self) -> impl Iterator<Item = (&IdentityKey, &CoordinatorRecord)> {
        self.state.coordinators.iter()
    }

    /// Returns number and hash of the last entry of the log of operations.
    pub fn log_head(&self) -> LogHead {
        self.state.log.head
    }

    /// Returns entries of the log of operations from a number on: the oldest that are kept, at most 1000.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn log(&self, from: u64) -> Result<Vec<Logged>, StoreError> {
        log::page(&*self.store, from)
    }

    /// Returns entries of the log from a number on as they are hashed, at most 1000.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn raw_log(&self, from: u64) -> Result<Vec<RawEntry>, StoreError> {
        log::raw_page(&*self.store, from)
    }

    /// Returns what is known of connected nodes and not stored.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Returns what is known of connected nodes and not stored, to be noted down.
    pub fn live_mut(&mut self) -> &mut Live {
        &mut self.live
    }

    /// Replaces the coordinator's own underlay addresses, which no pod block may contain.
    pub fn set_underlay(&mut self, underlay: Vec<IpAddr>) {
        self.setup.underlay = underlay;
    }

    fn decide(&self, state: &State, change: Change, now: UnixTime) -> Result<(State, Applied), Refused> {
        let mut state = state.clone();
        let mut applied = Applied { revision: state.world.revision, altered: false, node: None, refused: Vec::new() };
        let underlay = &self.setup.underlay;
        match change {
            Change::Services { file, text, services } => {
                let accepted = Accepted { file, text };
                state.set_services(accepted, services, &self.setup.name, now)?;
            }
            Change::TokenCreate(spec) => state.create_token(spec, now)?,
            Change::TokenRevoke { id } => state.revoke_token(&id)?,
            Change::Join { identity, request, observed } => {
                let from = (identity, observed);
                let node = state.join(from, request, underlay, now, &mut applied.refused)?;
                applied.node = Some(node);
            }
            Change::Vouched { identity, vouched, facts, observed } => {
                let from = (identity, observed);
                let node = state.join_vouched(from, vouched, facts, underlay, now, &mut applied.refused)?;
                applied.node = Some(node);
            }
            Change::TrustPush { trust, jwks } => state.push_keys(trust, jwks, now)?,
            Change::Facts { identity, facts, observed } => {
                let (node, refused) = state.report(identity, facts, observed, underlay, now)?;
                applied.node = Some(node);
                applied.refused = refused;
            }
            Change::Renew { identity, renewal, observed } => {
                let (node, refused) = state.renew((identity, observed), renewal, underlay, now)?;
                applied.node = Some(node);
                applied.refused = refused;
            }
            Change::Tend { connected, seen } => state.tend(&connected, &seen, now),
            Change::Revoke { node } => {
                state.revoke(&node, now)?;
                applied.node = Some(node);
            }
            Change::Restored { epoch, source: _, since } => state.restored(epoch, since.as_ref(), now),
            Change::Coordinator { key, addresses, software, is_alone } => {
                state.enter_coordinator(key, addresses, software, is_alone, now)?;
            }
            Change::Lock(step) => applied.node = state.take_lock_step(step)?,
            Change::CoordinatorNext { key, next } => state.announce_key(&key, next)?,
            Change::CoordinatorForget { key } => state.forget_coordinator(&key)?,
        }
        Ok((state, applied))
    }
}
