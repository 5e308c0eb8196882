//! The high-water mark: how far this node has followed its coordinator, so that it never follows it back.
//!
//! A coordinator that runs on an old copy of its data would bring expelled nodes and withdrawn permissions back.
//! A node stores its mark before it acts on anything newer, and refuses what lies behind it. Who restores a backup
//! on purpose begins a new epoch, signed with the coordinator's key; in it revisions count anew.

use serde::{Deserialize, Serialize};

use crate::base::id::{IdentityKey, Revision};
use crate::trust::signed_record::{Epoch, Verify};

/// How far a node has followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The number of the epoch.
    pub epoch: u64,
    /// The highest revision of that epoch.
    pub revision: Revision,
}

/// Why a node does not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WentBack {
    /// The revision is an older one.
    #[error(
        "the coordinator went back to revision {at}, this node has followed it to {seen}: it runs on old data; this node keeps what it has. Start the coordinator on its newest data, or, if that is lost, bring the backup in with `mesh-coordinator restore`, which begins a new epoch; for one of etcd, run that without a file after `etcdctl snapshot restore`"
    )]
    Revision {
        /// What it is at.
        at: Revision,
        /// What this node has seen.
        seen: Revision,
    },
    /// The epoch is an older one.
    #[error(
        "the coordinator went back to epoch {at}, this node has followed it to {seen}: it runs on data from before a restore; this node keeps what it has. Start the coordinator on its newest data"
    )]
    Epoch {
        /// What it is in.
        at: u64,
        /// What this node has seen.
        seen: u64,
    },
    /// The epoch is a newer one, but nobody signed for it.
    #[error(
        "the coordinator claims epoch {0} without a good signature of its key; this node keeps what it has. Check that the coordinator's identity.key is that of this mesh, and restore backups with `mesh-coordinator restore` only"
    )]
    Unsigned(u64),
}

impl Mark {
    /// Returns the mark after a map of this epoch and revision, or why this node does not follow.
    ///
    /// # Errors
    /// `WentBack` if it lies behind the mark, or begins an epoch that none of the keys signed.
    pub fn advance(
        self,
        epoch: &Epoch,
        revision: Revision,
        keys: &[IdentityKey],
        verify: Verify,
    ) -> Result<Self, WentBack> {
        let next = Self { epoch: epoch.number, revision };
        if next.epoch < self.epoch {
            Err(WentBack::Epoch { at: next.epoch, seen: self.epoch })
        } else if next.epoch == self.epoch {
            self.reach(revision)
        } else if epoch.is_by(keys, verify) {
            Ok(next)
        } else {
            Err(WentBack::Unsigned(next.epoch))
        }
    }

    /// Returns the mark after a revision of the same epoch.
    ///
    /// # Errors
    /// `WentBack::Revision` if it lies behind the mark.
    pub fn reach(self, revision: Revision) -> Result<Self, WentBack> {
        if revision < self.revision {
            return Err(WentBack::Revision { at: revision, seen: self.revision });
        }
        Ok(Self { revision, ..self })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::trust::signed_record::Signature;

    const KEY: IdentityKey = IdentityKey([7; 32]);

    /// A stand-in: the signature begins with the key and the last byte of the message.
    fn verify(key: &IdentityKey, message: &[u8], signature: &Signature) -> bool {
        signature.0[..32] == key.0 && message.last() == Some(&signature.0[32])
    }

    fn epoch(number: u64, key: IdentityKey) -> Epoch {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&key.0);
        bytes[32] = *Epoch::message(number).last().unwrap();
        Epoch { number, signature: Some(Signature(bytes)) }
    }

    fn advance(mark: Mark, epoch: &Epoch, revision: u64) -> Result<Mark, WentBack> {
        mark.advance(epoch, Revision(revision), &[KEY], verify)
    }

    #[test]
    fn a_node_follows_forward_only() {
        let mark = Mark { epoch: 0, revision: Revision(42) };
        let same = Epoch::default();
        assert_eq!(advance(mark, &same, 43), Ok(Mark { epoch: 0, revision: Revision(43) }));
        assert_eq!(advance(mark, &same, 42), Ok(mark));
        let back = WentBack::Revision { at: Revision(41), seen: Revision(42) };
        assert_eq!(advance(mark, &same, 41), Err(back));
        assert!(back.to_string().contains("mesh-coordinator restore"));
    }

    #[test]
    fn only_a_signed_epoch_counts_anew_and_none_returns() {
        let mark = Mark { epoch: 0, revision: Revision(42) };
        let restored = advance(mark, &epoch(1, KEY), 7).unwrap();
        assert_eq!(restored, Mark { epoch: 1, revision: Revision(7) });
        assert_eq!(advance(mark, &epoch(1, IdentityKey([8; 32])), 7), Err(WentBack::Unsigned(1)));
        assert_eq!(advance(mark, &Epoch { number: 1, signature: None }, 70), Err(WentBack::Unsigned(1)));
        let wrong = Epoch { number: 2, ..epoch(1, KEY) };
        assert_eq!(advance(mark, &wrong, 70), Err(WentBack::Unsigned(2)), "a signature is for one number");
        assert_eq!(advance(restored, &Epoch::default(), 99), Err(WentBack::Epoch { at: 0, seen: 1 }));
    }
}
