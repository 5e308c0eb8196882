//! The nftables table `ip meshd`: it keeps the mesh range closed and pods' own addresses on their packets.
//!
//! ```text
//! keep_source  nat     postrouting  50   oifname <if> ip saddr <pod block> snat to ip saddr
//! entering     filter  input       -10   iifname <if> accept · iifname lo accept
//!                                        ip daddr <dns> port 53 jump resolving
//!                                        ip daddr <range> counter drop
//! resolving                              ip saddr <pod block> accept
//! leaving      filter  postrouting   0   ip daddr <range> oifname != <if> oifname != lo counter drop
//!                                        oifname <if> mark <MARK> counter drop
//! ```
//!
//! A connection is translated once, so the identity translation at 50 leaves nothing to a CNI's MASQUERADE
//! at 100, also behind the DNAT of a ClusterIP, which `notrack` would break. Forwarded packets never pass
//! `entering`; what meshd delivers to a pod has the pod's own address and is not for `leaving`. The table
//! has no owner, so that it outlives the process.

use super::error::KernelError;
use super::nft::{self, Base, Batch, Chain, Expr, Family, Fate, Hook};
use crate::linux::shape::{Guards, MARK, Shape};

/// The name of our table.
pub(super) const NAME: &str = "meshd";
const KEEP_SOURCE: &str = "keep_source";
const ENTERING: &str = "entering";
const LEAVING: &str = "leaving";
const RESOLVING: &str = "resolving";
const DNS_PORT: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Before any CNI's source translation, which is at 100.
const KEEP_SOURCE_PRIORITY: i32 = 50;
/// Before the filters of others, which are at 0.
const ENTERING_PRIORITY: i32 = -10;

type Content = Vec<(Chain, Vec<Vec<Expr>>)>;

/// What one call found and did.
#[derive(Debug, Default)]
pub(super) struct Ensured {
    pub(super) guards: Guards,
    /// Whether the table had to be written.
    pub(super) written: bool,
}

/// Makes sure that the table is as it should be. Where the kernel takes no translation, `retry` says whether to try again.
pub(super) fn ensure(shape: &Shape, retry: bool) -> Ensured {
    match read() {
        Ok(present) => mend(shape, &present, retry),
        Err(error) => Ensured::missing(&error),
    }
}

fn mend(shape: &Shape, present: &Content, retry: bool) -> Ensured {
    let whole = content(shape, true);
    let filters = content(shape, false);
    if same(present, &whole) {
        return Ensured::all(false);
    }
    let settled = same(present, &filters);
    if settled && !retry {
        return Ensured::filters_only("the kernel takes no translation rules", false);
    }
    match (write(&whole), settled) {
        (Ok(()), _) => Ensured::all(true),
        (Err(error), true) => Ensured::filters_only(&error.to_string(), false),
        (Err(error), false) => match write(&filters) {
            Ok(()) if whole.len() > filters.len() => Ensured::filters_only(&error.to_string(), true),
            Ok(()) => Ensured::all(true),
            Err(error) => Ensured::missing(&error),
        },
    }
}

impl Ensured {
    fn all(written: bool) -> Self {
        let guards = Guards { masquerade: true, filter: true, missing: Vec::new() };
        Self { guards, written }
    }

    fn filters_only(why: &str, written: bool) -> Self {
        let sentence =
            format!("pods may appear as this node: no rule keeps a CNI's masquerading off mesh packets ({why})");
        let guards = Guards { masquerade: false, filter: true, missing: vec![sentence] };
        Self { guards, written }
    }

    fn missing(why: &KernelError) -> Self {
        let sentence = format!(
            "no nftables guards: only routes keep mesh packets from leaving in clear, and pods may appear as this node ({why})"
        );
        let guards = Guards { masquerade: false, filter: false, missing: vec![sentence] };
        Self { guards, written: false }
    }
}

/// Says which guards are in force, without changing anything.
pub(super) fn inspect(shape: &Shape) -> Guards {
    match read() {
        Err(error) => Ensured::missing(&error).guards,
        Ok(present) if same(&present, &content(shape, true)) => Ensured::all(false).guards,
        Ok(present) if same(&present, &content(shape, false)) => {
            Ensured::filters_only("there is no such rule", false).guards
        }
        Ok(_) => Guards {
            missing: vec![format!("the nftables table `ip {NAME}` is missing or changed")],
            ..Guards::default()
        },
    }
}

/// Removes the table; says whether it was there.
pub(super) fn remove() -> Result<bool, KernelError> {
    // Without nftables there is no table of ours.
    let Ok(tables) = nft::tables() else { return Ok(false) };
    if !tables.contains(&(Family::Ip, NAME.to_owned())) {
        return Ok(false);
    }
    Batch::new().delete_table(Family::Ip, NAME).commit()?;
    Ok(true)
}

