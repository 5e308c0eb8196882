//! Ways that swallow large datagrams without a word: they are found, and how much they let through.
//!
//! ```text
//!  traffic ─▶ look: [small, full] each second ── full answered ─▶ well
//!                     │ small answered, full not: a miss, and the next look at once
//!                     ▼ three misses
//!             confirm: ten more full ones, and all smaller sizes ── one full answered ─▶ well
//!                     │ none, but smaller ones
//!                     ▼
//!             narrow: the largest size that was answered is full ── after 60 s, then twice as long, up to 10 min ──┐
//!                     ▲                                                                                            ▼
//!                     └──────────────────────────────── raise: all larger sizes, three times each; the largest counts
//! ```
//! Each end asks about its own direction: the question is as long as the packets in question, the answer short. Where
//! nothing is answered at all, nothing is learned: a peer that is gone, or knows no questions, is no hole. Chance that
//! loses every fifth datagram each way takes thirteen full ones running about once in 600,000 looks.
//!
//! A question is known by its clock, which the answer brings back: the two lowest bits tell it from a plain probe of
//! the round trip, and full ones from others.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use crate::base::clock::Timestamp;
use crate::base::id::NodeId;
use crate::dataplane::view::MIN_MTU;

/// Most questions in any second, to all peers together.
pub const MOST_A_SECOND: usize = 100;
/// Time between two looks at a way with traffic.
const LOOKS: Duration = Duration::from_secs(1);
/// A way without traffic for so long is not looked at.
const IDLE: Duration = Duration::from_secs(1);
/// Looks in which only the full question was lost, before it is made sure of.
const MISSES: u8 = 3;
/// Full questions by which it is made sure of.
const SURE: usize = 10;
/// How often each size is asked about when the way may have become wider.
const TRIES: usize = 3;
/// Time between two questions of many.
const SPACING: Duration = Duration::from_millis(8);
/// The same where another way was found narrow within `RECENT`: it is most likely one link that all of them share, and
/// to ask every peer about every size would take long at `MOST_A_SECOND`.
const SURE_ALREADY: usize = 4;
const RECENT: Duration = Duration::from_secs(30);
/// How often a way that waits for what another turns out to be looks whether that is known.
const WAITING: Duration = Duration::from_millis(20);
/// How long answers are waited for: four round trips, within these.
const PATIENCE: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];
/// When a narrow way is tried with more for the first time, and the longest pause before it is again.
const FIRST_RAISE: Duration = Duration::from_secs(60);
const LONGEST_RAISE: Duration = Duration::from_secs(600);
/// Sizes that are asked about when the full one is lost: what common links and tunnels leave, in bytes.
const SIZES: [u16; 22] = [
    8000, 4400, 3900, 2900, 2000, 1420, 1400, 1380, 1360, 1340, 1320, 1300, 1280, 1240, 1200, 1140, 1100, 1000, 900,
    800, 700, MIN_MTU,
];
const NEVER: Timestamp = Timestamp::from_micros(u64::MAX);
/// What the lowest bits of the clock of a question say.
const TAG: u64 = 3;
const OTHER: u64 = 1;
const FULL: u64 = 3;

/// Says whether it is the clock of a question about a size, rather than of a probe of the round trip.
pub fn is_question(clock: u64) -> bool {
    clock & 1 == 1
}

/// Returns the clock of a probe of the round trip.
pub fn plain_clock(now: Timestamp) -> u64 {
    now.as_micros() & !1
}

/// What to ask a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeQuestion {
    /// The peer.
    pub peer: NodeId,
    /// How long the packet is to be, in bytes; 0 for as short as can be.
    pub bytes: u16,
    /// The clock that the answer will bring back.
    pub clock: u64,
}

/// A way that takes less than it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Narrow {
    /// The largest packet that gets through, in bytes; at least `MIN_MTU`.
    pub bytes: u16,
    /// Since when this is known.
    pub since: Timestamp,
    /// When more is tried, and how long that was waited for.
    retry: Timestamp,
    wait: Duration,
}

/// What one node knows of its ways to peers with traffic: at most as many as it has peers.
#[derive(Debug, Default)]
pub struct Ways {
    ways: Vec<Way>,
    /// Where each peer's is among them.
    places: HashMap<NodeId, usize>,
    /// Where the next search for something due begins, so that all have their turn.
    next: usize,
    due: Option<Timestamp>,
    /// When the last questions were asked, the oldest at `oldest` once all places are taken.
    asked: Vec<Timestamp>,
    oldest: usize,
    changed: bool,
    /// The size that was found to get through last, and when.
    found: Option<(u16, Timestamp)>,
    /// Who is asked about all sizes; others wait, and ask about what comes of it.
    confirming: Option<NodeId>,
}

