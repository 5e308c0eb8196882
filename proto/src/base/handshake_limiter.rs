//! Limits on what strangers can make us compute: a token bucket, and the handshake limiter that is built of it.
//!
//! A handshake costs its receiver an elliptic-curve product, and its source address can be forged. So, in order:
//! above a number of handshakes per second everybody must first show a cookie, which proves the source; then each
//! source has a rate of its own; then each known peer has one. Nothing that a stranger can forge takes from what
//! another may do: a source above its rate is asked for a cookie and has a second account with one, and a peer pays
//! only for initiations that it provably made. The limits are those of Linux' own WireGuard
//! (drivers/net/wireguard/ratelimiter.c, messages.h).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::base::clock::Timestamp;
use crate::base::id::NodeId;

/// Handshakes per second from one source: one IPv4 address, or one IPv6 /64.
pub const SOURCE_RATE: Rate = Rate { per_second: 20, burst: 5 };
/// Handshake initiations per second from one known peer.
pub const PEER_RATE: Rate = Rate { per_second: 50, burst: 50 };
/// More handshakes than this in one second are load.
pub const LOAD_PER_SECOND: u32 = 64;
/// How long load is felt after it ended.
pub const LOAD_LASTS: Duration = Duration::from_secs(1);
/// How many sources are remembered.
pub const SOURCES: usize = 4096;
const WAYS: usize = 4;
const TOKEN: u64 = 1_000_000;

/// So many a second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many a second on the long run.
    pub per_second: u32,
    /// How many at once after a pause.
    pub burst: u32,
}

/// A token bucket: full at first, one token per event, refilled with time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// In millionths of a token, so that each microsecond adds a whole number.
    level: u64,
    updated: Timestamp,
}

impl Bucket {
    /// Makes a full one.
    pub fn full(rate: Rate, now: Timestamp) -> Self {
        Self { level: u64::from(rate.burst) * TOKEN, updated: now }
    }

    /// Says whether there is a token. The rate may differ from call to call.
    pub fn has(&mut self, rate: Rate, now: Timestamp) -> bool {
        let elapsed = now.as_micros().saturating_sub(self.updated.as_micros());
        let gained = elapsed.saturating_mul(u64::from(rate.per_second));
        self.level = self.level.saturating_add(gained).min(u64::from(rate.burst) * TOKEN);
        self.updated = self.updated.max(now);
        self.level >= TOKEN
    }

    /// Takes a token; says whether there was one.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> bool {
        let there = self.has(rate, now);
        if there {
            self.level -= TOKEN;
        }
        there
    }
}

/// What is done with a handshake initiation before any expensive arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Process it.
    Admit,
    /// Answer with a cookie; the sender must come again with it.
    DemandCookie,
    /// Drop it: its source exceeds its rate.
    Drop,
}

/// The limiter of handshakes. Bounded: [`SOURCES`] sources, and as many peers as are kept.
#[derive(Debug)]
pub struct HandshakeLimiter {
    load: Load,
    sources: Sources,
    peers: BTreeMap<NodeId, Bucket>,
}

impl HandshakeLimiter {
    /// Makes one. The seed is a secret random number: it keeps strangers from choosing sources that evict each other.
    pub fn new(seed: u64) -> Self {
        Self { load: Load::default(), sources: Sources::new(seed), peers: BTreeMap::new() }
    }

    /// Judges a handshake message by its source alone. `cookie` says whether it carried a valid one. To be called
    /// once per message, before anything expensive.
    pub fn admit(&mut self, source: IpAddr, cookie: bool, now: Timestamp) -> Admission {
        self.load.count(now);
        if self.under_load(now) && !cookie {
            return Admission::DemandCookie;
        }
        match (self.sources.take(source, cookie, now), cookie) {
            (true, _) => Admission::Admit,
            (false, true) => Admission::Drop,
            // Perhaps somebody forges this source to have it shut out.
            (false, false) => Admission::DemandCookie,
        }
    }

    /// Says whether more handshakes arrived in a second than are cheap, now or up to a second ago.
    pub fn under_load(&self, now: Timestamp) -> bool {
        self.load.is_high(now)
    }

    /// Says whether a known peer may initiate once more. That it is the peer is not proven yet, so it costs nothing.
    pub fn admit_peer(&mut self, peer: NodeId, now: Timestamp) -> bool {
        self.peers.get_mut(&peer).is_none_or(|bucket| bucket.has(PEER_RATE, now))
    }

