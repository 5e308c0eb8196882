//! How a member goes on with another identity key, and what its former keys are worth afterwards: nothing.
//!
//! ```text
//!   A asks, over a channel that proves A ─▶ record: identity B, lineage … A→B      one transaction
//!                                       └─▶ revoked: A, with the succession A→B    (never admitted again)
//! ```
//! The same succession may be asked for again, by the former key: its first answer may have been lost.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_host::identity::verify;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, NodeName};
use mesh_proto::trust::identity_rotation::{MAX_LINEAGE, Succession, ancestors};
use mesh_proto::trust::network_lock::{LockedMember, Subject};
use mesh_proto::wire::{ErrorCode, Renewal};
use mesh_proto::world::{NodeRecord, World};

use super::change::Refused;
use super::claims;
use super::join_token::Speaker;
use super::state::State;
use super::state::keys::Revoked;

/// Most changes of one node in so many seconds: each keeps a key for ever, and takes a line of the log that may not be
/// left out.
const CHANGES: (u64, usize) = (86_400, 10);

impl State {
    /// Lets a member go on with another identity. Returns its name, and what was refused of its facts.
    pub(super) fn renew(
        &mut self,
        (identity, observed): Speaker,
        renewal: Renewal,
        underlay: &[IpAddr],
        now: UnixTime,
    ) -> Result<(NodeName, Vec<String>), Refused> {
        let Renewal { succession, facts } = renewal;
        if self.is_done(&identity, &succession)
            && let Some(name) = self.world.member(&succession.to)
        {
            return Ok((name.clone(), Vec::new()));
        }
        self.check_revoked(&identity)?;
        let Some(name) = self.world.member(&identity).cloned() else {
            let text = "this node is no member of the mesh; join again with a token of mesh-coordinator token create";
            return Err(Refused::new(ErrorCode::UnknownNode, text));
        };
        self.check_renewal(&name, &facts)?;
        self.check_succession(&name, &identity, &succession, now)?;
        // The record is taken as a whole, or the node would go on with one that the former key signed.
        let whole = claims::limits(&facts).map_err(|refused| refused.message);
        let whole =
            whole.and_then(|()| claims::lanes(&self.world, &name, &facts)).and_then(|()| self.check_keys(&facts));
        whole.map_err(|problem| Refused::new(ErrorCode::Identity, problem))?;

        if let Some(known) = self.world.nodes.get(&name).cloned() {
            let record = succeeded(&known, succession);
            if !self.is_admitted_still(&name, &known, &record) {
                let text = format!(
                    "this node changed its identity {MAX_LINEAGE} times since the lock's key signed for it; run `meshd lock sign {name}` where the lock's key lies, and ask again"
                );
                return Err(Refused::new(ErrorCode::Identity, text));
            }
            self.supersede(&name, record, succession, now);
        }
        self.pass_tokens_on(&succession);
        let refused = self.accept(&name, facts, observed, underlay, now);
        Ok((name, refused))
    }

    /// Says whether this very succession was taken.
    fn is_done(&self, identity: &IdentityKey, succession: &Succession) -> bool {
        let known = self.revoked.get(identity).and_then(|entry| entry.succession);
        known.is_some_and(|known| known.from == *identity && known.to == succession.to)
    }

    fn check_succession(
        &self,
        name: &NodeName,
        identity: &IdentityKey,
        succession: &Succession,
        now: UnixTime,
    ) -> Result<(), Refused> {
        let refuse = |text: &str| Err(Refused::new(ErrorCode::Identity, text));
        let Some(known) = self.world.nodes.get(name) else { return Ok(()) };
        if succession.from != *identity || !succession.is_good(known.id, verify) {
            return refuse(
                "the present and the next identity key did not both sign for this change; are both ends of one version?",
            );
        }
        let to = &succession.to;
        let is_coordinators =
            self.coordinators.iter().any(|(key, record)| key == to || record.next.is_some_and(|next| next.key == *to));
        if self.world.member(to).is_some() || self.revoked.contains_key(to) || is_coordinators {
            return refuse("the next identity key is known already; run meshd rotate --identity again to make another");
        }
        let (window, most) = CHANGES;
        let is_new = |link: &&Succession| {
            let at = self.revoked.get(&link.from).map(|entry| entry.at);
            at.is_some_and(|at| now.0.saturating_sub(at.0) < window)
        };
        if known.lineage.iter().filter(is_new).count() >= most {
            let text = format!("this node changed its identity {most} times within a day; try again tomorrow");
            return refuse(&text);
        }
        Ok(())
    }

