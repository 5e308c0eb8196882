//! Whose word on a machine's identity is taken: the `[[trust]]` of coordinator.toml and their keys.
//!
//! ```text
//! token ─▶ read (bounded, three algorithms) ─▶ whose issuer? ─▶ claims ─▶ key by kid ─▶ signature ─▶ Vouched
//!                                                                           └─ unknown: fetch, once a minute at most
//! ```
//! Keys come from a URL, a file or the operator. Whatever was fetched last stays good while the issuer cannot be
//! reached. Nothing here changes the mesh: the registry decides, and remembers which tokens were used.

#[cfg(test)]
mod tests;

use std::io::Read as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use data_encoding::HEXLOWER;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::NodeName;
use mesh_proto::trust::jwt::{Jwks, Jwt, MAX_JWKS, PublicKey, Said};

use crate::base::sync::lock;
use crate::config::{IssuerConfig, JwksSource};
use crate::registry::{Pushed, Vouched};

/// How long the issuer is not asked again after it was asked, whatever it answered.
const RETRY: Duration = Duration::from_secs(60);
/// How long keys that were fetched from a URL are used without asking again.
const FRESH: Duration = Duration::from_secs(3600);

/// The issuers that are trusted.
pub(crate) struct Issuers(Vec<Entry>);

struct Entry {
    trust: IssuerConfig,
    keys: Mutex<IssuerKeys>,
    /// Held while the issuer is asked, so that it is asked once.
    asking: tokio::sync::Mutex<()>,
}

/// What is known of an issuer's keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct IssuerKeys {
    jwks: Option<Arc<Jwks>>,
    asked: Option<Instant>,
    fetched: Option<Instant>,
    error: Option<String>,
    /// The text of them that the operator pushed.
    pushed: Option<String>,
}

impl IssuerKeys {
    /// Returns how many keys there are.
    pub(crate) fn count(&self) -> usize {
        self.jwks.as_ref().map_or(0, |jwks| jwks.len())
    }

    /// Returns how old they are.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.fetched.map(|at| at.elapsed())
    }

    /// Returns why they could not be had the last time.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    fn may_ask(&self) -> bool {
        self.asked.is_none_or(|at| at.elapsed() >= RETRY)
    }
}

impl Issuers {
    /// Takes up the configuration; keys are fetched when they are needed.
    pub(crate) fn new(trusts: &[IssuerConfig]) -> Self {
        let entry = |trust: &IssuerConfig| Entry {
            trust: trust.clone(),
            keys: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        };
        Self(trusts.iter().map(entry).collect())
    }

    /// Returns the names of those whose keys the operator pushes.
    pub(crate) fn pushed(&self) -> impl Iterator<Item = &str> {
        let pushed = self.0.iter().filter(|entry| entry.trust.jwks == JwksSource::Pushed);
        pushed.map(|entry| entry.trust.name.as_str())
    }

    /// Returns how all of them stand.
    pub(crate) fn standing(&self) -> impl Iterator<Item = (&IssuerConfig, IssuerKeys)> {
        self.0.iter().map(|entry| (&entry.trust, lock(&entry.keys).clone()))
    }

    /// Takes up keys that the operator pushed, here or at another coordinator.
    pub(crate) fn push(&self, name: &str, pushed: &Pushed) {
        let Some(entry) = self.0.iter().find(|entry| entry.trust.name == name) else { return };
        let mut keys = lock(&entry.keys);
        if keys.pushed.as_ref() == Some(&pushed.jwks) {
            return;
        }
        match Jwks::parse(pushed.jwks.as_bytes()) {
            Ok(jwks) => {
                let (jwks, fetched) = (Some(Arc::new(jwks)), Some(Instant::now()));
                *keys = IssuerKeys { jwks, fetched, pushed: Some(pushed.jwks.clone()), ..IssuerKeys::default() };
            }
            Err(error) => keys.error = Some(error.to_string()),
        }
    }

    /// Verifies a token.
    ///
    /// # Errors
    /// A sentence for the operator: why no issuer that is trusted vouches for anybody by it.
    pub(crate) async fn verify(&self, token: &str, now: UnixTime) -> Result<Vouched, String> {
        let jwt = Jwt::parse(token).map_err(|error| error.to_string())?;
        let issuer = jwt.issuer().map_err(|error| error.to_string())?;
        let mut why = "its issuer is none of [[trust]]".to_owned();
        for entry in self.0.iter().filter(|entry| entry.trust.expected.issuer == issuer) {
            match entry.verify(&jwt, now).await {
                Ok(vouched) => return Ok(vouched),
                Err(error) => why = format!("{}: {error}", entry.trust.name),
            }
        }
        Err(why)
    }
}

