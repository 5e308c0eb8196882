//! Who is at the other end of a connection, and how many connections there may be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mesh_proto::base::id::IdentityKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::sync::lock;

/// Most connections of strangers, in all and from one address.
const MAX_STRANGERS: usize = 1024;
const MAX_STRANGERS_PER_ADDRESS: usize = 32;
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

    /// Takes the peer off the strangers' count.
    pub(crate) fn welcome(&self) {
        lock(&self.place).take();
    }

    /// Begins a request to join; none while another one of this connection is under way.
    pub(crate) fn begin_join(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.joining).try_acquire_owned().ok()
    }
}

/// Counts places by who has them.
struct Places<K: Ord + Copy> {
    taken: Mutex<BTreeMap<K, usize>>,
    most: usize,
    most_each: usize,
}

impl<K: Ord + Copy> Places<K> {
    fn new(most: usize, most_each: usize) -> Self {
        Self { taken: Mutex::default(), most, most_each }
    }

    fn enter(&self, who: K) -> bool {
        let mut taken = lock(&self.taken);
        let all: usize = taken.values().sum();
        let own = taken.get(&who).copied().unwrap_or(0);
        if all >= self.most || own >= self.most_each {
            return false;
        }
        taken.insert(who, own + 1);
        true
    }

    fn leave(&self, who: K) {
        let mut taken = lock(&self.taken);
        match taken.get_mut(&who) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                taken.remove(&who);
            }
        }
    }
}

/// A stranger's place; dropping it makes room.
pub(crate) struct StrangerPlace(Arc<ConnectionLimits>, IpAddr);

impl Drop for StrangerPlace {
    fn drop(&mut self) {
        self.0.strangers.leave(self.1);
    }
}

/// A member's connection; dropping it makes room.
pub(crate) struct MemberPlace(Arc<ConnectionLimits>, IdentityKey);

impl Drop for MemberPlace {
    fn drop(&mut self) {
        self.0.members.leave(self.1);
    }
}

/// The limits of all listeners together.
pub(crate) struct ConnectionLimits {
    strangers: Places<IpAddr>,
    members: Places<IdentityKey>,
}

impl ConnectionLimits {
    /// Makes the doors, with everybody outside.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            strangers: Places::new(MAX_STRANGERS, MAX_STRANGERS_PER_ADDRESS),
            members: Places::new(usize::MAX, MAX_PER_MEMBER),
        })
    }

    /// Lets a stranger in; none if there are too many.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<StrangerPlace> {
        self.strangers.enter(address).then(|| StrangerPlace(Arc::clone(self), address))
    }

    /// Lets a connection in that proved a key; none if there are too many of that key.
    pub(crate) fn seat(self: &Arc<Self>, identity: IdentityKey) -> Option<MemberPlace> {
        self.members.enter(identity).then(|| MemberPlace(Arc::clone(self), identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_counts_in_all_and_for_each() {
        let door = Places::new(3, 2);
        assert!(door.enter(1) && door.enter(1));
        assert!(!door.enter(1), "one may have two");
        assert!(door.enter(2));
        assert!(!door.enter(3), "all may have three");
        door.leave(1);
        assert!(door.enter(3));
        door.leave(1);
        door.leave(2);
        door.leave(3);
        assert!(lock(&door.taken).is_empty(), "who left takes no memory");
    }
}
