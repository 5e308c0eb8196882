#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::dataplane::flow::record::Layout;
use crate::fixture::{self, B, CART, NEAR, NODE_A, NODE_B, POD_A, POD_A2, POD_B, RuleAt, STORE};
use crate::model::netmap::NetMap;
use crate::packet::{TCP, UDP};
use std::time::Duration;

mod bench;
mod corners;
mod packets;
mod silent;
mod stale;

use packets::{echo, icmp_error, ip, ipv4, tcp, udp};

const NOW: Timestamp = Timestamp::from_millis(5_000_000);
/// Pods of node a as their interfaces carry them.
const REAL_A: &str = "10.8.0.10";
const REAL_A2: &str = "10.8.0.11";
const DF: u16 = 0x4000;
const MF: u16 = 0x2000;

fn engine(rules: &[RuleAt<'_>]) -> Engine {
    engine_of(fixture::netmap(rules))
}

fn engine_of(map: NetMap) -> Engine {
    Engine::new(Arc::new(View::compile(crate::verifier::VerifiedMap::by_hand(map))), Arc::new(FlowTable::new(4096)))
}

/// Allows everything that the tests of translation need.
fn open() -> Vec<RuleAt<'static>> {
    vec![RuleAt(1, &["any"], &["any", "cart", "near", "store"])]
}

/// Gives an engine the records of a file, and says how many it took.
fn taken_back<'a>(engine: &Engine, file: impl Iterator<Item = &'a Vec<u8>>) -> usize {
    let read = file.filter_map(|record| Layout::Present.read(record, NOW));
    read.filter(|(key, flow)| engine.flows.restore(*key, flow)).count()
}

/// Shows a packet as `source:port > destination:port`, after checking all of its checksums.
fn show(p: &[u8]) -> String {
    assert!(packet::verify(p), "a checksum is wrong: {p:02x?}");
    let t = Header::parse(p).unwrap().tuple;
    format!("{}:{} > {}:{}", t.source, t.source_port, t.destination, t.destination_port)
}

fn out(engine: &mut Engine, p: &mut [u8]) -> Verdict {
    engine.outbound(p, Checksum::Complete, NOW)
}

fn inn(engine: &mut Engine, p: &mut [u8]) -> Verdict {
    engine.inbound(B, p, NOW)
}

#[test]
fn a_call_through_a_vip_reaches_the_backend_and_the_reply_comes_from_the_vip() {
    let mut engine = engine(&open());
    let mut there = tcp(REAL_A, 40000, CART, 7070, SYN);
    assert_eq!(out(&mut engine, &mut there), Verdict::Forward(B));
    assert_eq!(show(&there), format!("{POD_A}:40000 > {POD_B}:8070"));
    let mut back = tcp(POD_B, 8070, POD_A, 40000, SYN | ACK);
    assert_eq!(inn(&mut engine, &mut back), Verdict::Deliver);
    assert_eq!(show(&back), format!("{CART}:7070 > {REAL_A}:40000"));
}

#[test]
fn a_call_from_a_peer_is_translated_home_and_its_reply_to_flat() {
    let mut engine = engine(&[RuleAt(1, &["cart"], &["front"])]);
    let mut there = tcp(POD_B, 50000, POD_A, 8080, SYN);
    assert_eq!(inn(&mut engine, &mut there), Verdict::Deliver);
    assert_eq!(show(&there), format!("{POD_B}:50000 > {REAL_A}:8080"));
    let mut back = tcp(REAL_A, 8080, POD_B, 50000, SYN | ACK);
    assert_eq!(out(&mut engine, &mut back), Verdict::Forward(B));
    assert_eq!(show(&back), format!("{POD_A}:8080 > {POD_B}:50000"));
}

#[test]
fn udp_and_echo_are_translated_too() {
    let mut engine = engine(&open());
    let mut there = udp(REAL_A, 40000, CART, 7070);
    assert_eq!(out(&mut engine, &mut there), Verdict::Forward(B));
    assert_eq!(show(&there), format!("{POD_A}:40000 > {POD_B}:8070"));
    let mut ask = echo(REAL_A, POD_B, 8, 77);
    assert_eq!(out(&mut engine, &mut ask), Verdict::Forward(B));
    assert_eq!(show(&ask), format!("{POD_A}:77 > {POD_B}:0"));
    let mut answer = echo(POD_B, POD_A, 0, 77);
    assert_eq!(inn(&mut engine, &mut answer), Verdict::Deliver);
    assert_eq!(show(&answer), format!("{POD_B}:0 > {REAL_A}:77"));
}

