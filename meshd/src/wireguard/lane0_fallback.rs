//! Flows that go by lane 0 because their own lane had no session when they began.
//!
//! When the session is there, packets of theirs may still lie in lane 0's queues, here and at the peer: the next one,
//! sent by its own lane, would overtake them. So a flow stays on the detour until it was silent for a moment, and until
//! what waited on lane 0 for a handshake has left. While nothing goes by lane 0, which is almost always, a packet costs
//! one comparison.
//!
//! Flows are known by a hash: one that shares its place with another stays as long as that.

use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::packet::{FiveTuple, Header, Kind};

use crate::wireguard::peers::Cell;
use crate::wireguard::timing::MOMENT;

/// Places for flows.
const PLACES: usize = 4096;
const SYN: u8 = 2;
/// After that nothing can wait on lane 0 any more: WireGuard gives up after 90 s.
const FORGOTTEN: Duration = Duration::from_secs(100);

/// The flows of one lane that are on the detour.
#[derive(Debug, Default)]
pub(crate) struct Lane0Fallback {
    /// When a packet of any flow last went by lane 0.
    last: Option<Timestamp>,
    /// When one of the flows with that hash did; empty until there is one.
    flows: Vec<Option<Timestamp>>,
}

impl Lane0Fallback {
    /// Says whether a packet for a peer has to go by lane 0, behind others of its flow. It must be noted then.
    pub(crate) fn has(&mut self, packet: &[u8], peer: &Cell, now: Timestamp) -> bool {
        let Some(last) = self.last else { return false };
        if now.since(last) > FORGOTTEN {
            self.last = None;
            return false;
        }
        let under_way = |at: Timestamp| now.since(at) < MOMENT || peer.may_hold(at, now);
        if !under_way(last) {
            return false;
        }
        let place = Header::parse(packet).ok().map(|header| place(&header));
        place.and_then(|place| *self.flows.get(place)?).is_some_and(under_way)
    }

    /// Takes note that a packet goes by lane 0. What opens a TCP connection needs no note: nothing follows it before
    /// it was answered.
    pub(crate) fn note(&mut self, packet: &[u8], now: Timestamp) {
        let Ok(header) = Header::parse(packet) else { return };
        if matches!(header.kind, Kind::Tcp(flags) if flags & SYN != 0) {
            return;
        }
        if self.flows.is_empty() {
            self.flows = vec![None; PLACES];
        }
        self.flows[place(&header)] = Some(now);
        self.last = Some(now);
    }
}

fn place(header: &Header) -> usize {
    let FiveTuple { protocol, source, source_port, destination, destination_port } = header.tuple;
    let addresses = u64::from(u32::from(source)) << 32 | u64::from(u32::from(destination));
    let ports = u64::from(source_port) << 24 | u64::from(destination_port) << 8 | u64::from(protocol);
    let mixed = (addresses ^ ports.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 52) as usize % PLACES
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::wireguard::timing::PATIENCE;

    /// A packet of 241.1.0.1 to 241.1.0.2 of that protocol and source port, with these TCP flags.
    fn packet(protocol: u8, port: u16, flags: u8) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[..4].copy_from_slice(&[0x45, 0, 0, 40]);
        packet[8..10].copy_from_slice(&[64, protocol]);
        packet[12..20].copy_from_slice(&[241, 1, 0, 1, 241, 1, 0, 2]);
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[22..24].copy_from_slice(&7000u16.to_be_bytes());
        match protocol {
            6 => packet[32..34].copy_from_slice(&[0x50, flags]),
            _ => packet[24..26].copy_from_slice(&20u16.to_be_bytes()),
        }
        Header::parse(&packet).unwrap();
        packet
    }

    #[test]
    fn a_flow_stays_until_it_was_silent_for_a_moment_and_others_do_not_come_along() {
        let (mut detour, peer) = (Lane0Fallback::default(), Cell::default());
        let (flow, other) = (packet(17, 1, 0), packet(17, 2, 0));
        let mut now = Timestamp::from_millis(1000);
        assert!(!detour.has(&flow, &peer, now));
        for _ in 0..10 {
            detour.note(&flow, now);
            now = now + (MOMENT - Duration::from_millis(1));
            assert!(detour.has(&flow, &peer, now) && !detour.has(&other, &peer, now));
        }
        assert!(!detour.has(&flow, &peer, now + Duration::from_millis(1)));
    }

    #[test]
    fn a_connection_that_opens_by_the_detour_goes_on_by_its_own_lane() {
        let (mut detour, peer) = (Lane0Fallback::default(), Cell::default());
        let now = Timestamp::from_millis(1000);
        for flags in [0x02, 0x12] {
            detour.note(&packet(6, 1, flags), now);
        }
        assert!(!detour.has(&packet(6, 1, 0x10), &peer, now));
        detour.note(&packet(6, 1, 0x10), now);
        assert!(detour.has(&packet(6, 1, 0x10), &peer, now));
    }

    #[test]
    fn a_flow_whose_packets_wait_on_lane_0_stays_until_they_have_left_but_not_for_ever() {
        let (mut detour, peer) = (Lane0Fallback::default(), Cell::default());
        let (flow, other) = (packet(17, 1, 0), packet(17, 2, 0));
        let begin = Timestamp::from_millis(1000);
        let at = |millis| begin + Duration::from_millis(millis);
        detour.note(&flow, begin);
        peer.set_holds(at(1), true);
        assert!(detour.has(&flow, &peer, at(1000)) && !detour.has(&other, &peer, at(1000)));
        assert!(!detour.has(&flow, &peer, at(1) + PATIENCE));

        peer.set_holds(at(1500), false);
        assert!(detour.has(&flow, &peer, at(2499)) && !detour.has(&flow, &peer, at(2500)));
        peer.set_holds(at(3000), true);
        assert!(!detour.has(&flow, &peer, at(3001)), "what waits now is not of this flow");
        detour.note(&flow, at(3002));
        assert!(detour.has(&flow, &peer, at(4900)));
        peer.forget_holds();
        assert!(!detour.has(&flow, &peer, at(4900)));
    }
}
