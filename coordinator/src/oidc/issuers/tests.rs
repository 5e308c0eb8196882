//! Tokens of all kinds against keys of all kinds, from a file, a URL and the operator.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/control/issuer.rs"]
mod issuer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::body::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use issuer::{AUDIENCE, ISSUER, Issuer, SUBJECT, claims, encode};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, crypto};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::Config;

const NOW: UnixTime = UnixTime(1_800_000_000);

/// The `[[trust]]` of a file whose last lines are given.
fn trusts(more: &str) -> Issuers {
    let text = format!(
        "[[trust]]\nname = \"k8s\"\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\nsite = \"c1\"\nsubjects = \"{SUBJECT}\"\n{more}"
    );
    Issuers::new(&Config::parse(&text, Path::new("/nowhere/coordinator.toml")).unwrap().trust)
}

fn good(node: &str) -> Value {
    claims(node, "1", NOW.0)
}

/// Some claims replaced; `null` takes one away.
fn with(changes: Value) -> Value {
    let mut claims = good("n1");
    let object = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        object.remove(name);
        if !value.is_null() {
            object.insert(name.clone(), value.clone());
        }
    }
    claims
}

/// Keys in a file, which goes with the second value.
fn from_file(issuer: &Issuer, more: &str) -> (Issuers, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    std::fs::write(&path, issuer.jwks()).unwrap();
    (trusts(&format!("jwks = \"{}\"\n{more}", path.display())), dir)
}

#[tokio::test]
async fn all_three_algorithms_name_the_node_of_the_pod() {
    let issuer = Issuer::new("a");
    let (trusts, _dir) = from_file(&issuer, "serve = [\"cart\"]\n");
    for alg in ["RS256", "ES256", "EdDSA"] {
        let token = issuer.token(alg, &good("ip-10-0-0-1.ec2.internal"));
        let vouched = trusts.verify(&token, NOW).await.unwrap();
        assert_eq!((vouched.node.as_str(), vouched.site.as_str()), ("ip-10-0-0-1", "c1"), "{alg}");
        assert_eq!((vouched.trust.as_str(), vouched.subject.as_str()), ("k8s", SUBJECT));
        assert_eq!((vouched.serve.len(), vouched.over), (1, UnixTime(NOW.0 + 660)));
    }
}

#[tokio::test]
async fn no_forged_or_foreign_token_is_taken() {
    let issuer = Issuer::new("a");
    let (trusts, _dir) = from_file(&issuer, "");
    let other = Issuer::new("a");
    let claimed = good("n1");
    let unsigned = |alg: &str| {
        let header = json!({"alg": alg, "kid": issuer.kid("RS256")});
        format!("{}.{}", encode(header.to_string()), encode(claimed.to_string()))
    };
    let shared = |secret: &[u8]| {
        let text = unsigned("HS256");
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        format!("{text}.{}", encode(hmac::sign(&key, text.as_bytes())))
    };
    let under = |alg: &str, header: Value| issuer.signed(alg, &header, &claimed);
    let token = issuer.token("ES256", &claimed);
    let (text, signature) = token.rsplit_once('.').unwrap();
    let (head, _) = text.split_once('.').unwrap();
    let cases = [
        ("alg none", format!("{}.", unsigned("none")), "algorithm"),
        ("HS256 with the public key as its secret", shared(issuer.rsa_public()), "algorithm"),
        ("HS256 with the JWKS as its secret", shared(issuer.jwks().as_bytes()), "algorithm"),
        ("RS512", under("RS256", json!({"alg": "RS512", "kid": issuer.kid("RS256")})), "algorithm"),
        ("another issuer's keys of the same name", other.token("RS256", &claimed), "signature"),
        ("another issuer's keys", other.token("EdDSA", &claimed), "signature"),
        ("an unknown kid", Issuer::new("b").token("ES256", &claimed), "not among"),
        (
            "the kid of a key of another kind",
            under("ES256", json!({"alg": "ES256", "kid": issuer.kid("RS256")})),
            "not among",
        ),
        (
            "the algorithm of another key",
            under("ES256", json!({"alg": "EdDSA", "kid": issuer.kid("EdDSA")})),
            "signature",
        ),
        ("claims exchanged", format!("{head}.{}.{signature}", encode(good("n2").to_string())), "signature"),
        ("no signature", format!("{text}."), "signature"),
        ("a signature cut short", token[..token.len() - 2].to_owned(), "signature"),
        ("a critical extension", under("ES256", json!({"alg": "ES256", "crit": ["x"], "x": 1})), "extensions"),
        ("another issuer", issuer.token("ES256", &with(json!({"iss": "https://evil.example"}))), "[[trust]]"),
        ("no issuer", issuer.token("ES256", &with(json!({"iss": null}))), "`iss`"),
        ("another audience", issuer.token("ES256", &with(json!({"aud": ["api"]}))), "audience"),
        ("another account", issuer.token("ES256", &with(json!({"sub": "system:serviceaccount:x:meshd"}))), "subject"),
        ("expired", issuer.token("ES256", &claims("n1", "1", NOW.0 - 660)), "expired"),
        ("without an end", issuer.token("ES256", &with(json!({"exp": null}))), "`exp`"),
        ("not valid yet", issuer.token("ES256", &claims("n1", "1", NOW.0 + 61)), "not valid yet"),
        ("a year long", issuer.token("ES256", &with(json!({"exp": NOW.0 + 31_536_000}))), "max_lifetime"),
        ("no node", issuer.token("ES256", &with(json!({"kubernetes.io": {}}))), "`kubernetes.io/pod/name`"),
        ("a node that is no name", issuer.token("ES256", &good("../../etc")), "names no node"),
        ("oversized", issuer.token("ES256", &with(json!({"pad": "x".repeat(20_000)}))), "too long"),
        ("garbage", "a.b.c".into(), "no signed token"),
        ("nothing", String::new(), "no signed token"),
    ];
    for (what, token, part) in cases {
        let why = trusts.verify(&token, NOW).await.unwrap_err();
        assert!(why.contains(part), "{what}: {why}");
    }
    assert!(trusts.verify(&token, NOW).await.is_ok());
}

