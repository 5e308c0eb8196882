//! A small nftables encoder and reader: tables, chains and rules as the kernel takes them (linux/netfilter/nf_tables.h).
//!
//! A [`Batch`] is applied whole or not at all. What is read back compares equal to what was sent, except
//! for counters, which [`Expr::same`] leaves out; that is how the keeper knows that nothing was changed.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::KernelError;
use super::nfnetlink::{self, Attributes, Writer};

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6 (`inet`).
    Inet,
    /// IPv4 (`ip`).
    Ip,
    /// IPv6 (`ip6`).
    Ip6,
    /// Another family, by its number.
    Other(u8),
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inet => f.pad("inet"),
            Self::Ip => f.pad("ip"),
            Self::Ip6 => f.pad("ip6"),
            Self::Other(number) => write!(f, "family {number}"),
        }
    }
}

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

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It goes on to the next base chain.
    Accept,
    /// It ends here.
    Drop,
    /// The calling chain goes on.
    Return,
    /// Another chain is called, and this one goes on after it.
    Jump(String),
    /// Another chain is called instead of the rest of this one.
    Goto(String),
    /// Another verdict, by its number.
    Other(i32),
}

impl Fate {
    fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
            Self::Other(code) => *code,
        }
    }

    fn from_code(code: i32, chain: Option<String>) -> Self {
        match (code, chain) {
            (0, _) => Self::Drop,
            (1, _) => Self::Accept,
            (-3, Some(chain)) => Self::Jump(chain),
            (-4, Some(chain)) => Self::Goto(chain),
            (-5, _) => Self::Return,
            (code, _) => Self::Other(code),
        }
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
pub struct Rule {
    /// Its number inside its table.
    pub handle: u64,
    /// What it does.
    pub exprs: Vec<Expr>,
}

/// A 16-byte register; the rules here need two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Register {
    /// The first.
    One = 1,
    /// The second.
    Two = 2,
}

impl Register {
    fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::One),
            2 => Some(Self::Two),
            _ => None,
        }
    }
}

/// What a packet is asked about itself (NFT_META_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// Its firewall mark, four bytes in host order.
    Mark = 3,
    /// The name of the interface it came in by, 16 bytes.
    InputName = 6,
    /// The name of the interface it leaves by, 16 bytes.
    OutputName = 7,
    /// Its transport protocol, one byte.
    Transport = 16,
}

impl Meta {
    fn from_number(number: u32) -> Option<Self> {
        let all = [Self::Mark, Self::InputName, Self::OutputName, Self::Transport];
        all.into_iter().find(|&key| key as u32 == number)
    }
}

/// Which header an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Header {
    /// The IP header.
    Network = 1,
    /// The TCP or UDP header.
    Transport = 2,
}

impl Header {
    fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Network),
            2 => Some(Self::Transport),
            _ => None,
        }
    }
}

