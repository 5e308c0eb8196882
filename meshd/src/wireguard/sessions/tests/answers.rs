//! Who answers and who does not, in virtual time: node 1 sends, lane 0 judges.

use mesh_proto::dataplane::liveness::{PLAIN_PATIENCE, SELDOM};

use super::*;

/// What a probe and its answer look like here, where no engine makes them.
const ASK: u8 = 250;
const ANSWER: u8 = 251;
const STEP: Duration = Duration::from_millis(250);

/// What node 1 found out.
#[derive(Default)]
struct Found {
    silent: Option<Timestamp>,
    back: usize,
    probes: usize,
    probes_of_2: usize,
}

/// Does for a node what its lanes do: lane 0 hears of what others noticed, and its probes are answered a little later.
fn ask(net: &mut Net, own: u8, members: bool) -> usize {
    for lane in 1..net.nodes[&own].lanes.len() {
        while let Some((peer, sent)) = net.lane(own, lane).next_noticed() {
            net.lane(own, 0).watch(peer, sent);
        }
    }
    let (other, mut probes) = (3 - own, 0);
    while let Some(peer) = net.lane(own, 0).next_probe() {
        probes += 1;
        net.with(own, 0, |s, out, now| s.seal(peer, &packet(ASK), Traffic::Own, out, now));
    }
    net.run_to_rest();
    net.now = net.now + Duration::from_millis(1);
    if members && net.got(other).contains(&ASK) {
        net.with(other, 0, |s, out, now| s.seal(NodeId(own.into()), &packet(ANSWER), Traffic::Own, out, now));
    }
    net.nodes.get_mut(&other).unwrap().got.clear();
    net.run_to_rest();
    probes
}

/// Lets time pass while node 1 sends by a lane to node 2, or nothing if there is none; 2 answers probes alone.
fn live(net: &mut Net, lane: Option<usize>, time: Duration) -> Found {
    live_with(net, lane, time, true)
}

/// The same, where nobody answers probes if `members` is false.
fn live_with(net: &mut Net, lane: Option<usize>, time: Duration, members: bool) -> Found {
    let mut found = Found::default();
    let end = net.now + time;
    while net.now < end {
        if let Some(lane) = lane
            && net.send(1, lane, 2, 1) == Sealed::Elsewhere
        {
            net.send(1, 0, 2, 1);
        }
        net.run_to_rest();
        net.pass(STEP);
        found.probes += ask(net, 1, members);
        found.probes_of_2 += ask(net, 2, members);
        while let Some((peer, since)) = net.lane(1, 0).next_found() {
            assert_eq!(peer, NodeId(2));
            found.back += usize::from(since.is_none());
            found.silent = since;
        }
    }
    found
}

fn close(net: &mut Net) {
    net.closed.extend(PORT..PORT + 4);
}

/// A net in which node 1 has met node 2, and the round trips that follow traffic are over.
fn met(lanes: &[usize]) -> Net {
    let mut net = Net::new(lanes, Net::known);
    net.send(1, 0, 2, 0);
    net.run_to_rest();
    live(&mut net, None, Duration::from_secs(60));
    net
}

#[test]
fn ten_minutes_of_one_way_packets_never_mark_a_peer_that_answers_probes() {
    for (lanes, lane) in [([1, 1], 0), ([2, 2], 1)] {
        let mut net = met(&lanes);
        let found = live(&mut net, Some(lane), Duration::from_secs(600));
        assert_eq!((found.silent, found.back), (None, 0));
        assert!((300..=900).contains(&found.probes), "{lane}: {}", found.probes);
        assert!(net.nodes[&1].counters[0].initiations.get() <= 3, "who answers inside shakes no hands");
    }
}

#[test]
fn a_peer_that_answers_nothing_is_silent_within_5_s_whichever_lane_sends_and_back_at_its_first_word() {
    for (lanes, lane) in [([1, 1], 0), ([2, 2], 1), ([2, 1], 1)] {
        let mut net = met(&lanes);
        live(&mut net, Some(lane), Duration::from_secs(2));
        close(&mut net);
        let began = net.now;
        assert_eq!(live(&mut net, Some(lane), Duration::from_millis(2500)).silent, None);
        let found = live(&mut net, Some(lane), Duration::from_millis(2500));
        let since = found.silent.expect("it is silent");
        assert!(since.as_millis().abs_diff(began.as_millis()) <= 2000, "{since:?} {began:?}");

        assert_eq!(live(&mut net, None, Duration::from_secs(60)).back, 0);
        net.closed.clear();
        let found = live(&mut net, None, Duration::from_millis(2500));
        assert_eq!((found.silent, found.back), (None, 1));
        assert_eq!(live(&mut net, None, Duration::from_secs(60)).probes, 0, "nothing is out, so nobody is asked");
    }
}