#[test]
fn an_echo_to_a_vip_is_answered_here_if_any_port_is_allowed() {
    let mut engine = engine(&[RuleAt(1, &["front"], &["cart:7070"])]);
    assert_eq!(out(&mut engine, &mut echo(REAL_A, CART, 8, 5)), Verdict::Reply);
    assert_eq!(show(engine.reply()), format!("{CART}:0 > {REAL_A}:5"));
    assert_eq!(out(&mut engine, &mut echo(REAL_A2, CART, 8, 5)), Verdict::Refuse(Refuse::Denied));
}

#[test]
fn the_node_itself_calls_through_a_vip() {
    let mut engine = engine(&open());
    let mut there = tcp(NODE_A, 40000, CART, 7070, SYN);
    assert_eq!(out(&mut engine, &mut there), Verdict::Forward(B));
    assert_eq!(show(&there), format!("{NODE_A}:40000 > {POD_B}:8070"));
}

#[test]
fn a_backend_on_the_same_node_is_reached_through_the_engine_both_ways() {
    let mut engine = engine(&open());
    let mut there = tcp(REAL_A, 40000, NEAR, 80, SYN);
    assert_eq!(out(&mut engine, &mut there), Verdict::Deliver);
    assert_eq!(show(&there), format!("{POD_A}:40000 > {REAL_A2}:8080"));
    let mut back = tcp(REAL_A2, 8080, POD_A, 40000, SYN | ACK);
    assert_eq!(out(&mut engine, &mut back), Verdict::Deliver);
    assert_eq!(show(&back), format!("{NEAR}:80 > {REAL_A}:40000"));
}

#[test]
fn the_node_that_calls_its_own_backends_takes_the_vip_as_its_source() {
    let mut engine = engine(&open());
    for (vip, port, target, server) in [(NEAR, 80, 8080, REAL_A2), (STORE, 5000, 5000, NODE_A)] {
        let mut there = tcp(NODE_A, 40000, vip, port, SYN);
        assert_eq!(out(&mut engine, &mut there), Verdict::Deliver);
        assert_eq!(show(&there), format!("{vip}:40000 > {server}:{target}"));
        let mut back = tcp(server, target, vip, 40000, SYN | ACK);
        assert_eq!(out(&mut engine, &mut back), Verdict::Deliver);
        assert_eq!(show(&back), format!("{vip}:{port} > {NODE_A}:40000"));
    }
}

#[test]
fn a_process_behind_a_cluster_ip_leaves_as_the_node_and_ports_do_not_collide() {
    let mut engine = engine(&open());
    engine.set_locals(Arc::from([ip("192.0.2.1"), ip("192.0.2.7")]));
    let mut first = tcp("192.0.2.1", 40000, CART, 7070, SYN);
    let mut second = tcp("192.0.2.7", 40000, CART, 7070, SYN);
    assert_eq!(out(&mut engine, &mut first), Verdict::Forward(B));
    assert_eq!(out(&mut engine, &mut second), Verdict::Forward(B));
    assert_eq!(show(&first), format!("{NODE_A}:40000 > {POD_B}:8070"));
    let port = Header::parse(&second).unwrap().tuple.source_port;
    assert_ne!(port, 40000);
    let mut back = tcp(POD_B, 8070, NODE_A, port, SYN | ACK);
    assert_eq!(inn(&mut engine, &mut back), Verdict::Deliver);
    assert_eq!(show(&back), format!("{CART}:7070 > 192.0.2.7:40000"));
}

#[test]
fn the_mss_is_clamped_to_the_narrower_end_in_both_directions() {
    let mss = |p: &[u8]| u16::from_be_bytes([p[42], p[43]]);
    let mut map = fixture::netmap(&open());
    map.peers.values_mut().for_each(|p| p.mtu = 1300);
    let mut engine = engine_of(map);
    let mut there = tcp(REAL_A, 40000, CART, 7070, SYN);
    out(&mut engine, &mut there);
    assert_eq!(mss(&there), 1260);
    let mut back = tcp(POD_B, 8070, POD_A, 40000, SYN | ACK);
    inn(&mut engine, &mut back);
    assert_eq!(mss(&back), 1260);
    show(&there);
    show(&back);
}

