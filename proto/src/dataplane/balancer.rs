//! Which backend takes the next connection of a service.
//!
//! Weights are exact, not by chance: a service has one ticket counter over all lanes, and ticket n goes to
//! the backend that a smooth weighted round robin names for place n of its cycle. One `fetch_add` per new
//! connection, no lock; 80/20 is 4 of 5 in every run of 5, whichever lanes drew the tickets.
//!
//! A ticket of a backend whose node does not answer is lost, and another is drawn: what the others get stays in
//! proportion. Where a whole tier does not answer, the next takes its place; where nobody does, all count as if they did.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::clock::Timestamp;
use crate::base::id::NodeName;
use crate::dataplane::liveness::Silence;
use crate::model::netmap::{Backend, Service};

/// The longest cycle, in places; weights whose cycle would be longer are rounded to fit, each at least 1.
const MAX_CYCLE: u64 = 4096;
/// Most tickets that one connection draws anew: where all of them are of backends that do not answer, it goes to the next
/// place in the cycle whose backend does.
const MAX_DRAWS: usize = 64;

/// Chooses among the backends of one service.
#[derive(Debug)]
pub struct Balancer {
    backends: Vec<Backend>,
    /// What is known of the node of each backend; none of this node's own.
    silences: Vec<Option<Arc<Silence>>>,
    /// A cycle for each tier that has a weight, the lowest first: indices into `backends`, in the order in which tickets
    /// use them.
    tiers: Vec<Vec<u16>>,
    tickets: Arc<AtomicU64>,
    sticky: bool,
}

impl Balancer {
    /// Prepares a service; takes over the tickets of `previous` if its cycles are the same. `silence` knows the nodes.
    pub fn new(
        service: &Service,
        silence: impl Fn(&NodeName) -> Option<Arc<Silence>>,
        previous: Option<&Self>,
    ) -> Self {
        let backends = service.backends.clone();
        let silences = backends.iter().map(|backend| silence(&backend.node)).collect();
        let tiers = tiers(&backends);
        let same = previous.filter(|p| p.tiers == tiers && p.backends == backends);
        let tickets = same.map_or_else(Arc::default, |p| Arc::clone(&p.tickets));
        Self { backends, silences, tiers, tickets, sticky: service.sticky }
    }

