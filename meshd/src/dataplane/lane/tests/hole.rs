//! A way that swallows what is large: lane 0 finds it, and all lanes know.

use super::*;

/// Lets time pass for both nodes, with traffic from one to the other.
fn pass(pair: &mut Pair, millis: u64) {
    for tick in 0..millis / 5 {
        pair.now = pair.now + Duration::from_millis(5);
        if tick.is_multiple_of(20) {
            pair.send(0, 1, tcp(0, ACK, 10), VnetHeader::default());
        }
        for (node, lane) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            pair.with(node, lane, |lane, out, now| lane.handle_timeout(out, now));
        }
        // What the workers do: what one lane finds or hears, the others are told.
        while let Some((peer, clock)) = pair.nodes[0].lanes[1].next_answer() {
            let now = pair.now;
            pair.nodes[0].lanes[0].hear_size(peer, clock, now);
        }
        if let Some(narrow) = pair.nodes[0].lanes[0].take_narrow() {
            pair.nodes[0].lanes[1].set_narrow(narrow);
        }
    }
}

#[test]
fn lane_0_finds_a_hole_all_lanes_refuse_what_does_not_get_through_and_round_trips_are_not_mixed_up() {
    let mut pair = Pair::new(true);
    for lane in [0, 1] {
        pair.send(0, lane, tcp(0, SYN, 0), VnetHeader::default());
        pair.send(1, lane, tcp(1, SYN | ACK, 0), VnetHeader::default());
    }
    pass(&mut pair, 5000);
    let stats = |pair: &Pair| pair.nodes[0].peers.get(NodeId(2)).unwrap().cell.stats(pair.now).unwrap();
    assert_eq!(stats(&pair).narrow, None);
    // Five quick ones, and what was asked about sizes is none.
    assert!(stats(&pair).rtt_count <= 6, "{}", stats(&pair).rtt_count);

    pair.most = Some(1000);
    pass(&mut pair, 2600);
    assert_eq!(stats(&pair).narrow.map(|(bytes, _)| bytes), Some(900));
    for lane in [0, 1] {
        pair.nodes[0].delivered.clear();
        let (packet, vnet) = partial(tcp(0, ACK, 13_800), Gso::Tcp4 { ecn: false }, 1380);
        pair.send(0, lane, packet, vnet);
        let (_, answer) = pair.nodes[0].delivered.first().unwrap();
        assert_eq!((&answer[20..22], &answer[26..28]), (&[3, 4][..], &900u16.to_be_bytes()[..]), "lane {lane}");
        let before = pair.nodes[1].delivered.len();
        let (packet, vnet) = partial(tcp(0, ACK, 8600), Gso::Tcp4 { ecn: false }, 860);
        pair.send(0, lane, packet, vnet);
        assert_eq!(pair.nodes[1].delivered.len(), before + 10, "lane {lane}: datagrams go one by one");
    }
    assert_eq!(pair.nodes[1].count("bad_probe"), 0);
}
