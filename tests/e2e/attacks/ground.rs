//! Two nodes, a stranger on the link of one of them, and pods behind that one as four kinds of CNI join them.
//!
//! ```text
//!  stranger 172.31.1.66 ─┐
//!  a (east) 172.31.1.11 ─┴─ router ── 172.31.2.11 b (west)      coordinator 172.31.3.11
//!  ├ cni0 10.8.0.1/24 ─── bridge pod 10.8.0.10                  └ cni0 ─── pod 10.8.0.10 backs `web`
//!  ├ ptp20 ────────────── ptp pod 10.8.0.20, a route of its own
//!  ├ cali30 ───────────── Calico-like pod 10.8.0.30/32, proxy_arp, 169.254.1.1
//!  ├ lxc40, cilium_host ─ Cilium-like pod 10.8.0.40: in by the one, back over the other
//!  └ docker0 172.17.0.1/16 ─ container 172.17.0.5, masqueraded
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use mesh_proto::ops::status::ServiceStatus;
use mesh_tests::daemon::{Binaries, Daemon, tail, wait_until};
use mesh_tests::netns::{Namespace, NetnsError};
use mesh_tests::nft;
use mesh_tests::pair::{POD, PODS, STARTING};
use mesh_tests::topology::{
    BRIDGE, Network, Underlay, daemon_on, start_coordinator, token, write_coordinator, write_node,
};
use meshd::linux::nft::{Base, Batch, Chain, Expr, Family, Fate, Hook, Register, chain, rules};
use tempfile::TempDir;

/// The pods behind `a`, as four kinds of CNI join them.
pub(crate) const BRIDGED: Ipv4Addr = POD;
pub(crate) const PTP: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 20);
const CALICO: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 30);
const CILIUM: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 40);
/// A ClusterIP and a NodePort of `a` that lead to `web`.
pub(crate) const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub(crate) const NODE_PORT: u16 = 30_007;
/// The port of `web` and `back`, and one of `back` that nobody listens on.
pub(crate) const ECHO: u16 = 7;
pub(crate) const QUIET: u16 = 9;
/// The bridge of containers that are no pods, and its network.
const DOCKER: &str = "docker0";
const CONTAINERS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 17, 0, 0), 16);
const MAIN: u32 = 254;

const SERVICES: &str = r#"version = 1

[mesh]
name = "attacks"

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
ports = { echo = "7/udp" }
backends = [{ addr = "10.8.0.10", node = "b" }]

[[service]]
name = "lan"
port = "70->7/udp"
backends = [{ addr = "10.8.0.10", node = "b" }]

[[service]]
name = "back"
ports = { echo = "7/udp", quiet = "9/udp" }
backends = [{ addr = "10.8.0.10", node = "a" }]

[[service]]
name = "others"
port = 81
backends = [
    { addr = "10.8.0.20", node = "a" },
    { addr = "10.8.0.30", node = "a" },
    { addr = "10.8.0.40", node = "a" },
]

[[allow]]
from = ["back", "others", "host:a"]
to = ["web"]

[[allow]]
from = ["masqueraded:a"]
to = ["lan"]

[[allow]]
from = ["web"]
to = ["back"]
"#;

/// What a witness heard: from whom, and what.
type Heard = Arc<Mutex<Vec<(SocketAddr, Vec<u8>)>>>;

/// A server that sends every datagram back and remembers it.
#[derive(Clone)]
pub(crate) struct Witness(Heard);

impl Witness {
    /// It ends with the process.
    pub(crate) fn start(namespace: &Namespace, address: Ipv4Addr, port: u16) -> io::Result<Self> {
        let socket = namespace.run(move || UdpSocket::bind((address, port)))?;
        let heard = Heard::default();
        let list = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                list.lock().unwrap().push((from, buffer[..length].to_vec()));
                let _answered = socket.send_to(&buffer[..length], from);
            }
        });
        Ok(Self(heard))
    }

    /// Returns from whom it heard something, if it did.
    pub(crate) fn heard(&self, payload: &[u8]) -> Option<SocketAddr> {
        self.0.lock().unwrap().iter().find(|(_, said)| said == payload).map(|&(from, _)| from)
    }
}

