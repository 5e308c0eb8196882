//! Network namespaces for tests: each is a thread that left the others' network, and does what it is told.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use tokio::runtime::{Builder, Runtime};

#[path = "../../../tests/harness/skip.rs"]
pub(crate) mod skip;

type Job = Box<dyn FnOnce(&Runtime) + Send>;

/// A network namespace; it goes with its thread.
pub(crate) struct ThreadNamespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// Says whether namespaces can be made; if not, says what is skipped, and fails under MESH_STRICT=1.
pub(crate) fn privileged(what: &str) -> bool {
    let can = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok()).join().unwrap();
    let device = std::path::Path::new("/dev/net/tun").exists();
    if !can || !device {
        skip::skip(what, "run as root where /dev/net/tun is");
    }
    can && device
}

impl ThreadNamespace {
    /// Makes a namespace with its loopback up.
    pub(crate) fn new() -> Self {
        let (jobs, inbox) = channel::<Job>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            inbox.into_iter().for_each(|job| job(&runtime));
        });
        let namespace = Self { jobs: Some(jobs), thread: Some(thread) };
        namespace.netlink(|handle| async move {
            let lo = index(&handle, "lo").await.unwrap();
            handle.link().set(LinkUnspec::new_with_index(lo).up().build()).execute().await.unwrap();
        });
        namespace
    }

    /// Does something inside.
    pub(crate) fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.enter(|_| f())
    }

    fn enter<T: Send + 'static>(&self, f: impl FnOnce(&Runtime) -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job: Job = Box::new(move |runtime| done.send(f(runtime)).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().unwrap()
    }

    fn netlink<T: Send + 'static, F: Future<Output = T>>(&self, f: impl FnOnce(Handle) -> F + Send + 'static) -> T {
        self.enter(|runtime| {
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                let connection = tokio::spawn(connection);
                let result = f(handle).await;
                connection.abort();
                result
            })
        })
    }

    /// Gives an interface an address and brings it up.
    pub(crate) fn address(&self, interface: &'static str, address: Ipv4Addr, prefix: u8, mtu: u16) {
        self.netlink(move |handle| async move {
            let at = index(&handle, interface).await.unwrap();
            handle.address().add(at, IpAddr::V4(address), prefix).execute().await.unwrap();
            let change = LinkUnspec::new_with_index(at).mtu(mtu.into()).up().build();
            handle.link().set(change).execute().await.unwrap();
        });
    }

    /// Gives an interface an IPv6 address that can be used at once.
    pub(crate) fn address6(&self, interface: &'static str, address: Ipv6Addr, prefix: u8) {
        use netlink_packet_route::address::AddressHeaderFlags;
        self.netlink(move |handle| async move {
            let at = index(&handle, interface).await.unwrap();
            let mut request = handle.address().add(at, IpAddr::V6(address), prefix);
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
            request.execute().await.unwrap();
        });
    }

    /// Takes an address from an interface.
    pub(crate) fn take_address(&self, interface: &'static str, address: Ipv4Addr) {
        use futures_util::TryStreamExt;
        self.netlink(move |handle| async move {
            let at = index(&handle, interface).await.unwrap();
            let all = handle.address().get().set_link_index_filter(at);
            let mut found = all.set_address_filter(IpAddr::V4(address)).execute();
            let message = found.try_next().await.unwrap().unwrap();
            handle.address().del(message).execute().await.unwrap();
        });
    }

    /// Deletes an interface.
    pub(crate) fn delete(&self, interface: &'static str) {
        self.netlink(move |handle| async move {
            let at = index(&handle, interface).await.unwrap();
            handle.link().del(at).execute().await.unwrap();
        });
    }

    /// Says whether there is such an interface.
    pub(crate) fn exists(&self, interface: &'static str) -> bool {
        self.netlink(move |handle| async move { index(&handle, interface).await.is_some() })
    }
}

impl Drop for ThreadNamespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// Joins two namespaces by a cable with an end of that name in each.
pub(crate) fn link(a: &ThreadNamespace, b: &ThreadNamespace, name: &'static str) {
    let far = b.run(|| std::fs::File::open("/proc/thread-self/ns/net").unwrap());
    a.netlink(move |handle| async move {
        handle.link().add(LinkVeth::new(name, "far").build()).execute().await.unwrap();
        let at = index(&handle, "far").await.unwrap();
        let change = LinkUnspec::new_with_index(at).name(name.to_owned()).setns_by_fd(far.as_raw_fd()).build();
        handle.link().set(change).execute().await.unwrap();
    });
}

async fn index(handle: &Handle, interface: &str) -> Option<u32> {
    use futures_util::TryStreamExt;
    let mut links = handle.link().get().match_name(interface.to_owned()).execute();
    links.try_next().await.ok().flatten().map(|link| link.header.index)
}
