//! What this host knows of its own network: addresses that peers may reach it at, its routes, its MTU, and when that
//! changes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use mesh_proto::base::addr::{MeshRange, overlap};
use mesh_proto::wire::MAX_ENDPOINTS;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::route::RouteType;
use rtnetlink::MulticastGroup;

use super::error::KernelError;
use super::events::Events;
use super::route::{self, Link, PROTOCOL, Routes};

/// Most routes that are looked at for a collision; a host with a full table of the Internet has a million.
pub const MAX_ROUTES: usize = 100_000;
/// Addresses that no host has (RFC 7600 dummy, RFC 6666 discard): looked up, never sent to, they tell where
/// the default routes lead.
const NOWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const NOWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

/// A route of this host, for the check whether the mesh range is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// Where it leads to.
    pub destination: Ipv4Net,
    /// The interface it uses; empty for a route without one.
    pub interface: String,
    /// Its routing table.
    pub table: u32,
    /// The router that it leads to; none for what is on the interface's own link.
    pub gateway: Option<Ipv4Addr>,
}

/// What lies beneath the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostUnderlay {
    /// Addresses that peers may reach this host at, the likeliest first; at most `MAX_ENDPOINTS`.
    pub addresses: Vec<IpAddr>,
    /// All addresses that it has, by which it may be spoken to or not; empty if that is not known.
    pub own: BTreeSet<IpAddr>,
    /// The least MTU of the interfaces of the default routes, or else of those with such an address; in bytes, 0 if there
    /// is none.
    pub mtu: u16,
}

/// What this host knows of its own network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// What lies beneath the tunnel.
    pub underlay: HostUnderlay,
    /// Its IPv4 routes without default routes and our own; at most `MAX_ROUTES`.
    pub routes: Vec<HostRoute>,
}

impl HostFacts {
    /// Says which route of this host overlaps a mesh range, in a sentence that names it.
    pub fn collision(&self, range: MeshRange) -> Option<String> {
        // A route to a half of all addresses is as good as a default route, which is nobody's network.
        let is_network = |route: &HostRoute| route.destination.prefix_len() > 1;
        let overlapping = |route: &&HostRoute| is_network(route) && overlap(route.destination, range.net());
        let route = self.routes.iter().find(overlapping)?;
        let HostRoute { destination, interface, table, .. } = route;
        Some(format!(
            "the mesh range {range} overlaps this host's route to {destination} (interface `{interface}`, table {table}); choose another range with `[mesh] v4` before the first join"
        ))
    }
}

/// Where the default routes lead.
#[derive(Debug, Default)]
struct DefaultRoutes {
    interfaces: Vec<u32>,
    sources: Vec<IpAddr>,
}

/// The kernel's word that addresses, interfaces or routes changed.
pub struct UnderlayEvents(Events);

impl UnderlayEvents {
    /// Begins to listen, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// `KernelError` if no netlink socket can be opened.
    pub fn open() -> Result<Self, KernelError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        Events::open(&groups).map(Self).map_err(|error| KernelError::Socket(error.to_string()))
    }

    /// Waits for a change, and forgets it with those that came meanwhile.
    pub async fn wait(&self) {
        self.0.wait().await;
    }
}

/// Reads what lies beneath the tunnel, in the network namespace of the calling thread.
pub(super) async fn read_underlay() -> Result<HostUnderlay, KernelError> {
    let routes = Routes::open()?;
    let (links, own) = (routes.links().await?, own_interfaces(&routes).await?);
    underlay(&routes, &links, &own).await
}

async fn underlay(routes: &Routes, links: &[Link], own: &BTreeSet<u32>) -> Result<HostUnderlay, KernelError> {
    let default = default_routes(routes).await;
    let addresses = routes.addresses(None).await?;
    let candidates = candidates(&addresses, links, own, &default);
    let carries = |message: &&AddressMessage| address(message).is_some_and(|address| candidates.contains(&address));
    let carrying = addresses.iter().filter(carries).map(|message| message.header.index).collect();
    Ok(HostUnderlay {
        own: addresses.iter().filter_map(address).collect(),
        mtu: underlay_mtu(links, &default, &carrying),
        addresses: candidates,
    })
}

/// Reads all of it in the network namespace of the calling thread.
pub(super) async fn read() -> Result<HostFacts, KernelError> {
    let routes = Routes::open()?;
    let (links, own) = (routes.links().await?, own_interfaces(&routes).await?);
    let underlay = underlay(&routes, &links, &own).await?;
    Ok(HostFacts { underlay, routes: host_routes(&routes, &links, &own).await? })
}

async fn own_interfaces(routes: &Routes) -> Result<BTreeSet<u32>, KernelError> {
    let ours = routes.all_own_routes().await?;
    Ok(ours.iter().filter_map(|(_, route)| route::output(route)).collect())
}

