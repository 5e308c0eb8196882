//! Whether a host's own INPUT rules let in what the mesh brings to the host itself, and its INPUT and OUTPUT rules the
//! tunnel's own packets. Only what is certain is told: a rule that cannot be known, and may accept, is taken to do so.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use super::error::KernelError;
use super::guards;
use super::nft::{self, Chain, Family, Hook};
use super::route::{self, Link, Routes};
use super::ruleset::{Packet, Ruleset};
use crate::linux::shape::{HostPart, Obstacle, Shape};

const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS_PORT: u16 = 53;
/// Most ports that one sentence names.
const MAX_NAMED: usize = 5;

/// A chain of somebody else, as it is shown and written to. Its names may hold anything: only plain ones go into a command.
struct Place<'a> {
    chain: &'a Chain,
    is_plain: bool,
}

impl<'a> Place<'a> {
    fn of(chain: &'a Chain) -> Self {
        let is_plain = [&chain.table, &chain.name].into_iter().all(|name| is_plain(name));
        Self { chain, is_plain }
    }

    /// Makes an obstacle of what it does; the command accepts before that what is described so.
    fn obstacle(&self, id: &'static str, sentence: String, accepted: &str) -> Obstacle {
        let Chain { family, table, name, .. } = self.chain;
        if !self.is_plain {
            return Obstacle::new(sentence, "").named(id);
        }
        Obstacle::new(sentence, format!("nft insert rule {family} {table} {name} {accepted} accept")).named(id).safe()
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Chain { family, table, name, .. } = self.chain;
        write!(f, "the chain `{}` of table `{family} {}`", name.escape_default(), table.escape_default())
    }
}

/// Says whether a shell and a terminal take a name as it is.
pub(super) fn is_plain(name: &str) -> bool {
    let is_in = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && name.chars().all(is_in)
}

/// Finds those of this host's chains that drop what is for services of this host, or its pods' questions for names.
pub(super) async fn obstacles(shape: &Shape, part: &HostPart, chains: &[Chain]) -> Result<Vec<Obstacle>, KernelError> {
    let asked = part.answers_names && !shape.pods.is_empty();
    if part.served.is_empty() && !asked {
        return Ok(Vec::new());
    }
    // Without the interface nothing comes from it.
    let routes = Routes::open()?;
    let link = routes.link(&shape.interface).await?;
    let pods = if asked { pods_link(&routes, shape).await? } else { None };
    let mut obstacles = Vec::new();
    for rules in filters(chains, Hook::Input) {
        if let Some(link) = &link {
            obstacles.extend(closed_ports(shape, link, part, &rules)?);
        }
        if asked {
            obstacles.extend(closed_names(shape, pods.as_ref(), &rules)?);
        }
    }
    Ok(obstacles)
}

fn closed_ports(shape: &Shape, link: &Link, part: &HostPart, rules: &Ruleset) -> Result<Option<Obstacle>, KernelError> {
    let name = shape.interface.as_str();
    let (sources, destinations) = ([shape.range.net()], [Ipv4Net::from(shape.address.0)]);
    let mut closed = Vec::new();
    for &(transport, port) in &part.served {
        let packet = Packet {
            input: Some(name),
            input_index: Some(link.index),
            output: None,
            sources: &sources,
            destinations: &destinations,
            opens: Some((transport, port)),
            begins: true,
            in_doubt_passes: true,
        };
        if rules.drops(&packet)? {
            closed.push(format!("{port}/{}", if transport == TCP { "tcp" } else { "udp" }));
        }
    }
    if closed.is_empty() {
        return Ok(None);
    }
    let more = match closed.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    closed.truncate(MAX_NAMED);
    let place = Place::of(rules.chain());
    let sentence = format!(
        "{place} drops what comes from `{name}` for services of this host ({}{more}), so that nobody in the mesh reaches them; what the command inserts lasts until that firewall is loaded anew",
        closed.join(", ")
    );
    Ok(Some(place.obstacle("input-drops", sentence, &format!("iifname \"{name}\""))))
}

