//! What people write where the mesh has addresses: services, nodes, `host:NODE`, full names, bare addresses.

use std::net::Ipv4Addr;

use mesh_proto::base::addr::Flat;
use mesh_proto::base::id::{NodeName, ServiceKey};
use mesh_proto::model::netmap::{NetMap, Peer, Service, Transport};
use mesh_proto::packet::ICMP;
use mesh_proto::services::nearest_name;

/// Why a word names nothing in this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing has that name.
    #[error("`{word}` is no service, node or address of this mesh{hint}")]
    Unknown {
        /// The word.
        word: String,
        /// What may have been meant.
        hint: String,
    },
    /// No node has that name.
    #[error("no node that may call this one, or be called by it, is called `{word}`{hint}")]
    Node {
        /// The word.
        word: String,
        /// What may have been meant.
        hint: String,
    },
    /// It is this node.
    #[error("`{0}` is this node: name another; `meshd peers` lists them")]
    Own(String),
    /// The service has no backend to speak for it.
    #[error("service `{0}` has no live backend, so nobody calls as it; name an address or `host:NODE` instead")]
    NoBackend(ServiceKey),
    /// The map tells of the service by its name alone.
    #[error(
        "service `{0}` is in the mesh, but this node neither may call it nor backs it, and is not told where it runs: ask on a node that may, or add an [[allow]]"
    )]
    Hidden(ServiceKey),
    /// The port is no port.
    #[error("`{0}` is not a port: use 1 to 65535")]
    Port(String),
}

/// What a packet goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedTarget {
    /// The address.
    pub address: Ipv4Addr,
    /// The IP protocol number.
    pub protocol: u8,
    /// The port; 0 for protocols without.
    pub port: u16,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// `service` or `node`.
    pub kind: &'static str,
    /// The address.
    pub address: Ipv4Addr,
    /// The name in full.
    pub full_name: String,
}

/// Finds the address that a caller would have.
///
/// # Errors
/// `NameError` if the word names nothing that calls.
pub fn source(map: &NetMap, word: &str) -> Result<Ipv4Addr, NameError> {
    if let Ok(address) = word.parse() {
        return Ok(address);
    }
    if let Some(name) = word.strip_prefix("host:") {
        return node(map, name).ok_or_else(|| no_node(map, name));
    }
    if let Some(name) = word.strip_prefix("masqueraded:") {
        let own = node(map, name).ok_or_else(|| no_node(map, name))?;
        return Ok(map.mesh.range.second(Flat(own)).0);
    }
    if let Some((key, service)) = service(map, word) {
        let here = |b: &&mesh_proto::model::netmap::Backend| b.node == map.node.name;
        let backend = service.backends.iter().find(here);
        let backend = backend.or_else(|| service.backends.first());
        let backend = backend.ok_or_else(|| NameError::NoBackend(key.clone()))?;
        return Ok(backend.address.0);
    }
    node(map, word).ok_or_else(|| hidden(map, word).unwrap_or_else(|| unknown(map, word)))
}

/// Says why a service that the map tells of by its name alone is no answer; `None` if it does not tell of it.
pub fn hidden(map: &NetMap, word: &str) -> Option<NameError> {
    key(map, word).filter(|key| map.names.contains_key(key)).map(NameError::Hidden)
}

/// Finds what would be called.
///
/// # Errors
/// `NameError` if the word names nothing that can be called.
pub fn target(map: &NetMap, word: &str, udp: bool) -> Result<NamedTarget, NameError> {
    let transport = if udp { Transport::Udp } else { Transport::Tcp };
    let plain = |address, port| plain(address, port, udp);
    if let Some(rest) = word.strip_prefix("host:") {
        let (name, port) = split_port(rest)?;
        let address = node(map, name).ok_or_else(|| no_node(map, name))?;
        return Ok(plain(address, port));
    }
    let (name, port) = split_port(word)?;
    if let Ok(address) = name.parse() {
        return Ok(plain(address, port));
    }
    if let Some((_, service)) = service(map, name) {
        let named = |p: &&mesh_proto::model::netmap::ServicePort| port.is_none_or(|n| n == p.port);
        let fits = |p: &&mesh_proto::model::netmap::ServicePort| !udp || p.transport == Transport::Udp;
        let mut ports = service.ports.iter().filter(named);
        let chosen = ports.clone().find(fits).or_else(|| ports.next());
        return Ok(NamedTarget {
            address: service.vip.0,
            protocol: chosen.map_or(transport, |p| p.transport).number(),
            port: chosen.map(|p| p.port).or(port).unwrap_or(0),
        });
    }
    if let Some(vip) = key(map, name).and_then(|key| map.vip(&key)) {
        return Ok(NamedTarget { address: vip.0, protocol: transport.number(), port: port.unwrap_or(0) });
    }
    let address = node(map, name).ok_or_else(|| unknown(map, name))?;
    Ok(plain(address, port))
}

