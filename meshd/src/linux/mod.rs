//! What meshd sets in the kernel, and keeps set: a route into the mesh interface, and the guards that keep
//! mesh-bound packets from ever leaving in clear.
//!
//! ```text
//! survives stop, crash and upgrade (close_range)         lives with the interface (attach)
//!   ip rule 105: to <range> lookup TABLE                   node address /32, DNS address /32 scope host
//!   TABLE: unreachable <range>, worst metric               MTU, queue length, up
//!   nft table ip meshd: its chains (see guards)          TABLE: <range> dev <interface> src <node address>
//! ```
//!
//! Everything goes by netlink; nothing is shelled out. All functions act on the network namespace of the
//! calling thread. The [`Keeper`] puts back what others delete; [`cleanup`] removes all of it and only it.

mod conflicts;
mod error;
mod forward;
mod guards;
mod host;
mod nfnetlink;
pub mod nft;
mod pod_interfaces;
mod reconciler;
mod route;
mod source_guard;

pub use error::KernelError;
pub use host::{HostFacts, HostRoute, MAX_ROUTES};
pub use reconciler::{Keeper, Upkeep};
use route::Routes;

pub use crate::linux::shape::{Guards, MARK, MAX_POD_INTERFACES, Obstacle, RULE_PRIORITY, Shape, TABLE};

/// Closes the mesh range: rule, table, unreachable route and guards. Idempotent; outlives the process; needs no interface.
///
/// # Errors
/// `KernelError` if rule or route cannot be set; a guard that cannot be set is told in `Guards`.
pub async fn close_range(shape: &Shape) -> Result<Guards, KernelError> {
    check_name(&shape.interface)?;
    let routes = Routes::open()?;
    // The route first: a rule into an empty table would fall through to the default route.
    routes.ensure_unreachable(shape.range).await?;
    routes.ensure_rule(shape.range).await?;
    let shape = pod_interfaces::found(&routes, shape).await;
    Ok(guards::ensure(&shape, true).guards)
}

/// Gives the mesh interface its addresses, MTU, queue length and route, and brings it up. Idempotent.
///
/// # Errors
/// `KernelError` if the interface is missing or the kernel refuses a step.
pub async fn attach(shape: &Shape) -> Result<(), KernelError> {
    check_name(&shape.interface)?;
    Routes::open()?.ensure_interface(shape).await.map(drop)
}

/// Removes everything of ours from the kernel and says what it removed. Idempotent.
///
/// Rule, routes and table are known by their numbers and names; the interface goes only if it is a TUN
/// device. Stop the daemon first, or its keeper puts everything back.
///
/// # Errors
/// `KernelError` if the kernel refuses to remove something.
pub async fn cleanup(interface: &str) -> Result<Vec<String>, KernelError> {
    check_name(interface)?;
    let mut removed = Routes::open()?.remove(interface).await?;
    if guards::remove()? {
        removed.push(format!("nftables table ip {}", guards::NAME));
    }
    Ok(removed)
}

fn check_name(interface: &str) -> Result<(), KernelError> {
    let good = |b: u8| b.is_ascii_graphic() && b != b'/';
    let fits = (1..=15).contains(&interface.len()) && interface != "." && interface != "..";
    if fits && interface.bytes().all(good) { Ok(()) } else { Err(KernelError::Name(interface.to_owned())) }
}

/// Finds what stands in the way of mesh packets on this host.
pub async fn obstacles(shape: &Shape) -> Vec<Obstacle> {
    conflicts::find(shape).await
}

/// Says in sentences what the guards do not hold on this host, and what they dropped so far; nothing of it needs mending.
pub async fn notes(shape: &Shape) -> Vec<String> {
    let Ok(routes) = Routes::open() else { return Vec::new() };
    let shape = pod_interfaces::found(&routes, shape).await;
    pod_interfaces::exempt(&shape).into_iter().chain(guards::dropped()).collect()
}

/// Reads what this host knows of its own network.
///
/// # Errors
/// `KernelError` if the kernel does not answer.
pub async fn host_facts() -> Result<HostFacts, KernelError> {
    host::read().await
}

pub mod shape;
#[cfg(test)]
pub(crate) mod tests;
