//! Workload identity: an issuer's signed tokens (JWT, RFC 7519) and its public keys (JWKS, RFC 7517), read strictly.
//!
//! ```text
//! text ─ size ─ three parts ─▶ header: one of three algorithms, nothing critical ─▶ claims ─▶ Jwt
//! Jwt + Jwks ─ kid and the key's own algorithm agree ─▶ the caller verifies `signed` ─▶ Expected::check ─▶ Vouched
//! ```
//! What is of the wrong type is an error, never absent. The key decides the algorithm and the token must agree: so
//! there is no `none`, no shared secret, and no key that is taken for one of another kind.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::base::clock::UnixTime;

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Longest set of keys that is looked at, in bytes.
pub const MAX_JWKS: usize = 64 * 1024;
/// Most keys of a set.
pub const MAX_KEYS: usize = 32;
/// How far the issuer's clock may be from ours.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// Longest text of a claim that is used.
const MAX_CLAIM: usize = 1024;
/// Most audiences of a token.
const MAX_AUDIENCES: usize = 64;

/// A signature algorithm that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

/// Why a token or a set of keys is not taken. For the operator's log: a stranger is told nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// It is no token.
    #[error("it is no signed token: {0}")]
    Form(&'static str),
    /// Its algorithm is not taken.
    #[error("its algorithm is none of RS256, ES256, EdDSA")]
    Algorithm,
    /// A claim is missing, or of the wrong type or size.
    #[error("its claim `{0}` is missing, or not of the right type or size")]
    Claim(String),
    /// It is from somebody else.
    #[error("its issuer is another")]
    Issuer,
    /// It is for somebody else.
    #[error("its audience does not include `{0}`")]
    Audience(String),
    /// Its subject is not among those allowed.
    #[error("its subject {0:?} matches none of `subjects`")]
    Subject(String),
    /// It is over, or not begun.
    #[error("it is {0}: check the clocks of issuer and coordinator")]
    Time(&'static str),
    /// It lives for too long.
    #[error("it lives for more than {} s (`max_lifetime`)", .0.as_secs())]
    Lifetime(Duration),
    /// The set of keys cannot be used.
    #[error("the keys cannot be used: {0}")]
    Keys(&'static str),
}

/// A token that was read and not verified yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Jwt<'a> {
    /// What its header says it is signed with.
    pub algorithm: Algorithm,
    /// Which key its header says it is signed with.
    pub kid: Option<String>,
    /// The bytes that are signed.
    pub signed: &'a [u8],
    /// The signature.
    pub signature: Vec<u8>,
    claims: Map<String, Value>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

impl<'a> Jwt<'a> {
    /// Reads a token.
    ///
    /// # Errors
    /// `JwtError::Form` or `JwtError::Algorithm` if it is none that is taken here.
    pub fn parse(text: &'a str) -> Result<Self, JwtError> {
        if text.len() > MAX_TOKEN {
            return Err(JwtError::Form("it is too long"));
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(JwtError::Form("it has no signature"))?;
        let (header, claims) = signed.split_once('.').ok_or(JwtError::Form("it has not three parts"))?;
        let decode =
            |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| JwtError::Form("it is no base64url"));
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| JwtError::Form("its header is not one"))?;
        let algorithm = algorithm(&header.alg)?;
        if header.crit.is_some() {
            return Err(JwtError::Form("it needs extensions that are not understood here"));
        }
        if header.kid.as_ref().is_some_and(|kid| kid.len() > MAX_CLAIM) {
            return Err(JwtError::Form("the name of its key is too long"));
        }
        let claims =
            serde_json::from_slice(&decode(claims)?).map_err(|_| JwtError::Form("its claims are no object"))?;
        Ok(Self { algorithm, kid: header.kid, signed: signed.as_bytes(), signature: decode(signature)?, claims })
    }

    /// Returns who it says has signed it.
    ///
    /// # Errors
    /// `JwtError::Claim` if it does not say.
    pub fn issuer(&self) -> Result<&str, JwtError> {
        self.text("iss")
    }

    fn text(&self, name: &str) -> Result<&str, JwtError> {
        self.path(&[name])
    }

    fn path<S: AsRef<str>>(&self, path: &[S]) -> Result<&str, JwtError> {
        let missing = || JwtError::Claim(path.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("/"));
        let (last, parents) = path.split_last().ok_or_else(missing)?;
        let mut object = &self.claims;
        for parent in parents {
            object = object.get(parent.as_ref()).and_then(Value::as_object).ok_or_else(missing)?;
        }
        let text = object.get(last.as_ref()).and_then(Value::as_str).ok_or_else(missing)?;
        Some(text).filter(|text| (1..=MAX_CLAIM).contains(&text.len())).ok_or_else(missing)
    }

    fn has<S: AsRef<str>>(&self, path: &[S]) -> bool {
        let mut parts = path.iter();
        let first = parts.next().and_then(|part| self.claims.get(part.as_ref()));
        parts.fold(first, |value, part| value?.get(part.as_ref())).is_some()
    }

    /// Seconds since 1970, rounded down.
    fn time(&self, name: &str) -> Result<Option<UnixTime>, JwtError> {
        let Some(value) = self.claims.get(name) else { return Ok(None) };
        let fraction = || value.as_f64().filter(|&n| (0.0..=1e15).contains(&n)).map(|n| n as u64);
        let seconds = value.as_u64().or_else(fraction).ok_or_else(|| JwtError::Claim(name.into()))?;
        Ok(Some(UnixTime(seconds)))
    }

    fn is_for(&self, audience: &str) -> Result<bool, JwtError> {
        match self.claims.get("aud") {
            Some(Value::String(one)) => Ok(one == audience),
            Some(Value::Array(list)) if list.len() <= MAX_AUDIENCES && list.iter().all(Value::is_string) => {
                Ok(list.iter().any(|one| one.as_str() == Some(audience)))
            }
            _ => Err(JwtError::Claim("aud".into())),
        }
    }
}

/// Which claim names the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeClaim {
    /// The node that a Kubernetes pod runs on (`kubernetes.io`, `node`, `name`); the pod itself where the cluster is too
    /// old to say.
    Kubernetes,
    /// The subject.
    Subject,
    /// A text in nested objects.
    Path(Vec<String>),
}

