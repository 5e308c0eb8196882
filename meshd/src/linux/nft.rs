//! A small nftables encoder and reader: tables, chains and rules as the kernel takes them (linux/netfilter/nf_tables.h).
//!
//! A [`Batch`] is applied whole or not at all. What is read back compares equal to what was sent, except
//! for counters, which [`Expr::same`] leaves out; that is how the keeper knows that nothing was changed.

mod expr;

pub use expr::{Expr, Family, Fate, Fib, Meta, PayloadBase, Register, Tracked};

use std::io;

use super::error::KernelError;
use super::nfnetlink::{self, Attributes, OwningSocket, Writer};

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
#[cfg(test)]
const DELRULE: u16 = 8;
const GETSETELEM: u16 = 13;
/// An element that ends an interval (NFT_SET_ELEM_INTERVAL_END).
const INTERVAL_END: u32 = 1;
/// A table of one socket, since Linux 5.12 (NFT_TABLE_F_OWNER).
const OWNED: u32 = 2;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Where in a packet's way a chain is called, for the families ip, ip6 and inet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// On delivery to this host.
    Input = 1,
    /// On the way through this host.
    Forward = 2,
    /// On sending by this host.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

impl Hook {
    fn from_number(number: u32) -> Option<Self> {
        let all = [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];
        all.into_iter().find(|&hook| hook as u32 == number)
    }
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// Where it is called.
    pub hook: Hook,
    /// Its place among the chains of that hook, the lowest first.
    pub priority: i32,
    /// What becomes of a packet that no rule decides.
    pub policy: Fate,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// What makes it a base chain, if it is one.
    pub base: Option<Base>,
}

/// A rule as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftRule {
    /// Its number inside its table.
    pub handle: u64,
    /// What it does.
    pub exprs: Vec<Expr>,
}

/// Changes that are applied together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    writer: Writer,
}

impl Batch {
    /// Starts an empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a table that tells whose it is, unless it is there; what it told before stays.
    pub fn add_marked_table(self, family: Family, table: &str, mark: &[u8]) -> Self {
        self.table(family, table, 0, mark)
    }

    fn table(mut self, family: Family, table: &str, flags: u32, mark: &[u8]) -> Self {
        self.writer.message(NEWTABLE, NLM_F_CREATE, family.number(), |w| {
            w.text(1, table);
            w.number(2, flags);
            w.bytes(6, mark);
        });
        self
    }

    /// Adds a table, unless it is there.
    pub fn add_table(mut self, family: Family, table: &str) -> Self {
        self.writer.message(NEWTABLE, NLM_F_CREATE, family.number(), |w| w.text(1, table));
        self
    }

    /// Deletes a table with all that is in it; it must be there.
    pub fn delete_table(mut self, family: Family, table: &str) -> Self {
        self.writer.message(DELTABLE, 0, family.number(), |w| w.text(1, table));
        self
    }

    /// Adds a chain, unless it is there.
    pub fn add_chain(mut self, chain: &Chain) -> Self {
        self.writer.message(NEWCHAIN, NLM_F_CREATE, chain.family.number(), |w| {
            w.text(1, &chain.table);
            w.text(3, &chain.name);
            let Some(base) = &chain.base else { return };
            w.nest(4, |w| {
                w.number(1, base.hook as u32);
                w.number(2, base.priority.cast_unsigned());
            });
            w.number(5, base.policy.code().cast_unsigned());
            w.text(7, &base.kind);
        });
        self
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(mut self, chain: &Chain, exprs: &[Expr]) -> Self {
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.writer.message(NEWRULE, flags, chain.family.number(), |w| {
            w.text(1, &chain.table);
            w.text(2, &chain.name);
            w.nest(4, |w| exprs.iter().for_each(|expr| expr.encode(w)));
        });
        self
    }

    /// Deletes a rule by its handle.
    #[cfg(test)]
    pub(crate) fn delete_rule(mut self, chain: &Chain, handle: u64) -> Self {
        self.writer.message(DELRULE, 0, chain.family.number(), |w| {
            w.text(1, &chain.table);
            w.text(2, &chain.name);
            w.bytes(3, &handle.to_be_bytes());
        });
        self
    }

    /// Makes an empty table that nobody else can alter or remove, and that goes with what is returned; with the number
    /// by which [`described`] names its owner.
    ///
    /// # Errors
    /// The kernel's own: EPERM if another has one of this name, or without CAP_NET_ADMIN; before Linux 5.12 another.
    pub(super) fn own_table(family: Family, table: &str, mark: &[u8]) -> io::Result<(OwningSocket, u32)> {
        nfnetlink::commit_owning(Self::new().table(family, table, OWNED, mark).writer)
    }

    /// Applies the batch in the network namespace of the calling thread.
    ///
    /// # Errors
    /// `KernelError` if the kernel refuses any of it; then nothing was changed.
    pub fn commit(self) -> Result<(), KernelError> {
        nfnetlink::commit(self.writer).map_err(|error| KernelError::nft("set nftables rules", &error))
    }
}

/// Lists all tables.
///
/// # Errors
/// `KernelError` if the kernel has no nftables or does not permit it.
pub fn tables() -> Result<Vec<(Family, String)>, KernelError> {
    let replies =
        nfnetlink::dump(GETTABLE, 0, |_| {}).map_err(|error| KernelError::nft("list nftables tables", &error))?;
    let read = |reply: &nfnetlink::Reply| Some((Family::from_number(reply.family), reply.attributes().text(1)?));
    Ok(replies.iter().filter_map(read).collect())
}

/// A table, and what it tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its number; a later one is larger.
    pub handle: u64,
    /// The number of the socket that alone can alter it; none for a table that everybody can.
    pub owner: Option<u32>,
    /// What its maker wrote down with it; empty before Linux 5.10.
    pub mark: Vec<u8>,
}

