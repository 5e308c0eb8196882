//! What the engine would do with a packet, step by step, in sentences: the operator's `meshd why`.
//!
//! It asks the same view the same questions in the same order, draws no ticket and changes nothing.

use std::net::Ipv4Addr;

use crate::base::addr::{Flat, Real, is_forbidden};
use crate::base::clock::Timestamp;
use crate::base::id::NodeName;
use crate::dataplane::missing_rule::{masqueraded, narrowest_source, narrowest_target, site, wider};
use crate::dataplane::policy_index::Question;
use crate::dataplane::verdict::{Drop, Refuse};
use crate::dataplane::view::{AddressOwner, View};
use crate::model::netmap::Backend;
use crate::model::rules::{RuleTarget, Source};
use crate::ops::status::{RuleAt, WhyBackend, WhyStep};
use crate::packet::protocol_name;
use crate::wire::About;

/// Most nodes that one sentence names.
const MAX_NAMED: usize = 5;

/// The verdict on what is allowed and goes to a peer that does not answer.
pub const NOT_ANSWERING: &str = "not_answering";

/// The way of a packet through the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The steps taken, the last one decides.
    pub steps: Vec<WhyStep>,
    /// `forward`, `deliver`, `not_answering`, or the label of why it is refused or dropped.
    pub verdict: String,
    /// Whether it gets through.
    pub allowed: bool,
    /// The rule that allows it.
    pub rule: Option<RuleAt>,
    /// The rule that is missing, as the operator would write it.
    pub missing: Option<String>,
    /// What that rule opens beside what was asked; none if nothing.
    pub wider: Option<String>,
    /// The backend that the next connection would go to.
    pub backend: Option<WhyBackend>,
    /// The peer that carries it; none if it stays on this node.
    pub peer: Option<NodeName>,
}

/// Explains what becomes of the first packet from `source`, an address on this node or in the mesh, to
/// `destination` at a port (0 for protocols without ports).
pub fn explain(view: &View, source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, port: u16) -> Explanation {
    let mut way = Tracer { view, steps: Vec::new(), out: Explanation::default() };
    let verdict = way.walk(source, destination, protocol, port);
    let (verdict, allowed) = match verdict {
        Ok(word) => (word.to_owned(), true),
        Err(word) => (word.to_owned(), false),
    };
    Explanation { steps: way.steps, verdict, allowed, ..way.out }
}

/// Explains what becomes of a packet to a node, or to an address behind it, that the map does not contain because
/// no rule concerns both.
pub fn explain_stranger(view: &View, source: Ipv4Addr, destination: Ipv4Addr, stranger: &About) -> Explanation {
    let mut way = Tracer { view, steps: Vec::new(), out: Explanation::default() };
    let About { node, site, address } = stranger;
    let verdict = way.source(source).and_then(|flat| {
        way.pass("route", format!("{destination} is at node {node} of site {site}, says the coordinator"));
        let is_node = destination == address.0;
        let to = if is_node { RuleTarget::Host(node.clone()) } else { RuleTarget::Site(site.clone()) };
        way.deny(flat, &to, None)
    });
    let verdict = verdict.unwrap_or_else(|word: &str| word.to_owned());
    Explanation { steps: way.steps, verdict, allowed: false, ..way.out }
}

impl Explanation {
    /// Adds whether the peer that would carry it answers: what is allowed does not get through to one that does not.
    pub fn and_answers(mut self, view: &View, now: Timestamp) -> Self {
        let peer = self.peer.as_ref().and_then(|name| Some((name, view.netmap().peers.get(name)?.id)));
        let silent = peer.and_then(|(name, id)| Some((name, view.silent_since(id)?)));
        if let Some((name, since)) = silent.filter(|_| self.allowed) {
            let seconds = now.since(since).as_secs();
            let others = match &self.backend {
                Some(_) => "; no other backend answers",
                None => "",
            };
            let outcome = format!(
                "{name} has not answered for {seconds} s, although packets go to it{others}; see whether meshd runs there, and whether its UDP port can be reached from here"
            );
            self.steps.push(WhyStep { name: "answer".into(), outcome, ok: false });
            self.verdict = NOT_ANSWERING.into();
            self.allowed = false;
        }
        self
    }
}

struct Tracer<'a> {
    view: &'a View,
    steps: Vec<WhyStep>,
    out: Explanation,
}

/// Where a packet goes: the address and port that carry the target, and the service and port as dialled.
struct Goal {
    carrier: Flat,
    port: u16,
    service: Option<(u32, u16)>,
}

