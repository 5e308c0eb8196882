//! What is judged over the whole file: its own `[[test]]`s, and the nodes it names.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::id::{NodeName, ServiceKey, SiteName};
use crate::model::rules::{RuleTarget, Source};

use super::codes;
use super::diagnostic::Diagnostic;
use super::model::{Allow, BackendAt, ServiceSpec, Services, Span, StaticNode, Test};

/// Runs the file's own `[[test]]`s against its `[[allow]]` rules.
///
/// A caller is judged by all the words that are known to mean it: a service's backend on a node is the
/// service, `host:` that node, every other service at the same place, and `any`. `accept` must hold for each
/// caller that `from` means, `deny` for all of them and for every way in: a rule to the node of a backend
/// counts too.
pub fn evaluate(services: &Services) -> Vec<Diagnostic> {
    let world = Names::new(services);
    let mut found = Vec::new();
    for test in &services.tests {
        let callers = world.callers(&test.from);
        let missing = |(target, span): &(RuleTarget, Span)| world.not_allowed(test, &callers, target, *span);
        found.extend(test.accept.iter().filter_map(missing));
        let permitted = |(target, span): &(RuleTarget, Span)| world.allowed(test, &callers, target, *span);
        found.extend(test.deny.iter().filter_map(permitted));
    }
    found
}

/// All the words that mean one caller.
type Caller = BTreeSet<Source>;

/// The file, by name.
struct Names<'s> {
    rules: &'s [Allow],
    services: BTreeMap<&'s ServiceKey, &'s ServiceSpec>,
    /// Which services run at a place.
    places: BTreeMap<(&'s NodeName, Option<std::net::Ipv4Addr>), Vec<&'s ServiceKey>>,
    /// The sites of nodes, where the file says them, or where one site alone can hold a pod of theirs.
    sites: BTreeMap<&'s NodeName, &'s SiteName>,
}

impl<'s> Names<'s> {
    fn new(file: &'s Services) -> Self {
        let mut places: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let with_site = |n: &'s StaticNode| Some((&n.name, n.site.as_ref()?));
        let mut sites: BTreeMap<_, _> = file.nodes.iter().filter_map(with_site).collect();
        for service in &file.services {
            for backend in &service.backends {
                let services = places.entry(place(&backend.at)).or_default();
                services.push(&service.key);
                if let BackendAt::Pod { addr, node } = &backend.at {
                    let mut holding = file.sites.iter().filter(|s| s.pods.iter().any(|net| net.contains(addr)));
                    if let (Some(site), None) = (holding.next(), holding.next()) {
                        sites.entry(node).or_insert(&site.name);
                    }
                }
            }
        }
        Self { rules: &file.allows, services: file.services.iter().map(|s| (&s.key, s)).collect(), places, sites }
    }

    /// Judges one word of `accept`.
    fn not_allowed(&self, test: &Test, callers: &[Caller], target: &RuleTarget, span: Span) -> Option<Diagnostic> {
        let may = |caller: &Caller, way: &RuleTarget| self.rule(caller, std::slice::from_ref(way)).is_some();
        let ways = self.ways(target);
        let missing = ways.iter().find(|way| !callers.iter().all(|caller| may(caller, way)))?;
        let from = &test.from;
        let label = if callers.iter().any(|caller| may(caller, missing)) {
            format!("only some backends of `{from}` may, by where they run")
        } else {
            format!("no rule allows `{missing}`")
        };
        let message = format!("the test fails: `{from}` may not call `{target}`");
        let one = Diagnostic::error(codes::NOT_ALLOWED, span, message).label(label);
        Some(
            one.help(format!(
                "allow it with [[allow]], from = [\"{from}\"] and to = [\"{target}\"], or correct the test"
            )),
        )
    }

    /// Judges one word of `deny`.
    fn allowed(&self, test: &Test, callers: &[Caller], target: &RuleTarget, span: Span) -> Option<Diagnostic> {
        let mut ways = self.ways(target);
        ways.extend(self.side_doors(target));
        let by_anybody = |allow: &'s Allow| Some((allow, allow.rule.from.first()?, permits(allow, &ways)?));
        let (allow, from, to) = if test.from == Source::Any {
            self.rules.iter().find_map(by_anybody)
        } else {
            let inside = self.members(&test.from);
            callers.iter().chain(&inside).find_map(|caller| self.rule(caller, &ways))
        }?;
        let message = format!("the test fails: `{}` may call `{target}`", test.from);
        let one = Diagnostic::error(codes::ALLOWED, span, message).label("denied by this test");
        let one = one.also(allow.span, format!("this rule allows `{from}` to call `{to}`"));
        let mut why = because(&test.from, from, target, to);
        why.push("correct the rule or the test".into());
        Some(one.help(why.join("; ")))
    }