/// Lists all tables with what they tell of themselves.
///
/// # Errors
/// `KernelError` if the kernel has no nftables or does not permit it.
pub fn described() -> Result<Vec<Table>, KernelError> {
    let replies =
        nfnetlink::dump(GETTABLE, 0, |_| {}).map_err(|error| KernelError::nft("list nftables tables", &error))?;
    Ok(replies.iter().filter_map(read_table).collect())
}

/// Reads one table; `None` if it is not there.
///
/// # Errors
/// `KernelError` if the kernel has no nftables or does not permit it.
pub fn table(family: Family, name: &str) -> Result<Option<Table>, KernelError> {
    let reply = nfnetlink::get(GETTABLE, family.number(), |w| w.text(1, name))
        .map_err(|error| KernelError::nft("read an nftables table", &error))?;
    Ok(reply.as_ref().and_then(read_table))
}

fn read_table(reply: &nfnetlink::Reply) -> Option<Table> {
    let attributes = reply.attributes();
    let owned = attributes.number(2).is_some_and(|flags| flags & OWNED != 0);
    Some(Table {
        family: Family::from_number(reply.family),
        name: attributes.text(1)?,
        handle: attributes.long(4).unwrap_or(0),
        owner: attributes.number(7).filter(|_| owned),
        mark: attributes.find(6).unwrap_or_default().to_vec(),
    })
}

/// Lists all chains of all families, those of iptables-nft included.
///
/// # Errors
/// `KernelError` if the kernel has no nftables or does not permit it.
pub fn chains() -> Result<Vec<Chain>, KernelError> {
    let replies =
        nfnetlink::dump(GETCHAIN, 0, |_| {}).map_err(|error| KernelError::nft("list nftables chains", &error))?;
    Ok(replies.iter().filter_map(read_chain).collect())
}

/// Reads one chain; `None` if it is not there. Cheaper than all of them where kube-proxy has thousands.
///
/// # Errors
/// `KernelError` if the kernel has no nftables or does not permit it.
pub fn chain(family: Family, table: &str, name: &str) -> Result<Option<Chain>, KernelError> {
    let reply = nfnetlink::get(GETCHAIN, family.number(), |w| {
        w.text(1, table);
        w.text(3, name);
    })
    .map_err(|error| KernelError::nft("read an nftables chain", &error))?;
    Ok(reply.as_ref().and_then(read_chain))
}

fn read_chain(reply: &nfnetlink::Reply) -> Option<Chain> {
    let attributes = reply.attributes();
    Some(Chain {
        family: Family::from_number(reply.family),
        table: attributes.text(1)?,
        name: attributes.text(3)?,
        base: read_base(attributes),
    })
}

fn read_base(attributes: Attributes<'_>) -> Option<Base> {
    let hook = attributes.nested(4);
    let policy = attributes.number(5).unwrap_or(1).cast_signed();
    Some(Base {
        kind: attributes.text(7)?,
        hook: Hook::from_number(hook.number(1)?)?,
        priority: hook.number(2)?.cast_signed(),
        policy: Fate::from_code(policy, None),
    })
}

/// Lists the rules of a chain in their order.
///
/// # Errors
/// `KernelError` if the kernel has no nftables or does not permit it.
pub fn rules(chain: &Chain) -> Result<Vec<NftRule>, KernelError> {
    let replies = nfnetlink::dump(GETRULE, chain.family.number(), |w| {
        w.text(1, &chain.table);
        w.text(2, &chain.name);
    })
    .map_err(|error| KernelError::nft("list nftables rules", &error))?;
    let read = |reply: &nfnetlink::Reply| {
        let attributes = reply.attributes();
        // Kernels before 4.20 dump all rules whatever was asked for.
        if attributes.text(1)? != chain.table || attributes.text(2)? != chain.name {
            return None;
        }
        let element = |(_, element): (u16, _)| {
            let element = Attributes(element);
            Expr::decode(&element.text(1).unwrap_or_default(), element.nested(2))
        };
        Some(NftRule { handle: attributes.long(3)?, exprs: attributes.nested(4).map(element).collect() })
    };
    Ok(replies.iter().filter_map(read).collect())
}

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// What is compared with a register.
    pub key: Vec<u8>,
    /// What becomes of a packet that has it, if the set holds verdicts.
    pub fate: Option<Fate>,
}

/// Lists the elements of a set of a chain's table; `None` if it holds intervals, or anything else than plain keys.
///
/// # Errors
/// `KernelError` if the kernel has no such set or does not permit it.
pub fn elements(chain: &Chain, set: &str) -> Result<Option<Vec<Element>>, KernelError> {
    let replies = nfnetlink::dump(GETSETELEM, chain.family.number(), |w| {
        w.text(1, &chain.table);
        w.text(2, set);
    })
    .map_err(|error| KernelError::nft("list the elements of an nftables set", &error))?;
    let element = |(_, element): (u16, _)| {
        let element = Attributes(element);
        let plain = element.number(3).unwrap_or(0) & INTERVAL_END == 0 && element.find(10).is_none();
        let verdict = element.nested(2).nested(2);
        let fate = verdict.number(1).map(|code| Fate::from_code(code.cast_signed(), verdict.text(2)));
        plain.then(|| Some(Element { key: element.nested(1).find(1)?.to_vec(), fate })).flatten()
    };
    Ok(replies.iter().flat_map(|reply| reply.attributes().nested(3).map(element)).collect())
}
