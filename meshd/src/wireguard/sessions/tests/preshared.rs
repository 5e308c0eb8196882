//! Tunnels with preshared keys, made by the two nodes themselves.

use super::*;
use crate::keys::psk_store::PskStore;
use crate::psk::PresharedKey;
use crate::wireguard::peers::{test_agreeing, test_one};
use crate::wireguard::tunnel::{FIRST_AGREEMENT, Message};

/// Nodes 1 and 2 that both use preshared keys, and their vaults.
pub(super) struct Agreeing {
    pub(super) net: Net,
    pub(super) vaults: [Arc<PskStore>; 2],
}

/// Which nodes use preshared keys.
pub(super) const BOTH: [bool; 2] = [true, true];

pub(super) fn peers(own: u8, uses: [bool; 2], vault: Option<Arc<PskStore>>) -> Arc<TunnelPeers> {
    let other = 3 - own;
    let lanes = keys(other, 2).publics().into_iter().zip(PORT..).map(|(key, port)| LaneInfo { key, port }).collect();
    let mut peer = test_one(NodeId(other.into()), lanes, Vec::new(), Net::known(own, other));
    if uses[usize::from(other) - 1] {
        peer.agreement = keys(other, 2).agreement_publics();
    }
    Arc::new(test_agreeing(NodeId(own.into()), vault, vec![peer]))
}

impl Agreeing {
    pub(super) fn new(uses: [bool; 2]) -> Self {
        Self::with(uses, [Arc::default(), Arc::default()])
    }

    pub(super) fn with(uses: [bool; 2], vaults: [Arc<PskStore>; 2]) -> Self {
        let mut agreeing = Self { net: Net::new(&[2, 2], Net::known), vaults };
        for own in [1, 2] {
            agreeing.start(own, uses);
        }
        agreeing
    }

    /// Starts a node with what its vault has.
    pub(super) fn start(&mut self, own: u8, uses: [bool; 2]) {
        let at = usize::from(own) - 1;
        let peers = peers(own, uses, uses[at].then(|| Arc::clone(&self.vaults[at])));
        let node = self.net.nodes.get_mut(&own).unwrap();
        for lane in 0..2 {
            let counters = Arc::clone(&node.counters[lane]);
            node.lanes[lane] = Sessions::new(lane, &keys(own, 2).of(lane), Arc::clone(&peers), counters);
        }
    }

    /// Starts a node that lost its keys.
    fn start_anew(&mut self, own: u8) {
        self.vaults[usize::from(own) - 1] = Arc::default();
        self.start(own, BOTH);
    }

    pub(super) fn keys(&self) -> [Option<PresharedKey>; 2] {
        [(0, 2), (1, 1)].map(|(at, peer): (usize, u32)| self.vaults[at].get(NodeId(peer)).map(|(_, key)| key))
    }

    pub(super) fn agree(&self) -> bool {
        let [one, other] = self.keys();
        one.is_some() && one == other
    }

    /// Delivers everything, and says how many data messages with something in them went by which kind of tunnel: one
    /// of agreements, or one of lanes. Lanes greet whom others met, as the workers have them do.
    pub(super) fn run_to_rest(&mut self) -> (usize, usize) {
        let (mut talks, mut lanes) = (0, 0);
        loop {
            while let Some((from, to, datagram)) = (!self.net.flying.is_empty()).then(|| self.net.flying.remove(0)) {
                if let Some(Message::Data(number)) = HandshakeResponder::sort(&datagram)
                    && datagram.len() > OVERHEAD
                {
                    *(if number >= FIRST_AGREEMENT { &mut talks } else { &mut lanes }) += 1;
                }
                self.net.deliver(from.remote, to, &datagram);
            }
            for (id, lane) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
                while let Some(peer) = self.net.lane(id, lane).next_met() {
                    self.net.lane(id, 1 - lane).greet(peer);
                }
                self.net.with(id, lane, |s, out, now| s.handle_timeout(out, now));
            }
            if self.net.flying.is_empty() {
                return (talks, lanes);
            }
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.net.now = self.net.now + time;
        self.run_to_rest();
    }

    /// Says that every tunnel of the lanes has the newest preshared key.
    #[track_caller]
    pub(super) fn all_sealed(&mut self) {
        for (id, lane) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            let newest = self.vaults[usize::from(id) - 1].number(NodeId(u32::from(3 - id)));
            let sessions = self.net.lane(id, lane);
            assert!(newest > 0 && sessions.slab.iter().flatten().all(|s| s.preshared == newest), "{id} lane {lane}");
        }
    }
}

