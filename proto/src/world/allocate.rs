//! Who gets which address: VIPs, node addresses and flat blocks, each from its part of the mesh range.
//!
//! ```text
//!   241.0.0.0/16  VIPs       one address per service; .0.53 is every node's own DNS address
//!   241.1.0.0/16  nodes      one address per node, its second one in the other half (`MeshRange::second`)
//!   the rest      blocks     one prefix per pod block, of the same length, aligned to it
//! ```
//! What is freed rests for `QUARANTINE` before another may have it, so that no receiver still knows it by its
//! former identity; the former owner may have it back at once. The search starts behind what was given out
//! last, so that reuse comes as late as possible. Everything here is a pure function of its arguments.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::addr::{Flat, MeshRange};
use crate::base::clock::UnixTime;
use crate::base::id::{NodeId, ServiceId, ServiceKey};

/// How long a freed address or block rests before another may have it.
pub const QUARANTINE: Duration = Duration::from_secs(600);

/// How many numbers are passed over after the state went back.
const LEAP: u32 = 1 << 20;

/// Whom something belonged to before it was freed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockOwner {
    /// A service's VIP.
    Service(ServiceKey),
    /// A node's address.
    Node(NodeId),
    /// The image of a node's pod block.
    Block(NodeId, Ipv4Net),
}

/// Something freed, and when others may have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    /// The address (as a /32) or block.
    pub net: Ipv4Net,
    /// Whom it belonged to, and who may have it back at once.
    pub owner: BlockOwner,
    /// When the quarantine ends.
    pub until: UnixTime,
}

/// A part of the range is used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// No VIP is left.
    #[error(
        "no address for another service is left in {0}; remove services, or wait until freed addresses end their 10 minutes of rest"
    )]
    Vips(Ipv4Net),
    /// No node address is left.
    #[error(
        "no address for another node is left in {0}; revoke nodes that are gone, or wait until freed addresses end their 10 minutes of rest"
    )]
    Nodes(Ipv4Net),
    /// No free place of this length is left.
    #[error(
        "no free block of length /{length} is left in {range}; claim smaller blocks, or choose a larger [mesh] v4 before the first join"
    )]
    Blocks {
        /// The mesh range.
        range: MeshRange,
        /// The length asked for.
        length: u8,
    },
}

/// What was given out last, and what rests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The highest node number given out.
    last_node: NodeId,
    /// The highest service number given out.
    last_service: ServiceId,
    /// The last VIP given out.
    vip: Option<Flat>,
    /// The last node address given out.
    node: Option<Flat>,
    /// The last block given out, by prefix length.
    blocks: BTreeMap<u8, Ipv4Net>,
    /// What rests; entries that ended are dropped when the next thing is freed or given out. Each is a record of its
    /// own in the store (`adopt`); an earlier version kept the whole list here.
    #[serde(serialize_with = "kept_apart", deserialize_with = "kept_here")]
    freed: BTreeMap<Ipv4Net, Freed>,
}

fn kept_apart<S: Serializer>(_: &BTreeMap<Ipv4Net, Freed>, serializer: S) -> Result<S::Ok, S::Error> {
    // An earlier version does not read a pool without the list.
    [(); 0].serialize(serializer)
}

fn kept_here<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Ipv4Net, Freed>, D::Error> {
    let list = Vec::<Freed>::deserialize(deserializer)?;
    Ok(list.into_iter().map(|freed| (freed.net, freed)).collect())
}

impl Pool {
    /// Returns a node number that nobody had before.
    pub fn node_id(&mut self) -> NodeId {
        self.last_node.0 += 1;
        self.last_node
    }

    /// Returns a service number that nobody had before.
    pub fn service_id(&mut self) -> ServiceId {
        self.last_service.0 += 1;
        self.last_service
    }

    /// Goes on with numbers that nobody can have got since the moment that this state went back to, nor after it went
    /// back there earlier: nodes remember whom a number belongs to. `epoch` counts how often it went back.
    pub fn leap(&mut self, epoch: u64) {
        let floor = u32::try_from(epoch).unwrap_or(u32::MAX).saturating_mul(LEAP);
        let leap = |last: u32| last.max(last.saturating_add(LEAP).max(floor).min(u32::MAX - LEAP));
        self.last_node.0 = leap(self.last_node.0);
        self.last_service.0 = leap(self.last_service.0);
    }

    /// Gives out a VIP; `live` are those in use.
    ///
    /// # Errors
    /// `Exhausted::Vips` if none is free.
    pub fn vip(
        &mut self,
        range: MeshRange,
        owner: &ServiceKey,
        live: impl Iterator<Item = Flat>,
        now: UnixTime,
    ) -> Result<Flat, Exhausted> {
        let part = range.vips();
        let busy = Busy::new(live.map(single), &self.freed, now).with(single(range.dns()));
        let owner = BlockOwner::Service(owner.clone());
        let found = self.take_back(&owner, now).map(|net| Flat(net.network()));
        let found = found.or_else(|| busy.address(part, self.vip));
        let address = found.ok_or(Exhausted::Vips(part))?;
        self.vip = Some(address);
        Ok(address)
    }

    /// Gives out a node address; `live` are those in use.
    ///
    /// # Errors
    /// `Exhausted::Nodes` if none is free.
    pub fn node(
        &mut self,
        range: MeshRange,
        live: impl Iterator<Item = Flat>,
        now: UnixTime,
    ) -> Result<Flat, Exhausted> {
        let part = range.nodes();
        let busy = Busy::new(live.map(single), &self.freed, now);
        let halves = part.subnets(part.prefix_len() + 1).into_iter().flatten();
        let mut free = halves.filter_map(|half| busy.address(half, self.node));
        let address = free.next().ok_or(Exhausted::Nodes(part))?;
        self.expire(now);
        self.node = Some(address);
        Ok(address)
    }

