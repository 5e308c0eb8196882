//! Another identity key: whenever the node is killed, whatever is answered, one key is good and the node finds it.

use mesh_host::identity::verify;
use mesh_proto::trust::identity_rotation::Succession;
use mesh_proto::wire::Renewal;
use tokio::task::JoinSet;

use super::*;
use crate::base::files::{IDENTITY_KEY, NEXT_IDENTITY_KEY, REFUSED_IDENTITY_KEY};
use crate::base::notes::Notes;
use crate::node::identity_rotation::{IdentityAnswer, IdentityOutcome, Renewer};

const NODE: NodeId = NodeId(7);

/// A node's state directory, and the daemon that is killed again and again.
struct Node {
    state: State,
    notes: Notes,
    renewed: watch::Sender<Option<IdentityOutcome>>,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        NodeKeys::load_or_make(&state).unwrap();
        Self { state, notes: Notes::default(), renewed: watch::Sender::default(), _dir: dir }
    }

    fn start(&self) -> Renewer {
        let keys = Arc::new(NodeKeys::load(&self.state).unwrap());
        Renewer::new(&self.state, self.notes.clone(), self.renewed.clone(), NODE, keys)
    }

    fn own(&self) -> IdentityKey {
        NodeKeys::load(&self.state).unwrap().identity()
    }

    fn next(&self) -> Option<IdentityKey> {
        NodeKeys::next(&self.state).unwrap().map(|keys| keys.identity())
    }

    fn outcome(&self) -> Option<IdentityOutcome> {
        self.renewed.borrow().clone()
    }
}

/// Asks a server once, and returns what it answered.
async fn ask(renewer: &mut Renewer, server: &Server) -> IdentityAnswer {
    let dial = Dial { keys: renewer.keys(), ..server.dial(&[server.key]) };
    let mut tasks = JoinSet::new();
    assert!(renewer.due().is_some());
    renewer.ask(&mut tasks, dial, NodeFacts::default());
    assert!(renewer.due().is_none(), "one at a time");
    renewer.next_answer().await.unwrap()
}

fn renewal(asked: &Asked) -> Renewal {
    assert_eq!(asked.path, "/v1/identity");
    serde_json::from_slice(&asked.body).unwrap()
}

fn taken() -> Response<Full<Bytes>> {
    ok(&ReportResponse { observed: [127, 0, 0, 1].into(), refused: Vec::new() })
}

#[tokio::test]
async fn a_change_is_asked_for_with_the_present_key_and_signed_by_both() {
    let server = Server::start(|_| taken()).await;
    let node = Node::new();
    let former = node.own();
    let mut renewer = node.start();
    assert!(renewer.due().is_none() && renewer.next().is_none());
    renewer.begin();
    let next = node.next().unwrap();
    let mode = std::fs::metadata(node.state.path(NEXT_IDENTITY_KEY)).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);

    let answer = ask(&mut renewer, &server).await;
    let asked = server.asked();
    let Succession { from, to, .. } = renewal(&asked[0]).succession;
    assert_eq!((asked[0].by, from, to), (former, former, next));
    assert!(renewal(&asked[0]).succession.is_good(NODE, verify));
    assert_eq!(node.own(), former, "not before it is confirmed");

    let keys = renewer.conclude(answer).unwrap();
    assert_eq!((keys.identity(), node.own(), node.next()), (next, next, None));
    assert_eq!(renewer.keys().borrow().identity(), next);
    assert_eq!(node.outcome(), Some(Ok((former, next))));
    assert!(node.start().next().is_none());
}

#[tokio::test]
async fn whenever_it_is_killed_it_asks_for_the_same_again_and_goes_on() {
    let server = Server::start(|_| taken()).await;
    for killed in ["before it asked", "before it heard"] {
        let node = Node::new();
        let mut renewer = node.start();
        renewer.begin();
        let next = node.next().unwrap();
        let before = server.asked().len();
        if killed != "before it asked" {
            let answer = ask(&mut renewer, &server).await;
            assert_eq!(answer, IdentityAnswer::Taken);
        }
        drop(renewer);

        let mut renewer = node.start();
        assert_eq!(renewer.next().map(|keys| keys.identity()), Some(next), "{killed}");
        let answer = ask(&mut renewer, &server).await;
        assert!(renewer.conclude(answer).is_some(), "{killed}");
        assert_eq!((node.own(), node.next()), (next, None), "{killed}");
        let asked = server.asked();
        let successions: Vec<_> = asked[before..].iter().map(|asked| renewal(asked).succession).collect();
        assert!(successions.iter().all(|other| *other == successions[0]), "{killed}");
    }
    // After the file was renamed; the daemon may live on, if it was the disk that failed.
    let node = Node::new();
    let mut renewer = node.start();
    renewer.begin();
    let next = node.next().unwrap();
    std::fs::rename(node.state.path(NEXT_IDENTITY_KEY), node.state.path(IDENTITY_KEY)).unwrap();
    assert_eq!((node.start().next().is_none(), node.own()), (true, next));
    assert_eq!(renewer.conclude(IdentityAnswer::Taken).unwrap().identity(), next);
}

#[tokio::test]
async fn a_refusal_ends_a_change_that_nobody_can_have_taken() {
    for code in [ErrorCode::Identity, ErrorCode::Malformed, ErrorCode::Revoked, ErrorCode::UnknownNode] {
        let said = code.clone();
        let server = Server::start(move |_| refuse(&said)).await;
        let node = Node::new();
        let former = node.own();
        let mut renewer = node.start();
        renewer.begin();
        let answer = ask(&mut renewer, &server).await;
        assert!(renewer.conclude(answer).is_none());
        assert_eq!((node.own(), node.next(), renewer.next().is_none()), (former, None, true), "{code:?}");
        assert_eq!(node.outcome(), Some(Err("the token is used up; make another".into())), "{code:?}");
    }
}