/// The interface by which the pods of the first block come, where they all come by one.
async fn pods_link(routes: &Routes, shape: &Shape) -> Result<Option<Link>, KernelError> {
    let Some(pods) = shape.pods.first().filter(|_| shape.pods.len() == 1 && shape.pod_interfaces.is_empty()) else {
        return Ok(None);
    };
    let last = u32::from(pods.broadcast()).saturating_sub(1);
    let Some(way) = routes.entry(last.into(), 0).await else { return Ok(None) };
    let whole = route::destination(&way).contains(pods) && route::destination(&way).prefix_len() > 0;
    match route::output(&way) {
        Some(index) if whole && route::gateway(&way).is_none() => routes.link_at(index).await,
        Some(_) | None => Ok(None),
    }
}

fn closed_names(shape: &Shape, pods: Option<&Link>, rules: &Ruleset) -> Result<Option<Obstacle>, KernelError> {
    let dns = shape.dns();
    let packet = Packet {
        input: pods.map(|link| link.name.as_str()),
        input_index: pods.map(|link| link.index),
        output: None,
        sources: &shape.pods,
        destinations: &[Ipv4Net::from(dns)],
        opens: Some((UDP, DNS_PORT)),
        begins: true,
        in_doubt_passes: true,
    };
    if !rules.drops(&packet)? {
        return Ok(None);
    }
    let place = Place::of(rules.chain());
    let sentence = format!(
        "{place} drops what this node's pods ask for names at {dns}:53, so that they find no service of the mesh; what the command inserts lasts until that firewall is loaded anew"
    );
    Ok(Some(place.obstacle("input-drops", sentence, &format!("ip daddr {dns}"))))
}

/// Finds the first chain that drops the tunnel's packets to or from a peer.
pub(super) fn blocks_tunnel(own_port: u16, peer: SocketAddrV4) -> Result<Option<Obstacle>, KernelError> {
    let (peers, everybody) = ([Ipv4Net::from(*peer.ip())], [Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)]);
    let ways = [
        (Hook::Input, &peers, &everybody, own_port, "comes from there", String::new()),
        (Hook::Output, &everybody, &peers, peer.port(), "goes there", format!("ip daddr {} ", peer.ip())),
    ];
    let chains = nft::chains()?;
    for (hook, sources, destinations, port, way, to) in ways {
        let packet = Packet {
            input: None,
            input_index: None,
            output: None,
            sources,
            destinations,
            opens: Some((UDP, port)),
            // It may as well answer one of ours.
            begins: false,
            in_doubt_passes: true,
        };
        for rules in filters(&chains, hook) {
            if rules.drops(&packet)? {
                let place = Place::of(rules.chain());
                let sentence = format!("{place} of this host drops what {way} to UDP port {port}");
                return Ok(Some(place.obstacle("udp-blocked", sentence, &format!("{to}udp dport {port}"))));
            }
        }
    }
    Ok(None)
}

/// The filters of others at a hook.
fn filters(chains: &[Chain], hook: Hook) -> impl Iterator<Item = Ruleset> {
    let is_filter = move |chain: &&Chain| {
        let here = |base: &nft::Base| base.hook == hook && base.kind == "filter";
        matches!(chain.family, Family::Ip | Family::Inet) && chain.base.as_ref().is_some_and(here)
    };
    chains.iter().filter(is_filter).filter(|chain| !guards::is_ours(chain)).map(|chain| Ruleset::of(chain.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_strangers_chain_reaches_a_shell_but_a_plain_one() {
        for name in ["input", "filter_INPUT", "IN.public-1", "_x"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", "x; reboot #", "$(x)", "a b", "-f", "x\u{1b}[2J", "x\n", "a\"b", "a`b`", "\u{e4}"] {
            assert!(!is_plain(name), "{name:?}");
            let chain = Chain { name: name.into(), table: "filter".into(), family: Family::Inet, base: None };
            let found = Place::of(&chain).obstacle("input-drops", Place::of(&chain).to_string(), "iifname mesh0");
            assert!(found.command.is_empty() && !found.is_safe, "{found:?}");
            assert!(!found.sentence.contains(['\u{1b}', '\n']), "{found:?}");
        }
    }
}