    /// Gives out the image of a node's pod block, as long as the block; `live` are the images in use.
    ///
    /// # Errors
    /// `Exhausted::Blocks` if no place of that length is free.
    pub fn block(
        &mut self,
        range: MeshRange,
        node: NodeId,
        real: Ipv4Net,
        live: impl Iterator<Item = Ipv4Net>,
        now: UnixTime,
    ) -> Result<Ipv4Net, Exhausted> {
        let length = real.prefix_len();
        let busy = Busy::new(live, &self.freed, now);
        let last = range.net().broadcast();
        let part = u32::from(range.first_block_address())..=u32::from(last);
        let cursor = self.blocks.get(&length).copied();
        let found = self.take_back(&BlockOwner::Block(node, real), now);
        let found = found.or_else(|| busy.fit(&part, length, cursor, |_| true));
        let net = found.ok_or(Exhausted::Blocks { range, length })?;
        self.blocks.insert(length, net);
        Ok(net)
    }

    /// Puts something into quarantine.
    pub fn free(&mut self, net: Ipv4Net, owner: BlockOwner, now: UnixTime) {
        self.expire(now);
        let until = now + QUARANTINE;
        self.freed.insert(net, Freed { net, owner, until });
    }

    /// Returns what rests, by its net, ended entries included until the next change.
    pub fn freed(&self) -> &BTreeMap<Ipv4Net, Freed> {
        &self.freed
    }

    /// Lets more rest, as it was stored; of what rests already the longer rest counts.
    pub fn adopt(&mut self, freed: impl IntoIterator<Item = Freed>) {
        for freed in freed {
            let known = self.freed.entry(freed.net).or_insert_with(|| freed.clone());
            if known.until < freed.until {
                *known = freed;
            }
        }
    }

    /// Returns the pool as it is stored: without what rests.
    #[must_use]
    pub fn without_freed(&self) -> Self {
        Self { blocks: self.blocks.clone(), freed: BTreeMap::new(), ..*self }
    }

    /// Forgets all places, since the range is another; numbers stay given out.
    pub fn forget_places(&mut self) {
        *self = Self { last_node: self.last_node, last_service: self.last_service, ..Self::default() };
    }

    fn take_back(&mut self, owner: &BlockOwner, now: UnixTime) -> Option<Ipv4Net> {
        self.expire(now);
        let net = self.freed.values().find(|freed| freed.owner == *owner)?.net;
        self.freed.remove(&net);
        Some(net)
    }

    fn expire(&mut self, now: UnixTime) {
        self.freed.retain(|_, freed| freed.until > now);
    }
}

/// The addresses in use, as disjoint intervals: first address → last address.
struct Busy(BTreeMap<u32, u32>);

impl Busy {
    fn new(live: impl Iterator<Item = Ipv4Net>, freed: &BTreeMap<Ipv4Net, Freed>, now: UnixTime) -> Self {
        let resting = freed.values().filter(|freed| freed.until > now);
        let nets = live.chain(resting.map(|freed| freed.net));
        Self(nets.map(interval).collect())
    }

    fn with(mut self, net: Ipv4Net) -> Self {
        self.0.extend([interval(net)]);
        self
    }

    /// Finds a free address that does not look like a network's or a broadcast address (.0 and .255), since
    /// some stacks treat these as such whatever the prefix.
    fn address(&self, part: Ipv4Net, last: Option<Flat>) -> Option<Flat> {
        let part = u32::from(part.network())..=u32::from(part.broadcast());
        let plain = |address: u32| !matches!(address & 0xff, 0 | 0xff);
        let net = self.fit(&part, 32, last.map(single), plain)?;
        Some(Flat(net.network()))
    }

    /// Finds a free, aligned prefix of a length: first behind `last`, then from the start of the part.
    fn fit(
        &self,
        part: &RangeInclusive<u32>,
        length: u8,
        last: Option<Ipv4Net>,
        suits: impl Fn(u32) -> bool,
    ) -> Option<Ipv4Net> {
        let behind = last.and_then(|net| u32::from(net.broadcast()).checked_add(1));
        let behind = behind.filter(|start| part.contains(start));
        let starts = behind.into_iter().chain([*part.start()]);
        let mut found = starts.filter_map(|start| self.fit_from(start, *part.end(), length, &suits));
        found.next()
    }

    /// Jumps from one obstacle to the next, so that it takes at most two steps for each.
    fn fit_from(&self, start: u32, end: u32, length: u8, suits: impl Fn(u32) -> bool) -> Option<Ipv4Net> {
        let size = 1u64.checked_shl(32 - u32::from(length))?;
        let mut first = u64::from(start).next_multiple_of(size);
        while first + size - 1 <= u64::from(end) {
            let (low, high) = (first as u32, (first + size - 1) as u32);
            let obstacle = self.0.range(..=high).next_back();
            match obstacle.filter(|&(_, &busy)| busy >= low) {
                Some((_, &busy)) => first = (u64::from(busy) + 1).next_multiple_of(size),
                None if suits(low) => return Ipv4Net::new(Ipv4Addr::from(low), length).ok(),
                None => first += size,
            }
        }
        None
    }
}

fn single(address: Flat) -> Ipv4Net {
    Ipv4Net::from(address.0)
}

fn interval(net: Ipv4Net) -> (u32, u32) {
    (u32::from(net.network()), u32::from(net.broadcast()))
}
