//! The chains that believe a mesh address, and a pod's, only where it can come from, and keep networks that are no pods of
//! ours out of the mesh.
//!
//! ```text
//! sources     filter  prerouting  -90   iifname != <if> iifname != lo ip saddr <range> counter drop
//!                                       iifname != <if> iifname != lo ip daddr <range> fib saddr . iif oif 0 jump unreturned
//! unreturned                            iifname <pod interface> return
//!                                       counter drop
//! where nothing is translated (guards):
//! forwarded   filter  forward     -10   oifname <if> jump resolving
//!                                       oifname <if> icmp type 3 code 4 accept
//!                                       oifname <if> counter drop
//! ```
//!
//! The engine believes whatever the kernel hands it of a pod's or the host's own addresses, and refuses every other source;
//! the kernel routes whatever comes from anywhere. So a host on a link could speak as a pod behind the node, to VIPs and to
//! ClusterIPs that lead to one, and a clear packet with a mesh source would reach a pod around meshd. The chain is called
//! after DNAT (-100), which turns a ClusterIP into a VIP. It asks for the way back of every source and not of our own alone:
//! the others are the engine's to refuse, but for a router's word that packets are too large, which has to come from there.
//! That is one rule however many blocks there are; the whole table has to fit into one send buffer.
//!
//! What is forwarded into the mesh from other than our pod blocks is some container's or LAN's, which a CNI or an operator
//! masquerades: it would speak with the node's identity. It is translated to the node's second address; where the kernel
//! cannot do that, it is dropped.

use super::nft::{Base, Chain, Expr, Family, Fate, Hook};
use crate::linux::shape::Shape;

/// Where packets with a source that cannot be are sorted out.
pub(super) const SOURCES: &str = "sources";
/// Where packets are dropped whose source is not routed back over the interface that they came by.
pub(super) const UNRETURNED: &str = "unreturned";
/// Where packets pass on their way from other networks into the mesh.
pub(super) const FORWARDED: &str = "forwarded";
/// After DNAT, which is at -100.
const SOURCES_PRIORITY: i32 = -90;
/// Before the filters of others, which are at 0.
const FORWARDED_PRIORITY: i32 = -10;

/// Returns the chains for a table of family ip; `accepts_pods` is a chain of it that accepts what comes from our pod
/// blocks. Without `lookup` nothing is asked of the routing tables, which needs a module of its own; `translated` is
/// whether other networks get a source of their own.
pub(super) fn chains(
    table: &str,
    shape: &Shape,
    accepts_pods: &str,
    lookup: bool,
    translated: bool,
) -> Vec<(Chain, Vec<Vec<Expr>>)> {
    let mut chains = vec![sources(table, shape, lookup)];
    if !translated {
        chains.push(forwarded(table, shape, accepts_pods));
    }
    if lookup {
        chains.push(unreturned(table, shape));
    }
    chains
}

fn sources(table: &str, shape: &Shape, lookup: bool) -> (Chain, Vec<Vec<Expr>>) {
    let from_elsewhere = || [Expr::input_differs(&shape.interface), Expr::input_differs("lo")].concat();
    let mut mesh_source = from_elsewhere();
    mesh_source.extend(Expr::source_in(shape.range.net()));
    mesh_source.extend([Expr::COUNTER, Expr::Verdict(Fate::Drop)]);
    let mut rules = vec![mesh_source];
    if lookup {
        let mut unreturned = from_elsewhere();
        unreturned.extend(Expr::destination_in(shape.range.net()));
        unreturned.extend(Expr::is_not_routed_back());
        unreturned.push(Expr::Verdict(Fate::Jump(UNRETURNED.to_owned())));
        rules.push(unreturned);
    }
    (base(table, SOURCES, Hook::Prerouting, SOURCES_PRIORITY), rules)
}

fn unreturned(table: &str, shape: &Shape) -> (Chain, Vec<Vec<Expr>>) {
    let exempt = |name: &String| {
        let mut rule = Expr::input_like(name).to_vec();
        rule.push(Expr::Verdict(Fate::Return));
        rule
    };
    let mut rules: Vec<_> = shape.pod_interfaces.iter().map(exempt).collect();
    rules.push(vec![Expr::COUNTER, Expr::Verdict(Fate::Drop)]);
    (plain(table, UNRETURNED), rules)
}

fn forwarded(table: &str, shape: &Shape, accepts_pods: &str) -> (Chain, Vec<Vec<Expr>>) {
    let into_the_mesh = || Expr::output_is(&shape.interface).to_vec();
    let mut pods = into_the_mesh();
    pods.push(Expr::Verdict(Fate::Jump(accepts_pods.to_owned())));
    let mut routers = into_the_mesh();
    routers.extend(Expr::is_too_big());
    routers.push(Expr::Verdict(Fate::Accept));
    let mut others = into_the_mesh();
    others.extend([Expr::COUNTER, Expr::Verdict(Fate::Drop)]);
    (base(table, FORWARDED, Hook::Forward, FORWARDED_PRIORITY), vec![pods, routers, others])
}

fn base(table: &str, name: &str, hook: Hook, priority: i32) -> Chain {
    let base = Base { kind: "filter".to_owned(), hook, priority, policy: Fate::Accept };
    Chain { base: Some(base), ..plain(table, name) }
}

fn plain(table: &str, name: &str) -> Chain {
    Chain { family: Family::Ip, table: table.to_owned(), name: name.to_owned(), base: None }
}

/// Says in sentences what the chains that `read` found have dropped so far, with the way out for whom it was wrong.
pub(super) fn dropped(content: &[(Chain, Vec<Vec<Expr>>)]) -> Vec<String> {
    let count = |name: &str| {
        let rules =
            content.iter().filter(|(chain, _)| chain.name == name).flat_map(|(_, rules)| rules.iter().flatten());
        rules.map(|expr| if let Expr::Counter { packets, .. } = expr { *packets } else { 0 }).sum::<u64>()
    };
    let sentences = [
        (
            SOURCES,
            "packets with a source in the mesh range came from outside of the mesh, and were dropped: somebody forges mesh addresses",
        ),
        (
            UNRETURNED,
            "packets for the mesh came over an interface that their source is not routed back over, and were dropped: somebody forges this node's pods, or your network plugin routes pods back over another interface; then name theirs, as in `pod_interfaces = [\"lxc*\"]` in meshd.toml",
        ),
        (
            FORWARDED,
            "packets for the mesh came through this node from a network that is none of its pod blocks (docker0, a LAN), and were dropped, so that they do not speak as this node; let pods of a block call, or join those machines",
        ),
    ];
    let told = sentences.into_iter().map(|(name, what)| (count(name), what)).filter(|&(packets, _)| packets > 0);
    told.map(|(packets, what)| format!("{packets} {what}")).collect()
}
