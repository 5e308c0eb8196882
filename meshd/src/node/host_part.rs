//! What of the mesh this node's host itself takes part in, as a map tells it.

use std::net::IpAddr;

use mesh_proto::model::netmap::{Backend, NetMap};

use crate::config::Config;
use crate::linux::{HostPart, MAX_CALLED, MAX_SERVED};

/// Reads which ports of this host the mesh calls, and where this host calls its peers; of both the first.
pub(crate) fn host_part(config: &Config, map: &NetMap) -> HostPart {
    let own = &map.node;
    let ports = map.services.values().flat_map(|service| {
        let here = |backend: &&Backend| backend.node == own.name && backend.address == own.address;
        let backends = service.backends.iter().filter(here);
        backends.flat_map(|backend| service.ports.iter().map(|port| (port.transport.number(), backend.target(port))))
    });
    let called = map.peers.values().filter_map(|peer| {
        peer.endpoints.iter().find_map(|endpoint| match endpoint.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    });
    HostPart {
        served: ports.take(MAX_SERVED).collect(),
        answers_names: config.dns.enabled,
        called: called.take(MAX_CALLED).collect(),
    }
}
