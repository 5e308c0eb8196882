#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;
use crate::base::addr::overlap;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn service(name: &str) -> ServiceKey {
    name.parse().unwrap()
}

fn vips(range: MeshRange, live: &[Flat], pool: &mut Pool, name: &str, now: u64) -> Result<Flat, Exhausted> {
    pool.vip(range, &service(name), live.iter().copied(), UnixTime(now))
}

#[test]
fn addresses_come_in_order_and_avoid_the_dns_network_and_broadcast_addresses() {
    let range = MeshRange::default();
    let mut pool = Pool::default();
    let mut live = Vec::new();
    for i in 0..600 {
        live.push(vips(range, &live, &mut pool, &format!("s{i}"), 0).unwrap());
    }
    let shown: Vec<_> = live.iter().map(Flat::to_string).collect();
    assert_eq!(shown[0], "241.0.0.1");
    assert_eq!(shown[51..53], ["241.0.0.52", "241.0.0.54"]);
    assert_eq!(shown[252..254], ["241.0.0.254", "241.0.1.1"]);

    let node = pool.node(range, std::iter::empty(), UnixTime(0)).unwrap();
    assert_eq!(node.to_string(), "241.1.0.1");
}

#[test]
fn second_addresses_are_nobodys_own_until_half_of_the_nodes_part_is_full() {
    let range: MeshRange = "10.200.0.0/16".parse().unwrap();
    let mut pool = Pool::default();
    let mut live: Vec<Flat> = Vec::new();
    for _ in 0..127 {
        live.push(pool.node(range, live.iter().copied(), UnixTime(0)).unwrap());
    }
    let seconds: Vec<_> = live.iter().map(|&node| range.second(node)).collect();
    assert!(seconds.iter().all(|second| range.nodes().contains(&second.0) && !live.contains(second)), "{seconds:?}");
    assert!(live.iter().all(|&node| range.second(range.second(node)) == node));
    let next = pool.node(range, live.iter().copied(), UnixTime(0)).unwrap();
    assert!(next.0.octets()[3] >= 128, "{next}: nodes come before masqueraded networks");
}

#[test]
fn blocks_of_each_length_are_packed_behind_one_another() {
    let range = MeshRange::default();
    let mut pool = Pool::default();
    let mut live: Vec<Ipv4Net> = Vec::new();
    let claims = ["10.8.0.0/24", "10.8.1.0/24", "10.9.0.7/32", "10.8.2.0/24", "10.9.0.8/32", "10.16.0.0/16"];
    for real in claims {
        let flat = pool.block(range, NodeId(1), net(real), live.iter().copied(), UnixTime(0));
        live.push(flat.unwrap());
    }
    let shown: Vec<_> = live.iter().map(Ipv4Net::to_string).collect();
    let expected = ["241.2.0.0/24", "241.2.1.0/24", "241.2.2.0/32", "241.2.3.0/24", "241.2.2.1/32", "241.3.0.0/16"];
    assert_eq!(shown, expected);
}

#[test]
fn what_was_freed_rests_for_everybody_but_its_former_owner() {
    let range: MeshRange = "10.200.0.0/16".parse().unwrap();
    let mut pool = Pool::default();
    let mut live = Vec::new();
    for i in 0..253 {
        live.push(vips(range, &live, &mut pool, &format!("s{i}"), 0).unwrap());
    }
    assert_eq!(vips(range, &live, &mut pool, "more", 0), Err(Exhausted::Vips(range.vips())));

    let freed = live.remove(7);
    pool.free(single(freed), BlockOwner::Service(service("s7")), UnixTime(100));

    assert!(vips(range, &live, &mut pool.clone(), "more", 100 + 599).is_err());
    assert_eq!(vips(range, &live, &mut pool.clone(), "s7", 101), Ok(freed));
    assert_eq!(vips(range, &live, &mut pool, "more", 100 + 600), Ok(freed));
}

#[test]
fn a_block_larger_than_the_range_is_refused() {
    let range: MeshRange = "10.200.0.0/16".parse().unwrap();
    let mut pool = Pool::default();
    for real in ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16"] {
        let refused = pool.block(range, NodeId(1), net(real), std::iter::empty(), UnixTime(0));
        assert!(refused.is_err(), "{real}");
    }
}

#[test]
fn numbers_are_never_given_out_twice() {
    let mut pool = Pool::default();
    let first = (pool.node_id(), pool.service_id());
    pool.forget_places();
    assert!(pool.node_id() > first.0 && pool.service_id() > first.1);
}

#[derive(Debug, Clone)]
enum PoolStep {
    Vip(u8),
    Node,
    Block(u8, u8, u8),
    Free(prop::sample::Index),
    Wait(u64),
}

