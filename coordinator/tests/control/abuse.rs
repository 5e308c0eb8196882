//! What hostile and broken peers send: the coordinator answers or hangs up, and lives.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Method, Request, StatusCode};
use mesh_proto::trust::join_token::{JoinToken, TokenSecret};
use mesh_proto::wire::{ErrorBody, MAX_REQUEST, Report, ReportResponse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::{TestCoordinator, TestNode, soon, until};

/// Says that a node can still join and watch.
async fn lives(coordinator: &TestCoordinator) {
    let (node, _) = coordinator.join("witness").await;
    let mut channel = node.connect().await;
    let mut lines = channel.watch(None).await.unwrap();
    assert!(lines.next().await.is_some());
}

async fn hangs_up(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    // A reset is as good an end as any.
    let _ = soon(stream.read_to_end(&mut rest)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_instead_of_tls_is_hung_up_on() {
    let coordinator = TestCoordinator::start().await;
    for byte in [0x00, 0x16, 0x41, 0xff] {
        let mut stream = TcpStream::connect(coordinator.address()).await.unwrap();
        let _ = stream.write_all(&vec![byte; 100_000]).await;
        hangs_up(&mut stream).await;
    }
    lives(&coordinator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_inside_tls_is_hung_up_on() {
    let coordinator = TestCoordinator::start().await;
    let node = TestNode::new(&coordinator, "n1");
    let mut stream = node.dial().await.unwrap();
    let _ = stream.write_all(&vec![0x41; 100_000]).await;
    hangs_up(&mut stream).await;
    lives(&coordinator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_hello_is_cut_off_and_delays_nobody() {
    let coordinator = TestCoordinator::start().await;
    let began = Instant::now();
    let mut slow = TcpStream::connect(coordinator.address()).await.unwrap();
    slow.write_all(&[0x16, 0x03]).await.unwrap();
    lives(&coordinator).await;
    hangs_up(&mut slow).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_places_of_strangers() {
    let coordinator = TestCoordinator::start().await;
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(TcpStream::connect(coordinator.address()).await.unwrap());
    }
    let node = TestNode::new(&coordinator, "n1");
    until("the next is turned away", async || node.dial().await.is_err()).await;
    drop(held);
    until("there is room again", async || node.dial().await.is_ok()).await;
    lives(&coordinator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_served_while_strangers_fill_their_places() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(TcpStream::connect(coordinator.address()).await.unwrap());
    }
    let mut lines = channel.watch(None).await.unwrap();
    assert!(lines.next().await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_large_or_malformed_are_refused_by_name() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let huge = vec![b' '; MAX_REQUEST + 1];
    let deep = [b'['].repeat(100_000);
    let cases: [(Method, &str, Vec<u8>, StatusCode); 8] = [
        (Method::POST, "/v1/join", huge, StatusCode::PAYLOAD_TOO_LARGE),
        (Method::POST, "/v1/join", deep, StatusCode::BAD_REQUEST),
        (Method::POST, "/v1/report", b"{\"facts\": 7}".to_vec(), StatusCode::BAD_REQUEST),
        (Method::POST, "/v1/report", vec![0xff; 100_000], StatusCode::BAD_REQUEST),
        (Method::POST, "/v1/report", Vec::new(), StatusCode::BAD_REQUEST),
        (Method::GET, "/v1/watch?revision=-1", Vec::new(), StatusCode::BAD_REQUEST),
        (Method::GET, "/v1/join", Vec::new(), StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/v2/watch", Vec::new(), StatusCode::NOT_FOUND),
    ];
    for (method, path, body, expected) in cases {
        let response = channel.send(method, path, body).await.unwrap();
        assert_eq!(response.status(), expected, "{path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: ErrorBody = serde_json::from_slice(&body).unwrap();
        assert_eq!(body.error.as_str(), "malformed", "{path}: {}", body.message);
    }
    lives(&coordinator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_have_a_limit() {
    let coordinator = TestCoordinator::start().await;
    let node = TestNode::new(&coordinator, "n1");
    let mut channel = node.connect().await;
    let request = Request::get("https://coordinator/v1/watch").header("x", "y".repeat(64 * 1024));
    let request = request.body(Bytes::new().into()).unwrap();
    let answer = soon(channel.sender.send_request(request)).await;
    assert!(answer.map_or(true, |response| response.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    lives(&coordinator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_cannot_claim_more_than_the_wire_allows_nor_run_ahead() {
    let coordinator = TestCoordinator::start().await;
    let (node, joined) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let mut facts = node.facts();
    facts.endpoints = (0..17).map(|i| ([192, 0, 2, i], 51820).into()).collect();
    let report = Report { facts: node.signed(facts), applied: joined.netmap.revision, warnings: Vec::new() };
    let (status, _) = channel.post::<ReportResponse>("/v1/report", &report).await.unwrap_err();
    assert_eq!(status, StatusCode::BAD_REQUEST);

    let report = Report {
        facts: node.facts(),
        applied: mesh_proto::base::id::Revision(u64::MAX),
        warnings: vec!["ä".repeat(100_000 / 2); 2],
    };
    let _: ReportResponse = channel.post("/v1/report", &report).await.unwrap();
    let nodes: coordinator::core::documents::Nodes = coordinator.fetch("/v1/nodes").await;
    assert_eq!(nodes.nodes[0].applied, Some(joined.netmap.revision));
    assert!(nodes.nodes[0].warnings.iter().all(|warning| warning.len() <= 1024));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_failed_joins_block_their_address_and_no_member() {
    let coordinator = TestCoordinator::start().await;
    let own = coordinator.token().await;
    let member = TestNode::new(&coordinator, "n1");
    member.connect().await.join(&own).await.unwrap();
    let good = coordinator.token().await;
    let guesser = TestNode::new(&coordinator, "n2");
    let mut channel = guesser.connect().await;
    let mut sentences = std::collections::BTreeSet::new();
    for number in 0..10 {
        let guess = match number % 3 {
            0 => JoinToken { id: [number; 8], ..good.clone() },
            1 => JoinToken { secret: TokenSecret([number; 32]), ..good.clone() },
            _ => own.clone(),
        };
        let (status, body) = channel.join(&guess).await.unwrap_err();
        assert_eq!((status, body.error.as_str()), (StatusCode::UNAUTHORIZED, "token"));
        sentences.insert(body.message);
    }
    assert_eq!(sentences.len(), 1, "{sentences:?}");

    let (status, body) = channel.join(&good).await.unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::TOO_MANY_REQUESTS, "busy"), "{}", body.message);
    member.connect().await.join(&own).await.unwrap();
    let text = coordinator.metrics().await;
    assert!(text.contains("coordinator_enrolments_total{result=\"token\"} 10"), "{text}");
    assert!(text.contains("coordinator_enrolments_total{result=\"blocked\"} 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_reports_without_end_is_told_to_wait() {
    let coordinator = TestCoordinator::start().await;
    let (node, joined) = coordinator.join("n1").await;
    let (other, _) = coordinator.join("n2").await;
    let mut channel = node.connect().await;
    let report =
        |node: &TestNode| Report { facts: node.facts(), applied: joined.netmap.revision, warnings: Vec::new() };
    let mut taken = 0;
    let (status, body) = loop {
        match channel.post::<ReportResponse>("/v1/report", &report(&node)).await {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert!((10..20).contains(&taken), "{taken}");
    assert_eq!((status, body.error.as_str()), (StatusCode::TOO_MANY_REQUESTS, "busy"));
    let _: ReportResponse = other.connect().await.post("/v1/report", &report(&other)).await.unwrap();
    until("it may report again", async || {
        node.connect().await.post::<ReportResponse>("/v1/report", &report(&node)).await.is_ok()
    })
    .await;
}
