//! What stands in the way of mesh packets on this host, each with the command that mends it.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use mesh_proto::base::addr::overlap;
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::error::KernelError;
use super::route::{self, Routes};
use super::{forward, guards};
use crate::linux::shape::{Obstacle, RULE_PRIORITY, Shape, TABLE};

/// The kernel's table of local addresses, which comes first everywhere.
const LOCAL: u32 = 255;

/// Finds all of them. What cannot be examined is told like an obstacle.
pub(super) async fn find(shape: &Shape) -> Vec<Obstacle> {
    let mut found: Vec<Obstacle> = guards::inspect(shape).missing.into_iter().map(Obstacle::plain).collect();
    match rules(shape).await {
        Ok(obstacles) => found.extend(obstacles),
        Err(error) => found.push(Obstacle::plain(format!("cannot examine the ip rules: {error}"))),
    }
    // Without nftables there is nothing to examine, which the guards have said already.
    found.extend(forward::obstacles(shape).unwrap_or_default());
    found.extend(forwarding(shape));
    found
}

impl Obstacle {
    fn plain(sentence: String) -> Self {
        Self { sentence, command: String::new() }
    }
}

async fn rules(shape: &Shape) -> Result<Vec<Obstacle>, KernelError> {
    let routes = Routes::open()?;
    for rule in routes.rules().await? {
        if leads_into_the_mesh(&rule, shape) || priority(&rule) > RULE_PRIORITY {
            break;
        }
        if catches(&routes, &rule, shape).await? {
            return Ok(vec![caught_by(&rule, shape)]);
        }
    }
    Ok(reverse_path(&routes, shape).await?.into_iter().collect())
}

/// Says whether a rule leads the whole range to our table, ours or one that an operator put before others.
fn leads_into_the_mesh(rule: &RuleMessage, shape: &Shape) -> bool {
    table(rule) == Some(TABLE)
        && rule.header.src_len == 0
        && input(rule).is_none()
        && mark(rule).is_none()
        && to(rule).is_none_or(|net| net.contains(&shape.range.net()))
}

async fn catches(routes: &Routes, rule: &RuleMessage, shape: &Shape) -> Result<bool, KernelError> {
    let inverted = rule.header.flags.contains(RuleFlags::Invert);
    let elsewhere = to(rule).is_some_and(|net| !overlap(net, shape.range.net()))
        || from(rule).is_some_and(|net| !sends(shape, net))
        || input(rule).is_some_and(|name| name == shape.interface);
    // Marked packets and those bound to an interface know where they want to go.
    let special = mark(rule).is_some() || has_output(rule);
    if (elsewhere && !inverted) || special {
        return Ok(false);
    }
    let action = rule.header.action;
    if action != RuleAction::ToTable {
        // `goto` leads past our rule; `unreachable` and its like end here.
        return Ok(!matches!(action, RuleAction::Nop | RuleAction::Unspec));
    }
    let Some(table) = table(rule).filter(|&table| table != LOCAL) else { return Ok(false) };
    let suppressed = suppressed(rule);
    let routes = routes.table(table).await?;
    Ok(routes.iter().any(|route| takes(route, shape, suppressed)))
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

fn caught_by(rule: &RuleMessage, shape: &Shape) -> Obstacle {
    let priority = priority(rule);
    let range = shape.range;
    let selector = from(rule).map_or_else(|| "all".to_owned(), |net| net.to_string());
    let target = table(rule).map_or_else(|| "no table".to_owned(), |table| format!("table {table}"));
    Obstacle {
        sentence: format!(
            "the ip rule of priority {priority} (from {selector}, {target}) comes before meshd's ({RULE_PRIORITY}) and takes packets for the mesh range {range}"
        ),
        command: match priority.checked_sub(1) {
            Some(before) => format!("ip rule add pref {before} to {range} lookup {TABLE}"),
            None => format!("ip rule del pref 0 from {selector}"),
        },
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
    Ok(Some(Obstacle {
        sentence: format!("packets for the mesh do not take `{name}`{consequence}"),
        command: format!("ip route get {vip}"),
    }))
}

/// Forwarding must be on where there are pods.
fn forwarding(shape: &Shape) -> Option<Obstacle> {
    if shape.pods.is_empty() {
        return None;
    }
    if sysctl("ip_forward") == Some(0) {
        return Some(Obstacle {
            sentence:
                "this host does not forward packets (net.ipv4.ip_forward is 0), so that its pods cannot use the mesh"
                    .to_owned(),
            command: "sysctl -w net.ipv4.ip_forward=1".to_owned(),
        });
    }
    let name = &shape.interface;
    (sysctl(&format!("conf/{name}/forwarding")) == Some(0)).then(|| Obstacle {
        sentence: format!("`{name}` does not forward packets, so that pods cannot use the mesh"),
        command: format!("sysctl -w net.ipv4.conf.{name}.forwarding=1"),
    })
}

/// Reads a number below /proc/sys/net/ipv4, of the network namespace of the calling thread.
fn sysctl(path: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{path}")).ok()?;
    text.trim().parse().ok()
}

fn priority(rule: &RuleMessage) -> u32 {
    let priority = rule
        .attributes
        .iter()
        .find_map(|attribute| if let RuleAttribute::Priority(priority) = attribute { Some(*priority) } else { None });
    priority.unwrap_or(0)
}

fn table(rule: &RuleMessage) -> Option<u32> {
    if rule.header.action != RuleAction::ToTable {
        return None;
    }
    let table = rule
        .attributes
        .iter()
        .find_map(|attribute| if let RuleAttribute::Table(table) = attribute { Some(*table) } else { None });
    Some(table.unwrap_or_else(|| u32::from(rule.header.table)))
}

fn to(rule: &RuleMessage) -> Option<Ipv4Net> {
    rule.attributes.iter().find_map(|attribute| {
        if let RuleAttribute::Destination(IpAddr::V4(net)) = attribute {
            Ipv4Net::new(*net, rule.header.dst_len).ok()
        } else {
            None
        }
    })
}

fn from(rule: &RuleMessage) -> Option<Ipv4Net> {
    rule.attributes.iter().find_map(|attribute| {
        if let RuleAttribute::Source(IpAddr::V4(net)) = attribute {
            Ipv4Net::new(*net, rule.header.src_len).ok()
        } else {
            None
        }
    })
}

fn input(rule: &RuleMessage) -> Option<&str> {
    rule.attributes
        .iter()
        .find_map(|attribute| if let RuleAttribute::Iifname(name) = attribute { Some(name.as_str()) } else { None })
}

fn has_output(rule: &RuleMessage) -> bool {
    rule.attributes.iter().any(|attribute| matches!(attribute, RuleAttribute::Oifname(_) | RuleAttribute::L3MDev(true)))
}

fn mark(rule: &RuleMessage) -> Option<u32> {
    rule.attributes
        .iter()
        .find_map(|attribute| if let RuleAttribute::FwMark(mark) = attribute { Some(*mark) } else { None })
        .filter(|&mark| mark != 0)
}

fn suppressed(rule: &RuleMessage) -> Option<u32> {
    rule.attributes
        .iter()
        .find_map(
            |attribute| if let RuleAttribute::SuppressPrefixLen(length) = attribute { Some(*length) } else { None },
        )
        .filter(|&length| length != u32::MAX)
}
