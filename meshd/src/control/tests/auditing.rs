//! The log as a node follows it, against a coordinator that says what it likes.

use mesh_host::sums::link;
use mesh_proto::dataplane::view::View;
use mesh_proto::model::netmap::{Peer, Proof};
use mesh_proto::trust::audit_log::{LogHead, LogPage, LogPosition, RawEntry, Roll};
use mesh_proto::trust::signed_record::{Signature, SignedRecord};
use mesh_proto::verifier::VerifiedMap;

use super::*;
use crate::base::files::ROLL;
use crate::control::log_auditor::{self, LogAuditor};
use crate::control::roll_file;

const MEMBER: IdentityKey = IdentityKey([1; 32]);
const NEWCOMER: IdentityKey = IdentityKey([2; 32]);

fn entry(seq: u64, before: &mut LogHead, identity: Option<IdentityKey>) -> RawEntry {
    entry_of(seq, before, &identity.map(|key| format!(r#","identity":"{key}""#)).unwrap_or_default())
}

fn entry_of(seq: u64, before: &mut LogHead, more: &str) -> RawEntry {
    let body = format!(r#"{{"seq":{seq},"to":{seq}{more}}}"#);
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
            proof: Some(Proof { identity, record, pods: Vec::new(), lineage: Vec::new() }),
            countersigned: None,
            agreement: Vec::new(),
        };
        map.peers.insert(format!("n{number}").parse().unwrap(), peer);
    }
    Arc::new(View::compile(VerifiedMap::by_hand(map)))
}

/// A node, and a coordinator that shows it one log.
struct Node {
    server: Server,
    state: State,
    view: watch::Sender<Option<Arc<View>>>,
    link: watch::Sender<ChannelState>,
    expelled: watch::Sender<Arc<BTreeSet<IdentityKey>>>,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn of(roll: Roll, page: LogPage) -> Self {
        let server = Server::start(move |request| match request.path.as_str() {
            "/v1/roll" => ok(&roll),
            "/v1/log" => ok(&page),
            _ => refuse(&ErrorCode::Malformed),
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        let (view, link, expelled) = Default::default();
        Self { server, state, view, link, expelled, _dir: dir }
    }

    fn auditor(&self) -> LogAuditor<Nobody> {
        let dial = self.server.dial(&[self.server.key]);
        let (link, expelled) = (self.link.clone(), self.expelled.clone());
        LogAuditor::new(self.state.clone(), dial, self.view.subscribe(), link, expelled, Nobody)
    }

    /// The coordinator is connected, and says what the last entry is.
    fn hears(&self, told: LogPosition) {
        self.link.send_modify(|link| {
            (link.connected, link.log, link.address) = (true, Some(told), Some(self.server.address.clone()));
        });
    }
}

/// No peer to speak to.
struct Nobody;

impl LogGossip for Nobody {
    fn set_log_position(&self, _: LogPosition) {}

    fn peer_log_positions(&self) -> Vec<(NodeName, LogPosition)> {
        Vec::new()
    }
}

#[tokio::test]
async fn an_admission_absent_from_the_log_warns_and_one_that_is_there_does_not() {
    let mut head = LogHead::default();
    let first = entry(1, &mut head, Some(MEMBER));
    let roll_at = LogPosition { epoch: 0, head };
    let roll = Roll { told: roll_at, revision: Revision(1), members: [MEMBER].into(), ..Roll::default() };
    let second = entry(2, &mut head, Some(NEWCOMER));
    let told = LogPosition { epoch: 0, head };
    let page = LogPage { told, entries: vec![first, second] };
    let node = Node::of(roll, page).await;
    let began = now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let alarms = || node.link.borrow().alarms.clone();
    let mut auditor = node.auditor();
    node.hears(roll_at);
    node.view.send_replace(Some(view(1, &[MEMBER])));
    auditor.turn(at(20)).await;
    assert_eq!(node.server.asked().iter().map(|asked| &*asked.path).collect::<Vec<_>>(), ["/v1/roll"]);
    drop(auditor);

    // After a restart, the roll is there; who is new is looked up at once.
    let mut auditor = node.auditor();
    node.hears(told);
    node.view.send_replace(Some(view(2, &[MEMBER, NEWCOMER])));
    auditor.turn(at(30)).await;
    assert_eq!((node.server.asked().len(), node.server.asked()[1].query.as_str()), (2, "after=1"));
    auditor.turn(at(30)).await;
    assert_eq!(alarms(), <[String; 0]>::default());

    node.view.send_replace(Some(view(2, &[MEMBER, NEWCOMER, IdentityKey([66; 32])])));
    auditor.turn(at(30)).await;
    assert_eq!(alarms(), <[String; 0]>::default());
    auditor.turn(at(42)).await;
    assert!(alarms().len() == 1 && alarms()[0].contains("`n12` is in the map"), "{:?}", alarms());
}

#[tokio::test]
async fn a_peer_that_left_the_map_has_the_log_read_soon_and_its_revocation_remembered() {
    let mut head = LogHead::default();
    let first = entry(1, &mut head, Some(MEMBER));
    let at_first = LogPosition { epoch: 0, head };
    let roll = Roll { told: at_first, members: [MEMBER, NEWCOMER].into(), ..Roll::default() };
    let second = entry_of(2, &mut head, "");
    let at_second = LogPosition { epoch: 0, head };
    let third = entry_of(3, &mut head, &format!(r#","expels":["{NEWCOMER}"]"#));
    let told = LogPosition { epoch: 0, head };
    let page = LogPage { told, entries: vec![first, second, third] };
    let node = Node::of(roll, page).await;
    let began = now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut auditor = node.auditor();
    node.hears(at_first);
    node.view.send_replace(Some(view(1, &[MEMBER, NEWCOMER])));
    auditor.turn(at(20)).await;
    node.hears(at_second);
    auditor.turn(at(25)).await;
    assert_eq!(node.server.asked().len(), 1, "nothing hurries");
    assert_eq!(**node.expelled.borrow(), BTreeSet::new());

    node.hears(told);
    node.view.send_replace(Some(view(3, &[MEMBER])));
    auditor.turn(at(30)).await;
    assert_eq!((node.server.asked().len(), node.server.asked()[1].query.as_str()), (2, "after=1"));
    let expelled = BTreeSet::from([NEWCOMER]);
    assert_eq!(**node.expelled.borrow(), expelled);
    assert_eq!(node.link.borrow().alarms, <[String; 0]>::default());
    // Also by the next life of the process.
    assert_eq!(roll_file::read(&node.state).map(|roll| roll.expelled), Some(expelled.clone()));
    node.expelled.send_replace(Arc::default());
    drop(node.auditor());
    assert_eq!(**node.expelled.borrow(), expelled);
}

#[tokio::test]
async fn what_an_older_version_knew_of_the_log_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    let roll = Roll { members: [MEMBER].into(), ..Roll::default() };
    state.replace(ROLL, &serde_json::to_vec(&roll).unwrap()).unwrap();
    assert_eq!(roll_file::read(&state), Some(roll));
}

/// The map of a coordinator that shows one more member, in order.
fn shown(keys: &NodeKeys) -> NetMap {
    let mut map = netmap(1);
    let facts = NodeFacts { mtu: 1420, guarded: true, sequence: 1, ..NodeFacts::default() };
    let text = facts.text();
    let record = SignedRecord { signature: keys.sign(&SignedRecord::message(&text)), text: text.into() };
    map.peers.insert(
        "n2".parse().unwrap(),
        Peer {
            id: NodeId(2),
            site: "c1".parse().unwrap(),
            address: Flat([241, 1, 0, 2].into()),
            blocks: Vec::new(),
            lanes: Vec::new(),
            endpoints: Vec::new(),
            mtu: 1420,
            guarded: true,
            previous: Vec::new(),
            proof: Some(Proof { identity: keys.identity(), record, pods: Vec::new(), lineage: Vec::new() }),
            countersigned: None,
            agreement: Vec::new(),
        },
    );
    map
}

#[tokio::test]
async fn an_expelled_peer_leaves_the_map_in_force_at_once_also_without_a_coordinator() {
    let dir = tempfile::tempdir().unwrap();
    let keys = NodeKeys::load_or_make(&State::open(&dir.path().join("n2")).unwrap()).unwrap();
    for stays in [true, false] {
        let line = serde_json::to_string(&WatchEvent::Snapshot { netmap: Box::new(shown(&keys)) }).unwrap() + "\n";
        let server = Server::start(move |_| match stays {
            true => open(line.clone()),
            false => Response::new(Full::new(Bytes::from(line.clone()))),
        })
        .await;
        let (maps, state) = (watch::Sender::new(None), watch::Sender::new(ChannelState::default()));
        let expelled = watch::Sender::default();
        let kept = State::open(&dir.path().join(format!("s{stays}"))).unwrap();
        let link = ChannelKeeper {
            turn: 0,
            records: watch::Sender::default(),
            dial: server.dial(&[server.key]),
            current: None,
            guard: MapGuard::new(Some(kept.clone())),
            maps: maps.clone(),
            state: state.clone(),
            report: watch::Sender::new(None).subscribe(),
            expelled: expelled.subscribe(),
            own: watch::Sender::default().subscribe(),
        };
        let running = tokio::spawn(link.run());
        let has = |map: &Option<VerifiedMap>, peers| map.as_ref().is_some_and(|map| map.peers.len() == peers);
        maps.subscribe().wait_for(|map| has(map, 1)).await.unwrap();
        if !stays {
            state.subscribe().wait_for(|s| !s.connected && s.error.is_some()).await.unwrap();
        }

        expelled.send_replace(Arc::new([keys.identity()].into()));
        maps.subscribe().wait_for(|map| has(map, 0)).await.unwrap();
        running.abort();
        let rejected = state.borrow().rejected.clone();
        assert!(rejected.iter().any(|said| said.contains("node `n2` was revoked")), "{rejected:?}");
        // A delta may not follow what was left out.
        let mut again = MapGuard::new(Some(kept));
        assert!(!again.resume(Arc::new(netmap(1))).1);
    }
}

#[tokio::test]
async fn a_guard_takes_up_who_was_expelled_with_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let keys = NodeKeys::load_or_make(&State::open(&dir.path().join("n2")).unwrap()).unwrap();
    let state = State::open(&dir.path().join("s")).unwrap();
    let resumed = || MapGuard::new(Some(state.clone())).resume(Arc::new(shown(&keys))).0.map.peers.len();
    assert_eq!(resumed(), 1);
    let roll = Roll { expelled: [keys.identity()].into(), ..Roll::default() };
    roll_file::write(&state, &serde_json::to_vec(&roll).unwrap()).unwrap();
    assert_eq!(resumed(), 0);
}

#[test]
fn few_nodes_read_the_log_at_their_next_turn_and_many_over_half_a_minute() {
    let seconds = |members, share| log_auditor::wait(members, share).as_secs();
    for members in [0, 1, 1000, 1666] {
        assert_eq!(seconds(members, 1.0), 0, "{members} nodes: turns differ by up to 5 s anyway");
    }
    for members in [10_000, 100_000, usize::MAX] {
        assert_eq!((seconds(members, 0.0), seconds(members, 0.5), seconds(members, 1.0)), (0, 12, 25), "{members}");
    }
}
