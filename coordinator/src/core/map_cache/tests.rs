//! Who is told what, and by how many encodings.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use mesh_proto::base::id::IdentityKey;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::plan::netmap;
use mesh_proto::services;
use mesh_proto::wire::WatchEvent;
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::channel::watch::WatchStream;
use crate::core::Core;
use crate::core::tests::{STRANGER, bytes, core, join, token};
use crate::registry::{Actor, Change};

/// Four nodes: `n1` backs `cart`, which `n0` and `n3` may call, and `n2` may do nothing.
async fn mesh() -> Arc<Core> {
    let core = core().await;
    for number in 0..4 {
        token(&core, number).await;
        core.apply(join(number, number), STRANGER).await.unwrap();
    }
    weight(&core, 1).await;
    core
}

/// Gives the backend of `cart` a weight, and waits until that is drawn.
async fn weight(core: &Arc<Core>, weight: usize) {
    let text = format!(
        "version = 1\n[[site]]\nname = \"dc\"\n[[service]]\nname = \"cart\"\nport = 80\n\
         backends = [{{ host = \"n1\", weight = {weight} }}]\n\
         [[allow]]\nfrom = [\"host:n0\", \"host:n3\"]\nto = [\"cart\"]\n"
    );
    let services = Arc::new(services::parse(&text, "services.toml").unwrap().services);
    let change = Change::Services { file: "services.toml".into(), text, services };
    core.apply(change, Actor::File).await.unwrap();
    assert_eq!(core.chart().await.revision(), core.world().revision);
}

async fn open(core: &Arc<Core>, machine: u32) -> (WatchStream, watch::Sender<bool>) {
    let (stop, stopping) = watch::channel(false);
    let node = name(machine);
    (WatchStream::open(Arc::clone(core), IdentityKey(bytes(machine)), node, None, stopping).await, stop)
}

fn name(machine: u32) -> NodeName {
    format!("n{machine}").parse().unwrap()
}

async fn next(stream: &mut WatchStream) -> WatchEvent {
    let mut line = timeout(Duration::from_secs(20), stream.next()).await.unwrap().unwrap().to_vec();
    while !line.ends_with(b"\n") {
        line.extend_from_slice(&stream.next().await.unwrap());
    }
    serde_json::from_slice(&line).unwrap()
}

async fn snapshot(stream: &mut WatchStream) -> NetMap {
    let event = next(stream).await;
    let WatchEvent::Snapshot { netmap } = event else { panic!("{event:?}") };
    *netmap
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_encoded_once_for_all_to_whom_it_is_the_same_and_is_nothing_to_others() {
    let core = mesh().await;
    let before = core.maps().newest();
    weight(&core, 2).await;
    let way = core.maps().way(before.revision()).unwrap();
    let way = way.get().unwrap();
    let (a, b) = (way.rest(&name(0)).unwrap(), way.rest(&name(3)).unwrap());
    assert_eq!(a.as_ptr(), b.as_ptr());
    assert!(way.rest(&name(2)).unwrap().is_empty());

    let line = [head(Revision(9)), a].concat();
    let WatchEvent::Delta { delta } = serde_json::from_slice(&line).unwrap() else { panic!("{line:?}") };
    let mut held = netmap(&before, &name(0)).unwrap();
    held.revision = Revision(9);
    assert_eq!(Some(delta.apply(&held).unwrap()), netmap(&core.maps().newest(), &name(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watch_skips_changes_and_one_that_missed_too_many_gets_a_snapshot() {
    let core = mesh().await;
    let (mut stream, _stop) = open(&core, 0).await;
    let first = snapshot(&mut stream).await;
    for number in 2..5 {
        weight(&core, number).await;
    }
    let WatchEvent::Delta { delta } = next(&mut stream).await else { panic!("three changes are one line") };
    let held = delta.apply(&first).unwrap();
    assert_eq!(Some(&held), netmap(&core.maps().newest(), &name(0)).as_ref());

    for number in 0..=KEPT {
        weight(&core, 100 + number).await;
    }
    let resynced = snapshot(&mut stream).await;
    assert_eq!(Some(resynced), netmap(&core.maps().newest(), &name(0)));
    assert_eq!(lock(&core.maps().kept).len(), KEPT, "however slow a watch is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_a_change_does_not_concern_is_current_without_a_line() {
    let core = mesh().await;
    let (mut concerned, _stop) = open(&core, 0).await;
    let (mut other, _stop) = open(&core, 2).await;
    let (a, b) = (snapshot(&mut concerned).await.revision, snapshot(&mut other).await.revision);
    assert!(core.is_current(&name(0), a) && core.is_current(&name(2), b));
    weight(&core, 2).await;
    until(|| !core.is_current(&name(0), a)).await;
    assert!(core.is_current(&name(2), b));
    let event = next(&mut concerned).await;
    assert!(matches!(event, WatchEvent::Delta { .. }), "{event:?}");
    assert!(core.is_current(&name(0), core.maps().newest().revision()));
    let alive = next(&mut other).await;
    assert!(matches!(alive, WatchEvent::Alive { revision, .. } if revision == b), "{alive:?}");
}

async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap();
}
