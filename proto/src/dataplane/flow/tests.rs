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

#[test]
fn what_was_inserted_is_found_until_it_is_removed() {
    let table = FlowTable::new(1024);
    for n in 0..100 {
        table.insert(key(n), &flow(n, FlowState::Open, NOW), NOW).unwrap();
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
        table.insert(key(1), &flow(1, state, NOW), NOW).unwrap();
        assert!(table.find(key(1), NOW + Duration::from_secs(seconds)).is_some(), "{state:?}");
        assert!(table.find(key(1), NOW + Duration::from_secs(seconds + 1)).is_none(), "{state:?}");
    }
}

#[test]
fn a_full_bucket_gives_up_the_cheapest_and_never_a_busy_flow() {
    let table = FlowTable::new(64);
    let home = table.bucket(key(0));
    let same: Vec<u32> = (0..).filter(|&n| table.bucket(key(n)) == home).take(11).collect();
    for &n in &same[..8] {
        let state = if n == same[3] { FlowState::HalfOpen } else { FlowState::Open };
        table.insert(key(n), &flow(n, state, NOW), NOW).unwrap();
    }
    table.insert(key(same[8]), &flow(same[8], FlowState::Open, NOW), NOW).unwrap();
    assert!(table.find(key(same[3]), NOW).is_none(), "the half-open one went");
    assert_eq!(table.insert(key(same[9]), &flow(same[9], FlowState::Open, NOW), NOW), Err(Full));
    let one_peer = |n| Flow { remote: Some(NodeId(7)), ..flow(n, FlowState::Open, NOW) };
    for &n in same[..8].iter().filter(|&&n| n != same[3]).take(4) {
        table.insert(key(n), &one_peer(n), NOW).unwrap();
    }
    assert_eq!(table.insert(key(same[10]), &one_peer(same[10]), NOW), Err(Full), "half of the bucket is its own");
    assert!(
        table.insert(key(same[10]), &flow(same[10], FlowState::Open, NOW), NOW).is_ok(),
        "another peer gets a place"
    );
    let later = NOW + Duration::from_secs(61);
    assert!(table.insert(key(same[9]), &flow(same[9], FlowState::Open, later), later).is_ok(), "idle ones may go");
}

#[test]
fn touching_counts_ages_and_follows_the_flags() {
    let table = FlowTable::new(64);
    let place = table.insert(key(1), &flow(1, FlowState::HalfOpen, NOW), NOW).unwrap();
    let touch = |flags, now| {
        let (_, flow) = table.find(key(1), now).unwrap();
        table.touch(place, key(1), &flow, FlowTraffic { packets: 1, bytes: 100, tcp_flags: flags }, now)
    };
    assert_eq!(touch(16, NOW), Touched::Nothing);
    assert_eq!(touch(16, NOW), Touched::Nothing);
    assert_eq!(touch(16, NOW + Duration::from_secs(2)), Touched::Aged);
    assert_eq!(touch(17, NOW + Duration::from_secs(2)), Touched::State);
    let (_, flow) = table.find(key(1), NOW).unwrap();
    assert_eq!((flow.packets, flow.bytes, flow.state), (4, 400, FlowState::Closing));
}

#[test]
fn a_flow_is_open_once_both_sides_have_spoken_and_nobody_opens_it_alone() {
    let table = FlowTable::new(64);
    let forward = flow(1, FlowState::HalfOpen, NOW);
    let answer = key(1).answer(&forward);
    let back = Flow { to: key(1).tuple.reverse(), opened: false, ..forward };
    let place = table.insert(key(1), &forward, NOW).unwrap();
    let other = table.insert(answer, &back, NOW).unwrap();
    let seen = FlowTraffic { packets: 1, bytes: 1, tcp_flags: 16 };
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
fn an_entry_survives_the_way_through_a_file_and_a_torn_one_does_not() {
    let table = FlowTable::with_seed(64, 7);
    let place = table.insert(key(9), &flow(9, FlowState::Open, NOW), NOW).unwrap();
    let bytes = table.entry(place.slot());
    let later = Timestamp::from_millis(9_000_000);
    let restored = FlowTable::with_seed(64, 7);
    assert!(restored.restore(place.slot(), &bytes, later));
    assert_eq!(restored.find(key(9), later).map(|(_, f)| f.to), Some(flow(9, FlowState::Open, NOW).to));
    for at in 0..bytes.len() {
        let mut torn = bytes;
        torn[at] ^= 0x40;
        assert!(!FlowTable::with_seed(64, 7).restore(place.slot(), &torn, later), "byte {at}");
    }
    assert!(!FlowTable::with_seed(64, 7).restore(place.slot() ^ 8, &bytes, later), "the wrong bucket");
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
    let home = table.bucket(key(0));
    let same: Vec<u32> = (0..).filter(|&n| table.bucket(key(n)) == home).take(12).collect();
    std::thread::scope(|scope| {
        for lane in 0..8usize {
            let (table, same) = (&table, &same);
            scope.spawn(move || {
                for round in 0..20_000usize {
                    let n = same[(lane * 7 + round) % same.len()];
                    if round % 3 == 0 {
                        let _ = table.insert(key(n), &flow(n, FlowState::HalfOpen, NOW), NOW);
                    } else if let Some((_, found)) = table.find(key(n), NOW) {
                        assert_eq!(found.to, flow(n, FlowState::HalfOpen, NOW).to);
                    }
                }
            });
        }
    });
}
