//! Which meshes this host's kernel knows, whose they are, and whether one more has a place beside them.
//!
//! Everything of ours is found by its numbers and names, whoever set it and when: claims and guards among the
//! nftables tables, rules by priority and protocol, routes by protocol. That is also all there is to remove.

use std::collections::BTreeMap;
use std::path::Path;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::{MeshRange, overlap};
use netlink_packet_route::route::RouteType;

use super::error::KernelError;
use super::mark::Owner;
use super::nft::{self, Family};
use super::route::{self, Routes};
use super::{guards, names};
use crate::linux::shape::{Shape, TABLE};

/// A mesh that the kernel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMesh {
    /// Its range.
    pub range: MeshRange,
    /// Whose it is.
    pub owner: Owner,
    /// Whether anybody carries its packets.
    pub life: Life,
    /// Whether it has the numbers that versions before this one gave to any range.
    former: bool,
}

/// Whether anybody carries a mesh's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// Nobody: the range is kept closed.
    Closed,
    /// Its interface is served by a process that made no claim: an older meshd, or a kernel that keeps no claims.
    Served,
    /// A process holds the claim of this number; a later one is larger.
    Claimed(u64),
}

/// Why a mesh has no place beside the others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) sentence: String,
    /// Whether it is by a process of the same configuration, which may be about to end.
    pub(super) passing: bool,
}

/// Who looks for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A daemon that holds its state directory.
    Daemon,
    /// A verb, beside which the daemon of the same configuration may run.
    Verb,
}

/// Finds all of them; claims from `later_than` on are left out, for they came after who asks.
pub(super) async fn present(routes: &Routes, later_than: u64) -> Result<Vec<HostMesh>, KernelError> {
    let mut found = Found::default();
    // Without nftables there are no tables of ours.
    for table in nft::described().unwrap_or_default().into_iter().filter(|table| table.family == Family::Ip) {
        if let (Some(range), Some(_)) = (names::claimed(&table.name), table.owner) {
            if table.handle < later_than {
                found.add(range, Owner::read(&table.mark), Life::Claimed(table.handle));
            }
        } else if let Some((range, interface)) = guards::guarded(&table.name) {
            let mut owner = Owner::read(&table.mark);
            owner.interface = owner.interface.or(interface);
            found.add(range, owner, Life::Closed);
            found.former(range, table.name == names::FIRST_NFT_TABLE);
        }
    }
    for (range, table) in routes.rules().await?.iter().filter_map(route::own_rule) {
        found.add(range, Owner::default(), Life::Closed);
        found.former(range, table == TABLE);
    }
    let own = routes.all_own_routes().await?;
    let links = if own.is_empty() { Vec::new() } else { routes.links().await? };
    for (range, route) in own {
        let served = (route.header.kind == RouteType::Unicast).then(|| route::output(&route)).flatten();
        let link = links.iter().find(|link| Some(link.index) == served);
        let life = if link.is_some_and(|link| link.carrier) { Life::Served } else { Life::Closed };
        let interface = link.map(|link| link.name.clone());
        found.add(range, Owner { interface, ..Owner::default() }, life);
        found.former(range, route::table_of(&route) == TABLE);
    }
    Ok(found.0.into_values().collect())
}

#[derive(Default)]
struct Found(BTreeMap<Ipv4Net, HostMesh>);

impl Found {
    /// Adds what was found of a mesh; who is alive knows best whose it is.
    fn add(&mut self, range: MeshRange, owner: Owner, life: Life) {
        let new = HostMesh { range, owner: Owner::default(), life, former: false };
        let mesh = self.0.entry(range.net()).or_insert(new);
        let newer = life > mesh.life;
        mesh.life = mesh.life.max(life);
        let (first, second) = if newer { (owner, mesh.owner.clone()) } else { (mesh.owner.clone(), owner) };
        mesh.owner = first.or(second);
    }

    fn former(&mut self, range: MeshRange, in_former_place: bool) {
        if let Some(mesh) = self.0.get_mut(&range.net()) {
            mesh.former |= in_former_place && range != MeshRange::default();
        }
    }
}

/// Says whether, and why, a mesh has no place beside others. `joined` tells whether a state directory belongs to a mesh.
pub(super) fn refusal(
    shape: &Shape,
    asker: Asker,
    meshes: &[HostMesh],
    joined: impl Fn(&Path) -> bool,
) -> Option<Refusal> {
    meshes.iter().find_map(|mesh| {
        if overlap(mesh.range.net(), shape.range.net()) {
            mesh.refuses(shape, asker, &joined)
        } else {
            mesh.undoes(shape).or_else(|| mesh.shares_interface(shape))
        }
    })
}

impl HostMesh {
    fn refuses(&self, shape: &Shape, asker: Asker, joined: &impl Fn(&Path) -> bool) -> Option<Refusal> {
        let Self { owner, life, .. } = self;
        let same_dir = owner.state_dir.as_ref() == Some(&shape.home.state_dir);
        let same_interface = owner.interface.as_ref() == Some(&shape.interface);
        let own = match life {
            Life::Claimed(_) => same_dir,
            Life::Served => same_dir || (owner.state_dir.is_none() && same_interface),
            Life::Closed if self.range == shape.range => {
                !owner.state_dir.as_deref().is_some_and(|dir| !same_dir && joined(dir))
            }
            Life::Closed => false,
        };
        match (asker, life) {
            (Asker::Verb, _) | (Asker::Daemon, Life::Closed) if own => None,
            (Asker::Daemon | Asker::Verb, _) => Some(Refusal { sentence: self.sentence(shape), passing: own }),
        }
    }

    /// An older version takes away what has its numbers and another range than its own.
    fn undoes(&self, shape: &Shape) -> Option<Refusal> {
        if !self.former || self.life != Life::Served || names::table(shape.range) != TABLE {
            return None;
        }
        let (range, words) = (self.range, self.owner.words());
        let sentence = format!(
            "an older meshd serves the mesh range {range} on this host ({words}) and takes away the route of {}: start it again with this version first",
            shape.range
        );
        Some(Refusal { sentence, passing: false })
    }

    /// Two meshes on one interface would read each other's packets.
    fn shares_interface(&self, shape: &Shape) -> Option<Refusal> {
        let Self { owner, life, range, .. } = self;
        let other_dir = owner.state_dir.as_ref().is_none_or(|dir| *dir != shape.home.state_dir);
        let same_interface = owner.interface.as_ref() == Some(&shape.interface);
        if !same_interface || !other_dir || *life == Life::Closed {
            return None;
        }
        let sentence = format!(
            "the interface `{}` is that of the mesh {range} on this host ({}): set another `interface` in meshd.toml",
            shape.interface,
            owner.words()
        );
        Some(Refusal { sentence, passing: false })
    }

    fn sentence(&self, shape: &Shape) -> String {
        let words = self.owner.words();
        let what = match (self.range == shape.range, shape.range) {
            (true, range) => format!("the mesh range {range} is that of another mesh on this host"),
            (false, range) => {
                format!("the mesh range {range} overlaps {}, that of another mesh on this host", self.range)
            }
        };
        let leave = "let that one leave its mesh first (`meshd leave` with its --config)";
        let (state, way) = match self.life {
            Life::Claimed(_) => ("its meshd runs", leave.to_owned()),
            Life::Served => ("its interface is in use", leave.to_owned()),
            Life::Closed => (
                "it is stopped and its range closed",
                format!("where that mesh is left for good, run `meshd cleanup --range {}`", self.range),
            ),
        };
        format!("{what} ({words}; {state}); {way}, or choose another range with `[mesh] v4` before the first join")
    }
}
