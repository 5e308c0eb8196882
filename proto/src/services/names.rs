//! What the file defines, by name, so that words elsewhere can be looked up, and what somebody may have meant.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use crate::base::id::{NodeName, ServiceKey, SiteName};
use crate::model::netmap::ServicePort;
use crate::model::rules::{RuleTarget, Source, WordError};

use super::codes;
use super::diagnostic::Diagnostic;
use super::model::Span;
use super::suggest::{nearest, suggestion};
use super::walk::{Sink, Word};
use super::words::RESERVED_NAMES;

/// What to write while nothing tells which account a pod has.
const NO_ACCOUNTS: &str = "it allows nobody; name a service that the pods back, or their `site:`";

/// A service that the file defines, as far as it could be read.
#[derive(Debug)]
pub(super) struct Defined {
    /// Where its name stands.
    pub(super) span: Span,
    /// Its ports, if they could be read.
    pub(super) ports: Option<Vec<ServicePort>>,
}

/// What the file defines.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) services: BTreeMap<ServiceKey, Defined>,
    pub(super) sites: BTreeMap<SiteName, Vec<Ipv4Net>>,
    /// Static nodes, and those that backends name.
    pub(super) nodes: BTreeSet<NodeName>,
    /// Nodes that belong to the mesh, as far as who asks knows; the file need not name them.
    pub(super) members: BTreeSet<NodeName>,
    /// Whether a reserved table would bring services that the file does not define.
    pub(super) open: bool,
    /// Whether a site's prefixes could not be read, so that an address may lie in those.
    pub(super) open_pods: bool,
}

impl Names {
    /// Reads who may call.
    pub(super) fn source(&self, sink: &mut Sink, word: Word<'_>) -> Option<Source> {
        match word.text.split_once(':') {
            None if word.text == "any" => Some(Source::Any),
            None => self.service(sink, word, codes::SOURCE).map(Source::Service),
            Some((kind @ ("publish" | "peer"), _)) => {
                self.reserved(sink, word, kind);
                None
            }
            Some(("sa", _)) => {
                let place = word.part(0, "sa:".len());
                let read = sink.idle(place, "`sa:` as a caller", NO_ACCOUNTS);
                if read { self.parsed(sink, word) } else { None }
            }
            Some(("host" | "site" | "masqueraded", _)) => {
                let source = self.parsed::<Source>(sink, word)?;
                if let Source::Site(site) = &source {
                    self.check_site(sink, site, word, "site:".len());
                }
                Some(source)
            }
            Some((kind, rest)) => {
                self.strange_source(sink, word, kind, rest);
                None
            }
        }
    }

    fn strange_source(&self, sink: &mut Sink, word: Word<'_>, kind: &str, rest: &str) {
        let kinds = ["host", "site", "sa", "masqueraded", "publish", "peer"];
        let whole = |message: String| Diagnostic::error(codes::SOURCE, word.span, message);
        let is_service = kind.parse().is_ok_and(|key| self.services.contains_key(&key));
        let is_port = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
        if is_service || is_port {
            let one = whole(format!("`{}` names a port of a caller", word.text));
            let help = "a rule's ports are those of `to`; callers use any port";
            sink.push(one.label(suggestion(kind)).help(help));
        } else if let Some(near) = nearest(kind, kinds.into_iter()) {
            let one = whole(format!("`{kind}:` is no kind of caller"));
            sink.push(one.label(suggestion(format!("{near}:{rest}"))));
        } else {
            self.reserved(sink, word, kind);
        }
    }

