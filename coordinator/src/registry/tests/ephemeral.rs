//! Ephemeral nodes vanish 10 minutes after their last contact, in virtual time.

use super::storing::Shared;
use super::*;

/// A coordinator that looks every 20 seconds.
struct Keeper {
    registry: Registry,
    sightings: Sightings,
    /// How far its clock is ahead of ours, in seconds.
    ahead: u64,
}

impl Keeper {
    fn new(registry: Registry, ahead: u64) -> Self {
        Self { registry, sightings: Sightings::default(), ahead }
    }

    /// Looks once. Says whether anything was written.
    fn look(&mut self, connected: &[&str], second: u64) -> bool {
        self.registry.refresh().unwrap();
        let now = later(second + self.ahead);
        let seen = self.sightings.look(&self.registry.world(), now);
        let connected = connected.iter().map(|name| name.parse().unwrap()).collect();
        self.registry.apply(Change::Tend { connected, seen }, Actor::Coordinator, now).unwrap().altered
    }

    /// Looks from one second on to another. Returns how often something was written.
    fn keep(&mut self, connected: &[&str], from: u64, to: u64) -> usize {
        (from..to).step_by(20).filter(|second| self.look(connected, *second)).count()
    }

    fn has(&self, name: &str) -> bool {
        self.registry.world().nodes.contains_key(&name.parse().unwrap())
    }
}

/// n1 and n2 are ephemeral, by the token and by their own wish; n3 is not.
fn mesh(store: &Shared) -> Registry {
    let mut registry = Registry::open(Box::new(store.clone()), setup()).unwrap();
    file(&mut registry, FILE).unwrap();
    registry.apply(Change::TokenCreate(TokenSpec { ephemeral: true, ..spec(1, "c1") }), BY, NOW).unwrap();
    ask(&mut registry, 1, request(1, "n1", facts(1, &[]))).unwrap();
    token(&mut registry, 2, "c1");
    ask(&mut registry, 2, JoinRequest { ephemeral: true, ..request(2, "n2", facts(2, &[])) }).unwrap();
    join(&mut registry, 3, "n3", "c1", &[]).unwrap();
    registry
}

#[test]
fn an_ephemeral_node_vanishes_ten_minutes_after_its_last_contact_and_others_stay() {
    let mut keeper = Keeper::new(mesh(&Shared::default()), 0);
    assert_eq!(keeper.keep(&[], 0, 600), 0);
    assert!(keeper.has("n2"));
    // n1 is connected for an hour; what is looked at more often than every minute is not written more often.
    let written = keeper.keep(&["n1", "n3"], 600, 4200);
    assert!(keeper.has("n1") && keeper.has("n3") && !keeper.has("n2"));
    assert!((40..=60).contains(&written), "{written}");

    keeper.keep(&[], 4200, 4780);
    assert!(keeper.has("n1"));
    keeper.keep(&[], 4780, 4920);
    assert!(!keeper.has("n1") && keeper.has("n3"));

    // It is not expelled: with another token it may come back.
    token(&mut keeper.registry, 4, "c1");
    ask(&mut keeper.registry, 1, request(4, "n1", facts(1, &[]))).unwrap();
    assert!(keeper.has("n1"));
}

#[test]
fn a_report_is_a_contact() {
    let mut keeper = Keeper::new(mesh(&Shared::default()), 0);
    keeper.keep(&[], 0, 480);
    let news = NodeFacts { mtu: 1300, ..facts(1, &[]) };
    report_at(&mut keeper.registry, 1, news, later(480)).unwrap();
    keeper.keep(&[], 480, 1080);
    assert!(keeper.has("n1") && !keeper.has("n2"));
    keeper.keep(&[], 1080, 1180);
    assert!(!keeper.has("n1"));
}

#[test]
fn nobody_vanishes_because_no_coordinator_could_hear_of_it() {
    let store = Shared::default();
    let mut keeper = Keeper::new(mesh(&store), 0);
    keeper.keep(&["n1"], 0, 300);
    // The coordinator is down for an hour, or asleep, and nodes have not come back when it looks first.
    for mut keeper in [Keeper::new(Registry::open(Box::new(store.clone()), setup()).unwrap(), 0), keeper] {
        keeper.keep(&[], 4000, 4500);
        assert!(keeper.has("n1") && keeper.has("n2"));
        // The store is silent for eleven minutes: what others hear of is not stored.
        for second in (4500..5200).step_by(20) {
            keeper.sightings.look(&keeper.registry.world(), later(second));
            keeper.sightings.interrupt();
        }
        keeper.keep(&[], 5200, 5800);
        assert!(keeper.has("n1") && keeper.has("n2"));
    }
    let mut keeper = Keeper::new(Registry::open(Box::new(store), setup()).unwrap(), 0);
    keeper.keep(&["n1"], 6000, 6700);
    assert!(keeper.has("n1") && !keeper.has("n2"));
}

#[test]
fn clocks_that_differ_by_an_hour_take_no_node_out() {
    let store = Shared::default();
    let mut slow = Keeper::new(mesh(&store), 0);
    let mut fast = Keeper::new(Registry::open(Box::new(store), setup()).unwrap(), 3600);
    // n1 is connected to the one first, then to the other, then to the one again.
    for (begin, is_slow) in [(0, true), (2000, false), (4000, true)] {
        for second in (begin..begin + 2000).step_by(20) {
            let (here, there): (&[&str], &[&str]) = if is_slow { (&["n1"], &[]) } else { (&[], &["n1"]) };
            slow.look(here, second);
            fast.look(there, second);
            assert!(fast.registry.world().nodes.contains_key(&"n1".parse().unwrap()), "{second}");
        }
    }
    assert!(!slow.has("n2"));
    slow.keep(&[], 6000, 6700);
    assert!(!slow.has("n1"));
}
