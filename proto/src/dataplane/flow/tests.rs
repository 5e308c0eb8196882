#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
const NOW: Timestamp = Timestamp::from_millis(1_000_000);

fn key(n: u32) -> Key {
    let tuple = FiveTuple {
        protocol: TCP,
        source: Ipv4Addr::from(0x0a08_0000 + (n >> 16)),
        source_port: n as u16,
        destination: Ipv4Addr::new(241, 0, 0, 1),
        destination_port: 80,
    };
    Key { side: Direction::Outbound, tuple }
}

fn flow(n: u32, state: FlowState, now: Timestamp) -> Flow {
    let to = FiveTuple { source: Ipv4Addr::from(n), ..key(n).tuple };
    Flow { state, ..Flow::new(to, Some(NodeId(n)), Revision(3), true, now) }
}

/// Adds one direction.
fn put(table: &FlowTable, n: u32, state: FlowState) -> FlowSlot {
    table.insert(key(n), &flow(n, state, NOW), NOW, &mut |_| {}).unwrap()
}

#[test]
fn what_was_inserted_is_found_until_it_is_removed() {
    let table = FlowTable::new(1024);
    for n in 0..100 {
        put(&table, n, FlowState::Open);
    }
    for n in 0..100 {
        assert_eq!(table.find(key(n), NOW).map(|(_, f)| f), Some(flow(n, FlowState::Open, NOW)));
        assert_eq!(table.remove(key(n), key(n).tuple), None, "another flow has the key");
        assert!(table.remove(key(n), flow(n, FlowState::Open, NOW).to).is_some());
        assert_eq!(table.find(key(n), NOW), None);
    }
}

#[test]
fn a_flow_expires_by_its_state() {
    let table = FlowTable::new(64);
    for (state, seconds) in
        [(FlowState::Open, 7440), (FlowState::Closing, 240), (FlowState::HalfOpen, 60), (FlowState::Reset, 10)]
    {
        put(&table, 1, state);
        assert!(table.find(key(1), NOW + Duration::from_secs(seconds)).is_some(), "{state:?}");
        assert!(table.find(key(1), NOW + Duration::from_secs(seconds + 1)).is_none(), "{state:?}");
    }
}

#[test]
fn touching_counts_ages_and_follows_the_flags() {
    let table = FlowTable::new(64);
    let place = put(&table, 1, FlowState::HalfOpen);
    let touch = |flags, now| {
        let (_, flow) = table.find(key(1), now).unwrap();
        table.touch(place, key(1), &flow, FlowTraffic { packets: 1, tcp_flags: flags }, now)
    };
    assert_eq!(touch(16, NOW), Touched::Nothing);
    assert_eq!(touch(16, NOW), Touched::Nothing);
    assert_eq!(touch(16, NOW + Duration::from_secs(2)), Touched::Aged);
    assert_eq!(touch(17, NOW + Duration::from_secs(2)), Touched::State);
    let (_, flow) = table.find(key(1), NOW).unwrap();
    assert_eq!((flow.packets, flow.state), (4, FlowState::Closing));
}

#[test]
fn a_flow_is_open_once_both_sides_have_spoken_and_nobody_opens_it_alone() {
    let table = FlowTable::new(64);
    let forward = flow(1, FlowState::HalfOpen, NOW);
    let answer = key(1).answer(&forward);
    let back = Flow { to: key(1).tuple.reverse(), opened: false, ..forward };
    let [place, other] = table.open(key(1), &forward, NOW, |_| {}).unwrap();
    let seen = FlowTraffic { packets: 1, tcp_flags: 16 };
    for _ in 0..9 {
        table.touch(place, key(1), &forward, seen, NOW);
        assert!(!table.assure(key(1), &forward, NOW));
    }
    table.touch(other, answer, &back, seen, NOW);
    assert!(table.assure(answer, &back, NOW));
    for key in [key(1), answer] {
        assert_eq!(table.find(key, NOW).unwrap().1.state, FlowState::Open);
    }
}

