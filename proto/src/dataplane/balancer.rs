//! Which backend takes the next connection of a service.
//!
//! Weights are exact, not by chance: a service has one ticket counter over all lanes, and ticket n goes to
//! the backend that a smooth weighted round robin names for place n of its cycle. One `fetch_add` per new
//! connection, no lock; 80/20 is 4 of 5 in every run of 5, whichever lanes drew the tickets.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::netmap::{Backend, Service};

/// The longest cycle, in places; weights whose cycle would be longer are rounded to fit, each at least 1.
const MAX_CYCLE: u64 = 4096;

/// Chooses among the backends of one service.
#[derive(Debug)]
pub struct Balancer {
    backends: Vec<Backend>,
    /// Indices into `backends`, in the order in which tickets use them.
    cycle: Vec<u16>,
    tickets: Arc<AtomicU64>,
    sticky: bool,
}

impl Balancer {
    /// Prepares a service; takes over the tickets of `previous` if its cycle is the same.
    pub fn new(service: &Service, previous: Option<&Self>) -> Self {
        let backends = service.backends.clone();
        let cycle = cycle(&backends);
        let same = previous.filter(|p| p.cycle == cycle && p.backends == backends);
        let tickets = same.map_or_else(Arc::default, |p| Arc::clone(&p.tickets));
        Self { backends, cycle, tickets, sticky: service.sticky }
    }

    /// Chooses the backend of a new connection, or none if no live backend takes any.
    pub fn choose(&self, client: Ipv4Addr) -> Option<&Backend> {
        if self.cycle.is_empty() {
            return None;
        }
        let ticket = if self.sticky {
            u64::from(u32::from(client)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
        } else {
            self.tickets.fetch_add(1, Ordering::Relaxed)
        };
        let place = (ticket % self.cycle.len() as u64) as usize;
        self.backends.get(usize::from(self.cycle[place]))
    }

    /// Returns the backend that the next connection would go to, without drawing its ticket.
    pub fn peek(&self) -> Option<&Backend> {
        let place = self.tickets.load(Ordering::Relaxed).checked_rem(self.cycle.len() as u64)?;
        self.backends.get(usize::from(self.cycle[place as usize]))
    }

    /// Returns all backends, those that take no new connections included.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }
}

/// Lays out one cycle over the lowest tier that has a weight: smooth weighted round robin, in which every
/// place goes to the backend with the largest deficit.
fn cycle(backends: &[Backend]) -> Vec<u16> {
    let live = |b: &&Backend| b.weight > 0;
    let Some(tier) = backends.iter().filter(live).map(|b| b.tier).min() else { return Vec::new() };
    let weight = |b: &Backend| {
        if b.tier == tier { u64::from(b.weight) } else { 0 }
    };
    let mut weights: Vec<u64> = backends.iter().map(weight).collect();
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    weights.iter_mut().for_each(|w| *w /= divisor);
    let total: u64 = weights.iter().sum();
    if total > MAX_CYCLE {
        let fit = |w: u64| {
            if w == 0 { 0 } else { (w * MAX_CYCLE / total).max(1) }
        };
        weights.iter_mut().for_each(|w| *w = fit(*w));
    }
    let total: i64 = weights.iter().sum::<u64>() as i64;
    let mut deficits = vec![0i64; weights.len()];
    let mut cycle = Vec::new();
    for _ in 0..total {
        deficits.iter_mut().zip(&weights).for_each(|(d, &w)| *d += w as i64);
        let Some(next) = (0..deficits.len()).filter(|&i| weights[i] > 0).max_by_key(|&i| (deficits[i], usize::MAX - i))
        else {
            break;
        };
        deficits[next] -= total;
        cycle.push(next as u16);
    }
    cycle
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::base::addr::Flat;
    use crate::base::id::ServiceId;
    use std::collections::BTreeMap;

    fn service(weights: &[(u32, u8)]) -> Service {
        let backend = |(i, &(weight, tier)): (usize, &(u32, u8))| Backend {
            name: None,
            node: format!("n{i}").parse().unwrap(),
            address: Flat(Ipv4Addr::new(241, 2, 0, i as u8)),
            port: None,
            weight,
            tier,
        };
        Service {
            grants: Default::default(),
            id: ServiceId(1),
            vip: Flat(Ipv4Addr::new(241, 0, 0, 1)),
            ports: Vec::new(),
            backends: weights.iter().enumerate().map(backend).collect(),
            sticky: false,
            strict: false,
        }
    }

    fn counts(balancer: &Balancer, draws: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..draws {
            let backend = balancer.choose(Ipv4Addr::LOCALHOST).unwrap();
            *counts.entry(backend.node.to_string()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn eighty_to_twenty_is_exact_in_every_five() {
        let balancer = Balancer::new(&service(&[(80, 0), (20, 0)]), None);
        for _ in 0..40 {
            assert_eq!(counts(&balancer, 5), BTreeMap::from([("n0".into(), 4), ("n1".into(), 1)]));
        }
    }

    #[test]
    fn eight_lanes_share_one_account() {
        let balancer = Balancer::new(&service(&[(70, 0), (20, 0), (10, 0)]), None);
        let drawn = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..8).map(|_| scope.spawn(|| counts(&balancer, 1250))).collect();
            let mut sum = BTreeMap::<String, usize>::new();
            for (node, n) in lanes.into_iter().flat_map(|lane| lane.join().unwrap()) {
                *sum.entry(node).or_default() += n;
            }
            sum
        });
        assert_eq!(drawn, BTreeMap::from([("n0".into(), 7000), ("n1".into(), 2000), ("n2".into(), 1000)]));
    }

    #[test]
    fn the_lowest_tier_with_a_weight_takes_all() {
        let balancer = Balancer::new(&service(&[(0, 0), (100, 1), (100, 2)]), None);
        assert_eq!(counts(&balancer, 10), BTreeMap::from([("n1".into(), 10)]));
    }

    #[test]
    fn nobody_is_chosen_when_all_are_drained() {
        assert!(Balancer::new(&service(&[(0, 0)]), None).choose(Ipv4Addr::LOCALHOST).is_none());
        assert!(Balancer::new(&service(&[]), None).peek().is_none());
    }

    #[test]
    fn an_unchanged_service_keeps_its_account_and_a_changed_one_starts_anew() {
        let first = Balancer::new(&service(&[(1, 0), (1, 0)]), None);
        counts(&first, 1);
        let same = Balancer::new(&service(&[(1, 0), (1, 0)]), Some(&first));
        assert_eq!(same.choose(Ipv4Addr::LOCALHOST).unwrap().node.as_str(), "n1");
        let changed = Balancer::new(&service(&[(1, 0), (2, 0)]), Some(&first));
        assert_eq!(changed.tickets.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn huge_and_uneven_weights_stay_within_the_cycle_and_leave_nobody_out() {
        let balancer = Balancer::new(&service(&[(1_000_000, 0), (1, 0), (999_983, 0)]), None);
        assert!(balancer.cycle.len() as u64 <= MAX_CYCLE + 3);
        assert_eq!(counts(&balancer, balancer.cycle.len()).len(), 3);
    }

    #[test]
    fn a_sticky_client_keeps_its_backend() {
        let mut sticky = service(&[(1, 0), (1, 0), (1, 0)]);
        sticky.sticky = true;
        let balancer = Balancer::new(&sticky, None);
        let first = balancer.choose(Ipv4Addr::new(241, 2, 9, 9)).unwrap().node.clone();
        assert!((0..20).all(|_| balancer.choose(Ipv4Addr::new(241, 2, 9, 9)).unwrap().node == first));
    }
}