    /// Returns the callers that a word certainly means.
    fn callers(&self, from: &Source) -> Vec<Caller> {
        let plain = || vec![Caller::from([Source::Any, from.clone()])];
        match from {
            Source::Any | Source::Site(_) | Source::Account(..) => plain(),
            Source::Host(node) => vec![self.caller_at((node, None))],
            // Not even `any` means them.
            Source::Masqueraded(_) => vec![Caller::from([from.clone()])],
            Source::Service(key) => {
                let backends = self.services.get(key).map(|s| s.backends.as_slice());
                match backends {
                    None | Some([]) => plain(),
                    Some(list) => list.iter().map(|b| self.caller_at(place(&b.at))).collect(),
                }
            }
        }
    }

    /// Returns the callers inside a site, as far as the file tells where they are.
    fn members(&self, from: &Source) -> Vec<Caller> {
        let places = self.places.keys().filter(|(node, _)| match from {
            Source::Site(site) => self.sites.get(node) == Some(&site),
            Source::Service(_) | Source::Host(_) | Source::Masqueraded(_) | Source::Account(..) | Source::Any => false,
        });
        places.map(|place| self.caller_at(*place)).collect()
    }

    fn caller_at(&self, place: (&NodeName, Option<std::net::Ipv4Addr>)) -> Caller {
        let mut words = Caller::from([Source::Any]);
        if place.1.is_none() {
            words.insert(Source::Host(place.0.clone()));
        }
        let site = self.sites.get(place.0);
        words.extend(site.map(|site| Source::Site((*site).clone())));
        let services = self.places.get(&place).into_iter().flatten();
        words.extend(services.map(|key| Source::Service((*key).clone())));
        words
    }

    /// Takes a target apart: all ports of a service, each with every way to permit it.
    fn ways(&self, target: &RuleTarget) -> Vec<RuleTarget> {
        match target {
            RuleTarget::Service(key) => {
                let ports = self.services.get(key).map_or(&[][..], |s| &s.ports);
                let port = |p: &crate::model::netmap::ServicePort| RuleTarget::Port(key.clone(), p.port);
                ports.iter().map(port).collect()
            }
            RuleTarget::Port(..) | RuleTarget::Host(_) | RuleTarget::Site(_) | RuleTarget::Any => {
                vec![target.clone()]
            }
        }
    }

    /// Returns the nodes and sites whose plain addresses lead to a service too.
    fn side_doors(&self, target: &RuleTarget) -> Vec<RuleTarget> {
        let (RuleTarget::Service(key) | RuleTarget::Port(key, _)) = target else { return Vec::new() };
        let backends = self.services.get(key).map_or(&[][..], |s| &s.backends);
        let doors = backends.iter().flat_map(|backend| {
            let node = backend.at.node();
            let host = match backend.at {
                BackendAt::Host(_) => Some(RuleTarget::Host(node.clone())),
                BackendAt::Pod { .. } => None,
            };
            let site = self.sites.get(node);
            host.into_iter().chain(site.map(|s| RuleTarget::Site((*s).clone())))
        });
        doors.collect()
    }

    /// Finds the first rule that permits a caller any of these, and its words that do.
    fn rule(&self, caller: &Caller, ways: &[RuleTarget]) -> Option<(&'s Allow, &'s Source, &'s RuleTarget)> {
        self.rules.iter().find_map(|allow| {
            let from = allow.rule.from.iter().find(|from| caller.contains(from))?;
            Some((allow, from, permits(allow, ways)?))
        })
    }
}

fn place(at: &BackendAt) -> (&NodeName, Option<std::net::Ipv4Addr>) {
    match at {
        BackendAt::Host(node) => (node, None),
        BackendAt::Pod { addr, node } => (node, Some(*addr)),
    }
}

/// Finds the word of a rule that permits any of these.
fn permits<'a>(allow: &'a Allow, ways: &[RuleTarget]) -> Option<&'a RuleTarget> {
    allow.rule.to.iter().find(|to| {
        ways.iter().any(|way| match (to, way) {
            (RuleTarget::Any, _) => true,
            (RuleTarget::Service(all), RuleTarget::Port(key, _)) => all == key,
            (to, way) => *to == way,
        })
    })
}

/// Says how a rule's words mean a test's, where they are not the same.
fn because(caller: &Source, from: &Source, target: &RuleTarget, to: &RuleTarget) -> Vec<String> {
    let of_caller = match from {
        _ if from == caller || *caller == Source::Any => None,
        Source::Host(node) => Some(format!("a backend of `{caller}` runs on {node}")),
        Source::Site(site) => Some(format!("`{caller}` runs in {site}")),
        Source::Service(key) => Some(format!("`{caller}` and `{key}` run at the same place")),
        Source::Masqueraded(_) | Source::Account(..) | Source::Any => None,
    };
    let of_target = match to {
        _ if to == target => None,
        RuleTarget::Host(node) => Some(format!("a backend of `{target}` runs on {node}")),
        RuleTarget::Site(site) => Some(format!("a backend of `{target}` runs in {site}")),
        RuleTarget::Service(_) | RuleTarget::Port(..) | RuleTarget::Any => None,
    };
    of_caller.into_iter().chain(of_target).collect()
}