impl Entry {
    async fn verify(&self, jwt: &Jwt<'_>, now: UnixTime) -> Result<Vouched, String> {
        // The claims cost nothing; whoever fails here makes us neither fetch keys nor compute.
        let said = self.trust.expected.check(jwt, now).map_err(|error| error.to_string())?;
        let key = self.key(jwt).await.ok_or_else(|| self.no_key())?;
        if !is_signed(jwt, &key) {
            return Err("its signature is not by the key that it names".into());
        }
        self.vouched(jwt, said)
    }

    /// Returns the key that a token names, after asking the issuer if need be.
    async fn key(&self, jwt: &Jwt<'_>) -> Option<PublicKey> {
        let old = match self.trust.jwks {
            JwksSource::Url { .. } => FRESH,
            JwksSource::File(_) => RETRY,
            JwksSource::Pushed => return self.known(jwt),
        };
        let is_fresh = lock(&self.keys).age().is_some_and(|age| age < old);
        if let Some(key) = self.known(jwt).filter(|_| is_fresh) {
            return Some(key);
        }
        let _turn = self.asking.lock().await;
        // Somebody else may have asked while we waited.
        let known = self.known(jwt);
        let keys = lock(&self.keys).clone();
        let is_fresh = known.is_some() && keys.age().is_some_and(|age| age < old);
        if !is_fresh && keys.may_ask() {
            self.ask().await;
            return self.known(jwt);
        }
        known
    }

    fn known(&self, jwt: &Jwt<'_>) -> Option<PublicKey> {
        lock(&self.keys).jwks.as_ref()?.key(jwt).cloned()
    }

    async fn ask(&self) {
        lock(&self.keys).asked = Some(Instant::now());
        let fetched = match &self.trust.jwks {
            JwksSource::Url { url, ca } => crate::oidc::fetch::get(url, ca.as_deref()).await,
            JwksSource::File(path) => {
                let mut text = Vec::new();
                let file = std::fs::File::open(path);
                let read = file.and_then(|file| file.take(MAX_JWKS as u64 + 1).read_to_end(&mut text));
                read.map(|_| text).map_err(|error| format!("cannot read {}: {error}", path.display()))
            }
            JwksSource::Pushed => return,
        };
        let parsed = fetched.and_then(|text| Jwks::parse(&text).map_err(|error| error.to_string()));
        let mut keys = lock(&self.keys);
        match parsed {
            Ok(jwks) => {
                tracing::info!(trust = self.trust.name, keys = jwks.len(), "took an issuer's keys");
                (keys.jwks, keys.fetched, keys.error) = (Some(Arc::new(jwks)), Some(Instant::now()), None);
            }
            Err(error) => {
                tracing::warn!(trust = self.trust.name, error, "an issuer's keys cannot be had");
                keys.error = Some(error);
            }
        }
    }

    fn no_key(&self) -> String {
        let keys = lock(&self.keys);
        match (&keys.jwks, &keys.error) {
            (None, None) => format!("there are no keys yet; run mesh-coordinator trust push {} FILE", self.trust.name),
            (None, Some(error)) => format!("there are no keys: {error}"),
            (Some(_), Some(error)) => format!("its key is unknown, and newer ones cannot be had: {error}"),
            (Some(_), None) => "its key is not among the issuer's".into(),
        }
    }

    fn vouched(&self, jwt: &Jwt<'_>, said: Said) -> Result<Vouched, String> {
        let Said { subject, node, id, over } = said;
        // Hosts are often known by their full name; the first label is what meshd takes of it as well.
        let name = node.parse().or_else(|_| node.split('.').next().unwrap_or_default().parse::<NodeName>());
        let name = name.map_err(|error| format!("it names no node: {error}"))?;
        Ok(Vouched {
            ephemeral: false,
            trust: self.trust.name.clone(),
            subject,
            node: name,
            site: self.trust.site.clone(),
            serve: self.trust.serve.clone(),
            mark: mark(&self.trust.expected.issuer, id.as_deref(), jwt.signed),
            over,
        })
    }
}

/// Returns what tells a token from all others: its own name, or what is signed where it has none. The signature
/// tells nothing, since one text may have several.
fn mark(issuer: &str, id: Option<&str>, signed: &[u8]) -> String {
    let text = match id {
        Some(id) => [issuer.as_bytes(), b"\0jti\0", id.as_bytes()].concat(),
        None => [issuer.as_bytes(), b"\0text\0", signed].concat(),
    };
    HEXLOWER.encode(digest(&SHA256, &text).as_ref())
}

fn is_signed(jwt: &Jwt<'_>, key: &PublicKey) -> bool {
    let (signed, signature) = (jwt.signed, jwt.signature.as_slice());
    let verified = match key {
        PublicKey::Rsa { n, e } => PublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature),
        PublicKey::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature),
        PublicKey::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(signed, signature),
    };
    key.algorithm() == jwt.algorithm && verified.is_ok()
}
