//! The lab's network, laid out in namespaces.
//!
//! ```text
//!                                   router (forwards; every frame passes here)
//!          br1 172.31.1.1/24 ┌──────────┬─────┴─────┬───────────────┐ br4 172.31.4.1/24
//!                            │          │ br2       │ br3           │
//!   ┌── c1-n1 .11 ───────────┤  c2-n1 .11  172.31.2  pc-vm-1 .11    coordinator .11
//!   │   c1-n2 .12 ───────────┘  c2-n2 .12           loadgen .12
//!   │                                               evil    .13
//!   └ cni0 10.8.0.1/24 ─┬─ pod 10.8.0.10 (eth0, default via .1, own resolv.conf)
//!      MASQUERADE       ├─ pod 10.8.0.11
//!                       └─ pod 10.8.0.12
//! ```
//! Nodes `*-n1` carry 10.8.0.0/24 and nodes `*-n2` 10.8.1.0/24, in both clusters. In the other variant c2's
//! pods are 10.12.0.0/24 and 10.12.1.0/24, and nothing else differs.

mod network;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tempfile::TempDir;

use crate::boutique::Role;
use crate::classify::Known;
use crate::control::Control;
use crate::daemon::{Binaries, Daemon, Process, SharedDaemon};
use crate::netns::Namespace;
use crate::nft;

pub use network::{BRIDGE, Network, RESOLV, Underlay};

/// Lane 0's port on every node.
pub const PORT: u16 = 51820;
/// The coordinator's port.
pub const COORDINATOR_PORT: u16 = 7700;

/// Whether both clusters use the same pod addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodCidrs {
    /// Both use 10.8.0.0/14.
    Identical,
    /// c2 uses 10.12.0.0/14.
    Distinct,
}

/// The lab's services.toml.
const SERVICES: &str = include_str!("../lab/boutique.services.toml");

/// Returns the lab's services.toml; only `pods` and `addr` depend on the variant.
pub fn services(cidrs: PodCidrs) -> String {
    if cidrs == PodCidrs::Identical {
        return SERVICES.to_owned();
    }
    let mut site = "";
    let mut text = String::new();
    for line in SERVICES.lines() {
        if line.starts_with("name = ") {
            site = line;
        }
        let of_c2 = line.contains("node = \"c2-") || (line.starts_with("pods") && site.contains("\"c2\""));
        text.push_str(&if of_c2 { line.replace("10.8.", "10.12.") } else { line.to_owned() });
        text.push('\n');
    }
    text
}

/// A machine that runs meshd: name, site, subnet, host number, and the third octet of its pod block.
struct Machine(&'static str, &'static str, u8, u8, Option<u8>);

const MACHINES: [Machine; 7] = [
    Machine("c1-n1", "c1", 1, 11, Some(0)),
    Machine("c1-n2", "c1", 1, 12, Some(1)),
    Machine("c2-n1", "c2", 2, 11, Some(0)),
    Machine("c2-n2", "c2", 2, 12, Some(1)),
    Machine("pc-vm-1", "dc", 3, 11, None),
    Machine("loadgen", "dc", 3, 12, None),
    Machine("evil", "c2", 3, 13, Some(9)),
];

/// Every role's place: the node, and the last octet of its pod if it has one.
const PLACES: [(Role, &str, Option<u8>); 13] = [
    (Role::Frontend, "c2-n1", Some(10)),
    (Role::Recommendation, "c2-n1", Some(11)),
    (Role::Cart, "c2-n2", Some(10)),
    (Role::Redis, "c2-n2", Some(11)),
    (Role::ProductCatalog, "c2-n2", Some(12)),
    (Role::Checkout, "c1-n1", Some(10)),
    (Role::Currency, "c1-n1", Some(11)),
    (Role::Shipping, "c1-n1", Some(12)),
    (Role::Payment, "c1-n2", Some(10)),
    (Role::Email, "c1-n2", Some(11)),
    (Role::Ad, "c1-n2", Some(12)),
    (Role::ProductCatalog, "pc-vm-1", None),
    (Role::LoadGenerator, "loadgen", None),
];

/// A running program of the shop.
pub struct Program {
    /// Its role.
    pub role: Role,
    /// `role@node`, by which it answers.
    pub name: String,
    /// The node it runs on or behind.
    pub node: &'static str,
    /// Its pod's address, or none if it runs on the node itself.
    pub pod: Option<Ipv4Addr>,
    /// Where it runs.
    pub namespace: Namespace,
    /// The way to it.
    pub control: Control,
    process: Option<Process>,
}