#[test]
fn an_icmp_error_is_translated_with_the_packet_it_quotes_and_only_for_a_live_flow() {
    let mut engine = engine(&open());
    let mut there = udp(REAL_A, 40000, CART, 7070);
    out(&mut engine, &mut there);
    let mut error = icmp_error(POD_B, POD_A, &there);
    assert_eq!(inn(&mut engine, &mut error), Verdict::Deliver);
    assert_eq!(show(&error), format!("{CART}:0 > {REAL_A}:0"));
    let Kind::IcmpError(quoted) = Header::parse(&error).unwrap().kind else { panic!("no error any more") };
    assert_eq!((quoted.source, quoted.source_port), (ip(REAL_A), 40000));
    assert_eq!((quoted.destination, quoted.destination_port), (ip(CART), 7070));
    let mut forged = icmp_error(POD_B, POD_A, &udp(POD_A, 40001, POD_B, 8070));
    assert_eq!(inn(&mut engine, &mut forged), Verdict::Drop(Drop::IcmpUnmatched));
}

#[test]
fn an_icmp_error_of_our_own_pod_reaches_the_caller_in_flat_addresses() {
    let mut engine = engine(&open());
    let mut there = udp(POD_B, 50000, POD_A, 8080);
    assert_eq!(inn(&mut engine, &mut there), Verdict::Deliver);
    let mut error = icmp_error(REAL_A, POD_B, &there);
    assert_eq!(out(&mut engine, &mut error), Verdict::Forward(B));
    assert_eq!(show(&error), format!("{POD_A}:0 > {POD_B}:0"));
    let Kind::IcmpError(quoted) = Header::parse(&error).unwrap().kind else { panic!("no error any more") };
    assert_eq!((quoted.source, quoted.destination), (ip(POD_B), ip(POD_A)));
}

#[test]
fn later_fragments_follow_their_first_and_others_are_dropped() {
    let mut engine = engine(&open());
    let fragment = |offset: u16, more: u16| {
        let body = if offset == 0 { udp(REAL_A, 40000, POD_B, 9)[20..].to_vec() } else { vec![9; 16] };
        ipv4(UDP, REAL_A, POD_B, offset | more, &body)
    };
    assert_eq!(out(&mut engine, &mut fragment(2, 0)), Verdict::Drop(Drop::FragmentUnmatched));
    let mut first = fragment(0, MF);
    assert_eq!(out(&mut engine, &mut first), Verdict::Forward(B));
    let mut later = fragment(2, 0);
    assert_eq!(out(&mut engine, &mut later), Verdict::Forward(B));
    assert_eq!(&later[12..16], &ip(POD_A).octets());
    let late = engine.outbound(&mut fragment(2, 0), Checksum::Complete, NOW + Duration::from_secs(16));
    assert_eq!(late, Verdict::Drop(Drop::FragmentUnmatched));
}

