//! `[[service]]`: names, ports, backends, routing.

use std::time::Duration;

use crate::base::id::{BackendName, Namespace, NodeName, ServiceKey, ServiceName, SiteName};
use crate::model::netmap::ServicePort;

use super::diagnostic::Diagnostic;
use super::keys::FileTable;
use super::mesh::twice;
use super::model::{BackendAt, BackendSpec, Prefer, Route, ServiceSpec, Span};
use super::names::{Defined, Names};
use super::suggest::suggestion;
use super::walk::{Sink, TomlTable, Value, Word, span_of};
use super::words::RESERVED_NAMES;
use super::{codes, health, ports};

/// Far above any sensible ratio, and small enough that sums of weights never overflow.
const MAX_WEIGHT: u32 = 10_000;
/// Limits of `max_conn_age`.
const CONN_AGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);

/// Reads all `[[service]]`.
pub(super) fn services(sink: &mut Sink, values: &[&Value<'_>], names: &mut Names) -> Vec<ServiceSpec> {
    let mut services = Vec::with_capacity(values.len());
    for value in values {
        services.extend(service(sink, value, names));
    }
    services
}

fn service(sink: &mut Sink, value: &Value<'_>, names: &mut Names) -> Option<ServiceSpec> {
    let table = TomlTable::open(sink, FileTable::Service, value)?;
    let named = table.named::<ServiceName>(sink, "name = \"cartservice\"");
    if let Some((name, span)) = &named {
        check_word(sink, name.as_str(), *span, "a service");
    }
    let namespace = match table.get("namespace") {
        Some(_) => table.name(sink, "namespace"),
        None => Some(Namespace::default()),
    };
    let discovered = names.open && table.get("port").or_else(|| table.get("ports")).is_none();
    let ports = if discovered { None } else { ports::read(sink, table) };
    let backends = backends(sink, table, ports.as_deref(), names);
    let health = health::of(sink, table);
    let route = route(sink, table, names);
    let strict = table.idle(sink, "strict", "remove it, and close the port in the host's firewall");
    let strict = strict.and_then(|v| sink.boolean("strict", v));

    let (name, span) = named?;
    let key = ServiceKey::new(name, namespace?);
    if let Some(first) = names.services.get(&key) {
        twice(sink, "service", &key.to_string(), span, first.span);
        return None;
    }
    let defined = Defined { span, ports: ports.clone() };
    names.services.insert(key.clone(), defined);
    Some(ServiceSpec { key, ports: ports?, backends, health, route, strict: strict.unwrap_or(false), span: table.span })
}

/// Notes a name that is a word of the grammar.
fn check_word(sink: &mut Sink, name: &str, span: Span, what: &str) {
    if RESERVED_NAMES.contains(&name) {
        let message = format!("`{name}` cannot name {what}");
        let one = Diagnostic::error(codes::WORD_AS_NAME, span, message);
        let help = format!("reserved words are {}", RESERVED_NAMES.join(", "));
        sink.push(one.label("a reserved word of [[allow]]; take another name").help(help));
    }
}

fn backends(
    sink: &mut Sink,
    table: TomlTable<'_>,
    ports: Option<&[ServicePort]>,
    names: &mut Names,
) -> Vec<BackendSpec> {
    let Some(value) = table.get("backends") else { return Vec::new() };
    let Some(values) = value.get_ref().as_array() else {
        sink.wrong_type(
            "backends",
            value,
            "a list, such as [{ host = \"vm-1\" }, { addr = \"10.8.0.10\", node = \"c1-n1\" }]",
        );
        return Vec::new();
    };
    let mut backends: Vec<BackendSpec> = Vec::with_capacity(values.len());
    let read: Vec<BackendSpec> = values.iter().filter_map(|value| backend(sink, value, ports, names)).collect();
    for one in read {
        let same_name = |b: &&BackendSpec| b.name.is_some() && b.name == one.name;
        let same_place = |b: &&BackendSpec| b.at == one.at && b.port == one.port;
        if let Some(first) = backends.iter().find(same_name) {
            let name = one.name.as_ref().map_or("", BackendName::as_str);
            twice(sink, "backend", name, one.span, first.span);
        } else if let Some(first) = backends.iter().find(same_place) {
            let message = "two backends are the same place";
            let again = Diagnostic::error(codes::DUPLICATE, one.span, message);
            let label = "remove it, or give it another `port`";
            sink.push(again.label(label).also(first.span, "first here"));
        }
        backends.push(one);
    }
    if !backends.is_empty() && backends.len() == values.len() && backends.iter().all(|b| b.weight == Some(0)) {
        let span = table.key_span("backends").unwrap_or(table.span);
        let message = "every backend has weight 0: nobody takes new connections";
        let warning = Diagnostic::warning(codes::ALL_DRAINED, span, message);
        sink.push(warning.label("give one of them a weight above 0"));
    }
    backends
}

fn backend(
    sink: &mut Sink,
    value: &Value<'_>,
    ports: Option<&[ServicePort]>,
    names: &mut Names,
) -> Option<BackendSpec> {
    if let Some(text) = value.get_ref().as_str() {
        let one = Diagnostic::error(codes::TYPE, span_of(value), "a backend is a string");
        sink.push(one.label(suggestion(format!("{{ host = \"{text}\" }}"))));
        return None;
    }
    let table = TomlTable::open(sink, FileTable::Backend, value)?;
    let name: Option<BackendName> = match table.get("name") {
        Some(_) => table.named(sink, "").map(|(name, span): (BackendName, _)| {
            check_word(sink, name.as_str(), span, "a backend");
            name
        }),
        None => None,
    };
    let weight = table.get("weight");
    let weight = weight.and_then(|v| sink.integer("weight", v, 0..=MAX_WEIGHT));
    let port = table.get("port").and_then(|v| ports::number(sink, "port", v));
    if port.is_some() && ports.is_some_and(|p| p.len() > 1) {
        let span = table.key_span("port").unwrap_or(table.span);
        let message = "a backend's `port` is ambiguous: its service has several ports";
        let one = Diagnostic::error(codes::BACKEND_PORT, span, message);
        let help = "translate each port in `ports` instead, such as { http = \"80->8080\" }";
        sink.push(one.label("remove it").help(help));
    }
    let via = table.reserve(sink, "via", "run meshd on that machine, or remove the backend");
    let at = place(sink, table, names, via);
    Some(BackendSpec { name, at: at?, weight, port, span: table.span })
}

/// Reads where a backend runs.
fn place(sink: &mut Sink, table: TomlTable<'_>, names: &mut Names, via: bool) -> Option<BackendAt> {
    let instead = "write { addr = \"POD IP\", node = \"NODE\" } until Kubernetes discovery is built";
    let kubernetes = table.reserve(sink, "kubernetes", instead);
    let (host, addr, node) = (table.get("host"), table.get("addr"), table.get("node"));
    let wrong = |message: &str| Diagnostic::error(codes::BACKEND_PLACE, table.span, message);
    let stated = [host.is_some(), addr.is_some(), kubernetes];
    if stated.iter().filter(|&&s| s).count() > 1 {
        let one = wrong("a backend says twice where it runs");
        let help = "one backend is one place; write a second backend for a second place";
        sink.push(one.label("keep one of `host`, `addr` with `node`").help(help));
        return None;
    }
    if kubernetes {
        return None;
    }
    if let Some(value) = host {
        if let Some(span) = table.key_span("node") {
            let one = Diagnostic::error(codes::BACKEND_PLACE, span, "`node` goes with `addr`");
            sink.push(one.label("remove it: `host` is the node's name already"));
        }
        let node: NodeName = sink.word("host", value).and_then(|w| sink.name(w))?;
        names.nodes.insert(node.clone());
        return Some(BackendAt::Host(node));
    }
    let Some(value) = addr else {
        let one = wrong("a backend does not say where it runs");
        let node = table.word(sink, "node");
        sink.push(match node {
            Some(node) => one.label(format!("did you mean `host = \"{}\"`?", node.text)),
            None => one.label("add `host = \"NODE\"`, or `addr = \"POD IP\"` and `node = \"NODE\"`"),
        });
        return None;
    };
    let word = sink.word("addr", value);
    let addr = word.and_then(|w| sink.address("addr", w));
    if node.is_none() {
        let one = wrong("a backend has `addr` but no `node`");
        let help = "the same pod address may exist behind several nodes; `node` says which one";
        sink.push(one.label("add `node = \"NODE\"`").help(help));
    }
    let node: Option<NodeName> = table.name(sink, "node");
    names.nodes.extend(node.clone());
    let (addr, word) = addr.zip(word)?;
    let inside = names.sites.values().flatten().any(|net| net.contains(&addr));
    if !inside && !names.open_pods && !names.open && !via {
        outside(sink, word, names);
    }
    Some(BackendAt::Pod { addr, node: node? })
}

fn outside(sink: &mut Sink, word: Word<'_>, names: &Names) {
    let message = format!("{} lies in no site's pods", word.text);
    let one = Diagnostic::error(codes::OUTSIDE_SITES, word.span, message);
    let mut all: Vec<String> = Vec::new();
    for net in names.sites.values().flatten() {
        let net = net.to_string();
        if all.len() < 8 && !all.contains(&net) {
            all.push(net);
        }
    }
    let known = if all.is_empty() { "no site has `pods`".to_owned() } else { format!("sites have {}", all.join(", ")) };
    let help = "add its prefix to `pods` of its [[site]]; a process on a node itself is `host = \"NODE\"`";
    sink.push(one.label(known).help(help));
}

fn route(sink: &mut Sink, table: TomlTable<'_>, names: &Names) -> Route {
    let mut route = Route::default();
    let table = table.get("route").and_then(|v| TomlTable::open(sink, FileTable::Route, v));
    let Some(table) = table else { return route };
    route.prefer = table.get("prefer").and_then(|v| prefer(sink, v, names));
    let instead = "remove it; a backend is left out when `weight` 0 drains it";
    if let Some(value) = table.idle(sink, "spill_below", instead) {
        route.spill_below = sink.share("spill_below", value).unwrap_or(0.0);
    }
    if let Some(word) = table.word(sink, "sticky") {
        route.sticky = sink.choice("sticky", word, &["none", "client"]) == Some(1);
    }
    if let Some(value) = table.idle(sink, "max_conn_age", "remove it; a connection lives as long as its ends want") {
        route.max_conn_age = sink.duration("max_conn_age", value, CONN_AGE);
    }
    if let Some(value) = table.idle(sink, "retry_syn", "remove it; a connection stays with its first backend") {
        route.retry_syn = sink.boolean("retry_syn", value).unwrap_or(true);
    }
    route
}

fn prefer(sink: &mut Sink, value: &Value<'_>, names: &Names) -> Option<Prefer> {
    if let Some(text) = value.get_ref().as_str() {
        let span = span_of(value);
        let is_site = text.parse().is_ok_and(|site| names.sites.contains_key(&site));
        if is_site && !["locality", "spread"].contains(&text) {
            let message = format!("`prefer` cannot be `{text}`");
            sink.error(codes::CHOICE, span, message, format!("did you mean [\"{text}\"]?"));
            return None;
        }
        let chosen = sink.choice("prefer", Word { text, span }, &["locality", "spread"])?;
        return [Prefer::Locality, Prefer::Spread].into_iter().nth(chosen);
    }
    if !value.get_ref().is_array() {
        sink.wrong_type("prefer", value, "\"locality\", \"spread\" or a list of sites");
        return None;
    }
    let mut sites: Vec<SiteName> = Vec::new();
    for word in sink.words("prefer", value) {
        let Some(site) = sink.name::<SiteName>(word) else { continue };
        names.check_site(sink, &site, word, 0);
        if sites.contains(&site) {
            let message = format!("site `{site}` stands twice in `prefer`");
            sink.error(codes::DUPLICATE, word.span, message, "remove it");
        } else {
            sites.push(site);
        }
    }
    if value.get_ref().as_array().is_some_and(|a| a.is_empty()) {
        sink.error(codes::MISSING, span_of(value), "`prefer` is empty", "name at least one site, or remove the key");
    }
    Some(Prefer::Sites(sites))
}
