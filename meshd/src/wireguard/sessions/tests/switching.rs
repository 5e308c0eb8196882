//! A node begins or ceases to use preshared keys; its peers hear of it earlier or later than it does.

use super::preshared::{Agreeing, BOTH, peers};
use super::*;
use crate::keys::psk_policy::PskMode;
use crate::keys::psk_store::PskStore;
use crate::psk::PresharedKey;

/// Only node 2 is known to use preshared keys.
const OTHER: [bool; 2] = [false, true];

/// Gives a node another map, in which those nodes name agreement keys, and its present mode.
fn tell(two: &mut Agreeing, own: u8, uses: [bool; 2]) {
    let vault = Arc::clone(&two.vaults[usize::from(own) - 1]);
    let peers = peers(own, uses, Some(vault));
    (0..2).for_each(|lane| two.net.lane(own, lane).set_peers(Arc::clone(&peers)));
}

fn take(two: &mut Agreeing, mode: PskMode) {
    two.vaults[0].set_mode(mode);
    tell(two, 1, BOTH);
}

/// Node 1 was just switched on: node 2 has not heard of it.
fn switched_on(mode: PskMode) -> Agreeing {
    let vaults: [Arc<PskStore>; 2] = [Arc::default(), Arc::default()];
    vaults[0].set_mode(mode);
    let mut two = Agreeing::with(BOTH, vaults);
    tell(&mut two, 2, OTHER);
    two
}

/// Sends both ways, and says that all of it arrived: at once, or within some time.
#[track_caller]
fn talk(two: &mut Agreeing, tag: u8, within: Duration) {
    let before = (two.net.got(1).len(), two.net.got(2).len());
    let mut sent = 0;
    for lane in 0..2 {
        for (from, to) in [(1, 2), (2, 1)] {
            match two.net.send(from, lane, to, tag) {
                Sealed::Elsewhere => assert_eq!(two.net.send(from, 0, to, tag), Sealed::Done),
                sealed @ (Sealed::Done | Sealed::Dropped(_)) => assert_eq!(sealed, Sealed::Done, "{from} lane {lane}"),
            }
            sent += 1;
            if within.is_zero() {
                two.run_to_rest();
            }
        }
    }
    two.run_to_rest();
    let step = Duration::from_millis(50);
    for _ in 0..within.as_millis() / step.as_millis() {
        two.pass(step);
    }
    let got = (two.net.got(1).len() - before.0) + (two.net.got(2).len() - before.1);
    assert_eq!(got, sent, "of {tag}: {:?}, {:?}", two.net.got(1), two.net.got(2));
}

fn dropped(two: &Agreeing) -> Vec<Drop> {
    let all = two.net.nodes.values().flat_map(|node| node.dropped.iter().copied());
    // Calls for a key of whom does not know the caller's, and handshakes with another key than the other side's: they
    // carry nothing.
    all.filter(|reason| ![Drop::UnknownPeer, Drop::Unauthenticated, Drop::NoTunnel].contains(reason)).collect()
}

fn lost(two: &Agreeing) -> u64 {
    let mut drops = BTreeMap::new();
    two.net.nodes.values().flat_map(|node| &node.counters).for_each(|counters| counters.add_drops(&mut drops));
    drops.values().sum()
}

#[test]
fn who_is_switched_on_while_nobody_can_hear_of_it_speaks_plain() {
    for mode in [PskMode::Accept, PskMode::Offer] {
        let mut two = switched_on(mode);
        talk(&mut two, 1, Duration::from_secs(1));
        for tag in 2..5 {
            talk(&mut two, tag, Duration::ZERO);
        }
        two.start(1, BOTH);
        (0..2).for_each(|lane| two.net.lane(1, lane).greet(NodeId(2)));
        two.pass(Duration::from_secs(1));
        talk(&mut two, 5, Duration::from_secs(1));
        assert_eq!((two.keys(), lost(&two)), ([None, None], 0), "{mode:?}");
        let calls = two.net.nodes[&2].dropped.iter().filter(|&&reason| reason == Drop::UnknownPeer).count();
        assert_eq!(calls > 0, mode == PskMode::Offer, "{mode:?}");
    }
}

#[test]
fn switched_on_under_traffic_nothing_is_lost_whoever_hears_of_it_first() {
    // What happens, in which order: node 2 hears of node 1's agreement key, node 1 hears that the coordinator has it.
    for order in [[0, 1], [1, 0]] {
        let mut two = switched_on(PskMode::Accept);
        talk(&mut two, 1, Duration::from_secs(1));
        for (at, what) in order.into_iter().enumerate() {
            match what {
                0 => tell(&mut two, 2, BOTH),
                _ => take(&mut two, PskMode::Offer),
            }
            talk(&mut two, 2, Duration::ZERO);
            assert_eq!(two.agree(), at == 1 || what == 0, "{order:?} {at}: who knows the other's key calls");
            for _ in 0..8 {
                two.pass(Duration::from_millis(250));
                talk(&mut two, 3, Duration::ZERO);
            }
        }
        for _ in 0..24 {
            two.pass(Duration::from_millis(250));
            talk(&mut two, 4, Duration::ZERO);
        }
        assert!(two.agree());
        two.all_sealed();
        assert_eq!((dropped(&two), lost(&two)), (vec![], 0), "{order:?}");
        take(&mut two, PskMode::Require);
        talk(&mut two, 5, Duration::ZERO);
    }
}

