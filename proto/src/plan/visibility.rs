//! What a node may see: what it may call, who may call it, and the rules that say so.
//!
//! ```text
//!   a rule's `from` names the node ─▶ it sees all that `to` names: services with their carriers, hosts, sites
//!   a rule's `to`   names the node ─▶ it sees all that `from` names: callers must be known to be let in
//! ```
//! So whoever sees somebody is seen by them. A node is named by its own name, its site, the services that it
//! backs, and by `any`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::index::{Chart, Served, number_of};
use crate::base::id::{NodeName, SiteName};
use crate::model::rules::{Rule, Source, Target};
use crate::world::{NodeRecord, World};

/// All that one node may see, as numbers in its chart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sight {
    /// Other nodes, in order.
    pub(super) peers: Vec<u32>,
    /// Services.
    pub(super) services: BTreeMap<u32, Level>,
    /// Rules, in the order of the file.
    pub(super) rules: BTreeMap<u32, Hit>,
}

/// How much of a service a node is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Level {
    /// The backends that it carries itself.
    Own,
    /// All backends: it may call them, or they may call it.
    All,
}

/// Which words of a rule name a node, by their places.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub(super) struct Hit {
    from: BTreeSet<u32>,
    to: BTreeSet<u32>,
}

/// A rule and the place of a word in it.
type Word = (u32, u32);

/// The rules of a world, by whom they name.
#[derive(Debug, Default)]
pub(super) struct Rules {
    list: Vec<Rule>,
    from: Index,
    to: Index,
}

/// Where rules name whom, on one side.
#[derive(Debug, Default)]
struct Index {
    any: Vec<Word>,
    sites: HashMap<SiteName, Vec<Word>>,
    hosts: HashMap<u32, Vec<Word>>,
    services: HashMap<u32, Vec<Word>>,
}

impl Index {
    /// Returns the words that name a node.
    fn naming<'a>(&'a self, chart: &'a Chart, node: u32) -> impl Iterator<Item = Word> + 'a {
        let site = self.sites.get(&chart.nodes[node as usize].1.site);
        let host = self.hosts.get(&node);
        let services = chart.backs[node as usize].iter().filter_map(|service| self.services.get(service));
        let named = site.into_iter().chain(host).chain(services);
        self.any.iter().chain(named.flatten()).copied()
    }
}

/// A set of numbers below a bound.
struct Set(Vec<u64>);

impl Set {
    fn below(bound: usize) -> Self {
        Self(vec![0; bound.div_ceil(64)])
    }

    fn add(&mut self, number: u32) {
        self.0[number as usize / 64] |= 1 << (number % 64);
    }

    fn remove(&mut self, number: u32) {
        self.0[number as usize / 64] &= !(1 << (number % 64));
    }

    fn fill(&mut self, bound: usize) {
        for number in 0..bound {
            self.add(number as u32);
        }
    }