fn content(shape: &Shape, translation: bool) -> Content {
    let mut content = vec![resolving(shape), entering(shape), leaving(shape)];
    if translation && !shape.pods.is_empty() {
        content.push(keep_source(shape));
    }
    content
}

fn keep_source(shape: &Shape) -> (Chain, Vec<Vec<Expr>>) {
    let chain = chain(KEEP_SOURCE, "nat", Hook::Postrouting, KEEP_SOURCE_PRIORITY);
    let rule = |&pods| {
        let mut rule = Expr::output_is(&shape.interface).to_vec();
        rule.extend(Expr::source_in(pods));
        rule.extend([Expr::load_source(), Expr::Snat]);
        rule
    };
    (chain, shape.pods.iter().map(rule).collect())
}

fn entering(shape: &Shape) -> (Chain, Vec<Vec<Expr>>) {
    let accept = || Expr::Verdict(Fate::Accept);
    let from = |interface: &str| {
        let mut rule = Expr::input_is(interface).to_vec();
        rule.push(accept());
        rule
    };
    let mut rules = vec![from(&shape.interface), from("lo")];
    for transport in [UDP, TCP] {
        let mut rule = Expr::destination_in(shape.dns().into());
        rule.extend(Expr::destination_port(transport, DNS_PORT));
        rule.push(Expr::Verdict(Fate::Jump(RESOLVING.to_owned())));
        rules.push(rule);
    }
    let mut rest = Expr::destination_in(shape.range.net());
    rest.extend([Expr::COUNTER, Expr::Verdict(Fate::Drop)]);
    rules.push(rest);
    (chain(ENTERING, "filter", Hook::Input, ENTERING_PRIORITY), rules)
}

/// Accepts questions from our own pods, in a chain of its own so that a block costs one rule and not two:
/// the whole table has to fit into one send buffer.
fn resolving(shape: &Shape) -> (Chain, Vec<Vec<Expr>>) {
    let rule = |&pods| {
        let mut rule = Expr::source_in(pods);
        rule.push(Expr::Verdict(Fate::Accept));
        rule
    };
    let chain = Chain { family: Family::Ip, table: NAME.to_owned(), name: RESOLVING.to_owned(), base: None };
    (chain, shape.pods.iter().map(rule).collect())
}

fn leaving(shape: &Shape) -> (Chain, Vec<Vec<Expr>>) {
    let mut clear = Expr::destination_in(shape.range.net());
    clear.extend(Expr::output_differs(&shape.interface));
    clear.extend(Expr::output_differs("lo"));
    clear.extend([Expr::COUNTER, Expr::Verdict(Fate::Drop)]);

    let mut tunnel_in_tunnel = Expr::output_is(&shape.interface).to_vec();
    tunnel_in_tunnel.extend(Expr::mark_is(MARK));
    tunnel_in_tunnel.extend([Expr::COUNTER, Expr::Verdict(Fate::Drop)]);

    let chain = chain(LEAVING, "filter", Hook::Postrouting, 0);
    (chain, vec![clear, tunnel_in_tunnel])
}

fn chain(name: &str, kind: &str, hook: Hook, priority: i32) -> Chain {
    Chain {
        family: Family::Ip,
        table: NAME.to_owned(),
        name: name.to_owned(),
        base: Some(Base { kind: kind.to_owned(), hook, priority, policy: Fate::Accept }),
    }
}

/// Reads those of our chains that are there. One by one: a list of all chains of a Kubernetes node, once a
/// second, would cost more than the rest of an idle meshd.
fn read() -> Result<Content, KernelError> {
    let mut content = Vec::new();
    for name in [RESOLVING, ENTERING, LEAVING, KEEP_SOURCE] {
        if let Some(chain) = nft::chain(Family::Ip, NAME, name)? {
            let rules = nft::rules(&chain)?.into_iter().map(|rule| rule.exprs);
            let rules = rules.collect();
            content.push((chain, rules));
        }
    }
    Ok(content)
}

fn write(content: &Content) -> Result<(), KernelError> {
    let empty = Batch::new().add_table(Family::Ip, NAME).delete_table(Family::Ip, NAME).add_table(Family::Ip, NAME);
    let chains = content.iter().fold(empty, |batch, (chain, _)| batch.add_chain(chain));
    let batch = content
        .iter()
        .fold(chains, |batch, (chain, rules)| rules.iter().fold(batch, |batch, rule| batch.add_rule(chain, rule)));
    batch.commit()
}

fn same(present: &Content, wanted: &Content) -> bool {
    let same_rule = |(a, b): (&Vec<Expr>, &Vec<Expr>)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b));
    present.len() == wanted.len()
        && wanted.iter().all(|(chain, rules)| {
            let found = present.iter().find(|(c, _)| c == chain);
            found.is_some_and(|(_, present)| present.len() == rules.len() && present.iter().zip(rules).all(same_rule))
        })
}