/// Returns an address and port that no service has; no port means an echo request.
pub fn plain(address: Ipv4Addr, port: Option<u16>, udp: bool) -> NamedTarget {
    let transport = if udp { Transport::Udp } else { Transport::Tcp };
    NamedTarget { address, protocol: port.map_or(ICMP, |_| transport.number()), port: port.unwrap_or(0) }
}

/// Reads a word that may name a node which the map does not contain: `NODE`, `host:NODE`, either with a port.
pub fn stranger(word: &str) -> Option<(NodeName, Option<u16>)> {
    let (name, port) = split_port(word.strip_prefix("host:").unwrap_or(word)).ok()?;
    Some((name.parse().ok()?, port))
}

/// Finds what a name stands for, as `meshd resolve` shows it.
///
/// # Errors
/// `NameError` if it stands for nothing.
pub fn resolve(map: &NetMap, word: &str) -> Result<Meaning, NameError> {
    let domain = map.mesh.domains.first().map_or("", |d| d.as_str());
    if let Some((key, vip)) = key(map, word).and_then(|key| map.vip(&key).map(|vip| (key, vip))) {
        return Ok(Meaning {
            kind: "service",
            address: vip.0,
            full_name: format!("{}.{}.{domain}", key.name, key.namespace),
        });
    }
    if let Some(meaning) = word.parse().ok().and_then(|address| owner(map, address)) {
        return Ok(meaning);
    }
    let name = word.strip_prefix("host:").unwrap_or(word);
    let address = node(map, name).ok_or_else(|| unknown(map, word))?;
    Ok(Meaning { kind: "node", address, full_name: format!("host:{}", plainly(name)) })
}

/// Finds the service or node that an address belongs to.
fn owner(map: &NetMap, address: Ipv4Addr) -> Option<Meaning> {
    if let Some(key) = map.service_at(Flat(address)) {
        return resolve(map, &key.to_string()).ok();
    }
    let own = std::iter::once((&map.node.name, map.node.address));
    let mut nodes = own.chain(map.peers.iter().map(|(name, peer)| (name, peer.address)));
    let (name, _) = nodes.find(|(_, node)| node.0 == address)?;
    Some(Meaning { kind: "node", address, full_name: format!("host:{name}") })
}

/// Finds another node by its name, as `host:NODE`, or by its mesh address.
///
/// # Errors
/// `NameError` if no other node has it.
pub fn peer<'m>(map: &'m NetMap, word: &str) -> Result<(&'m NodeName, &'m Peer), NameError> {
    let bare = plainly(word.strip_prefix("host:").unwrap_or(word));
    let is = |name: &NodeName, address: Flat| name.as_str() == bare || address.0.to_string() == bare;
    if is(&map.node.name, map.node.address) {
        return Err(NameError::Own(word.into()));
    }
    map.peers.iter().find(|(name, peer)| is(name, peer.address)).ok_or_else(|| no_node(map, &bare))
}

/// Finds a service by its short name, its name and namespace, or either with a domain of the mesh.
pub fn service<'m>(map: &'m NetMap, word: &str) -> Option<(&'m ServiceKey, &'m Service)> {
    map.services.get_key_value(&key(map, word)?)
}

