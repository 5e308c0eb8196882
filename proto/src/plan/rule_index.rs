//! The rules of a world, by whom they name.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::base::id::{NodeName, ServiceKey, SiteName};
use crate::model::rules::{Rule, RuleTarget, Source};
use crate::world::World;

/// Which words of a rule name a node, by their places.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub(super) struct Hit {
    pub(super) from: BTreeSet<u32>,
    pub(super) to: BTreeSet<u32>,
}

/// A rule and the place of a word in it.
pub(super) type Word = (u32, u32);

/// The rules of a world, by whom they name.
#[derive(Debug, Default)]
pub(super) struct Rules {
    list: Vec<Rule>,
    pub(super) from: Words,
    pub(super) to: Words,
}

/// Where rules name whom, on one side.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) any: Vec<Word>,
    sites: HashMap<SiteName, Vec<Word>>,
    hosts: HashMap<u32, Vec<Word>>,
    pub(super) services: HashMap<u32, Vec<Word>>,
}

impl Rules {
    /// Indexes the rules of a world, given the numbers of its nodes and services.
    pub(super) fn index(
        world: &World,
        node: impl Fn(&NodeName) -> Option<u32>,
        service: impl Fn(&ServiceKey) -> Option<u32>,
    ) -> Self {
        let list: Vec<_> = world.services.allows.iter().map(|allow| allow.rule.clone()).collect();
        let (mut from, mut to) = (Words::default(), Words::default());
        for (number, rule) in (0..).zip(&list) {
            for (place, source) in (0..).zip(&rule.from) {
                let word = (number, place);
                match source {
                    Source::Any => from.any.push(word),
                    Source::Site(site) => from.sites.entry(site.clone()).or_default().push(word),
                    Source::Host(name) | Source::Masqueraded(name) => from.add_host(node(name), word),
                    Source::Service(key) => from.add_service(service(key), word),
                    Source::Account(..) => {}
                }
            }
            for (place, target) in (0..).zip(&rule.to) {
                let word = (number, place);
                match target {
                    RuleTarget::Any => to.any.push(word),
                    RuleTarget::Site(site) => to.sites.entry(site.clone()).or_default().push(word),
                    RuleTarget::Host(name) => to.add_host(node(name), word),
                    RuleTarget::Service(key) | RuleTarget::Port(key, _) => to.add_service(service(key), word),
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
        trimmed.into_iter().flat_map(apart).collect()
    }

    /// Returns what a rule names as called.
    pub(super) fn targets(&self, rule: u32) -> &[RuleTarget] {
        &self.list[rule as usize].to
    }

    /// Returns what a rule names as calling.
    pub(super) fn sources(&self, rule: u32) -> &[Source] {
        &self.list[rule as usize].from
    }
}

/// Puts words that older nodes do not know into a rule of their own: such a node leaves out the rule that has one.
fn apart(rule: Rule) -> impl Iterator<Item = Rule> {
    let (new, old): (Vec<_>, Vec<_>) =
        rule.from.iter().cloned().partition(|source| matches!(source, Source::Masqueraded(_)));
    let parts = [old, new].into_iter().filter(|from| !from.is_empty());
    parts.map(move |from| Rule { from, ..rule.clone() })
}

impl Words {
    /// Returns the words that name a node: by itself, by its site, by the services that it backs.
    pub(super) fn naming<'a>(
        &'a self,
        node: u32,
        site: &SiteName,
        backs: &'a [u32],
    ) -> impl Iterator<Item = Word> + 'a {
        let site = self.sites.get(site);
        let host = self.hosts.get(&node);
        let services = backs.iter().filter_map(|service| self.services.get(service));
        let named = site.into_iter().chain(host).chain(services);
        self.any.iter().chain(named.flatten()).copied()
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_older_nodes_do_not_know_takes_no_other_with_it() {
        let rule = |from: &[&str]| Rule {
            file: "services.toml".into(),
            line: 3,
            from: from.iter().filter_map(|word| word.parse().ok()).collect(),
            to: vec![RuleTarget::Any],
        };
        let parts: Vec<_> = apart(rule(&["web", "masqueraded:a", "host:b"])).collect();
        assert_eq!(parts, [rule(&["web", "host:b"]), rule(&["masqueraded:a"])]);
        assert_eq!(apart(rule(&["web"])).collect::<Vec<_>>(), [rule(&["web"])]);
    }
}
