//! What stands in the way of mesh packets on this host, each with the command that mends it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::overlap;
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleFlags};

use super::error::KernelError;
use super::ip_rule::IpRule;
use super::route::{self, Routes};
use super::{forward, guards, input, marked_route, names, nft, pod_interfaces};
use crate::linux::shape::{HostPart, Obstacle, RULE_PRIORITY, Shape};

/// The kernel's table of local addresses, which comes first everywhere.
const LOCAL: u32 = 255;

/// Finds all of them. What cannot be examined is told like an obstacle.
pub(super) async fn find(shape: &Shape, part: &HostPart) -> Vec<Obstacle> {
    let mut found: Vec<Obstacle> = match guards(shape).await {
        Ok(missing) => missing.into_iter().map(Obstacle::plain).collect(),
        Err(error) => vec![Obstacle::plain(format!("cannot examine the guards: {error}"))],
    };
    match open(shape, found.is_empty()).await {
        Ok(obstacle) => found.extend(obstacle),
        Err(error) => found.push(Obstacle::plain(format!("cannot examine the routes of the mesh range: {error}"))),
    }
    match rules(shape).await {
        Ok(obstacles) => found.extend(obstacles),
        Err(error) => found.push(Obstacle::plain(format!("cannot examine the ip rules: {error}"))),
    }
    // Without nftables there is nothing to examine, which the guards have said already. A Kubernetes node has many chains.
    let is_asked = !shape.pods.is_empty() || !part.served.is_empty();
    let chains = if is_asked { nft::chains().unwrap_or_default() } else { Vec::new() };
    found.extend(forward::obstacles(shape, &chains).unwrap_or_default());
    found.extend(forwarding(shape));
    found.extend(input::obstacles(shape, part, &chains).await.unwrap_or_default());
    match marked_route::obstacle(shape, part).await {
        Ok(obstacle) => found.extend(obstacle),
        Err(error) => found.push(Obstacle::plain(format!("cannot examine the way of the tunnel's packets: {error}"))),
    }
    found
}

async fn guards(shape: &Shape) -> Result<Vec<String>, KernelError> {
    let shape = pod_interfaces::found(&Routes::open()?, shape).await;
    Ok(guards::inspect(&shape).missing)
}

impl Obstacle {
    fn plain(sentence: String) -> Self {
        Self::new(sentence, "")
    }
}

/// Says whether the rule or the route is missing that closes the range: a running daemon puts them back, nobody else does.
async fn open(shape: &Shape, is_guarded: bool) -> Result<Option<Obstacle>, KernelError> {
    let routes = Routes::open()?;
    let has_rule = routes.rules().await?.iter().any(|rule| leads_into_the_mesh(&IpRule::read(rule), shape));
    let is_last = |route: &RouteMessage| {
        route.header.kind == RouteType::Unreachable && route::destination(route) == shape.range.net()
    };
    if has_rule && routes.table(names::table(shape.range)).await?.iter().any(is_last) {
        return Ok(None);
    }
    let (range, table) = (shape.range, names::nft_table(shape.range));
    let sentence = match is_guarded {
        true => format!(
            "the ip rule or the unreachable route of the mesh range {range} is missing; the nftables table `ip {table}` alone keeps its packets from leaving in clear"
        ),
        false => format!(
            "nothing keeps packets for the mesh range {range} from leaving this host in clear: rule and route, and the nftables table `ip {table}`, are missing"
        ),
    };
    Ok(Some(Obstacle::new(sentence, "meshd guard").safe()))
}

async fn rules(shape: &Shape) -> Result<Vec<Obstacle>, KernelError> {
    let routes = Routes::open()?;
    for rule in &routes.rules().await? {
        let rule = IpRule::read(rule);
        if leads_into_the_mesh(&rule, shape) || rule.priority > RULE_PRIORITY {
            break;
        }
        if catches(&routes, &rule, shape).await? {
            return Ok(vec![caught_by(&rule, shape)]);
        }
    }
    Ok(reverse_path(&routes, shape).await?.into_iter().collect())
}

/// Says whether a rule leads the whole range to our table, ours or one that an operator put before others.
fn leads_into_the_mesh(rule: &IpRule<'_>, shape: &Shape) -> bool {
    rule.table() == Some(names::table(shape.range))
        && rule.header.src_len == 0
        && rule.input.is_none()
        && rule.mark == 0
        && rule.to.is_none_or(|net| net.contains(&shape.range.net()))
}

