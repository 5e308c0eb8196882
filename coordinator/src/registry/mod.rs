//! The registry: the one door through which the mesh can be altered.
//!
//! ```text
//!   apply(change, by, now):   copy ─▶ decide ─▶ store.commit(expected revision, with a log entry) ─▶ visible
//!                                       └─ Refused: a word and a sentence; nothing happened
//! ```
//! Whoever asks, whatever for: the change is decided on a copy of the state, committed in one transaction, and
//! only then seen by anybody. A change that alters nothing costs no write and no revision. Time and entropy
//! come from outside.

mod audit_entry;
mod backup;
mod batch;
pub(crate) mod change;
mod claims;
mod codec;
mod coordinators;
mod ephemeral;
pub mod free_names;
mod history;
pub(crate) mod identity_rotation;
pub(crate) mod join_oidc;
mod join_token;
mod log;
mod network_lock;
mod open_error;
mod presence;
mod refresh;
mod restore;
mod revocations;
mod services;
mod state;
#[cfg(test)]
mod tests;
mod tokens;
mod tunnel_keys;
mod ways_back;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, NodeName, Revision};
use mesh_proto::trust::audit_log::RawEntry;
use mesh_proto::trust::join_token::TokenSecret;
use mesh_proto::trust::signed_record::Epoch;
use mesh_proto::wire::ErrorCode;
use mesh_proto::world::World;
use tokio::sync::watch;

use crate::store::{self, Store, StoreError, StoreState, Write};
use audit_entry::{AuditEntry, LogQuota};
pub use change::{
    Actor, Applied, Change, LockStep, Parse, Refused, RegistrySetup, Sighting, Signatures, TokenSpec, Vouched,
    Withdrawn,
};
pub use ephemeral::Sightings;
use history::History;
pub use log::{Entry, LogHash, LogHead, Logged};
pub use open_error::OpenError;
pub use presence::{LiveNode, Presence};
use refresh::Failed;
pub use revocations::Expelled;
pub use state::Accepted;
use state::State;
pub use state::coordinators::CoordinatorRecord;
pub use state::keys::Revoked;
pub use state::oidc::Pushed;
pub use state::tokens::TokenRecord;

/// Decides about every change, and keeps what was decided.
pub struct Registry {
    store: Box<dyn Store>,
    setup: RegistrySetup,
    state: State,
    history: History,
    live: Presence,
    told: LogQuota,
    failure: Option<String>,
}

impl Registry {
    /// Opens the registry on what the store holds.
    ///
    /// # Errors
    /// If the store cannot be read, holds what this version does not understand, or its log does not verify.
    pub fn open(store: Box<dyn Store>, setup: RegistrySetup) -> Result<Self, OpenError> {
        let state = codec::read(&store.load()?, &setup)?;
        state.log.verify(&*store)?;
        let history = History::new(Arc::clone(&state.world));
        Ok(Self { store, setup, state, history, live: Presence::default(), told: LogQuota::default(), failure: None })
    }

