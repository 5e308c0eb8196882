//! The steps of one side, without a socket or a clock: frames come in, frames are to be sent, a key comes out.

use std::collections::VecDeque;
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::handshake_limiter::{Bucket, Rate};

use super::frame::{Parts, PskFrame, PskStep};
use super::kem::{self, KemKeypair, Offer, Proof};
use crate::psk::preshared::PresharedKey;

/// How long the next step is waited for until one is repeated; it doubles up to the longest.
const REPEAT: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(1);
/// How often a step is sent before the exchange is given up.
const SENDS: u32 = 5;
/// Exchanges of the peer's that are answered at the same time: a late part of an older one does not end a newer.
const ANSWERED: usize = 2;
/// How often the peer may offer anew: each costs an encapsulation.
const OFFERS: Rate = Rate { per_second: 1, burst: 8 };
/// How long an exchange of the peer's keeps us from proposing one: as long as it repeats.
const UNDER_WAY: Duration = Duration::from_secs(4);

/// The exchanges of one pair of agreement keys, as one of the two nodes sees them.
pub(crate) struct Exchange {
    pair: KemKeypair,
    mine: Option<Mine>,
    /// The newest last.
    theirs: Vec<Theirs>,
    /// What bounds their number; none before the first.
    offers: Option<Bucket>,
    out: VecDeque<PskFrame>,
}

/// What came of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing that matters outside.
    None,
    /// The peer's offer is answered, and ours, if there is one, given up for it.
    Answered,
    /// Both sides have this key, or can have it.
    Agreed(PresharedKey),
    /// Our offer was not answered.
    Unanswered,
}

/// An exchange that we proposed.
struct Mine {
    id: u64,
    stage: Stage,
    sent: u32,
    due: Timestamp,
}

enum Stage {
    Offered(Box<Offer>, Parts),
    Confirming(Proof),
}

/// An exchange that the peer proposed.
struct Theirs {
    id: u64,
    since: Timestamp,
    offer: Parts,
    answered: Option<Answered>,
}

struct Answered {
    message: Vec<u8>,
    /// None once it was taken.
    key: Option<PresharedKey>,
    expected: Proof,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exchange({:?} with {:?}, [redacted])", self.pair.own.0, self.pair.peer.0)
    }
}

impl Exchange {
    pub(crate) fn new(pair: KemKeypair) -> Self {
        Self { pair, mine: None, theirs: Vec::new(), offers: None, out: VecDeque::new() }
    }

    /// Proposes a key under a number that strangers cannot guess, unless an exchange is under way.
    pub(crate) fn propose(&mut self, id: u64, now: Timestamp) {
        if self.is_under_way(now) {
            return;
        }
        let Some(offer) = Offer::make() else { return };
        self.out.extend(PskFrame::all(PskStep::Offer, id, &offer.bytes));
        let stage = Stage::Offered(Box::new(offer), Parts::of(PskStep::Answer));
        self.mine = Some(Mine { id, stage, sent: 1, due: now + REPEAT });
    }

    /// Takes a frame of the peer's.
    pub(crate) fn handle(&mut self, frame: &PskFrame, now: Timestamp) -> Progress {
        match frame.step {
            PskStep::Offer => return self.offered(frame, now),
            PskStep::Answer => return self.answered(frame, now),
            PskStep::Confirm => return self.confirmed(frame),
            PskStep::Done => {
                let is_done = |mine: &Mine| mine.id == frame.id && matches!(mine.stage, Stage::Confirming(_));
                self.mine.take_if(|mine| is_done(mine));
            }
        }
        Progress::None
    }

    /// Returns the next frame to send.
    pub(crate) fn next_frame(&mut self) -> Option<PskFrame> {
        self.out.pop_front()
    }