/// One step of a rule; a rule does all steps until one does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads a fact about the packet into register one.
    Meta(Meta),
    /// Loads bytes of the packet into register one.
    Payload {
        /// The header that the offset counts from.
        header: Header,
        /// The first byte.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// Keeps only these bits of register one.
    Mask(Vec<u8>),
    /// Goes on if register one holds this.
    Equal(Vec<u8>),
    /// Goes on if register one holds anything else.
    Differs(Vec<u8>),
    /// Counts the packet.
    Counter {
        /// Packets so far.
        packets: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// Decides the packet's fate.
    Verdict(Fate),
    /// Loads a constant into a register.
    Load(Register, Vec<u8>),
    /// Translates the source to the address in register one.
    Snat,
    /// Translates the destination to the address in register one, and to the port in the other register, if any.
    Dnat(Option<Register>),
    /// Translates the source to the address of the interface that the packet leaves by.
    Masquerade,
    /// A step that is not understood here, by its name.
    Other(String),
}

impl Expr {
    /// Counts from zero.
    pub const COUNTER: Self = Self::Counter { packets: 0, bytes: 0 };

    /// Matches a packet that came in by an interface.
    pub fn input_is(interface: &str) -> [Self; 2] {
        [Self::Meta(Meta::InputName), Self::Equal(padded(interface))]
    }

    /// Matches a packet that leaves by an interface.
    pub fn output_is(interface: &str) -> [Self; 2] {
        [Self::Meta(Meta::OutputName), Self::Equal(padded(interface))]
    }

    /// Matches a packet that leaves by any interface but this.
    pub fn output_differs(interface: &str) -> [Self; 2] {
        [Self::Meta(Meta::OutputName), Self::Differs(padded(interface))]
    }

    /// Matches an IPv4 packet from a prefix. For tables of family ip.
    pub fn source_in(net: Ipv4Net) -> Vec<Self> {
        address_in(12, net, Self::Equal)
    }

    /// Matches an IPv4 packet to a prefix. For tables of family ip.
    pub fn destination_in(net: Ipv4Net) -> Vec<Self> {
        address_in(16, net, Self::Equal)
    }

    /// Matches an IPv4 packet to anything outside a prefix. For tables of family ip.
    pub fn destination_outside(net: Ipv4Net) -> Vec<Self> {
        address_in(16, net, Self::Differs)
    }

    /// Matches a packet of a transport protocol to a port.
    pub fn destination_port(transport: u8, port: u16) -> [Self; 4] {
        [
            Self::Meta(Meta::Transport),
            Self::Equal(vec![transport]),
            Self::Payload { header: Header::Transport, offset: 2, length: 2 },
            Self::Equal(port.to_be_bytes().to_vec()),
        ]
    }

    /// Matches a packet with a firewall mark.
    pub fn mark_is(mark: u32) -> [Self; 2] {
        [Self::Meta(Meta::Mark), Self::Equal(mark.to_ne_bytes().to_vec())]
    }

    /// Loads the packet's own IPv4 source into register one.
    pub fn load_source() -> Self {
        Self::Payload { header: Header::Network, offset: 12, length: 4 }
    }

    /// Translates the destination of a packet. For chains of kind nat at prerouting and output.
    pub fn dnat_to(address: Ipv4Addr, port: Option<u16>) -> Vec<Self> {
        let mut exprs = vec![Self::Load(Register::One, address.octets().to_vec())];
        exprs.extend(port.map(|p| Self::Load(Register::Two, p.to_be_bytes().to_vec())));
        exprs.push(Self::Dnat(port.map(|_| Register::Two)));
        exprs
    }

    /// Says whether two steps do the same, whatever they counted.
    pub fn same(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Counter { .. }, Self::Counter { .. })) || self == other
    }

    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Meta(key) => step(w, "meta", |w| {
                w.number(1, Register::One as u32);
                w.number(2, *key as u32);
            }),
            Self::Payload { header, offset, length } => step(w, "payload", |w| {
                w.number(1, Register::One as u32);
                w.number(2, *header as u32);
                w.number(3, *offset);
                w.number(4, *length);
            }),
            Self::Mask(mask) => step(w, "bitwise", |w| {
                w.number(1, Register::One as u32);
                w.number(2, Register::One as u32);
                w.number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                w.nest(4, |w| w.bytes(1, mask));
                w.nest(5, |w| w.bytes(1, &vec![0; mask.len()]));
            }),
            Self::Equal(value) => step(w, "cmp", |w| compare(w, 0, value)),
            Self::Differs(value) => step(w, "cmp", |w| compare(w, 1, value)),
            Self::Counter { packets, bytes } => step(w, "counter", |w| {
                w.bytes(1, &bytes.to_be_bytes());
                w.bytes(2, &packets.to_be_bytes());
            }),
            Self::Verdict(fate) => step(w, "immediate", |w| {
                w.number(1, 0);
                w.nest(2, |w| {
                    w.nest(2, |w| {
                        w.number(1, fate.code().cast_unsigned());
                        if let Fate::Jump(chain) | Fate::Goto(chain) = fate {
                            w.text(2, chain);
                        }
                    });
                });
            }),
            Self::Load(register, value) => step(w, "immediate", |w| {
                w.number(1, *register as u32);
                w.nest(2, |w| w.bytes(1, value));
            }),
            Self::Snat => step(w, "nat", |w| nat(w, 0, None)),
            Self::Dnat(port) => step(w, "nat", |w| nat(w, 1, *port)),
            Self::Masquerade => step(w, "masq", |_| {}),
            Self::Other(name) => step(w, name, |_| {}),
        }
    }

    fn decode(name: &str, data: Attributes<'_>) -> Self {
        Self::understood(name, data).unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    fn understood(name: &str, data: Attributes<'_>) -> Option<Self> {
        let one = Some(Register::One as u32);
        let value = |kind| data.nested(kind).find(1).map(<[u8]>::to_vec);
        match name {
            "meta" if data.number(1) == one => Some(Self::Meta(Meta::from_number(data.number(2)?)?)),
            "payload" if data.number(1) == one => Some(Self::Payload {
                header: Header::from_number(data.number(2)?)?,
                offset: data.number(3)?,
                length: data.number(4)?,
            }),
            "bitwise" if data.number(1) == one && data.number(2) == one => {
                let plain = value(5)?.iter().all(|&b| b == 0);
                plain.then(|| value(4).map(Self::Mask)).flatten()
            }
            "cmp" if data.number(1) == one => match data.number(2)? {
                0 => value(3).map(Self::Equal),
                1 => value(3).map(Self::Differs),
                _ => None,
            },
            "counter" => Some(Self::Counter { bytes: data.long(1)?, packets: data.long(2)? }),
            "immediate" if data.number(1) == Some(0) => {
                let verdict = data.nested(2).nested(2);
                let code = verdict.number(1)?.cast_signed();
                Some(Self::Verdict(Fate::from_code(code, verdict.text(2))))
            }
            "immediate" => Some(Self::Load(Register::from_number(data.number(1)?)?, value(2)?)),
            "nat" if data.number(3) == one => match (data.number(1)?, data.number(5)) {
                (0, None) => Some(Self::Snat),
                (1, port) => Some(Self::Dnat(port.and_then(Register::from_number))),
                _ => None,
            },
            "masq" => Some(Self::Masquerade),
            // An iptables target is known by its own name, such as REJECT.
            "target" => Some(Self::Other(data.text(1)?)),
            _ => None,
        }
    }
}

