//! The channel against a server of its own kind: raw public keys, HTTP/2, scripted answers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod auditing;
mod failover;
mod renewing;

use std::sync::Mutex;

use futures_util::stream::pending;
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_host::tls;
use mesh_proto::base::addr::{Flat, MeshRange};
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, NodeId};
use mesh_proto::model::netmap::Delta;
use mesh_proto::trust::join_token::TokenSecret;
use mesh_proto::wire::{ErrorBody, ErrorCode, NodeFacts, ReportResponse, VERSION};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::base::state_dir::State;
use crate::base::state_dir::tests::netmap;
use crate::keys::node::NodeKeys;

#[test]
fn attempts_are_at_most_a_second_apart_in_the_first_minute_then_at_most_fifteen() {
    for attempt in 0..100 {
        for share in [0.0, 0.5, 1.0] {
            let early = delay(attempt, Duration::from_secs(59), share);
            assert!(early <= Duration::from_secs(1) && early >= Duration::from_millis(50));
            let late = delay(attempt, Duration::from_secs(61), share);
            assert!(late <= Duration::from_secs(15) && late >= Duration::from_secs(7));
        }
    }
}

#[test]
fn jitter_spreads_the_attempts() {
    let long = Duration::from_secs(100);
    assert_ne!(delay(5, long, 0.0), delay(5, long, 1.0));
}

#[tokio::test]
async fn a_join_proves_both_keys() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v1/join" => ok(&welcome()),
        _ => refuse(&ErrorCode::Malformed),
    })
    .await;

    let (response, address) = join(&server.dial(&[server.key]), &request()).await.unwrap();

    assert_eq!((response, address), (welcome(), server.address.clone()));
    let asked = server.asked();
    assert_eq!(asked[0].by, server.node.identity());
    let body: JoinRequest = serde_json::from_slice(&asked[0].body).unwrap();
    assert_eq!(body, request());
}

#[tokio::test]
async fn a_wrong_pin_is_told_and_nothing_is_sent() {
    let server = Server::start(|_| ok(&welcome())).await;

    let error = join(&server.dial(&[IdentityKey([9; 32])]), &request()).await.unwrap_err();

    assert!(matches!(error, ChannelError::Pin(_)), "{error}");
    assert!(error.to_string().contains("another key"), "{error}");
    assert!(server.asked().is_empty(), "the one-time secret never leaves");
}

#[tokio::test]
async fn a_refusal_is_the_coordinators_own_sentence() {
    let server = Server::start(|_| refuse(&ErrorCode::Token)).await;

    let error = join(&server.dial(&[server.key]), &request()).await.unwrap_err();

    assert_eq!(error.to_string(), "the token is used up; make another");
}

#[tokio::test]
async fn the_next_coordinator_is_tried_when_one_is_gone() {
    let server = Server::start(|_| ok(&welcome())).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let dial = server.dial_of(&[&gone, &server.address], &[server.key]);

    assert!(join(&dial, &request()).await.is_ok());
}

#[tokio::test]
async fn a_watch_is_resumed_from_the_revision_in_force_and_facts_are_reported() {
    let second = NetMap { warnings: vec!["changed".into()], ..netmap(2) };
    let lines = [
        WatchEvent::Snapshot { netmap: Box::new(netmap(1)) },
        WatchEvent::Alive { revision: Revision(1), log: None, time: Some(UnixTime(1_800_000_000)) },
        WatchEvent::Delta { delta: Box::new(Delta::between(&netmap(1), &second)) },
    ];
    let body: String = lines.iter().map(|l| serde_json::to_string(l).unwrap() + "\n").collect();
    let server = Server::start(move |request| match request.path.as_str() {
        "/v1/report" => ok(&ReportResponse { observed: [127, 0, 0, 1].into(), refused: vec!["pods refused".into()] }),
        _ => Response::new(Full::new(Bytes::from(body.clone()))),
    })
    .await;
    let maps = watch::Sender::new(None);
    let state = watch::Sender::new(ChannelState::default());
    let report = Report { facts: NodeFacts::default(), applied: Revision(0), warnings: Vec::new() };
    let facts = watch::Sender::new(Some(report));
    let link = ChannelKeeper {
        turn: 0,
        records: watch::Sender::default(),
        dial: server.dial(&[server.key]),
        current: None,
        guard: MapGuard::new(None),
        maps: maps.clone(),
        state: state.clone(),
        report: facts.subscribe(),
        expelled: watch::Sender::default().subscribe(),
        own: watch::Sender::default().subscribe(),
    };
    let running = tokio::spawn(link.run());

    let mut newest = maps.subscribe();
    let map = newest.wait_for(|m| m.as_ref().is_some_and(|m| m.revision == Revision(2))).await.unwrap().clone();
    assert_eq!(map.as_deref(), Some(&second));
    let date = state.borrow().clock.map(|word| word.date.unix(word.at));
    assert_eq!(date, Some(UnixTime(1_800_000_000)), "the coordinator's clock");
    server.wait(|asked| asked.iter().any(|a| a.query == "revision=2&epoch=0")).await;
    assert_eq!(server.asked()[0].query, "revision=0&epoch=0");
    running.abort();
}

