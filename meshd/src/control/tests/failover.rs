//! From one coordinator to another: whom a map names, and how soon the next is tried.

use mesh_proto::model::netmap::{Coordinator, Mesh};
use mesh_proto::trust::signed_record::NextKey;

use super::*;

/// A watch of one map that names coordinators, and then ends.
fn naming(revision: u64, coordinators: &[Coordinator]) -> Response<Full<Bytes>> {
    let mut netmap = netmap(revision);
    netmap.mesh.coordinators = coordinators.to_vec();
    let line = serde_json::to_string(&WatchEvent::Snapshot { netmap: Box::new(netmap) }).unwrap() + "\n";
    Response::new(Full::new(Bytes::from(line)))
}

fn link(dial: Dial) -> ChannelKeeper {
    ChannelKeeper {
        guard: MapGuard::new(None),
        dial,
        turn: 0,
        records: watch::Sender::default(),
        current: None,
        maps: watch::Sender::new(None),
        state: watch::Sender::default(),
        report: watch::Sender::new(None).subscribe(),
        expelled: watch::Sender::default().subscribe(),
        own: watch::Sender::default().subscribe(),
    }
}

#[tokio::test]
async fn a_node_goes_on_to_a_coordinator_that_only_its_map_names() {
    let other = Server::start(|_| naming(2, &[])).await;
    let named = Coordinator { key: other.key, addresses: vec![other.address.clone()], next: None };
    let own = Arc::new(Mutex::new(None));
    let told = Arc::clone(&own);
    let first = Server::start(move |_| naming(1, &[told.lock().unwrap().clone().unwrap(), named.clone()])).await;
    *own.lock().unwrap() = Some(Coordinator { key: first.key, addresses: vec![first.address.clone()], next: None });
    let running = tokio::spawn(link(first.dial(&[first.key])).run());

    let began = Instant::now();
    other.wait(|asked| !asked.is_empty()).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // A map that names none leaves what is known: both are asked in turn from then on.
    let seen = first.asked().len();
    first.wait(|asked| asked.len() > seen).await;
    running.abort();
}

#[tokio::test]
async fn a_coordinator_that_the_map_does_not_name_any_more_is_left_and_not_trusted() {
    let other = Server::start(|_| naming(2, &[])).await;
    let named = Coordinator { key: other.key, addresses: vec![other.address.clone()], next: None };
    let first = Server::start(move |_| naming(1, std::slice::from_ref(&named))).await;
    let running = tokio::spawn(link(first.dial(&[first.key])).run());

    other.wait(|asked| asked.len() > 3).await;
    assert_eq!(first.asked().len(), 1, "it was asked again after it was retired");
    running.abort();
}

#[tokio::test]
async fn a_dead_coordinator_costs_a_second_and_a_busy_one_no_more() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let busy = Server::start(|_| refuse(&ErrorCode::Busy)).await;
    let good = Server::start(|_| naming(1, &[])).await;
    for turn in 0..3 {
        let dial = good.dial_of(&[&gone, &busy.address, &good.address], &[busy.key, good.key]);
        let asked = good.asked().len();
        let began = Instant::now();
        let running = tokio::spawn(ChannelKeeper { turn, ..link(dial) }.run());
        good.wait(|all| all.len() > asked).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        running.abort();
    }
    let joined = Server::start(|_| ok(&welcome())).await;
    let dial = good.dial_of(&[&gone, &busy.address, &joined.address], &[busy.key, joined.key]);
    assert!(join(&dial, &request()).await.is_ok(), "a busy coordinator is no refusal while there is another");
}

#[tokio::test]
async fn a_next_key_is_trusted_if_the_present_one_signed_it() {
    let dir = tempfile::tempdir().unwrap();
    let present = NodeKeys::load_or_make(&State::open(&dir.path().join("present")).unwrap()).unwrap();
    let [good, forged] = [IdentityKey([7; 32]), IdentityKey([8; 32])];
    let signature = present.sign(&NextKey::message(&present.identity(), &good));
    for (next, trusted) in [(good, true), (forged, false)] {
        let next = Some(NextKey { key: next, signature });
        let named = Coordinator { key: present.identity(), addresses: vec!["c:1".into()], next };
        let mesh = Mesh { coordinators: vec![named], ..netmap(1).mesh };
        let mut book = AddressBook::new(Vec::new(), vec![IdentityKey([1; 32])]);
        book.adopt(&mesh);
        let expected = if trusted { vec![present.identity(), good] } else { vec![present.identity()] };
        assert_eq!(book.pins(), expected);
    }
}

#[tokio::test]
async fn the_address_that_works_is_kept_beside_wrong_ones_and_found_again() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let stranger = Server::start(|_| naming(1, &[])).await;
    let own = Arc::new(Mutex::new(None));
    let (told, wrong) = (Arc::clone(&own), vec![gone.clone(), stranger.address.clone()]);
    let good = Server::start(move |_| {
        let key = told.lock().unwrap().unwrap();
        naming(1, &[Coordinator { key, addresses: wrong.clone(), next: None }])
    })
    .await;
    *own.lock().unwrap() = Some(good.key);
    let dial = good.dial(&[good.key]);
    let book = dial.book.clone();
    let running = tokio::spawn(link(dial).run());

    good.wait(|asked| asked.len() > 3).await;
    assert_eq!(book.borrow().candidates(0), [gone, stranger.address.clone(), good.address.clone()]);
    assert!(stranger.asked().is_empty(), "who has another key is asked nothing");
    running.abort();
}

#[tokio::test]
async fn a_node_that_waits_tries_the_addresses_of_a_token_at_once() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let good = Server::start(|_| naming(1, &[])).await;
    let dial = good.dial_of(&[&gone], &[good.key]);
    let (book, link) = (dial.book.clone(), link(dial));
    let mut state = link.state.subscribe();
    let running = tokio::spawn(link.run());
    state.wait_for(|state| state.error.is_some()).await.unwrap();

    book.send_modify(|book| assert!(book.take_token(std::slice::from_ref(&good.address))));
    good.wait(|asked| !asked.is_empty()).await;
    running.abort();
}
