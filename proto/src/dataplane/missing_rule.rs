//! The rule that is missing: the narrowest that allows a call, and what it opens beside.
//!
//! Rules name identities and never addresses, so that the narrowest one may still be wider than the question: then the
//! operator is told what else it lets through, before it is pasted.

use crate::base::addr::Flat;
use crate::base::id::{NodeName, ServiceKey, SiteName};
use crate::dataplane::policy_index::Question;
use crate::dataplane::view::{AddressOwner, View};
use crate::model::netmap::Transport;
use crate::model::rules::{RuleTarget, Source};

/// Returns the narrowest identity of a caller: masqueraded networks, a node, the service with the fewest backends, a site.
pub(super) fn narrowest_source(view: &View, flat: Flat) -> Option<Source> {
    if let Some(node) = masqueraded(view, flat) {
        return Some(Source::Masqueraded(node));
    }
    if let Some(node) = node_at(view, flat) {
        return Some(Source::Host(node));
    }
    let services = view.access().services_of(flat).filter_map(|index| view.service_key(index as usize));
    let service = services.min_by_key(|key| backends(view, key)).cloned();
    service.map(Source::Service).or_else(|| site(view, flat).map(Source::Site))
}

/// Returns the narrowest name of what is called: the port of a service, a node, a site.
pub(super) fn narrowest_target(view: &View, question: &Question) -> Option<RuleTarget> {
    let named = |(index, port): (u32, u16)| Some((view.service_key(index as usize)?.clone(), port));
    if let Some((key, port)) = question.service.and_then(named) {
        return Some(RuleTarget::Port(key, port));
    }
    let served = view.access().served_at(question).filter_map(named);
    if let Some((key, port)) = served.min_by_key(|(key, _)| backends(view, key)) {
        return Some(RuleTarget::Port(key, port));
    }
    let node = node_at(view, question.destination).map(RuleTarget::Host);
    node.or_else(|| site(view, question.destination).map(RuleTarget::Site))
}

/// Says what a rule opens beside a question; none if nothing. Of what this node is not told of there is no question.
pub(super) fn wider(view: &View, from: &Source, to: &RuleTarget, question: Option<&Question>) -> Option<String> {
    let caller = match from {
        Source::Service(key) => match backends(view, key) {
            0 | 1 => None,
            many => Some(format!("all {many} backends of {key} call")),
        },
        Source::Site(site) => Some(format!("every node and pod of site {site} call")),
        Source::Account(namespace, name) => Some(format!("every pod of the ServiceAccount {namespace}/{name} call")),
        Source::Any => Some("every member of the mesh call".to_owned()),
        // As narrow as what was asked: all of a node's own processes have one address, all that it masquerades another.
        Source::Host(_) | Source::Masqueraded(_) => None,
    };
    let target = match to {
        RuleTarget::Port(key, port) => port_of(view, key, *port, question),
        RuleTarget::Service(key) => Some(format!("every port of {key} be called")),
        RuleTarget::Host(node) => Some(format!("every port and protocol of node {node} be called")),
        RuleTarget::Site(site) => {
            Some(format!("every port and protocol of all nodes and pods of site {site} be called"))
        }
        RuleTarget::Any => Some("everything be called".to_owned()),
    };
    let more: Vec<String> = caller.into_iter().chain(target).collect();
    (!more.is_empty()).then(|| format!("that rule also lets {}", more.join(", and ")))
}

/// Says what a rule for a service's port opens beside a question: another transport, other backends than the one called.
fn port_of(view: &View, key: &ServiceKey, port: u16, question: Option<&Question>) -> Option<String> {
    let service = view.netmap().services.get(key)?;
    let is_other = |transport: Transport| question.is_some_and(|asked| asked.protocol != transport.number());
    let other = service.ports.iter().find(|p| p.port == port && is_other(p.transport));
    let over = other.map(|p| format!("{key}:{port} be called over {}", p.transport));
    let is_direct = question.is_some_and(|asked| asked.service.is_none());
    let others = (is_direct && service.backends.len() > 1)
        .then(|| format!("all {} backends of {key}:{port} be called", service.backends.len()));
    match (over, others) {
        (Some(over), Some(others)) => Some(format!("{over}, and {others}")),
        (over, others) => over.or(others),
    }
}

fn backends(view: &View, key: &ServiceKey) -> usize {
    view.netmap().services.get(key).map_or(0, |service| service.backends.len())
}

/// Returns the node whose own address it is.
fn node_at(view: &View, flat: Flat) -> Option<NodeName> {
    let map = view.netmap();
    let peer = map.peers.iter().find(|(_, peer)| peer.address == flat).map(|(name, _)| name);
    peer.or_else(|| (map.node.address == flat).then_some(&map.node.name)).cloned()
}

