//! The control channel, from a node's side, over real connections.

use coordinator::base::words::SOCKET;
use coordinator::daemon;
use coordinator::keys::identity;
use hyper::StatusCode;
use mesh_host::client::Client;
use mesh_host::log::LostLines;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::trust::join_token::JoinToken;
use mesh_proto::wire::{Report, ReportResponse, WatchEvent};

use crate::common::{SERVICES, TestCoordinator, TestNode, config, until};

fn snapshot(event: Option<WatchEvent>) -> NetMap {
    match event {
        Some(WatchEvent::Snapshot { netmap }) => *netmap,
        other => panic!("no snapshot: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_watches_gets_a_delta_after_an_edit_and_resumes() {
    let coordinator = TestCoordinator::start().await;
    let (node, joined) = coordinator.join("n1").await;
    assert_eq!(joined.mesh.as_str(), "boutique");
    assert_eq!(joined.pins, [coordinator.running.key]);
    assert_eq!(joined.coordinators, ["127.0.0.1:7700"]);

    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    let first = snapshot(lines.next().await);
    assert_eq!(first, joined.netmap);
    assert_eq!(first.services.len(), 1);

    coordinator.save(&SERVICES.replace("weight = 80", "weight = 50"));
    let Some(WatchEvent::Delta { delta }) = lines.next().await else { panic!("no delta") };
    let second = delta.apply(&first).unwrap();
    assert!(second.revision > first.revision);
    assert_eq!(second.services.values().next().unwrap().backends[0].weight, 50);

    // A second connection continues from what the first was sent.
    let mut again = node.connect().await;
    let mut resumed = again.watch(Some(first.revision.0)).await.unwrap();
    let Some(WatchEvent::Delta { delta }) = resumed.next().await else { panic!("not resumed") };
    assert_eq!(delta.apply(&first).unwrap(), second);
    let mut level = again.watch(Some(second.revision.0)).await.unwrap();
    let alive = level.next().await;
    assert!(matches!(alive, Some(WatchEvent::Alive { revision, .. }) if revision == second.revision), "{alive:?}");
    let mut unknown = again.watch(Some(999)).await.unwrap();
    assert_eq!(snapshot(unknown.next().await), second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_coordinator_sends_a_snapshot_and_keeps_its_revision() {
    let coordinator = TestCoordinator::start().await;
    let (mut node, joined) = coordinator.join("n1").await;

    let coordinator = coordinator.restart().await;
    node.address = coordinator.address();
    let mut channel = node.connect().await;
    let mut lines = channel.watch(Some(joined.netmap.revision.0)).await.unwrap();

    assert_eq!(snapshot(lines.next().await), joined.netmap);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_watch_says_that_it_is_alive() {
    let coordinator = TestCoordinator::start().await;
    let (node, joined) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    snapshot(lines.next().await);

    let revision = joined.netmap.revision;
    let alive = lines.next().await;
    assert!(
        matches!(alive, Some(WatchEvent::Alive { revision: r, log: Some(_), time: Some(_) }) if r == revision),
        "{alive:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_watch_fences_the_older() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let mut old_channel = node.connect().await;
    let mut old = old_channel.watch(None).await.unwrap();
    snapshot(old.next().await);

    let mut new_channel = node.connect().await;
    let mut new = new_channel.watch(None).await.unwrap();
    snapshot(new.next().await);

    assert_eq!(old.next().await, Some(WatchEvent::Fenced));
    assert_eq!(old.next().await, None);
    assert_eq!(coordinator.status().await.live.connected, 1);
    drop((new, new_channel));
    until("nobody is connected", async || coordinator.status().await.live.connected == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_makes_the_revision_live_and_tells_the_node_what_is_seen() {
    let coordinator = TestCoordinator::start().await;
    let (node, joined) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    snapshot(lines.next().await);
    assert_eq!(coordinator.status().await.live.current, 0);

    let report =
        Report { facts: node.facts(), applied: joined.netmap.revision, warnings: vec!["ip_forward is off".into()] };
    let answer: ReportResponse = channel.post("/v1/report", &report).await.unwrap();

    assert!(answer.observed.is_loopback());
    let status = coordinator.status().await;
    assert_eq!((status.live.current, status.live.connected, status.live.nodes), (1, 1, 1));
    assert!(status.warnings.contains(&"n1: ip_forward is off".to_owned()));
    assert_eq!(status.revision, joined.netmap.revision, "the same facts make no revision");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_tokens_reach_no_node() {
    let coordinator = TestCoordinator::start().await;
    let (node, joined) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    let held = snapshot(lines.next().await).revision;
    let report = Report { facts: node.facts(), applied: joined.netmap.revision, warnings: Vec::new() };
    let _: ReportResponse = channel.post("/v1/report", &report).await.unwrap();
    for _ in 0..100 {
        coordinator.token().await;
    }

    let status = coordinator.status().await;
    assert!(status.revision.0 >= held.0 + 100);
    assert_eq!(status.live.current, 1, "the node has in force what the revision means to it");
    let mut again = node.connect().await;
    let mut resumed = again.watch(Some(held.0)).await.unwrap();
    let alive = resumed.next().await;
    assert!(matches!(alive, Some(WatchEvent::Alive { revision, .. }) if revision == held), "{alive:?}");
    coordinator.save(&SERVICES.replace("7070", "7071"));
    let Some(WatchEvent::Delta { delta }) = resumed.next().await else { panic!("the edit comes next") };
    assert!(delta.from == held && delta.to.0 > held.0 + 100 && !delta.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_admits_once_and_the_same_node_again() {
    let coordinator = TestCoordinator::start().await;
    let token = coordinator.token().await;
    let first = TestNode::new(&coordinator, "n1");
    let joined = first.connect().await.join(&token).await.unwrap();
    let again = first.connect().await.join(&token).await.unwrap();
    assert_eq!(again.id, joined.id);

    let second = TestNode::new(&coordinator, "n2");
    let (status, body) = second.connect().await.join(&token).await.unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::UNAUTHORIZED, "token"));

    let mut wrong = coordinator.token().await;
    wrong.secret.0[0] ^= 1;
    let (status, body) = second.connect().await.join(&wrong).await.unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::UNAUTHORIZED, "token"));

    let wanted = serde_json::json!({"site": "dc", "name": null, "ttl_s": 1, "serve": [], "uses": 1});
    let short = coordinator.token_for(&wanted).await;
    until("the token expires", async || {
        let tokens: coordinator::core::documents::TokensDocument = coordinator.fetch("/v1/tokens").await;
        tokens.tokens.iter().any(|t| t.id == short.id_text() && !t.usable)
    })
    .await;
    let (status, _) = second.connect().await.join(&short).await.unwrap_err();
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_may_neither_watch_nor_report() {
    let coordinator = TestCoordinator::start().await;
    let stranger = TestNode::new(&coordinator, "n1");
    let mut channel = stranger.connect().await;

    let (status, body) = channel.watch(None).await.map(|_| ()).unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::FORBIDDEN, "unknown_node"));
    assert!(body.message.contains("meshd join"), "{}", body.message);
    let report = Report { facts: stranger.facts(), applied: Default::default(), warnings: Vec::new() };
    let (status, body) = channel.post::<ReportResponse>("/v1/report", &report).await.unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::FORBIDDEN, "unknown_node"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_a_stranger_at_once() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    snapshot(lines.next().await);

    let path = "/v1/nodes/n1";
    let method = hyper::Method::DELETE;
    let _: coordinator::core::documents::DoneDocument =
        Client::new(&SOCKET, coordinator.socket()).ask(method, path, None::<&()>).await.unwrap();

    assert_eq!(lines.next().await, None);
    let (status, body) = channel.watch(None).await.map(|_| ()).unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::FORBIDDEN, "revoked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_pin_does_not_speak_to_us() {
    let coordinator = TestCoordinator::start().await;
    let mut node = TestNode::new(&coordinator, "n1");
    node.pin = node.identity.public();
    assert!(node.dial().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_hands_nodes_over_and_ends_watches_within_two_seconds() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    snapshot(lines.next().await);

    let began = std::time::Instant::now();
    coordinator.running.stop().await;

    assert!(began.elapsed() < std::time::Duration::from_secs(2));
    assert_eq!(lines.next().await, Some(WatchEvent::Leaving));
    assert_eq!(lines.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happens() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let stranger = TestNode::new(&coordinator, "n2");
    let wrong = JoinToken { id: [0; 8], ..coordinator.token().await };
    stranger.connect().await.join(&wrong).await.unwrap_err();
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    snapshot(lines.next().await);

    let text = coordinator.metrics().await;

    for line in [
        "coordinator_nodes 1",
        "coordinator_watchers 1",
        "coordinator_services_file_ok 1",
        "coordinator_enrolments_total{result=\"accepted\"} 1",
        "coordinator_enrolments_total{result=\"token\"} 1",
        "coordinator_build_info{version=",
        "coordinator_revision ",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metrics_port_that_is_taken_is_no_reason_not_to_start() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    identity::load_or_create(&dir.path().join("state")).unwrap();
    let mut config = config(dir.path());
    config.metrics = taken.local_addr().ok();

    let running = daemon::start(config, LostLines::default()).await.unwrap();

    assert_eq!(running.metrics, None);
    running.stop().await;
}