#[tokio::test]
async fn a_coordinator_that_leaves_hands_over_to_the_next_at_once() {
    let lines = |events: &[WatchEvent]| -> String {
        events.iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect()
    };
    let snapshot = WatchEvent::Snapshot { netmap: Box::new(netmap(1)) };
    let (first, second) = (
        lines(&[snapshot, WatchEvent::Leaving]),
        lines(&[WatchEvent::Alive { revision: Revision(1), log: None, time: None }]),
    );
    let leaving = Server::start(move |_| Response::new(Full::new(Bytes::from(first.clone())))).await;
    let staying = Server::start(move |_| open(second.clone())).await;
    let dial = leaving.dial_of(&[&leaving.address, &staying.address], &[leaving.key, staying.key]);
    let maps = watch::Sender::new(None);
    let link = ChannelKeeper {
        turn: 0,
        records: watch::Sender::default(),
        dial,
        current: None,
        guard: MapGuard::new(None),
        maps: maps.clone(),
        state: watch::Sender::new(ChannelState::default()),
        report: watch::Sender::new(None).subscribe(),
        expelled: watch::Sender::default().subscribe(),
        own: watch::Sender::default().subscribe(),
    };
    let mut newest = maps.subscribe();
    let running = tokio::spawn(link.run());

    newest.wait_for(Option::is_some).await.unwrap();
    let left = Instant::now();
    staying.wait(|asked| asked.iter().any(|a| a.query == "revision=1&epoch=0")).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    running.abort();
}

#[tokio::test]
async fn a_coordinator_that_went_back_is_not_followed_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let kept = State::open(&dir.path().join("s")).unwrap();
    for (revision, followed) in [(5, true), (4, false), (5, true)] {
        let line = WatchEvent::Snapshot { netmap: Box::new(netmap(revision)) };
        let body = serde_json::to_string(&line).unwrap() + "\n";
        let server = Server::start(move |_| Response::new(Full::new(Bytes::from(body.clone())))).await;
        let maps = watch::Sender::new(None);
        let state = watch::Sender::new(ChannelState::default());
        let link = ChannelKeeper {
            turn: 0,
            records: watch::Sender::default(),
            dial: server.dial(&[server.key]),
            current: None,
            guard: MapGuard::new(Some(kept.clone())),
            maps: maps.clone(),
            state: state.clone(),
            report: watch::Sender::new(None).subscribe(),
            expelled: watch::Sender::default().subscribe(),
            own: watch::Sender::default().subscribe(),
        };
        let running = tokio::spawn(link.run());
        let mut state = state.subscribe();
        let ended = state.wait_for(|s| s.error.is_some() && !s.connected).await.unwrap().error.clone().unwrap();
        running.abort();
        assert_eq!(maps.borrow().is_some(), followed);
        assert_eq!(ended.contains("went back to revision 4"), !followed, "{ended}");
    }
}

#[tokio::test]
async fn what_the_coordinator_had_no_time_for_is_sent_again() {
    let busy = std::sync::atomic::AtomicBool::new(true);
    let server = Server::start(move |request| match request.path.as_str() {
        "/v1/report" if busy.swap(false, std::sync::atomic::Ordering::Relaxed) => refuse(&ErrorCode::Busy),
        "/v1/report" => ok(&ReportResponse { observed: [127, 0, 0, 1].into(), refused: vec!["taken".into()] }),
        _ => open(serde_json::to_string(&WatchEvent::Snapshot { netmap: Box::new(netmap(1)) }).unwrap() + "\n"),
    })
    .await;
    let state = watch::Sender::new(ChannelState::default());
    let report = Report { facts: NodeFacts::default(), applied: Revision(0), warnings: Vec::new() };
    let link = ChannelKeeper {
        turn: 0,
        records: watch::Sender::default(),
        dial: server.dial(&[server.key]),
        current: None,
        guard: MapGuard::new(None),
        maps: watch::Sender::new(None),
        state: state.clone(),
        report: watch::Sender::new(Some(report)).subscribe(),
        expelled: watch::Sender::default().subscribe(),
        own: watch::Sender::default().subscribe(),
    };
    let running = tokio::spawn(link.run());

    let mut state = state.subscribe();
    state.wait_for(|s| s.refused == ["taken"]).await.unwrap();
    running.abort();
}

#[tokio::test]
async fn a_line_that_is_no_event_ends_the_watch_with_a_reason() {
    let server = Server::start(|_| Response::new(Full::new(Bytes::from("{\"type\":\"snapshot\"}\n")))).await;
    let mut channel = Channel::open(&server.dial(&[server.key]), &server.address).await.unwrap();
    let mut watch = channel.watch(Revision(0), 0).await.unwrap();

    let error = watch.next().await.unwrap_err();

    assert!(matches!(error, ChannelError::Malformed(_)), "{error}");
}