#[test]
fn refusals_say_why_and_answer_at_once() {
    let mut map = fixture::netmap(&[RuleAt(1, &["any"], &["cart", "near"])]);
    map.services.get_mut(&"near".parse().unwrap()).unwrap().backends.clear();
    map.names = Arc::new([("hidden".parse().unwrap(), Flat([241, 0, 7, 8].into()))].into());
    let mut engine = engine_of(map);
    for (p, why) in [
        (tcp(REAL_A, 1, "241.0.7.8", 80, SYN), Refuse::Denied),
        (tcp(REAL_A, 1, STORE, 5000, SYN), Refuse::Denied),
        (tcp(REAL_A, 1, NEAR, 80, SYN), Refuse::NoBackend),
        (tcp(REAL_A, 1, "241.0.7.7", 80, SYN), Refuse::UnknownService),
        (tcp(REAL_A, 1, CART, 81, SYN), Refuse::ClosedPort),
        (tcp(REAL_A, 1, "241.99.0.1", 80, SYN), Refuse::NoRoute),
        (tcp(REAL_A, 1, CART, 7070, ACK), Refuse::BackendGone),
    ] {
        assert_eq!(out(&mut engine, &mut p.clone()), Verdict::Refuse(why));
        let Kind::Tcp(flags) = Header::parse(engine.reply()).unwrap().kind else { panic!("{why}: no TCP answer") };
        assert_eq!(flags & 4, 4, "{why}: a reset");
        let asked = Header::parse(&p).unwrap().tuple;
        assert_eq!(Header::parse(engine.reply()).unwrap().tuple, asked.reverse());
        assert!(packet::verify(engine.reply()));
    }
    for (to, why) in [
        (STORE, Refuse::Denied),
        ("241.0.7.8", Refuse::Denied),
        ("241.0.7.7", Refuse::UnknownService),
        ("241.99.0.1", Refuse::NoRoute),
    ] {
        assert_eq!(out(&mut engine, &mut udp(REAL_A, 1, to, 5000)), Verdict::Refuse(why));
        assert_eq!(engine.reply()[20..22], [3, 13], "administratively prohibited: {why}");
    }
}

#[test]
fn a_packet_too_big_for_the_peer_is_refused_with_the_callers_own_addresses() {
    let mut map = fixture::netmap(&open());
    map.peers.values_mut().for_each(|p| p.mtu = 1000);
    let mut engine = engine_of(map);
    let big = |flags| {
        let mut body = udp(REAL_A, 40000, CART, 7070)[20..].to_vec();
        body.resize(1200, 0);
        body[4..6].copy_from_slice(&1200u16.to_be_bytes());
        ipv4(UDP, REAL_A, CART, flags, &body)
    };
    assert_eq!(out(&mut engine, &mut big(DF)), Verdict::Refuse(Refuse::TooBig));
    let answer = engine.reply();
    assert_eq!((answer[20..22].to_vec(), &answer[26..28]), (vec![3, 4], &1000u16.to_be_bytes()[..]));
    let Kind::IcmpError(quoted) = Header::parse(answer).unwrap().kind else { panic!("no error") };
    assert_eq!((quoted.source, quoted.destination), (ip(REAL_A), ip(CART)));
    assert_eq!(out(&mut engine, &mut big(0)), Verdict::Drop(Drop::Oversized));
}

#[test]
fn a_super_packet_whose_segments_do_not_fit_is_refused_like_any_other_and_one_whose_segments_fit_passes() {
    let mut map = fixture::netmap(&open());
    map.peers.values_mut().for_each(|p| p.mtu = 1000);
    let mut engine = engine_of(map);
    out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, SYN));
    let long = || {
        let mut body = tcp(REAL_A, 40000, CART, 7070, ACK)[20..].to_vec();
        body.resize(20 + 5000, 0);
        ipv4(TCP, REAL_A, CART, DF, &body)
    };
    for (segment, verdict) in [(957, Verdict::Refuse(Refuse::TooBig)), (956, Verdict::Forward(B))] {
        assert_eq!(engine.outbound_super(&mut long(), segment, Checksum::Partial, NOW), verdict, "{segment}");
    }
    // Nothing else is known of what is not complete.
    assert_eq!(engine.outbound(&mut long(), Checksum::Partial, NOW), Verdict::Forward(B));

    engine.set_narrow(Arc::new([(B, 700)].into()));
    assert_eq!(
        engine.outbound_super(&mut long(), 956, Checksum::Partial, NOW),
        Verdict::Refuse(Refuse::TooBig),
        "the way is narrower than the map says"
    );
    assert_eq!(engine.reply()[26..28], 700u16.to_be_bytes());
    let mut syn = tcp(REAL_A, 40001, CART, 7070, SYN);
    assert_eq!(out(&mut engine, &mut syn), Verdict::Forward(B));
    assert_eq!(syn[42..44], 660u16.to_be_bytes());
    engine.set_narrow(Arc::new([(B, 100)].into()));
    engine.outbound_super(&mut long(), 956, Checksum::Partial, NOW);
    assert_eq!(engine.reply()[26..28], MIN_MTU.to_be_bytes(), "no way is narrower");
}