/// What a token has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Who signs, exactly.
    pub issuer: String,
    /// For whom.
    pub audience: String,
    /// About whom: patterns in which `*` stands for any text.
    pub subjects: Vec<String>,
    /// Which claim names the node.
    pub node: NodeClaim,
    /// The algorithms that are taken.
    pub algorithms: Vec<Algorithm>,
    /// The longest life of a token.
    pub max_lifetime: Duration,
}

/// What a token says that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// About whom.
    pub subject: String,
    /// The node's name, as the issuer writes it.
    pub node: String,
    /// The token's own name, if it has one.
    pub id: Option<String>,
    /// When it is over for everybody, leeway included.
    pub over: UnixTime,
}

impl Expected {
    /// Checks everything but the signature.
    ///
    /// # Errors
    /// `JwtError` that says the first thing that is wrong.
    pub fn check(&self, jwt: &Jwt<'_>, now: UnixTime) -> Result<Said, JwtError> {
        if !self.algorithms.contains(&jwt.algorithm) {
            return Err(JwtError::Algorithm);
        }
        if jwt.issuer()? != self.issuer {
            return Err(JwtError::Issuer);
        }
        if !jwt.is_for(&self.audience)? {
            return Err(JwtError::Audience(self.audience.clone()));
        }
        let expires = jwt.time("exp")?.ok_or_else(|| JwtError::Claim("exp".into()))?;
        let (not_before, issued) = (jwt.time("nbf")?, jwt.time("iat")?);
        if now >= expires + LEEWAY {
            return Err(JwtError::Time("expired"));
        }
        if not_before.into_iter().chain(issued).any(|begin| begin > now + LEEWAY) {
            return Err(JwtError::Time("not valid yet"));
        }
        // Without a beginning, what is left of its life is all that is known of it.
        if expires.since(issued.or(not_before).unwrap_or(now)) > self.max_lifetime {
            return Err(JwtError::Lifetime(self.max_lifetime));
        }
        let subject = jwt.text("sub")?;
        if !self.subjects.iter().any(|pattern| matches(pattern, subject)) {
            return Err(JwtError::Subject(subject.into()));
        }
        let id = if jwt.has(&["jti"]) { Some(jwt.text("jti")?.to_owned()) } else { None };
        let node = match &self.node {
            NodeClaim::Subject => subject,
            NodeClaim::Path(path) => jwt.path(path)?,
            NodeClaim::Kubernetes if jwt.has(&["kubernetes.io", "node"]) => {
                jwt.path(&["kubernetes.io", "node", "name"])?
            }
            NodeClaim::Kubernetes => jwt.path(&["kubernetes.io", "pod", "name"])?,
        };
        Ok(Said { subject: subject.into(), node: node.into(), id, over: expires + LEEWAY })
    }
}