/// What a way has to know of the others.
#[derive(Debug, Clone, Copy)]
struct Others {
    /// A size that another was just found to take.
    hint: Option<u16>,
    /// Whether another is asked about all sizes.
    busy: bool,
}

#[derive(Debug)]
struct Way {
    peer: NodeId,
    /// What the way should take.
    full: u16,
    narrow: Option<Narrow>,
    /// Since when it is asked about the present size.
    since: Timestamp,
    active: Timestamp,
    misses: u8,
    /// The longest round trip of late.
    trip: Duration,
    round: Round,
    /// What is still to be asked in this round, the next one last.
    plan: Vec<u16>,
    questions: Vec<Asked>,
    due: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Rest,
    Look,
    Wait,
    Confirm,
    Raise,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    clock: u64,
    bytes: u16,
    answered: bool,
}

impl Ways {
    /// There is traffic with a peer; `full` is the largest packet that may go to it where nothing swallows it.
    pub fn traffic(&mut self, peer: NodeId, full: u16, now: Timestamp) {
        let Some(way) = self.way(peer) else {
            self.places.insert(peer, self.ways.len());
            self.ways.push(Way::new(peer, full, now));
            self.wake(now);
            return;
        };
        way.active = now;
        let is_wide = way.set_full(full, now);
        if way.due == NEVER {
            way.due = now;
        }
        let due = way.due;
        self.changed |= is_wide;
        self.wake(due);
    }

    /// The peer is somewhere else now, by another way perhaps: what was narrow is soon tried again.
    pub fn moved(&mut self, peer: NodeId, now: Timestamp) {
        if let Some(narrow) = self.way(peer).and_then(|way| way.narrow.as_mut()) {
            (narrow.retry, narrow.wait) = (now, FIRST_RAISE);
        }
    }

    /// Forgets peers that left.
    pub fn retain(&mut self, stays: impl Fn(NodeId) -> bool) {
        let before = self.narrowed().count();
        self.keep(|way| stays(way.peer));
        self.changed |= self.narrowed().count() != before;
    }

    /// A peer answered the question of that clock.
    pub fn heard(&mut self, peer: NodeId, clock: u64, now: Timestamp) {
        if let Some(due) = self.way(peer).and_then(|way| way.heard(clock, now)) {
            self.wake(due);
        }
    }

    /// Returns the next question, which is taken to be asked now; to be called again until there is none.
    pub fn poll(&mut self, now: Timestamp) -> Option<SizeQuestion> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        let free = self.free(now);
        for step in 0..self.ways.len() {
            let at = (self.next + step) % self.ways.len();
            if self.ways[at].due > now {
                continue;
            }
            let busy = self.is_confirming_beside(self.ways[at].peer);
            let way = &mut self.ways[at];
            let hint = self.found.filter(|&(_, at)| now.since(at) < RECENT).map(|(bytes, _)| bytes);
            let others = Others { hint, busy };
            if way.advance(others, now) {
                self.changed = true;
                self.found = way.narrow.map(|narrow| (narrow.bytes, now)).or(self.found);
            }
            let confirms = way.round == Round::Confirm;
            if confirms && !busy {
                self.confirming = Some(way.peer);
            } else if !confirms && self.confirming == Some(way.peer) {
                self.confirming = None;
            }
            if way.due > now || way.plan.is_empty() {
                continue;
            }
            if free > now {
                // All others wait for the same.
                self.next = at;
                self.due = Some(free);
                return None;
            }
            let question = way.ask(now);
            self.next = at + 1;
            self.note(now);
            return question;
        }
        self.keep(|way| way.due != NEVER || way.narrow.is_some());
        self.due = self.ways.iter().map(|way| way.due).min().filter(|&due| due != NEVER);
        None
    }

    /// Returns when `poll` has something to do; `None` while there is no traffic.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.due
    }

    /// Says whether ways became narrow or wide since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Returns the peers that large datagrams do not reach.
    pub fn narrowed(&self) -> impl Iterator<Item = (NodeId, Narrow)> {
        self.ways.iter().filter_map(|way| Some((way.peer, way.narrow?)))
    }

    /// Says whether another way than this peer's is asked about all sizes.
    fn is_confirming_beside(&self, peer: NodeId) -> bool {
        let other = self.confirming.filter(|&other| other != peer).and_then(|other| self.places.get(&other));
        other.and_then(|&at| self.ways.get(at)).is_some_and(|way| way.round == Round::Confirm)
    }

    fn way(&mut self, peer: NodeId) -> Option<&mut Way> {
        self.ways.get_mut(*self.places.get(&peer)?)
    }

    /// Forgets all other ways.
    fn keep(&mut self, stays: impl Fn(&Way) -> bool) {
        let before = self.ways.len();
        self.ways.retain(stays);
        if self.ways.len() != before {
            self.places = self.ways.iter().enumerate().map(|(at, way)| (way.peer, at)).collect();
        }
    }

    fn wake(&mut self, due: Timestamp) {
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Returns when one more question may be asked.
    fn free(&self, now: Timestamp) -> Timestamp {
        if self.asked.len() < MOST_A_SECOND { now } else { self.asked[self.oldest] + Duration::from_secs(1) }
    }

    fn note(&mut self, now: Timestamp) {
        if self.asked.len() < MOST_A_SECOND {
            self.asked.reserve_exact(MOST_A_SECOND - self.asked.len());
            self.asked.push(now);
        } else {
            self.asked[self.oldest] = now;
            self.oldest = (self.oldest + 1) % MOST_A_SECOND;
        }
    }
}

