//! Flows that begin and flows that go on while the node of a backend does not answer.

use super::*;

/// The second node of backends.
const C: NodeId = NodeId(3);
const POD_C: &str = "241.2.2.10";
const SINCE: Option<Timestamp> = Some(NOW);

/// The fixture with a second backend of `cart`, at node c.
fn map() -> NetMap {
    let mut map = fixture::netmap(&open());
    let mut c = map.peers.values().next().unwrap().clone();
    (c.id, c.address, c.blocks) = (C, Flat(ip("241.1.0.3")), vec!["241.2.2.0/24".parse().unwrap()]);
    map.peers.insert("c".parse().unwrap(), c);
    let cart = map.services.get_mut(&"cart".parse().unwrap()).unwrap();
    let second = crate::model::netmap::Backend {
        address: Flat(ip(POD_C)),
        node: "c".parse().unwrap(),
        ..cart.backends[0].clone()
    };
    cart.backends.push(second);
    map
}

/// Who gets the connection from that port.
fn call(engine: &mut Engine, port: u16, flags: u8) -> Verdict {
    out(engine, &mut tcp(REAL_A, port, CART, 7070, flags))
}

#[test]
fn new_connections_leave_a_silent_node_out_and_old_ones_stay_also_under_another_map() {
    let mut engine = engine_of(map());
    assert_eq!(call(&mut engine, 1000, SYN), Verdict::Forward(B));
    assert_eq!(call(&mut engine, 1001, SYN), Verdict::Forward(C));

    engine.note_silence(B, SINCE);
    assert!((1002..1010).all(|port| call(&mut engine, port, SYN) == Verdict::Forward(C)));
    assert_eq!(call(&mut engine, 1000, ACK), Verdict::Forward(B), "it keeps its backend");

    let mut next = map();
    next.revision.0 += 1;
    let view = View::compile_after(crate::verifier::VerifiedMap::by_hand(next), &engine.view);
    engine.set_view(Arc::new(view));
    assert_eq!(engine.view.silent_since(B), SINCE, "another map does not make it answer");
    assert_eq!(call(&mut engine, 1000, ACK), Verdict::Forward(B));
    assert!((1010..1020).all(|port| call(&mut engine, port, SYN) == Verdict::Forward(C)));

    engine.note_silence(B, None);
    let back: Vec<_> = (1020..1024).map(|port| call(&mut engine, port, SYN)).collect();
    assert_eq!(back.iter().filter(|verdict| **verdict == Verdict::Forward(B)).count(), 2);
}

#[test]
fn where_no_node_answers_connections_go_to_all_and_are_not_refused() {
    let mut engine = engine_of(map());
    engine.note_silence(B, SINCE);
    engine.note_silence(C, SINCE);
    let all: Vec<_> = (1000..1010).map(|port| call(&mut engine, port, SYN)).collect();
    assert_eq!(all.iter().filter(|verdict| **verdict == Verdict::Forward(B)).count(), 5);
    assert_eq!(all.iter().filter(|verdict| **verdict == Verdict::Forward(C)).count(), 5);
}

#[test]
fn what_is_not_a_service_goes_to_a_silent_node_as_before() {
    let mut engine = engine_of(map());
    engine.note_silence(B, SINCE);
    assert_eq!(out(&mut engine, &mut tcp(REAL_A, 1, NODE_B, 22, SYN)), Verdict::Forward(B));
}