#[test]
fn a_probe_of_any_size_has_a_short_answer_that_brings_its_clock_back() {
    let a = engine(&[]);
    let mut map = fixture::netmap(&[]);
    std::mem::swap(&mut map.node.address, &mut map.peers.values_mut().next().unwrap().address);
    let mut b = engine_of(map);
    for bytes in [PROBE, 576, 1420, 8920] {
        let mut asked = vec![1; bytes];
        let clock = NOW.as_micros() - 5;
        assert!(a.ask_size(B, clock, &mut asked));
        assert_eq!(b.inbound(B, &mut asked, NOW), Verdict::Reply);
        let mut answer = b.reply().to_vec();
        assert_eq!(answer.len(), PROBE);
        let mut a = engine(&[]);
        assert_eq!(a.inbound(B, &mut answer, NOW), Verdict::RoundTrip(5));
    }
    assert!(!a.ask_size(B, 1, &mut [0; PROBE - 1]) && !a.ask_size(NodeId(77), 1, &mut [0; PROBE]));
}

#[test]
fn a_probe_of_a_version_that_tells_no_clock_is_answered_and_ours_is_longer_than_it_reads() {
    let mut a = engine(&[]);
    let mut map = fixture::netmap(&[]);
    std::mem::swap(&mut map.node.address, &mut map.peers.values_mut().next().unwrap().address);
    let mut b = engine_of(map);
    let date = BootDate::from_micros(1_800_000_000_000_000);
    b.set_date(date);
    assert!(b.probe(B, NOW));
    let told = b.reply().to_vec();
    // What versions before sent: without the last eight bytes, and as long as the headers say.
    let mut short = told[..PROBE - 8].to_vec();
    short[2..4].copy_from_slice(&(PROBE as u16 - 8).to_be_bytes());
    short[24..26].copy_from_slice(&(PROBE as u16 - 28).to_be_bytes());
    short[10..12].fill(0);
    let sum = !packet::sum(&short[..20]);
    short[10..12].copy_from_slice(&sum.to_be_bytes());
    for (probe, expected) in [(told, Some(date)), (short, None)] {
        assert_eq!(a.inbound(B, &mut probe.clone(), NOW), Verdict::Reply);
        assert_eq!(a.take_date(), expected);
    }
    assert_eq!(a.take_date(), None, "it is taken once");
    assert_eq!(a.reply()[PROBE - 8..PROBE], [0; 8], "a node that was not told its clock tells none");
}

#[test]
fn the_serving_node_is_the_authority() {
    let mut engine = engine(&[]);
    let mut call = tcp(POD_B, 1, POD_A, 8080, SYN);
    assert_eq!(inn(&mut engine, &mut call), Verdict::Refuse(Refuse::Denied));
    assert_eq!(show(engine.reply()), format!("{POD_A}:8080 > {POD_B}:1"));
    for p in [tcp(POD_B, 8070, POD_A, 40000, ACK), tcp(POD_B, 8070, POD_A, 40000, SYN | ACK), echo(POD_B, POD_A, 8, 1)]
    {
        assert_eq!(inn(&mut engine, &mut p.clone()), Verdict::Refuse(Refuse::Denied), "{p:02x?}");
    }
}

#[test]
fn drops_say_why() {
    let mut engine = engine(&open());
    let mut cut = tcp(REAL_A, 1, CART, 7070, SYN);
    cut.truncate(30);
    assert_eq!(out(&mut engine, &mut cut), Verdict::Drop(Drop::Malformed));
    assert_eq!(out(&mut engine, &mut [0x60; 40]), Verdict::Drop(Drop::NotIpv4));
    for spoofed in ["10.9.0.1", "8.8.8.8", CART, POD_B, "127.0.0.1"] {
        let verdict = out(&mut engine, &mut tcp(spoofed, 1, POD_B, 80, SYN));
        assert_eq!(verdict, Verdict::Drop(Drop::SpoofedSource), "{spoofed}");
    }
    for spoofed in [POD_A, NODE_A, CART, "127.0.0.1", "224.0.0.1", REAL_A, "241.77.0.1"] {
        let verdict = inn(&mut engine, &mut tcp(spoofed, 1, POD_A, 80, SYN));
        assert_eq!(verdict, Verdict::Drop(Drop::SpoofedSource), "{spoofed}");
    }
    for elsewhere in [CART, "241.0.0.53", "10.8.0.10", "241.77.0.1", NODE_B] {
        let verdict = inn(&mut engine, &mut tcp(POD_B, 1, elsewhere, 80, SYN));
        assert_eq!(verdict, Verdict::Drop(Drop::NotHere), "{elsewhere}");
    }
    let verdict = out(&mut engine, &mut udp(REAL_A, 1, "224.0.0.251", 5353));
    assert_eq!(verdict, Verdict::Drop(Drop::ForbiddenDestination));
    assert_eq!(out(&mut engine, &mut udp(NODE_A, PROBE_PORT, NODE_B, PROBE_PORT)), Verdict::Drop(Drop::BadProbe));
    assert_eq!(inn(&mut engine, &mut udp(NODE_B, 1, NODE_A, PROBE_PORT)), Verdict::Drop(Drop::BadProbe));
}

