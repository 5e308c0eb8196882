//! The lab as checks see it: the world that runs, what was seen on its underlay, and how it is asked and edited.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use mesh_proto::ops::status::{ServiceStatus, Status};
use mesh_tests::boutique::Role;
use mesh_tests::capture::Capture;
use mesh_tests::topology::{LabWorld, edit};

/// Namespaces are bound as `lab<pid>…-NAME`.
pub(crate) const WORD: &str = "lab";
/// Pages per second in the background.
pub(crate) const PAGES: u64 = 6;
/// Lanes of every node; more than one, so that lanes are exercised everywhere.
pub(crate) const LANES: u16 = 2;
/// How long a freshly started mesh may take to work.
pub(crate) const STARTING: Duration = Duration::from_secs(15);
/// Nodes that join before the VM does.
pub(crate) const FIRST: [&str; 6] = ["c1-n1", "c1-n2", "c2-n1", "c2-n2", "loadgen", "evil"];

/// The lab as checks see it.
pub(crate) struct Lab {
    pub(crate) world: LabWorld,
    pub(crate) capture: Capture,
    /// Every node's kernel before it joined.
    pub(crate) before: BTreeMap<&'static str, String>,
}

impl Lab {
    /// Returns what a node says of itself.
    pub(crate) fn status(&self, node: &str) -> Result<Status, String> {
        self.world.node(node).status().map_err(|e| e.to_string())
    }

    /// Returns a service as a node sees it.
    pub(crate) fn service(&self, node: &str, role: Role) -> Result<ServiceStatus, String> {
        service(&self.world, node, role)
    }

    /// Returns the flat address of a role's pod.
    pub(crate) fn flat(&self, role: Role) -> Result<Ipv4Addr, String> {
        let node = self.world.program(role).node;
        let service = self.service(node, role)?;
        let backend = service.backends.iter().find(|b| b.node.as_str() == node);
        let backend = backend.ok_or_else(|| format!("{} has no backend on {node}", role.service()))?;
        Ok(backend.address.0)
    }

    /// Replaces services.toml, and says when.
    pub(crate) fn edit(&self, text: &str) -> Result<Instant, String> {
        edit(&self.world.coordinator, text).map_err(|e| e.to_string())?;
        Ok(Instant::now())
    }
}

/// Returns a service as a node sees it.
pub(crate) fn service(world: &LabWorld, node: &str, role: Role) -> Result<ServiceStatus, String> {
    let status = world.node(node).status().map_err(|e| e.to_string())?;
    let mut services = status.services.into_iter();
    let found = services.find(|s| s.name.as_str() == role.service());
    found.ok_or_else(|| format!("{node} does not know {}", role.service()))
}

/// Lets nodes join, all at the same time.
pub(crate) fn join(world: &LabWorld, nodes: &[&str]) -> io::Result<()> {
    std::thread::scope(|scope| {
        let joining: Vec<_> = nodes.iter().map(|n| scope.spawn(|| world.join(n))).collect();
        let joined = joining.into_iter().map(|t| t.join());
        { joined }.try_for_each(|ended| ended.map_err(|_| io::Error::other("a thread panicked"))?)
    })
}

/// Starts nodes; they work when they work.
pub(crate) fn start(world: &LabWorld, nodes: &[&str]) -> io::Result<()> {
    nodes.iter().try_for_each(|n| world.node(n).start())
}
