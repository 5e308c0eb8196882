//! The way through a file, of this version and of the first.

use std::sync::Mutex;

use super::record::{HEAD_BYTES, Layout, RECORD_BYTES};
use super::*;

/// Writes a record as the first version did: eight words and their sum.
fn first_record(key: Key, flow: &Flow) -> [u8; 72] {
    let [addresses, ports] = key.words();
    let words = flow.words(key);
    let state = flow.flags() & 3 | if flow.opened { 0x100 } else { 0 };
    let seen = flow.last_seen.as_millis() << 16 | state;
    let old = [addresses, ports, words[2], words[3], flow.revision.0, seen, flow.packets, 12_345];
    let bytes: Vec<u8> = old.into_iter().flat_map(u64::to_le_bytes).collect();
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    bytes.into_iter().chain(sum.to_le_bytes()).collect::<Vec<u8>>().try_into().unwrap()
}

#[test]
fn a_flow_survives_the_way_through_a_file_into_a_table_of_any_size_and_is_judged_by_no_map() {
    let table = FlowTable::with_seed(64, 7);
    let sent = Flow { packets: 12, ..flow(9, FlowState::Open, NOW) };
    let place = table.insert(key(9), &sent, NOW, &mut |_| {}).unwrap();
    let bytes = record::of_slot(&table, place.slot());
    let later = Timestamp::from_millis(9_000_000);
    let expected = Flow { last_seen: later, revision: Revision(0), ..sent };
    for slots in [64, 128, 4096] {
        let restored = FlowTable::with_seed(slots, 8);
        let (key, flow) = Layout::Present.read(&bytes, later).unwrap();
        assert!(restored.restore(key, &flow));
        assert_eq!(restored.find(super::key(9), later).map(|(_, f)| f), Some(expected));
    }
    for at in 0..bytes.len() {
        let mut torn = bytes;
        torn[at] ^= 0x40;
        assert_eq!(Layout::Present.read(&torn, later), None, "byte {at}");
    }
    assert_eq!(Layout::Present.read(&[0; RECORD_BYTES], later), None);
    assert_eq!(Layout::Present.read(&record::of_slot(&table, place.slot() ^ 1), later), None, "an empty place");
}

#[test]
fn a_record_of_the_first_version_is_read_with_all_that_counts() {
    for (state, opened, remote) in [
        (FlowState::Open, true, Some(NodeId(3))),
        (FlowState::HalfOpen, false, Some(NodeId(u32::MAX - 1))),
        (FlowState::Closing, true, None),
        (FlowState::Reset, false, None),
    ] {
        let old = Flow { opened, remote, packets: 70_000, ..flow(9, state, NOW) };
        let later = NOW + Duration::from_secs(9);
        let read = Layout::First.read(&first_record(key(9), &old), later);
        assert_eq!(read, Some((key(9), Flow { last_seen: later, revision: UNJUDGED, ..old })));
    }
    assert_eq!(Layout::First.read(&[0; 72], NOW), None);
}

#[test]
fn what_is_over_is_not_taken_back() {
    let table = FlowTable::new(64);
    for (state, taken) in [(FlowState::Reset, false), (FlowState::Closing, false), (FlowState::HalfOpen, true)] {
        assert_eq!(table.restore(key(1), &flow(1, state, NOW)), taken);
    }
}

#[test]
fn a_head_tells_the_versions_apart_and_a_version_to_come_is_not_misread() {
    let head = record::head();
    assert_eq!(Layout::of(&head), Some(Layout::Present));
    let first: [u8; HEAD_BYTES] =
        first_record(key(9), &flow(9, FlowState::Open, NOW))[..HEAD_BYTES].try_into().unwrap();
    assert_eq!(Layout::of(&first), Some(Layout::First));
    assert_eq!(Layout::of(&[0; HEAD_BYTES]), Some(Layout::First));
    for at in 8..32 {
        let mut other = head;
        other[at] ^= 1;
        assert_eq!(Layout::of(&other), None, "byte {at}");
    }
}

#[test]
fn what_eight_lanes_write_at_once_is_always_one_flow_and_in_the_end_what_the_table_holds() {
    // A small table, so that places change their owners all the time.
    let table = FlowTable::new(64);
    let file: Vec<Mutex<[u8; RECORD_BYTES]>> = (0..table.slots()).map(|_| Mutex::new([0; RECORD_BYTES])).collect();
    let sent = |n: u32| Flow { revision: Revision(u64::from(n)), ..flow(n, FlowState::HalfOpen, NOW) };
    std::thread::scope(|scope| {
        for lane in 0..8u32 {
            let (table, file) = (&table, &file);
            scope.spawn(move || {
                for round in 0..10_000u32 {
                    let n = (lane * 31 + round * 7) % 97;
                    let mut changed = Vec::new();
                    let opened = table.open(key(n), &sent(n), NOW, |place| changed.push(place));
                    changed.extend(opened.into_iter().flatten());
                    if let Some((place, flow)) = table.find(key(n), NOW) {
                        table.touch(place, key(n), &flow, FlowTraffic { packets: 1, tcp_flags: 16 }, NOW);
                    }
                    for place in changed {
                        record::write(table, place.slot(), |record| {
                            if record != &[0; RECORD_BYTES] {
                                let (read, flow) = Layout::Present.read(record, NOW).unwrap();
                                let tuple = if flow.opened { read.tuple } else { flow.to.reverse() };
                                let n = (0..97).find(|&n| key(n).tuple == tuple).unwrap();
                                let there = if flow.opened { flow.to } else { read.tuple.reverse() };
                                assert_eq!((there, flow.remote), (sent(n).to, sent(n).remote), "parts of two flows");
                            }
                            *file[place.slot()].lock().unwrap() = *record;
                        });
                    }
                }
            });
        }
    });
    for (slot, written) in file.iter().enumerate() {
        let read = |record: &[u8]| {
            Layout::Present.read(record, NOW).map(|(key, flow)| (key, flow.to, flow.remote, flow.opened))
        };
        assert_eq!(read(&*written.lock().unwrap()), read(&record::of_slot(&table, slot)), "slot {slot}");
    }
}