#[test]
fn the_first_call_of_all_loses_nothing_while_one_of_the_two_waits() {
    for mode in [PskMode::Accept, PskMode::Offer] {
        for caller in [1, 2] {
            let mut two = switched_on(mode);
            tell(&mut two, 2, BOTH);
            for tag in 0..3 {
                assert_eq!(two.net.send(caller, 0, 3 - caller, tag), Sealed::Done);
            }
            two.run_to_rest();
            (0..8).for_each(|_| two.pass(Duration::from_millis(250)));
            assert_eq!(two.net.got(3 - caller), [0, 1, 2], "{mode:?} {caller}");
            assert!(two.agree() && lost(&two) == 0, "{mode:?} {caller}");
            two.all_sealed();
        }
    }
}

#[test]
fn two_that_are_both_switched_on_end_with_a_key() {
    let vaults: [Arc<PskStore>; 2] = [Arc::default(), Arc::default()];
    vaults.iter().for_each(|vault| vault.set_mode(PskMode::Offer));
    let mut two = Agreeing::with(BOTH, vaults);
    talk(&mut two, 1, Duration::from_secs(1));
    for _ in 0..40 {
        two.pass(Duration::from_millis(250));
        talk(&mut two, 2, Duration::ZERO);
    }
    assert!(two.agree());
    two.all_sealed();
    assert_eq!((dropped(&two), lost(&two)), (vec![], 0));
}

#[test]
fn switched_off_under_traffic_nothing_is_lost_whoever_hears_of_it_first() {
    for order in [[0, 1], [1, 0]] {
        let mut two = Agreeing::new(BOTH);
        two.net.send(1, 0, 2, 1);
        two.run_to_rest();
        // It starts with the switch off, and the coordinator does not know.
        two.vaults[0].set_mode(PskMode::Accept);
        two.start(1, BOTH);
        two.net.send(2, 0, 1, 0);
        (0..8).for_each(|_| two.pass(Duration::from_millis(250)));
        talk(&mut two, 1, Duration::from_secs(1));
        two.all_sealed();
        for what in order {
            match what {
                0 => tell(&mut two, 2, OTHER),
                _ => take(&mut two, PskMode::Off),
            }
            for _ in 0..8 {
                talk(&mut two, 2, Duration::ZERO);
                two.pass(Duration::from_millis(250));
            }
        }
        for _ in 0..24 {
            two.pass(Duration::from_millis(250));
            talk(&mut two, 3, Duration::ZERO);
        }
        for (id, lane) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            let preshared: Vec<u64> = two.net.lane(id, lane).slab.iter().flatten().map(|s| s.preshared).collect();
            assert!(!preshared.is_empty() && preshared.iter().all(|&n| n == 0), "{id} lane {lane}: {preshared:?}");
        }
        assert_eq!(two.vaults[0].number(NodeId(2)), 0, "forgotten");
        assert_eq!(lost(&two), 0, "{order:?}");
    }
}

#[test]
fn a_peer_with_a_key_that_a_waiting_node_lost_gets_another() {
    for caller in [1, 2] {
        let vaults: [Arc<PskStore>; 2] = [Arc::default(), Arc::default()];
        vaults[1].put(NodeId(1), PresharedKey::new([6; 32]));
        vaults[0].set_mode(PskMode::Accept);
        let mut two = Agreeing::with(BOTH, vaults);
        two.net.send(caller, 0, 3 - caller, 1);
        two.run_to_rest();
        (0..8).for_each(|_| two.pass(Duration::from_millis(250)));
        assert!(two.agree(), "caller {caller}");
        talk(&mut two, 2, Duration::from_secs(1));
    }
}

#[test]
fn an_open_tunnel_without_a_key_ends_if_none_comes() {
    let mut two = switched_on(PskMode::Accept);
    talk(&mut two, 1, Duration::from_secs(1));
    tell(&mut two, 2, BOTH);
    // Whoever keeps them from agreeing keeps them from talking.
    two.net.flying.clear();
    two.net.closed.insert(PORT);
    two.net.closed.insert(PORT + 1);
    for _ in 0..160 {
        two.pass(Duration::from_secs(1));
    }
    assert!(two.net.lane(2, 0).slab.iter().flatten().any(|s| s.stale && s.ready));
    for _ in 0..12 {
        two.pass(Duration::from_secs(1));
    }
    assert!((0..2).all(|lane| two.net.lane(2, lane).slab.iter().flatten().next().is_none()));
    assert_eq!(two.net.lane(2, 0).keyless(NodeId(1), Timestamp::default()), TunnelChoice::Keyless(NodeId(1)));
}

#[test]
fn who_turns_back_soon_is_not_spoken_to_by_a_session_that_it_lost() {
    let mut two = switched_on(PskMode::Accept);
    talk(&mut two, 1, Duration::from_secs(1));
    tell(&mut two, 2, BOTH);
    take(&mut two, PskMode::Offer);
    (0..4).for_each(|_| two.pass(Duration::from_millis(250)));
    assert!(two.agree());

    // It starts again with its key, and turns back while node 2 still has the tunnel of before.
    two.start(1, BOTH);
    (0..2).for_each(|lane| two.net.lane(1, lane).greet(NodeId(2)));
    (0..4).for_each(|_| two.pass(Duration::from_millis(250)));
    talk(&mut two, 2, Duration::ZERO);
    tell(&mut two, 2, OTHER);
    talk(&mut two, 3, Duration::ZERO);
    take(&mut two, PskMode::Off);
    for _ in 0..8 {
        talk(&mut two, 4, Duration::ZERO);
        two.pass(Duration::from_millis(250));
    }
}
