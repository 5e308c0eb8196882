//! What the node tells the coordinator of itself, and when that changes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_proto::dataplane::engine::NextHop;
use mesh_proto::model::netmap::LaneInfo;
use mesh_proto::services::ServeSpec;
use mesh_proto::wire::{MAX_ENDPOINTS, NodeFacts};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::config::{Config, MTUS};
use crate::keys::lanes::LaneKeys;
use crate::linux::{HostFacts, HostRoute, HostUnderlay, UnderlayEvents};
use crate::node::services_file;

/// What an outer header takes of a packet, in bytes: IPv6, UDP, WireGuard's own and its tag.
const OVERHEAD: u16 = 80;
/// The inner MTU where the underlay's is not known: 1500 less the overhead.
const MTU: u16 = 1420;
/// How long what follows a change is waited for, as the route follows an address, before all is read.
const SETTLE: Duration = Duration::from_millis(50);
/// The least time between two reads, so that a storm of changes costs little.
const PAUSE: Duration = Duration::from_millis(200);

/// Returns the MTU of the mesh interface: what the operator set, or what the underlay leaves.
pub fn mtu(config: &Config, host: &HostUnderlay) -> u16 {
    match (config.mtu, host.mtu) {
        (Some(mtu), _) => mtu,
        (None, 0) => MTU,
        (None, underlay) => underlay.saturating_sub(OVERHEAD).clamp(*MTUS.start(), *MTUS.end()),
    }
}

/// Gathers what the coordinator is told.
pub fn gather(config: &Config, keys: &LaneKeys, host: &HostUnderlay, serve: &[ServeSpec], guarded: bool) -> NodeFacts {
    let lane = |(key, port)| LaneInfo { key, port };
    let own = host.addresses.iter().map(|&ip| SocketAddr::new(ip, config.port));
    let mut endpoints = config.endpoints.clone();
    if endpoints.is_empty() {
        endpoints.extend(own);
        endpoints.truncate(MAX_ENDPOINTS);
    }
    NodeFacts {
        lanes: keys.publics().into_iter().zip(config.port..).map(lane).collect(),
        previous: keys.former_publics().into_iter().zip(config.port..).map(lane).collect(),
        agreement: if config.keys.preshared { keys.agreement_publics() } else { Vec::new() },
        endpoints,
        pods: config.pods.clone(),
        serve: services_file::offers(serve),
        mtu: mtu(config, host),
        guarded,
        software: env!("CARGO_PKG_VERSION").into(),
        ..NodeFacts::default()
    }
}

/// Returns the host's own IPv4 addresses, which tunnels must not lead to.
pub fn locals(host: &HostUnderlay) -> Vec<Ipv4Addr> {
    let v4 = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    };
    host.addresses.iter().filter_map(v4).collect()
}

/// Returns the routers that this host knows for what is not on its own links; default routes are none of them.
pub fn next_hops(host: &HostFacts) -> Vec<NextHop> {
    let hop = |route: &HostRoute| route.gateway.map(|router| NextHop { to: route.destination, router });
    host.routes.iter().filter_map(hop).collect()
}

/// Sends a word whenever addresses, interfaces or routes of the host changed, until nobody listens; a few each second at
/// most, whatever happens. The first comes at once, for what changed before anybody listened.
pub async fn changes(tell: mpsc::Sender<()>) {
    let events = match UnderlayEvents::open() {
        Ok(events) => events,
        Err(error) => {
            tracing::warn!(%error, "changes of addresses and interfaces are not noticed");
            return;
        }
    };
    while tell.send(()).await.is_ok() {
        sleep(PAUSE).await;
        events.wait().await;
        sleep(SETTLE).await;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use x25519_dalek::StaticSecret;

    use super::*;

    #[test]
    fn the_inner_mtu_leaves_room_for_the_outer_header() {
        for (underlay, inner) in [(0, 1420), (1500, 1420), (9001, 8920), (65535, 8920), (600, 576)] {
            let host = HostUnderlay { mtu: underlay, ..HostUnderlay::default() };
            assert_eq!(mtu(&Config::default(), &host), inner);
            assert_eq!(mtu(&Config { mtu: Some(1300), ..Config::default() }, &host), 1300);
        }
    }

    #[test]
    fn own_addresses_are_endpoints_unless_the_operator_names_others() {
        let keys = LaneKeys::derive(&StaticSecret::from([1; 32]), 2);
        let host = HostUnderlay {
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            ..HostUnderlay::default()
        };
        let mut config = Config { port: 5000, ..Config::default() };
        let facts = gather(&config, &keys, &host, &[], true);
        let expected: [SocketAddr; 2] = ["192.0.2.1:5000".parse().unwrap(), "[2001:db8::1]:5000".parse().unwrap()];
        assert_eq!(facts.endpoints, expected);
        assert_eq!(facts.lanes.iter().map(|l| l.port).collect::<Vec<_>>(), [5000, 5001]);

        config.endpoints = vec!["198.51.100.7:1".parse().unwrap()];
        assert_eq!(gather(&config, &keys, &host, &[], true).endpoints, config.endpoints);
        assert_eq!(locals(&host), [Ipv4Addr::new(192, 0, 2, 1)]);
    }
}
