//! Lock mode over real connections: the verbs, what nodes are sent, and what the log tells of it.

use std::os::unix::fs::MetadataExt as _;

use coordinator::cli::args::Cli;
use coordinator::cli::outcome::Outcome;
use coordinator::cli::verbs::perform;
use coordinator::core::documents;
use coordinator::keys::identity;
use mesh_host::identity::Identity;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::wire::{Countersign, LockStanding, WatchEvent};

use crate::common::{Lines, NodeChannel, TestCoordinator, TestNode, until};

/// Runs a verb against the coordinator.
async fn verb(coordinator: &TestCoordinator, words: &[&str]) -> Outcome {
    let socket = coordinator.socket();
    let start = ["mesh-coordinator", "--socket", socket.to_str().unwrap()];
    let cli = <Cli as clap::Parser>::try_parse_from(start.iter().chain(words)).unwrap();
    perform(&cli).await
}

/// A node's map, as its watch leads to it.
struct Follower {
    lines: Lines,
    map: NetMap,
}

impl Follower {
    async fn open(channel: &mut NodeChannel<'_>) -> Self {
        let mut lines = channel.watch(None).await.unwrap();
        match lines.next().await {
            Some(WatchEvent::Snapshot { netmap }) => Self { lines, map: *netmap },
            other => panic!("not a snapshot first: {other:?}"),
        }
    }

    /// Follows until the map is as wanted.
    async fn until(&mut self, wanted: impl Fn(&NetMap) -> bool) {
        while !wanted(&self.map) {
            match self.lines.next().await.expect("the watch goes on") {
                WatchEvent::Delta { delta } => self.map = delta.apply(&self.map).unwrap(),
                WatchEvent::Snapshot { netmap } => self.map = *netmap,
                WatchEvent::Alive { .. } => {}
                WatchEvent::Fenced | WatchEvent::Leaving | WatchEvent::Unknown => panic!("the watch ended"),
            }
        }
    }
}

/// What a node that connects now is sent.
async fn snapshot(node: &TestNode) -> NetMap {
    Follower::open(&mut node.connect().await).await.map
}

fn sees(map: &NetMap, name: &str) -> bool {
    map.peers.contains_key(&name.parse().unwrap())
}