#[test]
fn the_first_packet_waits_for_the_key_and_none_goes_before() {
    for sender in [1, 2] {
        let mut two = Agreeing::new(BOTH);
        assert_eq!(two.net.send(sender, 0, 3 - sender, 7), Sealed::Done);
        assert_eq!(two.net.send(sender, 0, 3 - sender, 8), Sealed::Done);
        let (talks, lanes) = two.run_to_rest();

        assert!(two.agree());
        assert_eq!(two.net.got(3 - sender), [7, 8]);
        assert_eq!((talks, lanes), (8, 2), "three parts, three parts, one and one; then what waited");
        two.all_sealed();
        let dropped: Vec<_> = two.net.nodes.values().flat_map(|node| node.dropped.clone()).collect();
        assert_eq!(dropped, []);
        assert_eq!(two.net.send(3 - sender, 1, sender, 9), Sealed::Done, "the other lane has a tunnel as well");
        two.run_to_rest();
        assert_eq!(two.net.got(sender), [9]);
    }
}

#[test]
fn both_begin_at_once_and_one_key_comes_of_it() {
    let mut two = Agreeing::new(BOTH);
    for tag in 0..3 {
        assert_eq!(two.net.send(1, 0, 2, tag), Sealed::Done);
        assert_eq!(two.net.send(2, 0, 1, tag), Sealed::Done);
    }
    two.run_to_rest();
    assert!(two.agree());
    assert_eq!((two.net.got(1), two.net.got(2)), (vec![0, 1, 2], vec![0, 1, 2]));
    two.all_sealed();
}

#[test]
fn what_waits_for_a_key_is_bounded_and_goes_with_the_peer() {
    let mut two = Agreeing::new(BOTH);
    two.net.closed.insert(PORT);
    for _ in 0..MAX_WAITING {
        assert_eq!(two.net.send(1, 0, 2, 1), Sealed::Done);
    }
    assert_eq!(two.net.send(1, 0, 2, 2), Sealed::Dropped(Drop::NoTunnel));
    assert_eq!(two.net.send(1, 1, 2, 2), Sealed::Dropped(Drop::NoTunnel), "lane 0 has no room");
    let nobody = Arc::new(test_agreeing(NodeId(1), Some(Arc::default()), Vec::new()));
    two.net.lane(1, 0).set_peers(nobody);
    assert_eq!(two.net.lane(1, 0).poll_timeout(Timestamp::default()), None);
    let mut drops = BTreeMap::new();
    two.net.nodes[&1].counters[0].add_drops(&mut drops);
    assert_eq!(drops[Drop::NoTunnel.label()], MAX_WAITING);
}

#[test]
fn nobody_at_home_is_called_for_a_while_and_then_as_seldom_as_who_is_silent_for_long() {
    let mut two = Agreeing::new(BOTH);
    two.net.closed.insert(PORT);
    two.net.send(1, 0, 2, 1);
    for _ in 0..100 {
        two.pass(Duration::from_secs(1));
    }
    let initiations = |two: &Agreeing| two.net.nodes[&1].counters[0].initiations.get();
    let soon = initiations(&two);
    assert!((21..=32).contains(&soon), "{soon}");
    for _ in 0..300 {
        two.pass(Duration::from_secs(1));
    }
    assert!(initiations(&two) - soon <= 100, "{}", initiations(&two));

    two.net.closed.clear();
    two.net.send(1, 0, 2, 2);
    two.run_to_rest();
    assert_eq!(two.net.got(2), [2]);
}

#[test]
fn a_stored_key_is_used_at_once() {
    let key = || PresharedKey::new([5; 32]);
    let vaults: [Arc<PskStore>; 2] = [Arc::default(), Arc::default()];
    vaults[0].put(NodeId(2), key());
    vaults[1].put(NodeId(1), key());
    let mut two = Agreeing::with(BOTH, vaults);
    two.net.send(1, 0, 2, 1);
    assert_eq!(two.run_to_rest(), (0, 1));
    assert_eq!(two.net.got(2), [1]);
}

#[test]
fn with_another_key_on_one_side_nothing_is_accepted_and_a_new_one_heals_it() {
    let vaults: [Arc<PskStore>; 2] = [Arc::default(), Arc::default()];
    vaults[0].put(NodeId(2), PresharedKey::new([5; 32]));
    vaults[1].put(NodeId(1), PresharedKey::new([6; 32]));
    let mut two = Agreeing::with(BOTH, vaults);

    two.net.send(1, 0, 2, 1);
    let (mut talks, mut flying) = (0, 0);
    while let Some((from, to, datagram)) = (!two.net.flying.is_empty()).then(|| two.net.flying.remove(0)) {
        if let Some(Message::Data(number)) = HandshakeResponder::sort(&datagram) {
            talks += usize::from(number >= FIRST_AGREEMENT);
            flying += usize::from(number < FIRST_AGREEMENT && datagram.len() > OVERHEAD);
        }
        two.net.deliver(from.remote, to, &datagram);
        assert!(two.agree() || two.net.got(2).is_empty());
        assert!(two.agree() || flying == 0, "nothing is sealed before the two agree");
    }
    two.run_to_rest();
    assert!(talks > 0 && two.agree());
    assert_eq!(two.net.nodes[&1].dropped, [Drop::Unauthenticated], "the response that did not open");

    two.net.send(1, 0, 2, 2);
    two.net.send(2, 1, 1, 3);
    two.run_to_rest();
    assert!(two.net.got(2).contains(&2));
    two.all_sealed();
}

