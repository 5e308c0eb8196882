//! What meshd sets in the kernel, and keeps set: a route into the mesh interface, and the guards that keep
//! mesh-bound packets from ever leaving in clear.
//!
//! ```text
//! survives stop, crash and upgrade (close_range)         lives with the interface (attach)
//!   ip rule 105: to <range> lookup TABLE                   node address /32, DNS address /32 scope host
//!   TABLE: unreachable <range>, worst metric               MTU, queue length, up
//!   nft table ip meshd: its chains (see guards)            TABLE: <range> dev <interface> src <node address>
//! lives with the process (claim)
//!   nft table ip meshd-claim-<range>, empty
//! ```
//! Numbers and names are those of the range (names), so that several meshes live on one host.
//!
//! Everything goes by netlink; nothing is shelled out. All functions act on the network namespace of the
//! calling thread. The [`Keeper`] puts back what others delete; [`cleanup`] removes all of it and only it.

mod claim;
mod cleaning;
mod conflicts;
mod error;
mod events;
mod forward;
mod guards;
mod host;
mod input;
mod ip_rule;
mod legacy;
mod mark;
mod marked_route;
pub mod memory;
mod meshes;
mod names;
mod nfnetlink;
pub mod nft;
mod pod_interfaces;
mod reconciler;
mod route;
mod ruleset;
mod source_guard;

use std::net::SocketAddrV4;

pub use claim::{Claim, claim, rival};
pub use cleaning::{Cleaned, Extent, cleanup, forget, meshes};
pub use error::KernelError;
pub use host::{HostFacts, HostRoute, HostUnderlay, MAX_ROUTES, UnderlayEvents};
pub use mark::Owner;
pub use meshes::{HostMesh, Life};
use names::check_name;
pub use names::{nft_table, table};
pub use reconciler::{Keeper, Upkeep};
use route::Routes;

pub use crate::linux::shape::{
    Guards, Home, HostPart, MARK, MAX_CALLED, MAX_POD_INTERFACES, MAX_SERVED, Obstacle, RULE_PRIORITY, Shape, TABLE,
};

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
    let shape = &pod_interfaces::found(&routes, shape).await;
    let first = nft_table(shape.range) == names::FIRST_NFT_TABLE;
    // Before its own guards are written, for they take the place of what a version before this one had there.
    let carried = if first { guards::take_over(shape) } else { Ok(()) };
    let guards = guards::ensure(shape, true).guards;
    let signed = guards::sign(shape, &guards);
    if !first && guards.filter {
        guards::take_over(shape)?;
    }
    if !first {
        // What a version before this one set for this range; now that its own is in force.
        routes.remove(shape.range, &[TABLE]).await?;
    }
    for error in [carried, signed].into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "nftables guards of before are not taken over");
    }
    Ok(guards)
}

/// Gives the mesh interface its addresses, MTU, queue length and route, and brings it up. Idempotent.
///
/// # Errors
/// `KernelError` if the interface is missing or the kernel refuses a step.
pub async fn attach(shape: &Shape) -> Result<(), KernelError> {
    check_name(&shape.interface)?;
    Routes::open()?.ensure_interface(shape).await.map(drop)
}

/// Finds what stands in the way of mesh packets on this host, and of what the host itself takes part in.
pub async fn obstacles(shape: &Shape, part: &HostPart) -> Vec<Obstacle> {
    conflicts::find(shape, part).await
}

/// Finds which of this host's own chains certainly drops the tunnel's UDP between one of its ports and a peer's address,
/// with the command that opens it.
///
/// # Errors
/// `KernelError` if the kernel does not answer.
pub fn blocks_tunnel(own_port: u16, peer: SocketAddrV4) -> Result<Option<Obstacle>, KernelError> {
    input::blocks_tunnel(own_port, peer)
}

/// Says in sentences what the guards do not hold on this host, and what they dropped so far; nothing of it needs mending.
pub async fn notes(shape: &Shape) -> Vec<String> {
    let Ok(routes) = Routes::open() else { return Vec::new() };
    let shape = pod_interfaces::found(&routes, shape).await;
    pod_interfaces::exempt(&shape).into_iter().chain(guards::dropped(&shape)).collect()
}

/// Says which rules of this host are not read here, if there are any.
pub fn unread() -> Option<String> {
    legacy::tables().map(|tables| legacy::sentence(&tables))
}

/// Reads what lies beneath the tunnel.
///
/// # Errors
/// `KernelError` if the kernel does not answer.
pub async fn underlay() -> Result<HostUnderlay, KernelError> {
    host::read_underlay().await
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