fn is_locked(map: &NetMap) -> bool {
    map.mesh.lock.as_ref().is_some_and(|lock| lock.key.is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_a_locked_mesh_is_sent_to_nobody_before_the_key_signs_on_deltas_and_snapshots() {
    let coordinator = TestCoordinator::start().await;
    let (first, _) = coordinator.join("n1").await;
    let (second, _) = coordinator.join("n2").await;
    let mut channel = first.connect().await;
    let mut one = Follower::open(&mut channel).await;
    let file = coordinator.dir.path().join("lock.key");
    let path = file.to_str().unwrap();

    let made = verb(&coordinator, &["lock", "init", "--key", path]).await;
    assert_eq!(made.code, 0, "{made:?}");
    assert!(made.out.contains("2 nodes are admitted") && made.err.contains("delete it here"), "{made:?}");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let key = identity::load_file(&file).unwrap();
    one.until(is_locked).await;
    let mesh = one.map.mesh.name.clone();
    let good = |map: &NetMap| {
        map.peers.iter().all(|(name, peer)| {
            let member = peer.member(name).unwrap();
            peer.countersigned.is_some_and(|s| member.is_by(&mesh, &key.public(), &s, mesh_host::identity::verify))
        })
    };
    assert!(sees(&one.map, "n2") && good(&one.map), "nobody is cut off by it");

    let (third, joined) = coordinator.join("n3").await;
    assert!(is_locked(&joined.netmap), "a newcomer learns the lock at the join");
    let nodes: documents::Nodes = coordinator.fetch("/v1/nodes").await;
    let waits: Vec<_> = nodes.nodes.iter().filter(|node| node.waits).map(|node| node.name.as_str()).collect();
    assert_eq!(waits, ["n3"]);
    for words in [&["status"][..], &["nodes"], &["lock", "status"]] {
        let told = verb(&coordinator, words).await.out;
        assert!(told.contains("n3") && told.to_lowercase().contains("wait"), "{told}");
    }
    assert!(!sees(&snapshot(&second).await, "n3"), "a snapshot leaves it out");

    // Signed by a stranger's key; then by the right one, for somebody else; then as it should be.
    let standing: LockStanding = {
        let body = channel.send(hyper::Method::GET, "/v1/lock", Vec::new()).await.unwrap().into_body();
        serde_json::from_slice(&http_body_util::BodyExt::collect(body).await.unwrap().to_bytes()).unwrap()
    };
    let member = &standing.waiting[0];
    assert_eq!((standing.waiting.len(), member.name.as_str()), (1, "n3"));
    let by = |key: &Identity| key.sign(&member.message(&mesh));
    let wrong = Countersign { node: member.name.clone(), signature: by(&Identity::generate().unwrap()) };
    let (_, body) = channel.post::<LockStanding>("/v1/lock", &wrong).await.unwrap_err();
    assert_eq!(body.error.as_str(), "lock");
    let moved = Countersign { node: "n2".parse().unwrap(), signature: by(&key) };
    assert_eq!(channel.post::<LockStanding>("/v1/lock", &moved).await.unwrap_err().1.error.as_str(), "lock");
    assert!(!sees(&snapshot(&third).await, "n3") && !sees(&one.map, "n3"));
    let right = Countersign { node: member.name.clone(), signature: by(&key) };
    let after: LockStanding = channel.post("/v1/lock", &right).await.unwrap();
    assert_eq!(after.waiting, []);
    one.until(|map| sees(map, "n3")).await;
    assert!(good(&one.map));
    let log = verb(&coordinator, &["log"]).await.out;
    assert!(log.contains("lock_init") && log.contains("lock_sign"), "{log}");

    // What deltas led to is what a snapshot says.
    let (stranger, _) = coordinator.join("n4").await;
    let ended = verb(&coordinator, &["lock", "disable", "--key", path]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    one.until(|map| !is_locked(map)).await;
    let mut own = Follower::open(&mut stranger.connect().await).await;
    own.until(|map| !is_locked(map)).await;
    assert!(own.map.warnings.iter().all(|warning| !warning.contains("lock")), "{:?}", own.map.warnings);
    until("the snapshot is that", async || {
        let fresh = snapshot(&first).await;
        NetMap { revision: one.map.revision, ..fresh } == one.map
    })
    .await;
    let again = verb(&coordinator, &["lock", "init", "--key", path]).await;
    assert!(again.code == 1 && again.err.contains("before") && file.exists(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_from_before_the_lock_is_locked_again_by_the_same_key() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let (backup, file) = (coordinator.dir.path().join("backup"), coordinator.dir.path().join("lock.key"));
    let [backup, file] = [&backup, &file].map(|path| path.to_str().unwrap().to_owned());
    assert_eq!(verb(&coordinator, &["backup", &backup]).await.code, 0);
    assert_eq!(verb(&coordinator, &["lock", "init", "--key", &file]).await.code, 0);
    let TestCoordinator { dir, running } = coordinator;
    running.stop().await;
    let config = dir.path().join("coordinator.toml");
    std::fs::write(
        &config,
        "state_dir = \"state\"\nservices = \"services.toml\"\nadmin_socket = \"state/admin.sock\"\n",
    )
    .unwrap();
    let said = coordinator::cli::restore::restore(&config, Some(backup.as_ref())).unwrap();
    assert!(said.iter().any(|line| line.contains("lock init --key FILE")), "{said:?}");

    let coordinator = TestCoordinator::start_in(dir).await;
    let again = verb(&coordinator, &["lock", "init", "--key", &file]).await;
    assert_eq!(again.code, 0, "{again:?}");
    let map = snapshot(&TestNode { address: coordinator.address(), ..node }).await;
    let key = identity::load_file(file.as_ref()).unwrap().public();
    assert_eq!(map.mesh.lock.unwrap().key, Some(key));
}
