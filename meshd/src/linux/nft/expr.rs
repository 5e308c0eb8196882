//! The steps of a rule, as the kernel encodes them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::linux::nfnetlink::{Attributes, Writer};

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
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Other(number) => number,
        }
    }

    pub(super) fn from_number(number: u8) -> Self {
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
    pub(super) fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
            Self::Other(code) => *code,
        }
    }

    pub(super) fn from_code(code: i32, chain: Option<String>) -> Self {
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
        [Self::One, Self::Two].into_iter().find(|&register| register as u32 == number)
    }
}

/// What a packet is asked about itself (NFT_META_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// Its firewall mark, four bytes in host order.
    Mark = 3,
    /// The number of the interface it came in by, four bytes in host order.
    InputIndex = 4,
    /// The name of the interface it came in by, 16 bytes.
    InputName = 6,
    /// The name of the interface it leaves by, 16 bytes.
    OutputName = 7,
    /// Whether it is IPv4 or IPv6, one byte: 2 or 10.
    Protocol = 15,
    /// Its transport protocol, one byte.
    Transport = 16,
}

impl Meta {
    fn from_number(number: u32) -> Option<Self> {
        let all = [Self::Mark, Self::InputIndex, Self::InputName, Self::OutputName, Self::Protocol, Self::Transport];
        all.into_iter().find(|&key| key as u32 == number)
    }
}

/// Which header an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PayloadBase {
    /// The IP header.
    Network = 1,
    /// The TCP or UDP header.
    Transport = 2,
}

impl PayloadBase {
    fn from_number(number: u32) -> Option<Self> {
        [Self::Network, Self::Transport].into_iter().find(|&header| header as u32 == number)
    }
}

/// What the routing tables are asked about a packet (NFT_FIB_RESULT_* with NFTA_FIB_F_*); needs the module nft_fib_ipv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fib {
    /// Over which interface the way back to its source leads, if it is the one that it came in by: that interface's
    /// number, four bytes in host order, or 0 if the way back is another, or none.
    ReturnInterface,
    /// Of which type the route to its source is, four bytes in host order; 2 is an address of this host.
    SourceType,
}

impl Fib {
    /// The answer of `SourceType` for an address of this host (RTN_LOCAL).
    pub const LOCAL: u32 = 2;

    /// Returns what is asked for, and about what.
    fn words(self) -> (u32, u32) {
        const OUTPUT: u32 = 1;
        const TYPE: u32 = 3;
        const OF_SOURCE: u32 = 1;
        const BY_INPUT: u32 = 8;
        match self {
            Self::ReturnInterface => (OUTPUT, OF_SOURCE | BY_INPUT),
            Self::SourceType => (TYPE, OF_SOURCE),
        }
    }

    fn from_words(words: (u32, u32)) -> Option<Self> {
        [Self::ReturnInterface, Self::SourceType].into_iter().find(|fib| fib.words() == words)
    }
}

/// What connection tracking knows of a packet (NFT_CT_*), four bytes in host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Tracked {
    /// How it stands to its connection, one bit.
    State = 0,
    /// What was done to its connection, bits.
    Status = 2,
}

impl Tracked {
    /// The bit of `State` for a packet that begins a connection.
    pub const NEW: u32 = 8;

    fn from_number(number: u32) -> Option<Self> {
        [Self::State, Self::Status].into_iter().find(|&key| key as u32 == number)
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
        header: PayloadBase,
        /// The first byte.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// Loads what the routing tables say of the packet into register one.
    Fib(Fib),
    /// Loads what connection tracking knows of the packet into register one.
    Tracked(Tracked),
    /// Goes on if register one is in a set of this name, or is not if `inverted`; with `decides`, does what the set says.
    Lookup {
        /// The set, of the rule's own table.
        set: String,
        /// Whether what is in it does not match.
        inverted: bool,
        /// Whether the set holds verdicts.
        decides: bool,
    },
    /// Goes on if the packet is of a transport and to one of these ports: the matches `tcp` and `udp` of iptables.
    Ports {
        /// The transport protocol's number.
        transport: u8,
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
    },
    /// Goes on if the packet's `Tracked::State` is one of these bits: the match `conntrack` of iptables.
    States(u32),
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

    /// Matches a packet that came in by an interface of this name or, where it ends in `*`, of one that begins so.
    pub fn input_like(pattern: &str) -> [Self; 2] {
        let name = pattern.strip_suffix('*').map_or_else(|| padded(pattern), |start| start.as_bytes().to_vec());
        [Self::Meta(Meta::InputName), Self::Equal(name)]
    }

    /// Matches a packet that came in by any interface but this.
    pub fn input_differs(interface: &str) -> [Self; 2] {
        [Self::Meta(Meta::InputName), Self::Differs(padded(interface))]
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
    #[cfg(test)]
    pub(crate) fn destination_outside(net: Ipv4Net) -> Vec<Self> {
        address_in(16, net, Self::Differs)
    }

    /// Matches a packet of a transport protocol to a port.
    pub fn destination_port(transport: u8, port: u16) -> [Self; 4] {
        [
            Self::Meta(Meta::Transport),
            Self::Equal(vec![transport]),
            Self::Payload { header: PayloadBase::Transport, offset: 2, length: 2 },
            Self::Equal(port.to_be_bytes().to_vec()),
        ]
    }

    /// Matches an ICMP error that asks for smaller packets (type 3, code 4).
    pub fn is_too_big() -> [Self; 4] {
        [
            Self::Meta(Meta::Transport),
            Self::Equal(vec![1]),
            Self::Payload { header: PayloadBase::Transport, offset: 0, length: 2 },
            Self::Equal(vec![3, 4]),
        ]
    }

    /// Matches a packet whose source is not routed back over the interface that it came in by. Before routing only.
    pub fn is_not_routed_back() -> [Self; 2] {
        [Self::Fib(Fib::ReturnInterface), Self::Equal(vec![0; 4])]
    }

    /// Matches a packet whose source is no address of this host.
    pub fn source_is_foreign() -> [Self; 2] {
        [Self::Fib(Fib::SourceType), Self::Differs(Fib::LOCAL.to_ne_bytes().to_vec())]
    }

    /// Translates the source of a packet. For chains of kind nat at postrouting.
    pub fn snat_to(address: Ipv4Addr) -> [Self; 2] {
        [Self::Load(Register::One, address.octets().to_vec()), Self::Snat]
    }

    /// Matches a packet with a firewall mark.
    pub fn mark_is(mark: u32) -> [Self; 2] {
        [Self::Meta(Meta::Mark), Self::Equal(mark.to_ne_bytes().to_vec())]
    }

    /// Loads the packet's own IPv4 source into register one.
    pub fn load_source() -> Self {
        Self::Payload { header: PayloadBase::Network, offset: 12, length: 4 }
    }

    /// Translates the destination of a packet. For chains of kind nat at prerouting and output.
    #[cfg(test)]
    pub(crate) fn dnat_to(address: Ipv4Addr, port: Option<u16>) -> Vec<Self> {
        let mut exprs = vec![Self::Load(Register::One, address.octets().to_vec())];
        exprs.extend(port.map(|p| Self::Load(Register::Two, p.to_be_bytes().to_vec())));
        exprs.push(Self::Dnat(port.map(|_| Register::Two)));
        exprs
    }

    /// Says whether two steps do the same, whatever they counted.
    pub fn same(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Counter { .. }, Self::Counter { .. })) || self == other
    }