impl Way {
    fn new(peer: NodeId, full: u16, now: Timestamp) -> Self {
        Self {
            peer,
            full,
            narrow: None,
            since: now,
            active: now,
            misses: 0,
            trip: Duration::ZERO,
            round: Round::Rest,
            plan: Vec::with_capacity(4),
            questions: Vec::with_capacity(4),
            due: now,
        }
    }

    /// The size that is to get through.
    fn target(&self) -> u16 {
        self.narrow.map_or(self.full, |narrow| narrow.bytes)
    }

    /// Takes note of what the way should take. Says whether it is narrow no more.
    fn set_full(&mut self, full: u16, now: Timestamp) -> bool {
        if self.full == full {
            return false;
        }
        self.full = full;
        let wide = self.narrow.is_some_and(|narrow| narrow.bytes >= full);
        if wide {
            self.narrow = None;
        } else if let Some(narrow) = &mut self.narrow {
            narrow.retry = now;
        }
        self.since = now;
        self.rest(now);
        wide
    }

    fn rest(&mut self, until: Timestamp) {
        self.round = Round::Rest;
        self.misses = 0;
        self.plan.clear();
        self.questions.clear();
        self.due = until;
    }

    fn patience(&self) -> Duration {
        (self.trip * 4).clamp(PATIENCE[0], PATIENCE[1])
    }

    /// Begins a round, or ends one whose answers were waited for. Says whether the way became narrow or wide.
    fn advance(&mut self, others: Others, now: Timestamp) -> bool {
        if !self.plan.is_empty() {
            return false;
        }
        match self.round {
            Round::Rest => {
                self.begin(now);
                false
            }
            Round::Look => {
                self.end_look(others, now);
                false
            }
            Round::Wait => {
                self.make_sure(others, now);
                false
            }
            Round::Confirm => self.end_confirm(now),
            Round::Raise => self.end_raise(now),
        }
    }

    fn begin(&mut self, now: Timestamp) {
        if now.since(self.active) > IDLE {
            self.misses = 0;
            self.due = NEVER;
        } else if self.full <= MIN_MTU {
            self.due = now + LOOKS;
        } else if let Some(narrow) = self.narrow.filter(|narrow| narrow.retry <= now) {
            self.round = Round::Raise;
            self.questions.clear();
            let larger = SIZES.into_iter().filter(|&size| size > narrow.bytes && size < self.full);
            let once = || std::iter::once(self.full).chain(larger.clone());
            self.plan = (0..TRIES).flat_map(|_| once()).collect();
        } else {
            self.look(now);
        }
    }

    fn look(&mut self, now: Timestamp) {
        let target = self.target();
        self.round = Round::Look;
        self.questions.clear();
        self.plan.extend([target, 0]);
        self.due = now;
    }

