//! The log as a node follows it, against a coordinator that says what it likes.

use mesh_proto::chain::{LogHead, LogPage, RawEntry, Roll, Told};
use mesh_proto::netmap::{Peer, Proof};
use mesh_proto::record::{Signature, SignedRecord};
use mesh_proto::verify::VerifiedMap;
use mesh_proto::view::View;

use super::*;
use crate::board::Board;
use crate::link::auditor::{Auditor, link};

const MEMBER: IdentityKey = IdentityKey([1; 32]);
const NEWCOMER: IdentityKey = IdentityKey([2; 32]);

fn entry(seq: u64, before: &mut LogHead, identity: Option<IdentityKey>) -> RawEntry {
    let identity = identity.map(|key| format!(r#","identity":"{key}""#)).unwrap_or_default();
    let body = format!(r#"{{"seq":{seq},"to":{seq}{identity}}}"#);
    let hash = link(&before.hash, body.as_bytes());
    *before = LogHead { seq, hash };
    RawEntry { hash, body }
}

/// A map in which there are members with these keys.
fn view(revision: u64, keys: &[IdentityKey]) -> Arc<View> {
    let mut map = netmap(revision);
    for (number, &identity) in (10u8..).zip(keys) {
        let record = SignedRecord { text: "{}".into(), signature: Signature([0; 64]) };
        let peer = Peer {
            id: NodeId(number.into()),
            site: "c1".parse().unwrap(),
            address: Flat([241, 1, 0, number].into()),
            blocks: Vec::new(),
            lanes: Vec::new(),
            endpoints: Vec::new(),
            mtu: 1420,
            guarded: true,
            previous: Vec::new(),
            proof: Some(Proof { identity, record, pods: Vec::new() }),
            countersigned: None,
            agreement: Vec::new(),
        };
        map.peers.insert(format!("n{number}").parse().unwrap(), peer);
    }
    Arc::new(View::compile(VerifiedMap::by_hand(map)))
}

#[tokio::test]
async fn an_admission_absent_from_the_log_warns_and_one_that_is_there_does_not() {
    let mut head = LogHead::default();
    let first = entry(1, &mut head, Some(MEMBER));
    let roll_at = Told { epoch: 0, head };
    let roll = Roll { told: roll_at, revision: Revision(1), members: [MEMBER].into() };
    let second = entry(2, &mut head, Some(NEWCOMER));
    let told = Told { epoch: 0, head };
    let page = LogPage { told, entries: vec![first, second] };
    let server = Server::start(move |request| match request.path.as_str() {
        "/v1/roll" => ok(&roll),
        "/v1/log" => ok(&page),
        _ => refuse("malformed"),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    let board = Arc::new(Board::new("/none".into()));
    board.dial.send_replace(Some(server.dial(&[server.key])));
    let tells = |told: Told| {
        board.link.send_modify(|link| {
            (link.connected, link.log, link.address) = (true, Some(told), Some(server.address.clone()));
        });
    };
    let began = crate::board::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let alarms = || board.link.borrow().alarms.clone();
    let mut auditor = Auditor::new(state.clone(), Arc::clone(&board));
    tells(roll_at);
    board.view.send_replace(Some(view(1, &[MEMBER])));
    auditor.turn(at(20)).await;
    assert_eq!(server.asked().iter().map(|asked| &*asked.path).collect::<Vec<_>>(), ["/v1/roll"]);
    drop(auditor);

    // After a restart, the roll is there; who is new is looked up at once.
    let mut auditor = Auditor::new(state, Arc::clone(&board));
    tells(told);
    board.view.send_replace(Some(view(2, &[MEMBER, NEWCOMER])));
    auditor.turn(at(30)).await;
    assert_eq!((server.asked().len(), server.asked()[1].query.as_str()), (2, "after=1"));
    auditor.turn(at(30)).await;
    assert_eq!(alarms(), <[String; 0]>::default());

    board.view.send_replace(Some(view(2, &[MEMBER, NEWCOMER, IdentityKey([66; 32])])));
    auditor.turn(at(30)).await;
    assert_eq!(alarms(), <[String; 0]>::default());
    auditor.turn(at(42)).await;
    assert!(alarms().len() == 1 && alarms()[0].contains("`n12` is in the map"), "{:?}", alarms());
}
