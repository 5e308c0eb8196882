//! What a flow still binds after its addresses changed owner, or after it came back from a file.

use super::*;
use crate::trust::signed_record::Epoch;

/// The node that takes over from b.
const C: NodeId = NodeId(3);
const GRE: u8 = 47;

fn view(map: &NetMap) -> Arc<View> {
    Arc::new(View::compile(crate::verifier::VerifiedMap::by_hand(map.clone())))
}

/// Puts the next revision of a map in force.
fn change(engine: &mut Engine, map: &mut NetMap, edit: impl FnOnce(&mut NetMap)) {
    edit(map);
    map.revision.0 += 1;
    engine.set_view(view(map));
}

/// Node b left, and c joined with all that b had.
fn replace_b(map: &mut NetMap) {
    map.peers.values_mut().for_each(|peer| peer.id = C);
}

/// Pods of b now run at c, under their old addresses.
fn move_pods_of_b(map: &mut NetMap) {
    let mut c = map.peers.values().next().unwrap().clone();
    map.peers.values_mut().for_each(|b| b.blocks.clear());
    c.id = C;
    c.address = Flat(ip("241.1.0.3"));
    map.peers.insert("c".parse().unwrap(), c);
    for service in map.services.values_mut() {
        service.backends.iter_mut().filter(|b| b.node.as_str() == "b").for_each(|b| b.node = "c".parse().unwrap());
    }
}

#[test]
fn a_new_owner_of_an_address_calls_on_the_ports_of_the_former_one() {
    for take_over in [replace_b, move_pods_of_b] {
        let calls = [
            tcp(POD_B, 50000, POD_A, 8080, SYN),
            tcp(POD_B, 50000, POD_A, 8080, ACK),
            udp(POD_B, 50000, POD_A, 8080),
            echo(POD_B, POD_A, 8, 5),
            ipv4(GRE, POD_B, POD_A, DF, &[0; 16]),
        ];
        let answers = [
            tcp(REAL_A, 8080, POD_B, 50000, ACK),
            tcp(REAL_A, 8080, POD_B, 50000, ACK),
            udp(REAL_A, 8080, POD_B, 50000),
            echo(REAL_A, POD_B, 0, 5),
            ipv4(GRE, REAL_A, POD_B, DF, &[0; 16]),
        ];
        for (call, answer) in calls.iter().zip(answers) {
            let mut map = fixture::netmap(&open());
            let mut engine = engine_of(map.clone());
            assert_eq!(inn(&mut engine, &mut call.clone()), Verdict::Deliver);
            assert_eq!(out(&mut engine, &mut answer.clone()), Verdict::Forward(B));
            change(&mut engine, &mut map, take_over);
            assert_eq!(engine.inbound(C, &mut call.clone(), NOW), Verdict::Deliver, "{call:02x?}");
            assert_eq!(out(&mut engine, &mut answer.clone()), Verdict::Forward(C), "{answer:02x?}");
            assert_eq!(inn(&mut engine, &mut call.clone()), Verdict::Drop(Drop::SpoofedSource), "{call:02x?}");
        }
    }
}

#[test]
fn a_new_owner_of_an_address_is_called_from_the_ports_of_calls_to_the_former_one() {
    for take_over in [replace_b, move_pods_of_b] {
        for call in [
            tcp(REAL_A, 40000, CART, 7070, SYN),
            udp(REAL_A, 40000, CART, 7070),
            tcp(REAL_A, 40000, POD_B, 8070, SYN),
            udp(REAL_A, 40000, POD_B, 8070),
            echo(REAL_A, POD_B, 8, 5),
        ] {
            let mut map = fixture::netmap(&open());
            let mut engine = engine_of(map.clone());
            assert_eq!(out(&mut engine, &mut call.clone()), Verdict::Forward(B));
            change(&mut engine, &mut map, take_over);
            let mut again = call.clone();
            assert_eq!(out(&mut engine, &mut again), Verdict::Forward(C), "{call:02x?}");
            let sent = Header::parse(&again).unwrap().tuple;
            assert_eq!(
                (sent.source_port, sent.destination),
                (Header::parse(&call).unwrap().tuple.source_port, ip(POD_B))
            );
        }
    }
}

