//! Whether a peer answers: what is asked when, and from when on its silence is a fact.
//!
//! ```text
//!  answers ─ a packet went out, nothing heard for 1 s ─▶ asked ─ 3 probes, each unanswered for 1 s ─▶ silent
//!     ▲                                                    │                                            │ asked each
//!     └──────────────── whatever is genuine ───────────────┴────────────────────────────────────────────┘ 2 s, later 30 s
//! ```
//!
//! Who only listens is not silent: it answers the probes. Who was not sent anything is not judged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::clock::Timestamp;

/// How long a member may leave a packet unanswered before it is asked.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// The same for a plain WireGuard peer: it is asked by handshakes alone, and says itself within 10 s that it heard data
/// (WireGuard's keepalive timeout), so that a healthy one is never asked.
pub const PLAIN_PATIENCE: Duration = Duration::from_secs(11);
/// Probes that stay unanswered before a peer is silent.
pub const PROBES: u32 = 3;
/// How long each of them may take.
pub const WAIT: Duration = Duration::from_secs(1);
/// Pause between two probes of a silent peer at first.
pub const OFTEN: Duration = Duration::from_secs(2);
/// The same once it was silent for `LONG`.
pub const SELDOM: Duration = Duration::from_secs(30);
/// How long a peer is asked often.
pub const LONG: Duration = Duration::from_secs(300);

/// What is known of one peer. A value: who holds it tells it what went out and came in, and asks it what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    patience: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Answers,
    /// The first unanswered packet went out at `since`; so many probes were sent.
    Asked {
        since: Timestamp,
        probes: u32,
        due: Timestamp,
    },
    Silent {
        since: Timestamp,
        due: Timestamp,
    },
}

/// How a peer is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inquiry {
    /// The first: the peer most likely only listens.
    First,
    /// A later one: it may have moved, or lost its session, so that it should be asked in every way.
    Urgent,
}

impl Liveness {
    /// Makes a peer that answers, or was never asked; `patience` is `PATIENCE` or `PLAIN_PATIENCE`.
    pub const fn new(patience: Duration) -> Self {
        Self { patience, state: State::Answers }
    }

    /// Takes note that a packet went out after everything that was heard.
    pub fn sent(&mut self, at: Timestamp) {
        if self.state == State::Answers {
            self.state = State::Asked { since: at, probes: 0, due: at + self.patience };
        }
    }

    /// Takes note of when something genuine was heard last. Says whether that answers what went out.
    pub fn heard(&mut self, at: Timestamp) -> bool {
        let (State::Asked { since, .. } | State::Silent { since, .. }) = self.state else { return false };
        let answered = at > since;
        if answered {
            self.state = State::Answers;
        }
        answered
    }

    /// Returns the probe that is to be sent now, if it is time.
    pub fn poll(&mut self, now: Timestamp) -> Option<Inquiry> {
        match self.state {
            State::Asked { since, probes, due } if due <= now => {
                self.state = match probes {
                    PROBES.. => State::Silent { since, due: now + OFTEN },
                    asked => State::Asked { since, probes: asked + 1, due: now + WAIT },
                };
                Some(if probes == 0 { Inquiry::First } else { Inquiry::Urgent })
            }
            State::Silent { since, due } if due <= now => {
                let pause = if now.since(since) < LONG { OFTEN } else { SELDOM };
                self.state = State::Silent { since, due: now + pause };
                Some(Inquiry::Urgent)
            }
            State::Answers | State::Asked { .. } | State::Silent { .. } => None,
        }
    }

    /// Returns when `poll` has something to say; `None` while the peer answers.
    pub const fn poll_timeout(&self) -> Option<Timestamp> {
        match self.state {
            State::Answers => None,
            State::Asked { due, .. } | State::Silent { due, .. } => Some(due),
        }
    }

    /// Returns since when the peer does not answer; `None` until that is a fact.
    pub const fn silent_since(&self) -> Option<Timestamp> {
        match self.state {
            State::Silent { since, .. } => Some(since),
            State::Answers | State::Asked { .. } => None,
        }
    }
}

/// Since when a peer does not answer, as one lane found it and all lanes read it: without a lock, one load per new flow.
#[derive(Debug, Default)]
pub struct Silence(AtomicU64);

impl Silence {
    /// Makes it known; `None` if the peer answers.
    pub fn set(&self, since: Option<Timestamp>) {
        self.0.store(since.map_or(0, |at| at.as_micros().max(1)), Ordering::Relaxed);
    }

