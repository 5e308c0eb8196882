//! What is set in the kernel, by which numbers, what guards it, and what stands in the way.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::{Flat, MeshRange};

/// The firewall mark of outer sockets, so that tunnel packets never enter the tunnel.
///
/// It uses none of the bits that kube-proxy (0xc000), Cilium (0x0f00), Calico (0xffff_0000) and the AWS VPC
/// CNI (0x80) give a meaning to.
pub const MARK: u32 = 0x3041;
/// The routing table that holds the default mesh range; not 51820, which wg-quick takes for itself. Other ranges have
/// one each (`names`).
pub const TABLE: u32 = 24_105;
/// The priority of the one `ip rule` of each mesh: after `local` (0, or 100 with Cilium), before every CNI's own.
pub const RULE_PRIORITY: u32 = 105;

/// Most entries of `pod_interfaces`.
pub const MAX_POD_INTERFACES: usize = 8;

/// What one node sets in its kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The name of the mesh interface.
    pub interface: String,
    /// The mesh range.
    pub range: MeshRange,
    /// The node's own address in the mesh.
    pub address: Flat,
    /// The MTU of the mesh interface, in bytes.
    pub mtu: u16,
    /// The pod blocks behind this node, as their interfaces carry them.
    pub pods: Vec<Ipv4Net>,
    /// Interfaces whose pods are routed back over another one; `*` at the end stands for any rest. Up to
    /// `MAX_POD_INTERFACES` are named by the operator, and those of a CNI that is known to do so are found.
    pub pod_interfaces: Vec<String>,
    /// Where its meshd keeps its files.
    pub home: Home,
}

/// Where a meshd keeps its files, by which one mesh on this host is told from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// What survives a reboot.
    pub state_dir: PathBuf,
    /// What a reboot may forget.
    pub runtime_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
}

impl Shape {
    /// Returns the node's second address, as which networks speak that are no pods of it.
    pub fn second(&self) -> Ipv4Addr {
        self.range.second(self.address).0
    }

    /// Returns the address that this node's DNS server listens on.
    pub fn dns(&self) -> Ipv4Addr {
        self.range.dns().0
    }
}

/// Which guards are in force. A guard that is missing says why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guards {
    /// Whether a CNI's masquerading cannot hide a pod behind the node; true where there are no pods.
    pub masquerade: bool,
    /// Whether the filter chains stand: nothing leaves in clear, nobody enters around the mesh interface.
    pub filter: bool,
    /// Whether nobody can call as a pod of this node from elsewhere than that pod's own interface.
    pub sources: bool,
    /// Why a guard is missing, in sentences.
    pub missing: Vec<String>,
}

/// What this node's host itself takes part in, beside its pods: what its own rules may stop.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPart {
    /// The ports of services that this host backs: the number of the transport, the port; at most `MAX_SERVED`.
    pub served: BTreeSet<(u8, u16)>,
    /// Whether it answers its pods' questions for names.
    pub answers_names: bool,
    /// Where peers are called, one address of each; at most `MAX_CALLED`.
    pub called: BTreeSet<Ipv4Addr>,
}

/// Most ports of services of the host itself that are looked for in its rules.
pub const MAX_SERVED: usize = 32;
/// Most addresses of peers whose way is looked up.
pub const MAX_CALLED: usize = 8;

/// Something on this host that stands in the way of mesh packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// What it is, in a word that stays the same.
    pub id: &'static str,
    /// What it is and what it does.
    pub sentence: String,
    /// The command that mends it; empty if there is no single one.
    pub command: String,
    /// Whether the command mends it, and touches nothing but what is of the mesh.
    pub is_safe: bool,
}

impl Obstacle {
    /// One without a word of its own, whose command may do more than is wanted.
    pub fn new(sentence: impl Into<String>, command: impl Into<String>) -> Self {
        Self { id: "host", sentence: sentence.into(), command: command.into(), is_safe: false }
    }

    /// Says what it is in a word.
    #[must_use]
    pub fn named(self, id: &'static str) -> Self {
        Self { id, ..self }
    }

    /// Says that its command touches nothing but what is of the mesh.
    #[must_use]
    pub fn safe(self) -> Self {
        Self { is_safe: true, ..self }
    }
}

impl fmt::Display for Obstacle {
    /// Writes the sentence with the command that mends it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.command.as_str() {
            "" => f.write_str(&self.sentence),
            command => write!(f, "{}; run `{command}`", self.sentence),
        }
    }
}
