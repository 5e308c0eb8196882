//! From one chart to a later one: whom it concerns, and what it changes for each of them. Costs what is altered,
//! once, and for each node concerned what it sees of that.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::index::PlanIndex;
use super::map::netmap_of;
use super::rule_index::Hit;
use super::visibility::{Level, Sight, sight, viewers};
use crate::base::id::{NodeName, ServiceKey, SiteName};
use crate::model::netmap::Delta;

/// What leads from one chart to another.
#[derive(Debug)]
pub struct Transition {
    old: Arc<PlanIndex>,
    new: Arc<PlanIndex>,
    /// Nodes that are new, gone or altered.
    nodes: BTreeSet<NodeName>,
    /// Services that are new, gone or altered.
    services: BTreeSet<ServiceKey>,
    /// Something changed that every map may contain.
    general: bool,
    /// What a service's backends are worth to a site may have changed.
    places: bool,
}

/// What a change is to a node; nodes with equal ones of the same transition get equal deltas.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeltaKey {
    site: SiteName,
    peers: [Vec<u32>; 2],
    services: [Vec<(u32, Level)>; 2],
    rules: Option<[BTreeMap<u32, Hit>; 2]>,
}

impl Transition {
    /// Compares two charts.
    pub fn between(old: Arc<PlanIndex>, new: Arc<PlanIndex>) -> Self {
        let (a, b) = (&*old.world, &*new.world);
        let mut nodes = BTreeSet::new();
        if !Arc::ptr_eq(&a.nodes, &b.nodes) {
            merge(&old.nodes, &new.nodes, |pair| match pair {
                (Some((name, _)), None) | (None, Some((name, _))) => drop(nodes.insert(name.clone())),
                (Some((name, before)), Some((_, after))) if before != after => drop(nodes.insert(name.clone())),
                _ => {}
            });
        }
        let named = |chart: &PlanIndex| -> Vec<(ServiceKey, u32)> {
            chart.services.iter().map(|service| service.key.clone()).zip(0..).collect()
        };
        let mut services = BTreeSet::new();
        merge(&named(&old), &named(&new), |pair| match pair {
            (Some((key, _)), None) | (None, Some((key, _))) => drop(services.insert(key.clone())),
            (Some((key, i)), Some((_, j))) => {
                if old.services[*i as usize].content != new.services[*j as usize].content {
                    services.insert(key.clone());
                }
            }
            (None, None) => {}
        });
        let same_file = Arc::ptr_eq(&a.services, &b.services);
        let places = !same_file && a.services.sites != b.services.sites;
        let rules =
            |chart: &PlanIndex| chart.world.services.allows.iter().map(|allow| allow.rule.clone()).collect::<Vec<_>>();
        let general = a.mesh != b.mesh || a.vips != b.vips || places || (!same_file && rules(&old) != rules(&new));
        Self { old, new, nodes, services, general, places }
    }

    /// Returns the chart that it leads to.
    pub fn to(&self) -> &Arc<PlanIndex> {
        &self.new
    }

    /// Finds the nodes whose maps may differ, gone ones included; `None` for all.
    pub fn concerned(&self) -> Option<BTreeSet<NodeName>> {
        if self.general {
            return None;
        }
        let mut concerned = self.nodes.clone();
        for chart in [&self.old, &self.new] {
            let name = |number: u32| chart.nodes[number as usize].0.clone();
            for node in self.nodes.iter().filter_map(|node| chart.node(node)) {
                concerned.extend(sight(chart, node).peers.into_iter().map(name));
            }
            for service in self.services.iter().filter_map(|key| chart.service_number(key)) {
                concerned.extend(viewers(chart, service).into_iter().map(name));
            }
            if !Arc::ptr_eq(&self.old.world.services, &self.new.world.services) {
                let offering = chart.nodes.iter().filter(|(_, record)| !record.facts.serve.is_empty());
                concerned.extend(offering.map(|(name, _)| name.clone()));
            }
        }
        Some(concerned)
    }

    /// Returns what leads from a node's old map to its new one; `None` if it is not in both charts.
    pub fn delta(&self, node: &NodeName) -> Option<Delta> {
        let (before, after) = (self.old.node(node)?, self.new.node(node)?);
        let (old, new) = (sight(&self.old, before), sight(&self.new, after));
        Some(self.delta_of((before, &old), (after, &new)))
    }

