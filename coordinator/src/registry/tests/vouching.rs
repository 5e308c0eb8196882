//! Joining by an issuer's word: once per token, for the machine that used it first.

use super::*;

fn vouched(node: &str, mark: &str) -> Vouched {
    Vouched {
        ephemeral: false,
        trust: "k8s".into(),
        subject: "system:serviceaccount:meshd-system:meshd".into(),
        node: node.parse().unwrap(),
        site: "c1".parse().unwrap(),
        serve: vec!["cart".parse().unwrap()],
        mark: mark.into(),
        over: later(660),
    }
}

fn ask_at(registry: &mut Registry, number: u8, vouched: Vouched, now: UnixTime) -> Result<Applied, Refused> {
    let facts = facts(number, &[]);
    let change = Change::Vouched { identity: identity(number), vouched, facts, observed: observed(number) };
    registry.apply(change, Actor::Stranger(observed(number)), now)
}

fn ask(registry: &mut Registry, number: u8, vouched: Vouched) -> Result<Applied, Refused> {
    ask_at(registry, number, vouched, NOW)
}

#[test]
fn a_machine_that_is_vouched_for_becomes_the_node_that_the_issuer_names() {
    let mut registry = registry();
    let applied = ask(&mut registry, 1, vouched("c1-n1", "t1")).unwrap();
    assert_eq!(applied.node, Some("c1-n1".parse().unwrap()));
    let record = node(&registry, "c1-n1");
    assert_eq!((record.site.as_str(), record.grants.len()), ("c1", 1));
    let told = registry.log(0).unwrap().pop().unwrap();
    assert!(format!("{told:?}").contains("k8s vouches for system:serviceaccount"), "{told:?}");
}

#[test]
fn a_token_is_used_by_one_machine_alone_as_often_as_it_likes() {
    let mut registry = registry();
    ask(&mut registry, 1, vouched("c1-n1", "t1")).unwrap();
    let again = ask(&mut registry, 1, vouched("c1-n1", "t1")).unwrap();
    assert!(!again.altered, "the answer was lost, nothing else");
    let text = ["was not taken"];
    assert_refused(ask(&mut registry, 2, vouched("c1-n1", "t1")), ErrorCode::Token, &text);
    assert_refused(ask(&mut registry, 2, vouched("c1-n2", "t1")), ErrorCode::Token, &text);
    assert!(registry.is_spent_by_another("t1", &identity(2)));
    assert!(ask_at(&mut registry, 2, vouched("c1-n2", "t1"), later(659)).is_err());
    assert_eq!(registry.world().nodes.len(), 1);
}

#[test]
fn a_token_for_one_node_makes_nobody_another() {
    let mut registry = registry();
    ask(&mut registry, 1, vouched("c1-n1", "t1")).unwrap();
    assert_refused(ask(&mut registry, 2, vouched("c1-n1", "t2")), ErrorCode::Name, &["belongs to another node"]);
    assert_refused(ask(&mut registry, 1, vouched("c1-n2", "t3")), ErrorCode::Token, &["was not taken"]);
    let elsewhere = Vouched { site: "c2".parse().unwrap(), ..vouched("c1-n1", "t4") };
    assert_refused(ask(&mut registry, 1, elsewhere), ErrorCode::Token, &["was not taken"]);
    let nowhere = Vouched { site: "c9".parse().unwrap(), ..vouched("c1-n9", "t5") };
    assert_refused(ask(&mut registry, 9, nowhere), ErrorCode::Site, &["no site `c9`"]);
}

#[test]
fn a_revoked_machine_does_not_come_back_by_its_issuer() {
    let mut registry = registry();
    ask(&mut registry, 1, vouched("c1-n1", "t1")).unwrap();
    revoke(&mut registry, "c1-n1").unwrap();
    assert_refused(ask(&mut registry, 1, vouched("c1-n1", "t1")), ErrorCode::Revoked, &["was expelled"]);
    assert_refused(ask(&mut registry, 2, vouched("c1-n1", "t2")), ErrorCode::Name, &["was revoked", "--name c1-n1"]);
}

#[test]
fn used_tokens_are_stored_until_they_are_over() {
    let dir = tempfile::tempdir().unwrap();
    let open = || store::open_embedded(&dir.path().join("s.redb")).unwrap();
    let mut registry = Registry::open(open(), setup()).unwrap();
    file(&mut registry, FILE).unwrap();
    ask(&mut registry, 1, vouched("c1-n1", "t1")).unwrap();
    drop(registry);
    let mut registry = Registry::open(open(), setup()).unwrap();
    assert_refused(ask(&mut registry, 2, vouched("c1-n2", "t1")), ErrorCode::Token, &["was not taken"]);
    ask_at(&mut registry, 3, vouched("c1-n3", "t3"), later(660)).unwrap();
    assert_eq!(registry.state.spent.len(), 1, "what is over is forgotten");
}

#[test]
fn keys_that_are_pushed_are_stored_and_broken_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = || store::open_embedded(&dir.path().join("s.redb")).unwrap();
    let mut registry = Registry::open(open(), setup()).unwrap();
    let push = |registry: &mut Registry, jwks: &str| {
        registry.apply(Change::TrustPush { trust: "k8s".into(), jwks: jwks.into() }, BY, NOW)
    };
    assert_refused(push(&mut registry, "{}"), ErrorCode::Malformed, &["keys cannot be used", "push the issuer's JWKS"]);
    let key = data_encoding::BASE64URL_NOPAD.encode(&[1; 32]);
    let jwks = format!("{{\"keys\":[{{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"{key}\"}}]}}");
    push(&mut registry, &jwks).unwrap();
    drop(registry);
    let registry = Registry::open(open(), setup()).unwrap();
    assert_eq!(registry.pushed("k8s").map(|pushed| pushed.jwks.as_str()), Some(jwks.as_str()));
}