    fn numbers(&self) -> Vec<u32> {
        let mut numbers = Vec::new();
        for (place, &word) in (0..).zip(&self.0) {
            let mut rest = word;
            while rest != 0 {
                numbers.push(place * 64 + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
        numbers
    }
}

impl Rules {
    /// Indexes the rules of a world.
    pub(super) fn index(world: &World, nodes: &[(NodeName, Arc<NodeRecord>)], services: &[Served]) -> Self {
        let list: Vec<_> = world.services.allows.iter().map(|allow| allow.rule.clone()).collect();
        let node = |name: &NodeName| nodes.binary_search_by(|(other, _)| other.cmp(name)).ok().map(|n| n as u32);
        let (mut from, mut to) = (Index::default(), Index::default());
        for (number, rule) in (0..).zip(&list) {
            for (place, source) in (0..).zip(&rule.from) {
                let word = (number, place);
                match source {
                    Source::Any => from.any.push(word),
                    Source::Site(site) => from.sites.entry(site.clone()).or_default().push(word),
                    Source::Host(name) => from.add_host(node(name), word),
                    Source::Service(key) => from.add_service(number_of(services, key), word),
                    Source::Account(..) => {}
                }
            }
            for (place, target) in (0..).zip(&rule.to) {
                let word = (number, place);
                match target {
                    Target::Any => to.any.push(word),
                    Target::Site(site) => to.sites.entry(site.clone()).or_default().push(word),
                    Target::Host(name) => to.add_host(node(name), word),
                    Target::Service(key) | Target::Port(key, _) => to.add_service(number_of(services, key), word),
                }
            }
        }
        Self { list, from, to }
    }

    /// Returns the rules that name a node, without the pairs that do not.
    pub(super) fn trimmed(&self, hits: &BTreeMap<u32, Hit>) -> Vec<Rule> {
        let mut trimmed = Vec::new();
        for (&number, hit) in hits {
            let rule = &self.list[number as usize];
            let (named, others): (Vec<_>, Vec<_>) =
                (0..).zip(&rule.from).partition(|(place, _)| hit.from.contains(place));
            let words = |list: Vec<(u32, &Source)>| list.into_iter().map(|(_, word)| word.clone()).collect::<Vec<_>>();
            if !named.is_empty() {
                trimmed.push(Rule { from: words(named), ..rule.clone() });
            }
            if !others.is_empty() && !hit.to.is_empty() {
                let to = (0..).zip(&rule.to).filter(|(place, _)| hit.to.contains(place));
                let to = to.map(|(_, word)| word.clone()).collect();
                trimmed.push(Rule { from: words(others), to, file: rule.file.clone(), line: rule.line });
            }
        }
        trimmed
    }

    fn targets(&self, rule: u32) -> &[Target] {
        &self.list[rule as usize].to
    }

    fn sources(&self, rule: u32) -> &[Source] {
        &self.list[rule as usize].from
    }
}

impl Index {
    fn add_host(&mut self, node: Option<u32>, word: Word) {
        if let Some(node) = node {
            self.hosts.entry(node).or_default().push(word);
        }
    }

    fn add_service(&mut self, service: Option<u32>, word: Word) {
        if let Some(service) = service {
            self.services.entry(service).or_default().push(word);
        }
    }
}

impl Chart {
    /// Finds all that a node may see.
    pub(super) fn sight(&self, own: u32) -> Sight {
        let mut peers = Set::below(self.nodes.len());
        let mut services: BTreeMap<u32, Level> =
            self.backs[own as usize].iter().map(|&service| (service, Level::Own)).collect();
        let mut rules: BTreeMap<u32, Hit> = BTreeMap::new();
        for (rule, place) in self.rules.from.naming(self, own) {
            rules.entry(rule).or_default().from.insert(place);
        }
        for (rule, place) in self.rules.to.naming(self, own) {
            rules.entry(rule).or_default().to.insert(place);
        }
        for (&rule, hit) in &rules {
            if !hit.from.is_empty() {
                for target in self.rules.targets(rule) {
                    self.add_target(target, &mut peers, &mut services);
                }
            }
            if !hit.to.is_empty() {
                for source in self.rules.sources(rule) {
                    self.add_source(source, &mut peers, &mut services);
                }
            }
        }
        peers.remove(own);
        Sight { peers: peers.numbers(), services, rules }
    }

    fn add_target(&self, target: &Target, peers: &mut Set, services: &mut BTreeMap<u32, Level>) {
        match target {
            Target::Any => {
                peers.fill(self.nodes.len());
                services.extend((0..).zip(&self.services).map(|(number, _)| (number, Level::All)));
            }
            Target::Site(site) => self.add_site(site, peers),
            Target::Host(name) => self.node(name).into_iter().for_each(|node| peers.add(node)),
            Target::Service(key) | Target::Port(key, _) => {
                self.add_service(self.service_number(key), peers, services);
            }
        }
    }

    fn add_source(&self, source: &Source, peers: &mut Set, services: &mut BTreeMap<u32, Level>) {
        match source {
            Source::Any => peers.fill(self.nodes.len()),
            Source::Site(site) => self.add_site(site, peers),
            Source::Host(name) => self.node(name).into_iter().for_each(|node| peers.add(node)),
            Source::Service(key) => self.add_service(self.service_number(key), peers, services),
            Source::Account(..) => {}
        }
    }

    fn add_site(&self, site: &SiteName, peers: &mut Set) {
        for &node in self.sites.get(site).map_or(&[][..], Vec::as_slice) {
            peers.add(node);
        }
    }

    fn add_service(&self, service: Option<u32>, peers: &mut Set, services: &mut BTreeMap<u32, Level>) {
        let Some(service) = service else { return };
        if services.insert(service, Level::All) != Some(Level::All) {
            self.services[service as usize].carriers.iter().for_each(|&node| peers.add(node));
        }
    }

    /// Finds the nodes that are told of a service: its carriers, its callers, and whom its carriers may call.
    pub(super) fn viewers(&self, service: u32) -> Vec<u32> {
        let mut viewers = Set::below(self.nodes.len());
        self.services[service as usize].carriers.iter().for_each(|&node| viewers.add(node));
        let mut none = BTreeMap::new();
        let to = self.rules.to.services.get(&service).into_iter().flatten();
        for &(rule, _) in self.rules.to.any.iter().chain(to) {
            for source in self.rules.sources(rule) {
                self.add_source(source, &mut viewers, &mut none);
            }
        }
        for &(rule, _) in self.rules.from.services.get(&service).into_iter().flatten() {
            for target in self.rules.targets(rule) {
                self.add_target(target, &mut viewers, &mut none);
            }
        }
        viewers.numbers()
    }
}
