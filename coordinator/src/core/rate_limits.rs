//! How often one address may fail to join and be told of, and one member may report. Pure: `now` is an argument.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::handshake_limiter::{Bucket, Rate};
use mesh_proto::base::id::IdentityKey;

/// How many joins of one address may fail within `WINDOW`; then all of its joins are refused for `BLOCK`.
pub(crate) const FAILURES: u32 = 10;
/// The time in which failures are counted together.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// How long an address is refused after too many failures.
pub(crate) const BLOCK: Duration = Duration::from_secs(60);
/// Most addresses that failures are remembered of; above it the one that began earliest is forgotten.
const MAX_ADDRESSES: usize = 4096;
/// How often a member may report.
pub(crate) const REPORTS: Rate = Rate { per_second: 2, burst: 10 };
/// How often a member may report what alters something, in times of `SLOWER`.
pub(crate) const NEWS: Rate = Rate { per_second: 1, burst: 10 };
/// How much slower time passes for such reports: ten at once, then one in ten seconds.
const SLOWER: u64 = 10;

/// Returns what stands for an address in every limit: of IPv6 the /64, for a host has all of that.
pub(crate) fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
    }
}

/// The failed joins of the last minute, by address.
#[derive(Debug, Default)]
pub(crate) struct Failures(BTreeMap<IpAddr, Record>);

#[derive(Debug, Clone, Copy)]
struct Record {
    since: Timestamp,
    count: u32,
    blocked: Option<Timestamp>,
}

impl Record {
    fn is_over(&self, now: Timestamp) -> bool {
        let (from, lasts) = self.blocked.map_or((self.since, WINDOW), |at| (at, BLOCK));
        now.since(from) >= lasts
    }
}

impl Failures {
    /// Says whether an address has to wait.
    pub(crate) fn is_blocked(&self, address: IpAddr, now: Timestamp) -> bool {
        let record = self.0.get(&household(address));
        record.is_some_and(|record| record.blocked.is_some() && !record.is_over(now))
    }

    /// Counts a failure; says whether the address has to wait from now on.
    pub(crate) fn count(&mut self, address: IpAddr, now: Timestamp) -> bool {
        let address = household(address);
        if self.0.get(&address).is_none_or(|record| record.is_over(now)) {
            self.make_room(now);
            self.0.insert(address, Record { since: now, count: 0, blocked: None });
        }
        let Some(record) = self.0.get_mut(&address) else { return false };
        record.count += 1;
        let begins = record.count >= FAILURES && record.blocked.is_none();
        if begins {
            record.blocked = Some(now);
        }
        begins
    }

    fn make_room(&mut self, now: Timestamp) {
        if self.0.len() < MAX_ADDRESSES {
            return;
        }
        self.0.retain(|_, record| !record.is_over(now));
        if self.0.len() >= MAX_ADDRESSES {
            let eldest = self.0.iter().min_by_key(|(_, record)| record.since).map(|(address, _)| *address);
            eldest.map(|address| self.0.remove(&address));
        }
    }
}

/// Whose refused joins were told of in the last minute. Above `MAX_ADDRESSES` the one told earliest is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeMap<IpAddr, ToldRefusals>);

/// What is known of the refused joins of an address.
#[derive(Debug, Clone, Copy)]
struct ToldRefusals {
    since: Timestamp,
    more: u64,
}

impl Told {
    /// Says whether a refused join of an address is to be told of, and how many were not since the last that was.
    pub(crate) fn tell(&mut self, address: IpAddr, now: Timestamp) -> Option<u64> {
        let address = household(address);
        if let Some(told) = self.0.get_mut(&address) {
            if now.since(told.since) < WINDOW {
                told.more += 1;
                return None;
            }
            let more = std::mem::take(&mut told.more);
            told.since = now;
            return Some(more);
        }
        if self.0.len() >= MAX_ADDRESSES {
            let eldest = self.0.iter().min_by_key(|(_, told)| told.since).map(|(address, _)| *address);
            eldest.map(|address| self.0.remove(&address));
        }
        self.0.insert(address, ToldRefusals { since: now, more: 0 });
        Some(0)
    }
}

/// What members have left of their reports. Never larger than the mesh, as long as only members are asked about.
#[derive(Debug, Default)]
pub(crate) struct Reports(BTreeMap<IdentityKey, Account>);

/// What one member has left.
#[derive(Debug)]
struct Account {
    all: Bucket,
    news: Bucket,
}

impl Reports {
    /// Says whether a member may report once more.
    pub(crate) fn take(&mut self, member: IdentityKey, now: Timestamp) -> bool {
        self.account(member, now).all.take(REPORTS, now)
    }