impl Tracer<'_> {
    fn walk(
        &mut self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        port: u16,
    ) -> Result<&'static str, &'static str> {
        let view = self.view;
        let flat = self.source(source)?;
        if !view.range().contains(destination) || is_forbidden(destination) {
            let outcome = format!("{destination} is outside the mesh range {}; meshd never sees it", view.range());
            return self.stop("route", outcome, Drop::ForbiddenDestination.label());
        }
        let Goal { carrier, port: target, service } = self.target(flat, destination, protocol, port)?;
        self.route(carrier)?;
        let question = Question { source: flat, destination: carrier, protocol, port: target, service };
        self.policy(&question)?;
        let verdict = if self.out.peer.is_some() { "forward" } else { "deliver" };
        self.pass("translate", format!("{source} → {flat}, {destination}:{port} → {carrier}:{target}"));
        Ok(verdict)
    }

    /// Finds out who calls.
    fn source(&mut self, source: Ipv4Addr) -> Result<Flat, &'static str> {
        let Some(flat) = image(self.view, source) else {
            let outcome = format!("{source} is no address of this node or mesh");
            return self.stop("source", outcome, Drop::SpoofedSource.label());
        };
        self.pass("source", format!("{source} is {flat} in the mesh: {}", self.who(flat)));
        Ok(flat)
    }

    /// Finds the address and port that carry the target, and the service if a VIP was dialled.
    fn target(&mut self, source: Flat, destination: Ipv4Addr, protocol: u8, port: u16) -> Result<Goal, &'static str> {
        let view = self.view;
        if !view.is_vip(destination) {
            return Ok(Goal { carrier: Flat(destination), port, service: None });
        }
        let Some((index, service)) = view.service_by_vip(destination) else {
            if let Some(key) = view.name_of_vip(destination) {
                self.pass("service", format!("{destination} is {key}, of which this node knows the name alone"));
                let key = key.clone();
                let to = if port == 0 { RuleTarget::Service(key) } else { RuleTarget::Port(key, port) };
                return self.deny(source, &to, None);
            }
            let outcome = format!("{destination} is the VIP of no service");
            return self.stop("service", outcome, Refuse::UnknownService.label());
        };
        let Some(found) = view.port(index, protocol, port) else {
            let ports = view.netmap().services.get(&service.key).map_or(&[][..], |s| &s.ports);
            let ports: Vec<String> = ports.iter().map(|p| format!("{}/{}", p.port, p.transport)).collect();
            let outcome = format!(
                "{} has no port {port}/{}; services.toml gives it {}",
                service.key,
                protocol_name(protocol),
                ports.join(", ")
            );
            return self.stop("service", outcome, Refuse::ClosedPort.label());
        };
        self.pass("service", format!("{destination}:{port} is {}:{port}", service.key));
        let Some(backend) = service.balancer.peek() else {
            let outcome = format!("{} has no live backend", service.key);
            return self.stop("backend", outcome, Refuse::NoBackend.label());
        };
        let Backend { node, address, .. } = backend.clone();
        let target = backend.target(found);
        let count = service.balancer.backends().len();
        let silent: Vec<_> =
            service.balancer.silent().map(|(b, _)| b.node.as_str()).filter(|n| *n != node.as_str()).collect();
        let left_out = match silent.len() {
            0 => String::new(),
            1..=MAX_NAMED => format!("; not answering: {}", silent.join(", ")),
            more => format!("; not answering: {} and {} more", silent[..MAX_NAMED].join(", "), more - MAX_NAMED),
        };
        self.pass(
            "backend",
            format!("{address}:{target} at {node} takes the next connection (one of {count}{left_out})"),
        );
        self.out.backend = Some(WhyBackend { node, address, port: target });
        Ok(Goal { carrier: address, port: target, service: Some((index as u32, port)) })
    }

    fn route(&mut self, carrier: Flat) -> Result<(), &'static str> {
        match self.view.owner(carrier) {
            Some(AddressOwner::Own) => self.pass("route", format!("{carrier} is on this node")),
            Some(AddressOwner::Peer(id)) => {
                self.out.peer = self.view.peer_name(id).cloned();
                let name = self.out.peer.as_ref().map(ToString::to_string).unwrap_or_default();
                self.pass("route", format!("{carrier} is carried by peer {name}"));
            }
            None => {
                return self.stop(
                    "route",
                    format!("{carrier} belongs to no node that may call this one or be called by it"),
                    Refuse::NoRoute.label(),
                );
            }
        }
        Ok(())
    }

    fn policy(&mut self, question: &Question) -> Result<(), &'static str> {
        let map = self.view.netmap();
        let judged = self.view.access().judge(question).and_then(|index| map.rules.get(index));
        if let Some(rule) = judged {
            self.out.rule = Some(RuleAt { file: rule.file.clone(), line: rule.line });
            self.pass("policy", format!("allowed by {}:{}", rule.file, rule.line));
            return Ok(());
        }
        if let Some(node) = masqueraded(self.view, question.destination) {
            let outcome = format!("what {node} masquerades calls and is not called: no rule allows it");
            return self.stop("policy", outcome, Refuse::Denied.label());
        }
        match narrowest_target(self.view, question) {
            Some(to) => self.deny(question.source, &to, Some(question)),
            None => self.stop("policy", "no rule allows it".to_owned(), Refuse::Denied.label()),
        }
    }

    /// Stops because no rule allows it, and says which one would.
    fn deny<T>(&mut self, source: Flat, to: &RuleTarget, question: Option<&Question>) -> Result<T, &'static str> {
        let Some(from) = narrowest_source(self.view, source) else {
            return self.stop("policy", format!("no rule allows {source} to call {to}"), Refuse::Denied.label());
        };
        let missing = format!("[[allow]]\nfrom = [\"{from}\"]\nto = [\"{to}\"]");
        self.out.missing = Some(missing);
        self.out.wider = wider(self.view, &from, to, question);
        let more = self.out.wider.as_ref().map(|wider| format!("; {wider}")).unwrap_or_default();
        let outcome = format!(
            "no rule allows {from} to call {to}; add to services.toml: [[allow]] from = [\"{from}\"] to = [\"{to}\"]{more}"
        );
        self.stop("policy", outcome, Refuse::Denied.label())
    }

    fn who(&self, flat: Flat) -> String {
        let names: Vec<String> = identities(self.view, flat).iter().map(ToString::to_string).collect();
        names.join(", ")
    }

    fn pass(&mut self, name: &str, outcome: String) {
        self.steps.push(WhyStep { name: name.into(), outcome, ok: true });
    }

    fn stop<T>(&mut self, name: &str, outcome: String, word: &'static str) -> Result<T, &'static str> {
        self.steps.push(WhyStep { name: name.into(), outcome, ok: false });
        Err(word)
    }
}