    /// Returns what the change is to a node, if others may share it; `None` if something of it is the node's own.
    pub fn outline(&self, node: &NodeName) -> Option<DeltaKey> {
        let relocked = self.old.world.mesh.lock != self.new.world.mesh.lock;
        if self.places || relocked || self.nodes.contains(node) {
            return None;
        }
        let (before, after) = (self.old.node(node)?, self.new.node(node)?);
        let (old, new) = (sight(&self.old, before), sight(&self.new, after));
        let record = &self.new.nodes[after as usize].1;
        let told = |chart: &PlanIndex, sight: &Sight| {
            sight.services.keys().any(|&service| chart.services[service as usize].has_warnings())
        };
        if !record.facts.serve.is_empty() || told(&self.old, &old) || told(&self.new, &new) {
            return None;
        }
        let services = [self.services_of(&self.old, &old, &new), self.services_of(&self.new, &new, &old)];
        if services.iter().flatten().any(|(_, level)| *level == Level::Own) {
            return None;
        }
        Some(DeltaKey {
            site: record.site.clone(),
            peers: self.peers_of(&old, &new),
            services,
            rules: (self.general || old.rules != new.rules).then_some([old.rules, new.rules]),
        })
    }

    fn delta_of(&self, (before, old): (u32, &Sight), (after, new): (u32, &Sight)) -> Delta {
        let reduced = |chart: &PlanIndex, own: u32, sight: &Sight, other: &Sight, peers: &[u32]| {
            let services: BTreeMap<_, _> = self.services_of(chart, sight, other).into_iter().collect();
            let wants_peer = |peer| peers.binary_search(&peer).is_ok();
            netmap_of(chart, own, sight, wants_peer, |service| services.contains_key(&service))
        };
        let [gone, come] = self.peers_of(old, new);
        let a = reduced(&self.old, before, old, new, &gone);
        let b = reduced(&self.new, after, new, old, &come);
        Delta::between(&a, &b)
    }

    /// Returns the peers of two sights that may differ, as numbers in either chart. Both are in order of names, and
    /// who sees the whole mesh is asked at each change: hence side by side, without a look-up.
    fn peers_of(&self, old: &Sight, new: &Sight) -> [Vec<u32>; 2] {
        let all = self.general && self.old.world.mesh != self.new.world.mesh;
        let (mut i, mut j) = (old.peers.iter().copied().peekable(), new.peers.iter().copied().peekable());
        let mut differ = [Vec::new(), Vec::new()];
        loop {
            let order = match (i.peek(), j.peek()) {
                (None, None) => return differ,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(&a), Some(&b)) => self.old.nodes[a as usize].0.cmp(&self.new.nodes[b as usize].0),
            };
            let a = i.next_if(|_| order != Ordering::Greater);
            let b = j.next_if(|_| order != Ordering::Less);
            let kept = a.zip(b).is_some_and(|(a, b)| {
                let (a, b) = (&self.old.nodes[a as usize], &self.new.nodes[b as usize]);
                !all && (Arc::ptr_eq(&a.1, &b.1) || !self.nodes.contains(&a.0))
            });
            if !kept {
                differ[0].extend(a);
                differ[1].extend(b);
            }
        }
    }

    /// Returns the services of a sight that may differ in the other.
    fn services_of(&self, chart: &PlanIndex, sight: &Sight, other: &Sight) -> Vec<(u32, Level)> {
        let other_chart = if std::ptr::eq(chart, &raw const *self.old) { &self.new } else { &self.old };
        let differs = |&(&number, level): &(&u32, &Level)| {
            let key = &chart.services[number as usize].key;
            let there = other_chart.service_number(key).and_then(|there| other.services.get(&there));
            self.places || self.services.contains(key) || there != Some(level)
        };
        sight.services.iter().filter(differs).map(|(&number, &level)| (number, level)).collect()
    }
}

/// Walks two lists in order of their keys, side by side.
fn merge<K: Ord, V>(old: &[(K, V)], new: &[(K, V)], mut f: impl FnMut((Option<&(K, V)>, Option<&(K, V)>))) {
    let (mut i, mut j) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (i.peek(), j.peek()) {
            (Some(a), Some(b)) => a.0.cmp(&b.0),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        f(match order {
            Ordering::Less => (i.next(), None),
            Ordering::Greater => (None, j.next()),
            Ordering::Equal => (i.next(), j.next()),
        });
    }
}