    pub(super) fn encode(&self, w: &mut Writer) {
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
            Self::Fib(fib) => step(w, "fib", |w| {
                let (result, flags) = fib.words();
                w.number(1, Register::One as u32);
                w.number(2, result);
                w.number(3, flags);
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
            Self::Tracked(key) => step(w, "ct", |w| {
                w.number(1, Register::One as u32);
                w.number(2, *key as u32);
            }),
            Self::Lookup { set, inverted, decides } => step(w, "lookup", |w| {
                w.text(1, set);
                w.number(2, Register::One as u32);
                if *decides {
                    w.number(3, 0);
                }
                w.number(5, u32::from(*inverted));
            }),
            // What iptables wrote is read and never written here.
            Self::Ports { .. } | Self::States(_) => step(w, "match", |_| {}),
            Self::Other(name) => step(w, name, |_| {}),
        }
    }

    pub(super) fn decode(name: &str, data: Attributes<'_>) -> Self {
        Self::understood(name, data).unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    fn understood(name: &str, data: Attributes<'_>) -> Option<Self> {
        let one = Some(Register::One as u32);
        let value = |kind| data.nested(kind).find(1).map(<[u8]>::to_vec);
        match name {
            "meta" if data.number(1) == one => Some(Self::Meta(Meta::from_number(data.number(2)?)?)),
            "payload" if data.number(1) == one => Some(Self::Payload {
                header: PayloadBase::from_number(data.number(2)?)?,
                offset: data.number(3)?,
                length: data.number(4)?,
            }),
            "fib" if data.number(1) == one => Fib::from_words((data.number(2)?, data.number(3)?)).map(Self::Fib),
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
            "ct" if data.number(1) == one => Some(Self::Tracked(Tracked::from_number(data.number(2)?)?)),
            "lookup" if data.number(2) == one && matches!(data.number(3), None | Some(0)) => Some(Self::Lookup {
                set: data.text(1)?,
                inverted: data.number(5).is_some_and(|flags| flags & 1 != 0),
                decides: data.number(3).is_some(),
            }),
            "match" => {
                let (name, info) = (data.text(1)?, data.find(3).unwrap_or_default());
                Some(matched(&name, data.number(2)?, info).unwrap_or(Self::Other(name)))
            }
            // An iptables target is known by its own name, such as REJECT.
            "target" => Some(Self::Other(data.text(1)?)),
            _ => None,
        }
    }
}

/// Reads a match of iptables (xt_tcp, xt_udp, xt_conntrack_mtinfo3); `None` for what else it may ask.
fn matched(name: &str, revision: u32, info: &[u8]) -> Option<Expr> {
    let number = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    match name {
        "tcp" | "udp" if number(0)? == 0 && number(2)? == u16::MAX => {
            let rest: &[u8] = if name == "tcp" { info.get(8..12)? } else { info.get(8..9)? };
            let (transport, first, last) = (if name == "tcp" { 6 } else { 17 }, number(4)?, number(6)?);
            // The mask of flags may be anything where no flag is asked for.
            rest.iter().all(|&byte| byte == 0).then_some(Expr::Ports { transport, first, last })
        }
        "conntrack" if revision == 3 => {
            let (asked, inverted, states) = (number(146)?, number(148)?, number(150)?);
            (asked == 1 && inverted == 0).then_some(Expr::States(states.into()))
        }
        "state" => Some(Expr::States(u32::from_ne_bytes(info.get(..4)?.try_into().ok()?))),
        _ => None,
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
    let mut exprs = vec![Expr::Payload { header: PayloadBase::Network, offset, length: 4 }];
    if net.prefix_len() < 32 {
        exprs.push(Expr::Mask(net.netmask().octets().to_vec()));
    }
    exprs.push(compare(net.network().octets().to_vec()));
    exprs
}
