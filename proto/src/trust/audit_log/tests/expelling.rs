//! Who was expelled stays so, whatever the coordinator says later.

use super::*;

const NONE: [String; 0] = [];

fn is_out(witness: &LogWitness, identity: IdentityKey) -> bool {
    let roll = witness.roll().unwrap();
    roll.expelled.contains(&identity) && !roll.members.contains(&identity)
}

/// A number's key, all different.
fn numbered(n: usize) -> IdentityKey {
    let mut bytes = [9; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    IdentityKey(bytes)
}

#[test]
fn an_expelled_identity_is_not_admitted_again_by_a_later_entry() {
    let mut log = Log::of(3);
    let mut witness = LogWitness::new(Some(log.roll(&[key(1), key(2)])));
    log.expel(&[key(1)]);
    read_all(&mut witness, &log);
    assert!(is_out(&witness, key(1)) && !is_out(&witness, key(2)));
    assert_eq!(witness.alarms(), NONE, "a revocation is nothing to warn of");

    // The machine comes back as somebody new, as it should.
    log.add(Some(key(3)));
    read_all(&mut witness, &log);
    explain(&mut witness, key(3), 5, 0);
    explain(&mut witness, key(3), 5, 60);
    assert_eq!(witness.alarms(), NONE);
    assert!(witness.roll().unwrap().members.contains(&key(3)));

    log.add(Some(key(1)));
    read_all(&mut witness, &log);
    assert!(is_out(&witness, key(1)), "by an entry");
    let alarms = witness.alarms();
    assert!(
        alarms.len() == 1 && alarms[0].starts_with("entry 6 ") && alarms[0].contains("revoked before"),
        "{alarms:?}"
    );

    // After a restart it is known still.
    let mut witness = LogWitness::new(witness.roll().cloned());
    log.add(None);
    read_all(&mut witness, &log);
    explain(&mut witness, key(1), 7, 100);
    explain(&mut witness, key(1), 7, 110);
    let alarms = witness.alarms();
    assert!(alarms.len() == 1 && alarms[0].contains("was revoked: somebody brought it back"), "{alarms:?}");
}

#[test]
fn an_epoch_and_a_roll_bring_nobody_back() {
    let mut log = Log::of(3);
    let mut witness = LogWitness::new(Some(log.roll(&[key(1), key(2)])));
    log.expel(&[key(1)]);
    read_all(&mut witness, &log);

    // Back to a backup from before the revocation, by somebody who lost it.
    let restored = |expelled: &[IdentityKey]| Roll {
        told: LogPosition { epoch: 2, ..log.log_position() },
        expelled: expelled.iter().copied().collect(),
        ..log.roll(&[key(1), key(2)])
    };
    assert_eq!(witness.coordinator_says(restored(&[]).told, at(0)), Next::Begin);
    witness.begin(restored(&[]));
    assert!(is_out(&witness, key(1)));
    let alarms = witness.alarms().to_vec();
    assert!(alarms.len() == 1 && alarms[0].contains("1 nodes are members again that were revoked"), "{alarms:?}");

    // What a roll adds counts as what entries add; an honest one names who is expelled and no member.
    let mut witness = LogWitness::default();
    witness.begin(Roll { members: [key(2)].into(), ..restored(&[key(1)]) });
    assert!(is_out(&witness, key(1)));
    witness.begin(Roll {
        told: LogPosition { epoch: 3, ..log.log_position() },
        members: [key(2)].into(),
        ..restored(&[key(4)])
    });
    assert!(is_out(&witness, key(1)) && is_out(&witness, key(4)));
    assert_eq!(witness.alarms(), NONE);
}

#[test]
fn a_roll_of_an_older_version_expels_nobody_and_reads() {
    let mut text = serde_json::to_value(Log::of(3).roll(&[key(1)])).unwrap();
    assert!(text.get("expelled").is_none());
    text["invented"] = 1.into();
    assert_eq!(serde_json::from_value::<Roll>(text).unwrap(), Log::of(3).roll(&[key(1)]));
}

#[test]
fn who_is_expelled_beyond_the_bound_pushes_nobody_out_and_is_told_of() {
    let mut log = Log::of(1);
    let mut witness = LogWitness::new(Some(log.roll(&[key(1), key(2)])));
    log.expel(&[key(1)]);
    let flood: Vec<_> = (0..MAX_EXPELLED - 1).map(numbered).collect();
    log.expel(&flood);
    read_all(&mut witness, &log);
    assert_eq!((witness.roll().unwrap().expelled.len(), witness.alarms()), (MAX_EXPELLED, &NONE[..]));

    log.expel(&[key(1), numbered(0), key(2)]);
    read_all(&mut witness, &log);
    let roll = witness.roll().unwrap();
    assert_eq!(roll.expelled.len(), MAX_EXPELLED);
    assert!(is_out(&witness, key(1)), "who is known stays");
    assert!(!roll.members.contains(&key(2)), "who is not remembered is no member all the same");
    let alarms = witness.alarms();
    assert!(alarms.len() == 1 && alarms[0].contains("more than 16384 identities"), "{alarms:?}");

    // A roll pushes nobody out either.
    witness.begin(Roll {
        told: LogPosition { epoch: 2, ..log.log_position() },
        expelled: (MAX_EXPELLED..2 * MAX_EXPELLED).map(numbered).collect(),
        ..log.roll(&[])
    });
    assert!(is_out(&witness, key(1)) && witness.roll().unwrap().expelled.len() == MAX_EXPELLED);
}