    /// Returns since when the peer does not answer; `None` if it does, or was never asked.
    pub fn since(&self) -> Option<Timestamp> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&micros| micros > 0).map(Timestamp::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(50);

    /// A peer in virtual time, 50 ms a step, to which something goes out at each.
    struct Peer {
        liveness: Liveness,
        now: Timestamp,
        began: Timestamp,
        /// When probes left, in milliseconds since the beginning.
        probes: Vec<u64>,
    }

    impl Peer {
        fn new(patience: Duration) -> Self {
            let now = Timestamp::from_millis(1_000_000);
            Self { liveness: Liveness::new(patience), now, began: now, probes: Vec::new() }
        }

        fn millis(&self) -> u64 {
            self.now.since(self.began).as_millis() as u64
        }

        /// Lets time pass; `answers` says whether the probe of that number is answered within a step.
        fn run(&mut self, time: Duration, answers: impl Fn(usize) -> bool) {
            let end = self.now + time;
            while self.now < end {
                self.liveness.sent(self.now);
                if self.liveness.poll(self.now).is_some() {
                    self.probes.push(self.millis());
                    if answers(self.probes.len()) {
                        assert!(self.liveness.heard(self.now + Duration::from_millis(1)));
                    }
                }
                self.now = self.now + STEP;
            }
        }
    }

    #[test]
    fn three_unanswered_probes_make_a_peer_silent_since_its_first_unanswered_packet() {
        let mut peer = Peer::new(PATIENCE);
        peer.run(Duration::from_millis(3950), |_| false);
        assert_eq!(peer.liveness.silent_since(), None);
        peer.run(Duration::from_millis(100), |_| false);
        assert_eq!(peer.probes, [1000, 2000, 3000, 4000]);
        assert_eq!(peer.liveness.silent_since(), Some(peer.began));
    }

    #[test]
    fn ten_minutes_of_one_way_traffic_to_a_peer_that_answers_probes_never_mark_it() {
        let mut peer = Peer::new(PATIENCE);
        for _ in 0..600 {
            peer.run(Duration::from_secs(1), |_| true);
            assert_eq!(peer.liveness.silent_since(), None);
        }
        // One second each, and the step in which the next packet leaves.
        assert!((550..=600).contains(&peer.probes.len()), "{}", peer.probes.len());
    }

    #[test]
    fn two_probes_lost_of_three_do_not_mark_a_peer() {
        let mut peer = Peer::new(PATIENCE);
        for _ in 0..600 {
            peer.run(Duration::from_secs(1), |probe| probe % 3 == 0);
            assert_eq!(peer.liveness.silent_since(), None);
        }
    }

    #[test]
    fn a_silent_peer_is_asked_each_2_s_and_after_5_min_each_30_s_and_is_back_at_the_first_answer() {
        let mut peer = Peer::new(PATIENCE);
        peer.run(Duration::from_secs(420), |_| false);
        let pauses: Vec<u64> = peer.probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..5], [1000, 1000, 1000, 2000, 2000]);
        let often = peer.probes.iter().filter(|&&at| at > 4000 && at <= 300_000).count();
        assert!((147..=149).contains(&often), "{often}");
        assert_eq!(pauses.iter().filter(|&&pause| pause == 30_000).count(), 3);
        assert_eq!(peer.liveness.silent_since(), Some(peer.began));

        assert!(peer.liveness.heard(peer.now));
        assert_eq!((peer.liveness.silent_since(), peer.liveness.poll_timeout()), (None, None));
    }

    #[test]
    fn what_was_heard_before_a_packet_left_is_no_answer_to_it() {
        let mut liveness = Liveness::new(PATIENCE);
        let at = Timestamp::from_millis;
        assert!(!liveness.heard(at(500)));
        liveness.sent(at(1000));
        assert!(!liveness.heard(at(999)) && !liveness.heard(at(1000)));
        assert_eq!(liveness.poll_timeout(), Some(at(2000)));
        assert!(liveness.heard(at(1001)));
    }

    #[test]
    fn a_process_that_slept_asks_as_often_as_one_that_did_not() {
        let mut liveness = Liveness::new(PATIENCE);
        let at = Timestamp::from_millis;
        liveness.sent(at(0));
        // It slept for an hour; the answers lie in its socket.
        assert_eq!(liveness.poll(at(3_600_000)), Some(Inquiry::First));
        assert_eq!(liveness.poll(at(3_600_999)), None);
        assert_eq!(liveness.silent_since(), None);
        assert!(liveness.heard(at(3_600_500)));
    }

    #[test]
    fn a_plain_wireguard_peer_that_keeps_alive_by_itself_is_never_asked() {
        let mut peer = Peer::new(PLAIN_PATIENCE);
        for _ in 0..60 {
            peer.run(Duration::from_secs(10), |_| false);
            assert!(peer.liveness.heard(peer.now), "its keepalive");
        }
        assert!(peer.probes.is_empty());
        peer.run(Duration::from_secs(15), |_| false);
        assert_eq!(peer.probes.len(), 4);
        assert!(peer.liveness.silent_since().is_some());
    }

    #[test]
    fn all_lanes_read_what_one_made_known() {
        let silence = Silence::default();
        assert_eq!(silence.since(), None);
        silence.set(Some(Timestamp::default()));
        assert!(silence.since().is_some());
        silence.set(Some(Timestamp::from_millis(7)));
        assert_eq!(silence.since(), Some(Timestamp::from_millis(7)));
        silence.set(None);
        assert_eq!(silence.since(), None);
    }
}
