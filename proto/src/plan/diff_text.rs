//! What changes from one world to another, in sentences, and for whom: what an operator reads before a file is
//! taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::placement::{DEFAULT_WEIGHT, preference, warnings};
use crate::base::id::ServiceKey;
use crate::model::netmap::ServicePort;
use crate::model::rules::{RuleTarget, Source};
use crate::services::{BackendAt, BackendSpec, Prefer, ServiceSpec, Site};
use crate::world::World;

/// Most callers that a sentence names.
const MAX_CALLERS: usize = 5;

/// Says in sentences what changes from one world to another, and for whom; nothing if they are alike.
pub fn differences(old: &World, new: &World) -> Vec<String> {
    let mut said = Vec::new();
    mesh(old, new, &mut said);
    sites(old, new, &mut said);
    nodes(old, new, &mut said);
    services(old, new, &mut said);
    permissions(old, new, &mut said);
    let known: BTreeSet<_> = warnings(old).into_iter().collect();
    let fresh = warnings(new).into_iter().filter(|w| !known.contains(w));
    said.extend(fresh.map(|warning| format!("warning: {warning}")));
    said
}

fn mesh(old: &World, new: &World, said: &mut Vec<String>) {
    let (a, b) = (&old.mesh, &new.mesh);
    if a.name != b.name {
        said.push(format!("the mesh is called {} instead of {}", b.name, a.name));
    }
    if a.range != b.range {
        said.push(format!(
            "the mesh range becomes {} instead of {}; every service gets a new address",
            b.range, a.range
        ));
    }
    if a.domains != b.domains {
        let (a, b) = (list(&a.domains), list(&b.domains));
        said.push(format!("every node answers for {b} instead of {a}"));
    }
}

