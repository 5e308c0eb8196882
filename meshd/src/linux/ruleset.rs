//! What the rules of others do with one imagined packet.
//!
//! The rules of a chain are followed: a condition holds, does not hold, or cannot be known here (a set of intervals, a
//! limit, a match that is not understood). A rule that cannot be known is taken not to match; with
//! [`Packet::in_doubt_passes`], the packet goes both ways there, and is dropped only if no way accepts it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::overlap;

use super::error::KernelError;
use super::nft::{self, Chain, Element, Expr, Fate, Meta, NftRule, PayloadBase, Tracked};

/// How deep chains may call each other; the kernel allows 16.
const DEPTH: usize = 16;
/// Steps of nft and iptables that decide nothing.
const SILENT: [&str; 10] = ["log", "LOG", "comment", "MARK", "CONNMARK", "CT", "NFLOG", "SET", "TCPMSS", "TRACE"];
/// The nftables number of IPv4.
const IPV4: u8 = 2;

/// A packet as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Packet<'a> {
    /// The interface that it came in by.
    pub(super) input: Option<&'a str>,
    /// That interface's number.
    pub(super) input_index: Option<u32>,
    /// The interface that it leaves by.
    pub(super) output: Option<&'a str>,
    /// Where it may come from.
    pub(super) sources: &'a [Ipv4Net],
    /// Where it may go to.
    pub(super) destinations: &'a [Ipv4Net],
    /// Which port of which transport it begins a connection to.
    pub(super) opens: Option<(u8, u16)>,
    /// Whether it is known to be the first of its connection: otherwise what conntrack knows of it is in doubt.
    pub(super) begins: bool,
    /// Whether it is told to be dropped only where no rule that cannot be known would let it pass.
    pub(super) in_doubt_passes: bool,
}

impl Packet<'_> {
    /// Says that it is known to begin a connection, if it is.
    fn begun(&self) -> Option<()> {
        self.opens.filter(|_| self.begins).map(|_| ())
    }
}

/// What register one holds, of what can be known.
enum Loaded {
    Interface(String),
    Address(Vec<Ipv4Net>, u32),
    Bytes(Vec<u8>),
    Unknown,
}

/// What a rule says of the packet.
enum Said {
    /// It does this.
    Does(Fate),
    /// It does this if something holds that cannot be known.
    May(Fate),
    /// It is about others.
    Nothing,
}

/// How the packet may leave a chain, besides being dropped.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    accepted: bool,
    /// No rule decides, or one says that the calling chain goes on.
    passed: bool,
}

impl Ends {
    fn or(self, other: Self) -> Self {
        Self { accepted: self.accepted || other.accepted, passed: self.passed || other.passed }
    }
}

/// A base chain with the chains that it calls and the sets that it asks, each read once.
pub(super) struct Ruleset {
    chain: Chain,
    rules: RefCell<BTreeMap<String, Rc<[NftRule]>>>,
    sets: RefCell<BTreeMap<String, Option<Rc<[Element]>>>>,
    /// What the chains that are called do with the packet at hand: each is followed once, however many ways lead there.
    followed: RefCell<BTreeMap<String, Ends>>,
}

impl Ruleset {
    /// Reads nothing yet.
    pub(super) fn of(chain: Chain) -> Self {
        Self { chain, rules: RefCell::default(), sets: RefCell::default(), followed: RefCell::default() }
    }

    /// The base chain.
    pub(super) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Says whether the chain drops the packet, however what is in doubt turns out.
    ///
    /// # Errors
    /// `KernelError` if it cannot be read.
    pub(super) fn drops(&self, packet: &Packet<'_>) -> Result<bool, KernelError> {
        self.followed.borrow_mut().clear();
        let policy = self.chain.base.as_ref().map(|base| &base.policy);
        let ends = self.ends(packet, &self.rules(&self.chain.name)?, 0);
        Ok(!ends.accepted && (!ends.passed || policy == Some(&Fate::Drop)))
    }

    fn rules(&self, name: &str) -> Result<Rc<[NftRule]>, KernelError> {
        if let Some(rules) = self.rules.borrow().get(name) {
            return Ok(Rc::clone(rules));
        }
        let chain = Chain { name: name.to_owned(), ..self.chain.clone() };
        let rules: Rc<[NftRule]> = nft::rules(&chain)?.into();
        self.rules.borrow_mut().insert(name.to_owned(), Rc::clone(&rules));
        Ok(rules)
    }

