//! What the node tells the coordinator of itself, and when that changes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use mesh_proto::dataplane::engine::NextHop;
use mesh_proto::model::netmap::LaneInfo;
use mesh_proto::services::ServeSpec;
use mesh_proto::wire::{MAX_ENDPOINTS, NodeFacts};
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::keys::lanes::LaneKeys;
use crate::linux::{HostFacts, HostRoute};
use crate::node::services_file;

/// What an outer header takes of a packet, in bytes: IPv6, UDP, WireGuard's own and its tag.
const OVERHEAD: u16 = 80;
/// The inner MTU where the underlay's is not known: 1500 less the overhead.
const MTU: u16 = 1420;
/// The least inner MTU that every IPv4 host must take.
const MIN_MTU: u16 = 576;
/// The most: jumbo frames less the overhead. Loopback's 65536 would only make fragments elsewhere.
const MAX_MTU: u16 = 8920;
/// How long addresses must be quiet before they are read again.
const SETTLE: Duration = Duration::from_millis(200);

/// Returns the MTU of the mesh interface.
pub fn mtu(host: &HostFacts) -> u16 {
    match host.mtu {
        0 => MTU,
        underlay => underlay.saturating_sub(OVERHEAD).clamp(MIN_MTU, MAX_MTU),
    }
}

/// Gathers what the coordinator is told.
pub fn gather(config: &Config, keys: &LaneKeys, host: &HostFacts, serve: &[ServeSpec], guarded: bool) -> NodeFacts {
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
        mtu: mtu(host),
        guarded,
        software: env!("CARGO_PKG_VERSION").into(),
        ..NodeFacts::default()
    }
}

/// Returns the host's own IPv4 addresses, which tunnels must not lead to.
pub fn locals(host: &HostFacts) -> Vec<Ipv4Addr> {
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

/// Sends a word whenever the host's addresses changed and settled, until nobody listens.
pub async fn address_changes(tell: mpsc::Sender<()>) {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _handle, mut messages) = match rtnetlink::new_multicast_connection(&groups) {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(%error, "address changes are not noticed");
            return;
        }
    };
    let connection = tokio::spawn(connection);
    while messages.next().await.is_some() {
        while let Ok(Some(_)) = timeout(SETTLE, messages.next()).await {}
        if tell.send(()).await.is_err() {
            break;
        }
        sleep(SETTLE).await;
    }
    connection.abort();
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use x25519_dalek::StaticSecret;

    use super::*;

    #[test]
    fn the_inner_mtu_leaves_room_for_the_outer_header() {
        for (underlay, inner) in [(0, 1420), (1500, 1420), (9001, 8920), (65535, 8920), (600, 576)] {
            let host = HostFacts { mtu: underlay, ..HostFacts::default() };
            assert_eq!(mtu(&host), inner);
        }
    }

    #[test]
    fn own_addresses_are_endpoints_unless_the_operator_names_others() {
        let keys = LaneKeys::derive(&StaticSecret::from([1; 32]), 2);
        let host = HostFacts {
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            ..HostFacts::default()
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
