//! A node changes its identity key over the control channel, and may ask again when the answer was lost.

use coordinator::core::documents;
use hyper::StatusCode;
use mesh_host::identity::Identity;
use mesh_host::identity::verify;
use mesh_proto::base::id::NodeId;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::trust::identity_rotation::{Succession, leads};
use mesh_proto::wire::{NodeFacts, Renewal, Report, ReportResponse, WatchEvent};

use crate::common::{Lines, TestCoordinator, TestNode};

/// What a node asks with that goes on as another.
fn renewal(id: NodeId, former: &TestNode, next: &TestNode) -> Renewal {
    let (from, to) = (former.identity.public(), next.identity.public());
    let succession = Succession {
        from,
        to,
        signature: former.identity.sign(&Succession::message(id, &from, &to)),
        accepted: next.identity.sign(&Succession::acceptance(id, &from, &to)),
    };
    // The tunnel keys stay.
    let facts = NodeFacts { sequence: 1, signed: None, ..former.facts() };
    Renewal { succession, facts: next.signed(facts) }
}

async fn snapshot(lines: &mut Lines) -> NetMap {
    match lines.next().await {
        Some(WatchEvent::Snapshot { netmap }) => *netmap,
        other => panic!("no snapshot: {other:?}"),
    }
}

/// Reads until the watch ends.
async fn end(mut lines: Lines) {
    while let Some(event) = lines.next().await {
        assert!(!matches!(event, WatchEvent::Fenced | WatchEvent::Leaving), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_with_another_key_and_the_former_is_a_strangers() {
    let coordinator = TestCoordinator::start().await;
    let (peer, _) = coordinator.join("n1").await;
    let (former, joined) = coordinator.join("n2").await;
    let next = TestNode { identity: Identity::generate().unwrap(), name: "n2".into(), ..former };
    let mut channel = former.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    snapshot(&mut lines).await;

    let stranger = TestNode::new(&coordinator, "n2");
    let asked = renewal(joined.id, &former, &next);
    let (status, body) = stranger.connect().await.post::<ReportResponse>("/v1/identity", &asked).await.unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::FORBIDDEN, "unknown_node"));
    let forged = Renewal { facts: former.facts(), ..asked.clone() };
    let (status, _) = channel.post::<ReportResponse>("/v1/identity", &forged).await.unwrap_err();
    assert_eq!(status, StatusCode::BAD_REQUEST, "a record of the former key");

    let _: ReportResponse = channel.post("/v1/identity", &asked).await.unwrap();
    end(lines).await;
    // As often as the answer is lost, over the same channel or another.
    let _: ReportResponse = channel.post("/v1/identity", &asked).await.unwrap();
    let _: ReportResponse = former.connect().await.post("/v1/identity", &asked).await.unwrap();
    let (status, body) = channel.watch(None).await.map(|_| ()).unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::FORBIDDEN, "superseded"));
    assert!(body.message.contains("`n2` replaced this identity key"), "{}", body.message);
    let report = Report { facts: former.facts(), applied: Default::default(), warnings: Vec::new() };
    let (_, body) = channel.post::<ReportResponse>("/v1/report", &report).await.unwrap_err();
    assert_eq!(body.error.as_str(), "superseded");
    let (_, body) = former.connect().await.join(&coordinator.token().await).await.unwrap_err();
    assert_eq!(body.error.as_str(), "superseded");

    let mut channel = next.connect().await;
    let own = snapshot(&mut channel.watch(None).await.unwrap()).await;
    assert_eq!((own.node.id, own.node.sequence), (joined.id, 1));
    let seen = snapshot(&mut peer.connect().await.watch(None).await.unwrap()).await;
    let proof = seen.peers[&"n2".parse().unwrap()].proof.clone().unwrap();
    let (from, to) = (former.identity.public(), next.identity.public());
    assert!(proof.identity == to && leads(&proof.lineage, joined.id, &from, &to, verify));
    let nodes: documents::Nodes = coordinator.fetch("/v1/nodes").await;
    let listed = nodes.nodes.iter().find(|node| node.name.as_str() == "n2").unwrap();
    assert_eq!((listed.identity, listed.identity_changes), (Some(to), 1));
}
