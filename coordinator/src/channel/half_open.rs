//! Connections whose peer is not known yet: how many there may be, and who goes when there are too many.
//!
//! ```text
//!   newcomer ─▶ room for it, and for its household ─▶ in
//!            ─▶ none ─▶ the oldest of the block with most goes, and the newcomer is in;
//!                       one of its own block only once that is `RIPE` old, else the newcomer is turned away
//! ```
//! A block is what one attacker has cheaply: a /24 of IPv4, a /48 of IPv6. Whoever comes from elsewhere finds a place at
//! any time, and keeps it for as long as his block has fewer than the attacker's. Pure: `now` is an argument.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How old a connection is before another one of its own block may take its place: an honest handshake is done by then.
const RIPE: Duration = Duration::from_secs(1);

/// Places of one kind.
#[derive(Debug)]
pub(super) struct HalfOpen {
    most: usize,
    most_each: usize,
    /// The number of the next connection: the lower, the older.
    next: u64,
    places: BTreeMap<u64, Place>,
    households: BTreeMap<IpAddr, BTreeSet<u64>>,
    blocks: BTreeMap<IpAddr, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Place {
    household: IpAddr,
    since: Instant,
    evict: oneshot::Sender<()>,
}

/// A place that was got.
#[derive(Debug)]
pub(super) struct Got {
    /// Its number.
    pub(super) number: u64,
    /// Is told when somebody else gets it. Dropped when it is left.
    pub(super) evicted: oneshot::Receiver<()>,
    /// Whether somebody else had to go.
    pub(super) is_anothers: bool,
}

impl HalfOpen {
    /// Has room for so many connections, and so many of one household.
    pub(super) fn new(most: usize, most_each: usize) -> Self {
        let (places, households, blocks) = Default::default();
        Self { most, most_each, next: 0, places, households, blocks }
    }

    /// Returns how many places are taken.
    pub(super) fn taken(&self) -> usize {
        self.places.len()
    }

    /// Gives a place to a connection of a household; none if there are too many of its own kind.
    pub(super) fn enter(&mut self, household: IpAddr, now: Instant) -> Option<Got> {
        let block = block(household);
        let own = self.households.get(&household).filter(|own| own.len() >= self.most_each);
        let fullest = || self.blocks.iter().max_by_key(|(_, numbers)| (numbers.len(), Reverse(numbers.first())));
        let victim = match own {
            Some(own) => own.first().map(|number| (*number, true)),
            None if self.places.len() < self.most => None,
            None => fullest().and_then(|(of, numbers)| Some((*numbers.first()?, *of == block))),
        };
        if let Some((number, is_own)) = victim {
            let place = self.places.get(&number)?;
            if is_own && now.saturating_duration_since(place.since) < RIPE {
                return None;
            }
            self.evict(number);
        }
        let number = self.next;
        self.next += 1;
        let (evict, evicted) = oneshot::channel();
        self.places.insert(number, Place { household, since: now, evict });
        self.households.entry(household).or_default().insert(number);
        self.blocks.entry(block).or_default().insert(number);
        Some(Got { number, evicted, is_anothers: victim.is_some() })
    }

    /// Frees a place, unless another got it already.
    pub(super) fn leave(&mut self, number: u64) {
        self.take(number);
    }

    fn evict(&mut self, number: u64) {
        if let Some(place) = self.take(number) {
            // A connection that ended by itself does not listen any more.
            let _ = place.evict.send(());
        }
    }

    fn take(&mut self, number: u64) -> Option<Place> {
        let place = self.places.remove(&number)?;
        for (of, who) in [(&mut self.households, place.household), (&mut self.blocks, block(place.household))] {
            if let Some(numbers) = of.get_mut(&who) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    of.remove(&who);
                }
            }
        }
        Some(place)
    }
}

/// Returns the block that a household lies in.
fn block(household: IpAddr) -> IpAddr {
    match household.to_canonical() {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) >> 8 << 8).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 80 << 80).into(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_oldest_of_the_fullest_block_goes_and_a_newcomer_from_elsewhere_is_in() {
        let now = Instant::now();
        let mut door = HalfOpen::new(4, 3);
        let quiet = door.enter(at("192.0.2.1"), now).unwrap();
        let mut crowd: Vec<_> =
            [1, 2, 3].map(|host| door.enter(IpAddr::from([198, 51, 100, host]), now).unwrap()).into();
        assert!(door.enter(at("198.51.100.4"), now).is_none(), "of its own block nobody is ripe");
        let own = door.enter(at("198.51.100.4"), now + RIPE).unwrap();
        assert!(own.is_anothers && crowd.remove(0).evicted.try_recv().is_ok());

        let newcomer = door.enter(at("203.0.113.1"), now).unwrap();
        assert!(newcomer.is_anothers && crowd.remove(0).evicted.try_recv().is_ok(), "the oldest of the crowd");
        assert_eq!(door.taken(), 4);
        for mut kept in [quiet, newcomer, own, crowd.remove(0)] {
            assert!(kept.evicted.try_recv().is_err(), "{kept:?}");
            door.leave(kept.number);
            assert!(matches!(kept.evicted.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        }
        assert!(door.places.is_empty() && door.households.is_empty() && door.blocks.is_empty());
    }

    #[test]
    fn a_household_has_so_many_whatever_room_there_is() {
        let now = Instant::now();
        let mut door = HalfOpen::new(10, 2);
        let first = door.enter(at("192.0.2.1"), now).unwrap();
        door.enter(at("192.0.2.1"), now).unwrap();
        assert!(door.enter(at("192.0.2.1"), now).is_none());
        assert!(!door.enter(at("192.0.2.2"), now).unwrap().is_anothers);
        door.leave(first.number);
        door.leave(first.number);
        assert!(!door.enter(at("192.0.2.1"), now).unwrap().is_anothers, "who left makes room, once");
        assert_eq!(door.taken(), 3);
    }

    #[test]
    fn where_no_block_has_more_than_another_the_oldest_of_all_goes() {
        let now = Instant::now();
        let mut door = HalfOpen::new(3, 2);
        let mut all: Vec<_> = (0..3).map(|net| door.enter(IpAddr::from([10, 9, 9 - net, 1]), now).unwrap()).collect();
        assert!(door.enter(at("10.9.1.1"), now).unwrap().is_anothers);
        assert!(all[0].evicted.try_recv().is_ok() && all[1].evicted.try_recv().is_err());
        assert_eq!(block(at("2001:db8:1:2::")), block(at("2001:db8:1:3::")));
        assert_ne!(block(at("2001:db8:1:2::")), block(at("2001:db8:2:2::")));
    }
}
