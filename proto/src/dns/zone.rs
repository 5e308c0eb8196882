//! The names of the mesh: what a DNS question about them is answered, from the NetMap alone.
//!
//! ```text
//! <service>.<namespace>.<domain>   A    its VIP, whether or not a backend is alive, or this node may call it
//! <service>.<domain>               A    the same, namespace `default`
//! <node>.node.<domain>             A    the node's own address, of nodes that this node may see
//! ns.dns.<domain>                  A    the DNS address, the server of these zones
//! <address>.in-addr.arpa           PTR  of VIPs, node addresses and the DNS address
//! ```
//!
//! A service comes before the two words `node` and `dns`, should someone name a namespace so. A name that
//! only has names below it exists without records (RFC 8020). Zones are authoritative: what is in them and
//! unknown does not exist.

use std::net::Ipv4Addr;

use crate::base::id::{Domain, Namespace, NodeName, ServiceKey, ServiceName};
use crate::model::netmap::NetMap;

/// How long an answer may be kept, in seconds: what `plan` decides must be live soon.
pub const TTL: u32 = 5;
const NODE: &str = "node";
const DNS: &str = "dns";
const NAME_SERVER: &str = "ns.dns";
const REVERSE: &str = ".in-addr.arpa";

/// What a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryType {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// The name of an address.
    Ptr,
    /// The start of authority.
    Soa,
    /// The name server.
    Ns,
    /// Whatever there is.
    Any,
    /// Anything else, of which there is nothing here.
    Other,
}

/// A record of an answer, for the name that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// A name, without the final dot.
    Ptr(String),
    /// The name server, without the final dot.
    Ns(String),
    /// The start of authority.
    Soa(Soa),
}

/// The start of authority of a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soa {
    /// The zone, without the final dot.
    pub zone: String,
    /// Its name server, without the final dot.
    pub server: String,
    /// The low half of the map's revision.
    pub serial: u32,
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These records; never empty.
    Records(Vec<Record>),
    /// The name exists and has nothing of this type.
    NoData(Soa),
    /// The name does not exist.
    NxDomain(Soa),
    /// The name is not in a zone of the mesh.
    NotOurs,
}

/// Answers a question. The name is lower case and has no final dot.
pub fn answer(netmap: &NetMap, name: &str, query: QueryType) -> Answer {
    for domain in &netmap.mesh.domains {
        if name == domain.as_str() {
            return apex(netmap, domain.as_str(), query);
        }
        let below = name.strip_suffix(domain.as_str());
        if let Some(below) = below.and_then(|rest| rest.strip_suffix('.')) {
            return forward(netmap, domain, below, query);
        }
    }
    match name.strip_suffix(REVERSE) {
        Some(labels) => reverse(netmap, labels, query),
        None => Answer::NotOurs,
    }
}

fn forward(netmap: &NetMap, domain: &Domain, below: &str, query: QueryType) -> Answer {
    let soa = || soa(netmap, domain.as_str());
    match address(netmap, below) {
        Some(address) if matches!(query, QueryType::A | QueryType::Any) => Answer::Records(vec![Record::A(address)]),
        Some(_) => Answer::NoData(soa()),
        None if has_names_below(netmap, below) => Answer::NoData(soa()),
        None => Answer::NxDomain(soa()),
    }
}

/// Returns the address of a name, given without its domain.
fn address(netmap: &NetMap, below: &str) -> Option<Ipv4Addr> {
    let (first, rest) = below.split_once('.').unwrap_or((below, ""));
    let namespace = if rest.is_empty() { Some(Namespace::default()) } else { rest.parse().ok() };
    let key = namespace.and_then(|namespace| Some(ServiceKey::new(first.parse::<ServiceName>().ok()?, namespace)));
    if let Some(vip) = key.and_then(|key| netmap.vip(&key)) {
        return Some(vip.0);
    }
    if below == NAME_SERVER {
        return Some(netmap.mesh.range.dns().0);
    }
    (rest == NODE).then(|| node(netmap, first)).flatten()
}