#[test]
fn a_node_that_lost_its_keys_gets_new_ones_whoever_speaks_first() {
    for first in [1, 2] {
        let mut two = Agreeing::new(BOTH);
        two.net.send(1, 0, 2, 0);
        two.run_to_rest();
        let old = two.keys();

        two.start_anew(2);
        two.net.send(first, 0, 3 - first, 1);
        two.run_to_rest();
        for _ in 0..8 {
            two.pass(Duration::from_millis(500));
        }
        assert!(two.agree(), "first {first}");
        assert_ne!(two.keys(), old);
        for (from, to) in [(1, 2), (2, 1)] {
            assert_eq!(two.net.send(from, 0, to, 2), Sealed::Done);
            two.run_to_rest();
            assert!(two.net.got(to).contains(&2), "first {first}, {from} to {to}");
        }
        two.all_sealed();
    }
}

#[test]
fn data_on_another_lane_tells_a_node_that_it_lost_its_key() {
    let mut two = Agreeing::new(BOTH);
    two.net.send(1, 0, 2, 0);
    two.run_to_rest();
    let old = two.keys();
    two.start_anew(2);
    assert_eq!(two.net.send(1, 1, 2, 1), Sealed::Done, "by the session that node 2 does not have any more");
    two.run_to_rest();
    for _ in 0..4 {
        two.pass(Duration::from_millis(250));
    }
    assert!(two.agree());
    assert_ne!(two.keys(), old);
}

#[test]
fn lost_datagrams_delay_the_key_and_do_not_prevent_it() {
    for lost in 0..24 {
        let mut two = Agreeing::new(BOTH);
        two.net.send(1, 0, 2, 1);
        let mut seen = 0;
        let mut waited = Duration::ZERO;
        while two.net.got(2).is_empty() && waited < Duration::from_secs(10) {
            while let Some((from, to, datagram)) = (!two.net.flying.is_empty()).then(|| two.net.flying.remove(0)) {
                // A packet of the user's is lost as without a tunnel.
                let is_data = matches!(HandshakeResponder::sort(&datagram), Some(Message::Data(number)) if number < FIRST_AGREEMENT);
                if seen != lost || is_data {
                    two.net.deliver(from.remote, to, &datagram);
                }
                seen += 1;
            }
            let step = Duration::from_millis(50);
            waited += step;
            two.net.now = two.net.now + step;
            for (id, lane) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
                two.net.with(id, lane, |s, out, now| s.handle_timeout(out, now));
            }
        }
        assert_eq!(two.net.got(2), [1], "datagram {lost}");
        assert!(waited <= Duration::from_secs(1), "datagram {lost} of {seen} cost {waited:?}");
        assert!(two.agree());
    }
}

#[test]
fn a_peer_without_an_agreement_key_is_spoken_to_in_plain_wireguard() {
    for uses in [[true, false], [false, true], [false, false]] {
        let mut two = Agreeing::new(uses);
        two.net.send(1, 0, 2, 1);
        two.net.send(2, 1, 1, 2);
        assert_eq!(two.run_to_rest().0, 0);
        two.net.send(2, 0, 1, 3);
        two.run_to_rest();
        assert_eq!((two.net.got(2), two.net.got(1).contains(&3)), (vec![1], true), "{uses:?}");
        assert_eq!(two.keys(), [None, None]);
    }
}

