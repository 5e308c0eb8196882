//! Joining by an issuer's word, over real connections.

use std::time::SystemTime;

use coordinator::base::words::SOCKET;
use coordinator::cli::render;
use coordinator::core::documents;
use hyper::{Method, StatusCode};
use mesh_host::client::{AskError, Client};
use mesh_proto::trust::join_token::{OidcToken, TokenSecret};
use mesh_proto::wire::{self, ErrorBody, JoinRequest, JoinResponse};

use crate::common::{TestCoordinator, TestNode};
use crate::issuer::{AUDIENCE, ISSUER, Issuer, SUBJECT, claims};

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

async fn start() -> TestCoordinator {
    let trust = format!(
        "[[trust]]\nname = \"k8s\"\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\njwks = \"push\"\nsite = \"c1\"\nsubjects = [\"{SUBJECT}\"]\n"
    );
    TestCoordinator::start_with(&trust).await
}

async fn push(coordinator: &TestCoordinator, name: &str, jwks: String) -> Result<documents::DoneDocument, AskError> {
    let path = format!("/v1/trust/{name}");
    Client::new(&SOCKET, coordinator.socket()).ask(Method::POST, &path, Some(&documents::NewKeys { jwks })).await
}

async fn join(node: &TestNode, token: &str) -> Result<JoinResponse, (StatusCode, ErrorBody)> {
    let request = JoinRequest {
        ephemeral: false,
        version: wire::VERSION,
        token: String::new(),
        secret: TokenSecret([0; 32]),
        oidc: Some(OidcToken(token.into())),
        name: node.name.parse().unwrap(),
        facts: node.facts(),
    };
    node.connect().await.post("/v1/join", &request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_by_its_issuer_and_all_failures_look_the_same() {
    let coordinator = start().await;
    let issuer = Issuer::new("a");
    let token = |node: &str, jti: &str| issuer.token("RS256", &claims(node, jti, now()));
    let first = TestNode::new(&coordinator, "what-it-calls-itself");
    let good = token("c1-n1", "1");
    let mut answers = vec![join(&first, &good).await.unwrap_err()];
    push(&coordinator, "k8s", issuer.jwks()).await.unwrap();

    let joined = join(&first, &good).await.unwrap();
    assert_eq!((joined.node.as_str(), joined.site.as_str()), ("c1-n1", "c1"));
    assert_eq!(join(&first, &good).await.unwrap().id, joined.id, "the answer may be lost");

    let second = TestNode::new(&coordinator, "c1-n2");
    answers.push(join(&second, &good).await.unwrap_err());
    answers.push(join(&second, &Issuer::new("a").token("RS256", &claims("c1-n2", "2", now()))).await.unwrap_err());
    let mut other = claims("c1-n2", "3", now());
    other["sub"] = "system:serviceaccount:default:\u{1b}[31mevil".into();
    answers.push(join(&second, &issuer.token("RS256", &other)).await.unwrap_err());
    answers.push(join(&second, "nonsense").await.unwrap_err());
    for (status, body) in &answers {
        assert_eq!((*status, body), (StatusCode::UNAUTHORIZED, &answers[0].1));
    }
    // Whoever asks with one node's token never becomes another, whatever it calls itself.
    let (status, body) = join(&second, &token("c1-n1", "4")).await.unwrap_err();
    assert_eq!((status, body.error.as_str()), (StatusCode::CONFLICT, "name"));

    let log: serde_json::Value = coordinator.fetch("/v1/log").await;
    let log = log.to_string();
    for part in [
        "k8s vouches for system:serviceaccount",
        "took keys of k8s",
        "there are no keys yet",
        "signature",
        "matches none",
    ] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    assert!(!log.contains("\\u001b["), "what strangers write is escaped: {log}");
    assert!(!log.contains(good.rsplit_once('.').unwrap().1), "no token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_keys_outlive_a_restart_and_are_shown() {
    let coordinator = start().await;
    let issuer = Issuer::new("a");
    assert!(push(&coordinator, "other", issuer.jwks()).await.unwrap_err().to_string().contains("has no [[trust]]"));
    assert!(push(&coordinator, "k8s", "{}".into()).await.unwrap_err().to_string().contains("keys cannot be used"));
    let trusts: documents::IssuersDocument = coordinator.fetch("/v1/trust").await;
    assert!(render::trusts(&trusts).contains("none yet"), "{}", render::trusts(&trusts));
    push(&coordinator, "k8s", issuer.jwks()).await.unwrap();

    let coordinator = coordinator.restart().await;
    let node = TestNode::new(&coordinator, "c1-n1");
    join(&node, &issuer.token("EdDSA", &claims("c1-n1", "1", now()))).await.unwrap();
    let trusts: documents::IssuersDocument = coordinator.fetch("/v1/trust").await;
    assert_eq!((trusts.trusts[0].keys, trusts.trusts[0].error.as_deref()), (3, None));
    assert!(render::trusts(&trusts).contains("3, taken"), "{}", render::trusts(&trusts));
}
