//! What is read of tokens and keys, and what is refused before any signature is looked at.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::json;

use super::*;

const NOW: UnixTime = UnixTime(1_000_000);

fn part(value: &Value) -> String {
    BASE64URL_NOPAD.encode(value.to_string().as_bytes())
}

fn token(header: &Value, claims: &Value) -> String {
    format!("{}.{}.{}", part(header), part(claims), BASE64URL_NOPAD.encode(&[7; 64]))
}

/// The claims of a projected token, some of them replaced; `null` takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": "https://issuer.example", "aud": ["mesh"], "sub": "system:serviceaccount:meshd-system:meshd",
        "exp": 1_000_600, "iat": 1_000_000, "nbf": 1_000_000, "jti": "1",
        "kubernetes.io": {"namespace": "meshd-system", "node": {"name": "n1"}, "pod": {"name": "meshd-x"}},
    });
    let object = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        object.remove(name);
        if !value.is_null() {
            object.insert(name.clone(), value.clone());
        }
    }
    claims
}

fn expected() -> Expected {
    Expected {
        issuer: "https://issuer.example".into(),
        audience: "mesh".into(),
        subjects: vec!["system:serviceaccount:meshd-system:*".into()],
        node: NodeClaim::Kubernetes,
        algorithms: vec![Algorithm::Rs256, Algorithm::Es256],
        max_lifetime: Duration::from_secs(3600),
    }
}

fn check(changes: Value, now: UnixTime) -> Result<Said, JwtError> {
    let text = token(&json!({"alg": "ES256", "kid": "k"}), &claims(changes));
    expected().check(&Jwt::parse(&text)?, now)
}

#[test]
fn a_projected_token_names_its_node() {
    let said = check(json!({}), NOW).unwrap();
    assert_eq!((said.node.as_str(), said.id.as_deref(), said.over), ("n1", Some("1"), UnixTime(1_000_660)));
    let old = json!({"kubernetes.io": {"pod": {"name": "meshd-x"}}, "jti": null, "aud": "mesh", "exp": 1_000_600.5});
    let said = check(old, NOW).unwrap();
    assert_eq!((said.node.as_str(), said.id), ("meshd-x", None));
}

#[test]
fn what_is_wrong_with_the_claims_is_said() {
    use JwtError as E;
    let claim = |name: &str| E::Claim(name.into());
    let subject = |text: &str| E::Subject(text.into());
    let cases = [
        (json!({"iss": "https://issuer.example/"}), E::Issuer),
        (json!({"iss": null}), claim("iss")),
        (json!({"iss": ["https://issuer.example"]}), claim("iss")),
        (json!({"aud": "other"}), E::Audience("mesh".into())),
        (json!({"aud": []}), E::Audience("mesh".into())),
        (json!({"aud": null}), claim("aud")),
        (json!({"aud": [["mesh"]]}), claim("aud")),
        (json!({"aud": vec!["mesh"; 65]}), claim("aud")),
        (json!({"sub": null}), claim("sub")),
        (json!({"sub": ""}), claim("sub")),
        (json!({"sub": "x".repeat(1025)}), claim("sub")),
        (json!({"sub": "system:serviceaccount:other:meshd"}), subject("system:serviceaccount:other:meshd")),
        (json!({"exp": null}), claim("exp")),
        (json!({"exp": "1000600"}), claim("exp")),
        (json!({"exp": -1}), claim("exp")),
        (json!({"exp": 1e300}), claim("exp")),
        (json!({"exp": 999_940, "iat": 999_000, "nbf": null}), E::Time("expired")),
        (json!({"nbf": "soon"}), claim("nbf")),
        (json!({"nbf": 1_000_061}), E::Time("not valid yet")),
        (json!({"iat": 1_000_061}), E::Time("not valid yet")),
        (json!({"iat": 996_000}), E::Lifetime(Duration::from_secs(3600))),
        (json!({"exp": u64::MAX, "iat": null, "nbf": null}), E::Lifetime(Duration::from_secs(3600))),
        (json!({"jti": 7}), claim("jti")),
        (json!({"kubernetes.io": null}), claim("kubernetes.io/pod/name")),
        (json!({"kubernetes.io": {"node": {"name": 7}, "pod": {"name": "x"}}}), claim("kubernetes.io/node/name")),
        (json!({"kubernetes.io": "n1"}), claim("kubernetes.io/pod/name")),
    ];
    for (changes, error) in cases {
        assert_eq!(check(changes.clone(), NOW), Err(error), "{changes}");
    }
}

#[test]
fn clocks_may_differ_by_a_minute() {
    assert!(check(json!({}), UnixTime(1_000_659)).is_ok());
    assert_eq!(check(json!({}), UnixTime(1_000_660)), Err(JwtError::Time("expired")));
    assert!(check(json!({}), UnixTime(999_940)).is_ok());
    assert_eq!(check(json!({}), UnixTime(999_939)), Err(JwtError::Time("not valid yet")));
}

#[test]
fn the_node_may_be_named_by_the_subject_or_any_text() {
    let text =
        token(&json!({"alg": "RS256"}), &claims(json!({"google": {"compute_engine": {"instance_name": "vm-1"}}})));
    let jwt = Jwt::parse(&text).unwrap();
    let path = ["google", "compute_engine", "instance_name"].map(String::from).to_vec();
    let said = Expected { node: NodeClaim::Path(path), ..expected() }.check(&jwt, NOW).unwrap();
    assert_eq!(said.node, "vm-1");
    let said = Expected { node: NodeClaim::Subject, ..expected() }.check(&jwt, NOW).unwrap();
    assert_eq!(said.node, said.subject);
    let other = Expected { algorithms: vec![Algorithm::EdDsa], ..expected() };
    assert_eq!(other.check(&jwt, NOW), Err(JwtError::Algorithm));
}

