//! Removing what was set: of one mesh, and nothing of another; or of all.

use std::collections::BTreeSet;
use std::path::PathBuf;

use mesh_proto::base::addr::MeshRange;

use super::error::KernelError;
use super::meshes::{HostMesh, Life, present};
use super::route::Routes;
use super::{guards, names};
use crate::linux::shape::TABLE;

/// How much is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// The mesh of one configuration.
    One {
        /// The range that its state directory tells; none where it belongs to no mesh.
        range: Option<MeshRange>,
        /// The name of its interface.
        interface: String,
        /// Its state directory.
        state_dir: PathBuf,
    },
    /// The mesh of a range.
    Range(MeshRange),
    /// Every mesh.
    All {
        /// The interface of the configuration, which may be left when nothing tells of it.
        interface: String,
    },
}

/// What was removed, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cleaned {
    /// What was removed, in words.
    pub removed: Vec<String>,
    /// The meshes that were removed.
    pub meshes: Vec<HostMesh>,
    /// The meshes that stay.
    pub left: Vec<HostMesh>,
}

/// Lists the meshes that this host's kernel knows, in the order of their ranges.
///
/// # Errors
/// `KernelError` if the kernel does not answer.
pub async fn meshes() -> Result<Vec<HostMesh>, KernelError> {
    present(&Routes::open()?, u64::MAX).await
}

/// Removes rules, routes, guards and interfaces of some meshes from the kernel. Idempotent.
///
/// They are known by their numbers and names; an interface goes only if it is a TUN device, and addresses of ours from
/// any other.
///
/// # Errors
/// `KernelError::Taken` if a meshd runs for one of them, which would put everything back; then nothing is removed.
/// Another if the kernel refuses to remove something.
pub async fn cleanup(extent: &Extent) -> Result<Cleaned, KernelError> {
    let routes = Routes::open()?;
    let found = present(&routes, u64::MAX).await?;
    let (chosen, left): (Vec<HostMesh>, Vec<HostMesh>) = found.into_iter().partition(|mesh| extent.covers(mesh));
    if let Some(mesh) = chosen.iter().find(|mesh| matches!(mesh.life, Life::Claimed(_))) {
        return Err(KernelError::Taken(format!(
            "meshd runs for the mesh range {} ({}) and would put back what is removed; stop it first (systemctl stop meshd)",
            mesh.range,
            mesh.owner.words()
        )));
    }
    let of_others: BTreeSet<&String> = left.iter().filter_map(|mesh| mesh.owner.interface.as_ref()).collect();
    let ranges: Vec<MeshRange> = chosen.iter().map(|mesh| mesh.range).collect();
    let mut removed = Vec::new();
    for interface in extent.interfaces(&chosen) {
        names::check_name(&interface)?;
        if !of_others.contains(&interface) {
            removed.extend(routes.remove_interface(&interface, &ranges).await?);
        }
    }
    for &range in &ranges {
        removed.extend(of_range(&routes, range).await?);
    }
    Ok(Cleaned { removed, meshes: chosen, left })
}

/// Removes what a mesh set in the kernel, while this process holds the claim on its range; says what it removed.
///
/// # Errors
/// `KernelError` if the kernel refuses to remove something.
pub async fn forget(range: MeshRange, interface: &str) -> Result<Vec<String>, KernelError> {
    names::check_name(interface)?;
    let routes = Routes::open()?;
    let others = present(&routes, u64::MAX).await?;
    let is_anothers = |mesh: &HostMesh| mesh.range != range && mesh.owner.interface.as_deref() == Some(interface);
    let mut removed = Vec::new();
    if !others.iter().any(is_anothers) {
        removed = routes.remove_interface(interface, &[range]).await?;
    }
    removed.extend(of_range(&routes, range).await?);
    Ok(removed)
}

async fn of_range(routes: &Routes, range: MeshRange) -> Result<Vec<String>, KernelError> {
    let tables = BTreeSet::from([names::table(range), TABLE]);
    let mut removed = routes.remove(range, &Vec::from_iter(tables)).await?;
    removed.extend(guards::remove(range)?.into_iter().map(|table| format!("nftables table ip {table}")));
    Ok(removed)
}

impl Extent {
    fn covers(&self, mesh: &HostMesh) -> bool {
        match self {
            Self::All { .. } => true,
            Self::Range(range) => mesh.range == *range,
            Self::One { range, interface, state_dir } => match &mesh.owner.state_dir {
                Some(owner) => owner == state_dir || (mesh.life == Life::Closed && Some(mesh.range) == *range),
                None => Some(mesh.range) == *range || mesh.owner.interface.as_ref() == Some(interface),
            },
        }
    }

    fn interfaces(&self, chosen: &[HostMesh]) -> BTreeSet<String> {
        let of_chosen = chosen.iter().filter_map(|mesh| mesh.owner.interface.clone());
        match self {
            Self::All { interface } | Self::One { interface, .. } => of_chosen.chain([interface.clone()]).collect(),
            Self::Range(_) => of_chosen.collect(),
        }
    }
}
