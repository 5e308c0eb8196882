//! What others put into a node's nftables: a CNI's masquerading, a strict host's FORWARD policy.
//!
//! It is written with meshd's own encoder, so that no `nft` program is needed.

use std::fmt::Write as _;

use ipnet::Ipv4Net;
use meshd::linux::KernelError;
use meshd::linux::nft::{Base, Batch, Chain, Expr, Family, Fate, Hook, Meta, PayloadBase, chains, rules, tables};

use crate::netns::Namespace;

/// Masquerades what leaves the pod block by any interface but the pods' bridge, as CNIs do.
///
/// # Errors
/// If the kernel has no nftables or does not permit it.
pub fn masquerade(node: &Namespace, pods: Ipv4Net, bridge: &str) -> Result<(), KernelError> {
    let bridge = bridge.to_owned();
    node.run(move || {
        let chain = Chain {
            family: Family::Ip,
            table: "cni".into(),
            name: "postrouting".into(),
            base: Some(Base { kind: "nat".into(), hook: Hook::Postrouting, priority: 100, policy: Fate::Accept }),
        };
        let mut exprs = Expr::source_in(pods);
        exprs.extend(Expr::output_differs(&bridge));
        exprs.push(Expr::Masquerade);
        Batch::new().add_table(Family::Ip, "cni").add_chain(&chain).add_rule(&chain, &exprs).commit()
    })
}

/// Drops what is forwarded unless it goes between the pods' bridge and the underlay: a strict host.
///
/// # Errors
/// If the kernel has no nftables or does not permit it.
pub fn forward_drop(node: &Namespace, bridge: &str, underlay: &str) -> Result<(), KernelError> {
    let ways = [(bridge, underlay), (underlay, bridge)];
    let ways = ways.map(|(from, to)| (from.to_owned(), to.to_owned()));
    node.run(move || {
        let chain = Chain {
            family: Family::Ip,
            table: "strict".into(),
            name: "forward".into(),
            base: Some(Base { kind: "filter".into(), hook: Hook::Forward, priority: 0, policy: Fate::Drop }),
        };
        let mut batch = Batch::new().add_table(Family::Ip, "strict").add_chain(&chain);
        for (from, to) in &ways {
            let mut exprs = Expr::input_is(from).to_vec();
            exprs.extend(Expr::output_is(to));
            exprs.push(Expr::Verdict(Fate::Accept));
            batch = batch.add_rule(&chain, &exprs);
        }
        batch.commit()
    })
}

/// Has a router drop, without a word, UDP packets to a prefix that are as long as a power of two, or longer.
///
/// # Errors
/// If the kernel has no nftables or does not permit it.
pub fn swallow(router: &Namespace, to: Ipv4Net, from_bytes: u16) -> Result<(), KernelError> {
    router.run(move || {
        let chain = Chain {
            family: Family::Ip,
            table: "hole".into(),
            name: "forward".into(),
            base: Some(Base { kind: "filter".into(), hook: Hook::Forward, priority: 0, policy: Fate::Accept }),
        };
        let mut exprs = Expr::destination_in(to);
        exprs.extend([
            Expr::Meta(Meta::Transport),
            Expr::Equal(vec![17]),
            // The total length of the IP header: none of its upper bits may be set.
            Expr::Payload { header: PayloadBase::Network, offset: 2, length: 2 },
            Expr::Mask((!(from_bytes.next_power_of_two() - 1)).to_be_bytes().to_vec()),
            Expr::Differs(vec![0, 0]),
            Expr::Verdict(Fate::Drop),
        ]);
        Batch::new().add_table(Family::Ip, "hole").add_chain(&chain).add_rule(&chain, &exprs).commit()
    })
}

/// Takes a table of family ip away.
///
/// # Errors
/// If there is none of that name.
pub fn remove_table(node: &Namespace, table: &str) -> Result<(), KernelError> {
    let table = table.to_owned();
    node.run(move || Batch::new().delete_table(Family::Ip, &table).commit())
}

/// Lists every table, chain and rule as text, counters left out.
///
/// # Errors
/// If the kernel has no nftables or does not permit it.
pub fn listing(node: &Namespace) -> Result<String, KernelError> {
    node.run(|| {
        let mut text = String::new();
        for (family, table) in tables()? {
            let _ = writeln!(text, "table {family} {table}");
        }
        for chain in chains()? {
            let _ = writeln!(text, "{chain:?}");
            for mut rule in rules(&chain)? {
                for expr in &mut rule.exprs {
                    if matches!(expr, Expr::Counter { .. }) {
                        *expr = Expr::COUNTER;
                    }
                }
                let _ = writeln!(text, "  {rule:?}");
            }
        }
        Ok(text)
    })
}