fn step(w: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    w.nest(1, |w| {
        w.text(1, name);
        w.nest(2, data);
    });
}

fn compare(w: &mut Writer, operator: u32, value: &[u8]) {
    w.number(1, Register::One as u32);
    w.number(2, operator);
    w.nest(3, |w| w.bytes(1, value));
}

fn nat(w: &mut Writer, kind: u32, port: Option<Register>) {
    w.number(1, kind);
    w.number(2, u32::from(Family::Ip.number()));
    w.number(3, Register::One as u32);
    w.number(4, Register::One as u32);
    if let Some(port) = port {
        w.number(5, port as u32);
        w.number(6, port as u32);
    }
}

/// Returns an interface name as the kernel compares it: 16 bytes, the rest zero.
fn padded(interface: &str) -> Vec<u8> {
    let mut name = interface.as_bytes().to_vec();
    name.resize(16, 0);
    name
}

fn address_in(offset: u32, net: Ipv4Net, compare: fn(Vec<u8>) -> Expr) -> Vec<Expr> {
    let mut exprs = vec![Expr::Payload { header: Header::Network, offset, length: 4 }];
    if net.prefix_len() < 32 {
        exprs.push(Expr::Mask(net.netmask().octets().to_vec()));
    }
    exprs.push(compare(net.network().octets().to_vec()));
    exprs
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
    pub fn add_rule(self, chain: &Chain, exprs: &[Expr]) -> Self {
        self.rule(chain, NLM_F_APPEND, exprs)
    }

    /// Adds a rule at the start of a chain.
    pub fn insert_rule(self, chain: &Chain, exprs: &[Expr]) -> Self {
        self.rule(chain, 0, exprs)
    }

    fn rule(mut self, chain: &Chain, place: u16, exprs: &[Expr]) -> Self {
        let flags = NLM_F_CREATE | place;
        self.writer.message(NEWRULE, flags, chain.family.number(), |w| {
            w.text(1, &chain.table);
            w.text(2, &chain.name);
            w.nest(4, |w| exprs.iter().for_each(|expr| expr.encode(w)));
        });
        self
    }

    /// Deletes a rule by its handle.
    pub fn delete_rule(mut self, chain: &Chain, handle: u64) -> Self {
        self.writer.message(DELRULE, 0, chain.family.number(), |w| {
            w.text(1, &chain.table);
            w.text(2, &chain.name);
            w.bytes(3, &handle.to_be_bytes());
        });
        self
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
pub fn rules(chain: &Chain) -> Result<Vec<Rule>, KernelError> {
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
        Some(Rule { handle: attributes.long(3)?, exprs: attributes.nested(4).map(element).collect() })
    };
    Ok(replies.iter().filter_map(read).collect())
}
