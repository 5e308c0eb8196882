//! The kernel's own word on what is set in it: every test runs in a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod find;
mod guard;
mod host;
mod keep;
pub(crate) mod lifecycle;
mod several;
#[path = "../../../../tests/harness/skip.rs"]
mod skip;
mod source;

use std::future::Future;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::{Flat, MeshRange};
use nix::sched::{CloneFlags, unshare};

use super::*;
use skip::skip;

/// Runs a test in a fresh network namespace, which ends with its thread; says SKIP without the privilege.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            return skip("network namespaces", &format!("run as root ({error})"));
        }
        // Duplicate address detection would change what `ip` prints while a test compares it.
        let _no_ipv6 = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        run(async {
            up("lo").await;
            test().await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

async fn up(interface: &str) {
    let routes = Routes::open().unwrap();
    let index = routes.link(interface).await.unwrap().unwrap().index;
    let link = rtnetlink::LinkUnspec::new_with_index(index).up().build();
    routes.handle.link().change(link).execute().await.unwrap();
}

/// A TUN device, which is there as long as the value.
fn tun(name: &str) -> tun::Device {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name);
    tun::create(&configuration).unwrap()
}

/// Ends a TUN device. A program that another test is just starting may hold its descriptor a moment longer.
async fn end(device: tun::Device, name: &str) {
    drop(device);
    let routes = Routes::open().unwrap();
    let gone = async {
        while routes.link(name).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
}

fn shape(pods: &[&str]) -> Shape {
    Shape {
        interface: "mesh0".to_owned(),
        range: MeshRange::default(),
        address: Flat(Ipv4Addr::new(241, 1, 0, 7)),
        mtu: 1380,
        pods: pods.iter().map(|p| p.parse().unwrap()).collect(),
        pod_interfaces: vec![],
        home: home("/var/lib/mesh-test"),
    }
}

fn home(folder: &str) -> Home {
    let path = |name: &str| std::path::Path::new(folder).join(name);
    Home { state_dir: path("state"), runtime_dir: path("run"), socket: path("run/meshd.sock") }
}

/// Removes the mesh of `shape`; says what was removed.
async fn clean(interface: &str) -> Result<Vec<String>, KernelError> {
    let state_dir = shape(&[]).home.state_dir;
    let extent = Extent::One { range: None, interface: interface.to_owned(), state_dir };
    cleanup(&extent).await.map(|cleaned| cleaned.removed)
}

/// What `ip` and `nft` print; the product never calls them, the tests do so to compare.
fn printed(command: &str) -> Option<String> {
    let words: Vec<&str> = command.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output();
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            Some(text)
        }
        Err(_) => {
            skip(command, "install iproute2 and nftables");
            None
        }
    }
}

/// Everything that cleanup has to restore.
fn everything() -> Vec<Option<String>> {
    ["ip rule", "ip route show table all", "nft list ruleset", "ip link", "ip address"].map(printed).to_vec()
}

async fn add_address(interface: &str, net: &str) {
    let net: Ipv4Net = net.parse().unwrap();
    let routes = Routes::open().unwrap();
    let index = routes.link(interface).await.unwrap().unwrap().index;
    let add = routes.handle.address().add(index, net.addr().into(), net.prefix_len());
    add.execute().await.unwrap();
    up(interface).await;
}

async fn default_route(interface: &str) {
    let routes = Routes::open().unwrap();
    let index = routes.link(interface).await.unwrap().unwrap().index;
    let route = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).build();
    routes.handle.route().add(route).execute().await.unwrap();
}