    /// Reads what may be called.
    pub(super) fn target(&self, sink: &mut Sink, word: Word<'_>) -> Option<RuleTarget> {
        match word.text.split_once(':') {
            None if word.text == "any" => Some(RuleTarget::Any),
            None => self.service(sink, word, codes::TARGET).map(RuleTarget::Service),
            Some(("host", rest)) if rest.contains(':') => {
                let message = format!("`{}` names a port of a host", word.text);
                let host = rest.split(':').next().unwrap_or_default();
                let one = Diagnostic::error(codes::TARGET, word.span, message);
                let help = "`host:` and `site:` targets mean all protocols and ports; for one port, define a service with a `host` backend";
                sink.push(one.label(suggestion(format!("host:{host}"))).help(help));
                None
            }
            Some(("host" | "site", _)) => {
                let target = self.parsed::<RuleTarget>(sink, word)?;
                if let RuleTarget::Site(site) = &target {
                    self.check_site(sink, site, word, "site:".len());
                }
                Some(target)
            }
            Some((kind @ ("sa" | "peer" | "publish"), _)) => {
                let message = format!("`{}` cannot be called", word.text);
                let one = Diagnostic::error(codes::TARGET, word.span, message);
                let label = format!("`{kind}:` stands in `from` only; name a service here");
                sink.push(one.label(label));
                None
            }
            Some((service, port)) => self.port(sink, word, service, port),
        }
    }

    fn port(&self, sink: &mut Sink, word: Word<'_>, service: &str, port: &str) -> Option<RuleTarget> {
        let kinds = ["host", "site"];
        let is_number = port.bytes().all(|b| b.is_ascii_digit());
        let near = nearest(service, kinds.into_iter()).filter(|_| !is_number);
        if let Some(near) = near.filter(|_| !self.is_service(service)) {
            let message = format!("`{service}:` is no kind of target");
            sink.error(codes::TARGET, word.span, message, suggestion(format!("{near}:{port}")));
            return None;
        }
        let head = Word { text: service, span: word.part(0, service.len()) };
        let key = self.service(sink, head, codes::TARGET)?;
        let place = word.part(service.len() + 1, word.text.len());
        let ports = self.services.get(&key).and_then(|s| s.ports.as_deref());
        let Some(ports) = ports else {
            let number = port.parse().ok().filter(|&n| n > 0)?;
            return Some(RuleTarget::Port(key, number));
        };
        let named = |p: &&ServicePort| p.name.as_ref().is_some_and(|n| n.as_str() == port);
        let number = port.parse::<u16>().ok();
        let found = ports.iter().find(|p| Some(p.port) == number);
        if let Some(found) = found.or_else(|| ports.iter().find(named)) {
            return Some(RuleTarget::Port(key, found.port));
        }
        let message = format!("`{key}` has no port `{port}`");
        let one = Diagnostic::error(codes::UNKNOWN_PORT, place, message);
        let of_backend = ports.iter().find(|p| Some(p.target) == number);
        let one = match of_backend {
            Some(p) => one
                .label(suggestion(p.port))
                .help(format!("callers dial {}; {} is where backends listen", p.port, p.target)),
            None => one.label(has_ports(ports)),
        };
        let defined = self.services.get(&key).map_or(word.span, |s| s.span);
        sink.push(one.also(defined, "defined here"));
        None
    }

    /// Reads the name of a service that the file defines.
    fn service(&self, sink: &mut Sink, word: Word<'_>, code: &'static str) -> Option<ServiceKey> {
        if RESERVED_NAMES.contains(&word.text) {
            let text = word.text;
            let one = Diagnostic::error(code, word.span, format!("`{text}` is a reserved word"));
            let label = match text {
                "host" => "write `host:` and a node's name",
                "site" => "write `site:` and a site's name",
                "sa" => "accounts are not built yet; name a service or a site",
                _ => "it is no service's name",
            };
            sink.push(one.label(label));
            return None;
        }
        if word.text.split('.').count() > 2 {
            let message = format!("`{}` is not a service's name", word.text);
            let one = Diagnostic::error(code, word.span, message);
            let first_two: Vec<&str> = word.text.splitn(3, '.').take(2).collect();
            let help = "a service is `name` or `name.namespace`, without a domain";
            sink.push(one.label(suggestion(first_two.join("."))).help(help));
            return None;
        }
        let key: ServiceKey = match word.text.parse() {
            Ok(key) => key,
            Err(_) => return sink.name(word),
        };
        if self.services.contains_key(&key) || self.open {
            return Some(key);
        }
        self.unknown_service(sink, &key, word);
        Some(key)
    }

