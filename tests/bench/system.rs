//! What is measured: ours, the peers, and the bare veth pair; and the ways through one that runs.

use std::any::Any;
use std::fmt;
use std::net::Ipv4Addr;

use mesh_tests::daemon::Process;
use mesh_tests::netns::Namespace;

use crate::ground::Ground;
use crate::plan::Metric;

/// The port of iperf3's server.
pub(crate) const BULK_PORT: u16 = 5201;
/// The port of ping-pong's server.
pub(crate) const PONG_PORT: u16 = 6000;

/// One system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// meshd, three ways: the node's address, a VIP, and pod to pod through a VIP.
    Ours,
    /// The same from binaries built earlier, to see what a change did.
    Before,
    /// The measuring stick: a static key, all offloads, no other duty.
    Ceiling,
    /// Cloudflare's own program around the library that ours uses.
    BoringtunCli,
    /// Mullvad's successor of it.
    Gotatun,
    /// The reference in Go, with offloads.
    WireguardGo,
    /// Slack's overlay.
    Nebula,
    /// Two TLS proxies with client certificates: what a sidecar mesh does to a connection.
    Haproxy,
    /// Nothing in between.
    Veth,
}

impl System {
    /// Every system, in the order of a round.
    pub(crate) const ALL: [Self; 9] = [
        Self::Ours,
        Self::Before,
        Self::WireguardGo,
        Self::Ceiling,
        Self::Haproxy,
        Self::BoringtunCli,
        Self::Gotatun,
        Self::Nebula,
        Self::Veth,
    ];
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ours => "meshd",
            Self::Before => "before",
            Self::Ceiling => "ceiling",
            Self::BoringtunCli => "boringtun-cli",
            Self::Gotatun => "gotatun",
            Self::WireguardGo => "wireguard-go",
            Self::Nebula => "nebula",
            Self::Haproxy => "haproxy",
            Self::Veth => "veth",
        })
    }
}

/// An address to dial, and who carries what is sent there.
pub(crate) struct DialTarget {
    /// The row of the table.
    pub(crate) name: String,
    /// Who dials.
    pub(crate) from: Namespace,
    /// Who answers.
    pub(crate) at: Namespace,
    /// What to dial.
    pub(crate) address: Ipv4Addr,
    /// The port that leads to iperf3's.
    pub(crate) bulk: u16,
    /// The port that leads to ping-pong's.
    pub(crate) pong: u16,
    /// The processes that carry it, at the sender's end and at the receiver's.
    pub(crate) carriers: Option<(u32, u32)>,
    /// The columns that make sense on it.
    pub(crate) columns: &'static [Metric],
}

impl DialTarget {
    /// A way from `a` to `b` of a ground without port changes, with all columns.
    pub(crate) fn plain(system: System, ground: &Ground, address: Ipv4Addr, carriers: Option<(u32, u32)>) -> Self {
        Self {
            name: system.to_string(),
            from: ground.a.clone(),
            at: ground.b.clone(),
            address,
            bulk: BULK_PORT,
            pong: PONG_PORT,
            carriers,
            columns: columns(system),
        }
    }
}

/// Columns of a way that is measured beside a full stream too.
const FULL: [Metric; 10] = Metric::ALL;
/// Columns of any other tunnel.
const TUNNEL: [Metric; 9] = [
    Metric::Tcp1,
    Metric::Tcp4,
    Metric::Udp1200,
    Metric::Udp64,
    Metric::TripP50,
    Metric::TripP99,
    Metric::Connects,
    Metric::SenderCpu,
    Metric::ReceiverCpu,
];
/// Columns of a proxy, which carries no datagrams.
const PROXY: [Metric; 7] = [
    Metric::Tcp1,
    Metric::Tcp4,
    Metric::TripP50,
    Metric::TripP99,
    Metric::Connects,
    Metric::SenderCpu,
    Metric::ReceiverCpu,
];

fn columns(system: System) -> &'static [Metric] {
    match system {
        System::Ours | System::Before | System::WireguardGo => &FULL,
        System::Ceiling | System::BoringtunCli | System::Gotatun | System::Nebula | System::Veth => &TUNNEL,
        System::Haproxy => &PROXY,
    }
}

/// A system that runs; it ends when the value goes. Fields are dropped in order.
pub(crate) struct RunningSystem {
    /// The ways through it.
    pub(crate) ways: Vec<DialTarget>,
    _keep: Box<dyn Any>,
    _ground: Ground,
}

impl RunningSystem {
    /// Ways that stand as long as `keep` does.
    pub(crate) fn new(ways: Vec<DialTarget>, keep: impl Any, ground: Ground) -> Self {
        Self { ways, _keep: Box::new(keep), _ground: ground }
    }

    /// One way over two processes.
    pub(crate) fn pair(system: System, ground: Ground, processes: [Process; 2], address: Ipv4Addr) -> Self {
        let carriers = (processes[0].id(), processes[1].id());
        let way = DialTarget::plain(system, &ground, address, Some(carriers));
        Self::new(vec![way], processes, ground)
    }
}
