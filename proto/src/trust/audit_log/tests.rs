#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod expelling;

use super::*;

/// A stand-in for SHA-256.
fn link(before: &LogHash, body: &[u8]) -> LogHash {
    let start = before.0.iter().fold(7u64, |sum, &b| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(b));
    let sum = body.iter().fold(start, |sum, &b| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(b));
    let mut hash = LogHash::default();
    hash.0[..8].copy_from_slice(&sum.to_le_bytes());
    hash
}

const fn key(n: u8) -> IdentityKey {
    IdentityKey([n; 32])
}

fn name(word: &str) -> NodeName {
    word.parse().unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000 + 1)
}

/// A coordinator's log; entry n leads to revision n.
#[derive(Clone, Default)]
struct Log(Vec<RawEntry>);

impl Log {
    fn add(&mut self, admits: Option<IdentityKey>) {
        self.push(&admits.map(|key| format!(r#","identity":"{key}""#)).unwrap_or_default());
    }

    fn expel(&mut self, keys: &[IdentityKey]) {
        self.push(&format!(r#","expels":{}"#, serde_json::to_string(keys).unwrap()));
    }

    fn push(&mut self, more: &str) {
        let seq = self.0.len() as u64 + 1;
        let body = format!(r#"{{"seq":{seq},"to":{seq},"text":"x"{more}}}"#);
        let before = self.0.last().map(|entry| entry.hash).unwrap_or_default();
        self.0.push(RawEntry { hash: link(&before, body.as_bytes()), body });
    }

    fn of(count: usize) -> Self {
        let mut log = Self::default();
        (0..count).for_each(|_| log.add(None));
        log
    }

    fn log_position(&self) -> LogPosition {
        let hash = self.0.last().map(|entry| entry.hash).unwrap_or_default();
        LogPosition { epoch: 1, head: LogHead { seq: self.0.len() as u64, hash } }
    }

    fn after(&self, seq: u64) -> LogPage {
        LogPage { told: self.log_position(), entries: self.0[seq as usize..].to_vec() }
    }

    fn roll(&self, members: &[IdentityKey]) -> Roll {
        let told = self.log_position();
        let members = members.iter().copied().collect();
        Roll { told, revision: Revision(told.head.seq), members, ..Roll::default() }
    }
}

/// Follows as far as the coordinator tells.
fn read_all(witness: &mut LogWitness, log: &Log) {
    let mut next = witness.coordinator_says(log.log_position(), at(0));
    while let Next::Read(after) = next {
        next = witness.read(&log.after(after), link);
    }
}

fn explain(witness: &mut LogWitness, identity: IdentityKey, revision: u64, now: u64) {
    explain_subject(witness, Subject::Identity(identity), revision, now);
}

fn explain_subject(witness: &mut LogWitness, subject: Subject, revision: u64, now: u64) {
    let node = name("n");
    witness.explain([(&node, subject)].into_iter(), (1, Revision(revision)), at(now));
}

#[test]
fn a_forked_log_warns_on_both_sides() {
    let common = Log::of(5);
    let (mut one, mut two) = (common.clone(), common.clone());
    one.add(Some(key(1)));
    one.add(None);
    two.add(Some(key(2)));
    for (own, other) in [(&one, &two), (&two, &one)] {
        let mut witness = LogWitness::new(Some(common.roll(&[])));
        read_all(&mut witness, own);
        assert_eq!(witness.alarms(), <[String; 0]>::default());
        witness.peer_says(&name("b"), other.log_position());
        let is_ahead = other.log_position().head.seq > own.log_position().head.seq;
        witness.coordinator_says(own.log_position(), at(0));
        witness.coordinator_says(own.log_position(), at(59));
        assert_eq!(witness.alarms().is_empty(), is_ahead, "{:?}", witness.alarms());
        witness.coordinator_says(own.log_position(), at(61));
        let alarms = witness.alarms().to_vec();
        assert!(alarms[0].contains(if is_ahead { "no more" } else { "two histories" }), "{alarms:?}");

        // One that is ahead is compared when this node comes there.
        let mut grown = own.clone();
        (0..3).for_each(|_| grown.add(None));
        witness.peer_says(&name("c"), {
            let mut grown = other.clone();
            (0..2).for_each(|_| grown.add(None));
            grown.log_position()
        });
        read_all(&mut witness, &grown);
        assert!(witness.alarms().iter().any(|a| a.contains("two histories") && a.contains("`c`")), "{alarms:?}");
    }
}

#[test]
fn another_epoch_hides_no_fork() {
    let log = Log::of(5);
    let mut witness = LogWitness::new(Some(log.roll(&[])));
    let elsewhere = |epoch| LogPosition { epoch, ..log.log_position() };
    witness.peer_says(&name("b"), elsewhere(0));
    witness.peer_says(&name("c"), elsewhere(2));
    witness.coordinator_says(log.log_position(), at(0));
    witness.coordinator_says(log.log_position(), at(61));
    let alarms = witness.alarms().to_vec();
    assert!(alarms.len() == 1 && alarms[0].contains("`c`") && alarms[0].contains("epoch 2"), "{alarms:?}");

    // After a restore all come to the new epoch, one after the other.
    let mut witness = LogWitness::new(Some(log.roll(&[])));
    witness.peer_says(&name("c"), elsewhere(2));
    witness.coordinator_says(log.log_position(), at(0));
    assert_eq!(witness.coordinator_says(elsewhere(2), at(50)), Next::Begin);
    witness.begin(Roll { told: elsewhere(2), ..log.roll(&[]) });
    witness.coordinator_says(elsewhere(2), at(100));
    assert_eq!(witness.alarms(), <[String; 0]>::default());
}

#[test]
fn nodes_that_are_told_at_different_times_do_not_warn() {
    let mut log = Log::of(3);
    let [mut one, mut two] = [(); 2].map(|()| LogWitness::new(Some(log.roll(&[]))));
    for turn in 0..200 {
        log.add(None);
        let behind = if turn % 2 == 0 { &mut one } else { &mut two };
        read_all(behind, &log);
        let heads = [&one, &two].map(|w| w.roll().unwrap().told);
        one.peer_says(&name("two"), heads[1]);
        two.peer_says(&name("one"), heads[0]);
        if turn % 50 == 0 {
            one.coordinator_says(log.log_position(), at(turn * 60));
        }
    }
    assert!(one.alarms().is_empty() && two.alarms().is_empty(), "{:?} {:?}", one.alarms(), two.alarms());
}

#[test]
fn an_admission_that_is_not_in_the_log_warns() {
    let mut log = Log::of(4);
    let mut witness = LogWitness::new(Some(log.roll(&[key(1)])));
    log.add(Some(key(2)));
    explain(&mut witness, key(1), 9, 0);
    explain(&mut witness, key(2), 5, 100);
    explain(&mut witness, key(2), 5, 200);
    assert!(witness.alarms().is_empty(), "the entry may not be read yet");
    read_all(&mut witness, &log);
    explain(&mut witness, key(2), 5, 300);
    explain(&mut witness, key(2), 5, 400);
    assert!(witness.alarms().is_empty(), "{:?}", witness.alarms());

    explain(&mut witness, key(66), 5, 500);
    assert!(witness.alarms().is_empty(), "it may have been expelled a moment ago");
    explain(&mut witness, key(66), 5, 510);
    explain(&mut witness, key(66), 5, 520);
    let alarms = witness.alarms();
    assert!(alarms.len() == 1 && alarms[0].contains("not admitted by any entry"), "{alarms:?}");
}

#[test]
fn an_altered_entry_is_noticed_and_nothing_after_it_is_believed() {
    let mut log = Log::of(4);
    let known = log.roll(&[]);
    log.add(None);
    log.add(None);
    let mut forged = log.clone();
    forged.0[4].body = forged.0[4].body.replace("\"text\":\"x\"", &format!(r#""identity":"{}""#, key(66)));
    let mut witness = LogWitness::new(Some(known));
    read_all(&mut witness, &forged);
    assert!(witness.alarms()[0].contains("entry 5"), "{:?}", witness.alarms());
    assert!(!witness.roll().unwrap().members.contains(&key(66)));
    assert_eq!(witness.roll().unwrap().told.head.seq, 4);

    // A whole chain made anew does not end where nodes have seen it end.
    let mut anew = Log::of(2);
    anew.add(Some(key(66)));
    (0..3).for_each(|_| anew.add(None));
    let mut witness = LogWitness::new(Some(log.roll(&[])));
    read_all(&mut witness, &anew);
    assert!(witness.alarms()[0].contains("two histories"), "{:?}", witness.alarms());
}

#[test]
fn what_the_log_does_not_reach_back_to_is_said_and_not_guessed() {
    let mut log = Log::of(4);
    let mut witness = LogWitness::new(Some(log.roll(&[key(1)])));
    (0..10).for_each(|_| log.add(None));
    assert_eq!(witness.coordinator_says(log.log_position(), at(0)), Next::Read(4));
    // Entries up to 8 are gone.
    assert_eq!(witness.read(&log.after(8), link), Next::Begin);
    witness.begin(log.roll(&[key(1)]));
    assert!(witness.alarms().is_empty());
    witness.begin(log.roll(&[key(1), key(2)]));
    assert!(witness.alarms()[0].contains("1 nodes were admitted"), "{:?}", witness.alarms());
    // A restore.
    let restored = LogPosition { epoch: 2, ..log.log_position() };
    assert_eq!(witness.coordinator_says(restored, at(0)), Next::Begin);
}

#[test]
fn a_head_survives_the_tunnel_and_nothing_is_no_head() {
    let told = Log::of(7).log_position();
    let mut bytes = [0; LogPosition::BYTES];
    assert_eq!(LogPosition::read(&bytes), None);
    told.write(&mut bytes);
    assert_eq!(LogPosition::read(&bytes), Some(told));
}

#[test]
fn a_member_that_lies_without_end_is_named_and_drowns_no_other_warning() {
    let log = Log::of(60);
    let mut witness = LogWitness::new(Some(Log::default().roll(&[])));
    read_all(&mut witness, &log);
    for seq in 1..=60 {
        let lie = LogPosition { epoch: 1, head: LogHead { seq, hash: LogHash([66; 32]) } };
        witness.peer_says(&name("liar"), lie);
        witness.peer_says(&name("liar"), LogPosition { head: LogHead { seq: seq + 1000, ..lie.head }, ..lie });
        for later in [0, 61] {
            witness.coordinator_says(log.log_position(), at(seq * 100 + later));
        }
    }
    assert!(witness.alarms().len() == 2 && witness.alarms().iter().all(|alarm| alarm.contains("`liar`")));
    explain(&mut witness, key(66), 60, 0);
    explain(&mut witness, key(66), 60, 10);
    assert_eq!(witness.alarms().len(), 3);
}

#[test]
fn a_static_node_is_admitted_by_an_entry_too_or_warned_of() {
    let tunnel = |n| TunnelKey([n; 32]);
    let mut log = Log::of(3);
    let before = Roll { statics: Some([tunnel(1)].into()), ..log.roll(&[]) };
    let mut witness = LogWitness::new(Some(before.clone()));
    log.push(&format!(r#","statics":["{}"]"#, tunnel(2)));
    read_all(&mut witness, &log);
    for (n, is_known) in [(1, true), (2, true), (3, false)] {
        for now in [0, 60] {
            explain_subject(&mut witness, Subject::Tunnel(tunnel(n)), 4, now);
        }
        assert_eq!(witness.alarms().is_empty(), is_known, "{n}: {:?}", witness.alarms());
    }
    assert!(witness.alarms()[0].contains("its tunnel key"), "{:?}", witness.alarms());
    // An identity is no tunnel key, whatever its bytes.
    explain(&mut witness, key(1), 4, 70);
    explain(&mut witness, key(1), 4, 130);
    assert_eq!(witness.alarms().len(), 2);
    let epoch = |epoch, statics| Roll { told: LogPosition { epoch, ..log.log_position() }, statics, ..log.roll(&[]) };
    witness.begin(epoch(2, None));
    assert_eq!(witness.roll().unwrap().statics, Some([tunnel(1), tunnel(2)].into()), "nothing is forgotten");
    witness.begin(epoch(3, Some([tunnel(9)].into())));
    assert!(witness.alarms()[2].contains("1 nodes were admitted"), "{:?}", witness.alarms());

    // Where an older version did not count them, nobody is suspected.
    let mut text = serde_json::to_value(before).unwrap();
    text.as_object_mut().unwrap().remove("statics");
    let mut witness = LogWitness::new(Some(serde_json::from_value(text).unwrap()));
    read_all(&mut witness, &log);
    explain_subject(&mut witness, Subject::Tunnel(tunnel(3)), 4, 0);
    explain_subject(&mut witness, Subject::Tunnel(tunnel(3)), 4, 60);
    assert!(witness.alarms().is_empty(), "{:?}", witness.alarms());
}

#[test]
fn a_replaced_identity_is_no_members_any_more() {
    let mut log = Log::of(3);
    let mut witness = LogWitness::new(Some(log.roll(&[key(1)])));
    log.push(&format!(r#","identity":"{}","replaces":"{}""#, key(2), key(1)));
    read_all(&mut witness, &log);
    explain(&mut witness, key(2), 4, 0);
    explain(&mut witness, key(2), 4, 60);
    assert!(witness.alarms().is_empty(), "{:?}", witness.alarms());
    explain(&mut witness, key(1), 4, 60);
    explain(&mut witness, key(1), 4, 120);
    assert!(witness.alarms()[0].contains("not admitted by any entry"), "{:?}", witness.alarms());
}