    /// Says whether nodes that hold to the lock will believe in a member as they did before.
    fn is_admitted_still(&self, name: &NodeName, before: &NodeRecord, after: &NodeRecord) -> bool {
        let is_cut = after.lineage.len() <= before.lineage.len();
        !is_cut || self.world.waits(before) || is_signed(&self.world, name, after)
    }

    /// Puts another identity in force, and the former out of it for good.
    fn supersede(&mut self, name: &NodeName, record: NodeRecord, succession: Succession, now: UnixTime) {
        // Its tunnel keys are the node's still.
        let entry = Revoked { name: name.clone(), at: now, tunnels: Vec::new(), succession: Some(succession) };
        Arc::make_mut(&mut self.revoked).insert(succession.from, entry);
        Arc::make_mut(&mut self.world).insert_node(name.clone(), record);
    }

    /// Follows the successions that a newer state knows of: its nodes went on, and were not expelled for that.
    pub(super) fn follow_successions(&mut self) {
        let followed = |identity: IdentityKey| {
            let next = |at: &IdentityKey| self.revoked.get(at)?.succession;
            std::iter::successors(next(&identity), move |link| next(&link.to)).take(self.revoked.len()).collect()
        };
        let records = self.world.nodes.iter().filter_map(|(name, record)| {
            let links: Vec<Succession> = followed(record.identity?);
            (!links.is_empty()).then(|| {
                let after = links.into_iter().fold(NodeRecord::clone(record), |record, link| succeeded(&record, link));
                (name.clone(), after)
            })
        });
        let records: Vec<_> = records.collect();
        for (name, record) in records {
            Arc::make_mut(&mut self.world).insert_node(name, record);
        }
    }

    pub(super) fn successor(&self, identity: &IdentityKey) -> Option<&NodeName> {
        let next = |at: &IdentityKey| Some(self.revoked.get(at)?.succession?.to);
        let last = std::iter::successors(next(identity), next).take(self.revoked.len()).last()?;
        self.world.member(&last)
    }

    /// Refuses an identity that a member replaced by another.
    pub(super) fn check_superseded(&self, identity: &IdentityKey) -> Result<(), Refused> {
        let Some(name) = self.successor(identity) else { return Ok(()) };
        Err(Refused::new(ErrorCode::Superseded, superseded(name)))
    }
}

/// Says what is wrong with an identity that a member replaced by another.
pub(crate) fn superseded(name: &NodeName) -> String {
    format!(
        "the node `{name}` replaced this identity key by another: is this a copy of its state directory, or a backup of it? Look for it; to bring this machine in as a node of its own, run `meshd leave` there, and join with a new token; if somebody else has the key, run `mesh-coordinator revoke {name}`"
    )
}

/// Returns a record with the next identity. Of too many links the oldest goes.
fn succeeded(known: &NodeRecord, succession: Succession) -> NodeRecord {
    let mut record = NodeRecord { identity: Some(succession.to), ..known.clone() };
    record.lineage.push(succession);
    let surplus = record.lineage.len().saturating_sub(MAX_LINEAGE);
    record.lineage.drain(..surplus);
    record
}

/// Says whether the lock's signature is for one of a member's keys that others know it by.
fn is_signed(world: &World, name: &NodeName, record: &NodeRecord) -> bool {
    let Some(lock) = world.mesh.lock.as_ref().and_then(|lock| lock.key) else { return true };
    let (Some(member), Some(signature), Some(identity)) = (record.member(name), record.countersigned, record.identity)
    else {
        return false;
    };
    let former = ancestors(&record.lineage, record.id, identity, verify);
    let former = former.map(|key| LockedMember { subject: Subject::Identity(key), ..member.clone() });
    std::iter::once(member.clone())
        .chain(former)
        .any(|member| member.is_by(&world.mesh.name, &lock, &signature, verify))
}

/// Returns the admitted members that cannot change their identity again before the lock's key signs for them anew.
pub(crate) fn aged(world: &World) -> impl Iterator<Item = LockedMember> {
    let full = world.nodes.iter().filter(|(_, record)| record.lineage.len() >= MAX_LINEAGE && !world.waits(record));
    full.filter(|(name, record)| {
        let lineage = record.lineage.get(1..).unwrap_or_default().to_vec();
        !is_signed(world, name, &NodeRecord { lineage, ..NodeRecord::clone(record) })
    })
    .filter_map(|(name, record)| record.member(name))
}