#[tokio::test]
async fn who_may_have_been_taken_keeps_both_keys_until_the_coordinator_decides() {
    // What a coordinator may say to the former key, or one that knows nothing of such changes.
    for code in [
        ErrorCode::Revoked,
        ErrorCode::UnknownNode,
        ErrorCode::Superseded,
        ErrorCode::Malformed,
        ErrorCode::Busy,
        ErrorCode::Record,
        ErrorCode::Internal,
    ] {
        let said = code.clone();
        let server = Server::start(move |_| refuse(&said)).await;
        let node = Node::new();
        let former = node.own();
        let mut renewer = node.start();
        renewer.begin();
        let next = node.next();
        assert!(renewer.conclude(IdentityAnswer::Unknown("the answer was lost".into())).is_none());
        assert!(node.notes.all()[0].1.contains("the answer was lost"), "{:?}", node.notes.all());
        drop(renewer);
        let mut renewer = node.start();
        let answer = ask(&mut renewer, &server).await;
        assert!(renewer.conclude(answer).is_none());
        assert_eq!((node.own(), node.next(), node.outcome()), (former, next, None), "{code:?}");
        assert!(node.notes.all()[0].1.contains("is being changed"), "{code:?}");
    }
    let server = Server::start(|_| refuse(&ErrorCode::Identity)).await;
    let node = Node::new();
    let next =
        std::fs::read(NodeKeys::make_next(&node.state).map(|_| node.state.path(NEXT_IDENTITY_KEY)).unwrap()).unwrap();
    let mut renewer = node.start();
    let answer = ask(&mut renewer, &server).await;
    assert!(renewer.conclude(answer).is_none() && node.next().is_none());
    assert_eq!(node.notes.all(), []);
    // A coordinator that takes a key and denies it costs the node neither.
    assert_eq!(std::fs::read(node.state.path(REFUSED_IDENTITY_KEY)).unwrap(), next);
    assert!(node.outcome().unwrap().unwrap_err().contains("identity.refused"));
}

#[tokio::test]
async fn a_key_that_was_taken_and_cannot_be_put_in_its_place_is_not_lost() {
    let node = Node::new();
    let mut renewer = node.start();
    renewer.begin();
    let next = std::fs::read(node.state.path(NEXT_IDENTITY_KEY)).unwrap();
    // Nothing can be put in the place of a folder.
    std::fs::remove_file(node.state.path(IDENTITY_KEY)).unwrap();
    std::fs::create_dir(node.state.path(IDENTITY_KEY)).unwrap();
    assert!(renewer.conclude(IdentityAnswer::Taken).is_none());
    renewer.conclude(IdentityAnswer::Refused { is_final: false, why: "a stranger".into() });
    assert_eq!(std::fs::read(node.state.path(NEXT_IDENTITY_KEY)).unwrap(), next);
    renewer.conclude(IdentityAnswer::Refused { is_final: true, why: "no".into() });
    assert_eq!(std::fs::read(node.state.path(REFUSED_IDENTITY_KEY)).unwrap(), next);
}

#[tokio::test]
async fn a_damaged_next_key_is_told_and_kept_and_the_present_one_is_used() {
    let node = Node::new();
    NodeKeys::make_next(&node.state).unwrap();
    let path = node.state.path(NEXT_IDENTITY_KEY);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let mut renewer = node.start();
    assert!(renewer.next().is_none() && renewer.keys().borrow().identity() == node.own());
    assert!(node.notes.all()[0].1.contains("identity.next is damaged"), "{:?}", node.notes.all());
    renewer.begin();
    assert!(renewer.due().is_none() && node.outcome().unwrap().unwrap_err().contains("is damaged"));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn a_coordinator_that_is_gone_or_busy_leaves_it_to_the_next() {
    let good = Server::start(|_| taken()).await;
    let busy = Server::start(|_| refuse(&ErrorCode::Busy)).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let node = Node::new();
    let mut renewer = node.start();
    renewer.begin();
    let dial = good.dial_of(&[&gone, &busy.address, &good.address], &[busy.key, good.key]);
    let dial = Dial { keys: renewer.keys(), ..dial };
    let mut tasks = JoinSet::new();
    renewer.ask(&mut tasks, dial, NodeFacts::default());
    assert_eq!(renewer.next_answer().await, Some(IdentityAnswer::Taken));
}

#[tokio::test]
async fn the_channel_goes_on_with_the_next_key_without_a_restart() {
    let line = serde_json::to_string(&WatchEvent::Snapshot { netmap: Box::new(netmap(1)) }).unwrap() + "\n";
    let server = Server::start(move |_| open(line.clone())).await;
    let node = Node::new();
    let former = node.own();
    let mut renewer = node.start();
    let link = ChannelKeeper {
        dial: Dial { keys: renewer.keys(), ..server.dial(&[server.key]) },
        turn: 0,
        records: watch::Sender::default(),
        current: None,
        guard: MapGuard::new(None),
        maps: watch::Sender::new(None),
        state: watch::Sender::default(),
        report: watch::Sender::new(None).subscribe(),
        expelled: watch::Sender::default().subscribe(),
        own: watch::Sender::default().subscribe(),
    };
    let running = tokio::spawn(link.run());
    server.wait(|asked| asked.iter().any(|asked| asked.by == former)).await;

    renewer.begin();
    let next = node.next().unwrap();
    renewer.conclude(IdentityAnswer::Taken).unwrap();
    let began = Instant::now();
    server.wait(|asked| asked.iter().any(|asked| asked.by == next && asked.path == "/v1/watch")).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    running.abort();
}
