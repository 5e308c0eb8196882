//! What a node may say of itself: bounds of a report, keys of lanes, and pod blocks.
//!
//! A pod block is refused unless it lies in its site's `pods`, shares no address with another node's block of
//! the site, and with nothing that the mesh or the host needs: the mesh range, loopback and the like, the
//! underlay addresses of the node and of the coordinator.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use mesh_proto::base::addr::{FORBIDDEN, overlap};
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::NodeName;
use mesh_proto::wire::{ErrorCode, MAX_BLOCKS, MAX_ENDPOINTS, MAX_LANES, MAX_OFFERS, NodeFacts};
use mesh_proto::world::allocate::BlockOwner;
use mesh_proto::world::{NodeRecord, World};

use super::change::Refused;
use super::state::keys::tunnel_keys;

/// The smallest MTU that a node may have: what every IPv4 host must take (RFC 791).
const MIN_MTU: u16 = 576;
/// The most agreement keys: the present and the former.
const MAX_AGREEMENT: usize = 2;
/// Longest text of a version.
const MAX_SOFTWARE: usize = 128;
/// Most blocks of one node in use and in quarantine, so that a node that claims and drops blocks in turn
/// cannot use up the range.
const MAX_CHURN: usize = 4 * MAX_BLOCKS;
/// The shortest prefix that a pod block may have.
const MIN_LENGTH: u8 = 8;

/// Refuses a report that no honest node makes.
pub(super) fn limits(facts: &NodeFacts) -> Result<(), Refused> {
    let counts = [
        ("lanes", facts.lanes.len(), MAX_LANES),
        ("former lanes", facts.previous.len(), MAX_LANES),
        ("agreement keys", facts.agreement.len(), MAX_AGREEMENT),
        ("endpoints", facts.endpoints.len(), MAX_ENDPOINTS),
        ("pod blocks", facts.pods.len(), MAX_BLOCKS),
        ("serve offers", facts.serve.len(), MAX_OFFERS),
        ("bytes of version", facts.software.len(), MAX_SOFTWARE),
    ];
    let refuse = |message: String| Err(Refused::new(ErrorCode::Malformed, message));
    if let Some((what, count, most)) = counts.into_iter().find(|(_, count, most)| count > most) {
        return refuse(format!("the node reports {count} {what}; report at most {most}"));
    }
    if facts.lanes.is_empty() {
        return refuse("the node reports no lanes; a meshd has at least one, upgrade it".into());
    }
    let keys: BTreeSet<_> = facts.lanes.iter().map(|lane| lane.key).collect();
    let ports: BTreeSet<_> = facts.lanes.iter().map(|lane| lane.port).collect();
    if keys.len() < facts.lanes.len() || ports.len() < facts.lanes.len() || ports.contains(&0) {
        return refuse("the node reports lanes that share a key or a port, or have none; upgrade its meshd".into());
    }
    if facts.mtu < MIN_MTU {
        let mtu = facts.mtu;
        return refuse(format!("the node reports an MTU of {mtu}; it must be at least {MIN_MTU} bytes"));
    }
    if facts.serve.iter().any(|offer| offer.port == Some(0)) {
        return refuse("the node offers to serve on port 0; use 1 to 65535 in [[serve]]".into());
    }
    Ok(())
}

/// Refuses lanes with a key of another node: peers could not tell the two apart.
pub(super) fn lanes(world: &World, name: &NodeName, facts: &NodeFacts) -> Result<(), String> {
    let keys = tunnel_keys(facts);
    let others = world.nodes.iter().filter(|(other, _)| *other != name);
    let of = |node: &NodeRecord| {
        let of_lanes = node.facts.lanes.iter().chain(&node.facts.previous).any(|lane| keys.contains(&lane.key));
        of_lanes || node.facts.agreement.iter().any(|key| keys.contains(key))
    };
    let mut taken = others.filter(|(_, node)| of(node));
    match taken.next() {
        None => Ok(()),
        Some((other, _)) => Err(format!(
            "the node uses a tunnel key of node `{other}`; a copied state directory? Run `meshd leave` on one of the two and join it again"
        )),
    }
}

/// A node that claims pod blocks.
pub(super) struct Claimant<'a> {
    /// All that is true.
    pub(super) world: &'a World,
    /// Its name.
    pub(super) name: &'a NodeName,
    /// What is known of it.
    pub(super) record: &'a NodeRecord,
    /// What it reports as its underlay addresses.
    pub(super) endpoints: &'a [SocketAddr],
    /// The address that the coordinator sees it at.
    pub(super) observed: IpAddr,
    /// The coordinator's underlay addresses.
    pub(super) underlay: &'a [IpAddr],
    /// The time of the claim.
    pub(super) now: UnixTime,
}