#[tokio::test]
async fn an_event_of_an_unknown_kind_is_passed_over() {
    let server = Server::start(|_| Response::new(Full::new(Bytes::from("{\"type\":\"tune\",\"song\":1}\n")))).await;
    let mut channel = Channel::open(&server.dial(&[server.key]), &server.address).await.unwrap();
    let mut watch = channel.watch(Revision(0), 0).await.unwrap();

    assert_eq!(watch.next().await.unwrap(), WatchEvent::Unknown);
    assert!(matches!(watch.next().await, Err(ChannelError::Ended)));
}

fn request() -> JoinRequest {
    JoinRequest {
        ephemeral: false,
        version: VERSION,
        token: "0909090909090909".into(),
        secret: TokenSecret([5; 32]),
        oidc: None,
        name: "n1".parse().unwrap(),
        facts: NodeFacts::default(),
    }
}

fn welcome() -> JoinResponse {
    JoinResponse {
        version: VERSION,
        node: "n1".parse().unwrap(),
        id: NodeId(1),
        site: "c1".parse().unwrap(),
        mesh: "boutique".parse().unwrap(),
        range: MeshRange::default(),
        address: Flat([241, 1, 0, 1].into()),
        blocks: Vec::new(),
        pins: Vec::new(),
        coordinators: Vec::new(),
        netmap: netmap(1),
        refused: Vec::new(),
    }
}

fn ok<T: serde::Serialize>(value: &T) -> Response<Full<Bytes>> {
    Response::new(Full::new(serde_json::to_vec(value).unwrap().into()))
}

fn refuse(code: &ErrorCode) -> Response<Full<Bytes>> {
    let mut response = ok(&ErrorBody::new(code.clone(), "the token is used up; make another"));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

/// The header of answers that never end.
const OPEN: &str = "open";

fn open(body: String) -> Response<Full<Bytes>> {
    Response::builder().header(OPEN, "yes").body(Full::new(Bytes::from(body))).unwrap()
}

/// What a client asked, and with which key.
#[derive(Debug, Clone)]
struct Asked {
    by: IdentityKey,
    path: String,
    query: String,
    body: Bytes,
}

/// A scripted coordinator on loopback.
struct Server {
    key: IdentityKey,
    address: String,
    node: Arc<NodeKeys>,
    asked: Arc<Mutex<Vec<Asked>>>,
    news: Arc<tokio::sync::Notify>,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start<F>(script: F) -> Self
    where
        F: Fn(&Asked) -> Response<Full<Bytes>> + Send + Sync + 'static,
    {
        let dir = tempfile::tempdir().unwrap();
        let own = NodeKeys::load_or_make(&State::open(&dir.path().join("own")).unwrap()).unwrap();
        let node = NodeKeys::load_or_make(&State::open(&dir.path().join("node")).unwrap()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls::server(own.own()).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let news = Arc::new(tokio::sync::Notify::new());
        let (script, list, tell) = (Arc::new(script), Arc::clone(&asked), Arc::clone(&news));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, script) = (acceptor.clone(), Arc::clone(&script));
                let (list, tell) = (Arc::clone(&list), Arc::clone(&tell));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
                    let by = IdentityKey(shown[shown.len() - 32..].try_into().unwrap());
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        let (script, list, tell) = (Arc::clone(&script), Arc::clone(&list), Arc::clone(&tell));
                        async move {
                            let path = request.uri().path().to_owned();
                            let query = request.uri().query().unwrap_or_default().to_owned();
                            let body = request.into_body().collect().await?.to_bytes();
                            let asked = Asked { by, path, query, body };
                            let response = script(&asked);
                            list.lock().unwrap().push(asked);
                            tell.notify_one();
                            Ok::<_, hyper::Error>(if response.headers().contains_key(OPEN) {
                                response.map(|body| {
                                    let sent = body.into_data_stream().map_ok(Frame::data);
                                    BodyExt::boxed(StreamBody::new(sent.chain(pending())))
                                })
                            } else {
                                response.map(BodyExt::boxed)
                            })
                        }
                    });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { key: own.identity(), address, node: Arc::new(node), asked, news, task, _dir: dir }
    }

    fn dial(&self, pins: &[IdentityKey]) -> Dial {
        self.dial_of(&[&self.address], pins)
    }

    fn dial_of(&self, addresses: &[&str], pins: &[IdentityKey]) -> Dial {
        let named = addresses.iter().map(|&address| address.to_owned()).collect();
        let keys = watch::Sender::new(Arc::clone(&self.node)).subscribe();
        Dial::new(AddressBook::new(named, pins.to_vec()), keys)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    async fn wait(&self, enough: impl Fn(&[Asked]) -> bool) {
        while !enough(&self.asked()) {
            self.news.notified().await;
        }
    }
}
