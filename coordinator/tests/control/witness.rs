//! A node follows the log by itself, from what it is told and what it may ask.

use aws_lc_rs::digest::{Context, SHA256};
use coordinator::base::words::SOCKET;
use http_body_util::BodyExt as _;
use hyper::Method;
use mesh_host::client::Client;
use mesh_proto::base::clock::Timestamp;
use mesh_proto::trust::audit_log::{LogHash, LogPage, LogPosition, LogWitness, Next, Roll};
use mesh_proto::wire::WatchEvent;
use serde::de::DeserializeOwned;

use crate::common::{NodeChannel, TestCoordinator};

fn link(before: &LogHash, body: &[u8]) -> LogHash {
    let mut context = Context::new(&SHA256);
    context.update(&before.0);
    context.update(body);
    let mut hash = LogHash::default();
    hash.0.copy_from_slice(context.finish().as_ref());
    hash
}

async fn get<A: DeserializeOwned>(channel: &mut NodeChannel<'_>, path: &str) -> A {
    let body = channel.send(Method::GET, path, Vec::new()).await.unwrap().into_body();
    serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap()
}

/// Asks for what there is to read, a page of which is altered first.
async fn follow(witness: &mut LogWitness, channel: &mut NodeChannel<'_>, told: LogPosition, alter: fn(&mut LogPage)) {
    let mut next = witness.coordinator_says(told, Timestamp::from_micros(1));
    while let Next::Read(after) = next {
        let mut page: LogPage = get(channel, &format!("/v1/log?after={after}")).await;
        alter(&mut page);
        next = witness.read(&page, link);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_admission_is_explained_by_an_entry_that_follows_from_what_a_node_has_seen() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let roll: Roll = get(&mut channel, "/v1/roll").await;
    assert!(roll.members.contains(&node.identity.public()) && roll.told.head.seq > 0);
    let mut watch = node.connect().await.watch(Some(roll.revision.0)).await.unwrap();
    let (later, _) = coordinator.join("n2").await;
    coordinator.token().await;

    // What a node is told when nothing concerns it, and whatever else it is told.
    let told = loop {
        match watch.next().await.unwrap() {
            WatchEvent::Alive { log, .. } if log.is_some_and(|told| told.head.seq >= roll.told.head.seq + 3) => {
                break log;
            }
            WatchEvent::Alive { .. } | WatchEvent::Delta { .. } | WatchEvent::Snapshot { .. } => {}
            WatchEvent::Fenced | WatchEvent::Leaving | WatchEvent::Unknown => panic!("the watch ended"),
        }
    };
    let told = told.unwrap();
    let mut witness = LogWitness::new(Some(roll.clone()));
    follow(&mut witness, &mut channel, told, |_| {}).await;
    assert_eq!(witness.alarms(), <[String; 0]>::default());
    let read = witness.roll().unwrap();
    assert_eq!(read.told.head, told.head);
    assert!(read.members.contains(&later.identity.public()));
    let world: Roll = get(&mut channel, "/v1/roll").await;
    assert_eq!((&read.members, read.revision), (&world.members, world.revision));

    let mut witness = LogWitness::new(Some(roll));
    let forge = |page: &mut LogPage| page.entries.iter_mut().for_each(|e| e.body = e.body.replace("n2", "nX"));
    follow(&mut witness, &mut channel, told, forge).await;
    assert!(witness.alarms()[0].contains("does not follow"), "{:?}", witness.alarms());

    let refused: serde_json::Value = get(&mut channel, "/v1/log?after=x").await;
    assert_eq!(refused["error"], "malformed");
    let log: coordinator::core::documents::Log =
        Client::new(&SOCKET, coordinator.socket()).get("/v1/log").await.unwrap();
    assert_eq!(log.head, told.head);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_in_the_log_and_in_the_roll_of_who_joins_later() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let (gone, _) = coordinator.join("n2").await;
    let mut channel = node.connect().await;
    let roll: Roll = get(&mut channel, "/v1/roll").await;
    assert!(roll.expelled.is_empty() && roll.members.contains(&gone.identity.public()));
    let path = "/v1/nodes/n2";
    let _: coordinator::core::documents::DoneDocument =
        Client::new(&SOCKET, coordinator.socket()).ask(Method::DELETE, path, None::<&()>).await.unwrap();

    let page: LogPage = get(&mut channel, &format!("/v1/log?after={}", roll.told.head.seq)).await;
    let mut witness = LogWitness::new(Some(roll));
    assert_eq!(witness.read(&page, link), Next::Nothing);
    let expelled = [gone.identity.public()].into();
    assert_eq!(witness.roll().unwrap().expelled, expelled);
    let (later, _) = coordinator.join("n3").await;
    let roll: Roll = get(&mut later.connect().await, "/v1/roll").await;
    assert_eq!(roll.expelled, expelled);
    assert!(!roll.members.contains(&gone.identity.public()));
    assert_eq!(witness.alarms(), <[String; 0]>::default());
}