    /// Charges a peer for an initiation that proved to be its own and new.
    pub fn charge_peer(&mut self, peer: NodeId, now: Timestamp) {
        self.peers.entry(peer).or_insert_with(|| Bucket::full(PEER_RATE, now)).take(PEER_RATE, now);
    }

    /// Forgets peers that are members no more.
    pub fn retain_peers(&mut self, mut member: impl FnMut(NodeId) -> bool) {
        self.peers.retain(|&peer, _| member(peer));
    }
}

/// Counts per second; high counts are felt for [`LOAD_LASTS`] more.
#[derive(Debug, Default)]
struct Load {
    second: Timestamp,
    count: u32,
    high_until: Option<Timestamp>,
}

impl Load {
    fn count(&mut self, now: Timestamp) {
        if now.since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > LOAD_PER_SECOND {
            self.high_until = Some(now + LOAD_LASTS);
        }
    }

    fn is_high(&self, now: Timestamp) -> bool {
        self.high_until.is_some_and(|until| now < until)
    }
}

type Set = [Option<((u64, bool), Bucket)>; WAYS];

/// Buckets by source, in sets of four. A full set gives up the bucket that was used the longest time ago; whoever
/// comes back after that starts with a full bucket. A flood of forged sources can make that happen, which is why
/// cookies come first under load.
#[derive(Debug)]
struct Sources {
    seed: u64,
    sets: Box<[Set]>,
}

impl Sources {
    fn new(seed: u64) -> Self {
        Self { seed, sets: vec![[None; WAYS]; SOURCES / WAYS].into() }
    }

    /// Takes from the account of a source: one for what shows a cookie, one for what may be forged.
    fn take(&mut self, source: IpAddr, cookie: bool, now: Timestamp) -> bool {
        let key = (key(source), cookie);
        let index = mix(key.0 ^ self.seed) as usize % self.sets.len();
        let set = &mut self.sets[index];
        if let Some((_, bucket)) = set.iter_mut().flatten().find(|(k, _)| *k == key) {
            return bucket.take(SOURCE_RATE, now);
        }
        let mut bucket = Bucket::full(SOURCE_RATE, now);
        let admitted = bucket.take(SOURCE_RATE, now);
        // An empty place counts as used before all time.
        if let Some(place) = set.iter_mut().min_by_key(|place| place.map(|(_, bucket)| bucket.updated)) {
            *place = Some((key, bucket));
        }
        admitted
    }
}

/// The IPv4 address, also where a dual-stack socket shows it as IPv6, or the IPv6 /64: a host has all of that.
fn key(source: IpAddr) -> u64 {
    match source.to_canonical() {
        // 0xffff:… as the first bits of a /64 is no unicast address.
        IpAddr::V4(v4) => 0xffff_0000_0000_0000 | u64::from(u32::from(v4)),
        IpAddr::V6(v6) => (u128::from(v6) >> 64) as u64,
    }
}

