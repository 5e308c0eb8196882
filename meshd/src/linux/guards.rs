//! The nftables table of a mesh, `ip meshd` for the default range: it keeps the mesh range closed and pods' own addresses on their packets.
//!
//! ```text
//! keep_source  nat     postrouting  50   oifname <if> ip saddr <pod block> snat to ip saddr
//!                                        oifname <if> fib saddr type != local snat to <second address>
//! entering     filter  input       -10   iifname <if> accept · iifname lo accept
//!                                        ip daddr <dns> port 53 jump resolving
//!                                        ip daddr <range> counter drop
//! resolving                              ip saddr <pod block> accept
//! sources, unreturned, forwarded: see source_guard
//! leaving      filter  postrouting   0   ip daddr <range> oifname != <if> oifname != lo counter drop
//!                                        oifname <if> mark <MARK> counter drop
//! ```
//!
//! A connection is translated once, so the identity translation at 50 leaves nothing to a CNI's MASQUERADE
//! at 100, also behind the DNAT of a ClusterIP, which `notrack` would break. Forwarded packets never pass
//! `entering`; what meshd delivers to a pod has the pod's own address and is not for `leaving`. The table
//! has no owner, so that it outlives the process.

use ipnet::Ipv4Net;
use mesh_proto::base::addr::MeshRange;

use super::error::KernelError;
use super::mark::Owner;
use super::names::{self, FIRST_NFT_TABLE};
use super::nft::{self, Base, Batch, Chain, Expr, Family, Fate, Hook, Meta, PayloadBase};
use super::source_guard::{self, FORWARDED, SOURCES, UNRETURNED};
use crate::linux::shape::{Guards, MARK, Shape};

/// Our chains, as they are looked for.
const CHAINS: [&str; 7] = [RESOLVING, ENTERING, LEAVING, KEEP_SOURCE, SOURCES, UNRETURNED, FORWARDED];
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

pub(super) type Content = Vec<(Chain, Vec<Vec<Expr>>)>;

/// What one call found and did.
#[derive(Debug, Default)]
pub(super) struct Ensured {
    pub(super) guards: Guards,
    /// Whether the table had to be written.
    pub(super) written: bool,
}

/// What of the table a kernel takes: translation and questions to the routing tables are modules of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    translation: bool,
    lookup: bool,
}

impl Extent {
    /// Whether networks that are no pods get a source of their own. Who is one is asked of the routing tables.
    fn translates_others(self) -> bool {
        self.translation && self.lookup
    }
}

/// All of them, the most first.
const EXTENTS: [Extent; 4] = [
    Extent { translation: true, lookup: true },
    Extent { translation: true, lookup: false },
    Extent { translation: false, lookup: true },
    Extent { translation: false, lookup: false },
];

/// Makes sure that the table is as it should be. Where the kernel does not take all of it, `retry` says whether to try again.
pub(super) fn ensure(shape: &Shape, retry: bool) -> Ensured {
    match read(&names::nft_table(shape.range)) {
        Ok(present) => mend(shape, &present, retry, |content| write(shape, content)),
        Err(error) => Ensured::missing(&error),
    }
}

pub(super) fn mend(
    shape: &Shape,
    present: &Content,
    retry: bool,
    write: impl Fn(&Content) -> Result<(), KernelError>,
) -> Ensured {
    let settled = EXTENTS.iter().position(|&extent| same(present, &content(shape, extent)));
    let mut why = None;
    for (place, &extent) in EXTENTS.iter().enumerate() {
        if settled == Some(place) {
            return Ensured::to(extent, shape, why.as_ref(), false);
        }
        if settled.is_some() && !retry {
            continue;
        }
        match write(&content(shape, extent)) {
            Ok(()) => return Ensured::to(extent, shape, why.as_ref(), true),
            Err(error) => why = why.or(Some(error)),
        }
    }
    match why {
        Some(error) => Ensured::missing(&error),
        None => Ensured::default(),
    }
}

impl Ensured {
    /// The table stands as far as `extent`; `why` is what the kernel said of the rest, if it was asked.
    fn to(extent: Extent, shape: &Shape, why: Option<&KernelError>, written: bool) -> Self {
        let why = why.map_or_else(|| "the kernel takes no such rule".to_owned(), ToString::to_string);
        let masquerade = extent.translation || shape.pods.is_empty();
        let mut missing = Vec::new();
        if !masquerade {
            missing.push(format!(
                "pods may appear as this node: no rule keeps a CNI's masquerading off mesh packets ({why})"
            ));
        }
        if !extent.lookup {
            missing.push(format!(
                "a host on a link of this node may call as one of its pods: the kernel does not look up where a source is routed back to, load the module nft_fib_ipv4 (`modprobe nft_fib_ipv4`; {why})"
            ));
        }
        let guards = Guards { masquerade, filter: true, sources: extent.lookup, missing };
        Self { guards, written }
    }

