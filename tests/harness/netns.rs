//! Network namespaces made from Rust: one thread lives in each and does what is asked of it there.
//!
//! ```text
//!  test thread ──closure──▶ thread of namespace "c1-n1" ── netlink, sockets, child processes
//!                                   │ unshare(NEWNET | NEWNS)
//!                                   └ bound to /run/netns/<prefix>-c1-n1, where `ip netns` finds it
//! ```
//! A child inherits the network and the mounts of the thread that starts it, so that each namespace can
//! have a resolv.conf of its own, as a pod has. Sockets opened by the thread stay in the namespace and may
//! be used from any thread.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::route::RouteScope;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RulePortRange};
use nix::mount::{MsFlags, mount};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use rtnetlink::{Handle, IpVersion, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::{Builder, Runtime};

use crate::undo::{self, Leftover, Ticket};

/// Where namespaces are bound, as `ip netns` expects them.
pub const FOLDER: &str = "/run/netns";

/// Says what could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The kernel refused a system call.
    #[error("{0}: {1}")]
    System(String, #[source] io::Error),
    /// The kernel refused a netlink request.
    #[error("{0}: {1}")]
    Netlink(String, #[source] rtnetlink::Error),
}

type Job = Box<dyn FnOnce(&Runtime) + Send>;

/// A network namespace; it goes with its last clone.
#[derive(Clone)]
pub struct Namespace(Arc<Shared>);

struct Shared {
    name: String,
    path: PathBuf,
    handle: File,
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ticket: Ticket,
}

impl Namespace {
    /// Makes a namespace with its loopback up, bound as `<prefix>-<name>`. With `resolv` it sees that text
    /// as its /etc/resolv.conf; the text is kept in `folder`.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses, mostly for lack of privilege.
    pub fn new(prefix: &str, name: &str, resolv: Option<(&Path, &str)>) -> Result<Self, NetnsError> {
        let path = Path::new(FOLDER).join(format!("{prefix}-{name}"));
        std::fs::create_dir_all(FOLDER).map_err(system("create /run/netns"))?;
        File::create(&path).map_err(system(&format!("create {}", path.display())))?;
        let ticket = undo::note(Leftover::Mount(path.clone()));
        let resolv = match resolv {
            None => None,
            Some((folder, text)) => {
                let file = folder.join(format!("{name}.resolv.conf"));
                std::fs::write(&file, text).map_err(system("write resolv.conf"))?;
                Some(file)
            }
        };
        let (jobs, inbox) = channel::<Job>();
        let (ready, started) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("ns-{name}"))
            .spawn(move || {
                let entered = enter(resolv.as_deref());
                let failed = entered.is_err();
                let _ = ready.send(entered);
                if !failed {
                    live(&inbox);
                }
            })
            .map_err(system("start a thread"))?;
        let thread_id =
            started.recv().map_err(|_| NetnsError::System("enter".into(), io::ErrorKind::BrokenPipe.into()))??;
        let own = format!("/proc/{}/task/{thread_id}/ns/net", std::process::id());
        mount(Some(own.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| NetnsError::System(format!("bind {}", path.display()), e.into()))?;
        let handle = File::open(&path).map_err(system("open the namespace"))?;
        let namespace = Self(Arc::new(Shared {
            name: name.into(),
            path,
            handle,
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            ticket,
        }));
        namespace.up("lo")?;
        Ok(namespace)
    }

    /// Returns the name without the prefix.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the file that it is bound to.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the inode by which `/proc/PID/ns/net` tells who is inside.
    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.0.handle.metadata().map_or(0, |m| m.ino())
    }

    /// Runs a closure inside and waits for its result.
    ///
    /// # Panics
    /// If the closure panicked.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.submit(move |_| work())
    }

    /// Runs a future inside, on the namespace's own runtime, and waits for its result.
    ///
    /// # Panics
    /// If the future panicked.
    pub fn block_on<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.submit(move |runtime| runtime.block_on(async { work().await }))
    }

    /// Starts a process inside.
    ///
    /// # Errors
    /// As `Command::spawn`.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(move || command.spawn())
    }

    fn submit<T: Send + 'static>(&self, work: impl FnOnce(&Runtime) -> T + Send + 'static) -> T {
        let (result, wait) = channel();
        let job: Job = Box::new(move |runtime| {
            let _ = result.send(work(runtime));
        });
        let jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.as_ref().map(|jobs| jobs.send(job));
        drop(jobs);
        assert!(matches!(sent, Some(Ok(()))), "namespace {} is gone", self.0.name);
        wait.recv().expect("a job inside a namespace does not panic")
    }

    fn netlink<T, F>(&self, what: String, request: impl FnOnce(Handle) -> F + Send + 'static) -> Result<T, NetnsError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, rtnetlink::Error>>,
    {
        let name = self.0.name.clone();
        self.block_on(move || async move {
            let (connection, handle, _) =
                rtnetlink::new_connection().map_err(|e| NetnsError::System(format!("{name}: open netlink"), e))?;
            let driver = tokio::spawn(connection);
            let result = request(handle).await;
            driver.abort();
            result.map_err(|e| NetnsError::Netlink(format!("{name}: {what}"), e))
        })
    }

    /// Returns the index of an interface inside.
    ///
    /// # Errors
    /// `NetnsError` if there is none of that name.
    pub fn index(&self, interface: &str) -> Result<u32, NetnsError> {
        let what = format!("{}: find interface {interface}", self.0.name);
        let interface = interface.to_owned();
        self.run(move || if_nametoindex(interface.as_str())).map_err(|e| NetnsError::System(what, e.into()))
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn up(&self, interface: &str) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("set {interface} up"), move |handle| async move {
            let link = LinkUnspec::new_with_index(index).up().build();
            handle.link().set(link).execute().await
        })
    }

    /// Sets an interface down: what is connected to its other end is cut off, and is not told.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn down(&self, interface: &str) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("set {interface} down"), move |handle| async move {
            let link = LinkUnspec::new_with_index(index).down().build();
            handle.link().set(link).execute().await
        })
    }

    /// Makes a bridge, up.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn bridge(&self, name: &str) -> Result<(), NetnsError> {
        let owned = name.to_owned();
        self.netlink(format!("make bridge {name}"), move |handle| async move {
            let bridge = LinkBridge::new(&owned).mcast_snooping(false).build();
            handle.link().add(bridge).execute().await
        })?;
        self.up(name)
    }

    /// Makes a veth pair, `own` here and `other` in the other namespace, both up.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn veth(&self, own: &str, peer: &Self, other: &str) -> Result<(), NetnsError> {
        // Interface names are unique per namespace, so the far end is born under a name that cannot clash.
        let (near, far) = (own.to_owned(), format!("{own}~"));
        let (there, target) = (other.to_owned(), peer.0.handle.as_raw_fd());
        self.netlink(format!("make veth {own}"), move |handle| async move {
            let pair = LinkVeth::new(&near, &far).build();
            handle.link().add(pair).execute().await?;
            let moved = LinkUnspec::new_with_name(&far).setns_by_fd(target).build();
            handle.link().set(moved).execute().await
        })?;
        let index = peer.index(&format!("{own}~"))?;
        peer.netlink(format!("name veth {other}"), move |handle| async move {
            let link = LinkUnspec::new_with_index(index).name(there).up().build();
            handle.link().set(link).execute().await
        })?;
        self.up(own)
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn enslave(&self, port: &str, bridge: &str) -> Result<(), NetnsError> {
        let (port_index, bridge_index) = (self.index(port)?, self.index(bridge)?);
        self.netlink(format!("put {port} into {bridge}"), move |handle| async move {
            let link = LinkUnspec::new_with_index(port_index).controller(bridge_index).build();
            handle.link().set(link).execute().await
        })
    }

    /// Sets the MTU of an interface, in bytes.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn mtu(&self, interface: &str, bytes: u16) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("set the MTU of {interface}"), move |handle| async move {
            let link = LinkUnspec::new_with_index(index).mtu(bytes.into()).build();
            handle.link().set(link).execute().await
        })
    }

    /// Gives an interface another name.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn rename_link(&self, interface: &str, name: &str) -> Result<(), NetnsError> {
        let (index, name) = (self.index(interface)?, name.to_owned());
        self.netlink(format!("rename {interface}"), move |handle| async move {
            handle.link().set(LinkUnspec::new_with_index(index).name(name).build()).execute().await
        })
    }

    /// Mounts a file system in memory, which goes with the namespace.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn disk(&self, folder: &Path, kilobytes: u32) -> Result<(), NetnsError> {
        let (what, folder) = (format!("{}: mount {}", self.0.name, folder.display()), folder.to_owned());
        let options = format!("size={kilobytes}k,mode=0700");
        let mounted =
            self.run(move || mount(Some("disk"), &folder, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())));
        mounted.map_err(|e| NetnsError::System(what, e.into()))
    }

    /// Lets nobody write to a mounted file system any more, or lets them again.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses, mostly because somebody has a file open to write to it.
    pub fn read_only(&self, folder: &Path, is_read_only: bool) -> Result<(), NetnsError> {
        let (what, folder) = (format!("{}: remount {}", self.0.name, folder.display()), folder.to_owned());
        let flags = if is_read_only { MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY } else { MsFlags::MS_REMOUNT };
        let mounted = self.run(move || mount(None::<&str>, &folder, None::<&str>, flags, None::<&str>));
        mounted.map_err(|e| NetnsError::System(what, e.into()))
    }

    /// Returns the MTU of an interface, in bytes.
    ///
    /// # Errors
    /// `NetnsError` where there is none of that name.
    pub fn mtu_of(&self, interface: &str) -> Result<u32, NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("read the MTU of {interface}"), move |handle| async move {
            use futures_util::TryStreamExt;
            use netlink_packet_route::link::LinkAttribute;
            let found = handle.link().get().match_index(index).execute().try_next().await?;
            let attributes = found.map(|link| link.attributes).unwrap_or_default();
            let mtu =
                attributes.into_iter().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(mtu) } else { None });
            Ok(mtu.unwrap_or(0))
        })
    }

    /// Takes an interface away.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn delete_link(&self, interface: &str) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(
            format!("delete {interface}"),
            move |handle| async move { handle.link().del(index).execute().await },
        )
    }

    /// Gives an interface an address.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn address(&self, interface: &str, address: IpNet) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("give {interface} {address}"), move |handle| async move {
            let add = handle.address().add(index, address.addr(), address.prefix_len());
            add.execute().await
        })
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses or the address is not there.
    pub fn remove_address(&self, interface: &str, address: IpAddr) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("take {address} from {interface}"), move |handle| async move {
            use futures_util::TryStreamExt;
            let found = handle
                .address()
                .get()
                .set_link_index_filter(index)
                .set_address_filter(address)
                .execute()
                .try_next()
                .await?;
            match found {
                Some(message) => handle.address().del(message).execute().await,
                None => Err(rtnetlink::Error::RequestFailed),
            }
        })
    }

    /// Adds a route through a gateway, to `table` (254 is main).
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn route(&self, to: IpNet, via: IpAddr, table: u32) -> Result<(), NetnsError> {
        self.netlink(format!("route {to} via {via}"), move |handle| async move {
            let mut route = RouteMessageBuilder::<IpAddr>::new().table_id(table);
            route = route
                .destination_prefix(to.addr(), to.prefix_len())
                .map_err(|_| rtnetlink::Error::RequestFailed)?
                .gateway(via)
                .map_err(|_| rtnetlink::Error::RequestFailed)?;
            handle.route().add(route.build()).execute().await
        })
    }

    /// Adds a route to what is on an interface's own link.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn link_route(&self, to: Ipv4Net, interface: &str) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("route {to} dev {interface}"), move |handle| async move {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to.network(), to.prefix_len());
            let route = route.output_interface(index).scope(RouteScope::Link).build();
            handle.route().add(route).execute().await
        })
    }

    /// Adds an `ip rule`: packets from a prefix look into a table.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn rule_from(&self, from: Ipv4Net, table: u32, priority: u32) -> Result<(), NetnsError> {
        self.netlink(format!("rule from {from} lookup {table}"), move |handle| async move {
            let rule = handle
                .rule()
                .add()
                .v4()
                .source_prefix(from.addr(), from.prefix_len())
                .table_id(table)
                .priority(priority)
                .action(RuleAction::ToTable);
            rule.execute().await
        })
    }

    /// Takes away every IPv4 rule of a priority, and every IPv4 route of a table.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn forget_routing(&self, priority: u32, table: u8) -> Result<(), NetnsError> {
        self.netlink(format!("forget table {table}"), move |handle| async move {
            use futures_util::TryStreamExt;
            let rules: Vec<_> = handle.rule().get(IpVersion::V4).execute().try_collect().await?;
            let of_ours = RuleAttribute::Priority(priority);
            for rule in rules.into_iter().filter(|r| r.attributes.contains(&of_ours)) {
                handle.rule().del(rule).execute().await?;
            }
            let mut question = RouteMessageBuilder::<Ipv4Addr>::new().build();
            question.header.table = 0;
            question.attributes.clear();
            let routes: Vec<_> = handle.route().get(question).execute().try_collect().await?;
            for route in routes.into_iter().filter(|r| r.header.table == table) {
                handle.route().del(route).execute().await?;
            }
            Ok(())
        })
    }

    /// Discards UDP packets to a range of ports that pass through here.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn block_udp(&self, first: u16, last: u16) -> Result<(), NetnsError> {
        self.block(netlink_packet_route::IpProtocol::Udp, first, last)
    }

    /// Discards TCP packets to a port that are sent here or pass through; `forget_routing(50, …)` ends it.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn block_tcp(&self, port: u16) -> Result<(), NetnsError> {
        self.block(netlink_packet_route::IpProtocol::Tcp, port, port)
    }

    fn block(&self, protocol: netlink_packet_route::IpProtocol, first: u16, last: u16) -> Result<(), NetnsError> {
        self.netlink(format!("block {protocol:?} {first}-{last}"), move |handle| async move {
            let mut rule = handle.rule().add().v4().priority(50).action(RuleAction::Blackhole);
            rule.message_mut().attributes.extend([
                RuleAttribute::IpProtocol(protocol),
                RuleAttribute::DestinationPortRange(RulePortRange { start: first, end: last }),
            ]);
            rule.execute().await
        })
    }

    /// Writes a kernel setting below /proc/sys, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), NetnsError> {
        let what = format!("{}: set {key} to {value}", self.0.name);
        let (key, value) = (format!("/proc/sys/{key}"), value.to_owned());
        self.run(move || std::fs::write(key, value)).map_err(system(&what))
    }

    /// Adds the default route.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn default_route(&self, via: IpAddr) -> Result<(), NetnsError> {
        let everything: IpNet = match via {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0)),
        };
        self.route(everything, via, 254)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let jobs = self.jobs.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(jobs.take());
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
        undo::unmount(&self.path);
        undo::done(self.ticket);
    }
}

