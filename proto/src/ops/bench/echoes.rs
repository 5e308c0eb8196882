//! Round trips, asked for at an even pace: the next does not wait for the answer to the one before.

use std::time::Duration;

use crate::base::clock::Timestamp;

/// When to ask, and what came back.
#[derive(Debug)]
pub struct Echoes {
    every: Duration,
    most: u32,
    asked: u32,
    next: Timestamp,
    answers: Vec<u32>,
}

impl Echoes {
    /// Asks every so often, from `now` on, as often as `most` at most.
    pub fn new(every: Duration, most: u32, now: Timestamp) -> Self {
        Self { every, most, asked: 0, next: now, answers: Vec::with_capacity(most as usize) }
    }

    /// Says whether to ask. Asking late does not make the next come sooner.
    pub fn poll(&mut self, now: Timestamp) -> bool {
        let due = self.asked < self.most && self.next <= now;
        if due {
            self.asked += 1;
            self.next = now + self.every;
        }
        due
    }

    /// Returns when to poll again; `None` once all was asked.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        (self.asked < self.most).then_some(self.next)
    }

    /// Takes note of an answer: the round trip in microseconds. More than were asked for are not kept.
    pub fn handle_answer(&mut self, micros: u32) {
        if self.answers.len() < self.most as usize {
            self.answers.push(micros);
        }
    }

    /// Asks no more.
    pub fn stop(&mut self) {
        self.most = self.asked;
    }

    /// Says whether all was asked and answered.
    pub fn is_complete(&self) -> bool {
        self.asked == self.most && self.answers.len() >= self.asked as usize
    }

    /// Returns the answers in the order of their arrival, in microseconds.
    pub fn answers(&self) -> &[u32] {
        &self.answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_keep_their_pace_and_their_number() {
        let at = Timestamp::from_millis;
        let mut echoes = Echoes::new(Duration::from_millis(5), 3, at(100));
        let asked: Vec<_> = [100, 102, 105, 117, 120, 122, 200].into_iter().filter(|&ms| echoes.poll(at(ms))).collect();
        assert_eq!(asked, [100, 105, 117]);
        assert_eq!(echoes.poll_timeout(), None);

        (1..=2).for_each(|micros| echoes.handle_answer(micros));
        assert!(!echoes.is_complete());
        (3..=9).for_each(|micros| echoes.handle_answer(micros));
        assert!(echoes.is_complete());
        assert_eq!(echoes.answers(), [1, 2, 3]);
    }

    #[test]
    fn who_asks_says_when_to_be_called() {
        let mut now = Timestamp::from_millis(100);
        let mut echoes = Echoes::new(Duration::from_millis(5), 200, now);
        let mut asked = 0;
        while let Some(due) = echoes.poll_timeout() {
            now = due;
            assert!(echoes.poll(now));
            asked += 1;
        }
        assert_eq!((asked, now), (200, Timestamp::from_millis(100 + 199 * 5)));
        echoes.stop();
        assert!(!echoes.is_complete());
    }
}