async fn default_routes(routes: &Routes) -> DefaultRoutes {
    let mut default = DefaultRoutes::default();
    for nowhere in [IpAddr::V4(NOWHERE_V4), IpAddr::V6(NOWHERE_V6)] {
        if let Some(route) = routes.lookup(nowhere).await {
            default.interfaces.extend(route::output(&route));
            default.sources.extend(route::preferred_source(&route));
        }
    }
    default
}

/// Orders the addresses: the default route's sources, then those of its interfaces, then the others; IPv4
/// before IPv6. Interfaces that lead to pods or tunnels are left out, unless there is nothing else.
fn candidates(
    addresses: &[AddressMessage],
    links: &[Link],
    own: &BTreeSet<u32>,
    default: &DefaultRoutes,
) -> Vec<IpAddr> {
    let mut ranked: Vec<(u8, IpAddr)> = Vec::new();
    for message in addresses {
        let index = message.header.index;
        let Some(link) = links.iter().find(|link| link.index == index) else { continue };
        let Some(address) = usable(message) else { continue };
        if !link.up || own.contains(&index) || ranked.iter().any(|&(_, a)| a == address) {
            continue;
        }
        let rank = if default.sources.contains(&address) {
            0
        } else if default.interfaces.contains(&index) {
            1
        } else if leads_inward(link) {
            3
        } else {
            2
        };
        ranked.push((rank, address));
    }
    let best = ranked.iter().map(|&(rank, _)| rank).min().unwrap_or(0);
    ranked.retain(|&(rank, _)| rank < 3 || best == 3);
    ranked.sort_by_key(|&(rank, address)| (rank, address.is_ipv6()));
    ranked.into_iter().map(|(_, address)| address).take(MAX_ENDPOINTS).collect()
}

fn usable(message: &AddressMessage) -> Option<IpAddr> {
    let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Deprecated | AddressHeaderFlags::Dadfailed;
    if message.header.flags.intersects(unusable) || message.header.scope == AddressScope::Host {
        return None;
    }
    // A secondary IPv6 address is a temporary one (RFC 8981), gone within a day.
    let secondary = message.header.flags.contains(AddressHeaderFlags::Secondary);
    if secondary && message.header.family == AddressFamily::Inet6 {
        return None;
    }
    address(message).filter(|address| match address {
        IpAddr::V4(a) => !(a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_unspecified()),
        IpAddr::V6(a) => !(a.is_loopback() || a.is_unicast_link_local() || a.is_multicast() || a.is_unspecified()),
    })
}

fn address(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(address) = attribute {
            // On a point-to-point link `Address` is the other end.
            return Some(*address);
        } else if let AddressAttribute::Address(address) = attribute {
            found = Some(*address);
        }
    }
    found
}

/// Says whether an interface is of a kind that leads to pods, or into another tunnel.
fn leads_inward(link: &Link) -> bool {
    let Some(kind) = &link.kind else { return false };
    [
        InfoKind::Bridge,
        InfoKind::Dummy,
        InfoKind::Tun,
        InfoKind::Vxlan,
        InfoKind::Geneve,
        InfoKind::IpIp,
        InfoKind::SitTun,
        InfoKind::GreTun,
        InfoKind::GreTap,
        InfoKind::Wireguard,
    ]
    .contains(kind)
}

async fn host_routes(routes: &Routes, links: &[Link], own: &BTreeSet<u32>) -> Result<Vec<HostRoute>, KernelError> {
    let mut found = Vec::new();
    for route in routes.routes(None, MAX_ROUTES).await? {
        let destination = route::destination(&route);
        let output = route::output(&route);
        let ours = route.header.protocol == PROTOCOL || output.is_some_and(|index| own.contains(&index));
        let inert = matches!(route.header.kind, RouteType::Broadcast | RouteType::Multicast);
        if ours || inert || destination.prefix_len() == 0 {
            continue;
        }
        let link = links.iter().find(|link| Some(link.index) == output);
        found.push(HostRoute {
            destination,
            interface: link.map(|link| link.name.clone()).unwrap_or_default(),
            table: route::table_of(&route),
            gateway: route::gateway(&route),
        });
    }
    Ok(found)
}

fn underlay_mtu(links: &[Link], default: &DefaultRoutes, carrying: &BTreeSet<u32>) -> u16 {
    let least = |uses: &dyn Fn(u32) -> bool| links.iter().filter(|link| uses(link.index)).map(|link| link.mtu).min();
    let mtu = least(&|index| default.interfaces.contains(&index)).or_else(|| least(&|index| carrying.contains(&index)));
    mtu.map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
}