#[test]
fn a_packet_that_names_its_own_hops_is_not_delivered() {
    let with_options = |options: &[u8]| {
        let mut p = tcp(POD_B, 1, NODE_A, 80, SYN);
        p.splice(20..20, options.iter().copied());
        p[0] = 0x45 + (options.len() / 4) as u8;
        let length = p.len() as u16;
        p[2..4].copy_from_slice(&length.to_be_bytes());
        p
    };
    for kind in [131, 137] {
        let mut routed = with_options(&[1, kind, 7, 4, 169, 254, 169, 254]);
        assert_eq!(inn(&mut engine(&open()), &mut routed), Verdict::Drop(Drop::ForbiddenDestination));
    }
    for harmless in [&[1, 1, 1, 0][..], &[0, 131, 7, 4], &[148, 4, 0, 0], &[68, 1, 131, 7]] {
        assert_eq!(inn(&mut engine(&open()), &mut with_options(harmless)), Verdict::Deliver, "{harmless:?}");
    }
}

#[test]
fn a_block_that_maps_to_loopback_is_never_delivered_to() {
    let mut map = fixture::netmap(&open());
    map.node.blocks[0].real = "127.0.0.0/24".parse().unwrap();
    let verdict = inn(&mut engine_of(map), &mut tcp(POD_B, 1, POD_A, 80, SYN));
    assert_eq!(verdict, Verdict::Drop(Drop::ForbiddenDestination));
}

/// Lets a pod and cart say so much to each other that the table has no room left, and returns what came of the last.
fn fill(engine: &mut Engine) -> Verdict {
    let mut call = |port| {
        let mut verdict = Verdict::Drop(Drop::Malformed);
        for _ in 0..3 {
            verdict = out(engine, &mut udp(REAL_A, port, CART, 7070));
            if verdict == Verdict::Forward(B) {
                inn(engine, &mut udp(POD_B, 8070, POD_A, port));
            }
        }
        verdict
    };
    (1..200).map(&mut call).last().unwrap()
}

#[test]
fn a_full_table_answers_a_new_flow_of_who_holds_most_and_makes_room_for_others() {
    let table = Arc::new(FlowTable::new(64));
    let view = Arc::new(View::compile(crate::verifier::VerifiedMap::by_hand(fixture::netmap(&open()))));
    let mut engine = Engine::new(view, table);
    assert_eq!(fill(&mut engine), Verdict::Refuse(Refuse::FlowTableFull));
    assert_eq!(engine.flows.displaced(), 0, "conversations are kept");
    assert_eq!(out(&mut engine, &mut udp(REAL_A, 999, CART, 7070)), Verdict::Refuse(Refuse::FlowTableFull));
    assert_eq!(engine.reply()[20..22], [3, 1], "host unreachable");
    assert_eq!(out(&mut engine, &mut tcp(REAL_A, 999, CART, 7070, SYN)), Verdict::Refuse(Refuse::FlowTableFull));
    let Kind::Tcp(flags) = Header::parse(engine.reply()).unwrap().kind else { panic!("no TCP answer") };
    assert_eq!(flags & RST, RST);
    engine.drain_dirty(|_, _| {});
    assert_eq!(out(&mut engine, &mut tcp(REAL_A2, 999, CART, 7070, SYN)), Verdict::Forward(B));
    assert_eq!(inn(&mut engine, &mut tcp(POD_B, 999, POD_A, 8080, SYN)), Verdict::Deliver);
    assert_eq!(engine.flows.displaced(), 2);
    let mut written = BTreeMap::new();
    engine.drain_dirty(|slot, record| drop(written.insert(slot, record.to_vec())));
    for slot in 0..64 {
        let before = written.get(&slot).is_none_or(|record| record[..] == record::of_slot(&engine.flows, slot));
        assert!(before, "the file has what the table has in slot {slot}");
    }
    assert!(written.len() >= 4);
}