/// Returns the mesh address of an address on this node, or of a member elsewhere.
fn image(view: &View, source: Ipv4Addr) -> Option<Flat> {
    let member = || view.owner(Flat(source)).map(|_| Flat(source));
    view.flat(Real(source)).or_else(member)
}

/// Lists who an address is, the most telling first: the services it backs, its node, its site.
pub fn identities(view: &View, flat: Flat) -> Vec<Source> {
    let map = view.netmap();
    let backs = |s: &&crate::model::netmap::Service| s.backends.iter().any(|b| b.address == flat);
    if let Some(node) = masqueraded(view, flat) {
        return vec![Source::Masqueraded(node)];
    }
    let services = map.services.iter().filter(|(_, s)| backs(s)).map(|(key, _)| Source::Service(key.clone()));
    let own = (flat == map.node.address).then(|| Source::Host(map.node.name.clone()));
    let peer = map.peers.iter().find(|(_, p)| p.address == flat).map(|(name, _)| Source::Host(name.clone()));
    services.chain(own).chain(peer).chain(site(view, flat).map(Source::Site)).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::sync::Arc;

    use super::*;
    use crate::fixture::{self, RuleAt};

    fn why(rules: &[RuleAt<'_>], source: &str, destination: &str, port: u16) -> Explanation {
        let view = View::compile(crate::verifier::VerifiedMap::by_hand(fixture::netmap(rules)));
        explain(&view, source.parse().unwrap(), destination.parse().unwrap(), 6, port)
    }

    #[test]
    fn an_allowed_call_names_rule_backend_and_peer() {
        let told = why(&[RuleAt(7, &["front"], &["cart"])], "10.8.0.10", fixture::CART, 7070);
        assert!(told.allowed, "{told:?}");
        assert_eq!(told.verdict, "forward");
        assert_eq!(told.rule, Some(crate::ops::status::RuleAt { file: "services.toml".into(), line: 7 }));
        assert_eq!(told.backend.map(|b| (b.node.to_string(), b.port)), Some(("b".into(), 8070)));
        assert_eq!(told.peer.unwrap().as_str(), "b");
        let steps: Vec<_> = told.steps.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(steps, ["source", "service", "backend", "route", "policy", "translate"]);
    }

    #[test]
    fn an_allowed_call_to_a_peer_that_does_not_answer_does_not_get_through_and_a_denied_one_stays_denied() {
        let at = Timestamp::from_millis;
        let told = |rules: &[RuleAt<'_>], silent| {
            let view = View::compile(crate::verifier::VerifiedMap::by_hand(fixture::netmap(rules)));
            let b = view.netmap().peers.get(&"b".parse().unwrap()).unwrap().id;
            view.set_silent(b, silent);
            let (source, cart) = ("10.8.0.10".parse().unwrap(), fixture::CART.parse().unwrap());
            explain(&view, source, cart, 6, 7070).and_answers(&view, at(13_000))
        };
        let rule = [RuleAt(7, &["front"], &["cart"])];
        assert_eq!((told(&rule, None).verdict.as_str(), told(&rule, None).allowed), ("forward", true));
        let silent = told(&rule, Some(at(1000)));
        assert_eq!((silent.verdict.as_str(), silent.allowed), (NOT_ANSWERING, false));
        let last = silent.steps.last().unwrap();
        assert!(!last.ok && last.outcome.starts_with("b has not answered for 12 s"), "{last:?}");
        assert_eq!(told(&[], Some(at(1000))).verdict, "denied");
    }

    #[test]
    fn a_denied_call_names_the_rule_that_is_missing() {
        let told = why(&[], "10.8.0.10", fixture::CART, 7070);
        assert_eq!((told.verdict.as_str(), told.allowed), ("denied", false));
        assert_eq!(told.missing.as_deref(), Some("[[allow]]\nfrom = [\"front\"]\nto = [\"cart:7070\"]"));
    }

    #[test]
    fn a_service_of_which_only_the_name_is_known_is_denied_with_the_rule_that_is_missing() {
        let mut map = fixture::netmap(&[]);
        map.names = Arc::new([("hidden".parse().unwrap(), Flat([241, 0, 7, 8].into()))].into());
        let view = View::compile(crate::verifier::VerifiedMap::by_hand(map));
        let told = |port| explain(&view, "10.8.0.10".parse().unwrap(), "241.0.7.8".parse().unwrap(), 6, port);
        assert_eq!((told(80).verdict.as_str(), told(80).allowed), ("denied", false));
        assert_eq!(told(80).missing.as_deref(), Some("[[allow]]\nfrom = [\"front\"]\nto = [\"hidden:80\"]"));
        assert_eq!(told(0).missing.as_deref(), Some("[[allow]]\nfrom = [\"front\"]\nto = [\"hidden\"]"));
    }

    #[test]
    fn a_node_of_which_the_coordinator_tells_is_denied_with_the_rule_that_is_missing() {
        let view = View::compile(crate::verifier::VerifiedMap::by_hand(fixture::netmap(&[])));
        let address = Flat([241, 1, 9, 9].into());
        let stranger = About { node: "far".parse().unwrap(), site: "s9".parse().unwrap(), address };
        let told = explain_stranger(&view, "10.8.0.10".parse().unwrap(), address.0, &stranger);
        assert_eq!((told.verdict.as_str(), told.allowed), ("denied", false));
        assert_eq!(told.missing.as_deref(), Some("[[allow]]\nfrom = [\"front\"]\nto = [\"host:far\"]"));
        let behind = explain_stranger(&view, "10.8.0.10".parse().unwrap(), [241, 9, 9, 9].into(), &stranger);
        assert_eq!(behind.missing.as_deref(), Some("[[allow]]\nfrom = [\"front\"]\nto = [\"site:s9\"]"));
    }

    #[test]
    fn every_other_end_is_named_too() {
        for (source, destination, port, word) in [
            ("192.0.2.9", fixture::CART, 7070, "spoofed_source"),
            ("10.8.0.10", "241.0.9.9", 1, "unknown_service"),
            ("10.8.0.10", fixture::CART, 1, "closed_port"),
            ("10.8.0.10", "241.77.0.1", 1, "no_route"),
            ("10.8.0.10", "8.8.8.8", 1, "forbidden_destination"),
        ] {
            assert_eq!(why(&[], source, destination, port).verdict, word);
        }
    }
}
