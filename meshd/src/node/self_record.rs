//! The node's own record: what it says of itself, signed, under a number that never goes back.
//!
//! The last one is kept. A restart that has nothing new to say says the same thing under the same number, and
//! makes no news of it. The number follows the clock, so that it grows even where the file was lost.

use mesh_host::clock::unix;
use mesh_host::identity::verify;
use mesh_proto::base::id::IdentityKey;
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::NodeFacts;

use crate::base::files::RECORD;
use crate::base::state_dir::State;
use crate::keys::node::NodeKeys;

/// Signs what the node says of itself.
#[derive(Debug)]
pub(crate) struct Author {
    state: State,
    /// The last record of this process: a full disk is no reason to sign the same thing again and again.
    last: Option<SignedRecord>,
}

impl Author {
    /// Goes on from the record of a state directory.
    pub(crate) fn new(state: &State) -> Self {
        Self { state: state.clone(), last: read(state) }
    }

    /// Returns the number of the last record, if a key signed it.
    pub(crate) fn number(&self, identity: &IdentityKey) -> u64 {
        let last = self.last.as_ref().filter(|last| last.is_by(identity, verify)).and_then(NodeFacts::of);
        last.map_or(0, |last| last.sequence)
    }

    /// Says whether a record is the last one that this process signed or found.
    pub(crate) fn is_last(&self, record: &SignedRecord) -> bool {
        self.last.as_ref() == Some(record)
    }

    /// Returns facts with their number and the node's signature. `known` is the number of the last one that the
    /// coordinator has: higher than ours where this machine was brought back from a snapshot.
    pub(crate) fn sealed(&mut self, keys: &NodeKeys, facts: NodeFacts, known: u64) -> NodeFacts {
        let last = self.last.as_ref().filter(|last| last.is_by(&keys.identity(), verify)).and_then(NodeFacts::of);
        let before = last.as_ref().map_or(0, |last| last.sequence);
        if let Some(last) = last.filter(|last| last.sequence >= known) {
            let same = NodeFacts { sequence: last.sequence, signed: last.signed.clone(), ..facts.clone() };
            if same == last {
                return last;
            }
        }
        let clock = unix().0;
        let sequence = clock.max(before.max(known).saturating_add(1));
        let facts = NodeFacts { sequence, signed: None, ..facts };
        let text = facts.text();
        let signature = keys.sign(&SignedRecord::message(&text));
        let record = SignedRecord { text: text.into(), signature };
        let written = serde_json::to_vec(&record).map(|bytes| self.state.keep(RECORD, &bytes));
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the node's own record is not stored; a restart signs a new one");
        }
        self.last = Some(record.clone());
        NodeFacts { signed: Some(record), ..facts }
    }
}

/// Returns the number of a record, if a key signed it.
pub(crate) fn number_by(record: &SignedRecord, identity: &IdentityKey) -> Option<u64> {
    NodeFacts::of(record).filter(|_| record.is_by(identity, verify)).map(|facts| facts.sequence)
}

/// Says whether the last record names an agreement key.
pub(crate) fn names_agreement(state: &State) -> bool {
    read(state).as_ref().and_then(NodeFacts::of).is_some_and(|last| !last.agreement.is_empty())
}

fn read(state: &State) -> Option<SignedRecord> {
    let bytes = state.secret(RECORD).ok().flatten()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_record_is_signed_once_and_its_number_only_grows() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let keys = NodeKeys::load_or_make(&state).unwrap();
        let facts = |mtu| NodeFacts { mtu, ..NodeFacts::default() };

        // Each by a process of its own.
        let sealed = |facts, known| Author::new(&state).sealed(&keys, facts, known);
        let first = sealed(facts(1420), 0);
        let again = sealed(facts(1420), 0);
        let other = sealed(facts(1400), 0);
        let back = sealed(facts(1420), 0);
        let overtaken = sealed(facts(1420), back.sequence + 1_000_000);

        assert!(first.signed.as_ref().unwrap().is_by(&keys.identity(), verify));
        assert_eq!(again, first);
        assert!(other.sequence > first.sequence && back.sequence > other.sequence);
        assert!(overtaken.sequence > back.sequence + 1_000_000);
        assert_eq!(NodeFacts::of(overtaken.signed.as_ref().unwrap()), Some(overtaken.clone()));
    }

    #[test]
    fn what_the_disk_does_not_take_is_signed_once_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let keys = NodeKeys::load_or_make(&state).unwrap();
        // Nothing can be put in the place of a folder.
        std::fs::create_dir(dir.path().join("s").join(RECORD.name())).unwrap();
        let mut author = Author::new(&state);

        let first = author.sealed(&keys, NodeFacts::default(), 0);
        // The coordinator has it, and says so in the next map.
        let again = author.sealed(&keys, NodeFacts::default(), first.sequence);

        assert_eq!(again, first);
    }

    #[test]
    fn a_signature_is_for_one_key_and_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let keys = NodeKeys::load_or_make(&state).unwrap();
        let record = Author::new(&state).sealed(&keys, NodeFacts::default(), 0).signed.unwrap();
        assert!(!record.is_by(&IdentityKey([9; 32]), verify));
        for at in (0..record.text.len()).step_by(7) {
            let mut text = record.text.as_bytes().to_vec();
            text[at] ^= 1;
            let altered = SignedRecord { text: String::from_utf8(text).unwrap().into(), ..record.clone() };
            assert!(!altered.is_by(&keys.identity(), verify), "byte {at}");
        }
        let renewed = NodeKeys::renew(&state).unwrap();
        let signed = Author::new(&state).sealed(&renewed, NodeFacts::default(), 0);
        assert!(signed.signed.unwrap().is_by(&renewed.identity(), verify));
    }
}