/// The whole lab. Fields are dropped in order: processes, namespaces, files.
pub struct LabWorld {
    /// The shop's programs.
    pub programs: Vec<Program>,
    /// The nodes by name.
    pub nodes: BTreeMap<&'static str, SharedDaemon>,
    /// The coordinator.
    pub coordinator: SharedDaemon,
    /// Router, subnets, files.
    pub network: Network,
    /// Whether the masquerading of CNIs could be set, or why not.
    pub masquerade: Result<(), String>,
    /// Which pod addresses c2 has.
    pub cidrs: PodCidrs,
    lanes: u16,
    binaries: Binaries,
    _folder: TempDir,
}

impl LabWorld {
    /// Lays out the network and writes all configuration; nothing runs yet.
    ///
    /// # Errors
    /// If the kernel refuses, mostly for lack of privilege.
    pub fn new(prefix: &str, binaries: &Binaries, cidrs: PodCidrs, lanes: u16) -> io::Result<Self> {
        let temporary = tempfile::Builder::new().prefix("mesh-lab-").tempdir()?;
        crate::undo::note(crate::undo::Leftover::Folder(temporary.path().into()));
        let folder = temporary.path();
        let network = Network::new(prefix, folder, 4, Underlay::V4).map_err(io::Error::other)?;
        let control = folder.join("coordinator");
        std::fs::create_dir(&control)?;
        let home = network.host("coordinator", 4, 11).map_err(io::Error::other)?;
        let coordinator = Arc::new(Daemon::coordinator(&home, &control, binaries));
        write_coordinator(&coordinator, network.ip(4, 11), &services(cidrs))?;
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = MACHINES
                .iter()
                .map(|machine| {
                    let network = &network;
                    scope.spawn(move || place(network, machine, cidrs, lanes, binaries))
                })
                .collect();
            threads.into_iter().map(|t| t.join()).collect()
        });
        let (mut nodes, mut programs, mut masquerade) = (BTreeMap::new(), Vec::new(), Ok(()));
        for placed in made {
            let placed = placed.map_err(|_| io::Error::other("a thread panicked"))??;
            programs.extend(placed.programs);
            masquerade = masquerade.and(placed.masquerade);
            nodes.insert(placed.name, placed.node);
        }
        Ok(Self {
            programs,
            nodes,
            coordinator,
            network,
            masquerade,
            cidrs,
            lanes,
            binaries: binaries.clone(),
            _folder: temporary,
        })
    }

    /// Returns what a capture should know.
    pub fn known(&self) -> Known {
        let address = SocketAddr::new(self.network.ip(4, 11), COORDINATOR_PORT);
        Known { tunnel_ports: (PORT..PORT + self.lanes).collect(), coordinators: [address].into() }
    }

    /// Returns the coordinator's services.toml.
    pub fn services_file(&self) -> PathBuf {
        self.coordinator.folder.join("services.toml")
    }

    /// Returns a node.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn node(&self, name: &str) -> &SharedDaemon {
        self.nodes.get(name).expect("the lab has fixed nodes")
    }

    /// Returns the first program of a role; for the product catalogue, the pod.
    ///
    /// # Panics
    /// Never: every role has a place.
    pub fn program(&self, role: Role) -> &Program {
        let of = |p: &&Program| p.role == role && (p.pod.is_some() || role == Role::LoadGenerator);
        let found = self.programs.iter().find(of);
        found.expect("every role has a place")
    }

    /// Initialises and starts the coordinator, and waits until it answers.
    ///
    /// # Errors
    /// With what it said.
    pub fn start_coordinator(&self) -> io::Result<()> {
        start_coordinator(&self.coordinator, self.network.ip(4, 11))
    }

    /// Makes a token for a node.
    ///
    /// # Errors
    /// With what the coordinator said.
    pub fn token(&self, node: &str) -> io::Result<String> {
        let site = MACHINES.iter().find(|m| m.0 == node).map_or("dc", |m| m.1);
        token(&self.coordinator, site, node)
    }

    /// Lets a node join; it does not run yet.
    ///
    /// # Errors
    /// With what meshd said.
    pub fn join(&self, node: &str) -> io::Result<()> {
        let token = self.token(node)?;
        self.node(node).expect_config(&["join", &token]).map(|_| ())
    }

    /// Starts the shop's programs; they may be started before the mesh is.
    ///
    /// # Errors
    /// As `Command::spawn`.
    pub fn start_programs(&mut self) -> io::Result<()> {
        for program in &mut self.programs {
            let folder = self.network.folder.join(&program.name);
            std::fs::create_dir_all(&folder)?;
            let mut command = Command::new(self.binaries.path("boutique"));
            command
                .arg(program.role.service())
                .args(["--name", &program.name])
                .arg("--control")
                .arg(folder.join("sock"));
            let process = Process::start(&program.namespace, command, &folder.join("log"))?;
            program.process = Some(process);
        }
        Ok(())
    }

    /// Returns every namespace.
    pub fn namespaces(&self) -> Vec<Namespace> {
        let mut all = vec![self.network.router.clone(), self.coordinator.namespace.clone()];
        all.extend(self.nodes.values().map(|n| n.namespace.clone()));
        let pods = self.programs.iter().filter(|p| p.pod.is_some());
        all.extend(pods.map(|p| p.namespace.clone()));
        all
    }
}