#[test]
fn a_flow_of_a_former_owner_holds_no_place_that_a_new_one_needs() {
    let mut map = fixture::netmap(&open());
    let mut engine = engine_of(map.clone());
    engine.set_locals(Arc::new([ip("192.168.7.1")]));
    let gre = |source: &str| ipv4(GRE, source, NODE_B, DF, &[0; 16]);
    assert_eq!(out(&mut engine, &mut gre("192.168.7.1")), Verdict::Forward(B));
    change(&mut engine, &mut map, replace_b);
    assert_eq!(out(&mut engine, &mut gre(NODE_A)), Verdict::Forward(C));
    assert_eq!(engine.inbound(C, &mut ipv4(GRE, NODE_B, NODE_A, DF, &[0; 16]), NOW), Verdict::Deliver);
    assert_eq!(out(&mut engine, &mut gre("192.168.7.1")), Verdict::Refuse(Refuse::NoSourcePort));
}

#[test]
fn a_call_on_the_ports_of_a_call_to_a_backend_that_left_takes_another_backend() {
    let reassign = |map: &mut NetMap| {
        let backend = &mut map.services.get_mut(&"cart".parse().unwrap()).unwrap().backends[0];
        backend.address = Flat(ip("241.2.1.99"));
    };
    for (call, again) in [
        (tcp(REAL_A, 40000, CART, 7070, SYN), Verdict::Forward(B)),
        (udp(REAL_A, 40000, CART, 7070), Verdict::Forward(B)),
        (tcp(REAL_A, 40000, CART, 7070, ACK), Verdict::Refuse(Refuse::BackendGone)),
    ] {
        let mut map = fixture::netmap(&open());
        let mut engine = engine_of(map.clone());
        out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, SYN));
        out(&mut engine, &mut call.clone());
        change(&mut engine, &mut map, reassign);
        let mut call = call;
        assert_eq!(out(&mut engine, &mut call), again);
        if again == Verdict::Forward(B) {
            assert_eq!(show(&call), format!("{POD_A}:40000 > 241.2.1.99:8070"));
        }
    }
}

#[test]
fn a_flow_does_not_go_on_under_an_address_that_its_caller_had() {
    let renumber = |map: &mut NetMap| map.node.blocks[0].flat = "241.7.0.0/24".parse().unwrap();
    for call in [udp(REAL_A, 40000, POD_B, 9), tcp(REAL_A, 40000, POD_B, 9, SYN)] {
        let mut map = fixture::netmap(&open());
        let mut engine = engine_of(map.clone());
        assert_eq!(out(&mut engine, &mut call.clone()), Verdict::Forward(B));
        change(&mut engine, &mut map, renumber);
        let mut again = call.clone();
        assert_eq!(out(&mut engine, &mut again), Verdict::Forward(B));
        assert_eq!(show(&again), format!("241.7.0.10:40000 > {POD_B}:9"));
    }
    let mut map = fixture::netmap(&open());
    let mut engine = engine_of(map.clone());
    out(&mut engine, &mut tcp(REAL_A, 40000, POD_B, 9, SYN));
    change(&mut engine, &mut map, renumber);
    let middle = out(&mut engine, &mut tcp(REAL_A, 40000, POD_B, 9, ACK));
    assert_eq!(middle, Verdict::Refuse(Refuse::BackendGone), "the other end knows no such caller");
}

#[test]
fn a_call_to_an_address_that_left_this_node_follows_it() {
    for call in [udp(NODE_A, 40000, POD_A2, 9), tcp(NODE_A, 40000, POD_A2, 9, SYN)] {
        let mut map = fixture::netmap(&open());
        let mut engine = engine_of(map.clone());
        assert_eq!(out(&mut engine, &mut call.clone()), Verdict::Deliver);
        change(&mut engine, &mut map, |map| {
            let freed = std::mem::replace(&mut map.node.blocks[0].flat, "241.7.0.0/24".parse().unwrap());
            map.peers.values_mut().for_each(|peer| peer.blocks.push(freed));
        });
        let mut again = call.clone();
        assert_eq!(out(&mut engine, &mut again), Verdict::Forward(B));
        assert_eq!(show(&again), format!("{NODE_A}:40000 > {POD_A2}:9"));
    }
}

#[test]
fn a_call_without_a_free_source_port_is_refused_for_that_reason() {
    let mut engine = engine(&open());
    let callers: Vec<Ipv4Addr> = (1..=65).map(|n| Ipv4Addr::new(192, 0, 2, n)).collect();
    engine.set_locals(callers.clone().into());
    let verdicts: Vec<_> =
        callers.iter().map(|caller| out(&mut engine, &mut udp(&caller.to_string(), 40000, CART, 7070))).collect();
    assert_eq!(verdicts[..64], [Verdict::Forward(B); 64]);
    assert_eq!(verdicts[64], Verdict::Refuse(Refuse::NoSourcePort));
}

