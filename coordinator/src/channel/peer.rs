//! Who is at the other end of a connection, and how many connections there may be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use mesh_proto::base::id::IdentityKey;
use mesh_proto::world::World;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::base::sync::lock;
use crate::channel::half_open::HalfOpen;
use crate::channel::member_addresses::MemberAddresses;
use crate::core::rate_limits::household;

/// Most connections of strangers, in all and from one address.
const MAX_STRANGERS: usize = 1024;
const MAX_STRANGERS_PER_ADDRESS: usize = 32;
/// Most connections from addresses of members that have not proved yet whose they are, in all and from one address.
const MAX_EXPECTED: usize = 4096;
const MAX_EXPECTED_PER_ADDRESS: usize = 1024;
/// Most connections of one member.
const MAX_PER_MEMBER: usize = 16;

/// Whose connection a request came over.
#[derive(Clone)]
pub(crate) struct Requester {
    /// The key that the handshake proved.
    pub(crate) identity: IdentityKey,
    /// The address it comes from.
    pub(crate) observed: IpAddr,
    /// Its place among the strangers, until it is a member.
    place: Arc<Mutex<Option<StrangerPlace>>>,
    /// One request to join at a time, so that strangers fill no more memory than one body each.
    joining: Arc<Semaphore>,
    spoke: Arc<AtomicBool>,
}

impl Requester {
    /// Begins with a stranger that proved a key.
    pub(crate) fn new(identity: IdentityKey, observed: IpAddr, place: StrangerPlace) -> Self {
        Self {
            identity,
            observed,
            place: Arc::new(Mutex::new(Some(place))),
            joining: Arc::new(Semaphore::new(1)),
            spoke: Arc::default(),
        }
    }

    /// Notes that a request came.
    pub(crate) fn speaks(&self) {
        self.spoke.store(true, Ordering::Relaxed);
    }

    /// Says whether a request came.
    pub(crate) fn has_spoken(&self) -> bool {
        self.spoke.load(Ordering::Relaxed)
    }

    /// Says whether the peer is counted among the strangers.
    pub(crate) fn is_stranger(&self) -> bool {
        lock(&self.place).is_some()
    }

    /// Takes the peer, which is a member of this world, off the strangers' count, and knows it by its address from now
    /// on.
    pub(crate) fn welcome(&self, world: &World) {
        if let Some(place) = lock(&self.place).take() {
            place.doors.expect(self.identity, household(self.observed), world);
        }
    }

    /// Begins a request to join; none while another one of this connection is under way.
    pub(crate) fn begin_join(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.joining).try_acquire_owned().ok()
    }
}

/// A place of a connection whose peer is not known yet; dropping it makes room.
pub(crate) struct StrangerPlace {
    doors: Arc<ConnectionLimits>,
    is_expected: bool,
    number: u64,
}

impl Drop for StrangerPlace {
    fn drop(&mut self) {
        lock(self.doors.half_open(self.is_expected)).leave(self.number);
    }
}

/// A connection that was let in.
pub(crate) struct LetIn {
    /// Its place.
    pub(crate) place: StrangerPlace,
    /// Is told when another got the place.
    pub(crate) evicted: oneshot::Receiver<()>,
    /// Whether somebody else had to go for it.
    pub(crate) is_anothers: bool,
}

/// A member's connection; dropping it makes room.
pub(crate) struct MemberPlace(Arc<ConnectionLimits>, IdentityKey);

impl Drop for MemberPlace {
    fn drop(&mut self) {
        let mut members = lock(&self.0.members);
        match members.get_mut(&self.1) {
            Some(own) if *own > 1 => *own -= 1,
            Some(_) | None => drop(members.remove(&self.1)),
        }
    }
}

/// The limits of all listeners together.
pub(crate) struct ConnectionLimits {
    strangers: Mutex<HalfOpen>,
    /// Those who come from where members came from.
    expected: Mutex<HalfOpen>,
    addresses: Mutex<MemberAddresses>,
    members: Mutex<BTreeMap<IdentityKey, usize>>,
}

impl ConnectionLimits {
    /// Makes the doors, with everybody outside. The members of a world are expected from where they were last.
    pub(crate) fn new(world: &World) -> Arc<Self> {
        let mut addresses = MemberAddresses::default();
        for node in world.nodes.values() {
            if let (Some(identity), Some(observed)) = (node.identity, node.observed) {
                addresses.note(identity, household(observed));
            }
        }
        Arc::new(Self {
            strangers: Mutex::new(HalfOpen::new(MAX_STRANGERS, MAX_STRANGERS_PER_ADDRESS)),
            expected: Mutex::new(HalfOpen::new(MAX_EXPECTED, MAX_EXPECTED_PER_ADDRESS)),
            addresses: Mutex::new(addresses),
            members: Mutex::default(),
        })
    }

    /// Lets a connection in whose peer is not known yet; none if there are too many of its kind.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<LetIn> {
        let address = household(address);
        let is_expected = lock(&self.addresses).knows(address);
        let got = lock(self.half_open(is_expected)).enter(address, Instant::now())?;
        let place = StrangerPlace { doors: Arc::clone(self), is_expected, number: got.number };
        Some(LetIn { place, evicted: got.evicted, is_anothers: got.is_anothers })
    }

    /// Lets a connection in that proved a key; none if there are too many of that key.
    pub(crate) fn seat(self: &Arc<Self>, identity: IdentityKey) -> Option<MemberPlace> {
        let mut members = lock(&self.members);
        let own = members.entry(identity).or_default();
        if *own >= MAX_PER_MEMBER {
            return None;
        }
        *own += 1;
        Some(MemberPlace(Arc::clone(self), identity))
    }

    /// Returns how many of the strangers' places are taken, and how many there are.
    pub(crate) fn strangers(&self) -> (usize, usize) {
        (lock(&self.strangers).taken(), MAX_STRANGERS)
    }

    fn expect(&self, member: IdentityKey, household: IpAddr, world: &World) {
        let mut addresses = lock(&self.addresses);
        addresses.note(member, household);
        addresses.retain(world.nodes.len(), |identity| world.member(identity).is_some());
    }

    fn half_open(&self, is_expected: bool) -> &Mutex<HalfOpen> {
        if is_expected { &self.expected } else { &self.strangers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_sixteen_connections_and_takes_no_memory_without_one() {
        let doors = ConnectionLimits::new(&World::new("boutique".parse().expect("a name")));
        let one = IdentityKey([1; 32]);
        let mut seats: Vec<_> = (0..20).map_while(|_| doors.seat(one)).collect();
        assert_eq!(seats.len(), MAX_PER_MEMBER);
        assert!(doors.seat(IdentityKey([2; 32])).is_some());
        seats.pop();
        assert!(doors.seat(one).is_some());
        seats.clear();
        assert!(lock(&doors.members).is_empty());
    }
}