/// Returns the service that a word would name, whether or not there is such a one.
fn key(map: &NetMap, word: &str) -> Option<ServiceKey> {
    let word = plainly(word);
    let inside = |domain: &str| word.strip_suffix(domain)?.strip_suffix('.');
    let mut domains = map.mesh.domains.iter();
    let short = domains.find_map(|d| inside(d.as_str())).unwrap_or(&word);
    short.parse().ok()
}

/// Returns a name as DNS compares it: case, blanks around and a final dot make no other name.
fn plainly(word: &str) -> String {
    let word = word.trim();
    word.strip_suffix('.').unwrap_or(word).to_ascii_lowercase()
}

fn node(map: &NetMap, word: &str) -> Option<Ipv4Addr> {
    let name: NodeName = plainly(word).parse().ok()?;
    if name == map.node.name {
        return Some(map.node.address.0);
    }
    map.peers.get(&name).map(|p| p.address.0)
}

fn split_port(word: &str) -> Result<(&str, Option<u16>), NameError> {
    let Some((name, port)) = word.split_once(':') else { return Ok((word, None)) };
    let number = port.parse().ok().filter(|&n: &u16| n > 0);
    let number = number.ok_or_else(|| NameError::Port(port.into()))?;
    Ok((name, Some(number)))
}

fn unknown(map: &NetMap, word: &str) -> NameError {
    let services = map.services.keys().chain(map.names.keys()).map(ToString::to_string);
    let nodes = map.peers.keys().map(ToString::to_string);
    let hint = hint(word, services.chain(nodes), "`meshd services` and `meshd peers` list them");
    NameError::Unknown { word: word.into(), hint }
}

fn no_node(map: &NetMap, word: &str) -> NameError {
    let hint = hint(word, map.peers.keys().map(ToString::to_string), "`meshd peers` lists them");
    NameError::Node { word: word.into(), hint }
}

