//! What a full table gives up, and for whom.

use super::room::{MAX_FLOWS, MIN_FLOWS, flows_for};
use super::*;

/// The call on that number of a pod, over UDP or TCP.
fn call(pod: u8, n: u16, protocol: u8) -> Key {
    let tuple = FiveTuple {
        protocol,
        source: Ipv4Addr::new(10, 8, 0, pod),
        source_port: n,
        destination: Ipv4Addr::new(241, 0, 0, 1),
        destination_port: 80,
    };
    Key { side: Direction::Outbound, tuple }
}

/// Opens a call through the table and lets each side say so many packets; `None` if it is refused.
fn open(table: &FlowTable, key: Key, packets: u32, now: Timestamp) -> Option<()> {
    let to = FiveTuple { source: Ipv4Addr::from(u32::from(key.tuple.source) | 0xf000_0000), ..key.tuple };
    let flow = Flow::new(to, Some(NodeId(2)), Revision(3), true, now);
    table.open(key, &flow, now, |_| {}).ok()?;
    for key in [key, key.answer(&flow)] {
        let (place, flow) = table.find(key, now)?;
        if packets > 0 {
            table.touch(place, key, &flow, FlowTraffic { packets, tcp_flags: 0 }, now);
            table.assure(key, &flow, now);
        }
    }
    Some(())
}

/// Counts the flows that a pod has.
fn held(table: &FlowTable, pod: u8, now: Timestamp) -> usize {
    let mut count = 0;
    table.for_each(now, |key, flow| {
        count += usize::from(flow.opened && key.tuple.source == Ipv4Addr::new(10, 8, 0, pod));
    });
    count
}

#[test]
fn the_table_of_a_machine_with_memory_holds_131072_flows_in_64_mib_and_one_pod_may_have_them_all() {
    assert_eq!(flows_for(8 << 30), MAX_FLOWS);
    let table = FlowTable::for_flows(MAX_FLOWS, 11);
    assert_eq!(table.flows(), 131_072);
    assert!(table.slots() * bucket::PLACE_BYTES <= 64 << 20);
    for n in 0..131_072_u32 {
        let key = call((n >> 16) as u8, n as u16, UDP);
        assert!(open(&table, key, 1, NOW).is_some(), "flow {n}");
    }
    assert_eq!(table.displaced(), 0, "nothing goes before the table is full");
    open(&table, call(7, 7, UDP), 1, NOW).unwrap();
    assert_eq!((table.displaced(), held(&table, 7, NOW)), (1, 1));
}

#[test]
fn the_size_follows_the_memory_within_limits() {
    for (memory, flows) in
        [(0, MIN_FLOWS), (64 << 20, 1 << 14), (256 << 20, 1 << 16), (512 << 20, MAX_FLOWS), (u64::MAX, MAX_FLOWS)]
    {
        assert_eq!(flows_for(memory), flows, "{memory}");
    }
}

#[test]
fn the_cheapest_flow_of_whoever_holds_most_goes_and_nobody_elses() {
    let table = FlowTable::new(256);
    // Of each pod: half-open for long, questions, conversations over TCP and UDP, half-open just now.
    let silent = NOW + Duration::from_secs(10);
    let fill = |pod, each: u16| {
        for n in 0..each {
            open(&table, call(pod, 1000 + n, TCP), 0, NOW).unwrap();
            open(&table, call(pod, 2000 + n, UDP), 2, NOW).unwrap();
            open(&table, call(pod, 3000 + n, TCP), 1, NOW).unwrap();
            open(&table, call(pod, 4000 + n, UDP), 3, NOW).unwrap();
            open(&table, call(pod, 5000 + n, TCP), 0, silent).unwrap();
        }
    };
    fill(1, 6);
    fill(2, 3);
    (0..10).for_each(|n| open(&table, call(3, n, TCP), 1, NOW).unwrap());
    (0..9).for_each(|n| open(&table, call(5, n, UDP), 0, NOW).unwrap());
    assert_eq!(table.used.load(Ordering::Relaxed), table.flows() * 2);
    let of = |pod, from: u16| {
        let lives =
            |n: &u16| [TCP, UDP].iter().any(|&protocol| table.find(call(pod, from + n, protocol), silent).is_some());
        (0..6).filter(lives).count()
    };
    let kinds = |pod| [1000, 2000, 3000, 4000, 5000].map(|from| of(pod, from));
    let mut newcomer = 0;
    let mut come = |count: u16| {
        for _ in 0..count {
            newcomer += 1;
            open(&table, call(4, newcomer, TCP), 1, silent).unwrap();
        }
    };
    come(10);
    let [half_open, questions, tcp, udp, begun] = kinds(1);
    assert_eq!((half_open + questions, tcp, udp, begun), (2, 6, 6, 6), "what is cheap goes first");
    come(2);
    assert_eq!(kinds(1), [0, 0, 6, 6, 6]);
    come(2);
    assert_eq!(kinds(1), [0, 0, 6, 6, 4], "then what only began");
    assert_eq!(kinds(2), [3; 5], "who holds less loses nothing, cheap as it is");
    assert_eq!([3, 5, 4].map(|pod| held(&table, pod, silent)), [10, 9, 14]);
    assert_eq!(table.displaced(), 14);
}

