//! The smallest mesh: one coordinator and two nodes, each with a pod of the same address.
//!
//! ```text
//!  a (east) 172.31.1.11 ── router ── 172.31.2.11 b (west)      coordinator 172.31.3.11
//!  └ pod 10.8.0.10 backs `back`      └ pod 10.8.0.10 backs `web`
//! ```

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use mesh_proto::ops::status::{ServiceStatus, Status};
use tempfile::TempDir;

use crate::daemon::{Binaries, Daemon, tail, wait_until};
use crate::netns::Namespace;
use crate::nft;
use crate::topology::{BRIDGE, Network, Underlay, start_coordinator, token, write_coordinator, write_node};

/// The pod block behind both nodes.
pub const PODS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 8, 0, 0), 24);
/// The pod behind both nodes.
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 10);
/// How long a fresh mesh may take to work.
pub const STARTING: Duration = Duration::from_secs(15);

/// The coordinator's services.toml.
pub const SERVICES: &str = r#"version = 1

[mesh]
name = "pair"

[[site]]
name = "east"
kind = "kubernetes"
pods = ["10.8.0.0/14"]

[[site]]
name = "west"
kind = "kubernetes"
pods = ["10.8.0.0/14"]

[[service]]
name = "web"
ports = { http = "80->8080", echo = "7/udp" }
backends = [{ addr = "10.8.0.10", node = "b" }]

[[service]]
name = "back"
ports = { http = "80->8080", echo = "7/udp" }
backends = [{ addr = "10.8.0.10", node = "a" }]

[[service]]
name = "closed"
port = 81
backends = [{ addr = "10.8.0.10", node = "b" }]

[[allow]]
from = ["back"]
to = ["web"]

[[allow]]
from = ["web"]
to = ["back"]

[[allow]]
from = ["host:a"]
to = ["host:b"]

[[allow]]
from = ["host:b"]
to = ["host:a"]
"#;

/// What a pair stands on.
#[derive(Debug, Clone, Copy)]
pub struct PairGround {
    /// The underlay's IP version.
    pub underlay: Underlay,
    /// Lanes of each node.
    pub lanes: u16,
    /// The MTU of the underlay, in bytes.
    pub mtu: u16,
    /// Lines for the meshd.toml of both.
    pub more: &'static str,
}

impl PairGround {
    /// Ethernet, and nothing special.
    pub fn plain(underlay: Underlay, lanes: u16) -> Self {
        Self { underlay, lanes, mtu: 1500, more: "" }
    }
}

/// One node and its pod.
pub struct PairSide {
    /// The node.
    pub node: Daemon,
    /// Its pod.
    pub pod: Namespace,
}

/// The smallest mesh, running. Fields are dropped in order: processes, namespaces, files.
pub struct Pair {
    /// The first node.
    pub a: PairSide,
    /// The second node.
    pub b: PairSide,
    /// The coordinator.
    pub coordinator: Daemon,
    /// Router, subnets, files.
    pub network: Network,
    _folder: TempDir,
}

impl Pair {
    /// Lays it out on plain ground, starts everything, and waits until each node knows the other's services.
    ///
    /// # Errors
    /// With what went wrong and the ends of the logs.
    pub fn start(word: &str, binaries: &Binaries, underlay: Underlay, lanes: u16) -> io::Result<Self> {
        Self::start_on(PairGround::plain(underlay, lanes), word, binaries)
    }

    /// The same on any ground.
    ///
    /// # Errors
    /// With what went wrong and the ends of the logs.
    pub fn start_on(ground: PairGround, word: &str, binaries: &Binaries) -> io::Result<Self> {
        Self::start_versions(ground, word, [binaries; 3])
    }

    /// The same, with programs of different versions: those of `a`, of `b` and of the coordinator.
    ///
    /// # Errors
    /// With what went wrong and the ends of the logs.
    pub fn start_versions(ground: PairGround, word: &str, versions: [&Binaries; 3]) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-pair-").tempdir()?;
        let prefix = format!("{word}{}", std::process::id());
        let network = Network::new(&prefix, folder.path(), 3, ground.underlay).map_err(io::Error::other)?;
        let home = network.host("coordinator", 3, 11).map_err(io::Error::other)?;
        let control = folder.path().join("coordinator");
        std::fs::create_dir(&control)?;
        let coordinator = Daemon::coordinator(&home, &control, versions[2]);
        write_coordinator(&coordinator, network.ip(3, 11), SERVICES)?;
        let a = side(&network, "a", 1, ground, versions[0])?;
        let b = side(&network, "b", 2, ground, versions[1])?;
        let pair = Self { a, b, coordinator, network, _folder: folder };
        pair.run().map_err(|e| {
            let logs = [&pair.coordinator, &pair.a.node, &pair.b.node]
                .map(|d| format!("--- {} ---\n{}", d.name, tail(&d.log(), 15)));
            io::Error::other(format!("{e}\n{}", logs.join("\n")))
        })?;
        Ok(pair)
    }

    fn run(&self) -> io::Result<()> {
        start_coordinator(&self.coordinator, self.network.ip(3, 11))?;
        for (side, site) in [(&self.a, "east"), (&self.b, "west")] {
            let token = token(&self.coordinator, site, &side.node.name)?;
            side.node.expect_config(&["join", &token])?;
            side.node.start()?;
        }
        let known = || {
            let a = self.a.node.status().is_ok_and(|s| has_backend(&s, "web"));
            a && self.b.node.status().is_ok_and(|s| has_backend(&s, "back"))
        };
        if wait_until(STARTING, known) {
            return Ok(());
        }
        Err(io::Error::other("the nodes do not learn of each other's services"))
    }

    /// Returns a service's VIP; who may neither call a service nor carries it does not know it.
    ///
    /// # Panics
    /// If neither node knows it.
    pub fn vip(&self, service: &str) -> Ipv4Addr {
        let of = |node: &Daemon| node.status().expect("the node runs").services;
        let mut services = [&self.a.node, &self.b.node].into_iter().flat_map(of);
        services.find(|s| s.name.as_str() == service).expect("the file names the service").vip.0
    }

    /// Returns a node's own address in the mesh.
    ///
    /// # Panics
    /// If it is no member.
    pub fn address(&self, side: &PairSide) -> Ipv4Addr {
        let status = side.node.status().expect("the node runs");
        status.node.expect("the node has joined").address.0
    }
}

fn has_backend(status: &Status, service: &str) -> bool {
    let backed = |s: &ServiceStatus| s.name.as_str() == service && !s.backends.is_empty();
    status.services.iter().any(backed)
}

fn side(network: &Network, name: &str, subnet: u8, ground: PairGround, binaries: &Binaries) -> io::Result<PairSide> {
    let home = network.host(name, subnet, 11).map_err(io::Error::other)?;
    network.mtu(&home, subnet, 11, ground.mtu).map_err(io::Error::other)?;
    network.pod_bridge(&home, PODS).map_err(io::Error::other)?;
    nft::masquerade(&home, PODS, BRIDGE).map_err(io::Error::other)?;
    let pod = network.pod(&home, PODS, POD).map_err(io::Error::other)?;
    let folder = network.folder.join(name);
    std::fs::create_dir_all(&folder)?;
    let node = Daemon::meshd(name, &home, &folder, binaries);
    write_node(&node, Some(PODS), ground.lanes, ground.more)?;
    Ok(PairSide { node, pod })
}
