//! How a node stands to preshared keys, so that neither switching them on or off nor a coordinator that is dead meanwhile
//! keeps it from its peers.
//!
//! A peer asks for a preshared key as soon as its map names our agreement key, and no sooner: so what we may ask for
//! depends on who has heard of our record, and only the number in our own map tells that the coordinator has.
//!
//! ```text
//!  `preshared`  the coordinator's record of us       mode      a peer that names no agreement key  one that does, before there is a key
//!  off          never named an agreement key         Off       plain                               plain
//!  on           does not name one yet                Accept    plain                               plain; we answer its call
//!  on           names one for less than `overlap`    Offer     plain                               plain, and we call it
//!  on           names one for longer, or we joined   Require   plain                               nothing passes before the key
//!               with it
//!  off          still names one                      Accept    plain                               plain; we answer its call
//! ```
//! With whom there is a key, nothing passes without it, in all of these but Off, which forgets all keys. Between two
//! nodes A (which is switched on) and B (which has it on):
//!
//! ```text
//!  B's map of A       A's map of B       what happens
//!  no agreement key   no agreement key   plain on both sides
//!  no agreement key   has one            B speaks plain. A waits or overlaps and answers in kind; its calls find nobody
//!  has one            no agreement key   A speaks plain. B requires: goes on with open tunnels until they end, calls in vain
//!  has one            has one            whoever learns it last calls the other; the open tunnel carries all until the one
//!                                        with the key hears the peer
//! ```
//! No downgrade comes of it: that a peer speaks plain shows in its handshake, which only it can make, and it does not once it
//! knows our key, whatever somebody drops on the way. Two that are both in their overlap may be held off by that, not longer.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::base::files::{PRESHARED, PRESHARED_KEYS};
use crate::base::state_dir::State;
use crate::keys::psk_policy::PskMode;
use crate::keys::psk_store::PskStore;
use crate::node::self_record;

/// The switch `preshared`, and how far the mesh follows it.
#[derive(Debug)]
pub(crate) struct Switch {
    state: State,
    on: bool,
    kept: Option<Kept>,
    /// Since when this process knows that the coordinator has the record.
    since: Option<Instant>,
}

/// What outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Whether our records name agreement keys.
    on: bool,
    /// The number of the first record of which that is true; 0 before there is one.
    record: u64,
    /// Whether the coordinator has it.
    known: bool,
    /// Whether peers had the time to hear of it.
    settled: bool,
}

impl Kept {
    fn new(on: bool) -> Self {
        Self { on, record: 0, known: false, settled: false }
    }
}

/// Takes note that a node joins with its agreement key: nobody knows it without.
pub(crate) fn joined(state: &State) {
    store(state, &Kept { known: true, settled: true, ..Kept::new(true) });
}

impl Switch {
    /// Reads how it stood. A file that is lost or damaged is as if the switch had just been turned, unless it is off and
    /// nothing tells that it ever was on.
    fn load(state: &State, on: bool) -> Self {
        let bytes = state.secret(PRESHARED).ok().flatten();
        let kept: Option<Kept> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let kept = match kept {
            Some(kept) if kept.on == on => Some(kept),
            Some(_) => Some(Kept::new(on)),
            None => (on || was_on(state)).then(|| Kept::new(on)),
        };
        Self { state: state.clone(), on, kept, since: None }
    }

    /// Reads how it stood, and the preshared keys, if the node uses such.
    pub(crate) fn start(state: &State, on: bool) -> (Self, Option<Arc<PskStore>>) {
        let switch = Self::load(state, on);
        let vault = (switch.mode() != PskMode::Off).then(|| PskStore::load(state));
        vault.iter().for_each(|vault| vault.set_mode(switch.mode()));
        (switch, vault.map(Arc::new))
    }

