//! What a client did wrong is its own: a status 4xx with a word, never 500.

use std::fs;

use coordinator::base::words::SOCKET;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_host::client::Client;
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::query::with_query;
use mesh_proto::wire::{ErrorBody, NodeFacts, Report, ReportResponse};
use serde_json::json;
use tokio::net::UnixStream;

use crate::common::{NodeChannel, TestCoordinator, soon, until};

/// Asks on the admin socket, and returns how that failed.
async fn refused(coordinator: &TestCoordinator, method: Method, path: &str, body: &str) -> (StatusCode, ErrorBody) {
    let stream = UnixStream::connect(coordinator.socket()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "coordinator");
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{path}: {status}: {error}: {body:?}"));
    (status, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_asks_wrongly_has_a_word_and_a_status_of_its_own() {
    let coordinator = TestCoordinator::start().await;
    let dir = coordinator.dir.path();
    fs::write(dir.join("there"), "something else").unwrap();
    let backup = |name: &str| json!({"file": dir.join(name)}).to_string();
    let unknown = json!({"site": "nowhere", "name": null, "ttl_s": 600, "serve": [], "uses": 1}).to_string();
    let endless = json!({"site": "dc", "name": null, "ttl_s": u64::MAX, "serve": [], "uses": 1}).to_string();
    let huge = " ".repeat(mesh_proto::wire::MAX_REQUEST + 1);
    let (post, get, delete) = (Method::POST, Method::GET, Method::DELETE);
    let (there, missing, below, long) =
        (backup("there"), backup("missing/copy"), backup("there/copy"), backup(&"n".repeat(300)));
    let cases: [(&Method, &str, &str, u16, &str); 20] = [
        (&post, "/v1/backup", &there, 409, "exists"),
        (&post, "/v1/backup", &missing, 404, "not_found"),
        (&post, "/v1/backup", &below, 404, "not_found"),
        (&post, "/v1/backup", &long, 404, "not_found"),
        (&post, "/v1/backup", "{}", 400, "malformed"),
        (&delete, "/v1/nodes/%ff", "", 400, "malformed"),
        (&delete, "/v1/nodes/No!Name", "", 400, "malformed"),
        (&delete, "/v1/nodes/nobody", "", 403, "unknown_node"),
        (&delete, "/v1/tokens/%ff", "", 400, "malformed"),
        (&delete, "/v1/tokens/0011223344556677", "", 401, "token"),
        (&delete, "/v1/coordinators/%ff", "", 400, "malformed"),
        (&delete, "/v1/coordinators/no-key", "", 400, "malformed"),
        (&post, "/v1/trust/%ff", r#"{"jwks":""}"#, 400, "malformed"),
        (&post, "/v1/trust/nobody", r#"{"jwks":""}"#, 404, "unknown_trust"),
        (&post, "/v1/tokens", &unknown, 409, "site"),
        (&post, "/v1/tokens", &endless, 400, "malformed"),
        (&post, "/v1/tokens", &huge, 413, "malformed"),
        (&post, "/v1/plan", r#"{"file":"f","text":"x"}"#, 422, "services"),
        (&get, "/v1/log?since=x", "", 400, "malformed"),
        (&get, "/v1/log?node=%ff", "", 400, "malformed"),
    ];
    for (method, path, body, status, word) in cases {
        let (seen, failure) = refused(&coordinator, method.clone(), path, body).await;
        assert_eq!((seen.as_u16(), failure.error.as_str()), (status, word), "{path}: {}", failure.message);
        assert!(!failure.message.is_empty(), "{path}");
    }
    assert_eq!(fs::read_to_string(dir.join("there")).unwrap(), "something else");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_coordinators_key_at_the_wrong_time_is_a_conflict() {
    let coordinator = TestCoordinator::start().await;
    let step = |commit: bool| json!({"commit": commit, "force": true}).to_string();
    let mut seen = Vec::new();
    seen.push(refused(&coordinator, Method::POST, "/v1/rotate-key", &step(true)).await);
    for commit in [false, true] {
        let wanted = json!({"commit": commit, "force": true});
        let client = Client::new(&SOCKET, coordinator.socket());
        client.ask::<serde_json::Value>(Method::POST, "/v1/rotate-key", Some(&wanted)).await.unwrap();
    }
    for commit in [true, false] {
        seen.push(refused(&coordinator, Method::POST, "/v1/rotate-key", &step(commit)).await);
    }
    for (status, failure) in seen {
        assert_eq!((status, failure.error.as_str()), (StatusCode::CONFLICT, "key"), "{}", failure.message);
    }
}

async fn report(channel: &mut NodeChannel<'_>, report: &Report) -> Result<ReportResponse, (StatusCode, ErrorBody)> {
    channel.post("/v1/report", report).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_goes_back_is_a_conflict() {
    let coordinator = TestCoordinator::start().await;
    let (node, joined) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    let said = |sequence: u64| {
        let facts = NodeFacts { sequence, signed: None, ..node.facts() };
        let text = facts.text();
        let signature = node.identity.sign(&SignedRecord::message(&text));
        let facts = NodeFacts { signed: Some(SignedRecord { text: text.into(), signature }), ..facts };
        Report { facts, applied: joined.netmap.revision, warnings: Vec::new() }
    };
    report(&mut channel, &said(9)).await.unwrap();
    let (status, body) = report(&mut channel, &said(8)).await.unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::CONFLICT, "record"), "{}", body.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_travels_in_a_query_whatever_it_contains() {
    let coordinator = TestCoordinator::start().await;
    let (node, _) = coordinator.join("n1").await;
    let mut channel = node.connect().await;
    for name in ["a&name=n1", "n1=", "100%", "%6e1", "a+b", "n 1", "ä⛵", "n1#"] {
        let path = with_query("/v1/about", &[("name", name)]);
        let response = channel.send(Method::GET, &path, Vec::new()).await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: ErrorBody = serde_json::from_slice(&body).unwrap();
        assert_eq!(body.error.as_str(), "unknown_name");
        assert!(body.message.contains(&format!("`{name}`")), "{path}: {}", body.message);
    }
    until("the log tells of the join by its node's name", async || {
        let path = with_query("/v1/log", &[("since", "0"), ("node", "n1")]);
        let log: coordinator::core::documents::Log = coordinator.fetch(&path).await;
        !log.entries.is_empty()
    })
    .await;
}