fn node(netmap: &NetMap, name: &str) -> Option<Ipv4Addr> {
    let name: NodeName = name.parse().ok()?;
    if name == netmap.node.name {
        return Some(netmap.node.address.0);
    }
    netmap.peers.get(&name).map(|peer| peer.address.0)
}

fn has_names_below(netmap: &NetMap, below: &str) -> bool {
    let namespace = |key: &ServiceKey| key.namespace.as_str() == below;
    below == NODE || below == DNS || netmap.services.keys().chain(netmap.names.keys()).any(namespace)
}

fn reverse(netmap: &NetMap, labels: &str, query: QueryType) -> Answer {
    let Some(zone) = reverse_zone(netmap, labels) else { return Answer::NotOurs };
    let apex_labels = zone.trim_end_matches(REVERSE).split('.').count();
    let count = labels.split('.').count();
    if count == apex_labels {
        return apex(netmap, &zone, query);
    }
    let soa = soa(netmap, &zone);
    match octets(labels) {
        Some(octets) => match octets.as_slice() {
            &[a, b, c, d] => match name_of(netmap, Ipv4Addr::new(a, b, c, d)) {
                Some(name) if matches!(query, QueryType::Ptr | QueryType::Any) => {
                    Answer::Records(vec![Record::Ptr(name)])
                }
                Some(_) => Answer::NoData(soa),
                None => Answer::NxDomain(soa),
            },
            prefix if named(netmap).any(|(address, _)| address.octets().starts_with(prefix)) => Answer::NoData(soa),
            _ => Answer::NxDomain(soa),
        },
        None => Answer::NxDomain(soa),
    }
}

/// Returns the zone of the mesh range that reversed labels lie in. A range of /8 is one zone of one label;
/// a longer one is as many zones of two labels as it has second octets.
fn reverse_zone(netmap: &NetMap, labels: &str) -> Option<String> {
    let range = netmap.mesh.range.net();
    let depth = if range.prefix_len() == 8 { 1 } else { 2 };
    let from_the_end: Vec<&str> = labels.rsplit('.').take(depth).collect();
    let mut octets = [0u8; 4];
    for (octet, label) in octets.iter_mut().zip(&from_the_end) {
        *octet = parse_octet(label)?;
    }
    let ours = from_the_end.len() == depth && range.contains(&Ipv4Addr::from(octets));
    ours.then(|| {
        let zone: Vec<&str> = from_the_end.into_iter().rev().collect();
        format!("{}{REVERSE}", zone.join("."))
    })
}

/// Reads reversed labels as the start of an address; `None` if they are none.
fn octets(labels: &str) -> Option<Vec<u8>> {
    let octets: Option<Vec<u8>> = labels.rsplit('.').take(5).map(parse_octet).collect();
    octets.filter(|octets| octets.len() <= 4)
}

fn parse_octet(label: &str) -> Option<u8> {
    let octet: u8 = label.parse().ok()?;
    // Only one spelling of a number is a name.
    (octet.to_string() == label).then_some(octet)
}

fn name_of(netmap: &NetMap, address: Ipv4Addr) -> Option<String> {
    let domain = netmap.mesh.domains.first()?;
    let (_, name) = named(netmap).find(|&(a, _)| a == address)?;
    Some(match name {
        Named::Service(ServiceKey { namespace, name }) => format!("{name}.{namespace}.{domain}"),
        Named::Node(name) => format!("{name}.{NODE}.{domain}"),
        Named::Server => format!("{NAME_SERVER}.{domain}"),
    })
}