    /// Asks for preshared keys, or ceases to, as far as the mesh has heard of it: `known` is the number of the record of ours
    /// that the coordinator has, `connected` whether it is heard, `overlap` how long peers may be out of touch with it.
    /// Says whether the mode changed.
    pub(crate) fn advance(&mut self, known: u64, connected: bool, overlap: Duration) -> bool {
        let changed = self.step(known, connected, overlap, Instant::now());
        if changed {
            tracing::info!(stance = %self.mode().logged(), "preshared keys");
        }
        changed
    }

    /// Returns how the node stands.
    pub(crate) fn mode(&self) -> PskMode {
        match &self.kept {
            None => PskMode::Off,
            Some(kept) if !kept.on || !kept.known => PskMode::Accept,
            Some(kept) if !kept.settled => PskMode::Offer,
            Some(_) => PskMode::Require,
        }
    }

    /// Takes note of the record that is reported; it names agreement keys if this is on, and none if it is off.
    pub(crate) fn reported(&mut self, sequence: u64) {
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.record == 0 && !kept.settled) {
            kept.record = sequence;
            store(&self.state, kept);
        }
    }

    /// Goes on as far as it may. Says whether the mode changed.
    fn step(&mut self, known: u64, connected: bool, overlap: Duration, now: Instant) -> bool {
        let before = self.mode();
        match &mut self.kept {
            Some(kept) if !kept.known && kept.record > 0 && known >= kept.record => {
                kept.known = true;
                self.since = Some(now);
                if kept.on {
                    store(&self.state, kept);
                } else {
                    self.kept = None;
                    if let Err(error) = self.state.keep_absent(PRESHARED) {
                        tracing::warn!(%error, "the next start waits for the coordinator again");
                    }
                }
            }
            // Who is out of touch does not know whether its peers are.
            Some(kept) if kept.known && !kept.settled && connected => {
                kept.settled = now.saturating_duration_since(*self.since.get_or_insert(now)) >= overlap;
                if kept.settled {
                    store(&self.state, kept);
                }
            }
            Some(_) | None => {}
        }
        self.mode() != before
    }

    /// Says what the operator may wonder about.
    pub(crate) fn sentence(&self) -> Option<String> {
        match (self.mode(), self.on) {
            (PskMode::Accept, true) => Some(
                "this node speaks plain WireGuard with peers with which it has no preshared key yet: it waits for the \
                 coordinator to know its agreement key"
                    .into(),
            ),
            (PskMode::Accept, false) => Some(
                "this node still uses its preshared keys: it waits for the coordinator to know that it wants none"
                    .into(),
            ),
            (PskMode::Off | PskMode::Offer | PskMode::Require, _) => None,
        }
    }
}

/// Says whether peers may know an agreement key of ours: there are keys with some, or our last record names one.
fn was_on(state: &State) -> bool {
    let has_keys = std::fs::metadata(state.path(PRESHARED_KEYS)).is_ok_and(|found| found.len() > 0);
    has_keys || self_record::names_agreement(state)
}

