//! Whether a host's own FORWARD rules let mesh packets to and from its pods pass.
//!
//! The rules of each forward chain are followed for one imagined packet: a condition holds, does not hold,
//! or cannot be known here (conntrack state, sets, ports). A rule that cannot be known is taken not to match,
//! so that an answer of `drop` means: nothing visible accepts it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::overlap;

use super::error::KernelError;
use super::guards;
use super::nft::{self, Chain, Expr, Family, Fate, Hook, Meta, PayloadBase};
use crate::linux::shape::{Obstacle, Shape};

/// How deep chains may call each other; the kernel allows 16.
const DEPTH: usize = 16;

/// A packet as far as it is known: one side is the mesh interface, the other some pod's.
struct Packet<'a> {
    input: Option<&'a str>,
    output: Option<&'a str>,
    sources: &'a [Ipv4Net],
    destinations: &'a [Ipv4Net],
}

/// What register one holds, of what can be known.
enum Loaded {
    Interface(Option<String>),
    Address(Vec<Ipv4Net>, u32),
    Unknown,
}

/// Finds forward chains that drop mesh packets, with the command that mends each.
pub(super) fn obstacles(shape: &Shape) -> Result<Vec<Obstacle>, KernelError> {
    if shape.pods.is_empty() {
        return Ok(Vec::new());
    }
    let range = [shape.range.net()];
    let name = shape.interface.as_str();
    let inbound = Packet { input: Some(name), output: None, sources: &range, destinations: &shape.pods };
    let outbound = Packet { input: None, output: Some(name), sources: &shape.pods, destinations: &range };

    let mut obstacles = Vec::new();
    for chain in nft::chains()?.into_iter().filter(|chain| is_forward(chain) && !guards::is_ours(chain)) {
        let rules = nft::rules(&chain)?;
        for (packet, word, way) in [(&inbound, "iifname", "from"), (&outbound, "oifname", "to")] {
            if fate(packet, &chain, &rules, 0) != Some(Fate::Drop) && !dropped_by_policy(packet, &chain, &rules) {
                continue;
            }
            let Chain { family, table, name: chain, .. } = &chain;
            obstacles.push(Obstacle {
                sentence: format!(
                    "the chain `{chain}` of table `{family} {table}` drops what is forwarded {way} `{name}`, so that pods cannot use the mesh"
                ),
                command: format!("nft insert rule {family} {table} {chain} {word} \"{name}\" accept"),
            });
        }
    }
    Ok(obstacles)
}

fn is_forward(chain: &Chain) -> bool {
    let forward = |base: &nft::Base| base.hook == Hook::Forward && base.kind == "filter";
    matches!(chain.family, Family::Ip | Family::Inet) && chain.base.as_ref().is_some_and(forward)
}

fn dropped_by_policy(packet: &Packet<'_>, chain: &Chain, rules: &[nft::NftRule]) -> bool {
    let policy = chain.base.as_ref().map(|base| &base.policy);
    policy == Some(&Fate::Drop) && fate(packet, chain, rules, 0).is_none()
}

/// Follows the rules of a chain; `None` if none decides.
fn fate(packet: &Packet<'_>, chain: &Chain, rules: &[nft::NftRule], depth: usize) -> Option<Fate> {
    if depth > DEPTH {
        return None;
    }
    for rule in rules {
        match action(packet, rule) {
            Some(decided @ (Fate::Accept | Fate::Drop)) => return Some(decided),
            Some(Fate::Return) => return None,
            Some(Fate::Jump(name)) => {
                if let Some(decided) = call(packet, chain, name, depth) {
                    return Some(decided);
                }
            }
            Some(Fate::Goto(name)) => return call(packet, chain, name, depth),
            Some(Fate::Other(_)) | None => {}
        }
    }
    None
}

fn call(packet: &Packet<'_>, from: &Chain, name: String, depth: usize) -> Option<Fate> {
    let called = Chain { name, base: None, ..from.clone() };
    let rules = nft::rules(&called).ok()?;
    fate(packet, &called, &rules, depth + 1)
}

/// Returns what a rule does with the packet, if it certainly matches.
fn action(packet: &Packet<'_>, rule: &nft::NftRule) -> Option<Fate> {
    let mut loaded = Loaded::Unknown;
    for expr in &rule.exprs {
        match expr {
            Expr::Meta(Meta::InputName) => loaded = Loaded::Interface(packet.input.map(str::to_owned)),
            Expr::Meta(Meta::OutputName) => loaded = Loaded::Interface(packet.output.map(str::to_owned)),
            Expr::Payload { header: PayloadBase::Network, offset: 12, length } => {
                loaded = Loaded::Address(packet.sources.to_vec(), length * 8);
            }
            Expr::Payload { header: PayloadBase::Network, offset: 16, length } => {
                loaded = Loaded::Address(packet.destinations.to_vec(), length * 8);
            }
            Expr::Meta(Meta::Mark | Meta::Transport) | Expr::Payload { .. } | Expr::Fib(_) | Expr::Load(..) => {
                loaded = Loaded::Unknown;
            }
            Expr::Mask(mask) => loaded = masked(loaded, mask),
            Expr::Equal(value) => equal(&loaded, value).filter(|&equal| equal).map(drop)?,
            Expr::Differs(value) => equal(&loaded, value).filter(|&equal| !equal).map(drop)?,
            Expr::Counter { .. } => {}
            Expr::Verdict(fate) => return Some(fate.clone()),
            Expr::Other(name) if name == "reject" || name == "REJECT" => return Some(Fate::Drop),
            // Steps that only write something down, and match every packet.
            Expr::Other(name) if name == "log" || name == "LOG" || name == "comment" => {}
            Expr::Other(_) | Expr::Snat | Expr::Dnat(_) | Expr::Masquerade => return None,
        }
    }
    None
}

fn masked(loaded: Loaded, mask: &[u8]) -> Loaded {
    let leading = mask.iter().map(|byte| byte.leading_ones()).sum();
    let set: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    match loaded {
        Loaded::Address(nets, _) if leading == set => Loaded::Address(nets, leading),
        Loaded::Address(..) | Loaded::Interface(_) | Loaded::Unknown => Loaded::Unknown,
    }
}

/// Compares what is known with a value; `None` if it cannot be told.
fn equal(loaded: &Loaded, value: &[u8]) -> Option<bool> {
    match loaded {
        // iptables compares up to the final zero byte, nft all 16 bytes, and both fewer for `eth+`.
        Loaded::Interface(Some(name)) => {
            let text = value.split(|&b| b == 0).next()?;
            let prefix = text.len() == value.len();
            let starts = name.as_bytes().starts_with(text);
            Some(starts && (prefix || name.len() == text.len()))
        }
        Loaded::Address(nets, length) => {
            let mut octets = [0; 4];
            octets.get_mut(..value.len())?.copy_from_slice(value);
            let length = u8::try_from(*length).ok()?;
            let asked = Ipv4Net::new(Ipv4Addr::from(octets), length).ok()?;
            if nets.iter().all(|net| asked.contains(net)) {
                return Some(true);
            }
            (!nets.iter().any(|&net| overlap(net, asked))).then_some(false)
        }
        Loaded::Interface(None) | Loaded::Unknown => None,
    }
}