fn system(what: &str) -> impl Fn(io::Error) -> NetnsError + use<> {
    let what = what.to_owned();
    move |e| NetnsError::System(what.clone(), e)
}

/// Moves the calling thread into namespaces of its own and returns its id.
fn enter(resolv: Option<&Path>) -> Result<i32, NetnsError> {
    let refused = |what: &str| {
        let what = what.to_owned();
        move |e: nix::Error| NetnsError::System(what, e.into())
    };
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(refused("unshare (root is needed)"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(refused("make mounts private"))?;
    // Not fatal: where it cannot be mounted, /sys/class/net shows the host's interfaces.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>);
    if let Some(file) = resolv {
        let target = Path::new("/etc/resolv.conf");
        mount(Some(file), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(refused("bind resolv.conf"))?;
    }
    Ok(gettid().as_raw())
}

fn live(inbox: &Receiver<Job>) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime needs only an epoll descriptor");
    while let Ok(job) = inbox.recv() {
        job(&runtime);
    }
}

/// Says who is inside a namespace: the processes whose network namespace has this inode.
pub fn inhabitants(inode: u64) -> Vec<u32> {
    use std::os::unix::fs::MetadataExt;
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let ids = processes.flatten().filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| std::fs::metadata(format!("/proc/{id}/ns/net")).is_ok_and(|ns| ns.ino() == inode)).collect()
}

/// Returns the namespaces bound under a prefix.
pub fn bound(prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(FOLDER) else {
        return Vec::new();
    };
    let ours = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(prefix));
    entries.flatten().map(|e| e.path()).filter(ours).collect()
}

