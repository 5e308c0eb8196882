//! `[mesh]`, `[[site]]` and `[[node]]`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use data_encoding::BASE64;
use ipnet::Ipv4Net;

use crate::base::addr::{self, MeshRange};
use crate::base::id::{Domain, NodeName, SiteName, TunnelKey};

use super::codes;
use super::diagnostic::Diagnostic;
use super::keys::FileTable;
use super::model::{MeshSection, Site, SiteKind, Span, StaticNode};
use super::names::Names;
use super::public_suffix::is_public_suffix;
use super::walk::{Sink, TomlTable, Value, Word, span_of};

/// What the parts of `addr::FORBIDDEN` are for.
const FORBIDDEN_NAMES: [&str; 5] = ["unspecified", "loopback", "link-local (cloud metadata)", "multicast", "broadcast"];
/// Region and zone.
const MAX_LOCALITY: usize = 2;

/// Reads `[mesh]`.
pub(super) fn mesh(sink: &mut Sink, value: &Value<'_>) -> MeshSection {
    let mut section = MeshSection::default();
    let Some(table) = TomlTable::open(sink, FileTable::Mesh, value) else { return section };
    section.name = table.name(sink, "name");
    if let Some(word) = table.word(sink, "default").filter(|w| w.text != "deny") {
        let message = format!("`default` cannot be `{}`", word.text);
        let one = Diagnostic::error(codes::RESERVED, word.span, message);
        let help = "nothing talks unless an [[allow]] says so; other defaults are reserved and not built yet";
        sink.push(one.label("only \"deny\" is built").help(help));
    }
    table.reserve(sink, "v6", "remove it; the mesh carries IPv4 inside");
    if let Some(value) = table.get("domains") {
        let words = sink.words("domains", value);
        if words.is_empty() && value.get_ref().as_array().is_some_and(|a| a.is_empty()) {
            let one = Diagnostic::error(codes::MISSING, span_of(value), "`domains` is empty");
            sink.push(one.label("name at least one, such as \"mesh.internal\", or remove the key"));
        }
        section.domains = domains(sink, &words);
    }
    if let Some(word) = table.word(sink, "v4") {
        match word.text.parse::<MeshRange>() {
            Ok(range) => section.range = range,
            Err(error) => {
                let one = Diagnostic::error(codes::RANGE, word.span, error.to_string());
                sink.push(one.label("use a prefix of /8 to /16 that nothing else uses"));
            }
        }
    }
    section
}

