//! What every tunnel is measured on: two namespaces joined by a veth pair, and for ours a pod behind each.
//!
//! ```text
//!  pod 10.8.0.10 ── a 10.77.0.1 ══ veth ══ 10.77.0.2 b ── pod 10.8.0.10
//! ```

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};
use mesh_tests::netns::{Namespace, NetnsError};
use tempfile::TempDir;

/// Namespaces are bound as `mbench<pid>…-NAME`.
pub(crate) const WORD: &str = "mbench";
/// The sender's underlay address.
pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The receiver's underlay address.
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The pod block behind both nodes.
pub(crate) const PODS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 8, 0, 0), 24);
/// The pod behind both nodes.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 10);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);

/// Two namespaces and a folder. Fields are dropped in order.
pub(crate) struct Ground {
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    folder: TempDir,
}

impl Ground {
    /// Makes the namespaces, joined and addressed.
    pub(crate) fn new() -> io::Result<Self> {
        let folder = folder()?;
        let prefix = prefix();
        let made = || -> Result<_, NetnsError> {
            let a = Namespace::new(&prefix, "a", None)?;
            let b = Namespace::new(&prefix, "b", None)?;
            a.veth("eth0", &b, "eth0")?;
            a.address("eth0", IpNet::V4(Ipv4Net::new_assert(A, 24)))?;
            b.address("eth0", IpNet::V4(Ipv4Net::new_assert(B, 24)))?;
            Ok((a, b))
        };
        let (a, b) = made().map_err(io::Error::other)?;
        Ok(Self { a, b, folder })
    }

    /// Returns where files of this round may lie.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a pod behind a node, by a veth of its own as point-to-point CNIs do.
    pub(crate) fn pod(node: &Namespace) -> io::Result<Namespace> {
        let made = || -> Result<_, NetnsError> {
            let pod = Namespace::new(&prefix(), &format!("{}-pod", node.name()), None)?;
            node.sysctl("net/ipv4/ip_forward", "1")?;
            node.veth("pod0", &pod, "eth0")?;
            node.address("pod0", IpNet::V4(Ipv4Net::new_assert(GATEWAY, PODS.prefix_len())))?;
            pod.address("eth0", IpNet::V4(Ipv4Net::new_assert(POD, PODS.prefix_len())))?;
            pod.default_route(GATEWAY.into())?;
            Ok(pod)
        };
        made().map_err(io::Error::other)
    }
}

/// Returns the prefix of our namespaces.
pub(crate) fn prefix() -> String {
    format!("{WORD}{}", std::process::id())
}

/// Makes a folder that goes whatever happens.
pub(crate) fn folder() -> io::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("mesh-bench-").tempdir()?;
    mesh_tests::undo::note(mesh_tests::undo::Leftover::Folder(folder.path().into()));
    Ok(folder)
}