struct Placed {
    name: &'static str,
    node: SharedDaemon,
    programs: Vec<Program>,
    masquerade: Result<(), String>,
}

fn place(network: &Network, machine: &Machine, cidrs: PodCidrs, lanes: u16, binaries: &Binaries) -> io::Result<Placed> {
    let &Machine(name, site, subnet, host, block) = machine;
    let home = network.host(name, subnet, host).map_err(io::Error::other)?;
    let second = if site == "c2" && cidrs == PodCidrs::Distinct { 12 } else { 8 };
    let pods = block.map(|third| Ipv4Net::new_assert(Ipv4Addr::new(10, second, third, 0), 24));
    let mut masquerade = Ok(());
    if let Some(pods) = pods {
        network.pod_bridge(&home, pods).map_err(io::Error::other)?;
        masquerade = nft::masquerade(&home, pods, BRIDGE).map_err(|e| e.to_string());
    }
    let mut programs = Vec::new();
    for &(role, node, last) in PLACES.iter().filter(|p| p.1 == name) {
        let pod = pods.zip(last).map(|(pods, last)| Ipv4Addr::from(u32::from(pods.network()) + u32::from(last)));
        let namespace = match pods.zip(pod) {
            Some((pods, pod)) => network.pod(&home, pods, pod).map_err(io::Error::other)?,
            None => home.clone(),
        };
        let name = format!("{}@{node}", role.service());
        programs.push(Program {
            role,
            node,
            pod,
            namespace,
            control: Control::new(&network.folder.join(&name).join("sock")),
            name,
            process: None,
        });
    }
    let folder = network.folder.join(name);
    std::fs::create_dir_all(&folder)?;
    let node = Arc::new(Daemon::meshd(name, &home, &folder, binaries));
    // The attacker speaks WireGuard by itself, and makes no preshared keys.
    let keys = if name == "evil" { "\n[keys]\npreshared = \"off\"\n" } else { "" };
    write_node(&node, pods, lanes, keys)?;
    Ok(Placed { name, node, programs, masquerade })
}

/// Writes a node's meshd.toml; `more` is appended.
///
/// # Errors
/// If the file cannot be written.
pub fn write_node(node: &Daemon, pods: Option<Ipv4Net>, lanes: u16, more: &str) -> io::Result<()> {
    let folder = node.folder.display();
    let pods = pods.map(|p| format!("pods = \"{p}\"\n")).unwrap_or_default();
    let text = format!(
        "name = \"{}\"\nstate_dir = \"{folder}/state\"\nsocket = \"{}\"\nservices = \"{folder}/services.toml\"\nport = {PORT}\nlanes = {lanes}\n{pods}{more}",
        node.name,
        node.socket().display(),
    );
    std::fs::write(node.config(), text)
}

/// Writes coordinator.toml and services.toml.
///
/// # Errors
/// If a file cannot be written.
pub fn write_coordinator(coordinator: &Daemon, address: IpAddr, services: &str) -> io::Result<()> {
    let folder = coordinator.folder.display();
    let public = SocketAddr::new(address, COORDINATOR_PORT);
    let text = format!(
        "listen = \"{public}\"\npublic = \"{public}\"\nstate_dir = \"{folder}/state\"\nservices = \"{folder}/services.toml\"\nadmin_socket = \"{}\"\n",
        coordinator.socket().display(),
    );
    std::fs::write(coordinator.config(), text)?;
    std::fs::write(coordinator.folder.join("services.toml"), services)
}