    /// Decides about a change that somebody makes, and makes it durable together with its entry in the log;
    /// what it leads to is visible afterwards.
    ///
    /// # Errors
    /// `Refused` if the change may not happen, or could not be stored; then nothing of it happened.
    pub fn apply(&mut self, change: Change, by: Actor, now: UnixTime) -> Result<Applied, Refused> {
        let mut results = self.apply_all(vec![(change, by)], now);
        results.pop().unwrap_or_else(|| Err(Refused::new(ErrorCode::Internal, "the change was lost; try again")))
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
    pub fn live(&self) -> &Presence {
        &self.live
    }

    /// Returns what is known of connected nodes and not stored, to be noted down.
    pub fn live_mut(&mut self) -> &mut Presence {
        &mut self.live
    }

    /// Replaces the coordinator's own underlay addresses, which no pod block may contain.
    pub fn set_underlay(&mut self, underlay: Vec<IpAddr>) {
        self.setup.underlay = underlay;
    }

    /// Returns the key that has to sign for every node, if the mesh is locked.
    pub fn lock(&self) -> Option<IdentityKey> {
        self.state.locked_by()
    }

    /// Returns who was expelled until now.
    pub fn expelled(&self) -> Expelled {
        Expelled { world: self.world(), revoked: Arc::clone(&self.state.revoked) }
    }

    /// Returns which member went on from this identity to another, if one did.
    pub fn successor(&self, identity: &IdentityKey) -> Option<&NodeName> {
        self.state.successor(identity)
    }

    /// Returns what must not come back with an older state.
    pub fn withdrawn(&self) -> Withdrawn {
        let State { epoch, revoked, spent, tokens, .. } = self.state.clone();
        Withdrawn { epoch, revision: self.state.world.revision, revoked, spent, tokens }
    }

    /// Returns when the last entry of the log was written.
    pub fn last_entry(&self) -> Option<UnixTime> {
        let entries = self.log(self.log_head().seq).ok()?;
        entries.last().map(|logged| logged.entry.at)
    }

    /// Says whether what must not come back is as new as what the registry holds, or newer.
    pub fn is_behind(&self, withdrawn: &Withdrawn) -> bool {
        withdrawn.is_newer(self.state.epoch, self.state.world.revision)
    }

    /// Writes all that is stored into a new file, and returns the revision it is of.
    ///
    /// # Errors
    /// If the file exists or cannot be written; then no file is left behind.
    pub fn backup(&self, path: &Path) -> Result<Revision, StoreError> {
        let (revision, writes) = self.snapshot()?;
        store::copy(path, revision, &writes)?;
        Ok(revision)
    }

    /// Returns the present revision, and the writes that lead to it from nothing, the log included.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn snapshot(&self) -> Result<(Revision, Vec<Write>), StoreError> {
        backup::snapshot(&*self.store)
    }

    /// Takes up what other coordinators committed. Says whether there was anything.
    ///
    /// # Errors
    /// If the store does not answer, or holds what this version does not understand.
    pub fn refresh(&mut self) -> Result<bool, OpenError> {
        let newest = self.store.newest()?;
        if newest.is_none_or(|newest| newest == self.state.world.revision) {
            return Ok(false);
        }
        self.reload()
    }

    /// Returns what is seen of others' commits; none if nobody else can write to the store.
    pub fn follow(&self) -> Option<watch::Receiver<StoreState>> {
        self.store.follow()
    }

    /// Decides about changes in turn, and makes all of them durable together with their entries in the log.
    /// With a store that others write to as well each is a transaction of its own.
    pub fn apply_all(&mut self, changes: Vec<(Change, Actor)>, now: UnixTime) -> Vec<Result<Applied, Refused>> {
        if self.follow().is_some() && changes.len() > 1 {
            return changes.into_iter().flat_map(|change| self.apply_all(vec![change], now)).collect();
        }
        if let Some(failure) = &self.failure {
            let refused = Refused::new(ErrorCode::Internal, failure.clone());
            return changes.iter().map(|_| Err(refused.clone())).collect();
        }
        let decided = self.persist(|registry| registry.attempt(&changes, now));
        let results = match decided {
            Ok(results) => results,
            // One alone: whether its refusal stands was looked up.
            Err(Failed::Decided(refused)) => vec![Err(refused)],
            Err(Failed::Stored(error)) => {
                let refused = Refused::from(error);
                return changes.iter().map(|_| Err(refused.clone())).collect();
            }
        };
        for ((change, by), result) in changes.iter().zip(&results) {
            if let Err(refused) = result {
                self.note_refusal(AuditEntry::of(change), by, refused, now);
            }
        }
        results
    }

    /// Writes into the log that somebody failed to join before anything was to be decided, as far as there is room.
    pub(crate) fn note_attempt(&mut self, name: &NodeName, why: &str, by: &Actor, now: UnixTime) {
        self.note(AuditEntry::attempt(name), by, why, now);
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