    fn end_look(&mut self, others: Others, now: Timestamp) {
        let target = self.target();
        let answered = |full: bool| self.questions.iter().any(|q| q.answered && (q.bytes == target) == full);
        if answered(true) {
            self.rest(now + LOOKS);
        } else if !answered(false) || target <= MIN_MTU {
            // Nothing is learned, or nothing can be done about it.
            self.round = Round::Rest;
            self.due = now + LOOKS;
        } else if self.misses + 1 < MISSES {
            self.misses += 1;
            self.look(now);
        } else {
            self.misses = MISSES - 1;
            self.make_sure(others, now);
        }
    }

    /// Makes sure of a hole, unless another way is looked at so closely: most likely they have one link in common.
    fn make_sure(&mut self, others: Others, now: Timestamp) {
        let target = self.target();
        match others.hint.filter(|&hint| hint < target) {
            None if others.busy => {
                self.round = Round::Wait;
                self.due = now + WAITING;
            }
            hint => self.confirm(hint, now),
        }
    }

    fn confirm(&mut self, hint: Option<u16>, now: Timestamp) {
        let target = self.target();
        self.round = Round::Confirm;
        self.questions.clear();
        // The last is asked first. Small ones more than once, lest they look lost, too.
        self.plan.extend([MIN_MTU, 0]);
        let sure = match hint {
            Some(hint) => {
                self.plan.extend([hint, hint]);
                SURE_ALREADY
            }
            None => {
                self.plan.extend([MIN_MTU, 0]);
                self.plan.extend(SIZES.into_iter().filter(|&size| size < target));
                SURE
            }
        };
        for at in 0..sure {
            self.plan.insert(self.plan.len() - (2 * at).min(self.plan.len()), target);
        }
        self.due = now;
    }

    fn end_confirm(&mut self, now: Timestamp) -> bool {
        // Had a full one been answered, the round would be over.
        let target = self.target();
        let best = self.questions.iter().filter(|q| q.answered && q.bytes < target).map(|q| q.bytes).max();
        let Some(best) = best else {
            self.round = Round::Rest;
            self.due = now + LOOKS;
            return false;
        };
        let (retry, wait) = (now + FIRST_RAISE, FIRST_RAISE);
        self.narrow = Some(Narrow { bytes: best.max(MIN_MTU), since: now, retry, wait });
        self.since = now;
        self.rest(now + LOOKS);
        true
    }

    fn end_raise(&mut self, now: Timestamp) -> bool {
        let best = self.questions.iter().filter(|q| q.answered).map(|q| q.bytes).max().unwrap_or(0);
        let full = self.full;
        self.rest(now + LOOKS);
        if best >= full {
            self.since = now;
            return self.narrow.take().is_some();
        }
        let Some(narrow) = &mut self.narrow else { return false };
        narrow.wait = (narrow.wait * 2).min(LONGEST_RAISE);
        narrow.retry = now + narrow.wait;
        if best <= narrow.bytes {
            return false;
        }
        narrow.bytes = best;
        self.since = now;
        true
    }

    fn ask(&mut self, now: Timestamp) -> Option<SizeQuestion> {
        let bytes = self.plan.pop()?;
        let tag = if bytes == self.target() { FULL } else { OTHER };
        let mut clock = now.as_micros() & !TAG | tag;
        while clock > now.as_micros() || self.questions.iter().any(|q| q.clock == clock) {
            clock = clock.checked_sub(TAG + 1)?;
        }
        self.questions.push(Asked { clock, bytes, answered: false });
        self.due = match (self.plan.is_empty(), self.round) {
            (true, _) => now + self.patience(),
            (false, Round::Look | Round::Rest | Round::Wait) => now,
            (false, Round::Confirm | Round::Raise) => now + SPACING,
        };
        Some(SizeQuestion { peer: self.peer, bytes, clock })
    }

    /// Takes note of an answer. Returns when there is something to do, if that is sooner now.
    fn heard(&mut self, clock: u64, now: Timestamp) -> Option<Timestamp> {
        let asked_at = Timestamp::from_micros(clock);
        self.trip = now.since(asked_at).max(self.trip * 7 / 8).min(PATIENCE[1]);
        let question = self.questions.iter_mut().find(|q| q.clock == clock);
        if let Some(question) = question {
            question.answered = true;
        }
        // A late one counts as well.
        let gets_through = clock & TAG == FULL && asked_at >= self.since;
        match self.round {
            Round::Look | Round::Wait | Round::Confirm if gets_through => self.rest(now + LOOKS),
            Round::Rest if gets_through => self.misses = 0,
            Round::Rest | Round::Look | Round::Wait | Round::Confirm | Round::Raise => {}
        }
        (self.due != NEVER).then_some(self.due)
    }
}
