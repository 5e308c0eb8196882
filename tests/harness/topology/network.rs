//! The underlay: a router, its subnets, hosts on them, and pods behind hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};

use crate::netns::{Namespace, NetnsError};

/// The pods' bridge on every node.
pub const BRIDGE: &str = "cni0";
/// What pods and hosts resolve names with, as a cluster would write it.
pub const RESOLV: &str =
    "nameserver 241.0.0.53\nsearch default.mesh.internal mesh.internal\noptions ndots:5 timeout:1 attempts:5\n";

/// Which IP version the underlay has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// The router and its subnets; hosts are attached to them.
pub struct Network {
    /// Where all underlay traffic passes.
    pub router: Namespace,
    /// Files of everybody.
    pub folder: PathBuf,
    prefix: String,
    underlay: Underlay,
}

impl Network {
    /// Makes the router with subnets numbered 1 to `subnets`.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn new(prefix: &str, folder: &Path, subnets: u8, underlay: Underlay) -> Result<Self, NetnsError> {
        let router = Namespace::new(prefix, "router", None)?;
        let network = Self { router, folder: folder.into(), prefix: prefix.into(), underlay };
        let router = &network.router;
        quiet_ipv6(router)?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for subnet in 1..=subnets {
            let bridge = format!("br{subnet}");
            router.bridge(&bridge)?;
            router.address(&bridge, network.address(subnet, 1))?;
        }
        Ok(network)
    }

    fn address(&self, subnet: u8, host: u8) -> IpNet {
        let length = match self.underlay {
            Underlay::V4 => 24,
            Underlay::V6 => 64,
        };
        IpNet::new_assert(self.ip(subnet, host), length)
    }

    /// Returns the underlay address of a host.
    pub fn ip(&self, subnet: u8, host: u8) -> IpAddr {
        match self.underlay {
            Underlay::V4 => Ipv4Addr::new(172, 31, subnet, host).into(),
            Underlay::V6 => Ipv6Addr::new(0xfd31, u16::from(subnet), 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// Attaches a host to a subnet: eth0, an address, the default route.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn host(&self, name: &str, subnet: u8, host: u8) -> Result<Namespace, NetnsError> {
        let resolv = Some((self.folder.as_path(), RESOLV));
        let namespace = Namespace::new(&self.prefix, name, resolv)?;
        quiet_ipv6(&namespace)?;
        let port = format!("v{subnet}-{host}");
        self.router.veth(&port, &namespace, "eth0")?;
        self.router.enslave(&port, &format!("br{subnet}"))?;
        namespace.address("eth0", self.address(subnet, host))?;
        namespace.default_route(self.ip(subnet, 1))?;
        Ok(namespace)
    }

    /// Sets the MTU of a host's line to its subnet, at both ends, in bytes.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn mtu(&self, host: &Namespace, subnet: u8, address: u8, bytes: u16) -> Result<(), NetnsError> {
        self.router.mtu(&format!("v{subnet}-{address}"), bytes)?;
        host.mtu("eth0", bytes)?;
        self.router.mtu(&format!("br{subnet}"), bytes)
    }

    /// Moves a host to another address of its subnet.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn renumber(&self, host: &Namespace, subnet: u8, from: u8, to: u8) -> Result<(), NetnsError> {
        // The last IPv4 address takes the routes with it; IPv6 routes stay.
        host.remove_address("eth0", self.ip(subnet, from))?;
        host.address("eth0", self.address(subnet, to))?;
        match self.underlay {
            Underlay::V4 => host.default_route(self.ip(subnet, 1)),
            Underlay::V6 => Ok(()),
        }
    }

    /// Gives a host a bridge for pods and lets it forward, as a Kubernetes node does.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn pod_bridge(&self, node: &Namespace, pods: Ipv4Net) -> Result<(), NetnsError> {
        node.sysctl("net/ipv4/ip_forward", "1")?;
        node.bridge(BRIDGE)?;
        let gateway = Ipv4Addr::from(u32::from(pods.network()) + 1);
        let gateway = Ipv4Net::new_assert(gateway, pods.prefix_len());
        node.address(BRIDGE, IpNet::V4(gateway))
    }

    /// Makes a pod behind a node.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn pod(&self, node: &Namespace, pods: Ipv4Net, address: Ipv4Addr) -> Result<Namespace, NetnsError> {
        let name = format!("{}-{address}", node.name());
        let pod = Namespace::new(&self.prefix, &name, Some((&self.folder, RESOLV)))?;
        quiet_ipv6(&pod)?;
        let port = format!("veth{}", address.octets()[3]);
        node.veth(&port, &pod, "eth0")?;
        node.enslave(&port, BRIDGE)?;
        let own = Ipv4Net::new_assert(address, pods.prefix_len());
        pod.address("eth0", IpNet::V4(own))?;
        pod.default_route(Ipv4Addr::from(u32::from(pods.network()) + 1).into())?;
        Ok(pod)
    }
}

/// Addresses are usable at once: no duplicate address detection, no router solicitations.
fn quiet_ipv6(namespace: &Namespace) -> Result<(), NetnsError> {
    for scope in ["all", "default"] {
        for (key, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/{key}"), value)?;
        }
    }
    Ok(())
}