fn store(state: &State, kept: &Kept) {
    let written = serde_json::to_vec(kept).map(|bytes| state.keep(PRESHARED, &bytes));
    if let Ok(Err(error)) = written {
        tracing::warn!(%error, "not stored how far the mesh follows `preshared`; the next start waits for the coordinator");
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const OVERLAP: Duration = Duration::from_secs(100);

    fn state() -> (tempfile::TempDir, State) {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("s")).unwrap();
        (dir, state)
    }

    #[tokio::test]
    async fn keys_are_asked_for_once_the_record_is_known_and_insisted_on_after_the_overlap() {
        let (_dir, state) = state();
        let at = |s| Instant::now() + Duration::from_secs(s);
        let mut switch = Switch::load(&state, true);
        assert!(!switch.step(1000, true, OVERLAP, at(0)), "nothing is reported yet");
        switch.reported(7);
        for start in [false, true] {
            if start {
                switch = Switch::load(&state, true);
                switch.reported(9);
            }
            assert!(!switch.step(6, true, OVERLAP, at(100_000)));
            assert_eq!(switch.mode(), PskMode::Accept);
            assert!(switch.sentence().unwrap().contains("waits for the coordinator"));
        }
        assert!(switch.step(7, true, OVERLAP, at(0)), "the first one's number was kept");
        for start in [false, true] {
            if start {
                switch = Switch::load(&state, true);
            }
            assert_eq!(switch.mode(), PskMode::Offer);
            switch.step(8, true, OVERLAP, at(10));
            assert!(!switch.step(8, false, OVERLAP, at(1000)), "who is out of touch cannot tell");
            assert!(!switch.step(8, true, OVERLAP, at(99)));
            assert_eq!(switch.sentence(), None);
        }
        assert!(switch.step(8, true, OVERLAP, at(110)));
        assert_eq!(Switch::load(&state, true).mode(), PskMode::Require);
        assert!(!switch.step(3, true, OVERLAP, at(300)), "a coordinator that was restored");
        assert_eq!(switch.mode(), PskMode::Require);
    }

    #[tokio::test]
    async fn keys_are_used_until_the_coordinator_knows_that_there_are_none_any_more() {
        let (_dir, state) = state();
        joined(&state);
        assert_eq!(Switch::load(&state, true).mode(), PskMode::Require, "nobody knows it without its agreement key");
        let mut off = Switch::load(&state, false);
        assert_eq!(off.mode(), PskMode::Accept);
        off.reported(5);
        assert!(!off.step(4, true, OVERLAP, Instant::now()));
        let mut off = Switch::load(&state, false);
        assert_eq!(off.mode(), PskMode::Accept, "after a restart, too");
        assert!(off.sentence().unwrap().contains("still uses"));
        assert!(off.step(5, true, OVERLAP, Instant::now()));
        assert_eq!((off.mode(), off.sentence()), (PskMode::Off, None));
        assert_eq!(Switch::load(&state, false).mode(), PskMode::Off);
        assert_eq!(Switch::load(&state, true).mode(), PskMode::Accept, "on again");
    }

    #[tokio::test]
    async fn a_node_with_keys_whose_switch_is_off_and_whose_file_is_lost_waits_for_the_coordinator() {
        let (_dir, state) = state();
        let key = || crate::psk::PresharedKey::new([5; 32]);
        let vault = PskStore::load(&state);
        vault.put(mesh_proto::base::id::NodeId(2), key());
        vault.save(&state).unwrap();

        let mut off = Switch::load(&state, false);
        assert_eq!(off.mode(), PskMode::Accept, "peers may insist on their keys with it");
        off.reported(5);
        let mut off = Switch::load(&state, false);
        assert!(!off.step(4, true, OVERLAP, Instant::now()));
        assert!(off.step(5, true, OVERLAP, Instant::now()));
        vault.set_mode(off.mode());
        vault.save(&state).unwrap();
        assert_eq!(Switch::load(&state, false).mode(), PskMode::Off, "and not again");
    }

    #[tokio::test]
    async fn a_node_whose_last_record_names_an_agreement_key_waits_for_the_coordinator_without_keys_too() {
        let (_dir, state) = state();
        let keys = crate::keys::node::NodeKeys::load_or_make(&state).unwrap();
        let sign = |agreement| {
            let facts = mesh_proto::wire::NodeFacts { agreement, ..Default::default() };
            self_record::Author::new(&state).sealed(&keys, facts, 0);
        };
        sign(vec![mesh_proto::base::id::TunnelKey([3; 32])]);
        assert_eq!(Switch::load(&state, false).mode(), PskMode::Accept);
        sign(Vec::new());
        assert_eq!(Switch::load(&state, false).mode(), PskMode::Off);
    }

    #[tokio::test]
    async fn a_damaged_file_is_as_if_the_switch_had_just_been_turned() {
        let (_dir, state) = state();
        joined(&state);
        let good = std::fs::read(state.path(PRESHARED)).unwrap();
        for length in 0..good.len() {
            std::fs::write(state.path(PRESHARED), &good[..length]).unwrap();
            assert_eq!(Switch::load(&state, true).mode(), PskMode::Accept);
        }
        let (_dir, state) = self::state();
        assert_eq!(Switch::load(&state, false).mode(), PskMode::Off);
    }
}