#[test]
fn answers_are_limited() {
    let mut denied = engine(&[]);
    let last = (0..10_001).map(|_| out(&mut denied, &mut udp(REAL_A, 1, CART, 7070))).last();
    assert_eq!(last, Some(Verdict::Drop(Drop::ReplyLimited)));
}

#[test]
fn a_new_map_is_obeyed_at_the_next_packet_and_a_listed_backend_is_kept() {
    let mut map = fixture::netmap(&open());
    let mut engine = engine_of(map.clone());
    out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, SYN));
    inn(&mut engine, &mut tcp(POD_B, 8070, POD_A, 40000, SYN | ACK));
    let mut next = |map: &NetMap, p: &mut [u8], inbound: bool| {
        engine.set_view(Arc::new(View::compile(crate::verifier::VerifiedMap::by_hand(map.clone()))));
        if inbound { inn(&mut engine, p) } else { out(&mut engine, p) }
    };
    map.revision.0 += 1;
    let backends = &mut map.services.get_mut(&"cart".parse().unwrap()).unwrap().backends;
    backends[0].weight = 0;
    let mut other = backends[0].clone();
    other.address = Flat(ip("241.2.1.99"));
    other.weight = 100;
    backends.insert(0, other);
    let mut data = tcp(REAL_A, 40000, CART, 7070, ACK);
    assert_eq!(next(&map, &mut data, false), Verdict::Forward(B));
    assert_eq!(show(&data), format!("{POD_A}:40000 > {POD_B}:8070"), "a drained backend keeps its connections");
    map.revision.0 += 1;
    map.rules.clear();
    let reply = &mut tcp(POD_B, 8070, POD_A, 40000, ACK);
    assert_eq!(next(&map, reply, true), Verdict::Refuse(Refuse::Denied), "a removed permission bites at once");
}

#[test]
fn a_backend_that_left_the_map_resets_its_connections() {
    let mut map = fixture::netmap(&open());
    let mut engine = engine_of(map.clone());
    out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, SYN));
    map.revision.0 += 1;
    map.services.get_mut(&"cart".parse().unwrap()).unwrap().backends.clear();
    engine.set_view(Arc::new(View::compile(crate::verifier::VerifiedMap::by_hand(map))));
    let verdict = out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, ACK));
    assert_eq!(verdict, Verdict::Refuse(Refuse::BackendGone));
}

#[test]
fn a_flow_survives_a_restart_through_its_file() {
    let mut engine = engine(&open());
    out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, SYN));
    out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, ACK));
    let mut file = BTreeMap::new();
    engine.drain_dirty(|slot, bytes| {
        file.insert(slot, bytes.to_vec());
    });
    let mut after = self::engine(&open());
    assert_eq!(taken_back(&after, file.values()), 2);
    let mut back = tcp(POD_B, 8070, POD_A, 40000, ACK);
    assert_eq!(inn(&mut after, &mut back), Verdict::Deliver);
    assert_eq!(show(&back), format!("{CART}:7070 > {REAL_A}:40000"));
}

#[test]
fn a_forgotten_connection_is_resumed_by_its_replies_if_its_opener_was_allowed() {
    let mut server = engine(&[RuleAt(1, &["cart"], &["front"])]);
    let mut reply = tcp(REAL_A, 8080, POD_B, 50000, ACK);
    assert_eq!(out(&mut server, &mut reply), Verdict::Forward(B));
    assert_eq!(show(&reply), format!("{POD_A}:8080 > {POD_B}:50000"));
    let mut client = engine(&[RuleAt(1, &["site:s1"], &["site:s2"])]);
    let mut reply = tcp(POD_B, 9, POD_A, 40000, ACK);
    assert_eq!(inn(&mut client, &mut reply), Verdict::Deliver);
    assert_eq!(out(&mut engine(&[]), &mut tcp(REAL_A, 8080, POD_B, 50000, ACK)), Verdict::Refuse(Refuse::Denied));
}