/// Everything, running. Fields are dropped in order: processes, namespaces, files.
pub(crate) struct AttackGround {
    pub(crate) a: Daemon,
    pub(crate) b: Daemon,
    coordinator: Daemon,
    /// The pod behind `b`, and what it heard on `web`'s port.
    pub(crate) far: Namespace,
    pub(crate) web: Witness,
    /// The pods behind `a`: bridge, ptp, Calico-like, Cilium-like.
    pub(crate) pods: Vec<Namespace>,
    pub(crate) stranger: Namespace,
    pub(crate) container: Namespace,
    network: Network,
    _folder: TempDir,
    said: AtomicU32,
}

impl AttackGround {
    pub(crate) fn start(binaries: &Binaries, filter: &str) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-attacks-").tempdir()?;
        let prefix = format!("at{filter}x{}", std::process::id());
        let network = Network::new(&prefix, folder.path(), 3, Underlay::V4).map_err(io::Error::other)?;
        let daemon = |name, subnet| daemon_on(&network, name, subnet, folder.path(), binaries);
        let (coordinator, a, b) = (daemon("coordinator", 3)?, daemon("a", 1)?, daemon("b", 2)?);
        write_coordinator(&coordinator, network.ip(3, 11), SERVICES)?;
        for node in [&a, &b] {
            network.pod_bridge(&node.namespace, PODS).map_err(io::Error::other)?;
            nft::masquerade(&node.namespace, PODS, BRIDGE).map_err(io::Error::other)?;
            write_node(node, Some(PODS), 1, "")?;
        }
        let far = network.pod(&b.namespace, PODS, POD).map_err(io::Error::other)?;
        let made = lay_out(&prefix, &network, &a.namespace).map_err(io::Error::other)?;
        let (pods, stranger, container) = made;
        nft::masquerade(&a.namespace, CONTAINERS, DOCKER).map_err(io::Error::other)?;
        let web = Witness::start(&far, POD, ECHO)?;
        let said = AtomicU32::new(0);
        let ground = Self { a, b, coordinator, far, web, pods, stranger, container, network, _folder: folder, said };
        ground.run(filter).map_err(|e| {
            let logs = [&ground.coordinator, &ground.a, &ground.b]
                .map(|d| format!("--- {} ---\n{}", d.name, tail(&d.log(), 15)));
            io::Error::other(format!("{e}\n{}", logs.join("\n")))
        })?;
        Ok(ground)
    }

    fn run(&self, filter: &str) -> io::Result<()> {
        start_coordinator(&self.coordinator, self.network.ip(3, 11))?;
        for (node, site) in [(&self.a, "east"), (&self.b, "west")] {
            let token = token(&self.coordinator, site, &node.name)?;
            node.expect_config(&["join", &token])?;
            node.start()?;
        }
        let knows =
            |node: &Daemon, name: &str| node.status().is_ok_and(|s| s.services.iter().any(|s| is_live(s, name)));
        if !wait_until(STARTING, || knows(&self.a, "web") && knows(&self.b, "back")) {
            return Err(io::Error::other("the nodes do not learn of each other's services"));
        }
        let vip = self.vip("web");
        self.a.namespace.run(move || services_of_kubernetes(vip)).map_err(io::Error::other)?;
        for interface in ["all", "default", "eth0", BRIDGE, "ptp20", "cali30", "lxc40", "cilium_host", DOCKER, "mesh0"]
        {
            let key = format!("net/ipv4/conf/{interface}/rp_filter");
            self.a.namespace.sysctl(&key, filter).map_err(io::Error::other)?;
        }
        let calls = || self.pods.iter().all(|pod| self.calls(pod).is_some());
        if wait_until(STARTING, calls) {
            return Ok(());
        }
        let silent: Vec<_> = self.pods.iter().filter(|pod| self.calls(pod).is_none()).map(Namespace::name).collect();
        Err(io::Error::other(format!("honest pods are not heard: {silent:?}")))
    }

    /// Returns a service's VIP.
    pub(crate) fn vip(&self, service: &str) -> Ipv4Addr {
        self.service(service).vip.0
    }

    fn service(&self, name: &str) -> ServiceStatus {
        let services = self.a.status().unwrap().services;
        services.into_iter().find(|s| s.name.as_str() == name).unwrap()
    }

    /// Returns the mesh address of the pod behind `b`.
    pub(crate) fn flat_of_far(&self) -> Ipv4Addr {
        self.service("web").backends[0].address.0
    }

    /// Calls `web` from a namespace, and says as whom it was heard.
    fn calls(&self, from: &Namespace) -> Option<SocketAddr> {
        self.asks(from, (self.vip("web"), ECHO))
    }

    /// Calls a port that leads to the pod behind `b`, and says as whom it was heard.
    pub(crate) fn asks(&self, from: &Namespace, to: (Ipv4Addr, u16)) -> Option<SocketAddr> {
        let payload = self.word("honest");
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        socket.send_to(&payload, to).ok()?;
        let mut buffer = [0; 64];
        let (length, who) = socket.recv_from(&mut buffer).ok()?;
        (buffer[..length] == payload && who == to.into()).then(|| self.web.heard(&payload)).flatten()
    }

    /// Returns a text that nobody said before.
    pub(crate) fn word(&self, what: &str) -> Vec<u8> {
        format!("{what} {}", self.said.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// An attack does not arrive, honest calls do, and the attack arrives once the rules of a guard are taken out;
    /// returns as whom it was heard then.
    pub(crate) fn holds(&self, guard: &str, witness: &Witness, attack: impl Fn(Vec<u8>)) -> SocketAddr {
        let forged: Vec<_> = (0..3).map(|_| self.word("forged")).collect();
        forged.iter().cloned().for_each(&attack);
        honest(self);
        for payload in &forged {
            assert_eq!(witness.heard(payload), None, "a forged packet arrives");
        }
        let mut heard = None;
        // The guard is put back within a second.
        let arrives = wait_until(Duration::from_secs(10), || {
            take_out(&self.a.namespace, guard);
            let payload = self.word("unguarded");
            attack(payload.clone());
            wait_until(Duration::from_millis(100), || {
                heard = witness.heard(&payload);
                heard.is_some()
            })
        });
        assert!(arrives, "the attack does not arrive even without its guard");
        assert!(
            wait_until(Duration::from_secs(5), || stands(&self.a.namespace, guard)),
            "the guard does not come back"
        );
        heard.unwrap()
    }
}

fn is_live(service: &ServiceStatus, name: &str) -> bool {
    service.name.as_str() == name && !service.backends.is_empty()
}

/// Every honest pod, and the node itself, calls and is heard as itself.
pub(crate) fn honest(ground: &AttackGround) {
    let mut heard: Vec<_> = ground.pods.iter().map(|pod| ground.calls(pod).map(|who| who.ip())).collect();
    let last = |who: &Option<std::net::IpAddr>| match who {
        Some(std::net::IpAddr::V4(v4)) => v4.octets()[3],
        Some(std::net::IpAddr::V6(_)) | None => 0,
    };
    assert_eq!(heard.iter().map(last).collect::<Vec<_>>(), [10, 20, 30, 40]);
    heard.push(ground.calls(&ground.a.namespace).map(|who| who.ip()));
    let own = ground.a.status().unwrap().node.unwrap().address.0;
    assert_eq!(heard[4], Some(own.into()));
}

/// Sends a datagram in the name of any address; it is given to the namespace's loopback if it is not there.
pub(crate) fn says(from: &Namespace, source: Ipv4Addr, payload: Vec<u8>, to: (Ipv4Addr, u16)) {
    own(from, source);
    from.run(move || UdpSocket::bind((source, 0)).unwrap().send_to(&payload, to).unwrap());
}

/// Makes an address one of a namespace's own.
pub(crate) fn own(namespace: &Namespace, address: Ipv4Addr) {
    let bound = namespace.run(move || UdpSocket::bind((address, 0)).is_ok());
    if !bound {
        namespace.address("lo", IpNet::V4(address.into())).unwrap();
    }
}

/// Takes the rules of one of meshd's chains out, if it is there.
pub(crate) fn take_out(node: &Namespace, name: &str) {
    let name = name.to_owned();
    node.run(move || {
        if chain(Family::Ip, "meshd", &name).unwrap().is_some() {
            let flushed = Command::new("nft").args(["flush", "chain", "ip", "meshd", &name]).status().unwrap();
            assert!(flushed.success());
        }
    });
}

fn stands(node: &Namespace, name: &str) -> bool {
    let name = name.to_owned();
    node.run(move || chain(Family::Ip, "meshd", &name).unwrap().is_some_and(|chain| !rules(&chain).unwrap().is_empty()))
}

/// What kube-proxy sets: a ClusterIP and a NodePort that lead to a VIP.
fn services_of_kubernetes(vip: Ipv4Addr) -> Result<(), meshd::linux::KernelError> {
    let base = Base { kind: "nat".into(), hook: Hook::Prerouting, priority: -100, policy: Fate::Accept };
    let chain = Chain { family: Family::Ip, table: "kube".into(), name: "services".into(), base: Some(base) };
    let rule = |address: Ipv4Addr, port: u16| {
        let mut exprs = Expr::destination_in(address.into());
        exprs.extend(Expr::destination_port(17, port));
        exprs.push(Expr::Load(Register::One, vip.octets().to_vec()));
        exprs.push(Expr::Load(Register::Two, ECHO.to_be_bytes().to_vec()));
        exprs.push(Expr::Dnat(Some(Register::Two)));
        exprs
    };
    let node = Ipv4Addr::new(172, 31, 1, 11);
    let batch = Batch::new().add_table(Family::Ip, "kube").add_chain(&chain);
    batch.add_rule(&chain, &rule(CLUSTER_IP, ECHO)).add_rule(&chain, &rule(node, NODE_PORT)).commit()
}

/// Joins everybody to node `a`: its pods, the stranger, the container.
fn lay_out(
    prefix: &str,
    network: &Network,
    a: &Namespace,
) -> Result<(Vec<Namespace>, Namespace, Namespace), NetnsError> {
    let gateway = Ipv4Addr::new(10, 8, 0, 1);
    let mut pods = vec![network.pod(a, PODS, BRIDGED)?];
    for (name, own, address, via) in [
        ("ptp", "ptp20", PTP, gateway),
        ("calico", "cali30", CALICO, Ipv4Addr::new(169, 254, 1, 1)),
        ("cilium", "lxc40", CILIUM, gateway),
    ] {
        let pod = Namespace::new(prefix, name, None)?;
        a.veth(own, &pod, "eth0")?;
        pod.address("eth0", IpNet::V4(address.into()))?;
        pod.link_route(via.into(), "eth0")?;
        pod.default_route(via.into())?;
        let back = if name == "cilium" { "cilium_host" } else { own };
        if name == "cilium" {
            a.veth(back, &pod, "eth1")?;
            pod.address("eth1", IpNet::V4(address.into()))?;
        }
        // Without any address on it, the loose filter refuses whatever is not routed back over an interface.
        if name != "calico" {
            a.address(own, IpNet::V4(via.into()))?;
        }
        // Cilium routes its block as a whole.
        let block = Ipv4Net::new_assert(address, if name == "cilium" { 29 } else { 32 });
        a.link_route(block, back)?;
        a.sysctl(&format!("net/ipv4/conf/{own}/proxy_arp"), "1")?;
        pods.push(pod);
    }
    let stranger = network.host("stranger", 1, 66)?;
    for net in ["241.0.0.0/8", "10.96.0.0/16", "10.8.0.0/24"] {
        let net: Ipv4Net =
            net.parse().map_err(|_| NetnsError::System(net.into(), io::ErrorKind::InvalidInput.into()))?;
        stranger.route(IpNet::V4(net), network.ip(1, 11), MAIN)?;
    }
    a.bridge(DOCKER)?;
    let bridge = Ipv4Addr::new(172, 17, 0, 1);
    a.address(DOCKER, IpNet::V4(Ipv4Net::new_assert(bridge, 16)))?;
    let container = Namespace::new(prefix, "container", None)?;
    a.veth("dock5", &container, "eth0")?;
    a.enslave("dock5", DOCKER)?;
    container.address("eth0", IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 17, 0, 5), 16)))?;
    container.default_route(bridge.into())?;
    Ok((pods, stranger, container))
}