    fn unknown_service(&self, sink: &mut Sink, key: &ServiceKey, word: Word<'_>) {
        let message = format!("no service is named `{key}`");
        let one = Diagnostic::error(codes::UNKNOWN_SERVICE, word.span, message);
        if sink.is_full() {
            return sink.push(one);
        }
        let text = key.to_string();
        let is_node = text.parse().is_ok_and(|name| self.nodes.contains(&name) || self.members.contains(&name));
        let is_site = text.parse().is_ok_and(|name| self.sites.contains_key(&name));
        let elsewhere = self.services.keys().find(|k| k.name == key.name);
        let known: Vec<String> = self.services.keys().map(ToString::to_string).collect();
        let near = nearest(&text, known.iter().map(String::as_str));
        sink.push(if is_node {
            one.label(suggestion(format!("host:{text}")))
        } else if is_site {
            one.label(suggestion(format!("site:{text}")))
        } else if let Some(other) = elsewhere {
            one.label(suggestion(other))
        } else if let Some(near) = near {
            one.label(suggestion(near))
        } else {
            let help = format!("define it with [[service]] and name = \"{0}\"; a node is written `host:{0}`", key.name);
            one.label("not defined in this file").help(help)
        });
    }

    /// Notes a site that the file does not define.
    pub(super) fn check_site(&self, sink: &mut Sink, site: &SiteName, word: Word<'_>, start: usize) {
        if self.sites.contains_key(site) {
            return;
        }
        let message = format!("no site is named `{site}`");
        let place = word.part(start, word.text.len());
        let one = Diagnostic::error(codes::UNKNOWN_SITE, place, message);
        let near = nearest(site.as_str(), self.sites.keys().map(SiteName::as_str));
        sink.push(match near {
            Some(near) => one.label(suggestion(near)),
            None => {
                one.label("not defined in this file").help(format!("define it with [[site]] and name = \"{site}\""))
            }
        });
    }

    fn parsed<T: std::str::FromStr<Err = WordError>>(&self, sink: &mut Sink, word: Word<'_>) -> Option<T> {
        let parsed = word.text.parse();
        if parsed.is_err() {
            let (kind, rest) = word.text.split_once(':').unwrap_or(("", word.text));
            let bad = rest.split('/').find(|part| part.parse::<NodeName>().is_err());
            let bad = bad.unwrap_or(rest);
            let start = word.text.find(bad).unwrap_or(0).max(kind.len() + 1);
            let span = word.part(start, start + bad.len());
            let _: Option<NodeName> = sink.name(Word { text: bad, span });
        }
        parsed.ok()
    }

    fn is_service(&self, text: &str) -> bool {
        text.parse().is_ok_and(|key| self.services.contains_key(&key))
    }

    fn reserved(&self, sink: &mut Sink, word: Word<'_>, kind: &str) {
        let message = format!("`{kind}:` as a caller is reserved and not built yet");
        let one = Diagnostic::error(codes::RESERVED, word.part(0, kind.len() + 1), message);
        let label = match kind {
            "publish" => "publishing to the outside comes later; remove it",
            _ => "federation comes later; remove it",
        };
        let help = "callers are `service`, `service.namespace`, `host:node`, `site:name` or `any`";
        sink.push(one.label(label).help(help));
    }
}

fn has_ports(ports: &[ServicePort]) -> String {
    let show = |p: &ServicePort| match &p.name {
        Some(name) => format!("{} ({name})", p.port),
        None => p.port.to_string(),
    };
    let shown: Vec<String> = ports.iter().map(show).collect();
    match shown.as_slice() {
        [one] => format!("did you mean `{one}`?"),
        _ => format!("its ports are {}", shown.join(", ")),
    }
}