#[test]
fn both_directions_name_each_other() {
    let there = key(5);
    let forward = flow(5, FlowState::Open, NOW);
    let back = there.answer(&forward);
    let backward = Flow { to: there.tuple.reverse(), ..forward };
    assert_eq!(back.side, Direction::Inbound);
    assert_eq!(back.answer(&backward), there);
    let local = Flow { remote: None, ..forward };
    assert_eq!(there.answer(&local).side, Direction::Outbound);
}

#[test]
fn readers_never_see_half_an_entry_while_eight_writers_fight_over_a_bucket() {
    let table = FlowTable::new(64);
    std::thread::scope(|scope| {
        for lane in 0..8usize {
            let table = &table;
            scope.spawn(move || {
                for round in 0..20_000usize {
                    let n = ((lane * 7 + round) % 40) as u32;
                    if round % 3 == 0 {
                        let _ = table.open(key(n), &flow(n, FlowState::HalfOpen, NOW), NOW, |_| {});
                    } else if let Some((_, found)) = table.find(key(n), NOW) {
                        assert_eq!(found.to, flow(n, FlowState::HalfOpen, NOW).to);
                    }
                }
            });
        }
    });
    let mut entries = 0;
    table.for_each(NOW, |_, _| entries += 1);
    assert_eq!(table.used.load(Ordering::Relaxed), entries, "each place is counted once");
}

#[test]
fn who_comes_late_alters_nothing_of_the_flow_that_took_the_place() {
    let table = FlowTable::new(64);
    let place = put(&table, 1, FlowState::HalfOpen);
    let (_, stale) = table.find(key(1), NOW).unwrap();
    table.remove(key(1), stale.to).unwrap();
    let again = put(&table, 1, FlowState::HalfOpen);
    assert_eq!(place.slot(), again.slot());
    let later = NOW + Duration::from_secs(5);
    let reset = FlowTraffic { packets: 3, tcp_flags: 4 };
    assert_eq!(table.touch(place, key(1), &stale, reset, later), Touched::Nothing);
    table.stamp(place, Revision(99));
    assert_eq!(table.find(key(1), NOW).map(|(_, flow)| flow), Some(flow(1, FlowState::HalfOpen, NOW)));
    assert_eq!(table.touch(again, key(1), &stale, reset, later), Touched::State);
}

#[test]
fn counts_are_exact_while_eight_lanes_count_on_one_flow_and_others_come_and_go() {
    let table = FlowTable::new(64);
    let place = put(&table, 1, FlowState::Open);
    std::thread::scope(|scope| {
        for lane in 0..8u32 {
            let table = &table;
            scope.spawn(move || {
                let (_, counted) = table.find(key(1), NOW).unwrap();
                for round in 0..10_000 {
                    table.touch(place, key(1), &counted, FlowTraffic { packets: 1, tcp_flags: 16 }, NOW);
                    let other = 100 + lane * 8 + round % 8;
                    put(table, other, FlowState::Closing);
                    table.remove(key(other), flow(other, FlowState::Closing, NOW).to);
                }
            });
        }
    });
    let (_, flow) = table.find(key(1), NOW).unwrap();
    assert_eq!(flow.packets, 80_000);
}

mod file;
mod full;

#[test]
fn new_flows_make_all_of_the_table_ready_and_an_empty_one_is_not_touched() {
    let table = FlowTable::for_flows(1 << 13, 5);
    let written = || (0..table.buckets.count()).filter(|&index| table.buckets.get(index).is_written()).count();
    table.for_each(NOW, |key, _| panic!("{key:?}"));
    assert!(table.is_empty() && written() == 0);
    let turns = table.buckets.count().div_ceil(READIED) as u32;
    for n in 0..turns {
        table.open(key(n), &flow(n, FlowState::Open, NOW), NOW, |_| {}).unwrap();
    }
    assert_eq!(written(), table.buckets.count());
    assert!((0..turns).all(|n| table.find(key(n), NOW).is_some()));
}