#[test]
fn a_conversation_goes_for_who_holds_less_and_who_holds_most_is_refused() {
    let table = FlowTable::new(1024);
    for n in 0..200 {
        open(&table, call(1, n, TCP), 1, NOW).unwrap();
    }
    for n in 0..56 {
        open(&table, call(2, n, UDP), 3, NOW).unwrap();
    }
    assert_eq!(open(&table, call(1, 300, TCP), 1, NOW), None, "it holds most");
    for n in 0..10 {
        open(&table, call(3, n, TCP), 1, NOW).unwrap();
    }
    assert_eq!([1, 2, 3].map(|pod| held(&table, pod, NOW)), [190, 56, 10]);
    let later = NOW + Duration::from_secs(61);
    assert!(open(&table, call(1, 300, TCP), 1, later).is_some(), "its own that is silent for a minute goes");
    assert_eq!([1, 2, 3].map(|pod| held(&table, pod, later)), [190, 56, 10]);
}

#[test]
fn who_holds_most_takes_the_cheap_flow_of_another_rather_than_its_own_conversation() {
    let table = FlowTable::new(256);
    (0..63).for_each(|n| open(&table, call(1, n, TCP), 1, NOW).unwrap());
    open(&table, call(2, 1, TCP), 0, NOW).unwrap();
    assert_eq!(open(&table, call(1, 300, TCP), 1, NOW), None, "a connection that begins is not cheap");
    let later = NOW + Duration::from_secs(10);
    assert!(open(&table, call(1, 300, TCP), 1, later).is_some());
    assert_eq!([1, 2].map(|pod| held(&table, pod, later)), [64, 0]);
}

#[test]
fn ten_thousand_half_open_connections_a_second_of_one_pod_cost_nobody_else_a_flow() {
    let table = FlowTable::for_flows(MIN_FLOWS, 5);
    (0..500).for_each(|n| open(&table, call(2, n, TCP), 1, NOW).unwrap());
    (0..500).for_each(|n| open(&table, call(3, n, UDP), 3, NOW).unwrap());
    (0..50).for_each(|n| open(&table, call(1, n, TCP), 1, NOW).unwrap());
    for n in 0..60_000_u32 {
        let now = NOW + Duration::from_micros(u64::from(n) * 100);
        open(&table, call(1, 1000 + n as u16 % 60_000, TCP), 0, now).unwrap();
        if n % 10 == 0 {
            open(&table, call(4 + (n / 600) as u8, n as u16, TCP), 1, now).unwrap();
        }
    }
    let now = NOW + Duration::from_secs(6);
    assert_eq!([2, 3].map(|pod| held(&table, pod, now)), [500, 500]);
    assert!((0..50).all(|n| table.find(call(1, n, TCP), now).is_some()), "its own conversations stay, too");
    assert_eq!((4..104).map(|pod| held(&table, pod, now)).sum::<usize>(), 6000);
    assert!(table.used.load(Ordering::Relaxed) <= table.flows() * 2);
}

#[test]
fn what_expired_goes_before_anything_that_lives() {
    let table = FlowTable::new(256);
    (0..40).for_each(|n| open(&table, call(1, n, TCP), 1, NOW).unwrap());
    (0..24).for_each(|n| open(&table, call(2, n, UDP), 1, NOW).unwrap());
    let later = NOW + Duration::from_secs(301);
    for n in 0..24 {
        table.sweep(later, |_| {});
        open(&table, call(3, n, TCP), 1, later).unwrap();
    }
    assert_eq!(([1, 3].map(|pod| held(&table, pod, later)), table.displaced()), ([40, 24], 0));
}

#[test]
fn a_holder_is_told_from_both_directions_of_a_flow() {
    let peer = Some(NodeId(2));
    for (side, remote, expected) in [
        (Direction::Outbound, peer, Holder::Own(call(1, 1, TCP).tuple.source)),
        (Direction::Outbound, None, Holder::Own(call(1, 1, TCP).tuple.source)),
        (Direction::Inbound, peer, Holder::Peer(NodeId(2))),
    ] {
        let key = Key { side, ..call(1, 1, TCP) };
        let to = FiveTuple { source: Ipv4Addr::new(241, 1, 1, 1), ..key.tuple };
        let flow = Flow::new(to, remote, Revision(3), true, NOW);
        let back = Flow { to: key.tuple.reverse(), opened: false, ..flow };
        assert_eq!([key.holder(&flow), key.answer(&flow).holder(&back)], [expected; 2]);
    }
}