#[test]
fn a_forgotten_connection_that_finds_no_place_is_not_said_to_be_denied() {
    let table = Arc::new(FlowTable::new(64));
    let mut engine = Engine::new(view(&fixture::netmap(&[RuleAt(1, &["cart"], &["front"])])), table);
    for port in (1..400).flat_map(|port| [port; 3]) {
        inn(&mut engine, &mut udp(POD_B, port, POD_A, 8080));
        out(&mut engine, &mut udp(REAL_A, 8080, POD_B, port));
    }
    let resumed: Vec<_> = (1..100).map(|port| out(&mut engine, &mut tcp(REAL_A, 8080, POD_B, port, ACK))).collect();
    assert!(resumed.contains(&Verdict::Refuse(Refuse::FlowTableFull)), "{resumed:?}");
    assert!(!resumed.contains(&Verdict::Refuse(Refuse::Denied)), "{resumed:?}");
}

/// Returns an engine of a map with the flows of a call through a VIP, both ways open, as a restart finds them.
fn restarted(map: &NetMap) -> Engine {
    let mut before = engine(&open());
    out(&mut before, &mut tcp(REAL_A, 40000, CART, 7070, SYN));
    inn(&mut before, &mut tcp(POD_B, 8070, POD_A, 40000, SYN | ACK));
    out(&mut before, &mut tcp(REAL_A, 40000, CART, 7070, ACK));
    let mut file = BTreeMap::new();
    before.drain_dirty(|slot, bytes| {
        file.insert(slot, bytes.to_vec());
    });
    let after = engine_of(map.clone());
    assert_eq!(taken_back(&after, file.values()), 2);
    after
}

#[test]
fn a_restored_flow_that_is_no_longer_allowed_is_refused_even_under_the_same_revision() {
    let denying = fixture::netmap(&[]);
    let mut without_service = fixture::netmap(&open());
    without_service.services.remove(&"cart".parse().unwrap());
    let mut without_port = fixture::netmap(&open());
    without_port.services.get_mut(&"cart".parse().unwrap()).unwrap().ports.clear();
    let mut without_backend = fixture::netmap(&open());
    without_backend.services.get_mut(&"cart".parse().unwrap()).unwrap().backends.clear();
    let mut replaced = fixture::netmap(&open());
    replace_b(&mut replaced);
    for (map, why) in [
        (denying, Refuse::Denied),
        (without_service, Refuse::UnknownService),
        (without_port, Refuse::ClosedPort),
        (without_backend, Refuse::BackendGone),
        (replaced, Refuse::BackendGone),
    ] {
        let mut engine = restarted(&map);
        assert_eq!(out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, ACK)), Verdict::Refuse(why));
    }
    let mut engine = restarted(&fixture::netmap(&[]));
    let answer = inn(&mut engine, &mut tcp(POD_B, 8070, POD_A, 40000, ACK));
    assert_eq!(answer, Verdict::Refuse(Refuse::Denied), "answers are judged, too");
}

#[test]
fn a_restored_flow_that_is_still_allowed_goes_on_and_is_judged_once_for_each_direction() {
    let mut engine = restarted(&fixture::netmap(&open()));
    let mut written = Vec::new();
    for _ in 0..3 {
        assert_eq!(out(&mut engine, &mut tcp(REAL_A, 40000, CART, 7070, ACK)), Verdict::Forward(B));
        assert_eq!(inn(&mut engine, &mut tcp(POD_B, 8070, POD_A, 40000, ACK)), Verdict::Deliver);
        let mut entries = 0;
        engine.drain_dirty(|_, _| entries += 1);
        written.push(entries);
    }
    assert_eq!(written, [2, 0, 0]);
}

#[test]
fn a_flow_is_judged_again_by_the_same_revision_of_another_epoch() {
    let map = fixture::netmap(&open());
    let mut engine = engine_of(map.clone());
    assert_eq!(out(&mut engine, &mut udp(REAL_A, 40000, CART, 7070)), Verdict::Forward(B));
    let restored = NetMap { epoch: Epoch { number: 1, signature: None }, rules: Vec::new(), ..map };
    engine.set_view(view(&restored));
    assert_eq!(out(&mut engine, &mut udp(REAL_A, 40000, CART, 7070)), Verdict::Refuse(Refuse::Denied));
}