fn step() -> impl Strategy<Value = PoolStep> {
    prop_oneof![
        4 => (0u8..40).prop_map(PoolStep::Vip),
        2 => Just(PoolStep::Node),
        6 => (1u8..4, 0u8..60, 19u8..=32).prop_map(|(node, place, length)| PoolStep::Block(node, place, length)),
        5 => any::<prop::sample::Index>().prop_map(PoolStep::Free),
        2 => (0u64..400).prop_map(PoolStep::Wait),
    ]
}

/// Something given out, as the test remembers it.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    net: Ipv4Net,
    owner: BlockOwner,
}

fn is_part(range: MeshRange, held: &Held) -> bool {
    let plain = |a: Ipv4Addr| !matches!(a.octets()[3], 0 | 255);
    let address = held.net.network();
    match &held.owner {
        BlockOwner::Service(_) => range.vips().contains(&held.net) && plain(address) && Flat(address) != range.dns(),
        BlockOwner::Node(_) => range.nodes().contains(&held.net) && plain(address),
        BlockOwner::Block(_, real) => {
            let inside = range.net().contains(&held.net) && address >= range.first_block_address();
            inside && held.net.prefix_len() == real.prefix_len() && held.net.trunc() == held.net
        }
    }
}

/// Tries every place, as slowly as can be.
fn is_full(range: MeshRange, length: u8, busy: &[Ipv4Net]) -> bool {
    let from = u32::from(range.first_block_address());
    let mut places = range.net().subnets(length).into_iter().flatten();
    places.all(|place| u32::from(place.network()) < from || busy.iter().any(|&net| overlap(net, place)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_overlaps_and_nothing_returns_before_its_rest_is_over(steps in prop::collection::vec(step(), 1..250)) {
        let range: MeshRange = "10.200.0.0/16".parse().unwrap();
        let mut pool = Pool::default();
        let mut live: Vec<Held> = Vec::new();
        let mut resting: Vec<(Held, u64)> = Vec::new();
        let mut now = 0;
        let mut nodes = 0;
        for step in steps {
            let before = pool.clone();
            let nets: Vec<_> = live.iter().map(|held| held.net).collect();
            let given = |pool: &mut Pool, owner: &BlockOwner| {
                let flats = nets.iter().map(|net| Flat(net.network()));
                match owner {
                    BlockOwner::Service(key) => pool.vip(range, key, flats, UnixTime(now)).map(single),
                    BlockOwner::Node(_) => pool.node(range, flats, UnixTime(now)).map(single),
                    BlockOwner::Block(node, real) => pool.block(range, *node, *real, nets.iter().copied(), UnixTime(now)),
                }
            };
            let owner = match step {
                PoolStep::Wait(seconds) => { now += seconds; continue; }
                PoolStep::Free(index) => {
                    if !live.is_empty() {
                        let held = live.swap_remove(index.index(live.len()));
                        pool.free(held.net, held.owner.clone(), UnixTime(now));
                        resting.push((held, now + QUARANTINE.as_secs()));
                    }
                    continue;
                }
                PoolStep::Vip(i) => BlockOwner::Service(service(&format!("s{i}"))),
                PoolStep::Node => { nodes += 1; BlockOwner::Node(NodeId(1000 + nodes)) }
                PoolStep::Block(node, place, length) => {
                    let real = Ipv4Net::new(Ipv4Addr::new(10, 8, place, 0), length).unwrap().trunc();
                    BlockOwner::Block(NodeId(u32::from(node)), real)
                }
            };
            if live.iter().any(|held| held.owner == owner) {
                continue;
            }
            resting.retain(|(_, until)| *until > now);
            let result = given(&mut pool, &owner);
            prop_assert_eq!(&result, &given(&mut before.clone(), &owner));
            match result {
                Err(Exhausted::Blocks { length, .. }) => {
                    let busy: Vec<_> = nets.iter().copied().chain(resting.iter().map(|(held, _)| held.net)).collect();
                    prop_assert!(is_full(range, length, &busy), "/{} was free", length);
                }
                Err(error) => prop_assert!(nets.len() + resting.len() >= 250, "{}", error),
                Ok(net) => {
                    let held = Held { net, owner };
                    prop_assert!(is_part(range, &held), "{:?}", held);
                    prop_assert!(!nets.iter().any(|&other| overlap(other, net)), "{:?} in {:?}", held, nets);
                    let mut others = resting.iter().map(|(held, _)| held).filter(|other| overlap(other.net, net));
                    prop_assert!(others.all(|other| *other == held), "{:?} rests", net);
                    resting.retain(|(other, _)| other.owner != held.owner);
                    live.push(held);
                }
            }
        }
    }
}