/// Says which name may have been meant, or where the names are.
fn hint(word: &str, names: impl Iterator<Item = String>, else_see: &str) -> String {
    let names: Vec<String> = names.collect();
    match nearest_name(word, names.iter().map(String::as_str)) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => format!("; {else_see}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use mesh_proto::base::addr::Flat;
    use mesh_proto::base::id::{NodeId, ServiceId};
    use mesh_proto::model::netmap::{Backend, ServicePort};
    use mesh_proto::packet::{TCP, UDP};

    use super::*;
    use crate::base::state_dir::tests::netmap;

    fn map() -> NetMap {
        let mut map = netmap(1);
        let port = |transport, port| ServicePort { name: None, transport, port, target: port };
        let backend = |node: &str, last| Backend {
            name: None,
            node: node.parse().unwrap(),
            address: Flat([241, 2, 0, last].into()),
            port: None,
            weight: 100,
            tier: 0,
        };
        map.services.insert(
            "cart".parse().unwrap(),
            Service {
                grants: Default::default(),
                id: ServiceId(1),
                vip: Flat([241, 0, 0, 100].into()),
                ports: vec![port(Transport::Tcp, 7070), port(Transport::Udp, 53)],
                backends: vec![backend("other", 1), backend("n1", 2)],
                sticky: false,
                strict: false,
            },
        );
        map
    }

    #[test]
    fn a_caller_is_an_address_a_node_or_a_backend_on_this_node_first() {
        let map = map();
        assert_eq!(source(&map, "10.8.0.10").unwrap(), Ipv4Addr::new(10, 8, 0, 10));
        assert_eq!(source(&map, "host:n1").unwrap(), map.node.address.0);
        assert_eq!(source(&map, "masqueraded:n1").unwrap(), map.mesh.range.second(map.node.address).0);
        assert_eq!(source(&map, "n1").unwrap(), map.node.address.0);
        assert_eq!(source(&map, "cart").unwrap(), Ipv4Addr::new(241, 2, 0, 2));
        assert!(source(&map, "crat").unwrap_err().to_string().contains("did you mean `cart`?"));
        assert!(matches!(source(&map, "host:x"), Err(NameError::Node { .. })));
    }

    #[test]
    fn a_known_name_is_never_answered_by_itself() {
        let mut map = map();
        map.names =
            [("bank".parse().unwrap(), Flat([241, 0, 0, 101].into()))].into_iter().collect::<BTreeMap<_, _>>().into();
        for word in ["bank", "Bank", "bank.", " bank", "bank.default.mesh.internal."] {
            let said = source(&map, word).unwrap_err();
            assert_eq!(said, NameError::Hidden("bank".parse().unwrap()), "{word}");
            assert!(!said.to_string().contains("did you mean"), "{said}");
            assert_eq!(target(&map, word, false).unwrap().address, Ipv4Addr::new(241, 0, 0, 101), "{word}");
        }
        for word in ["N1", "n1.", " n1 ", "host:N1"] {
            assert_eq!(source(&map, word).unwrap(), map.node.address.0, "{word}");
            assert_eq!(resolve(&map, word).unwrap().full_name, "host:n1", "{word}");
            assert!(matches!(peer(&map, word), Err(NameError::Own(_))), "{word}");
        }
    }

    #[test]
    fn another_node_is_found_by_name_and_address_and_what_is_near_is_named() {
        let mut map = map();
        let other = Peer {
            previous: Vec::new(),
            countersigned: None,
            agreement: Vec::new(),
            proof: None,
            id: NodeId(7),
            site: "s".parse().unwrap(),
            address: Flat([241, 1, 0, 7].into()),
            blocks: Vec::new(),
            lanes: Vec::new(),
            endpoints: Vec::new(),
            mtu: 1420,
            guarded: true,
        };
        map.peers.insert("other".parse().unwrap(), other);
        for word in ["other", "host:other", "241.1.0.7"] {
            assert_eq!(peer(&map, word).unwrap().1.id, NodeId(7), "{word}");
        }
        assert_eq!(peer(&map, "host:n1").unwrap_err(), NameError::Own("host:n1".into()));
        let near = peer(&map, "othre").unwrap_err().to_string();
        assert!(near.contains("did you mean `other`?"), "{near}");
        let far = peer(&map, "something").unwrap_err().to_string();
        assert!(far.contains("`meshd peers` lists them"), "{far}");
    }

    #[test]
    fn an_address_is_resolved_to_its_owner() {
        let map = map();
        let service = resolve(&map, "241.0.0.100").unwrap();
        assert_eq!((service.kind, service.full_name.as_str()), ("service", "cart.default.mesh.internal"));
        let node = resolve(&map, &map.node.address.to_string()).unwrap();
        assert_eq!((node.kind, node.full_name.as_str()), ("node", "host:n1"));
        assert!(resolve(&map, "241.0.0.101").is_err());
    }

    #[test]
    fn a_target_has_the_protocol_that_its_port_says() {
        let map = map();
        let vip = Ipv4Addr::new(241, 0, 0, 100);
        for (word, udp, protocol, port) in [
            ("cart", false, TCP, 7070),
            ("cart", true, UDP, 53),
            ("cart:53", false, UDP, 53),
            ("cart.default.mesh.internal:7070", false, TCP, 7070),
            ("cart.mesh.internal.", false, TCP, 7070),
            ("cart:1", false, TCP, 1),
        ] {
            let expected = NamedTarget { address: vip, protocol, port };
            assert_eq!(target(&map, word, udp), Ok(expected), "{word}");
        }
        let own = map.node.address.0;
        let ping = NamedTarget { address: own, protocol: ICMP, port: 0 };
        assert_eq!(target(&map, "host:n1", false), Ok(ping));
        let ssh = NamedTarget { address: own, protocol: TCP, port: 22 };
        assert_eq!(target(&map, "n1:22", false), Ok(ssh));
        assert_eq!(target(&map, "cart:0", false), Err(NameError::Port("0".into())));
    }

    #[test]
    fn a_name_resolves_to_what_dns_says() {
        let map = map();
        let meaning = resolve(&map, "cart.mesh.internal").unwrap();
        assert_eq!(meaning.full_name, "cart.default.mesh.internal");
        assert_eq!(meaning.address, Ipv4Addr::new(241, 0, 0, 100));
        assert_eq!(resolve(&map, "n1").unwrap().kind, "node");
        assert!(resolve(&map, "nothing").is_err());
    }
}