#[test]
fn a_resumed_reply_lets_no_connection_in_behind_it() {
    let mut engine = engine(&[RuleAt(1, &["front"], &["cart"])]);
    // Node a's pod may call cart; cart claims a connection that never was, and then opens one of its own.
    assert_eq!(inn(&mut engine, &mut tcp(POD_B, 8070, POD_A, 22, ACK)), Verdict::Deliver);
    for flags in [SYN, SYN | 8, SYN | 1] {
        assert_eq!(inn(&mut engine, &mut tcp(POD_B, 8070, POD_A, 22, flags)), Verdict::Refuse(Refuse::Denied));
    }
}

#[test]
fn a_callee_opens_nothing_to_its_caller() {
    let mut inbound = engine(&[RuleAt(1, &["front"], &["cart"])]);
    assert_eq!(out(&mut inbound, &mut tcp(REAL_A, 40000, POD_B, 8070, SYN)), Verdict::Forward(B));
    assert_eq!(inn(&mut inbound, &mut tcp(POD_B, 8070, POD_A, 40000, SYN)), Verdict::Refuse(Refuse::Denied));
    assert_eq!(inn(&mut inbound, &mut tcp(POD_B, 8070, POD_A, 40000, SYN | ACK)), Verdict::Deliver);

    let mut outbound = engine(&[RuleAt(1, &["cart"], &["front"])]);
    assert_eq!(inn(&mut outbound, &mut tcp(POD_B, 50000, POD_A, 8080, SYN)), Verdict::Deliver);
    assert_eq!(out(&mut outbound, &mut tcp(REAL_A, 8080, POD_B, 50000, SYN)), Verdict::Refuse(Refuse::Denied));
}

#[test]
fn a_new_connection_on_the_ports_of_an_old_one_chooses_afresh() {
    let mut map = fixture::netmap(&open());
    let cart = map.services.get_mut(&"cart".parse().unwrap()).unwrap();
    let mut second = cart.backends[0].clone();
    second.address = Flat(ip("241.2.1.99"));
    cart.backends.push(second);
    let mut engine = engine_of(map);
    let mut seen = Vec::new();
    for flags in [SYN, ACK, ACK | 1, SYN] {
        let mut p = tcp(REAL_A, 40000, CART, 7070, flags);
        assert_eq!(out(&mut engine, &mut p), Verdict::Forward(B));
        seen.push(Header::parse(&p).unwrap().tuple.destination);
    }
    assert_eq!(seen[0], seen[2]);
    assert_ne!(seen[2], seen[3]);
}

#[test]
fn another_peer_cannot_speak_in_a_flow() {
    let mut map = fixture::netmap(&open());
    let mut third = map.peers.values().next().unwrap().clone();
    third.id = NodeId(3);
    third.address = Flat(ip("241.1.0.3"));
    third.blocks = vec!["241.2.2.0/24".parse().unwrap()];
    map.peers.insert("c".parse().unwrap(), third);
    let mut engine = engine_of(map);
    out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, SYN));
    let verdict = engine.inbound(NodeId(3), &mut tcp(POD_B, 8070, POD_A, 40000, ACK), NOW);
    assert_eq!(verdict, Verdict::Drop(Drop::SpoofedSource));
}

#[test]
fn probes_measure_the_round_trip_and_reach_nobody_else() {
    let mut a = engine(&[]);
    assert!(a.probe(B, NOW));
    let mut asked = a.reply().to_vec();
    let mut map = fixture::netmap(&[]);
    std::mem::swap(&mut map.node.address, &mut map.peers.values_mut().next().unwrap().address);
    let mut b = engine_of(map);
    assert_eq!(b.inbound(B, &mut asked, NOW), Verdict::Reply);
    let mut answer = b.reply().to_vec();
    let later = NOW + Duration::from_micros(1234);
    assert_eq!(a.inbound(B, &mut answer, later), Verdict::RoundTrip(1234));
    assert_eq!(POD_A2, "241.2.0.11");
}
