//! What a node may see: what it may call, who may call it, and the rules that say so.
//!
//! ```text
//!   a rule's `from` names the node ─▶ it sees all that `to` names: services with their carriers, hosts, sites
//!   a rule's `to`   names the node ─▶ it sees all that `from` names: callers must be known to be let in
//! ```
//! So whoever sees somebody is seen by them. A node is named by its own name, its site, the services that it
//! backs, and by `any`.

use std::collections::BTreeMap;

use super::index::PlanIndex;
use super::rule_index::Hit;
use crate::base::id::SiteName;
use crate::model::rules::{RuleTarget, Source};

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

/// Finds all that a node may see.
pub(super) fn sight(chart: &PlanIndex, own: u32) -> Sight {
    let mut peers = Set::below(chart.nodes.len());
    let (site, backs) = (&chart.nodes[own as usize].1.site, &chart.backs[own as usize]);
    let mut services: BTreeMap<u32, Level> = backs.iter().map(|&service| (service, Level::Own)).collect();
    let mut rules: BTreeMap<u32, Hit> = BTreeMap::new();
    for (rule, place) in chart.rules.from.naming(own, site, backs) {
        rules.entry(rule).or_default().from.insert(place);
    }
    for (rule, place) in chart.rules.to.naming(own, site, backs) {
        rules.entry(rule).or_default().to.insert(place);
    }
    for (&rule, hit) in &rules {
        if !hit.from.is_empty() {
            for target in chart.rules.targets(rule) {
                add_target(chart, target, &mut peers, &mut services);
            }
        }
        if !hit.to.is_empty() {
            for source in chart.rules.sources(rule) {
                add_source(chart, source, &mut peers, &mut services);
            }
        }
    }
    peers.remove(own);
    Sight { peers: peers.numbers(), services, rules }
}

fn add_target(chart: &PlanIndex, target: &RuleTarget, peers: &mut Set, services: &mut BTreeMap<u32, Level>) {
    match target {
        RuleTarget::Any => {
            peers.fill(chart.nodes.len());
            services.extend((0..).zip(&chart.services).map(|(number, _)| (number, Level::All)));
        }
        RuleTarget::Site(site) => add_site(chart, site, peers),
        RuleTarget::Host(name) => chart.node(name).into_iter().for_each(|node| peers.add(node)),
        RuleTarget::Service(key) | RuleTarget::Port(key, _) => {
            add_service(chart, chart.service_number(key), peers, services);
        }
    }
}

fn add_source(chart: &PlanIndex, source: &Source, peers: &mut Set, services: &mut BTreeMap<u32, Level>) {
    match source {
        Source::Any => peers.fill(chart.nodes.len()),
        Source::Site(site) => add_site(chart, site, peers),
        Source::Host(name) | Source::Masqueraded(name) => chart.node(name).into_iter().for_each(|node| peers.add(node)),
        Source::Service(key) => add_service(chart, chart.service_number(key), peers, services),
        Source::Account(..) => {}
    }
}

fn add_site(chart: &PlanIndex, site: &SiteName, peers: &mut Set) {
    for &node in chart.sites.get(site).map_or(&[][..], Vec::as_slice) {
        peers.add(node);
    }
}

fn add_service(chart: &PlanIndex, service: Option<u32>, peers: &mut Set, services: &mut BTreeMap<u32, Level>) {
    let Some(service) = service else { return };
    if services.insert(service, Level::All) != Some(Level::All) {
        chart.services[service as usize].carriers.iter().for_each(|&node| peers.add(node));
    }
}

/// Finds the nodes that are told of a service: its carriers, its callers, and whom its carriers may call.
pub(super) fn viewers(chart: &PlanIndex, service: u32) -> Vec<u32> {
    let mut viewers = Set::below(chart.nodes.len());
    chart.services[service as usize].carriers.iter().for_each(|&node| viewers.add(node));
    let mut none = BTreeMap::new();
    let to = chart.rules.to.services.get(&service).into_iter().flatten();
    for &(rule, _) in chart.rules.to.any.iter().chain(to) {
        for source in chart.rules.sources(rule) {
            add_source(chart, source, &mut viewers, &mut none);
        }
    }
    for &(rule, _) in chart.rules.from.services.get(&service).into_iter().flatten() {
        for target in chart.rules.targets(rule) {
            add_target(chart, target, &mut viewers, &mut none);
        }
    }
    viewers.numbers()
}
