//! A node with one pod in a network namespace of its own, and a CNI's rules, as far as guards need them.

use std::io::{ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::nft::{Base, Batch, Chain, Expr, Family, Fate, Hook};
use super::*;

pub(super) const POD: Ipv4Addr = Ipv4Addr::new(10, 8, 1, 10);
pub(super) const POD_BLOCK: &str = "10.8.1.0/24";
pub(super) const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(241, 0, 0, 9);
/// How long a packet may take through one kernel before it is missing.
const PATIENCE: Duration = Duration::from_secs(3);

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, joined to the node's by a veth pair.
pub(super) struct Pod {
    jobs: mpsc::Sender<Job>,
}

impl Pod {
    /// Makes `pod0` in the namespace of the calling thread, `eth0` in the pod's, and their addresses.
    pub(super) async fn start() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, namespace) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(std::fs::File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        let namespace = namespace.recv().unwrap();
        let routes = Routes::open().unwrap();
        let pair = rtnetlink::LinkVeth::new("pod0", "eth0").build();
        routes.handle.link().add(pair).execute().await.unwrap();
        let peer = routes.link("eth0").await.unwrap().unwrap().index;
        let moved = rtnetlink::LinkUnspec::new_with_index(peer)
            .setns_by_fd(std::os::fd::AsRawFd::as_raw_fd(&namespace))
            .build();
        routes.handle.link().change(moved).execute().await.unwrap();
        add_address("pod0", "10.8.1.1/24").await;

        let pod = Self { jobs };
        pod.run(|| {
            run(async {
                add_address("eth0", "10.8.1.10/24").await;
                let routes = Routes::open().unwrap();
                let default =
                    rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new().gateway(Ipv4Addr::new(10, 8, 1, 1)).build();
                routes.handle.route().add(default).execute().await.unwrap();
            });
        });
        pod
    }

    /// Runs a job in the pod and waits for its result.
    pub(super) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).unwrap();
        result.recv().unwrap()
    }

    /// Opens a socket in the pod; it stays there whoever uses it.
    pub(super) fn socket(&self) -> UdpSocket {
        self.run(|| socket((POD, 0)))
    }
}

pub(super) fn socket(address: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What a socket receives, if anything, and from whom.
pub(super) fn received(socket: &UdpSocket) -> Option<(Vec<u8>, std::net::SocketAddr)> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    Some((buffer[..length].to_vec(), from))
}

/// The CNI: it forwards, masquerades its pods to anywhere, and has one ClusterIP that leads to a VIP.
pub(super) fn cni() {
    sysctl("ip_forward", "1");
    let chain = |name: &str, hook, priority| Chain {
        family: Family::Ip,
        table: "cni".to_owned(),
        name: name.to_owned(),
        base: Some(Base { kind: "nat".to_owned(), hook, priority, policy: Fate::Accept }),
    };
    let masquerade = chain("post", Hook::Postrouting, 100);
    let services = chain("pre", Hook::Prerouting, -100);
    let block: Ipv4Net = POD_BLOCK.parse().unwrap();
    let mut hide = Expr::source_in(block);
    hide.extend(Expr::destination_outside(block));
    hide.push(Expr::Masquerade);
    let mut lead = Expr::destination_in(CLUSTER_IP.into());
    lead.extend(Expr::destination_port(17, 80));
    lead.extend(Expr::dnat_to(VIP, Some(7070)));
    Batch::new()
        .add_table(Family::Ip, "cni")
        .add_chain(&masquerade)
        .add_chain(&services)
        .add_rule(&masquerade, &hide)
        .add_rule(&services, &lead)
        .commit()
        .unwrap();
}

pub(super) fn sysctl(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv4/{path}"), value).unwrap();
}

/// The mesh interface as the engine sees it.
pub(super) struct MeshDevice(tun::Device);

/// A UDP packet as it crosses the mesh interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: (Ipv4Addr, u16),
    pub(super) destination: (Ipv4Addr, u16),
    pub(super) payload: Vec<u8>,
}

impl MeshDevice {
    pub(super) async fn start(shape: &Shape) -> Self {
        let device = tun(&shape.interface);
        device.set_nonblock().unwrap();
        attach(shape).await.unwrap();
        Self(device)
    }

    /// The next UDP packet that the kernel routed into the mesh.
    pub(super) fn next(&mut self) -> Option<Packet> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            match self.0.read(&mut buffer) {
                Ok(length) if buffer[0] == 0x45 && buffer[9] == 17 => return Some(parse(&buffer[..length])),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        None
    }

    /// Delivers a packet as the engine does.
    pub(super) fn deliver(&mut self, packet: &Packet) {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        bytes.extend(packet.source.0.octets());
        bytes.extend(packet.destination.0.octets());
        bytes.extend(packet.source.1.to_be_bytes());
        bytes.extend(packet.destination.1.to_be_bytes());
        let length = u16::try_from(packet.payload.len() + 8).unwrap();
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(&packet.payload);
        bytes[2..4].copy_from_slice(&(length + 20).to_be_bytes());
        let sum: u32 = bytes[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        bytes[10..12].copy_from_slice(&(!folded).to_be_bytes());
        assert_eq!(self.0.write(&bytes).unwrap(), bytes.len());
    }
}

fn parse(bytes: &[u8]) -> Packet {
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    Packet { source: (address(12), port(20)), destination: (address(16), port(22)), payload: bytes[28..].to_vec() }
}