fn domains(sink: &mut Sink, words: &[Word<'_>]) -> Vec<Domain> {
    let mut list: Vec<(Domain, Span)> = Vec::with_capacity(words.len());
    for word in words {
        let Ok(domain) = word.text.parse::<Domain>() else {
            let message = format!("`{}` is not a domain", word.text);
            sink.error(codes::NAME, word.span, message, "use names of a-z, 0-9 and hyphens, separated by dots");
            continue;
        };
        match list.iter().find(|(other, _)| *other == domain) {
            Some((_, first)) => {
                let message = format!("domain `{domain}` stands twice");
                let one = Diagnostic::error(codes::DUPLICATE, word.span, message);
                sink.push(one.label("remove it").also(*first, "first here"));
            }
            None => {
                if is_public_suffix(&domain) {
                    hides(sink, &domain, word.span);
                }
                list.push((domain, word.span));
            }
        }
    }
    list.into_iter().map(|(domain, _)| domain).collect()
}

/// Says what a mesh hides that answers for names of strangers.
fn hides(sink: &mut Sink, domain: &Domain, span: Span) {
    let message = format!(
        "`{domain}` is a public suffix: nodes that ask the mesh for its names do not find those of the Internet under `.{domain}` any more"
    );
    let one = Diagnostic::warning(codes::PUBLIC_SUFFIX, span, message);
    let help = "use a domain of your own, or one below `internal`; keep this one only for names that applications use already, such as those that Istio gave";
    sink.push(one.label("hides all of it").help(help));
}

/// Reads all `[[site]]`.
pub(super) fn sites(sink: &mut Sink, values: &[&Value<'_>], range: MeshRange, names: &mut Names) -> Vec<Site> {
    let mut sites = Vec::with_capacity(values.len());
    let mut first: BTreeMap<SiteName, Span> = BTreeMap::new();
    for value in values {
        let Some(table) = TomlTable::open(sink, FileTable::Site, value) else { continue };
        let named = table.named(sink, "name = \"c1\"");
        let kind = table.word(sink, "kind");
        let kind = kind.and_then(|w| sink.choice("kind", w, &["hosts", "kubernetes"]));
        let (pods, whole) = pods(sink, table, range);
        if kind == Some(1) && pods.is_empty() && whole {
            let span = table.key_span("kind").unwrap_or(table.span);
            let message = "a cluster without `pods`: its nodes may claim none, and no pod of it is in the mesh";
            let one = Diagnostic::warning(codes::NO_PODS, span, message);
            sink.push(one.label("add its pod CIDR, such as pods = [\"10.8.0.0/14\"], or remove `kind`"));
        }
        names.open_pods |= !whole;
        let locality = locality(sink, table);
        let Some((name, span)) = named else { continue };
        if let Some(first) = first.get(&name) {
            twice(sink, "site", name.as_str(), span, *first);
            continue;
        }
        first.insert(name.clone(), span);
        let site = Site {
            name,
            kind: match kind {
                Some(1) => SiteKind::Kubernetes,
                _ => SiteKind::Hosts,
            },
            pods,
            locality,
        };
        names.sites.insert(site.name.clone(), site.pods.clone());
        sites.push(site);
    }
    sites
}

/// Notes two tables of one name.
pub(super) fn twice(sink: &mut Sink, kind: &str, name: &str, span: Span, first: Span) {
    let message = format!("{kind} `{name}` is defined twice");
    let one = Diagnostic::error(codes::DUPLICATE, span, message);
    sink.push(one.label("rename or remove it").also(first, "first here"));
}

/// Reads `pods`, and says whether all of it could be read.
fn pods(sink: &mut Sink, table: TomlTable<'_>, range: MeshRange) -> (Vec<Ipv4Net>, bool) {
    let mut pods = Vec::new();
    let words = table.words(sink, "pods");
    for word in &words {
        let Some(net) = sink.prefix(*word) else { continue };
        let refused = |message: String| Diagnostic::error(codes::FORBIDDEN, word.span, message);
        if net.prefix_len() == 0 {
            let one = refused(format!("pods cannot be {net}: it is every address"));
            sink.push(one.label("use the cluster's pod CIDR, such as 10.8.0.0/14"));
        } else if let Some((bad, name)) = forbidden(net) {
            let one = refused(format!("pods cannot be {net}: {bad} is {name}"));
            sink.push(one.label("use the cluster's pod CIDR, such as 10.8.0.0/14"));
        } else if addr::overlap(net, range.net()) {
            let one = refused(format!("pods {net} overlap the mesh range {range}"));
            let help = "the mesh gives every pod an address of its own range; choose another range with `v4` in [mesh], before the first node joins";
            sink.push(one.label("inside the mesh range").help(help));
        } else {
            pods.push(net);
        }
    }
    let whole = pods.len() == words.len();
    (pods, whole)
}

/// Finds a prefix that nobody may claim and that shares an address with this one.
fn forbidden(net: Ipv4Net) -> Option<(Ipv4Net, &'static str)> {
    let mut all = addr::FORBIDDEN.into_iter().zip(FORBIDDEN_NAMES);
    all.find(|(bad, _)| addr::overlap(net, *bad))
}

fn locality(sink: &mut Sink, table: TomlTable<'_>) -> Vec<String> {
    let Some(word) = table.word(sink, "locality") else { return Vec::new() };
    let parts: Vec<String> = word.text.split('/').map(str::to_owned).collect();
    let plain = |p: &String| !p.is_empty() && !p.contains(|c: char| c.is_whitespace() || c.is_control());
    if parts.len() > MAX_LOCALITY || !parts.iter().all(plain) {
        let message = format!("`{}` is not a locality", word.text);
        let one = Diagnostic::error(codes::TEXT, word.span, message);
        sink.push(one.label("use \"region\" or \"region/zone\", such as \"us-west1/us-west1-b\""));
        return Vec::new();
    }
    parts
}

/// Reads all `[[node]]`.
pub(super) fn nodes(sink: &mut Sink, values: &[&Value<'_>], names: &mut Names) -> Vec<StaticNode> {
    let mut nodes = Vec::with_capacity(values.len());
    let mut first: BTreeMap<NodeName, Span> = BTreeMap::new();
    for value in values {
        let Some(table) = TomlTable::open(sink, FileTable::Node, value) else { continue };
        let named = table.named(sink, "name = \"router\"");
        let key = table.require(sink, "key", "key = \"PUBLIC KEY\"");
        let key = key.and_then(|value| tunnel_key(sink, value));
        let endpoint = table.word(sink, "endpoint");
        let endpoint = endpoint.and_then(|word| socket(sink, word));
        let site = table.word(sink, "site").and_then(|word| {
            let site = sink.name(word)?;
            names.check_site(sink, &site, word, 0);
            Some(site)
        });
        let Some((name, span)) = named else { continue };
        if let Some(first) = first.get(&name) {
            twice(sink, "node", name.as_str(), span, *first);
            continue;
        }
        first.insert(name.clone(), span);
        names.nodes.insert(name.clone());
        let Some(key) = key else { continue };
        nodes.push(StaticNode { name, key, endpoint, site, span: table.span });
    }
    nodes
}

/// Reads a key as `wg pubkey` prints it, or as meshd does.
fn tunnel_key(sink: &mut Sink, value: &Value<'_>) -> Option<TunnelKey> {
    let word = sink.word("key", value)?;
    let standard = BASE64.decode(word.text.as_bytes()).ok();
    let standard = standard.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let key = standard.map(TunnelKey).or_else(|| word.text.parse().ok());
    if key.is_none() {
        let one = Diagnostic::error(codes::KEY, word.span, "`key` is not a WireGuard public key");
        sink.push(one.label("use the 44 characters that `wg pubkey` prints"));
    }
    key
}

fn socket(sink: &mut Sink, word: Word<'_>) -> Option<SocketAddr> {
    let found = word.text.parse::<SocketAddr>().ok();
    let found = found.filter(|s| s.port() > 0 && !s.ip().is_unspecified() && !s.ip().is_multicast());
    if found.is_none() {
        let message = format!("`{}` is not an endpoint", word.text);
        let one = Diagnostic::error(codes::ADDRESS, word.span, message);
        sink.push(one.label("use an address and a port, such as 192.0.2.7:51820 or [2001:db8::7]:51820"));
    }
    found
}
