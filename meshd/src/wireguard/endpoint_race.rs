//! The way to a peer's lane: where it answered last, and whom to ask when it may have moved.
//!
//! ```text
//! initiation ──▶ endpoint that answered last, 100 ms ──▶ candidate, 100 ms ──▶ candidate …
//!                                    an authenticated answer from X ──▶ X is the endpoint
//! ```
//!
//! The same bytes go to every candidate; the peer takes the first that arrives and drops the others as
//! replays. Each attempt begins one candidate further on, lest one that hears but cannot answer hides the rest.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;

use crate::io::udp_outbox::Endpoint;
use crate::wireguard::tunnel::INITIATION;

/// Time between two candidates of one attempt.
const SPACING: Duration = Duration::from_millis(100);
/// Most addresses that one attempt tries; those after are tried by later attempts.
const MAX_TRIED: usize = 16;

/// The way to a peer's lane.
#[derive(Debug, Default)]
pub(crate) struct Path {
    endpoint: Option<Endpoint>,
    race: Option<Race>,
    attempts: usize,
}

#[derive(Debug)]
struct Race {
    initiation: [u8; INITIATION],
    /// Those still to be asked, the next one last.
    left: Vec<Endpoint>,
    due: Timestamp,
}

impl Path {
    /// Returns where the peer answered last.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint
    }

    /// Lets the kernel choose the own address, if the one spoken to is gone.
    pub(crate) fn leave_local(&mut self, is_own: impl Fn(IpAddr) -> bool) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.local = endpoint.local.filter(|&local| is_own(local));
        }
    }

    /// Starts to offer an initiation, in place of an earlier one. Says whether there is anybody to offer it to.
    pub(crate) fn offer(&mut self, initiation: &[u8; INITIATION], candidates: &[SocketAddr], now: Timestamp) -> bool {
        if let Some(endpoint) = self.endpoint.as_mut().filter(|_| self.attempts > 0) {
            // Perhaps the peer does not hear that own address of ours any more: let the kernel choose.
            endpoint.local = None;
        }
        let first = self.attempts % candidates.len().max(1);
        let others = candidates[first..].iter().chain(&candidates[..first]);
        let known = self.endpoint.map(|endpoint| endpoint.remote);
        let others = others.filter(|&&other| Some(other) != known).map(|&other| other.into());
        let mut left: Vec<Endpoint> = self.endpoint.into_iter().chain(others).take(MAX_TRIED).collect();
        left.reverse();
        self.attempts = self.attempts.wrapping_add(1);
        let anybody = !left.is_empty();
        self.race = anybody.then_some(Race { initiation: *initiation, left, due: now });
        anybody
    }

    /// Returns the initiation and whom to send it to, if it is time.
    pub(crate) fn poll(&mut self, now: Timestamp) -> Option<(Endpoint, &[u8; INITIATION])> {
        let over = self.race.as_ref().is_some_and(|race| race.left.is_empty());
        if over {
            self.race = None;
        }
        let race = self.race.as_mut().filter(|race| race.due <= now)?;
        race.due = now + SPACING;
        let next = race.left.pop()?;
        Some((next, &race.initiation))
    }

    /// Returns when to poll again; `None` if nothing is offered.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.race.as_ref().map(|race| race.due)
    }

    /// Takes note of an authenticated response or data message: its source is the endpoint, and nobody else needs
    /// to be asked. Returns the former endpoint if it was another.
    pub(crate) fn heard_from(&mut self, from: Endpoint) -> Option<Option<Endpoint>> {
        self.race = None;
        self.attempts = 0;
        if self.endpoint == Some(from) {
            return None;
        }
        Some(self.endpoint.replace(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 51820))
    }

    fn tried(path: &mut Path, from: u64) -> Vec<(u64, u8)> {
        let times = (from..from + 1000).step_by(10);
        let mut tried = Vec::new();
        for ms in times {
            while let Some((to, initiation)) = path.poll(Timestamp::from_millis(ms)) {
                assert_eq!(initiation, &[9; INITIATION]);
                let IpAddr::V4(ip) = to.remote.ip() else { continue };
                tried.push((ms - from, ip.octets()[3]));
            }
        }
        tried
    }

    #[test]
    fn candidates_are_asked_in_turn_and_the_next_attempt_begins_with_the_next() {
        let mut path = Path::default();
        let candidates = [address(1), address(2), address(3)];

        assert!(path.offer(&[9; INITIATION], &candidates, Timestamp::from_millis(0)));
        assert_eq!(path.poll_timeout(), Some(Timestamp::from_millis(0)));
        assert_eq!(tried(&mut path, 0), [(0, 1), (100, 2), (200, 3)]);
        assert_eq!(path.poll_timeout(), None);

        path.offer(&[9; INITIATION], &candidates, Timestamp::from_millis(5000));
        assert_eq!(tried(&mut path, 5000), [(0, 2), (100, 3), (200, 1)]);
    }

    #[test]
    fn the_first_that_answers_is_the_endpoint_and_is_asked_first_ever_after() {
        let mut path = Path::default();
        let candidates = [address(1), address(2), address(3)];
        path.offer(&[9; INITIATION], &candidates, Timestamp::from_millis(0));
        assert!(path.poll(Timestamp::from_millis(0)).is_some());

        assert_eq!(path.heard_from(address(2).into()), Some(None));
        assert_eq!(path.heard_from(address(2).into()), None);

        assert_eq!(tried(&mut path, 0), []);
        path.offer(&[9; INITIATION], &candidates, Timestamp::from_millis(7000));
        assert_eq!(tried(&mut path, 7000), [(0, 2), (100, 1), (200, 3)]);
    }

    #[test]
    fn an_own_address_that_brings_no_answer_is_given_up() {
        let mut path = Path::default();
        let local = Some([192, 0, 2, 100].into());
        path.heard_from(Endpoint { remote: address(1), local });
        let asked = |path: &mut Path| path.poll(Timestamp::from_millis(0)).map(|(to, _)| to.local);

        path.offer(&[9; INITIATION], &[address(1)], Timestamp::from_millis(0));
        assert_eq!(asked(&mut path), Some(local));
        path.offer(&[9; INITIATION], &[address(1)], Timestamp::from_millis(0));
        assert_eq!(asked(&mut path), Some(None));
    }

    #[test]
    fn without_an_address_there_is_nobody_to_ask() {
        let mut path = Path::default();
        assert!(!path.offer(&[9; INITIATION], &[], Timestamp::from_millis(0)));
        assert_eq!((path.poll_timeout(), path.endpoint()), (None, None));
    }
}
