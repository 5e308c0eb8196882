//! `[[trust]]` of coordinator.toml: whose word on a machine's identity is taken, and for what.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_host::toml_reader::{Reader, Value};
use mesh_proto::base::id::{ServiceKey, SiteName};
use mesh_proto::trust::jwt::{Algorithm, Expected, NodeClaim};
use toml::de::{DeTable, DeValue};

use crate::base::words::duration;

/// Most `[[trust]]` of a file.
const MAX_TRUSTS: usize = 16;
/// Most words of a list.
const MAX_WORDS: usize = 64;
/// The longest life of a token unless `max_lifetime` says another.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
const KEYS: [&str; 11] =
    ["name", "issuer", "audience", "jwks", "ca", "site", "serve", "subjects", "node", "algorithms", "max_lifetime"];

/// One `[[trust]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerConfig {
    /// `name`: what logs and `trust push` call it; a DNS label.
    pub name: String,
    /// `site`: the site of the nodes that it vouches for.
    pub site: SiteName,
    /// `serve`: the services that these nodes may offer to serve although the file names them as no backends.
    pub serve: Vec<ServiceKey>,
    /// `jwks`: where its keys come from.
    pub jwks: JwksSource,
    /// What its tokens have to say.
    pub expected: Expected,
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwksSource {
    /// An `https://` URL.
    Url {
        /// The URL.
        url: String,
        /// `ca`: a file of certificates in PEM form to trust there instead of the system's.
        ca: Option<PathBuf>,
    },
    /// A file.
    File(PathBuf),
    /// `mesh-coordinator trust push`.
    Pushed,
}

/// Reads all `[[trust]]`.
pub(super) fn read(value: &Value<'_>, reader: &mut Reader<'_>, from: &Path) -> Vec<IssuerConfig> {
    if value.get_ref().as_array().is_none() {
        reader.mistake(value.span(), "write [[trust]] as tables");
        return Vec::new();
    }
    let mut trusts: Vec<IssuerConfig> = Vec::new();
    for table in reader.items(value, MAX_TRUSTS) {
        let Some(keys) = reader.table(table, "[trust]", &KEYS) else { continue };
        let Some(trust) = one(table.span(), keys, reader, from) else { continue };
        if trusts.iter().any(|known| known.name == trust.name) {
            reader.mistake(table.span(), format!("there are two [[trust]] of the name `{}`", trust.name));
        }
        trusts.push(trust);
    }
    trusts
}

/// Reads one; none if something is wrong, which was told.
fn one(at: Range<usize>, keys: &DeTable<'_>, reader: &mut Reader<'_>, from: &Path) -> Option<IssuerConfig> {
    let mut table = Table { at, keys, reader, from };
    let name = table.required("name", |word| match word.parse::<SiteName>() {
        Ok(_) => Ok(word.to_owned()),
        Err(error) => Err(error.to_string()),
    });
    let site = table.required("site", |word| word.parse::<SiteName>().map_err(|error| error.to_string()));
    let issuer = table.required("issuer", filled);
    let audience = table.required("audience", filled);
    let ca = table.optional("ca", filled).map(|path| from.join(path));
    let jwks = table.required("jwks", filled).and_then(|word| table.jwks(word, ca));
    let subjects = table.words("subjects", filled);
    if subjects.is_empty() {
        let advice = "`subjects` is missing: say whom the issuer may vouch for, such as subjects = [\"system:serviceaccount:meshd-system:meshd\"]";
        table.reader.mistake(table.at.clone(), advice);
    }
    let serve = table.words("serve", |word| word.parse().map_err(|error| format!("{error}")));
    let node = table.node();
    let mut algorithms = table.words("algorithms", algorithm);
    if algorithms.is_empty() {
        algorithms = vec![Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];
    }
    let max_lifetime = table.optional("max_lifetime", duration).unwrap_or(MAX_LIFETIME);
    let expected = Expected { issuer: issuer?, audience: audience?, subjects, node: node?, algorithms, max_lifetime };
    Some(IssuerConfig { name: name?, site: site?, serve, jwks: jwks?, expected })
}

fn filled(word: &str) -> Result<String, String> {
    if word.is_empty() { Err("expected a text that is not empty".into()) } else { Ok(word.into()) }
}

fn algorithm(word: &str) -> Result<Algorithm, String> {
    match word {
        "RS256" => Ok(Algorithm::Rs256),
        "ES256" => Ok(Algorithm::Es256),
        "EdDSA" => Ok(Algorithm::EdDsa),
        _ => Err(format!("`{word}` is no algorithm that is taken; use RS256, ES256 or EdDSA")),
    }
}

struct Table<'r, 'a> {
    at: Range<usize>,
    keys: &'r DeTable<'r>,
    reader: &'r mut Reader<'a>,
    from: &'r Path,
}

impl Table<'_, '_> {
    fn optional<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.reader.read(self.keys.get(key)?, parse)
    }

    fn required<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        if !self.keys.contains_key(key) {
            self.reader.mistake(self.at.clone(), format!("[[trust]] without `{key}`"));
        }
        self.optional(key, parse)
    }

    /// Reads a word or a list of words; an empty list if there is none.
    fn words<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let Some(value) = self.keys.get(key) else { return Vec::new() };
        self.reader.items(value, MAX_WORDS).iter().filter_map(|item| self.reader.read(item, &parse)).collect()
    }

    /// `node`: `"kubernetes"`, `"sub"`, or the keys that lead to a claim.
    fn node(&mut self) -> Option<NodeClaim> {
        let Some(value) = self.keys.get("node") else { return Some(NodeClaim::Kubernetes) };
        if let DeValue::Array(_) = value.get_ref() {
            let path = self.words("node", filled);
            return (!path.is_empty()).then_some(NodeClaim::Path(path));
        }
        self.optional("node", |word| match word {
            "kubernetes" => Ok(NodeClaim::Kubernetes),
            "sub" => Ok(NodeClaim::Subject),
            _ => Err(format!(
                "`{word}` names no node; use \"kubernetes\", \"sub\", or the keys that lead to a claim, such as [\"google\", \"compute_engine\", \"instance_name\"]"
            )),
        })
    }

    fn jwks(&mut self, word: String, ca: Option<PathBuf>) -> Option<JwksSource> {
        if word == "push" {
            return Some(JwksSource::Pushed);
        }
        if word.starts_with("https://") {
            return Some(JwksSource::Url { url: word, ca });
        }
        if word.contains("://") {
            let at = self.keys.get("jwks").map_or_else(|| self.at.clone(), |value| value.span());
            self.reader.mistake(at, format!("`{word}` is not https; keys that anybody can replace prove nothing"));
            return None;
        }
        Some(JwksSource::File(self.from.join(word)))
    }
}