#[test]
fn only_three_algorithms_exist() {
    for alg in ["none", "None", "HS256", "HS512", "RS384", "PS256", "ES384", "es256", ""] {
        let text = token(&json!({"alg": alg}), &claims(json!({})));
        assert_eq!(Jwt::parse(&text), Err(JwtError::Algorithm), "{alg}");
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let good = token(&json!({"alg": "ES256"}), &claims(json!({})));
    let (signed, _) = good.rsplit_once('.').unwrap();
    let header = |text: &str| format!("{}.e30.AA", BASE64URL_NOPAD.encode(text.as_bytes()));
    let long = format!("{good}{}", "A".repeat(MAX_TOKEN));
    let cases = [
        "",
        ".",
        "..",
        "a.b",
        signed,
        &long,
        &format!("{good}="),
        &format!("{good} "),
        &format!("{good}.AA"),
        &good.replacen('.', "..", 1),
        &header("{}"),
        &header("[]"),
        &header("{\"alg\":7}"),
        &header("\u{0}"),
        &header("{\"alg\":\"ES256\",\"alg\":\"none\"}"),
        &header("{\"alg\":\"ES256\",\"crit\":[\"b64\"],\"b64\":false}"),
        &header(&format!("{{\"alg\":\"ES256\",\"kid\":\"{}\"}}", "k".repeat(1025))),
        &format!("{}.{}.AA", part(&json!({"alg": "ES256"})), part(&json!([1]))),
        &format!("{}.{}.AA", part(&json!({"alg": "ES256"})), BASE64URL_NOPAD.encode("[".repeat(9000).as_bytes())),
    ];
    for text in cases {
        assert!(matches!(Jwt::parse(text), Err(JwtError::Form(_))), "{}", &text[..text.len().min(80)]);
    }
}

#[test]
fn patterns_match_as_people_expect() {
    let cases = [
        ("a", "a", true),
        ("a", "ab", false),
        ("", "", true),
        ("*", "", true),
        ("*", "anything", true),
        ("a*", "a", true),
        ("a*", "ba", false),
        ("*a", "ba", true),
        ("*a", "ab", false),
        ("a*b*c", "aXbYc", true),
        ("a*b*c", "acb", false),
        ("ab*ba", "aba", false),
        ("**", "x", true),
        ("a*a", "a", false),
    ];
    for (pattern, text, expected) in cases {
        assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
    }
}

fn rsa(bytes: usize) -> Value {
    json!({"kty": "RSA", "kid": "r", "n": BASE64URL_NOPAD.encode(&vec![0xff; bytes]), "e": "AQAB"})
}

fn ed(kid: &str) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": BASE64URL_NOPAD.encode(&[1; 32])})
}

#[test]
fn a_key_is_found_by_its_name_and_kind_and_never_by_another() {
    let half = BASE64URL_NOPAD.encode(&[2; 32]);
    let p256 = json!({"kty": "EC", "crv": "P-256", "kid": "e", "x": half, "y": half});
    let keys = json!({"keys": [rsa(256), p256, ed("one"), ed("two"),
        {"kty": "oct", "kid": "s", "k": "AAAA"}, {"kty": "RSA", "use": "enc"}, {"kty": "EC", "crv": "P-521"}]});
    let jwks = Jwks::parse(keys.to_string().as_bytes()).unwrap();
    assert_eq!(jwks.len(), 4);
    let found = |alg: &str, kid: Option<&str>| {
        let text = token(&json!({"alg": alg, "kid": kid}), &json!({}));
        jwks.key(&Jwt::parse(&text).unwrap()).map(PublicKey::algorithm)
    };
    assert_eq!(found("RS256", Some("r")), Some(Algorithm::Rs256));
    assert_eq!(found("ES256", Some("e")), Some(Algorithm::Es256));
    assert_eq!(found("EdDSA", Some("two")), Some(Algorithm::EdDsa));
    assert_eq!(found("ES256", Some("r")), None, "a key of another kind");
    assert_eq!(found("EdDSA", Some("three")), None);
    assert_eq!(found("RS256", None), Some(Algorithm::Rs256), "the only one");
    assert_eq!(found("EdDSA", None), None, "which of two?");
}

#[test]
fn sets_of_keys_that_cannot_be_used_are_refused() {
    let set = |keys: Value| json!({"keys": keys}).to_string().into_bytes();
    let cases = [
        b"".to_vec(),
        b"{}".to_vec(),
        b"[]".to_vec(),
        vec![b' '; MAX_JWKS + 1],
        set(json!([])),
        set(json!([7])),
        set(json!(vec![ed("k"); 33])),
        set(json!([rsa(128)])),
        set(json!([rsa(1025)])),
        set(json!([{"kty": "RSA"}])),
        set(json!([{"kty": "OKP", "crv": "Ed25519", "x": "AA"}])),
        set(json!([{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}])),
        set(json!([{"kty": "oct", "k": "AAAA", "alg": "HS256"}])),
        set(json!([{"kty": "OKP", "crv": "Ed25519", "alg": "HS256", "x": BASE64URL_NOPAD.encode(&[1; 32])}])),
    ];
    for text in cases {
        assert!(matches!(Jwks::parse(&text), Err(JwtError::Keys(_))), "{}", String::from_utf8_lossy(&text));
    }
}
