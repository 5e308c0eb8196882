//! Lock mode: who belongs to the mesh is countersigned by a key that no coordinator holds.
//!
//! ```text
//!   mesh-coordinator lock init ─▶ key FILE, carried to the machines that admit nodes
//!                              └▶ its public half in every map ─▶ pinned by every node that sees it first
//!   a node joins ─▶ waits ─▶ meshd lock sign NODE ─▶ countersigned ─▶ its peers believe in it
//! ```
//! A node that holds to a lock lets go of it only for a statement that the lock's own key signed: whoever has the
//! coordinator has not the key.

use serde::{Deserialize, Serialize};

use crate::base::id::{IdentityKey, MeshName, NodeId, NodeName, SiteName, TunnelKey};
use crate::trust::signed_record::{Signature, Verify};

/// Most statements about former locks that are kept, and looked at.
pub const MAX_CHANGES: usize = 16;
/// Stands before a member.
const MEMBER: &str = "mesh member 1\n";
/// Stands before a statement about the lock itself.
const CHANGE: &str = "mesh lock change 1\n";

/// The lock of a mesh, as every map carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkLock {
    /// The key that countersigns members; none since lock mode was ended.
    pub key: Option<IdentityKey>,
    /// How it came from former keys to this one, the oldest first; at most `MAX_CHANGES`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<LockChange>,
}

/// A statement of a lock's key: another key takes its place, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockChange {
    /// The key that signed this.
    pub from: IdentityKey,
    /// The key from then on; none to end lock mode.
    pub to: Option<IdentityKey>,
    /// Over the label, the mesh and both keys.
    pub signature: Signature,
}

impl LockChange {
    /// Returns the bytes that are signed for a change.
    pub fn message(mesh: &MeshName, from: &IdentityKey, to: Option<&IdentityKey>) -> Vec<u8> {
        let to = to.map_or_else(|| "none".to_owned(), ToString::to_string);
        format!("{CHANGE}{mesh}\n{from}\n{to}").into_bytes()
    }

    /// Says whether the former key signed it.
    pub fn is_good(&self, mesh: &MeshName, verify: Verify) -> bool {
        verify(&self.from, &Self::message(mesh, &self.from, self.to.as_ref()), &self.signature)
    }
}

/// What a node is admitted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The key that a member signs with.
    Identity(IdentityKey),
    /// The tunnel key of a static node, which has no other.
    Tunnel(TunnelKey),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Identity(key) => write!(f, "identity {key}"),
            Self::Tunnel(key) => write!(f, "tunnel key {key}"),
        }
    }
}

/// What the lock's key signs of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedMember {
    /// Its durable number.
    pub id: NodeId,
    /// Its name, which rules mention.
    pub name: NodeName,
    /// Its site, which rules mention too.
    pub site: SiteName,
    /// Its key.
    pub subject: Subject,
}

impl LockedMember {
    /// Returns the bytes that are signed.
    pub fn message(&self, mesh: &MeshName) -> Vec<u8> {
        let Self { id, name, site, subject } = self;
        format!("{MEMBER}{mesh}\n{}\n{name}\n{site}\n{subject}", id.0).into_bytes()
    }

    /// Says whether a lock's key admitted it.
    pub fn is_by(&self, mesh: &MeshName, lock: &IdentityKey, signature: &Signature, verify: Verify) -> bool {
        verify(lock, &self.message(mesh), signature)
    }
}

/// A lock that nobody signed for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the coordinator names {}, but this node holds to the lock {held}, whose key signed no change: somebody may have taken the coordinator over; nodes are admitted by the lock that is known. If the lock was ended on purpose and its key is lost, stop meshd here and run `meshd lock forget`",
    told.map_or_else(|| "no lock".to_owned(), |told| format!("the lock {told}"))
)]
pub struct LockMismatch {
    /// The lock that this node holds to.
    pub held: IdentityKey,
    /// The lock that the map names.
    pub told: Option<IdentityKey>,
}