    /// Says whether a member may report something that alters the mesh.
    pub(crate) fn take_news(&mut self, member: IdentityKey, now: Timestamp) -> bool {
        self.account(member, now).news.take(NEWS, slower(now))
    }

    fn account(&mut self, member: IdentityKey, now: Timestamp) -> &mut Account {
        let full = || Account { all: Bucket::full(REPORTS, now), news: Bucket::full(NEWS, slower(now)) };
        self.0.entry(member).or_insert_with(full)
    }

    /// Forgets who is no member any more, once there are more entries than that many members.
    pub(crate) fn retain(&mut self, members: usize, is_member: impl Fn(&IdentityKey) -> bool) {
        if self.0.len() > members {
            self.0.retain(|identity, _| is_member(identity));
        }
    }
}

fn slower(now: Timestamp) -> Timestamp {
    Timestamp::from_micros(now.as_micros() / SLOWER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().expect("written as an address")
    }

    fn second(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn a_host_cannot_pass_for_many_by_its_ipv6_addresses() {
        let at = |text| household(at(text));
        assert_eq!(at("2001:db8:0:1::1"), at("2001:db8:0:1:ffff::2"));
        assert_ne!(at("2001:db8:0:1::1"), at("2001:db8:0:2::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    #[test]
    fn the_tenth_failure_of_a_minute_blocks_its_address_for_a_minute_and_no_other() {
        let mut failures = Failures::default();
        for i in 0..9 {
            assert!(!failures.count(at("2001:db8::1"), second(i)));
        }
        assert!(!failures.is_blocked(at("2001:db8::1"), second(9)));
        assert!(failures.count(at("2001:db8::2"), second(9)), "the same /64");
        assert!(failures.is_blocked(at("2001:db8::3"), second(9)));
        assert!(!failures.is_blocked(at("2001:db8:0:1::1"), second(9)));
        assert!(failures.is_blocked(at("2001:db8::1"), second(68)));
        assert!(!failures.is_blocked(at("2001:db8::1"), second(69)));
        assert!(!failures.count(at("2001:db8::1"), second(69)), "it begins anew");
    }

    #[test]
    fn a_refused_join_is_told_of_once_a_minute_for_each_address_with_the_number_of_others() {
        let mut told = Told::default();
        assert_eq!(told.tell(at("192.0.2.1"), second(1)), Some(0));
        assert!((1..60).all(|seconds| told.tell(at("192.0.2.1"), second(seconds)).is_none()));
        assert_eq!(told.tell(at("192.0.2.2"), second(30)), Some(0));
        assert_eq!(told.tell(at("192.0.2.1"), second(61)), Some(59));
        for i in 0..20_000_u32 {
            told.tell(i.to_be_bytes().into(), second(100));
        }
        assert_eq!(told.0.len(), MAX_ADDRESSES);
    }

    #[test]
    fn failures_that_are_far_apart_block_nobody() {
        let mut failures = Failures::default();
        for i in 0..100 {
            assert!(!failures.count(at("192.0.2.1"), second(i * 7)), "{i}");
        }
    }

    #[test]
    fn a_million_addresses_take_a_bounded_table_that_forgets_the_eldest() {
        let mut failures = Failures::default();
        let address = |i: u32| IpAddr::from(i.to_be_bytes());
        for i in 0..20_000 {
            failures.count(address(i), second(1));
        }
        assert_eq!(failures.0.len(), MAX_ADDRESSES);
        for _ in 0..FAILURES {
            failures.count(at("198.51.100.1"), second(2));
        }
        assert!(failures.is_blocked(at("198.51.100.1"), second(2)));
        failures.count(address(30_000), second(200));
        assert_eq!(failures.0.len(), 1, "what is over makes room");
    }

    #[test]
    fn a_member_alters_the_mesh_ten_times_at_once_then_once_in_ten_seconds() {
        let mut reports = Reports::default();
        let one = IdentityKey([1; 32]);
        let mut taken = |seconds| (0..100).filter(|_| reports.take_news(one, second(seconds))).count();
        assert_eq!((taken(1), taken(9), taken(11), taken(31), taken(1000)), (10, 0, 1, 2, 10));
        assert!(reports.take(one, second(1000)), "another account");
    }

    #[test]
    fn a_member_has_ten_reports_at_once_then_two_a_second() {
        let mut reports = Reports::default();
        let (one, other) = (IdentityKey([1; 32]), IdentityKey([2; 32]));
        let taken = (0..100).filter(|_| reports.take(one, second(1))).count();
        assert_eq!(taken, 10);
        assert!(reports.take(other, second(1)));
        let taken = (0..100).filter(|_| reports.take(one, second(2))).count();
        assert_eq!(taken, 2);
        reports.retain(1, |identity| *identity == other);
        assert!(reports.0.len() == 1 && reports.take(one, second(2)));
    }
}