    /// Chooses the backend of a new connection, or none if no live backend takes any.
    pub fn choose(&self, client: Ipv4Addr) -> Option<&Backend> {
        self.find(|attempt| match self.sticky {
            true => place_of(client, attempt),
            false => self.tickets.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Returns the backend that the next connection would go to, without drawing its ticket.
    pub fn peek(&self) -> Option<&Backend> {
        let next = self.tickets.load(Ordering::Relaxed);
        self.find(|attempt| next.wrapping_add(u64::from(attempt)))
    }

    /// Returns all backends, those that take no new connections included.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Returns the backends whose nodes do not answer, and since when. Unless no other answers either, they take no new
    /// connections.
    pub fn silent(&self) -> impl Iterator<Item = (&Backend, Timestamp)> {
        let known = self.backends.iter().zip(&self.silences);
        known.filter_map(|(backend, silence)| Some((backend, silence.as_ref()?.since()?)))
    }

    /// Finds the backend of a ticket; `draw` gives one for each attempt.
    fn find(&self, draw: impl Fn(u32) -> u64) -> Option<&Backend> {
        let place =
            |cycle: &[u16], ticket: u64| Some(usize::from(cycle[ticket.checked_rem(cycle.len() as u64)? as usize]));
        let mut ticket = draw(0);
        let first = place(self.tiers.first()?, ticket)?;
        if self.answers(first) {
            return self.backends.get(first);
        }
        let answers = |index: &&u16| self.answers(usize::from(**index));
        let Some(cycle) = self.tiers.iter().find(|cycle| cycle.iter().any(|index| answers(&index))) else {
            return self.backends.get(first);
        };
        for attempt in 1..=cycle.len().min(MAX_DRAWS) as u32 {
            let next = place(cycle, ticket)?;
            if self.answers(next) {
                return self.backends.get(next);
            }
            ticket = draw(attempt);
        }
        let (before, after) = cycle.split_at(ticket.checked_rem(cycle.len() as u64)? as usize);
        let next = after.iter().chain(before).find(answers).map_or(first, |&index| usize::from(index));
        self.backends.get(next)
    }

    fn answers(&self, index: usize) -> bool {
        let silence = self.silences.get(index).and_then(Option::as_ref);
        silence.is_none_or(|silence| silence.since().is_none())
    }
}

/// Returns the ticket that a client always has; where its backend does not answer, further ones, which differ between the
/// clients of one backend.
fn place_of(client: Ipv4Addr, attempt: u32) -> u64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let own = u64::from(u32::from(client)).wrapping_mul(GOLDEN) >> 32;
    if attempt == 0 { own } else { (own << 16 | u64::from(attempt)).wrapping_mul(GOLDEN) >> 32 }
}

/// Lays out a cycle for each tier that has a weight, the lowest first.
fn tiers(backends: &[Backend]) -> Vec<Vec<u16>> {
    let mut tiers: Vec<u8> = backends.iter().filter(|b| b.weight > 0).map(|b| b.tier).collect();
    tiers.sort_unstable();
    tiers.dedup();
    tiers.into_iter().map(|tier| cycle(backends, tier)).collect()
}

/// Lays out one cycle over a tier: smooth weighted round robin, in which every place goes to the backend with the
/// largest deficit.
fn cycle(backends: &[Backend], tier: u8) -> Vec<u16> {
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

    /// A balancer of nodes that all answer.
    fn balancer(service: &Service, previous: Option<&Balancer>) -> Balancer {
        Balancer::new(service, |_| None, previous)
    }

    /// A balancer of nodes of which each may fall silent.
    fn judged(service: &Service) -> (Balancer, Vec<Arc<Silence>>) {
        let silences: Vec<Arc<Silence>> = service.backends.iter().map(|_| Arc::default()).collect();
        let of =
            |node: &NodeName| service.backends.iter().position(|b| b.node == *node).map(|i| Arc::clone(&silences[i]));
        (Balancer::new(service, of, None), silences.clone())
    }

    const NOW: Option<Timestamp> = Some(Timestamp::from_millis(1));

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
        let balancer = balancer(&service(&[(80, 0), (20, 0)]), None);
        for _ in 0..40 {
            assert_eq!(counts(&balancer, 5), BTreeMap::from([("n0".into(), 4), ("n1".into(), 1)]));
        }
    }

    #[test]
    fn eight_lanes_share_one_account() {
        let balancer = balancer(&service(&[(70, 0), (20, 0), (10, 0)]), None);
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
        let balancer = balancer(&service(&[(0, 0), (100, 1), (100, 2)]), None);
        assert_eq!(counts(&balancer, 10), BTreeMap::from([("n1".into(), 10)]));
    }

    #[test]
    fn nobody_is_chosen_when_all_are_drained() {
        assert!(balancer(&service(&[(0, 0)]), None).choose(Ipv4Addr::LOCALHOST).is_none());
        assert!(balancer(&service(&[]), None).peek().is_none());
    }

    #[test]
    fn an_unchanged_service_keeps_its_account_and_a_changed_one_starts_anew() {
        let first = balancer(&service(&[(1, 0), (1, 0)]), None);
        counts(&first, 1);
        let same = balancer(&service(&[(1, 0), (1, 0)]), Some(&first));
        assert_eq!(same.choose(Ipv4Addr::LOCALHOST).unwrap().node.as_str(), "n1");
        let changed = balancer(&service(&[(1, 0), (2, 0)]), Some(&first));
        assert_eq!(changed.tickets.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn huge_and_uneven_weights_stay_within_the_cycle_and_leave_nobody_out() {
        let balancer = balancer(&service(&[(1_000_000, 0), (1, 0), (999_983, 0)]), None);
        assert!(balancer.tiers[0].len() as u64 <= MAX_CYCLE + 3);
        assert_eq!(counts(&balancer, balancer.tiers[0].len()).len(), 3);
    }

    #[test]
    fn a_sticky_client_keeps_its_backend() {
        let mut sticky = service(&[(1, 0), (1, 0), (1, 0)]);
        sticky.sticky = true;
        let balancer = balancer(&sticky, None);
        let first = balancer.choose(Ipv4Addr::new(241, 2, 9, 9)).unwrap().node.clone();
        assert!((0..20).all(|_| balancer.choose(Ipv4Addr::new(241, 2, 9, 9)).unwrap().node == first));
    }

    #[test]
    fn a_silent_backend_is_left_out_and_the_others_keep_their_proportion_until_it_is_back() {
        let (balancer, silences) = judged(&service(&[(50, 0), (20, 0), (10, 0)]));
        silences[0].set(NOW);
        assert_eq!(counts(&balancer, 30), BTreeMap::from([("n1".into(), 20), ("n2".into(), 10)]));
        assert_eq!(balancer.silent().map(|(b, _)| b.node.as_str()).collect::<Vec<_>>(), ["n0"]);

        silences[0].set(None);
        assert_eq!(counts(&balancer, 80), BTreeMap::from([("n0".into(), 50), ("n1".into(), 20), ("n2".into(), 10)]));
    }

    #[test]
    fn a_connection_draws_few_tickets_however_much_of_the_cycle_is_silent() {
        let (balancer, silences) = judged(&service(&[(4090, 0), (3, 0), (2, 0)]));
        silences[0].set(NOW);
        let chosen = counts(&balancer, 4095);
        let drawn = balancer.tickets.load(Ordering::Relaxed);
        assert!(drawn <= 4095 * (MAX_DRAWS as u64 + 1), "{drawn}");
        assert_eq!(chosen.keys().map(String::as_str).collect::<Vec<_>>(), ["n1", "n2"]);
        let shown = balancer.peek().unwrap().node.clone();
        assert_eq!(balancer.choose(Ipv4Addr::LOCALHOST).unwrap().node, shown);
    }

    #[test]
    fn where_nobody_answers_all_are_used_as_before() {
        let (balancer, silences) = judged(&service(&[(3, 0), (1, 0), (1, 1)]));
        silences.iter().for_each(|silence| silence.set(NOW));
        assert_eq!(counts(&balancer, 40), BTreeMap::from([("n0".into(), 30), ("n1".into(), 10)]));
    }

    #[test]
    fn the_next_tier_takes_what_a_silent_one_leaves_and_a_drained_backend_never() {
        let (balancer, silences) = judged(&service(&[(1, 0), (0, 0), (1, 3), (1, 3)]));
        silences[0].set(NOW);
        assert_eq!(counts(&balancer, 10), BTreeMap::from([("n2".into(), 5), ("n3".into(), 5)]));
        silences[2].set(NOW);
        assert_eq!(counts(&balancer, 10), BTreeMap::from([("n3".into(), 10)]));
        silences[3].set(NOW);
        assert_eq!(counts(&balancer, 10), BTreeMap::from([("n0".into(), 10)]));
    }

    #[test]
    fn the_backend_that_is_shown_is_the_one_that_is_taken() {
        let (balancer, silences) = judged(&service(&[(5, 0), (2, 0), (1, 0), (1, 1)]));
        for round in 0..64 {
            silences.iter().enumerate().for_each(|(i, silence)| silence.set(NOW.filter(|_| round & 1 << i != 0)));
            let shown = balancer.peek().unwrap().node.clone();
            assert_eq!(balancer.choose(Ipv4Addr::LOCALHOST).unwrap().node, shown, "{round:b}");
        }
    }

    #[test]
    fn sticky_clients_of_a_silent_backend_spread_over_the_others_and_come_back() {
        let mut sticky = service(&[(1, 0), (1, 0), (1, 0), (1, 0)]);
        sticky.sticky = true;
        let (balancer, silences) = judged(&sticky);
        let clients = || (0..400u32).map(|i| Ipv4Addr::from(0xF102_0000 + i));
        let homes = || clients().map(|client| balancer.choose(client).unwrap().node.clone()).collect::<Vec<_>>();
        let before = homes();
        silences[0].set(NOW);
        let meanwhile = homes();
        assert_eq!(homes(), meanwhile, "they stay where they are");
        let moved: Vec<_> = before.iter().zip(&meanwhile).filter(|(b, m)| b != m).collect();
        assert!(moved.iter().all(|(b, _)| b.as_str() == "n0") && moved.len() > 50, "{}", moved.len());
        for node in ["n1", "n2", "n3"] {
            assert!(moved.iter().filter(|(_, m)| m.as_str() == node).count() > 10, "{node}");
        }
        silences[0].set(None);
        assert_eq!(homes(), before);
    }
}
