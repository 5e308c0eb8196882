//! The way to a peer's lane: where it answered last, and whom to ask when it may have moved.
//!
//! ```text
//! initiation ──▶ endpoint that answered last, 100 ms ──▶ candidate, 100 ms ──▶ candidate …
//!                                    an authenticated answer from X ──▶ X is the endpoint
//! ```
//!
//! The same bytes go to every candidate; the peer takes the first that arrives and drops the others as
//! replays. Who has not answered is asked again each half second: boringtun makes a new initiation only after 5 s,
//! and a peer that has just started should not have to wait that long. Each attempt begins one candidate further
//! on, lest one that hears but cannot answer hides the rest.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_proto::clock::Timestamp;

use crate::datagrams::Endpoint;
use crate::tunnels::INITIATION;

/// Time between two candidates of one attempt.
const SPACING: Duration = Duration::from_millis(100);
/// Least time between two rounds of one attempt.
const ROUND: Duration = Duration::from_millis(500);
/// Most rounds of one attempt: together they last as long as boringtun waits for an answer.
const MAX_ROUNDS: usize = 10;
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
    /// Whom to ask, in this order.
    order: Vec<Endpoint>,
    /// How many were asked so far, over all rounds.
    asked: usize,
    began: Timestamp,
    due: Timestamp,
}

impl Path {
    /// Returns where the peer answered last.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint
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
        let order: Vec<Endpoint> = self.endpoint.into_iter().chain(others).take(MAX_TRIED).collect();
        self.attempts = self.attempts.wrapping_add(1);
        let anybody = !order.is_empty();
        self.race = anybody.then_some(Race { initiation: *initiation, order, asked: 0, began: now, due: now });
        anybody
    }

    /// Returns the initiation and whom to send it to, if it is time.
    pub(crate) fn poll(&mut self, now: Timestamp) -> Option<(Endpoint, &[u8; INITIATION])> {
        let over = self.race.as_ref().is_some_and(|race| race.asked >= race.order.len() * MAX_ROUNDS);
        if over {
            self.race = None;
        }
        let race = self.race.as_mut().filter(|race| race.due <= now)?;
        let next = *race.order.get(race.asked % race.order.len())?;
        race.asked += 1;
        race.due = now + SPACING;
        if race.asked.is_multiple_of(race.order.len()) {
            race.began = (race.began + ROUND).max(race.due);
            race.due = race.began;
        }
        Some((next, &race.initiation))
    }

    /// Returns when to poll again; `None` if nothing is offered.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.race.as_ref().map(|race| race.due)
    }

    /// Takes note of an authenticated response or data message: its source is the endpoint, and nobody else needs
    /// to be asked. Returns the former endpoint if it was another.
    pub(crate) fn heard(&mut self, from: Endpoint) -> Option<Option<Endpoint>> {
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
                let std::net::IpAddr::V4(ip) = to.remote.ip() else { continue };
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
        assert_eq!(tried(&mut path, 0), [(0, 1), (100, 2), (200, 3), (500, 1), (600, 2), (700, 3)]);

        path.offer(&[9; INITIATION], &candidates, Timestamp::from_millis(5000));
        assert_eq!(tried(&mut path, 5000), [(0, 2), (100, 3), (200, 1), (500, 2), (600, 3), (700, 1)]);
    }

    #[test]
    fn one_that_never_answers_is_asked_for_as_long_as_an_attempt_lasts_and_no_longer() {
        let mut path = Path::default();
        path.offer(&[9; INITIATION], &[address(1)], Timestamp::from_millis(0));
        let asked: usize = (0..20).map(|second| tried(&mut path, second * 1000).len()).sum();
        assert_eq!((asked, path.poll_timeout()), (MAX_ROUNDS, None));
    }

    #[test]
    fn the_first_that_answers_is_the_endpoint_and_is_asked_first_ever_after() {
        let mut path = Path::default();
        let candidates = [address(1), address(2), address(3)];
        path.offer(&[9; INITIATION], &candidates, Timestamp::from_millis(0));
        assert!(path.poll(Timestamp::from_millis(0)).is_some());

        assert_eq!(path.heard(address(2).into()), Some(None));
        assert_eq!(path.heard(address(2).into()), None);

        assert_eq!(tried(&mut path, 0), []);
        path.offer(&[9; INITIATION], &candidates, Timestamp::from_millis(7000));
        assert_eq!(tried(&mut path, 7000), [(0, 2), (100, 1), (200, 3), (500, 2), (600, 1), (700, 3)]);
    }

    #[test]
    fn an_own_address_that_brings_no_answer_is_given_up() {
        let mut path = Path::default();
        let local = Some([192, 0, 2, 100].into());
        path.heard(Endpoint { remote: address(1), local });
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
