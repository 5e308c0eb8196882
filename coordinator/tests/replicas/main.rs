//! Several coordinators on one etcd: real processes, real members, killed at will.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../etcd/cluster.rs"]
mod cluster;
#[path = "../control/common.rs"]
#[expect(dead_code, reason = "shared with the other suite, which uses more of it")]
mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coordinator::base::words::SOCKET;
use coordinator::core::documents;
use coordinator::store::etcd::EtcdOptions;
use hyper::{Method, StatusCode};
use mesh_host::client::{AskError, Client};
use mesh_proto::base::id::Revision;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::trust::join_token::JoinToken;
use mesh_proto::wire::{JoinResponse, WatchEvent};

use cluster::Cluster;
use common::{Lines, SERVICES, TestNode, until};

/// A coordinator as a process of its own.
struct Replica {
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Replica {
    /// Starts one on an etcd, with a services.toml.
    async fn start(etcd: &Cluster, services: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\npublic = \"127.0.0.1:{port}\"\nstate_dir = \"state\"\n\
             services = \"services.toml\"\nadmin_socket = \"state/admin.sock\"\nmetrics = \"\"\nstore = \"{}\"\n",
            etcd.options().shown("/mesh/boutique")
        );
        std::fs::write(dir.path().join("coordinator.toml"), text).unwrap();
        std::fs::write(dir.path().join("services.toml"), services).unwrap();
        coordinator::keys::identity::load_or_create(&dir.path().join("state")).unwrap();
        let mut replica = Self { dir, port, child: None };
        replica.run().await;
        replica
    }

    async fn run(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"));
        command.args(["run", "--config"]).arg(self.dir.path().join("coordinator.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let up = until("the coordinator starts", || async { self.try_status().await.is_some() });
        up.await;
    }

    /// Ends it at once.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("state/admin.sock")
    }

    fn save(&self, services: &str) {
        std::fs::write(self.dir.path().join("services.toml"), services).unwrap();
    }

    async fn try_status(&self) -> Option<documents::StatusDocument> {
        Client::new(&SOCKET, self.socket()).get("/v1/status").await.ok()
    }

    async fn status(&self) -> documents::StatusDocument {
        self.try_status().await.expect("it answers")
    }

    async fn token(&self) -> JoinToken {
        token(&self.socket()).await.expect("a token")
    }

    async fn node(&self, name: &str) -> TestNode {
        let identity = mesh_host::identity::Identity::generate().unwrap();
        let address = format!("127.0.0.1:{}", self.port).parse().unwrap();
        TestNode { name: name.into(), identity, address, pin: self.status().await.key }
    }

    /// Lets a node dial this coordinator.
    async fn takes(&self, node: &mut TestNode) {
        node.address = format!("127.0.0.1:{}", self.port).parse().unwrap();
        node.pin = self.status().await.key;
    }

    async fn join(&self, name: &str) -> (TestNode, JoinResponse) {
        let node = self.node(name).await;
        let joined = node.connect().await.join(&self.token().await).await.unwrap();
        (node, joined)
    }
}

async fn token(socket: &std::path::Path) -> Result<JoinToken, String> {
    let wanted = serde_json::json!({"site": "dc", "name": null, "ttl_s": 600, "serve": [], "uses": 1});
    let line: documents::TokenLine = Client::new(&SOCKET, socket)
        .ask(Method::POST, "/v1/tokens", Some(&wanted))
        .await
        .map_err(|error| error.to_string())?;
    Ok(line.token.parse().unwrap())
}

async fn three(etcd: &Cluster) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Replica::start(etcd, SERVICES).await);
    }
    replicas
}

/// Reads a watch until a map fits.
async fn map_that(lines: &mut Lines, map: &mut Option<NetMap>, fits: impl Fn(&NetMap) -> bool) {
    while !map.as_ref().is_some_and(&fits) {
        match lines.next().await.expect("the watch goes on") {
            WatchEvent::Snapshot { netmap } => *map = Some(*netmap),
            WatchEvent::Delta { delta } => *map = Some(delta.apply(&map.take().unwrap()).unwrap()),
            WatchEvent::Alive { .. } | WatchEvent::Fenced | WatchEvent::Leaving | WatchEvent::Unknown => {}
        }
    }
}