    /// Repeats what is due.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) -> Progress {
        let Some(mine) = self.mine.as_mut().filter(|mine| mine.due <= now) else { return Progress::None };
        if mine.sent >= SENDS {
            let confirmed = matches!(mine.stage, Stage::Confirming(_));
            self.mine = None;
            return if confirmed { Progress::None } else { Progress::Unanswered };
        }
        mine.due = now + (REPEAT * 2u32.pow(mine.sent)).min(LONGEST);
        mine.sent += 1;
        match &mine.stage {
            Stage::Offered(offer, _) => self.out.extend(PskFrame::all(PskStep::Offer, mine.id, &offer.bytes)),
            Stage::Confirming(proof) => self.out.extend(PskFrame::all(PskStep::Confirm, mine.id, proof)),
        }
        Progress::None
    }

    /// Returns when `handle_timeout` has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.mine.as_ref().map(|mine| mine.due)
    }

    /// Says whether we proposed something that is still open.
    pub(crate) fn is_proposing(&self) -> bool {
        self.mine.is_some()
    }

    /// Says whether an offer of ours waits for its answer.
    pub(crate) fn is_offering(&self) -> bool {
        self.mine.as_ref().is_some_and(|mine| matches!(mine.stage, Stage::Offered(..)))
    }

    /// Says whether one of the two proposed something that may still give a key.
    pub(crate) fn is_under_way(&self, now: Timestamp) -> bool {
        let open = |t: &Theirs| t.answered.as_ref().is_none_or(|a| a.key.is_some()) && now.since(t.since) < UNDER_WAY;
        self.mine.is_some() || self.theirs.iter().any(open)
    }

    /// Says whether an offer of the peer's gives way to ours, made here or in another tunnel between the two.
    pub(crate) fn goes_first(pair: &KemKeypair) -> bool {
        pair.own.0 < pair.peer.0
    }

    /// Gives up our offer: the peer's, in another tunnel, is answered.
    pub(crate) fn withdraw(&mut self) {
        self.mine.take_if(|mine| matches!(mine.stage, Stage::Offered(..)));
    }

    /// Gives up all that is under way: another tunnel brought a key, and an older one is not to replace it.
    pub(crate) fn supersede(&mut self) {
        self.mine = None;
        self.theirs.clear();
    }

    fn offered(&mut self, frame: &PskFrame, now: Timestamp) -> Progress {
        let offering = self.is_offering();
        if offering && Self::goes_first(&self.pair) {
            return Progress::None;
        }
        let mut progress = Progress::None;
        if !self.theirs.iter().any(|theirs| theirs.id == frame.id) {
            // A peer that offers without end costs no more than this.
            if !self.offers.get_or_insert_with(|| Bucket::full(OFFERS, now)).take(OFFERS, now) {
                return Progress::None;
            }
            if self.theirs.len() >= ANSWERED {
                self.theirs.remove(0);
            }
            self.theirs.push(Theirs { id: frame.id, since: now, offer: Parts::of(PskStep::Offer), answered: None });
        }
        let Some(theirs) = self.theirs.iter_mut().find(|theirs| theirs.id == frame.id) else { return Progress::None };
        if theirs.answered.is_none() {
            theirs.offer.take(frame);
            let Some(offer) = theirs.offer.whole() else { return Progress::None };
            let Some((message, key, expected)) = kem::answer(frame.id, self.pair, offer) else { return Progress::None };
            theirs.answered = Some(Answered { message, key: Some(key), expected });
            if offering {
                self.mine = None;
            }
            progress = Progress::Answered;
        } else if frame.part > 0 {
            // One answer to a repeated offer, not one to each of its parts.
            return Progress::None;
        }
        if let Some(answered) = &theirs.answered {
            self.out.extend(PskFrame::all(PskStep::Answer, frame.id, &answered.message));
        }
        progress
    }

    fn answered(&mut self, frame: &PskFrame, now: Timestamp) -> Progress {
        let Some(mine) = self.mine.as_mut().filter(|mine| mine.id == frame.id) else { return Progress::None };
        let Stage::Offered(offer, parts) = &mut mine.stage else { return Progress::None };
        parts.take(frame);
        let Some(answer) = parts.whole() else { return Progress::None };
        let Some((key, proof)) = offer.accept(mine.id, self.pair, answer) else {
            self.mine = None;
            return Progress::Unanswered;
        };
        self.out.extend(PskFrame::all(PskStep::Confirm, mine.id, &proof));
        // What the peer proposed before and did not confirm is older, and not to replace this key.
        self.theirs.clear();
        *mine = Mine { id: mine.id, stage: Stage::Confirming(proof), sent: 1, due: now + REPEAT };
        Progress::Agreed(key)
    }

    fn confirmed(&mut self, frame: &PskFrame) -> Progress {
        let Some(at) = self.theirs.iter().position(|theirs| theirs.id == frame.id) else { return Progress::None };
        let Some(answered) = self.theirs[at].answered.as_mut() else { return Progress::None };
        if !kem::same(&answered.expected, &frame.bytes) {
            return Progress::None;
        }
        self.out.extend(PskFrame::all(PskStep::Done, frame.id, &[]));
        let Some(key) = answered.key.take() else { return Progress::None };
        // All others are older.
        self.theirs.drain(..at);
        self.mine = None;
        Progress::Agreed(key)
    }
}
