//! An issuer of identity tokens, as a cluster's API server is one: keys of all three kinds, a JWKS, tokens.

#![allow(dead_code, reason = "not every test that includes this uses all of it")]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://kubernetes.example";
pub(crate) const AUDIENCE: &str = "mesh:boutique";
pub(crate) const SUBJECT: &str = "system:serviceaccount:meshd-system:meshd";

pub(crate) struct Issuer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
    prefix: String,
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL_NOPAD.encode(bytes.as_ref())
}

/// The claims of a projected token that begins at `now` and lives for ten minutes.
pub(crate) fn claims(node: &str, jti: &str, now: u64) -> Value {
    json!({
        "iss": ISSUER, "aud": [AUDIENCE], "sub": SUBJECT, "iat": now, "nbf": now, "exp": now + 600, "jti": jti,
        "kubernetes.io": {
            "namespace": "meshd-system", "node": {"name": node, "uid": "u"}, "pod": {"name": "meshd-x", "uid": "p"},
            "serviceaccount": {"name": "meshd", "uid": "s"},
        },
    })
}

impl Issuer {
    /// Makes one; the names of its keys begin with `prefix`.
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("entropy"),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("entropy"),
            ed25519: Ed25519KeyPair::generate().expect("entropy"),
            prefix: prefix.into(),
        }
    }

    /// The name of its key for an algorithm.
    pub(crate) fn kid(&self, alg: &str) -> String {
        format!("{}-{alg}", self.prefix)
    }

    /// RSAPublicKey in DER: `30 82 .. .. 02 82 01 01 00 n 02 03 e`.
    pub(crate) fn rsa_public(&self) -> &[u8] {
        self.rsa.public_key().as_ref()
    }

    pub(crate) fn jwks(&self) -> String {
        let rsa = self.rsa_public();
        let point = self.p256.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid("RS256"),
             "n": encode(&rsa[9..265]), "e": encode(&rsa[267..270])},
            {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid("ES256"),
             "x": encode(&point[1..33]), "y": encode(&point[33..65])},
            {"kty": "OKP", "crv": "Ed25519", "kid": self.kid("EdDSA"), "x": encode(self.ed25519.public_key())},
        ]})
        .to_string()
    }

    /// Signs claims under a header of its own.
    pub(crate) fn token(&self, alg: &str, claims: &Value) -> String {
        self.signed(alg, &json!({"alg": alg, "typ": "JWT", "kid": self.kid(alg)}), claims)
    }

    /// Signs claims with the key for `alg`, whatever the header says.
    pub(crate) fn signed(&self, alg: &str, header: &Value, claims: &Value) -> String {
        let text = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match alg {
            "RS256" => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature).expect("it signs");
                signature
            }
            "ES256" => self.p256.sign(&random, text.as_bytes()).expect("it signs").as_ref().to_vec(),
            _ => self.ed25519.sign(text.as_bytes()).as_ref().to_vec(),
        };
        format!("{text}.{}", encode(signature))
    }
}
