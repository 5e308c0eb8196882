//! A coordinator changes its identity key, and no node that was there is left behind.

use coordinator::base::words::SOCKET;
use coordinator::core::documents;
use coordinator::keys::identity;
use hyper::Method;
use mesh_host::client::Client;
use mesh_host::identity::verify;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::wire::{Report, ReportResponse, WatchEvent};

use crate::common::{Lines, TestCoordinator, TestNode, until};

async fn rotate(coordinator: &TestCoordinator, commit: bool, force: bool) -> Result<String, String> {
    let wanted = documents::RotateKey { commit, force };
    let done = Client::new(&SOCKET, coordinator.socket())
        .ask::<documents::DoneDocument>(Method::POST, "/v1/rotate-key", Some(&wanted))
        .await;
    done.map(|done| done.message).map_err(|error| error.to_string())
}

async fn next_map(lines: &mut Lines, before: Option<NetMap>) -> NetMap {
    loop {
        match lines.next().await.unwrap() {
            WatchEvent::Snapshot { netmap } => return *netmap,
            WatchEvent::Delta { delta } => return delta.apply(before.as_ref().unwrap()).unwrap(),
            WatchEvent::Alive { .. } => {}
            WatchEvent::Fenced | WatchEvent::Leaving | WatchEvent::Unknown => panic!("the watch ended"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_key_is_announced_by_the_present_one_and_used_once_all_nodes_know_it() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let old = coordinator.running.key;
    let refused = rotate(&coordinator, true, false).await.unwrap_err();
    assert!(refused.contains("rotate-key first"), "{refused}");

    let told = rotate(&coordinator, false, false).await.unwrap();
    assert_eq!(rotate(&coordinator, false, false).await.unwrap(), told, "asked again, the same key");
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    let map = next_map(&mut lines, None).await;
    let [listed] = &*map.mesh.coordinators else { panic!("one coordinator: {:?}", map.mesh.coordinators) };
    let next = listed.next.unwrap();
    assert!(listed.key == old && next.key != old && next.is_by(&old, verify));
    assert_eq!(coordinator.token().await.pins, [old, next.key], "tokens are good before and after");

    let refused = rotate(&coordinator, true, false).await.unwrap_err();
    assert!(refused.contains("1 nodes may not know the next key: n1"), "{refused}");
    let report = Report { facts: node.facts(), applied: map.revision, warnings: Vec::new() };
    let _: ReportResponse = channel.post("/v1/report", &report).await.unwrap();
    until("the node knows it", async || rotate(&coordinator, true, false).await.is_ok()).await;
    let again = rotate(&coordinator, true, true).await.unwrap_err();
    assert!(again.contains("restart"), "{again}");
    drop((lines, channel));

    let coordinator = coordinator.restart().await;
    assert_eq!(coordinator.running.key, next.key);
    let state = coordinator.dir.path().join("state");
    assert_eq!(identity::load_file(&state.join("identity.former")).unwrap().public(), old);
    let former = TestNode { address: coordinator.address(), ..node };
    assert!(former.dial().await.is_err(), "whoever missed the announcement refuses");
    let node = TestNode { pin: next.key, ..former };
    let map = next_map(&mut node.connect().await.watch(None).await.unwrap(), None).await;
    let listed: Vec<_> = map.mesh.coordinators.iter().map(|one| (one.key, one.next)).collect();
    assert_eq!(listed, [(next.key, None)], "the former key is trusted no more");
    let log: documents::Log = coordinator.fetch("/v1/log").await;
    assert!(log.entries.iter().any(|logged| logged.entry.kind == "coordinator_next"));
}