#[tokio::test]
async fn no_token_survives_the_change_of_one_character() {
    let issuer = Issuer::new("a");
    let (trusts, _dir) = from_file(&issuer, "");
    for alg in ["RS256", "ES256", "EdDSA"] {
        let token = issuer.token(alg, &good("n1"));
        trusts.verify(&token, NOW).await.unwrap();
        for place in 0..token.len() {
            for new in [b'A', b'B', b'_', b'.', b'=', 0x7f] {
                let mut bytes = token.clone().into_bytes();
                let old = std::mem::replace(&mut bytes[place], new);
                let changed = String::from_utf8(bytes).unwrap();
                let answer = trusts.verify(&changed, NOW).await;
                assert!(old == new || answer.is_err(), "{alg}: {} at {place}", char::from(new));
            }
            assert!(trusts.verify(&token[..place], NOW).await.is_err(), "{alg}: cut at {place}");
        }
    }
}

#[tokio::test]
async fn algorithms_and_lifetime_may_be_narrowed() {
    let issuer = Issuer::new("a");
    let (trusts, _dir) = from_file(&issuer, "algorithms = \"ES256\"\nmax_lifetime = \"5m\"\n");
    assert!(trusts.verify(&issuer.token("RS256", &good("n1")), NOW).await.unwrap_err().contains("algorithm"));
    assert!(trusts.verify(&issuer.token("ES256", &good("n1")), NOW).await.unwrap_err().contains("300 s"));
    let short = with(json!({"exp": NOW.0 + 300}));
    assert!(trusts.verify(&issuer.token("ES256", &short), NOW).await.is_ok());
}

#[tokio::test]
async fn tokens_are_told_apart_by_jti_and_without_one_by_what_is_signed() {
    let issuer = Issuer::new("a");
    let (trusts, _dir) = from_file(&issuer, "");
    let mark = async |claims: &Value| trusts.verify(&issuer.token("ES256", claims), NOW).await.unwrap().mark;
    let (one, two) = (good("n1"), claims("n1", "2", NOW.0));
    assert_eq!(mark(&one).await, mark(&with(json!({"exp": NOW.0 + 500}))).await);
    assert_ne!(mark(&one).await, mark(&two).await);
    let nameless = with(json!({"jti": null}));
    // ECDSA signs with randomness: two texts, one token.
    assert_eq!(mark(&nameless).await, mark(&nameless).await);
    assert_ne!(mark(&nameless).await, mark(&with(json!({"jti": null, "exp": NOW.0 + 500}))).await);
}

#[tokio::test]
async fn pushed_keys_are_taken_and_replaced() {
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    let trusts = trusts("jwks = \"push\"\n");
    let token = |issuer: &Issuer| issuer.token("EdDSA", &good("n1"));
    assert!(trusts.verify(&token(&old), NOW).await.unwrap_err().contains("trust push k8s FILE"));
    let push = |issuer: &Issuer| trusts.push("k8s", &Pushed { jwks: issuer.jwks(), at: NOW });
    push(&old);
    assert!(trusts.verify(&token(&old), NOW).await.is_ok());
    push(&new);
    assert!(trusts.verify(&token(&new), NOW).await.is_ok());
    assert!(trusts.verify(&token(&old), NOW).await.is_err());
}

#[tokio::test]
async fn a_url_is_asked_when_a_key_is_unknown_and_at_most_once_a_minute() {
    let server = Server::start().await;
    let (first, second) = (Issuer::new("first"), Issuer::new("second"));
    server.serve(&first.jwks());
    let trusts = trusts(&server.lines());
    let verify = async |issuer: &Issuer| trusts.verify(&issuer.token("ES256", &good("n1")), NOW).await;
    verify(&first).await.unwrap();
    verify(&first).await.unwrap();
    assert_eq!(server.asked(), 1);

    // The issuer gets new keys; it was asked a moment ago.
    server.serve(&second.jwks());
    for _ in 0..20 {
        assert!(verify(&second).await.unwrap_err().contains("not among"));
    }
    assert_eq!(server.asked(), 1);
    let age = |by: Duration| lock(&trusts.0[0].keys).asked = Instant::now().checked_sub(by);
    age(RETRY);
    verify(&second).await.unwrap();
    assert_eq!(server.asked(), 2);

    // It is gone; what is known stays good, however old.
    drop(server);
    age(FRESH * 2);
    lock(&trusts.0[0].keys).fetched = Instant::now().checked_sub(FRESH * 2);
    verify(&second).await.unwrap();
    assert!(trusts.standing().next().unwrap().1.error().unwrap().contains("cannot fetch"));
}