/// Removes what killed labs left: namespaces bound as `<word><pid>…-NAME` whose pid is dead, and whoever is inside.
pub fn sweep(word: &str) -> usize {
    use std::os::unix::fs::MetadataExt;
    let mut swept = 0;
    for path in bound(word) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let digits: String = name[word.len()..].chars().take_while(char::is_ascii_digit).collect();
        let Ok(owner) = digits.parse::<u32>() else {
            continue;
        };
        if Path::new(&format!("/proc/{owner}")).exists() {
            continue;
        }
        if let Ok(meta) = std::fs::metadata(&path) {
            for process in inhabitants(meta.ino()) {
                let id = nix::unistd::Pid::from_raw(i32::try_from(process).unwrap_or(0));
                let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL);
            }
        }
        undo::unmount(&path);
        swept += 1;
    }
    swept
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::privilege::privileged;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn two_namespaces_joined_by_a_veth_talk_and_leave_nothing() {
        if !privileged("network namespaces") {
            return;
        }
        let prefix = format!("hn{}", std::process::id());
        let a = Namespace::new(&prefix, "a", None).unwrap();
        let b = Namespace::new(&prefix, "b", None).unwrap();
        a.veth("eth0", &b, "eth0").unwrap();
        a.address("eth0", "10.99.0.1/24".parse().unwrap()).unwrap();
        b.address("eth0", "10.99.0.2/24".parse().unwrap()).unwrap();

        let listener = b.run(|| TcpListener::bind("10.99.0.2:80")).unwrap();
        let stream = a.run(|| TcpStream::connect("10.99.0.2:80")).unwrap();
        assert_eq!(stream.peer_addr().unwrap().to_string(), "10.99.0.2:80");
        assert!(listener.accept().is_ok());

        assert_eq!(bound(&prefix).len(), 2);
        drop((a, b));
        assert!(bound(&prefix).is_empty());
    }

    #[test]
    fn a_process_sees_the_resolv_conf_of_its_namespace() {
        if !privileged("network namespaces") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let prefix = format!("hr{}", std::process::id());
        let text = "nameserver 241.0.0.53\n";
        let ns = Namespace::new(&prefix, "pod", Some((folder.path(), text))).unwrap();

        let mut cat = Command::new("cat");
        cat.arg("/etc/resolv.conf").stdout(std::process::Stdio::piped());
        let output = ns.spawn(cat).unwrap().wait_with_output().unwrap();

        assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    }
}