/// Spreads bits (the finaliser of SplitMix64; Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_000_000);

    fn at(ms: u64) -> Timestamp {
        START + Duration::from_millis(ms)
    }

    fn v4(n: u32) -> IpAddr {
        Ipv4Addr::from(n).into()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { per_second: 10, burst: 3 };
        let mut bucket = Bucket::full(rate, START);
        let taken = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.take(rate, now)).count();

        assert_eq!(taken(&mut bucket, START), 3);
        assert_eq!(taken(&mut bucket, at(99)), 0);
        assert_eq!(taken(&mut bucket, at(100)), 1);
        assert_eq!(taken(&mut bucket, at(60_000)), 3);
        // A clock that goes back gives nothing, and takes nothing away.
        assert_eq!(taken(&mut bucket, START), 0);
        assert_eq!(taken(&mut bucket, at(60_100)), 1);
        assert_eq!((60_101..61_101).filter(|&ms| bucket.take(rate, at(ms))).count(), 10);
    }

    #[test]
    fn a_bucket_of_rate_zero_or_at_the_end_of_time_does_not_overflow() {
        let none = Rate { per_second: 0, burst: 0 };
        assert!(!Bucket::full(none, START).take(none, Timestamp::from_micros(u64::MAX)));
        let all = Rate { per_second: u32::MAX, burst: u32::MAX };
        assert!(Bucket::full(all, Timestamp::from_micros(0)).take(all, Timestamp::from_micros(u64::MAX)));
    }

    #[test]
    fn a_source_gets_five_at_once_and_twenty_a_second() {
        let mut limiter = HandshakeLimiter::new(7);
        let mut admitted = |ms| limiter.admit(v4(1), true, at(ms)) == Admission::Admit;

        assert_eq!((0..50).filter(|_| admitted(0)).count(), 5);
        assert_eq!((1..=1000).filter(|&ms| admitted(ms)).count(), 20);
    }

    #[test]
    fn sources_are_told_apart_by_address_or_by_64_bits() {
        let mut limiter = HandshakeLimiter::new(7);
        let mut exhaust =
            |source: IpAddr| (0..6).filter(|_| limiter.admit(source, true, START) == Admission::Admit).count();
        let v6 = |high: u16, low: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, high, 0, 0, 0, low));

        assert_eq!(exhaust(v4(1)), 5);
        assert_eq!(exhaust(v4(2)), 5);
        assert_eq!(exhaust(Ipv4Addr::from(1).to_ipv6_mapped().into()), 0);
        assert_eq!(exhaust(v6(1, 1)), 5);
        assert_eq!(exhaust(v6(1, 2)), 0);
        assert_eq!(exhaust(v6(2, 1)), 5);
    }

    #[test]
    fn load_demands_cookies_from_all_for_a_second_beyond_its_end() {
        let mut limiter = HandshakeLimiter::new(7);
        for n in 0..LOAD_PER_SECOND {
            assert_eq!(limiter.admit(v4(n), false, at(1)), Admission::Admit);
        }
        assert!(!limiter.under_load(at(1)));

        assert_eq!(limiter.admit(v4(999), false, at(2)), Admission::DemandCookie);
        assert_eq!(limiter.admit(v4(999), true, at(2)), Admission::Admit);

        assert!(limiter.under_load(at(1001)));
        assert!(!limiter.under_load(at(1002)));
        assert_eq!(limiter.admit(v4(999), false, at(1003)), Admission::Admit);
    }

    #[test]
    fn a_peer_initiates_fifty_times_a_second_whatever_others_do() {
        let mut limiter = HandshakeLimiter::new(7);
        let mut admitted = |peer, ms| {
            let admitted = limiter.admit_peer(NodeId(peer), at(ms));
            if admitted {
                limiter.charge_peer(NodeId(peer), at(ms));
            }
            admitted
        };

        assert_eq!((0..500).filter(|_| admitted(1, 0)).count(), 50);
        assert!(admitted(2, 0));
        assert_eq!((1..=1000).filter(|&ms| admitted(1, ms)).count(), 50);

        limiter.retain_peers(|peer| peer == NodeId(2));
        assert_eq!(limiter.peers.len(), 1);
    }

    #[test]
    fn who_forges_a_source_does_not_shut_it_out() {
        let mut limiter = HandshakeLimiter::new(7);
        let forged = (0..50).map(|_| limiter.admit(v4(1), false, at(0)));
        assert_eq!(forged.filter(|&a| a == Admission::Admit).count(), 5);
        assert_eq!(limiter.admit(v4(1), false, at(1)), Admission::DemandCookie);
        assert_eq!(limiter.admit(v4(1), true, at(2)), Admission::Admit);
    }

    #[test]
    fn a_peer_pays_only_for_what_it_proved() {
        let mut limiter = HandshakeLimiter::new(7);
        assert!((0..500).all(|_| limiter.admit_peer(NodeId(1), at(0))));
        assert!(limiter.peers.is_empty());
    }

    #[test]
    fn a_flood_of_sources_fills_the_table_and_no_more() {
        let mut limiter = HandshakeLimiter::new(7);
        for n in 0..200_000 {
            limiter.admit(v4(n), true, at(u64::from(n) / 100));
        }
        assert_eq!(limiter.sources.sets.len() * WAYS, SOURCES);
        assert!(limiter.sources.sets.iter().flatten().all(Option::is_some));
        // The latest are remembered.
        let latest = (199_900..200_000).filter(|&n| {
            let set = &limiter.sources.sets[mix(key(v4(n)) ^ 7) as usize % limiter.sources.sets.len()];
            set.iter().flatten().any(|(k, _)| *k == (key(v4(n)), true))
        });
        assert!(latest.count() > 95);
    }
}
