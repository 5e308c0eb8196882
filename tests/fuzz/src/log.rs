//! The log of operations as a node follows it, from a coordinator that says what it likes.

use std::collections::BTreeSet;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::IdentityKey;
use mesh_proto::trust::audit_log::{
    LogHash, LogHead, LogPage, LogPosition, LogWitness, MAX_EXPELLED, Next, RawEntry, Roll,
};

use super::laws::{again, sum};

/// A roll in the first line and an entry in each other: the chain always fits, and nobody who was expelled comes back.
pub(crate) fn log(data: &[u8]) {
    again::<Roll>(data);
    again::<LogPage>(data);
    let text = String::from_utf8_lossy(data);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let Ok(roll) = serde_json::from_str::<Roll>(first) else { return };
    let mut witness = LogWitness::default();
    witness.begin(roll.clone());
    let mut out = BTreeSet::new();
    holds(&witness, &mut out);

    let mut head = roll.told.head;
    let mut entries = Vec::new();
    for body in rest.lines() {
        head = LogHead { seq: head.seq.saturating_add(1), hash: link(&head.hash, body.as_bytes()) };
        entries.push(RawEntry { hash: head.hash, body: body.to_owned() });
    }
    let told = LogPosition { head, ..roll.told };
    witness.coordinator_says(told, Timestamp::from_millis(1));
    for _ in 0..2 {
        let next = witness.read(&LogPage { told, entries: entries.clone() }, link);
        holds(&witness, &mut out);
        if let Next::Read(after) = next {
            assert!(after <= head.seq, "what was told is asked for");
        }
    }
    // Another epoch, in which everybody is a member, whoever was expelled.
    let everybody = out.iter().chain(&roll.members).copied().collect();
    let again = LogPosition { epoch: told.epoch.saturating_add(1), ..told };
    witness.begin(Roll { told: again, members: everybody, expelled: BTreeSet::new(), ..roll });
    holds(&witness, &mut out);
    assert!(witness.alarms().len() <= 32 && (out.is_empty() || !witness.alarms().is_empty()), "nothing is said of it");
}

/// Who was expelled is, and is no member.
fn holds(witness: &LogWitness, out: &mut BTreeSet<IdentityKey>) {
    let roll = witness.roll().expect("it has begun");
    assert!(out.is_subset(&roll.expelled), "one that was expelled is forgotten");
    assert!(roll.expelled.is_disjoint(&roll.members), "one that was expelled is a member");
    assert!(roll.expelled.len() <= MAX_EXPELLED);
    out.clone_from(&roll.expelled);
}

/// A stand-in for SHA-256.
fn link(before: &LogHash, body: &[u8]) -> LogHash {
    LogHash(sum(&[&before.0[..], body].concat()))
}