fn algorithm(word: &str) -> Result<Algorithm, JwtError> {
    match word {
        "RS256" => Ok(Algorithm::Rs256),
        "ES256" => Ok(Algorithm::Es256),
        "EdDSA" => Ok(Algorithm::EdDsa),
        _ => Err(JwtError::Algorithm),
    }
}

/// Says whether a text fits a pattern in which `*` stands for any text. Takes time in proportion to both lengths.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// An issuer's public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// RSA: modulus and exponent, big-endian without leading zeros.
    Rsa {
        /// The modulus, 2048 to 8192 bits.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
    /// A point of P-256, uncompressed: `04 x y`.
    P256([u8; 65]),
    /// Ed25519.
    Ed25519([u8; 32]),
}

impl PublicKey {
    /// Returns the one algorithm that it is used with.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
            Self::Ed25519(_) => Algorithm::EdDsa,
        }
    }
}

/// An issuer's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Jwks(Vec<(Option<String>, PublicKey)>);

#[derive(Deserialize)]
struct Set {
    keys: Vec<Map<String, Value>>,
}

impl Jwks {
    /// Reads a set of keys. Keys of kinds that are not taken, or for other uses, are passed over.
    ///
    /// # Errors
    /// `JwtError::Keys` if it is none, a key of a known kind is broken, or no key is left.
    pub fn parse(text: &[u8]) -> Result<Self, JwtError> {
        if text.len() > MAX_JWKS {
            return Err(JwtError::Keys("they take more than 64 KiB"));
        }
        let set: Set =
            serde_json::from_slice(text).map_err(|_| JwtError::Keys("this is no JWKS, a JSON object with `keys`"))?;
        if set.keys.len() > MAX_KEYS {
            return Err(JwtError::Keys("there are more than 32"));
        }
        let mut keys = Vec::new();
        for key in &set.keys {
            if let Some(public) = public_key(key)? {
                keys.push((key.get("kid").and_then(Value::as_str).map(str::to_owned), public));
            }
        }
        if keys.is_empty() {
            return Err(JwtError::Keys("none is for signatures with RS256, ES256 or EdDSA"));
        }
        Ok(Self(keys))
    }

    /// Returns how many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Says whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the key that a token says it was signed with; without a `kid`, the only one of its algorithm.
    pub fn key(&self, jwt: &Jwt<'_>) -> Option<&PublicKey> {
        let mut fitting = self
            .0
            .iter()
            .filter(|(kid, key)| key.algorithm() == jwt.algorithm && (jwt.kid.is_none() || *kid == jwt.kid));
        let first = fitting.next();
        first.filter(|_| fitting.next().is_none()).map(|(_, key)| key)
    }
}

fn public_key(key: &Map<String, Value>) -> Result<Option<PublicKey>, JwtError> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let bytes = |name: &str| text(name).and_then(|text| BASE64URL_NOPAD.decode(text.as_bytes()).ok());
    if text("use").is_some_and(|word| word != "sig") {
        return Ok(None);
    }
    let kind = (text("kty").unwrap_or_default(), text("crv").unwrap_or_default());
    let stated = text("alg");
    let public = match kind {
        ("RSA", _) => {
            let whole = |name| bytes(name).map(|b| b[b.iter().take_while(|&&byte| byte == 0).count()..].to_vec());
            let (n, e) = whole("n").zip(whole("e")).ok_or(JwtError::Keys("an RSA key is broken"))?;
            if !(256..=1024).contains(&n.len()) || !(1..=8).contains(&e.len()) {
                return Err(JwtError::Keys("an RSA key has not 2048 to 8192 bits"));
            }
            PublicKey::Rsa { n, e }
        }
        ("EC", "P-256") => {
            let half = |name| bytes(name).and_then(|b| <[u8; 32]>::try_from(b).ok());
            let (x, y) = half("x").zip(half("y")).ok_or(JwtError::Keys("a P-256 key is broken"))?;
            let mut point = [4; 65];
            point[1..33].copy_from_slice(&x);
            point[33..].copy_from_slice(&y);
            PublicKey::P256(point)
        }
        ("OKP", "Ed25519") => {
            let x = bytes("x").and_then(|b| b.try_into().ok());
            PublicKey::Ed25519(x.ok_or(JwtError::Keys("an Ed25519 key is broken"))?)
        }
        _ => return Ok(None),
    };
    let agrees = stated.is_none_or(|word| algorithm(word) == Ok(public.algorithm()));
    Ok(Some(public).filter(|_| agrees))
}

#[cfg(test)]
mod tests;