impl Claimant<'_> {
    /// Returns the good claims in order, and a sentence for each bad one. A block that it holds was checked
    /// when it was claimed.
    pub(super) fn check(&self, claims: &[Ipv4Net]) -> (BTreeSet<Ipv4Net>, Vec<String>) {
        let mut good = BTreeSet::new();
        let mut bad = Vec::new();
        let held = |net: &Ipv4Net| self.record.blocks.iter().any(|block| block.real == *net);
        let (old, new): (BTreeSet<_>, BTreeSet<_>) = claims.iter().copied().partition(held);
        good.extend(old);
        let mut room = self.room();
        for net in new {
            let verdict = match good.iter().find(|&&other| overlap(other, net)) {
                Some(other) => Err(format!(
                    "the pod block {net} overlaps {other}, which this node claims too; claim each address once"
                )),
                None if room == 0 => Err(format!(
                    "the pod block {net} is refused for now: this node changed more than {MAX_CHURN} blocks in 10 minutes; wait, or claim larger blocks"
                )),
                None => self.judge(net),
            };
            match verdict {
                Ok(()) => {
                    room -= 1;
                    good.insert(net);
                }
                Err(sentence) => bad.push(sentence),
            }
        }
        (good, bad)
    }

    fn judge(&self, net: Ipv4Net) -> Result<(), String> {
        let (name, range) = (self.name, self.world.mesh.range.net());
        if net.addr() != net.network() {
            let right = net.trunc();
            return Err(format!("the pod block {net} has bits behind its prefix; claim {right}"));
        }
        if net.prefix_len() < MIN_LENGTH {
            return Err(format!("the pod block {net} is larger than a /{MIN_LENGTH}; claim the node's own block only"));
        }
        if let Some(bad) = FORBIDDEN.iter().find(|&&bad| overlap(bad, net)) {
            return Err(format!(
                "the pod block {net} overlaps {bad}, which nobody may claim; set `pods` in meshd.toml to the node's own block"
            ));
        }
        if overlap(range, net) {
            return Err(format!(
                "the pod block {net} overlaps the mesh range {range}; choose another [mesh] v4 before the first join, or other pod addresses"
            ));
        }
        self.judge_site(net)?;
        if let Some((address, whose)) = self.underlay_in(net) {
            return Err(format!(
                "the pod block {net} contains {address}, {whose} underlay address; `{name}` would send its tunnel packets to its pods: claim the pods' block only"
            ));
        }
        Ok(())
    }

    fn judge_site(&self, net: Ipv4Net) -> Result<(), String> {
        let name = &self.record.site;
        let pods = self.world.site(name).map_or(&[][..], |site| &site.pods);
        if pods.is_empty() {
            return Err(format!(
                "the pod block {net} is refused: site `{name}` has no `pods`; add the prefix to its [[site]] in services.toml, or claim no `pods` in meshd.toml"
            ));
        }
        if !pods.iter().any(|prefix| prefix.contains(&net)) {
            let pods: Vec<_> = pods.iter().map(Ipv4Net::to_string).collect();
            return Err(format!(
                "the pod block {net} lies outside the `pods` of site `{name}` ({}); correct `pods` in meshd.toml, or in the [[site]] of services.toml",
                pods.join(", ")
            ));
        }
        let others = self.world.nodes.iter();
        let others = others.filter(|(other, node)| *other != self.name && node.site == *name);
        let mut blocks = others.flat_map(|(other, node)| node.blocks.iter().map(move |b| (other, b)));
        match blocks.find(|(_, block)| overlap(block.real, net)) {
            None => Ok(()),
            Some((other, block)) => Err(format!(
                "the pod block {net} overlaps {} of node `{other}` in the same site `{name}`; give each node its own block, or, if that machine is gone, run `mesh-coordinator revoke {other}` on the coordinator",
                block.real
            )),
        }
    }

    /// Finds an underlay address that a block would swallow: the coordinator's, the one the node is seen at,
    /// or the node's own, if it reports none outside the block (the address of a pod bridge inside is normal).
    fn underlay_in(&self, net: Ipv4Net) -> Option<(Ipv4Addr, &'static str)> {
        let within = |address: IpAddr| match address.to_canonical() {
            IpAddr::V4(v4) if net.contains(&v4) => Some(v4),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        };
        let coordinator = self.underlay.iter().find_map(|&address| within(address));
        if let Some(address) = coordinator {
            return Some((address, "the coordinator's"));
        }
        if let Some(address) = within(self.observed) {
            return Some((address, "the node's own"));
        }
        let own = self.endpoints.iter().map(|endpoint| within(endpoint.ip()));
        let all: Option<Vec<_>> = own.collect();
        let first = all?.first().copied()?;
        Some((first, "the node's own"))
    }

    fn room(&self) -> usize {
        let id = self.record.id;
        let freed = self.world.pool.freed().values().filter(|freed| freed.until > self.now);
        let freed = freed.filter(|freed| matches!(freed.owner, BlockOwner::Block(node, _) if node == id));
        MAX_CHURN.saturating_sub(freed.count() + self.record.blocks.len())
    }
}