fn sites(old: &World, new: &World, said: &mut Vec<String>) {
    let by_name = |world: &World| -> BTreeMap<_, Site> {
        let sites = world.services.sites.iter();
        sites.map(|site| (site.name.clone(), site.clone())).collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    for (name, site) in &new {
        match old.get(name) {
            None => said.push(format!("new site {name}: tokens may be made for it")),
            Some(before) => {
                if before.pods != site.pods {
                    let (a, b) = (list(&before.pods), list(&site.pods));
                    said.push(format!("site {name}: its nodes may claim blocks of {b} instead of {a}"));
                }
                if before.locality != site.locality {
                    let (a, b) = (before.locality.join("/"), site.locality.join("/"));
                    said.push(format!("site {name}: locality \"{a}\" → \"{b}\"; near backends are judged anew"));
                }
            }
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(name)) {
        said.push(format!("site {name} is removed"));
    }
}

fn nodes(old: &World, new: &World, said: &mut Vec<String>) {
    for (name, node) in &*new.nodes {
        let Some(before) = old.nodes.get(name).filter(|before| before.id == node.id) else {
            let (site, address) = (&node.site, node.address);
            said.push(format!("new node {name} of site {site} gets {address}"));
            continue;
        };
        if before.site != node.site {
            said.push(format!("node {name}: site {} → {}", before.site, node.site));
        }
        for block in node.blocks.iter().filter(|b| !before.blocks.contains(b)) {
            let (real, flat) = (block.real, block.flat);
            said.push(format!("node {name}: its pods {real} are {flat} in the mesh"));
        }
        for block in before.blocks.iter().filter(|b| !node.blocks.contains(b)) {
            let (real, flat) = (block.real, block.flat);
            said.push(format!("node {name}: its pods {real} are no longer {flat} in the mesh"));
        }
        if node.identity.is_none() && before.facts != node.facts {
            said.push(format!("static node {name}: key or endpoint changes for all nodes"));
        }
    }
    for (name, node) in &*old.nodes {
        if new.nodes.get(name).is_none_or(|after| after.id != node.id) {
            let address = node.address;
            said.push(format!("node {name} is removed; {address} rests for 10 minutes"));
        }
    }
}

fn services(old: &World, new: &World, said: &mut Vec<String>) {
    let by_key = |world: &'_ World| -> BTreeMap<_, ServiceSpec> {
        let services = world.services.services.iter();
        services.map(|s| (s.key.clone(), s.clone())).collect()
    };
    let (before, after) = (by_key(old), by_key(new));
    for (key, spec) in &after {
        let address = new.vips.get(key).map(|vip| vip.address);
        match before.get(key) {
            None => {
                let gets = address.map_or_else(|| "no address".to_owned(), |a| a.to_string());
                let callers = concerned(new, key);
                said.push(format!("new service {key} gets {gets}; {callers}"));
            }
            Some(was) => service(was, spec, &concerned(new, key), said),
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        let callers = concerned(old, key);
        let rests = old.vips.get(key).map(|vip| vip.address);
        let rests = rests.map_or_else(String::new, |a| format!("; {a} rests for 10 minutes"));
        said.push(format!("service {key} is removed{rests}; {callers}"));
    }
}

fn service(old: &ServiceSpec, new: &ServiceSpec, callers: &str, said: &mut Vec<String>) {
    let key = &new.key;
    let mut say = |what: String| said.push(format!("{key}: {what}; {callers}"));
    if old.ports != new.ports {
        let (a, b) = (ports(&old.ports), ports(&new.ports));
        say(format!("port {a} → {b}"));
    }
    let by_label = |spec: &ServiceSpec| -> BTreeMap<String, BackendSpec> {
        let backends = spec.backends.iter();
        backends.map(|b| (label(b), b.clone())).collect()
    };
    let (before, after) = (by_label(old), by_label(new));
    for (label, backend) in &after {
        let Some(was) = before.get(label) else {
            let (at, weight) = (place(&backend.at), weight(backend));
            say(format!("new backend {label} ({at}, weight {weight})"));
            continue;
        };
        if weight(was) != weight(backend) {
            let (a, b) = (weight(was), weight(backend));
            say(format!("weight of backend {label} {a} → {b}"));
        }
        if was.at != backend.at {
            let (a, b) = (place(&was.at), place(&backend.at));
            say(format!("backend {label} moves from {a} to {b}"));
        }
        if was.port != backend.port {
            let port = |port: Option<u16>| port.map_or_else(|| "the service's".to_owned(), |p| p.to_string());
            let (a, b) = (port(was.port), port(backend.port));
            say(format!("port of backend {label} {a} → {b}"));
        }
    }
    for label in before.keys().filter(|label| !after.contains_key(*label)) {
        say(format!("backend {label} is removed"));
    }
    let (a, b) = (preference(old), preference(new));
    if a != b {
        say(format!("prefers {} instead of {}", preferred(&b), preferred(&a)));
    }
    if old.route.sticky != new.route.sticky {
        say(match new.route.sticky {
            true => "the same client keeps the same backend".into(),
            false => "the same client may get any backend".into(),
        });
    }
}

/// Compares permissions port by port. Ports that only one of the worlds has are told with their service.
fn permissions(old: &World, new: &World, said: &mut Vec<String>) {
    let (before, after) = (Permissions::of(old), Permissions::of(new));
    for ((from, to), place) in &before.0 {
        if !after.covers(from, to) && is_known(new, to) {
            said.push(format!("{from} may no longer call {to} ({place} removed)"));
        }
    }
    for ((from, to), place) in &after.0 {
        if !before.covers(from, to) && is_known(old, to) {
            said.push(format!("{from} may now call {to} ({place})"));
        }
    }
}

/// Who may call what, and the file and line of the first rule that says so.
struct Permissions(BTreeMap<(Source, RuleTarget), String>);

impl Permissions {
    fn of(world: &World) -> Self {
        let specs = world.services.services.iter();
        let specs: BTreeMap<_, _> = specs.map(|spec| (&spec.key, spec)).collect();
        let mut pairs = BTreeMap::new();
        for rule in world.services.allows.iter().map(|allow| &allow.rule) {
            for to in rule.to.iter().flat_map(|to| single_ports(&specs, to)) {
                for from in rule.from.iter().filter(|from| is_somebody(from)) {
                    let place = || format!("{}:{}", rule.file, rule.line);
                    pairs.entry((from.clone(), to.clone())).or_insert_with(place);
                }
            }
        }
        Self(pairs)
    }

    fn covers(&self, from: &Source, to: &RuleTarget) -> bool {
        let has = |from: &Source, to: &RuleTarget| self.0.contains_key(&(from.clone(), to.clone()));
        // `any` does not mean them.
        if matches!(from, Source::Masqueraded(_)) {
            return has(from, to) || has(from, &RuleTarget::Any);
        }
        has(from, to) || has(from, &RuleTarget::Any) || has(&Source::Any, to) || has(&Source::Any, &RuleTarget::Any)
    }
}

/// Says whether a rule's word means anybody: nothing tells yet which account a pod has.
fn is_somebody(from: &Source) -> bool {
    match from {
        Source::Account(..) => false,
        Source::Service(_) | Source::Host(_) | Source::Masqueraded(_) | Source::Site(_) | Source::Any => true,
    }
}

/// Splits a target into single ports; a service that does not exist has none.
fn single_ports(specs: &BTreeMap<&ServiceKey, &ServiceSpec>, to: &RuleTarget) -> Vec<RuleTarget> {
    match to {
        RuleTarget::Service(key) => match specs.get(key) {
            None => Vec::new(),
            Some(spec) => {
                let ports: BTreeSet<_> = spec.ports.iter().map(|port| port.port).collect();
                let ports = ports.into_iter();
                ports.map(|port| RuleTarget::Port(key.clone(), port)).collect()
            }
        },
        RuleTarget::Port(..) | RuleTarget::Host(_) | RuleTarget::Site(_) | RuleTarget::Any => vec![to.clone()],
    }
}

fn is_known(world: &World, to: &RuleTarget) -> bool {
    let mut specs = world.services.services.iter();
    match to {
        RuleTarget::Port(key, port) => specs.any(|spec| spec.key == *key && spec.ports.iter().any(|p| p.port == *port)),
        RuleTarget::Service(key) => specs.any(|spec| spec.key == *key),
        RuleTarget::Host(_) | RuleTarget::Site(_) | RuleTarget::Any => true,
    }
}

/// Says whom a change of a service concerns: those who may call it.
fn concerned(world: &World, service: &ServiceKey) -> String {
    let rules = world.services.allows.iter().map(|allow| &allow.rule);
    let names = |to: &RuleTarget| match to {
        RuleTarget::Service(key) | RuleTarget::Port(key, _) => key == service,
        RuleTarget::Any => true,
        RuleTarget::Host(_) | RuleTarget::Site(_) => false,
    };
    let rules = rules.filter(|rule| rule.to.iter().any(names));
    let callers: BTreeSet<_> = rules.flat_map(|rule| &rule.from).filter(|from| is_somebody(from)).collect();
    if callers.contains(&Source::Any) {
        return "concerns all callers".into();
    }
    let mut names: Vec<_> = callers.iter().take(MAX_CALLERS).map(|c| c.to_string()).collect();
    if callers.len() > MAX_CALLERS {
        names.push(format!("{} more", callers.len() - MAX_CALLERS));
    }
    match &*names {
        [] => "concerns nobody: no [[allow]] names it".into(),
        [one] => format!("concerns {one}"),
        [first @ .., last] => format!("concerns {} and {last}", first.join(", ")),
    }
}

fn label(backend: &BackendSpec) -> String {
    let name = backend.name.as_ref().map(ToString::to_string);
    name.unwrap_or_else(|| place(&backend.at))
}

fn place(at: &BackendAt) -> String {
    match at {
        BackendAt::Host(node) => format!("host {node}"),
        BackendAt::Pod { addr, node } => format!("{addr} on {node}"),
    }
}

fn weight(backend: &BackendSpec) -> u32 {
    backend.weight.unwrap_or(DEFAULT_WEIGHT)
}

fn preferred(prefer: &Prefer) -> String {
    match prefer {
        Prefer::Locality => "near backends".into(),
        Prefer::Spread => "all backends alike".into(),
        Prefer::Sites(sites) => format!("the sites {}", list(sites)),
    }
}

fn ports(ports: &[ServicePort]) -> String {
    let port = |port: &ServicePort| {
        let name = port.name.as_ref().map_or_else(String::new, |name| format!("{name} "));
        let transport = port.transport;
        match port.port == port.target {
            true => format!("{name}{}/{transport}", port.port),
            false => format!("{name}{}->{}/{transport}", port.port, port.target),
        }
    };
    ports.iter().map(port).collect::<Vec<_>>().join(", ")
}

fn list<T: Display>(items: &[T]) -> String {
    match items {
        [] => "nothing".into(),
        items => items.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    }
}