    /// The elements of a set; `None` if they cannot be compared.
    fn set(&self, name: &str) -> Option<Rc<[Element]>> {
        if let Some(set) = self.sets.borrow().get(name) {
            return set.clone();
        }
        let set: Option<Rc<[Element]>> = nft::elements(&self.chain, name).ok().flatten().map(Into::into);
        self.sets.borrow_mut().insert(name.to_owned(), set.clone());
        set
    }

    /// Follows the rules of a chain.
    fn ends(&self, packet: &Packet<'_>, rules: &[NftRule], depth: usize) -> Ends {
        let mut ends = Ends::default();
        for rule in rules {
            let (fate, certain) = match self.said(packet, rule) {
                Said::Does(fate) => (fate, true),
                Said::May(fate) if packet.in_doubt_passes => (fate, false),
                Said::May(_) | Said::Nothing => continue,
            };
            let (these, goes_on) = match fate {
                Fate::Accept => (Ends { accepted: true, passed: false }, false),
                Fate::Drop => (Ends::default(), false),
                Fate::Return => (Ends { accepted: false, passed: true }, false),
                Fate::Jump(name) => {
                    let called = self.call(packet, &name, depth);
                    (Ends { passed: false, ..called }, called.passed)
                }
                Fate::Goto(name) => (self.call(packet, &name, depth), false),
                // Such as a queue to a program, which may say anything.
                Fate::Other(_) => (Ends { accepted: packet.in_doubt_passes, passed: false }, true),
            };
            ends = ends.or(these);
            if certain && !goes_on {
                return ends;
            }
        }
        ends.or(Ends { accepted: false, passed: true })
    }

    fn call(&self, packet: &Packet<'_>, name: &str, depth: usize) -> Ends {
        if let Some(&ends) = self.followed.borrow().get(name) {
            return ends;
        }
        let ends = match self.rules(name) {
            Ok(rules) if depth < DEPTH => self.ends(packet, &rules, depth + 1),
            // The kernel calls no deeper; what cannot be read may say anything.
            Ok(_) | Err(_) => Ends { accepted: packet.in_doubt_passes, passed: true },
        };
        self.followed.borrow_mut().insert(name.to_owned(), ends);
        ends
    }

    fn said(&self, packet: &Packet<'_>, rule: &NftRule) -> Said {
        let mut loaded = Loaded::Unknown;
        let mut certain = true;
        let mut is_handed_on = false;
        let says = |fate: Fate, certain| if certain { Said::Does(fate) } else { Said::May(fate) };
        for expr in &rule.exprs {
            let holds = match expr {
                Expr::Meta(_) | Expr::Payload { .. } | Expr::Fib(_) | Expr::Load(..) | Expr::Tracked(_) => {
                    loaded = load(packet, expr);
                    continue;
                }
                Expr::Mask(mask) => {
                    loaded = masked(loaded, mask);
                    continue;
                }
                // Steps that only write something down, and match every packet.
                Expr::Counter { .. } => continue,
                Expr::Other(name) if SILENT.contains(&name.as_str()) => continue,
                Expr::Verdict(fate) => return says(fate.clone(), certain),
                Expr::Other(name) if name == "reject" || name == "REJECT" => return says(Fate::Drop, certain),
                Expr::Equal(value) => equal(&loaded, value),
                Expr::Differs(value) => equal(&loaded, value).map(|equal| !equal),
                Expr::Lookup { set, inverted, decides } => match (self.found(&loaded, set), decides) {
                    (Some(None), true) => return Said::Nothing,
                    (Some(Some(element)), true) => {
                        return element.fate.map_or(Said::Nothing, |fate| says(fate, certain));
                    }
                    // It may say anything.
                    (None, true) => return Said::May(Fate::Accept),
                    (Some(element), false) => Some(element.is_some() != *inverted),
                    (None, false) => None,
                },
                Expr::Ports { transport, first, last } => {
                    packet.opens.map(|(number, port)| number == *transport && (*first..=*last).contains(&port))
                }
                Expr::States(states) => packet.begun().map(|()| states & Tracked::NEW != 0),
                Expr::Other(name) => {
                    is_handed_on |= is_target(name);
                    None
                }
                Expr::Snat | Expr::Dnat(_) | Expr::Masquerade => return Said::Nothing,
            };
            match holds {
                Some(true) => {}
                Some(false) => return Said::Nothing,
                None => certain = false,
            }
        }
        // A target that is not known here, such as a queue to a program, may say anything.
        if is_handed_on { Said::May(Fate::Accept) } else { Said::Nothing }
    }