/// Replaces services.toml as editors do, by renaming: nobody reads half of it.
///
/// # Errors
/// If a file cannot be written.
pub fn edit(coordinator: &Daemon, services: &str) -> io::Result<()> {
    let file = coordinator.folder.join("services.toml");
    let beside = file.with_extension("new");
    std::fs::write(&beside, services)?;
    std::fs::rename(&beside, &file)
}

/// Makes a host on a subnet, and the daemon on it with a folder of its own: the `coordinator`, or the node of that name.
///
/// # Errors
/// Where the kernel or the file system refuses.
pub fn daemon_on(
    network: &Network,
    name: &str,
    subnet: u8,
    folder: &std::path::Path,
    binaries: &Binaries,
) -> io::Result<Daemon> {
    let home = network.host(name, subnet, 11).map_err(io::Error::other)?;
    let files = folder.join(name);
    std::fs::create_dir(&files)?;
    Ok(match name {
        "coordinator" => Daemon::coordinator(&home, &files, binaries),
        _ => Daemon::meshd(name, &home, &files, binaries),
    })
}

/// Initialises and starts a coordinator, and waits until it answers.
///
/// # Errors
/// With what it said.
pub fn start_coordinator(coordinator: &Daemon, address: IpAddr) -> io::Result<()> {
    let public = SocketAddr::new(address, COORDINATOR_PORT).to_string();
    coordinator.expect_config(&["init", "--name", "boutique", "--public", &public])?;
    coordinator.start()?;
    let answers = || coordinator.json(&["status"]).is_ok();
    if crate::daemon::wait_until(std::time::Duration::from_secs(10), answers) {
        return Ok(());
    }
    let said = crate::daemon::tail(&coordinator.log(), 20);
    Err(io::Error::other(format!("the coordinator does not answer: {said}")))
}

/// Makes a join token.
///
/// # Errors
/// With what the coordinator said.
pub fn token(coordinator: &Daemon, site: &str, node: &str) -> io::Result<String> {
    let said = coordinator.expect(&["token", "create", "--site", site, "--name", node])?;
    Ok(said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::boutique::edges;

    #[test]
    fn the_two_variants_differ_in_pods_and_addr_only() {
        let (same, other) = (services(PodCidrs::Identical), services(PodCidrs::Distinct));
        let differing: Vec<_> = same.lines().zip(other.lines()).filter(|(a, b)| a != b).collect();
        assert_eq!(differing.len(), 6);
        for (a, b) in differing {
            assert!(a.contains("pods") || a.contains("addr"), "{a}");
            assert_eq!(a.replace("10.8.", "10.12."), b);
        }
    }

    #[test]
    fn the_file_and_the_layout_agree() {
        for (role, node, last) in PLACES.iter().filter(|p| p.0 != Role::LoadGenerator) {
            let third = if node.ends_with("n1") { 0 } else { 1 };
            let backend = match last {
                Some(last) => format!("addr = \"10.8.{third}.{last}\", node = \"{node}\""),
                None => format!("host = \"{node}\""),
            };
            let service =
                SERVICES.split("[[service]]").find(|s| s.contains(&format!("name = \"{}\"", role.service()))).unwrap();
            assert!(service.contains(&backend), "{} {backend}", role.service());
        }
        assert_eq!(edges().count(), 16);
    }

    #[test]
    fn pods_behind_a_node_reach_each_other() {
        if !crate::privilege::privileged("network namespaces") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let prefix = format!("ht{}", std::process::id());
        let network = Network::new(&prefix, folder.path(), 1, Underlay::V4).unwrap();
        let node = network.host("n1", 1, 11).unwrap();
        let pods = "10.8.0.0/24".parse().unwrap();
        network.pod_bridge(&node, pods).unwrap();
        let a = network.pod(&node, pods, "10.8.0.10".parse().unwrap()).unwrap();
        let b = network.pod(&node, pods, "10.8.0.11".parse().unwrap()).unwrap();

        let listener = b.run(|| std::net::TcpListener::bind("0.0.0.0:80")).unwrap();
        let stream = a.run(|| std::net::TcpStream::connect("10.8.0.11:80")).unwrap();

        drop((listener.accept().unwrap(), stream));
    }
}