async fn catches(routes: &Routes, rule: &IpRule<'_>, shape: &Shape) -> Result<bool, KernelError> {
    let inverted = rule.header.flags.contains(RuleFlags::Invert);
    let elsewhere = rule.to.is_some_and(|net| !overlap(net, shape.range.net()))
        || rule.from.is_some_and(|net| !sends(shape, net))
        || rule.input.is_some_and(|name| name == shape.interface);
    // Marked packets and those bound to an interface know where they want to go; all but those of a mark are everybody's.
    let special = (rule.mark != 0 && !inverted) || rule.has_output;
    if (elsewhere && !inverted) || special {
        return Ok(false);
    }
    let action = rule.header.action;
    if action != RuleAction::ToTable {
        // `goto` leads past our rule; `unreachable` and its like end here.
        return Ok(!matches!(action, RuleAction::Nop | RuleAction::Unspec));
    }
    let Some(table) = rule.table().filter(|&table| table != LOCAL) else { return Ok(false) };
    let routes = routes.table(table).await?;
    Ok(routes.iter().any(|route| takes(route, shape, rule.suppressed)))
}

/// Says whether a route of another table would take mesh packets.
fn takes(route: &RouteMessage, shape: &Shape, suppressed: Option<u32>) -> bool {
    let destination = route::destination(route);
    let short = suppressed.is_some_and(|most| u32::from(destination.prefix_len()) <= most);
    !short && route.header.kind != RouteType::Throw && overlap(destination, shape.range.net())
}

fn sends(shape: &Shape, from: Ipv4Net) -> bool {
    from.contains(&shape.address.0) || shape.pods.iter().any(|&pods| overlap(pods, from))
}

fn caught_by(rule: &IpRule<'_>, shape: &Shape) -> Obstacle {
    let (priority, range) = (rule.priority, shape.range);
    let selector = rule.from.map_or_else(|| "all".to_owned(), |net| net.to_string());
    let target = rule.table().map_or_else(|| "no table".to_owned(), |table| format!("table {table}"));
    let sentence = format!(
        "the ip rule of priority {priority} (from {selector}, {target}) comes before meshd's ({RULE_PRIORITY}) and takes packets for the mesh range {range}"
    );
    match priority.checked_sub(1) {
        Some(before) => {
            let command = format!("ip rule add pref {before} to {range} lookup {}", names::table(range));
            Obstacle::new(sentence, command).safe()
        }
        None => Obstacle::new(sentence, format!("ip rule del pref 0 from {selector}")),
    }
}

/// Asks the kernel itself which way a VIP goes: what arrives from the mesh is dropped by a strict reverse
/// path filter if the way back is another.
async fn reverse_path(routes: &Routes, shape: &Shape) -> Result<Option<Obstacle>, KernelError> {
    let Some(link) = routes.link(&shape.interface).await?.filter(|link| link.up) else { return Ok(None) };
    let vip = Ipv4Addr::from(u32::from(shape.range.vips().network()) | 1);
    let way = routes.lookup(vip.into()).await;
    if way.as_ref().and_then(route::output) == Some(link.index) {
        return Ok(None);
    }
    let name = &link.name;
    let strict = [sysctl("conf/all/rp_filter"), sysctl(&format!("conf/{name}/rp_filter"))];
    let strict = strict.into_iter().flatten().max() == Some(1);
    let consequence =
        if strict { ", and the strict reverse path filter (rp_filter) drops what arrives from it" } else { "" };
    let sentence = format!("packets for the mesh do not take `{name}`{consequence}");
    Ok(Some(Obstacle::new(sentence, format!("ip route get {vip}"))))
}

/// Forwarding must be on where there are pods.
pub(super) fn forwarding(shape: &Shape) -> Option<Obstacle> {
    if shape.pods.is_empty() {
        return None;
    }
    if sysctl("ip_forward") == Some(0) {
        return Some(Obstacle::new(
            "this host does not forward packets (net.ipv4.ip_forward is 0), so that its pods cannot use the mesh",
            "sysctl -w net.ipv4.ip_forward=1",
        ));
    }
    let name = &shape.interface;
    (sysctl(&format!("conf/{name}/forwarding")) == Some(0)).then(|| {
        let sentence = format!("`{name}` does not forward packets, so that pods cannot use the mesh");
        Obstacle::new(sentence, format!("sysctl -w net/ipv4/conf/{name}/forwarding=1")).safe()
    })
}

/// Reads a number below /proc/sys/net/ipv4, of the network namespace of the calling thread.
fn sysctl(path: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{path}")).ok()?;
    text.trim().parse().ok()
}
