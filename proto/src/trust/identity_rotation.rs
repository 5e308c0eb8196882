//! How a node goes on with another identity key: the former key names the next one, and the next one accepts.
//!
//! ```text
//!   A ─ signs "node 7: A, then B" ─▶ B ─ signs "node 7: B, then C" ─▶ C       the lineage, oldest first
//!   └────────── who knows A believes C, and whatever was signed for A holds for C ──────────┘
//! ```
//! Each statement names the node's durable number, so that it is worth nothing for another node. It says what its key
//! wanted and nobody else: whoever has stolen a key can name a next one for as long as the key was not revoked.

use serde::{Deserialize, Serialize};

use crate::base::id::{IdentityKey, NodeId};
use crate::trust::signed_record::{Signature, Verify};

/// Most successions of one node that are kept and looked at; who knew only older keys does not know the node again.
pub const MAX_LINEAGE: usize = 16;
/// Stands before what the former key signs.
const NEXT: &str = "mesh next node identity 1\n";
/// Stands before what the next key signs.
const ACCEPTED: &str = "mesh node identity accepted 1\n";

/// A node's change from one identity key to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// The former key.
    pub from: IdentityKey,
    /// The next key.
    pub to: IdentityKey,
    /// The former key's, over `message`.
    pub signature: Signature,
    /// The next key's, over `acceptance`: whoever asks for the change has that key.
    pub accepted: Signature,
}

impl Succession {
    /// Returns the bytes that the former key signs.
    pub fn message(node: NodeId, from: &IdentityKey, to: &IdentityKey) -> Vec<u8> {
        format!("{NEXT}{}\n{from}\n{to}", node.0).into_bytes()
    }

    /// Returns the bytes that the next key signs.
    pub fn acceptance(node: NodeId, from: &IdentityKey, to: &IdentityKey) -> Vec<u8> {
        format!("{ACCEPTED}{}\n{from}\n{to}", node.0).into_bytes()
    }

    /// Says whether both keys signed it for this node.
    pub fn is_good(&self, node: NodeId, verify: Verify) -> bool {
        let Self { from, to, signature, accepted } = self;
        from != to
            && verify(from, &Self::message(node, from, to), signature)
            && verify(to, &Self::acceptance(node, from, to), accepted)
    }
}

/// Walks a lineage back from a node's present key, over good links only: yields each former key, the newest first. At
/// most `MAX_LINEAGE` links are looked at, each when it is asked for.
pub fn ancestors(
    lineage: &[Succession],
    node: NodeId,
    present: IdentityKey,
    verify: Verify,
) -> impl Iterator<Item = IdentityKey> {
    let links = lineage.iter().rev().take(MAX_LINEAGE);
    links.scan(present, move |at, link| {
        let is_next = link.to == *at && link.is_good(node, verify);
        is_next.then(|| {
            *at = link.from;
            link.from
        })
    })
}

/// Says whether a lineage leads from one key of a node to its present one.
pub fn leads(lineage: &[Succession], node: NodeId, from: &IdentityKey, present: &IdentityKey, verify: Verify) -> bool {
    // Nothing is checked for a key that the lineage does not even name.
    let is_named = lineage.iter().any(|link| link.from == *from);
    from == present || is_named && ancestors(lineage, node, *present, verify).any(|key| key == *from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{sign, verify};

    const NODE: NodeId = NodeId(7);
    const A: IdentityKey = IdentityKey([1; 32]);
    const B: IdentityKey = IdentityKey([2; 32]);
    const C: IdentityKey = IdentityKey([3; 32]);
    const THIEF: IdentityKey = IdentityKey([66; 32]);

    /// What two keys sign, or others in their names.
    fn link(
        node: NodeId,
        (from, by): (IdentityKey, IdentityKey),
        (to, accepting): (IdentityKey, IdentityKey),
    ) -> Succession {
        let signature = sign(&by, &Succession::message(node, &from, &to));
        let accepted = sign(&accepting, &Succession::acceptance(node, &from, &to));
        Succession { from, to, signature, accepted }
    }

    fn good(from: IdentityKey, to: IdentityKey) -> Succession {
        link(NODE, (from, from), (to, to))
    }

    fn from_to(lineage: &[Succession], from: IdentityKey, to: IdentityKey) -> bool {
        leads(lineage, NODE, &from, &to, verify)
    }

    #[test]
    fn a_lineage_leads_from_each_former_key_to_the_present_one_and_never_back() {
        let lineage = [good(A, B), good(B, C)];
        assert!(from_to(&lineage, A, C) && from_to(&lineage, B, C) && from_to(&lineage[..1], A, B));
        assert!(from_to(&[], A, A));
        for (from, to) in [(A, B), (C, A), (C, B), (B, A), (THIEF, C), (A, THIEF)] {
            assert!(!from_to(&lineage, from, to), "{from} to {to}");
        }
        assert!(!from_to(&lineage[1..], A, C) && !from_to(&[good(B, C), good(A, B)], A, C), "a gap, another order");
        assert!(!from_to(&[], A, B));
    }

    #[test]
    fn both_keys_have_to_have_signed_for_this_very_node() {
        let forged = [
            ("by a thief", link(NODE, (A, THIEF), (B, B))),
            ("a thief's key, not accepted by it", link(NODE, (A, A), (B, THIEF))),
            ("for another node", link(NodeId(8), (A, A), (B, B))),
            ("another next key", Succession { to: B, ..good(A, C) }),
            ("another former key", Succession { from: A, ..good(C, B) }),
            ("one signature for both", Succession { accepted: good(A, B).signature, ..good(A, B) }),
        ];
        for (what, bad) in forged {
            assert!(!from_to(&[bad], A, B), "{what}");
            assert!(!from_to(&[bad, good(B, C)], A, C), "{what}, and a good one behind it");
            assert!(from_to(&[bad, good(B, C)], B, C), "{what}, before what was known");
        }
        assert!(!good(A, A).is_good(NODE, verify));
    }

    #[test]
    fn only_the_last_links_are_looked_at() {
        let key = |n: usize| IdentityKey([u8::try_from(n).unwrap_or(0) + 100; 32]);
        let lineage: Vec<_> = (0..=MAX_LINEAGE).map(|n| good(key(n), key(n + 1))).collect();
        let last = key(MAX_LINEAGE + 1);
        assert!(from_to(&lineage, key(1), last));
        assert!(!from_to(&lineage, key(0), last));
    }
}