enum Named<'a> {
    Service(&'a ServiceKey),
    Node(&'a NodeName),
    Server,
}

/// All addresses that have a name.
fn named(netmap: &NetMap) -> impl Iterator<Item = (Ipv4Addr, Named<'_>)> {
    let services = netmap.services.iter();
    let services = services.map(|(key, service)| (service.vip.0, Named::Service(key)));
    let services = services.chain(netmap.names.iter().map(|(key, vip)| (vip.0, Named::Service(key))));
    let own = (netmap.node.address.0, Named::Node(&netmap.node.name));
    let peers = netmap.peers.iter();
    let peers = peers.map(|(name, peer)| (peer.address.0, Named::Node(name)));
    let server = (netmap.mesh.range.dns().0, Named::Server);
    services.chain([own, server]).chain(peers)
}

fn apex(netmap: &NetMap, zone: &str, query: QueryType) -> Answer {
    let soa = soa(netmap, zone);
    let ns = Record::Ns(soa.server.clone());
    match query {
        QueryType::Soa => Answer::Records(vec![Record::Soa(soa)]),
        QueryType::Ns => Answer::Records(vec![ns]),
        QueryType::Any => Answer::Records(vec![Record::Soa(soa), ns]),
        QueryType::A | QueryType::Aaaa | QueryType::Ptr | QueryType::Other => Answer::NoData(soa),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a serial is the low half of a revision")]
fn soa(netmap: &NetMap, zone: &str) -> Soa {
    let server = match netmap.mesh.domains.first() {
        Some(domain) => format!("{NAME_SERVER}.{domain}"),
        None => zone.to_owned(),
    };
    Soa { zone: zone.to_owned(), server, serial: netmap.revision.0 as u32 }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::base::addr::Flat;
    use crate::fixture;

    fn netmap() -> NetMap {
        let mut netmap = fixture::netmap(&[]);
        let (key, mut service) = netmap.services.pop_first().unwrap();
        service.vip.0 = Ipv4Addr::new(241, 0, 0, 99);
        service.backends.clear();
        let named = |name: &str, namespace: &str| ServiceKey::new(name.parse().unwrap(), namespace.parse().unwrap());
        netmap.services.clear();
        netmap.services.insert(named("cart", "default"), service.clone());
        service.vip.0 = Ipv4Addr::new(241, 0, 0, 100);
        netmap.services.insert(named("cart", "prod"), service);
        netmap.names = std::sync::Arc::new([(named("hidden", "away"), Flat([241, 0, 0, 101].into()))].into());
        netmap.mesh.domains.push("shop.example".parse().unwrap());
        drop(key);
        netmap
    }

    fn a(name: &str) -> Answer {
        answer(&netmap(), name, QueryType::A)
    }

    fn is(address: &str) -> Answer {
        Answer::Records(vec![Record::A(address.parse().unwrap())])
    }

    #[test]
    fn a_service_resolves_in_every_domain_even_without_backends() {
        assert_eq!(a("cart.default.mesh.internal"), is("241.0.0.99"));
        assert_eq!(a("cart.mesh.internal"), is("241.0.0.99"));
        assert_eq!(a("cart.prod.mesh.internal"), is("241.0.0.100"));
        assert_eq!(a("cart.prod.shop.example"), is("241.0.0.100"));
        assert_eq!(a("hidden.away.mesh.internal"), is("241.0.0.101"), "it may not be called, and has a name");
    }

    #[test]
    fn a_node_resolves_below_the_word_node_and_the_server_below_dns() {
        assert_eq!(a("a.node.mesh.internal"), is(fixture::NODE_A));
        assert_eq!(a("b.node.mesh.internal"), is(fixture::NODE_B));
        assert_eq!(a("ns.dns.mesh.internal"), is("241.0.0.53"));
    }

    #[test]
    fn an_unknown_name_of_ours_does_not_exist_and_another_name_is_not_ours() {
        for name in [
            "nope.mesh.internal",
            "cart.nope.mesh.internal",
            "x.cart.prod.mesh.internal",
            "nope.node.mesh.internal",
            "a b.mesh.internal",
            ".mesh.internal",
            "..mesh.internal",
        ] {
            assert!(matches!(a(name), Answer::NxDomain(_)), "{name}");
        }
        for name in ["", "internal", "mesh.internal.example", "xmesh.internal", "example.com", "in-addr.arpa"] {
            assert_eq!(a(name), Answer::NotOurs, "{name}");
        }
    }

    #[test]
    fn another_type_or_a_name_with_names_below_it_is_no_data() {
        let zone = |answer: Answer| {
            let Answer::NoData(soa) = answer else { panic!("{answer:?}") };
            soa.zone
        };
        let of = |name: &str, query| zone(answer(&netmap(), name, query));
        assert_eq!(of("cart.mesh.internal", QueryType::Aaaa), "mesh.internal");
        assert_eq!(of("cart.mesh.internal", QueryType::Other), "mesh.internal");
        for name in
            ["mesh.internal", "default.mesh.internal", "prod.mesh.internal", "node.mesh.internal", "dns.mesh.internal"]
        {
            assert_eq!(of(name, QueryType::A), "mesh.internal", "{name}");
        }
        assert_eq!(of("0.0.241.in-addr.arpa", QueryType::Ptr), "241.in-addr.arpa");
        assert_eq!(of("99.0.0.241.in-addr.arpa", QueryType::A), "241.in-addr.arpa");
    }

    #[test]
    fn addresses_lead_back_to_names() {
        for (address, name) in [
            ("99.0.0.241", "cart.default.mesh.internal"),
            ("100.0.0.241", "cart.prod.mesh.internal"),
            ("101.0.0.241", "hidden.away.mesh.internal"),
            ("53.0.0.241", "ns.dns.mesh.internal"),
            ("1.0.1.241", "a.node.mesh.internal"),
            ("2.0.1.241", "b.node.mesh.internal"),
        ] {
            let asked = format!("{address}.in-addr.arpa");
            let expected = Answer::Records(vec![Record::Ptr(name.to_owned())]);
            assert_eq!(answer(&netmap(), &asked, QueryType::Ptr), expected, "{asked}");
        }
        for unknown in ["9.9.9.241", "1.99.0.0.241", "099.0.0.241", "x.0.0.241", "256.0.0.241", "9.241"] {
            let asked = format!("{unknown}.in-addr.arpa");
            let answered = answer(&netmap(), &asked, QueryType::Ptr);
            assert!(matches!(answered, Answer::NxDomain(_)), "{asked}: {answered:?}");
        }
        let foreign = answer(&netmap(), "1.0.0.10.in-addr.arpa", QueryType::Ptr);
        assert_eq!(foreign, Answer::NotOurs);
    }

    #[test]
    fn the_reverse_zones_of_a_longer_range_end_where_it_ends() {
        let mut netmap = netmap();
        netmap.mesh.range = "100.96.0.0/12".parse().unwrap();
        let of = |name: &str| answer(&netmap, name, QueryType::Ptr);
        let server = Answer::Records(vec![Record::Ptr("ns.dns.mesh.internal".to_owned())]);
        assert_eq!(of("53.0.96.100.in-addr.arpa"), server);
        assert!(matches!(of("1.1.111.100.in-addr.arpa"), Answer::NxDomain(soa) if soa.zone == "111.100.in-addr.arpa"));
        assert_eq!(of("1.1.112.100.in-addr.arpa"), Answer::NotOurs);
        assert_eq!(of("100.in-addr.arpa"), Answer::NotOurs);
    }

    #[test]
    fn an_apex_has_a_server_and_a_start_of_authority_with_the_revision() {
        for zone in ["mesh.internal", "shop.example", "241.in-addr.arpa"] {
            let Answer::Records(records) = answer(&netmap(), zone, QueryType::Any) else {
                panic!("{zone}");
            };
            let soa = Soa { zone: zone.to_owned(), server: "ns.dns.mesh.internal".to_owned(), serial: 1 };
            assert_eq!(records, [Record::Soa(soa), Record::Ns("ns.dns.mesh.internal".to_owned())]);
        }
    }
}
