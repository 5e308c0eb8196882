//! The bridge of the machines, in a namespace of its own.

use std::io;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

use super::base::{self, DebianSuite};
use super::booted::{BootedMachine, address};
use super::groups;
use super::name_server::NameServer;
use crate::netns::{self, Namespace};

/// What all namespaces of machines begin with, before the process.
const WORD: &str = "bm";

/// The bridge that machines stand on, and their DNS server. It goes after them.
pub struct MachineLan {
    prefix: String,
    _names: NameServer,
    namespace: Namespace,
    folder: TempDir,
}

impl MachineLan {
    /// Makes one for this process, and sweeps what killed ones left. The DNS server knows `known`, a name and an address,
    /// and says of every other name that there is none. `word` tells several of one process apart.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn new(word: &str, known: (&str, Ipv4Addr)) -> io::Result<Self> {
        netns::sweep(WORD);
        groups::sweep(WORD);
        let prefix = format!("{WORD}{}{word}", std::process::id());
        let folder = tempfile::Builder::new().prefix("mesh-booted-").tempdir()?;
        let namespace = Namespace::new(&prefix, "lan", None).map_err(io::Error::other)?;
        // The namespace's own view of interfaces hides the groups of processes, which machines need.
        namespace.run(|| umount2("/sys", MntFlags::MNT_DETACH))?;
        namespace.bridge("lan").map_err(io::Error::other)?;
        let own = IpNet::V4(Ipv4Net::new_assert(address(1), 24));
        namespace.address("lan", own).map_err(io::Error::other)?;
        let names = NameServer::start(&namespace, address(1), known)?;
        Ok(Self { prefix, _names: names, namespace, folder })
    }

    /// Boots a machine and waits until systemd says that it is up.
    ///
    /// # Errors
    /// If it does not come up, with what it printed last.
    pub fn boot(&self, name: &str, suite: DebianSuite, number: u8) -> io::Result<BootedMachine> {
        let base = base::made(suite)?;
        BootedMachine::boot(&self.namespace, self.folder.path(), &self.prefix, name, &base, number)
    }
}
