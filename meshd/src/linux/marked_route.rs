//! Whether the tunnel's own packets leave by another tunnel, or by the mesh interface itself: a VPN that takes the default
//! route takes them as well, unless a rule knows their mark.

use std::net::Ipv4Addr;

use netlink_packet_route::link::InfoKind;
use netlink_packet_route::route::{RouteMessage, RouteType};

use super::error::KernelError;
use super::input::is_plain;
use super::ip_rule::IpRule;
use super::route::{self, Link, Routes};
use crate::linux::shape::{HostPart, MARK, Obstacle, RULE_PRIORITY, Shape};

/// The kernel's main table.
const MAIN: u32 = 254;
/// A route to a half of all addresses is as good as a default route (OpenVPN's `redirect-gateway def1`).
const HALF: u8 = 1;

/// Finds a default route that takes the tunnel's packets to a peer into another tunnel, although the host has a default
/// route of its own. A host that has none but a tunnel's is taken to want it so, and a route to less than half of all
/// addresses, too.
pub(super) async fn obstacle(shape: &Shape, part: &HostPart) -> Result<Option<Obstacle>, KernelError> {
    if part.called.is_empty() {
        return Ok(None);
    }
    let routes = Routes::open()?;
    for &address in &part.called {
        let Some(way) = routes.entry(address, MARK).await else { continue };
        if route::destination(&way).prefix_len() > HALF {
            continue;
        }
        let Some(link) = link_of(&routes, &way).await? else { continue };
        if link.name != shape.interface && !is_tunnel(&link) {
            continue;
        }
        let Some(command) = command(&routes, shape, address, &way).await? else { continue };
        let sentence = format!(
            "the default route into `{}` (table {}) takes this node's own tunnel packets, such as those to the peer at {address}, into another tunnel",
            link.name,
            route::table_of(&way)
        );
        return Ok(Some(Obstacle::new(sentence, command).named("marked-route").safe()));
    }
    Ok(None)
}

/// Says how packets with our mark get the host's own default route; `None` if it has none.
async fn command(
    routes: &Routes,
    shape: &Shape,
    to: Ipv4Addr,
    way: &RouteMessage,
) -> Result<Option<String>, KernelError> {
    let rules = routes.rules().await?;
    let taking = rules.iter().map(IpRule::read).find(|rule| rule.table() == Some(route::table_of(way)));
    let before = |number: u32| taking.as_ref().map_or(number, |rule| rule.priority.saturating_sub(1).min(number));
    let main = routes.table(MAIN).await?;
    let mut covering: Vec<&RouteMessage> =
        main.iter().filter(|route| route::destination(route).contains(&to)).collect();
    covering.sort_by_key(|route| std::cmp::Reverse(route::destination(route).prefix_len()));
    // The main table itself knows another way.
    if let Some(first) = covering.first()
        && is_own(routes, shape, first).await?
    {
        return Ok(Some(format!("ip rule add pref {} fwmark {MARK:#x} lookup main", before(RULE_PRIORITY - 1))));
    }
    for route in covering {
        let Some(gateway) = route::gateway(route).filter(|_| route::destination(route).prefix_len() == 0) else {
            continue;
        };
        if !is_own(routes, shape, route).await? {
            continue;
        }
        // Its name stands in a command.
        let Some(link) = link_of(routes, route).await?.filter(|link| is_plain(&link.name)) else { continue };
        let (last, name) = (before(RULE_PRIORITY - 1), &link.name);
        let first = last.saturating_sub(1);
        return Ok(Some(format!(
            "ip route replace default via {gateway} dev {name} table {MARK} && ip rule add pref {first} fwmark {MARK:#x} lookup main suppress_prefixlength {HALF} && ip rule add pref {last} fwmark {MARK:#x} lookup {MARK}"
        )));
    }
    Ok(None)
}

/// Says whether a route leads out by an interface of this host that is no tunnel.
async fn is_own(routes: &Routes, shape: &Shape, route: &RouteMessage) -> Result<bool, KernelError> {
    if route.header.kind != RouteType::Unicast {
        return Ok(false);
    }
    let link = link_of(routes, route).await?;
    Ok(link.is_some_and(|link| link.up && link.name != shape.interface && !is_tunnel(&link)))
}

async fn link_of(routes: &Routes, route: &RouteMessage) -> Result<Option<Link>, KernelError> {
    match route::output(route) {
        Some(index) => routes.link_at(index).await,
        None => Ok(None),
    }
}

fn is_tunnel(link: &Link) -> bool {
    let kinds = [
        InfoKind::Tun,
        InfoKind::Wireguard,
        InfoKind::IpIp,
        InfoKind::SitTun,
        InfoKind::GreTun,
        InfoKind::Vti,
        InfoKind::Xfrm,
    ];
    link.kind.as_ref().is_some_and(|kind| kinds.contains(kind))
}