#[tokio::test]
async fn whoever_has_no_certificate_of_the_right_ca_brings_no_keys() {
    let (server, other) = (Server::start().await, Server::start().await);
    let issuer = Issuer::new("a");
    server.serve(&issuer.jwks());
    let wrong = format!("jwks = \"{}\"\nca = \"{}\"\n", server.url(), other.ca().display());
    let why = trusts(&wrong).verify(&issuer.token("ES256", &good("n1")), NOW).await.unwrap_err();
    assert!(why.contains("cannot fetch"), "{why}");
    assert_eq!(server.asked(), 0);
    for body in [String::new(), " ".repeat(MAX_JWKS + 1), "{\"keys\":[]}".into()] {
        server.serve(&body);
        let why = trusts(&server.lines()).verify(&issuer.token("ES256", &good("n1")), NOW).await.unwrap_err();
        assert!(why.contains("there are no keys: "), "{why}");
    }
}

#[test]
fn mistakes_in_trust_are_told_with_their_place() {
    let text = "[[trust]]\nname = \"K8s\"\nissuer = \"\"\njwks = \"http://x/\"\nsite = \"c1\"\nalgorithms = [\"HS256\"]\nnode = \"uid\"\nsubject = \"x\"\n";
    let errors = Config::parse(text, Path::new("/c.toml")).unwrap_err().to_string();
    for part in [
        "/c.toml:8:1: unknown key `subject`",
        "/c.toml:2:8: `K8s` is not a name",
        "/c.toml:3:10: expected a text",
        "without `audience`",
        "/c.toml:4:8: `http://x/` is not https",
        "`subjects` is missing",
        "/c.toml:6:15: `HS256` is no algorithm",
        "/c.toml:7:8: `uid` names no node",
    ] {
        assert!(errors.contains(part), "{part} is not in\n{errors}");
    }
}

/// A web server of `localhost` with a certificate of its own, in PEM form in a file.
struct Server {
    port: u16,
    body: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    dir: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start() -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).unwrap();
        let certificate = certificate(pkcs8.as_ref());
        let dir = tempfile::tempdir().unwrap();
        let pem = data_encoding::BASE64.encode(&certificate);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n");
        std::fs::write(dir.path().join("ca.pem"), pem).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(certificate)],
                PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()).into(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (body, asked) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicUsize::new(0)));
        let (served, counted) = (Arc::clone(&body), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let answer = service_fn(|_| async {
                    counted.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(lock(&served).clone()))))
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            }
        });
        Self { port, body, asked, dir, task }
    }

    fn serve(&self, body: &str) {
        *lock(&self.body) = body.into();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/openid/v1/jwks", self.port)
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn lines(&self) -> String {
        format!("jwks = \"{}\"\nca = \"{}\"\n", self.url(), self.ca().display())
    }
}

/// Makes a certificate of `localhost` that signs itself (RFC 5280), with a key on P-256.
fn certificate(pkcs8: &[u8]) -> Vec<u8> {
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).unwrap();
    let algorithm = der(0x30, &[&[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]]);
    let common_name = der(0x30, &[&[6, 3, 0x55, 4, 3], &der(0x0c, &[b"localhost"])]);
    let name = der(0x30, &[&der(0x31, &[&common_name])]);
    let validity = der(0x30, &[&der(0x17, &[b"200101000000Z"]), &der(0x18, &[b"29991231235959Z"])]);
    let curve =
        der(0x30, &[&[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1], &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]]);
    let public = der(0x30, &[&curve, &der(3, &[&[0], key.public_key().as_ref()])]);
    let names = der(4, &[&der(0x30, &[&der(0x82, &[b"localhost"])])]);
    let extensions = der(0xa3, &[&der(0x30, &[&der(0x30, &[&[6, 3, 0x55, 0x1d, 0x11], &names])])]);
    let version = der(0xa0, &[&[2, 1, 2]]);
    let body = der(0x30, &[&version, &[2, 1, 1], &algorithm, &name, &validity, &name, &public, &extensions]);
    let signature = key.sign(&SystemRandom::new(), &body).unwrap();
    der(0x30, &[&body, &algorithm, &der(3, &[&[0], signature.as_ref()])])
}

/// One value in DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    match content.len() {
        length @ 0..128 => out.push(u8::try_from(length).unwrap()),
        length @ 128..256 => out.extend([0x81, u8::try_from(length).unwrap()]),
        length => {
            out.push(0x82);
            out.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    out.extend(content);
    out
}