    /// Finds what is known in a set; `None` if it cannot be told.
    fn found(&self, loaded: &Loaded, set: &str) -> Option<Option<Element>> {
        if matches!(loaded, Loaded::Unknown) {
            return None;
        }
        for element in self.set(set)?.iter() {
            if equal(loaded, &element.key)? {
                return Some(Some(element.clone()));
            }
        }
        Some(None)
    }
}

/// Says whether a step that is not known here is a target, which decides, rather than a match: iptables writes those large.
fn is_target(name: &str) -> bool {
    ["queue", "tproxy", "synproxy"].contains(&name)
        || name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
}

/// What a step loads into register one.
fn load(packet: &Packet<'_>, expr: &Expr) -> Loaded {
    let name = |interface: Option<&str>| interface.map(|name| Loaded::Interface(name.to_owned()));
    let bytes = |known: Option<Vec<u8>>| known.map(Loaded::Bytes);
    let transport = || bytes(packet.opens.map(|(number, _)| vec![number]));
    let known = match expr {
        Expr::Meta(Meta::InputName) => name(packet.input),
        Expr::Meta(Meta::OutputName) => name(packet.output),
        Expr::Meta(Meta::InputIndex) => bytes(packet.input_index.map(|index| index.to_ne_bytes().to_vec())),
        Expr::Meta(Meta::Protocol) => bytes(Some(vec![IPV4])),
        Expr::Meta(Meta::Transport) => transport(),
        Expr::Payload { header: PayloadBase::Network, offset: 9, length: 1 } => transport(),
        Expr::Payload { header: PayloadBase::Network, offset: 12, length } => {
            Some(Loaded::Address(packet.sources.to_vec(), length * 8))
        }
        Expr::Payload { header: PayloadBase::Network, offset: 16, length } => {
            Some(Loaded::Address(packet.destinations.to_vec(), length * 8))
        }
        Expr::Payload { header: PayloadBase::Transport, offset: 2, length: 2 } => {
            bytes(packet.opens.map(|(_, port)| port.to_be_bytes().to_vec()))
        }
        Expr::Tracked(Tracked::State) => bytes(packet.begun().map(|()| Tracked::NEW.to_ne_bytes().to_vec())),
        // Nothing was done to a connection that begins, and is not translated.
        Expr::Tracked(Tracked::Status) => bytes(packet.begun().map(|()| vec![0; 4])),
        Expr::Meta(Meta::Mark)
        | Expr::Payload { .. }
        | Expr::Fib(_)
        | Expr::Load(..)
        | Expr::Mask(_)
        | Expr::Equal(_)
        | Expr::Differs(_)
        | Expr::Lookup { .. }
        | Expr::Ports { .. }
        | Expr::States(_)
        | Expr::Counter { .. }
        | Expr::Verdict(_)
        | Expr::Snat
        | Expr::Dnat(_)
        | Expr::Masquerade
        | Expr::Other(_) => None,
    };
    known.unwrap_or(Loaded::Unknown)
}

fn masked(loaded: Loaded, mask: &[u8]) -> Loaded {
    let leading = mask.iter().map(|byte| byte.leading_ones()).sum();
    let set: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    match loaded {
        Loaded::Address(nets, _) if leading == set => Loaded::Address(nets, leading),
        Loaded::Bytes(bytes) if bytes.len() == mask.len() => {
            Loaded::Bytes(bytes.iter().zip(mask).map(|(byte, mask)| byte & mask).collect())
        }
        Loaded::Address(..) | Loaded::Interface(_) | Loaded::Bytes(_) | Loaded::Unknown => Loaded::Unknown,
    }
}

/// Compares what is known with a value; `None` if it cannot be told.
fn equal(loaded: &Loaded, value: &[u8]) -> Option<bool> {
    match loaded {
        // iptables compares up to the final zero byte, nft all 16 bytes, and both fewer for `eth+`.
        Loaded::Interface(name) => {
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
        Loaded::Bytes(bytes) => (bytes.len() == value.len()).then(|| bytes == value),
        Loaded::Unknown => None,
    }
}