#[test]
fn two_nodes_that_are_done_with_each_other_do_not_ask_for_ever() {
    let mut net = met(&[1, 1]);
    live(&mut net, Some(0), Duration::from_secs(10));
    net.send(2, 0, 1, 1);
    net.run_to_rest();
    // The last packets of both are unanswered; so are the round trips that follow traffic for half a minute.
    live(&mut net, None, Duration::from_secs(60));
    let found = live(&mut net, None, Duration::from_secs(60));
    assert_eq!((found.probes, found.probes_of_2), (0, 0));
}

#[test]
fn a_peer_that_was_never_reached_is_silent_as_well() {
    let mut net = Net::new(&[1, 1], Net::known);
    close(&mut net);
    assert!(live(&mut net, Some(0), Duration::from_secs(6)).silent.is_some());
}

#[test]
fn a_peer_that_is_silent_for_long_is_asked_seldom_and_forgotten_with_the_map() {
    let mut net = met(&[1, 1]);
    live(&mut net, Some(0), Duration::from_secs(2));
    close(&mut net);
    live(&mut net, Some(0), Duration::from_secs(310));
    let before = net.nodes[&1].counters[0].initiations.get();
    live(&mut net, None, 4 * SELDOM);
    let asked = net.nodes[&1].counters[0].initiations.get() - before;
    assert!((3..=30).contains(&asked), "{asked}");

    net.lane(1, 0).set_peers(Arc::default());
    net.pass(STEP);
    assert_eq!(net.lane(1, 0).watches.poll_timeout(), None);
}

#[test]
fn a_peer_that_is_gone_and_wanted_no_more_is_called_by_who_asks_alone() {
    let mut net = met(&[1, 1]);
    live(&mut net, Some(0), Duration::from_secs(2));
    close(&mut net);
    live(&mut net, Some(0), Duration::from_secs(310));
    let calls = |net: &Net| net.nodes[&1].counters[0].initiations.get();
    let by_timer = |net: &mut Net| {
        let before = calls(net);
        net.with(1, 0, |s, out, now| s.send_timed(0, Made::Initiation, &[1; INITIATION], out, now));
        calls(net) - before
    };
    live(&mut net, None, Duration::from_secs(80));
    assert_eq!(by_timer(&mut net), 1, "it is wanted");

    live(&mut net, None, Duration::from_secs(20));
    assert_eq!(by_timer(&mut net), 0);
    // As after each time that it is given up.
    net.lane(1, 0).slab[0].as_mut().unwrap().repeated = 0;
    let before = calls(&net);
    live(&mut net, None, 4 * SELDOM);
    let asked = calls(&net) - before;
    assert!((3..=5).contains(&asked), "{asked}");

    net.send(1, 0, 2, 1);
    assert_eq!(by_timer(&mut net), 1, "it is wanted again");
    net.closed.clear();
    let found = live(&mut net, None, SELDOM);
    assert_eq!((found.silent, found.back), (None, 1));
}

#[test]
fn who_is_not_sent_anything_is_not_judged() {
    let mut net = met(&[1, 1]);
    close(&mut net);
    let found = live(&mut net, None, Duration::from_secs(120));
    assert_eq!((found.silent, found.probes), (None, 0));
}

#[test]
fn plain_wireguard_is_asked_by_handshakes_alone_and_later() {
    let mut net = Net::new(&[1, 1], Net::known);
    let peers = test_peers(Vec::new());
    let known = net.lane(1, 0).peers.get(NodeId(2)).map(Arc::clone).unwrap();
    let plain = test_plain(peers, &known);
    net.lane(1, 0).set_peers(Arc::new(plain));
    net.send(1, 0, 2, 0);
    net.run_to_rest();
    let found = live_with(&mut net, None, Duration::from_secs(60), false);
    assert_eq!((found.probes, net.lane(1, 0).next_active()), (0, None), "it knows no questions inside");

    let initiations = |net: &Net| net.nodes[&1].counters[0].initiations.get();
    let before = initiations(&net);
    let found = live_with(&mut net, Some(0), PLAIN_PATIENCE - Duration::from_secs(2), false);
    assert_eq!((found.silent, initiations(&net)), (None, before));
    let found = live_with(&mut net, Some(0), Duration::from_secs(60), false);
    assert_eq!(found.silent, None, "its responses are answers");
    assert!((before + 3..before + 12).contains(&initiations(&net)), "{before} {}", initiations(&net));

    close(&mut net);
    assert!(live_with(&mut net, Some(0), PLAIN_PATIENCE + Duration::from_secs(6), false).silent.is_some());
}