#[test]
fn a_peer_that_begins_or_ceases_to_use_preshared_keys_gets_other_tunnels() {
    let mut two = Agreeing::new([true, false]);
    two.net.send(1, 0, 2, 1);
    two.run_to_rest();
    assert_eq!(two.net.got(2), [1]);

    let vault = Arc::clone(&two.vaults[0]);
    let told = peers(1, BOTH, Some(Arc::clone(&vault)));
    (0..2).for_each(|lane| two.net.lane(1, lane).set_peers(Arc::clone(&told)));
    two.start(2, BOTH);
    assert_eq!(two.net.send(1, 0, 2, 9), Sealed::Done, "by the tunnel that node 2 lost");
    two.run_to_rest();
    two.pass(Duration::from_millis(250));
    two.net.send(1, 0, 2, 2);
    two.run_to_rest();
    assert!(two.agree());
    assert_eq!(two.net.got(2), [1, 2]);
    (0..24).for_each(|_| two.pass(Duration::from_millis(250)));
    two.all_sealed();

    let told = peers(1, [true, false], Some(Arc::clone(&vault)));
    (0..2).for_each(|lane| two.net.lane(1, lane).set_peers(Arc::clone(&told)));
    two.start(2, [true, false]);
    assert_eq!(two.net.send(1, 0, 2, 9), Sealed::Done, "by the tunnel that node 2 lost");
    two.run_to_rest();
    (0..24).for_each(|_| two.pass(Duration::from_millis(250)));
    two.net.send(1, 0, 2, 3);
    two.run_to_rest();
    assert_eq!(two.net.got(2), [1, 2, 3]);
    assert!(two.net.lane(1, 0).slab.iter().flatten().all(|s| s.preshared == 0));
}

#[test]
fn a_caller_without_the_key_is_never_answered_on_a_lane() {
    // Node 1 does not use preshared keys, and node 2 believes that it does.
    let mut two = Agreeing::new([false, true]);
    let vault = Arc::clone(&two.vaults[1]);
    (0..2).for_each(|lane| two.net.lane(2, lane).set_peers(peers(2, BOTH, Some(Arc::clone(&vault)))));
    two.net.send(1, 0, 2, 1);
    two.run_to_rest();
    assert_eq!(two.net.got(2), Vec::<u8>::new());
    assert_eq!(two.net.nodes[&2].counters[0].handshakes.get(), 0);
    assert_eq!(two.net.nodes[&2].dropped, [Drop::NoTunnel]);
}

#[test]
fn a_change_of_tunnel_keys_keeps_the_preshared_key() {
    let mut two = Agreeing::new(BOTH);
    two.net.send(1, 0, 2, 1);
    two.run_to_rest();
    let before = two.keys();
    let secret = |byte| StaticSecret::from([byte; 32]);
    let new = LaneKeys::derive(&secret(101), 2).with_former(Some(&secret(1)), false);
    (0..2).for_each(|lane| two.net.lane(1, lane).set_keys(&new.of(lane)));
    let lanes = |keys: Vec<TunnelKey>| keys.into_iter().zip(PORT..).map(|(key, port)| LaneInfo { key, port }).collect();
    let mut peer = test_one(NodeId(1), lanes(new.publics()), lanes(new.former_publics()), Net::known(2, 1));
    peer.agreement = new.agreement_publics();
    let told = Arc::new(test_agreeing(NodeId(2), Some(Arc::clone(&two.vaults[1])), vec![peer]));
    (0..2).for_each(|lane| two.net.lane(2, lane).set_peers(Arc::clone(&told)));
    two.pass(Duration::from_millis(250));
    for (from, to) in [(1, 2), (2, 1)] {
        two.net.send(from, 0, to, 2);
        two.run_to_rest();
        assert!(two.net.got(to).contains(&2));
    }
    assert_eq!(two.keys(), before);

    // And one that is made during the change, by the former key or the new.
    for by_former in [true, false] {
        two.start_anew(2);
        (0..2).for_each(|lane| {
            let mut peer = test_one(NodeId(1), lanes(new.publics()), lanes(new.former_publics()), Net::known(2, 1));
            peer.agreement = new.agreement_publics();
            let told = Arc::new(test_agreeing(NodeId(2), Some(Arc::clone(&two.vaults[1])), vec![peer]));
            two.net.lane(2, lane).set_peers(told);
        });
        let calling = new.clone().calling_by_former(by_former);
        (0..2).for_each(|lane| two.net.lane(1, lane).set_keys(&calling.of(lane)));
        two.net.send(2, 0, 1, 4);
        two.run_to_rest();
        assert!(two.agree(), "by the former {by_former}");
    }
}

#[test]
fn who_repeats_calls_for_a_key_does_not_shut_the_caller_out() {
    let mut two = Agreeing::new(BOTH);
    let mut captured = Vec::new();
    for _ in 0..60 {
        two.start(2, BOTH);
        two.net.send(2, 0, 1, 1);
        captured.extend(two.net.flying.drain(..).take(1));
    }
    // Node 1 has heard none of them, and each is newer than the one before.
    for (source, (_, to, datagram)) in (10..).zip(&captured) {
        two.net.deliver(SocketAddr::new(ip(source), PORT), *to, datagram);
        two.net.flying.clear();
    }
    assert_eq!(two.net.nodes[&1].dropped, [], "all of them are new");

    two.start(2, BOTH);
    two.net.send(2, 0, 1, 2);
    two.run_to_rest();
    assert_eq!(two.net.got(1), [2], "{:?}", two.net.nodes[&1].dropped);
    assert!(two.agree());
}