/// Returns the node whose second address it is, unless it is another's own.
pub(super) fn masqueraded(view: &View, flat: Flat) -> Option<NodeName> {
    let map = view.netmap();
    let peers = map.peers.iter().map(|(name, peer)| (name, peer.address));
    let nodes: Vec<_> = std::iter::once((&map.node.name, map.node.address)).chain(peers).collect();
    let is_own = nodes.iter().any(|&(_, address)| address == flat);
    let second = |&&(_, address): &&(_, Flat)| !is_own && map.mesh.range.second(address) == flat;
    nodes.iter().find(second).map(|&(name, _)| name.clone())
}

/// Returns the site of an address.
pub(super) fn site(view: &View, flat: Flat) -> Option<SiteName> {
    match view.owner(flat)? {
        AddressOwner::Own => Some(view.netmap().node.site.clone()),
        AddressOwner::Peer(id) => view.peer(id).map(|peer| peer.site.clone()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::dataplane::explain::{Explanation, explain};
    use crate::fixture::{self, CART, NODE_A, NODE_B, POD_A, POD_A2, POD_B, RuleAt, STORE};
    use crate::model::netmap::{Backend, NetMap};
    use crate::model::rules::Rule;
    use crate::packet::{ICMP, TCP, UDP};
    use crate::verifier::VerifiedMap;

    /// A pod of each node that backs nothing, and node a's second address.
    const PLAIN_A: &str = "241.2.0.77";
    const PLAIN_B: &str = "241.2.1.77";
    /// The VIP of `lib.prod`, backed by two pods of node b, over TCP alone.
    const LIB: &str = "241.0.0.9";
    const LIB_1: &str = "241.2.1.21";
    const LIB_2: &str = "241.2.1.22";

    /// A call: from, to, protocol, port.
    type Call = (Ipv4Addr, Ipv4Addr, u8, u16);

    fn map() -> NetMap {
        let mut map = fixture::netmap(&[]);
        let mut lib = map.services.values().next().unwrap().clone();
        lib.vip = Flat(LIB.parse().unwrap());
        lib.id = crate::base::id::ServiceId(9);
        lib.ports.truncate(1);
        lib.ports[0].port = 443;
        lib.ports[0].target = 8443;
        let at = |address: &str| Backend { address: Flat(address.parse().unwrap()), ..lib.backends[0].clone() };
        lib.backends = vec![at(LIB_1), at(LIB_2)];
        map.services.insert("lib.prod".parse().unwrap(), lib);
        map
    }

    fn second(node: &str) -> Ipv4Addr {
        map().mesh.range.second(Flat(node.parse().unwrap())).0
    }

    fn view(map: NetMap) -> View {
        View::compile(VerifiedMap::by_hand(map))
    }

    fn asked(view: &View, (from, to, protocol, port): Call) -> Explanation {
        explain(view, from, to, protocol, port)
    }

    /// The map with the rule that is printed, read as an operator's file is.
    fn with(missing: &str) -> NetMap {
        let words = |key: &str| {
            let line = missing.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim_start_matches(" = [\"").trim_end_matches("\"]").to_owned()
        };
        let (from, to) = (words("from").parse().unwrap(), words("to").parse().unwrap());
        let mut map = map();
        map.rules = vec![Rule { file: "f".into(), line: 1, from: vec![from], to: vec![to] }];
        map
    }

    /// All calls between all that there is.
    fn calls() -> Vec<Call> {
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let places = [POD_A, POD_A2, POD_B, PLAIN_A, PLAIN_B, NODE_A, NODE_B, LIB_1, LIB_2].map(ip);
        let sources: Vec<_> = places.into_iter().chain([second(NODE_A), second(NODE_B)]).collect();
        let targets: Vec<_> = sources.iter().copied().chain([CART, STORE, LIB, "241.0.0.2"].map(ip)).collect();
        let ports = [(ICMP, 0), (TCP, 22), (UDP, 22), (TCP, 7070), (UDP, 7070), (TCP, 8070), (UDP, 8070), (TCP, 443)];
        let more = [(TCP, 8443), (TCP, 5000), (UDP, 5000), (TCP, 80), (UDP, 80), (TCP, 8080), (UDP, 8080)];
        let ports: Vec<_> = ports.into_iter().chain(more).collect();
        let to = |from| targets.iter().filter(move |to| **to != from).map(move |to| (from, *to));
        let pairs: Vec<_> = sources.iter().flat_map(|from| to(*from)).collect();
        pairs.iter().flat_map(|&(from, to)| ports.iter().map(move |&(p, n)| (from, to, p, n))).collect()
    }

    /// What a call asks for: a VIP leads to the address and port that carry it; of a service with two backends, to either.
    fn asks_for(view: &View, call: Call) -> Call {
        let (from, to, protocol, port) = call;
        match asked(view, call).backend {
            Some(backend) => (from, backend.address.0, protocol, backend.port),
            None if to.to_string() == LIB_2 && port == 8443 => (from, LIB_1.parse().unwrap(), protocol, port),
            None => call,
        }
    }

    #[test]
    fn the_rule_that_is_printed_allows_what_was_asked_and_what_else_it_opens_is_said() {
        let (calls, closed) = (calls(), view(map()));
        let denied = calls.iter().map(|&call| (call, asked(&closed, call)));
        let denied: Vec<_> = denied.filter(|(_, told)| told.missing.is_some()).collect();
        let printed: BTreeSet<_> = denied.iter().map(|(_, told)| told.missing.clone().unwrap()).collect();
        assert!(printed.len() > 40, "{printed:?}");
        for missing in printed {
            assert!(!missing.contains("\"any\""), "{missing}");
            let open = view(with(&missing));
            let opened: Vec<Call> = calls.iter().copied().filter(|&call| asked(&open, call).allowed).collect();
            for (call, told) in denied.iter().filter(|(_, told)| told.missing.as_ref() == Some(&missing)) {
                assert!(opened.contains(call), "{missing} does not allow {call:?}");
                let asks = asks_for(&closed, *call);
                let more = opened.iter().find(|other| asks_for(&closed, **other) != asks);
                assert!(more.is_none() || told.wider.is_some(), "{missing} for {call:?} opens {more:?} in silence");
            }
        }
    }

    #[test]
    fn a_service_is_named_by_its_port_a_pod_by_its_service_and_a_node_by_itself() {
        let say = |from: &str, to: &str, protocol, port| {
            let told = asked(&view(map()), (from.parse().unwrap(), to.parse().unwrap(), protocol, port));
            let rule = told.missing.unwrap_or_default().replace("[[allow]]\n", "").replace('\n', " ");
            (rule, told.wider.unwrap_or_default())
        };
        let rule = |from: &str, to: &str| format!("from = [\"{from}\"] to = [\"{to}\"]");
        let none = String::new();
        assert_eq!(say(POD_A, LIB, TCP, 443), (rule("front", "lib.prod:443"), none.clone()), "a namespace");
        let udp = "that rule also lets cart:7070 be called over udp".to_owned();
        assert_eq!(say(POD_A, CART, TCP, 7070), (rule("front", "cart:7070"), udp.clone()));
        assert_eq!(
            say(POD_A, POD_B, TCP, 8070),
            (rule("front", "cart:7070"), udp.clone()),
            "a pod, not its whole site"
        );
        assert_eq!(say(NODE_A, CART, TCP, 7070), (rule("host:a", "cart:7070"), udp), "a node that backs a service");
        let (rule_of_site, wide) = say(PLAIN_A, LIB, TCP, 443);
        assert_eq!(rule_of_site, rule("site:s1", "lib.prod:443"));
        assert_eq!(wide, "that rule also lets every node and pod of site s1 call");
        let (rule_of_two, wide) = say(LIB_1, NODE_A, TCP, 22);
        assert_eq!(rule_of_two, rule("lib.prod", "host:a"));
        assert_eq!(
            wide,
            "that rule also lets all 2 backends of lib.prod call, and every port and protocol of node a be called"
        );
        let (rule_of_net, wide) = say(&second(NODE_A).to_string(), PLAIN_B, TCP, 9);
        assert_eq!(rule_of_net, rule("masqueraded:a", "site:s2"));
        assert_eq!(wide, "that rule also lets every port and protocol of all nodes and pods of site s2 be called");
        let (direct, wide) = say(POD_A, LIB_2, TCP, 8443);
        assert_eq!(
            (direct, &*wide),
            (rule("front", "lib.prod:443"), "that rule also lets all 2 backends of lib.prod:443 be called")
        );
        let (no_rule, _) = say(POD_A, &second(NODE_B).to_string(), TCP, 22);
        assert_eq!(no_rule, none, "nothing is called behind a translation");
    }

    #[test]
    fn a_rule_for_what_this_node_knows_by_name_alone_is_as_narrow() {
        let mut map = fixture::netmap(&[RuleAt(1, &["near"], &["near"])]);
        map.names = std::sync::Arc::new([("hidden".parse().unwrap(), Flat([241, 0, 7, 8].into()))].into());
        let told = |port| asked(&view(map.clone()), (POD_A.parse().unwrap(), [241, 0, 7, 8].into(), TCP, port));
        assert_eq!(told(80).wider, None);
        assert_eq!(told(0).wider.as_deref(), Some("that rule also lets every port of hidden be called"));
    }
}