    fn missing(why: &KernelError) -> Self {
        let sentence = format!(
            "no nftables guards: only routes keep mesh packets from leaving in clear, pods may appear as this node, and a host on a link as a pod ({why})"
        );
        let guards = Guards { masquerade: false, filter: false, sources: false, missing: vec![sentence] };
        Self { guards, written: false }
    }
}

/// Says which guards are in force, without changing anything.
pub(super) fn inspect(shape: &Shape) -> Guards {
    let table = names::nft_table(shape.range);
    let present = match read(&table) {
        Err(error) => return Ensured::missing(&error).guards,
        Ok(present) => present,
    };
    match EXTENTS.into_iter().find(|&extent| same(&present, &content(shape, extent))) {
        Some(extent) => Ensured::to(extent, shape, None, false).guards,
        None => Guards {
            missing: vec![format!("the nftables table `ip {table}` is missing or changed")],
            ..Guards::default()
        },
    }
}

/// Says in sentences what the guards against forged sources and foreign networks have dropped so far.
pub(super) fn dropped(shape: &Shape) -> Vec<String> {
    let present = read(&names::nft_table(shape.range));
    present.map_or_else(|_| Vec::new(), |present| source_guard::dropped(&present))
}

/// Says whether a chain is in a table of ours, whichever mesh's.
pub(super) fn is_ours(chain: &Chain) -> bool {
    chain.family == Family::Ip && (chain.table == FIRST_NFT_TABLE || names::guarded(&chain.table).is_some())
}

/// Writes down whose the table is, where that is not there yet; a packet sees the one table or the other.
pub(super) fn sign(shape: &Shape, present: &Guards) -> Result<(), KernelError> {
    let name = names::nft_table(shape.range);
    // A kernel before 5.10 keeps no mark, and is told it again at each start.
    match nft::table(Family::Ip, &name)? {
        Some(table) if present.filter && table.mark != owner(shape).mark() => write(shape, &read(&name)?),
        Some(_) | None => Ok(()),
    }
}

/// Takes over what versions before this one guarded in the first table, whatever its range: that table is about to
/// have this mesh's rules, or is of no more use to it. A range that is closed stays closed at each step.
pub(super) fn take_over(shape: &Shape) -> Result<(), KernelError> {
    let Some((range, interface)) = guarded(FIRST_NFT_TABLE) else { return Ok(()) };
    let own = names::nft_table(shape.range) == FIRST_NFT_TABLE;
    if own && range != shape.range {
        let table = names::nft_table(range);
        if nft::table(Family::Ip, &table)?.is_some() {
            return Ok(());
        }
        let owner = Owner { interface: interface.clone(), ..Owner::default() };
        let closed = Shape { interface: interface.unwrap_or_default(), range, pods: Vec::new(), ..shape.clone() };
        return batch(&table, &owner, &content(&closed, Extent { translation: false, lookup: false })).commit();
    }
    if !own && range == shape.range {
        return Batch::new().delete_table(Family::Ip, FIRST_NFT_TABLE).commit();
    }
    Ok(())
}

/// Returns the range that a table guards, and the interface that it leaves open; `None` for tables that are not ours.
/// The first one counts as that of the default range where it is torn.
pub(super) fn guarded(table: &str) -> Option<(MeshRange, Option<String>)> {
    match names::guarded(table) {
        Some(range) => Some((range, closed_but_for(table).and_then(|(_, interface)| interface))),
        None if table == FIRST_NFT_TABLE => Some(closed_but_for(table).unwrap_or_else(|| (MeshRange::default(), None))),
        None => None,
    }
}

/// Reads from a table what it keeps from leaving, and by which interface it may.
fn closed_but_for(table: &str) -> Option<(MeshRange, Option<String>)> {
    let chain = nft::chain(Family::Ip, table, LEAVING).ok()??;
    let rules = nft::rules(&chain).ok()?;
    rules.iter().find_map(|rule| {
        let at = rule
            .exprs
            .iter()
            .position(|expr| matches!(expr, Expr::Payload { header: PayloadBase::Network, offset: 16, length: 4 }))?;
        let (Expr::Mask(mask), Expr::Equal(value)) = (rule.exprs.get(at + 1)?, rule.exprs.get(at + 2)?) else {
            return None;
        };
        let length: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
        let address: [u8; 4] = value.as_slice().try_into().ok()?;
        let range = MeshRange::try_from(Ipv4Net::new(address.into(), u8::try_from(length).ok()?).ok()?).ok()?;
        let interface = rule.exprs.windows(2).find_map(|pair| {
            let [Expr::Meta(Meta::OutputName), Expr::Differs(name)] = pair else { return None };
            let name = name.split(|&byte| byte == 0).next()?;
            Some(String::from_utf8_lossy(name).into_owned())
        });
        Some((range, interface.filter(|name| name != "lo")))
    })
}

