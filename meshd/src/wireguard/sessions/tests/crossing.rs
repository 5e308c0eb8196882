//! Agreements that cross while both nodes change their tunnel keys: each has two agreement keys, so that the two call each
//! other in different talks.

use super::preshared::Agreeing;
use super::*;
use crate::wireguard::peers::{test_agreeing, test_one};

/// Which of a node's keys its peer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Former,
    Both,
    Present,
}

const KNOWN: [Known; 3] = [Known::Former, Known::Both, Known::Present];

fn lanes(keys: Vec<TunnelKey>) -> Vec<LaneInfo> {
    keys.into_iter().zip(PORT..).map(|(key, port)| LaneInfo { key, port }).collect()
}

fn changing(id: u8, calls_by_former: bool) -> LaneKeys {
    let secret = |byte| StaticSecret::from([byte; 32]);
    LaneKeys::derive(&secret(100 + id), 2).with_former(Some(&secret(id)), calls_by_former)
}

/// Two nodes that change their keys: whether each calls by the former one, and what the other knows of it.
fn crossing(by_former: [bool; 2], known: [Known; 2]) -> Agreeing {
    let mut two = Agreeing::new([true, true]);
    for own in [1u8, 2] {
        let other = 3 - own;
        let keys = changing(own, by_former[usize::from(own) - 1]);
        let theirs = changing(other, false);
        let (present, former) = (lanes(theirs.publics()), lanes(theirs.former_publics()));
        let agreement = theirs.agreement_publics();
        let (present, former, agreement) = match known[usize::from(other) - 1] {
            Known::Former => (former, Vec::new(), agreement[1..].to_vec()),
            Known::Both => (present, former, agreement),
            Known::Present => (present, Vec::new(), agreement[..1].to_vec()),
        };
        let mut peer = test_one(NodeId(other.into()), present, former, Net::known(own, other));
        peer.agreement = agreement;
        let vault = Some(Arc::clone(&two.vaults[usize::from(own) - 1]));
        let told = Arc::new(test_agreeing(NodeId(own.into()), vault, vec![peer]));
        for lane in 0..2 {
            two.net.lane(own, lane).set_keys(&keys.of(lane));
            two.net.lane(own, lane).set_peers(Arc::clone(&told));
        }
    }
    two
}

/// Delivers what flies in an order that a number decides, until nothing does.
fn shuffle(two: &mut Agreeing, mut seed: u64) {
    while !two.net.flying.is_empty() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (from, to, datagram) = two.net.flying.remove((seed >> 33) as usize % two.net.flying.len());
        two.net.deliver(from.remote, to, &datagram);
        for (id, lane) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            two.net.with(id, lane, |s, out, now| s.handle_timeout(out, now));
        }
    }
}

#[track_caller]
fn ends_with_one_key(mut two: Agreeing, seed: u64, what: &str) {
    for (from, to) in [(1, 2), (2, 1)] {
        assert_eq!(two.net.send(from, 0, to, 7), Sealed::Done);
    }
    shuffle(&mut two, seed);
    // One repetition of a handshake, at most: 400 ms, at the next tick.
    for _ in 0..14 {
        two.net.now = two.net.now + Duration::from_millis(50);
        for (id, lane) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            two.net.with(id, lane, |s, out, now| s.handle_timeout(out, now));
        }
        shuffle(&mut two, seed);
    }
    assert!(two.agree(), "two keys: {what}, order {seed}");
    assert!(two.net.got(1).contains(&7) && two.net.got(2).contains(&7), "{what}, order {seed}");
    for (from, to) in [(1, 2), (2, 1)] {
        assert_eq!(two.net.send(from, 0, to, 8), Sealed::Done);
        two.run_to_rest();
        assert!(two.net.got(to).contains(&8), "{what}, order {seed}");
    }
    two.all_sealed();
}

#[test]
fn calls_that_cross_in_any_order_end_with_one_key() {
    for seed in 0..100 {
        ends_with_one_key(crossing([true, true], [Known::Both, Known::Both]), seed, "both by former keys");
    }
}

#[test]
fn calls_that_cross_end_with_one_key_whoever_knows_what() {
    for by_former in [[true, true], [true, false], [false, true], [false, false]] {
        for one in KNOWN {
            for other in KNOWN {
                // Who calls by its former key knows that peers may not know the other yet, and the other way round.
                let fits = |by_former: bool, known| known != if by_former { Known::Present } else { Known::Former };
                if !fits(by_former[0], one) || !fits(by_former[1], other) {
                    continue;
                }
                for seed in 0..6 {
                    let what = format!("{by_former:?}, {one:?} {other:?}");
                    ends_with_one_key(crossing(by_former, [one, other]), seed, &what);
                }
            }
        }
    }
}