fn weight(map: &NetMap) -> Option<u32> {
    let service = map.services.values().next()?;
    Some(service.backends.first()?.weight)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_one_coordinator_is_seen_by_the_nodes_of_all() {
    let Some(etcd) = Cluster::start(3) else { return };
    let replicas = three(&etcd).await;
    let mut nodes = Vec::new();
    for (i, replica) in replicas.iter().enumerate() {
        // A token of one coordinator is redeemed at another at once.
        let node = replica.node(&format!("n{i}")).await;
        let token = replicas[(i + 1) % 3].token().await;
        node.connect().await.join(&token).await.unwrap();
        let again = node.connect().await.join(&replicas[i].token().await).await;
        again.expect("who is a member is welcomed again");
        nodes.push(node);
    }
    let mut channels = Vec::new();
    let mut watches = Vec::new();
    for node in &nodes {
        let mut channel = node.connect().await;
        watches.push((channel.watch(None).await.unwrap(), None));
        channels.push(channel);
    }
    for (weight_now, replica) in (50..).zip(&replicas) {
        let began = Instant::now();
        replica.save(&SERVICES.replace("weight = 80", &format!("weight = {weight_now}")));
        for (lines, map) in &mut watches {
            map_that(lines, map, |map| weight(map) == Some(weight_now)).await;
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    // Expelled through one, cut off at another.
    let began = Instant::now();
    let done: documents::DoneDocument =
        Client::new(&SOCKET, replicas[0].socket()).ask(Method::DELETE, "/v1/nodes/n2", None::<&()>).await.unwrap();
    assert!(done.message.contains("n2"), "{}", done.message);
    let (mut lines, _) = watches.pop().unwrap();
    while lines.next().await.is_some() {}
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let refused = nodes[2].connect().await.watch(None).await.err().unwrap();
    assert_eq!((refused.0, refused.1.error.as_str()), (StatusCode::FORBIDDEN, "revoked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_answers_and_maps_name_all_coordinators_until_one_is_forgotten() {
    let Some(etcd) = Cluster::start(1) else { return };
    let mut replicas = three(&etcd).await;
    let mut keys = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for replica in &replicas {
        keys.insert(replica.status().await.key);
        addresses.insert(format!("127.0.0.1:{}", replica.port));
    }
    until("all know of each other", || async { replicas[0].status().await.coordinators.len() == 3 }).await;
    let token = replicas[0].token().await;
    assert_eq!(token.pins.first(), Some(&replicas[0].status().await.key), "its own key first");
    assert_eq!(token.pins.iter().copied().collect::<BTreeSet<_>>(), keys);
    assert_eq!(token.coordinators.iter().cloned().collect::<BTreeSet<_>>(), addresses);
    let (node, joined) = replicas[1].join("n1").await;
    assert_eq!(joined.pins.iter().copied().collect::<BTreeSet<_>>(), keys);
    let told = |map: &NetMap| map.mesh.coordinators.iter().map(|c| c.key).collect::<BTreeSet<_>>();
    assert_eq!(told(&joined.netmap), keys);

    let gone = replicas[2].status().await.key;
    replicas[2].kill();
    let seen = replicas[0].status().await.coordinators;
    assert_eq!(seen.iter().find(|other| other.key == gone).unwrap().answers, Some(false));
    assert_eq!(seen.iter().filter(|other| other.answers == Some(true)).count(), 1);
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    let path = format!("/v1/coordinators/{gone}");
    let _: documents::DoneDocument =
        Client::new(&SOCKET, replicas[0].socket()).ask(Method::DELETE, &path, None::<&()>).await.unwrap();
    keys.remove(&gone);
    map_that(&mut lines, &mut None, |map| told(map) == keys).await;
    let itself = format!("/v1/coordinators/{}", replicas[0].status().await.key);
    let refused = Client::new(&SOCKET, replicas[0].socket())
        .ask::<documents::DoneDocument>(Method::DELETE, &itself, None::<&()>)
        .await;
    assert!(refused.unwrap_err().to_string().contains("ask another one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_led_back_by_no_coordinator_after_changes_that_alter_no_map() {
    let Some(etcd) = Cluster::start(1) else { return };
    let mut one = Replica::start(&etcd, SERVICES).await;
    let two = Replica::start(&etcd, SERVICES).await;
    let (mut node, _) = one.join("n1").await;
    for _ in 0..3 {
        // No news to any node: who was there draws no new map, who starts now draws one.
        two.token().await;
        one.kill();
        one.run().await;
        let mut seen = Revision(0);
        for replica in [&one, &two] {
            replica.takes(&mut node).await;
            let mut channel = node.connect().await;
            let mut lines = channel.watch((seen.0 > 0).then_some(seen.0)).await.unwrap();
            let mut map = None;
            map_that(&mut lines, &mut map, |_| true).await;
            let revision = map.unwrap().revision;
            assert!(revision >= seen, "the node followed to {seen}, and is sent {revision}");
            seen = revision;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_restored_etcd_a_new_epoch_is_begun_and_no_number_given_twice() {
    let Some(etcd) = Cluster::start(1) else { return };
    let mut one = Replica::start(&etcd, SERVICES).await;
    let (node, joined) = one.join("n1").await;
    let config = one.dir.path().join("coordinator.toml");
    let restore = |file: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"));
        let output = command.args(["restore", "--config"]).arg(&config).args(file).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(restore(None).contains("stop it first"));
    one.kill();
    let refused = restore(Some("backup.redb"));
    assert!(refused.contains("etcdctl snapshot restore") && refused.contains("without a file"), "{refused}");
    for epoch in [2, 3] {
        let said = restore(None);
        assert!(said.contains(&format!("epoch {epoch}")) && said.contains("next: start"), "{said}");
    }
    one.run().await;
    let mut channel = node.connect().await;
    let mut lines = channel.watch(Some(joined.netmap.revision.0)).await.unwrap();
    let mut map = None;
    map_that(&mut lines, &mut map, |_| true).await;
    let map = map.unwrap();
    assert!(map.epoch.number == 3 && map.epoch.is_by(&[node.pin], mesh_host::identity::verify), "{:?}", map.epoch);
    let (_, second) = one.join("n2").await;
    assert!(second.id.0 > joined.id.0 + (1 << 20), "{:?}", second.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_holds_nothing_is_refused_where_a_mesh_was_kept() {
    let (Some(etcd), Some(empty)) = (Cluster::start(1), Cluster::start(1)) else { return };
    let mut one = Replica::start(&etcd, SERVICES).await;
    one.token().await;
    one.kill();
    let config = one.dir.path().join("coordinator.toml");
    let kept = std::fs::read_to_string(&config).unwrap();
    let lost = kept.replace(&etcd.options().shown("/mesh/boutique"), &empty.options().shown("/mesh/boutique"));
    std::fs::write(&config, lost).unwrap();
    let verb = |verb: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"));
        command.args([verb, "--config"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(8) {
            std::thread::sleep(Duration::from_millis(20));
        }
        // One that still runs ends without a status.
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for _ in 0..2 {
        let (status, said) = verb("run");
        assert_eq!(status, Some(78), "{said}");
        let marker = one.dir.path().join("state/founded").display().to_string();
        assert!(said.contains(&marker) && said.contains("mesh-coordinator restore"), "{said}");
        // A new epoch of nothing helps nobody.
        let (status, said) = verb("restore");
        assert!(status == Some(1) && said.contains("etcdctl snapshot restore"), "{said}");
    }
    std::fs::write(&config, kept).unwrap();
    one.run().await;
    assert!(one.status().await.revision > Revision(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_starts_with_another_file_does_not_undo_what_is_in_force() {
    let Some(etcd) = Cluster::start(1) else { return };
    let newer = SERVICES.replace("weight = 80", "weight = 33");
    let one = Replica::start(&etcd, &newer).await;
    let before = one.status().await.revision;

    let mut two = Replica::start(&etcd, SERVICES).await;
    assert_eq!(two.status().await.services.state, documents::FileState::Superseded);
    let (_, joined) = two.join("n1").await;
    assert_eq!(weight(&joined.netmap), Some(33));
    assert!(two.status().await.revision > before);

    two.save(&SERVICES.replace("weight = 80", "weight = 44"));
    until("the saved file is in force", || async {
        two.status().await.services.state == documents::FileState::Accepted
            && one.status().await.services.state == documents::FileState::Superseded
    })
    .await;
    // What was taken from here is not taken again after another coordinator's, but an altered file is.
    one.save(&SERVICES.replace("weight = 80", "weight = 55"));
    until("the other one is in force", || async {
        one.status().await.services.state == documents::FileState::Accepted
    })
    .await;
    two.kill();
    two.run().await;
    assert_eq!(two.status().await.services.state, documents::FileState::Superseded);
    two.kill();
    two.save(&SERVICES.replace("weight = 80", "weight = 66"));
    two.run().await;
    assert_eq!(two.status().await.services.state, documents::FileState::Accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_while_coordinators_and_members_of_etcd_are_killed() {
    let Some(mut etcd) = Cluster::start(3) else { return };
    let mut replicas = three(&etcd).await;
    let (mut node, joined) = replicas[0].join("n1").await;
    let stop = Arc::new(AtomicBool::new(false));
    // What was acknowledged, noted outside of all that is killed.
    let ledger: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut writers = Vec::new();
    for replica in &replicas {
        for _ in 0..2 {
            let (socket, stop, ledger) = (replica.socket(), Arc::clone(&stop), Arc::clone(&ledger));
            writers.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match token(&socket).await {
                        Ok(token) => ledger.lock().unwrap().push(token.id_text()),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            }));
        }
    }
    let acknowledged = || ledger.lock().unwrap().len();
    let mut held = joined.netmap.revision;
    for place in 0..3 {
        let written = acknowledged();
        match place {
            2 => etcd.stand_still(place, true),
            _ => etcd.kill(place),
        }
        replicas[place].kill();
        until("others go on writing", || async { acknowledged() > written + 20 }).await;
        // The node goes on at another coordinator, and gets what is new.
        let other = &replicas[(place + 1) % 3];
        other.takes(&mut node).await;
        let mut channel = node.connect().await;
        let mut lines = channel.watch(Some(held.0)).await.unwrap();
        let mut map = None;
        map_that(&mut lines, &mut map, |map| map.revision > held).await;
        held = map.map_or(held, |map| map.revision);
        match place {
            2 => etcd.stand_still(place, false),
            _ => etcd.restart(place),
        }
        replicas[place].run().await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    // What one has acknowledged the others hear of a moment later.
    until("all coordinators are at one revision", || async {
        let mut at = BTreeSet::new();
        for replica in &replicas {
            at.insert(replica.status().await.revision);
        }
        at.len() == 1
    })
    .await;
    let ledger = std::mem::take(&mut *ledger.lock().unwrap());
    let mut revisions = Vec::new();
    for replica in &replicas {
        let there: documents::TokensDocument = Client::new(&SOCKET, replica.socket()).get("/v1/tokens").await.unwrap();
        let there: BTreeSet<_> = there.tokens.into_iter().map(|token| token.id).collect();
        let lost: Vec<_> = ledger.iter().filter(|id| !there.contains(*id)).collect();
        assert!(lost.is_empty(), "{} of {} acknowledged tokens are lost: {lost:?}", lost.len(), ledger.len());
        revisions.push(replica.status().await.revision);
    }
    // They were at one revision above; what a node reports meanwhile may lead one of them on.
    let fewest = revisions.iter().min().unwrap();
    assert!(fewest.0 >= ledger.len() as u64, "{} tokens by {revisions:?}", ledger.len());
    assert!(revisions[0] > Revision(60), "{revisions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_etcd_takes_is_told_to_who_sent_it() {
    let Some(etcd) = Cluster::start_with(1, false, &["--max-request-bytes=16384".into()]) else { return };
    let one = Replica::start(&etcd, SERVICES).await;
    let services: Vec<String> = (0..3000).map(|number| format!("service-{number}")).collect();
    let wanted = serde_json::json!({"site": "dc", "name": null, "ttl_s": 600, "serve": services, "uses": 1});
    let asked =
        Client::new(&SOCKET, one.socket()).ask::<serde_json::Value>(Method::POST, "/v1/tokens", Some(&wanted)).await;
    let Err(AskError::Refused(body)) = asked else { panic!("{asked:?}") };
    assert_eq!(body.error.as_str(), "too_large", "{}", body.message);
    one.token().await;
}