/// Removes the table of a range, and the first one where it guards that range; says which were there.
pub(super) fn remove(range: MeshRange) -> Result<Vec<String>, KernelError> {
    // Without nftables there is no table of ours.
    let Ok(tables) = nft::tables() else { return Ok(Vec::new()) };
    let of_ours = |(family, name): &(Family, String)| {
        *family == Family::Ip && guarded(name).is_some_and(|(guarded, _)| guarded == range)
    };
    let found: Vec<String> = tables.into_iter().filter(of_ours).map(|(_, name)| name).collect();
    if !found.is_empty() {
        found.iter().fold(Batch::new(), |batch, name| batch.delete_table(Family::Ip, name)).commit()?;
    }
    Ok(found)
}

fn content(shape: &Shape, extent: Extent) -> Content {
    let mut content = vec![resolving(shape), entering(shape), leaving(shape)];
    content.extend(source_guard::chains(
        &names::nft_table(shape.range),
        shape,
        RESOLVING,
        extent.lookup,
        extent.translates_others(),
    ));
    if extent.translation && (extent.lookup || !shape.pods.is_empty()) {
        content.push(keep_source(shape, extent.translates_others()));
    }
    let table = names::nft_table(shape.range);
    content.iter_mut().for_each(|(chain, _)| chain.table.clone_from(&table));
    content
}

fn keep_source(shape: &Shape, others: bool) -> (Chain, Vec<Vec<Expr>>) {
    let chain = chain(KEEP_SOURCE, "nat", Hook::Postrouting, KEEP_SOURCE_PRIORITY);
    let rule = |&pods| {
        let mut rule = Expr::output_is(&shape.interface).to_vec();
        rule.extend(Expr::source_in(pods));
        rule.extend([Expr::load_source(), Expr::Snat]);
        rule
    };
    let mut rules: Vec<_> = shape.pods.iter().map(rule).collect();
    if others {
        let mut rule = Expr::output_is(&shape.interface).to_vec();
        // What this host sends itself is the engine's to translate.
        rule.extend(Expr::source_is_foreign());
        rule.extend(Expr::snat_to(shape.second()));
        rules.push(rule);
    }
    (chain, rules)
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
    let chain = Chain { family: Family::Ip, table: String::new(), name: RESOLVING.to_owned(), base: None };
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

/// A base chain of the table that `content` names.
fn chain(name: &str, kind: &str, hook: Hook, priority: i32) -> Chain {
    Chain {
        family: Family::Ip,
        table: String::new(),
        name: name.to_owned(),
        base: Some(Base { kind: kind.to_owned(), hook, priority, policy: Fate::Accept }),
    }
}

/// Reads those of our chains that are there. One by one: a list of all chains of a Kubernetes node, once a
/// second, would cost more than the rest of an idle meshd.
pub(super) fn read(table: &str) -> Result<Content, KernelError> {
    let mut content = Vec::new();
    for name in CHAINS {
        if let Some(chain) = nft::chain(Family::Ip, table, name)? {
            let rules = nft::rules(&chain)?.into_iter().map(|rule| rule.exprs);
            let rules = rules.collect();
            content.push((chain, rules));
        }
    }
    Ok(content)
}

pub(super) fn write(shape: &Shape, content: &Content) -> Result<(), KernelError> {
    batch(&names::nft_table(shape.range), &owner(shape), content).commit()
}

/// Whose the guards of a mesh are: they outlive each process that carries it.
fn owner(shape: &Shape) -> Owner {
    Owner::of(shape, None)
}

fn batch(table: &str, owner: &Owner, content: &Content) -> Batch {
    let empty = Batch::new().add_table(Family::Ip, table).delete_table(Family::Ip, table);
    let empty = empty.add_marked_table(Family::Ip, table, &owner.mark());
    let chains = content.iter().fold(empty, |batch, (chain, _)| batch.add_chain(chain));
    content
        .iter()
        .fold(chains, |batch, (chain, rules)| rules.iter().fold(batch, |batch, rule| batch.add_rule(chain, rule)))
}

fn same(present: &Content, wanted: &Content) -> bool {
    let same_rule = |(a, b): (&Vec<Expr>, &Vec<Expr>)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b));
    present.len() == wanted.len()
        && wanted.iter().all(|(chain, rules)| {
            let found = present.iter().find(|(c, _)| c == chain);
            found.is_some_and(|(_, present)| present.len() == rules.len() && present.iter().zip(rules).all(same_rule))
        })
}