/// Returns the lock that a node holds to after a map. Who holds to none takes the one that it is told first.
///
/// # Errors
/// `LockMismatch` if the map names another, and the key of the held one signed no change that leads there.
pub fn lock_after(
    held: Option<IdentityKey>,
    told: Option<&NetworkLock>,
    mesh: &MeshName,
    verify: Verify,
) -> Result<Option<IdentityKey>, LockMismatch> {
    let key = told.and_then(|lock| lock.key);
    let Some(mut at) = held.filter(|held| Some(*held) != key) else { return Ok(key) };
    for change in told.into_iter().flat_map(|lock| lock.changes.iter().take(MAX_CHANGES)) {
        if change.from != at || !change.is_good(mesh, verify) {
            continue;
        }
        match change.to {
            Some(next) => at = next,
            // It was ended; whether there is another now is the coordinator's word, as it was for the first.
            None => return Ok(key),
        }
    }
    if Some(at) == key { Ok(key) } else { Err(LockMismatch { held: held.unwrap_or(at), told: key }) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::fixture::{sign, verify};

    const A: IdentityKey = IdentityKey([1; 32]);
    const B: IdentityKey = IdentityKey([2; 32]);
    const THIEF: IdentityKey = IdentityKey([66; 32]);

    fn mesh() -> MeshName {
        "m".parse().unwrap()
    }

    fn change(by: &IdentityKey, from: IdentityKey, to: Option<IdentityKey>) -> LockChange {
        LockChange { from, to, signature: sign(by, &LockChange::message(&mesh(), &from, to.as_ref())) }
    }

    fn after(held: Option<IdentityKey>, key: Option<IdentityKey>, changes: &[LockChange]) -> Option<IdentityKey> {
        let lock = NetworkLock { key, changes: changes.to_vec() };
        lock_after(held, Some(&lock), &mesh(), verify).unwrap_or(held)
    }

    #[test]
    fn the_first_lock_is_held_to_and_none_follows_without_its_keys_word() {
        assert_eq!(lock_after(None, None, &mesh(), verify), Ok(None));
        assert_eq!(after(None, Some(A), &[]), Some(A));
        assert_eq!(after(Some(A), Some(A), &[]), Some(A));
        let mismatch = lock_after(Some(A), None, &mesh(), verify).unwrap_err();
        assert!(mismatch.to_string().contains("names no lock"), "{mismatch}");
        assert_eq!(after(Some(A), Some(THIEF), &[]), Some(A));
        assert_eq!(after(Some(A), None, &[change(&THIEF, A, None)]), Some(A));
        assert_eq!(after(Some(A), Some(THIEF), &[change(&THIEF, A, Some(THIEF))]), Some(A));
        assert_eq!(after(Some(A), Some(THIEF), &[change(&THIEF, THIEF, None)]), Some(A));
        assert_eq!(after(Some(A), Some(THIEF), &[change(&A, A, Some(B))]), Some(A), "a word for another key");
    }

    #[test]
    fn the_keys_own_word_changes_the_lock_or_ends_it_however_long_a_node_was_away() {
        let (replaced, ended) = (change(&A, A, Some(B)), change(&B, B, None));
        assert_eq!(after(Some(A), Some(B), std::slice::from_ref(&replaced)), Some(B));
        assert_eq!(after(Some(A), None, &[replaced.clone(), ended.clone()]), None);
        assert_eq!(after(Some(A), Some(THIEF), &[replaced, ended]), Some(THIEF), "ended: the next one is the first");
    }

    #[test]
    fn a_countersignature_is_for_one_node_of_one_mesh_and_every_part_of_it() {
        let member = LockedMember {
            id: NodeId(3),
            name: "n".parse().unwrap(),
            site: "s".parse().unwrap(),
            subject: Subject::Identity(B),
        };
        let signature = sign(&A, &member.message(&mesh()));
        assert!(member.is_by(&mesh(), &A, &signature, verify));
        assert!(!member.is_by(&"other".parse().unwrap(), &A, &signature, verify));
        assert!(!member.is_by(&mesh(), &THIEF, &signature, verify));
        let others = [
            LockedMember { id: NodeId(4), ..member.clone() },
            LockedMember { name: "o".parse().unwrap(), ..member.clone() },
            LockedMember { site: "t".parse().unwrap(), ..member.clone() },
            LockedMember { subject: Subject::Identity(THIEF), ..member.clone() },
            LockedMember { subject: Subject::Tunnel(TunnelKey(B.0)), ..member },
        ];
        assert!(others.iter().all(|other| !other.is_by(&mesh(), &A, &signature, verify)));
    }
}
