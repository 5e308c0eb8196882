//! Ours: a coordinator and two nodes, each with a pod of the same address, and three ways between them.
//!
//! | row | from | to | what is on the way |
//! |---|---|---|---|
//! | meshd | node a | node b's mesh address | policy at both ends |
//! | meshd, VIP | node a | a service that b itself backs | and balancing |
//! | meshd, pods | pod behind a | a service that a pod behind b backs | and translation at both ends |

use std::io;
use std::net::Ipv4Addr;

use mesh_proto::ops::status::Status;
use mesh_tests::daemon::{Binaries, Daemon, tail, wait_until};
use mesh_tests::netns::Namespace;
use mesh_tests::topology::{start_coordinator, token, write_coordinator, write_node};

use super::tools::STARTING;
use crate::figures::{PLAIN_ROW, PODS_ROW, VIP_ROW};
use crate::ground::{A, Ground, PODS};
use crate::plan::Metric;
use crate::system::{BULK_PORT, DialTarget, PONG_PORT, RunningSystem, System};

const SERVICES: &str = r#"version = 1

[[site]]
name = "east"
kind = "kubernetes"
pods = ["10.8.0.0/14"]

[[site]]
name = "west"
kind = "kubernetes"
pods = ["10.8.0.0/14"]

[[service]]
name = "caller"
port = 1
backends = [{ addr = "10.8.0.10", node = "a" }]

[[service]]
name = "onhost"
ports = { bulk = 5201, bulkudp = "5201/udp", pong = 6000 }
backends = [{ host = "b" }]

[[service]]
name = "inpod"
ports = { bulk = 5201, bulkudp = "5201/udp", pong = 6000 }
backends = [{ addr = "10.8.0.10", node = "b" }]

[[allow]]
from = ["host:a"]
to = ["onhost", "host:b"]

[[allow]]
from = ["caller"]
to = ["inpod"]
"#;

/// The daemons. Fields are dropped in order.
pub(crate) struct OurMesh {
    a: Daemon,
    b: Daemon,
    coordinator: Daemon,
    _pods: [Namespace; 2],
}

/// Starts it and waits until node a knows both services.
pub(crate) fn start(system: System, ground: Ground, binaries: &Binaries, lanes: u16) -> io::Result<RunningSystem> {
    let pods = [Ground::pod(&ground.a)?, Ground::pod(&ground.b)?];
    let home = |name: &str| {
        let folder = ground.folder().join(name);
        std::fs::create_dir(&folder).map(|()| folder)
    };
    let mesh = OurMesh {
        a: Daemon::meshd("a", &ground.a, &home("a")?, binaries),
        b: Daemon::meshd("b", &ground.b, &home("b")?, binaries),
        coordinator: Daemon::coordinator(&ground.a, &home("coordinator")?, binaries),
        _pods: pods.clone(),
    };
    let (onhost, inpod, plain) = mesh.run(lanes).map_err(|e| {
        let logs = [&mesh.coordinator, &mesh.a, &mesh.b].map(|d| format!("--- {} ---\n{}", d.name, tail(&d.log(), 9)));
        io::Error::other(format!("{e}\n{}", logs.join("\n")))
    })?;
    let carriers = mesh.a.id().zip(mesh.b.id());
    let [caller, server] = pods;
    let node = |name: &str, address, columns| DialTarget {
        name: name.replace(PLAIN_ROW, &system.to_string()),
        columns,
        ..DialTarget::plain(system, &ground, address, carriers)
    };
    let plain = DialTarget::plain(system, &ground, plain, carriers);
    let vip = node(VIP_ROW, onhost, &VIP_COLUMNS);
    let pods = DialTarget { from: caller, at: server, ..node(PODS_ROW, inpod, &POD_COLUMNS) };
    Ok(RunningSystem::new(vec![plain, vip, pods], mesh, ground))
}

const VIP_COLUMNS: [Metric; 4] = [Metric::Tcp1, Metric::TripP50, Metric::TripP99, Metric::Connects];
const POD_COLUMNS: [Metric; 6] =
    [Metric::Tcp1, Metric::Tcp4, Metric::Udp1200, Metric::TripP50, Metric::TripP99, Metric::Connects];

impl OurMesh {
    /// Returns the VIPs of both services and b's own address.
    fn run(&self, lanes: u16) -> io::Result<(Ipv4Addr, Ipv4Addr, Ipv4Addr)> {
        write_coordinator(&self.coordinator, A.into(), SERVICES)?;
        start_coordinator(&self.coordinator, A.into())?;
        for (node, site) in [(&self.a, "east"), (&self.b, "west")] {
            write_node(node, Some(PODS), lanes, "")?;
            node.expect_config(&["join", &token(&self.coordinator, site, &node.name)?])?;
            node.start()?;
        }
        let mut found = None;
        let known = || {
            found = self.a.status().ok().as_ref().and_then(|s| vip(s, "onhost").zip(vip(s, "inpod")));
            found.is_some()
        };
        wait_until(STARTING, known);
        let (onhost, inpod) = found.ok_or_else(|| io::Error::other("node a does not learn of the services"))?;
        let plain = self.b.status()?.node.ok_or_else(|| io::Error::other("node b has not joined"))?.address.0;
        Ok((onhost, inpod, plain))
    }
}

fn vip(status: &Status, service: &str) -> Option<Ipv4Addr> {
    let found = status.services.iter().find(|s| s.name.as_str() == service && !s.backends.is_empty());
    found.map(|s| s.vip.0)
}

const _: () = assert!(BULK_PORT == 5201 && PONG_PORT == 6000, "the services' ports");
