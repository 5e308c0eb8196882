//! Whether this host's clock and those of others agree: the coordinator's and peers', as they tell it.
//!
//! ```text
//!   Alive, probes ─▶ words ─┐
//!   this host's clock ──────┴─ each second ─▶ a sentence with both times · what peers are told of this clock
//! ```
//! A second is soon enough for a clock that is set: the words of others are compared with what it says then.

use std::fmt;
use std::time::Duration;

use mesh_host::clock::{now, time_of_day, utc_text};
use mesh_host::table::age;
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeName;
use mesh_proto::base::wall_clock::{BootDate, ClockVerdict, judge};

use crate::base::notes::Notes;
use crate::base::warning_id::WarningId;
use crate::control::ChannelState;
use crate::dataplane::Handle;

/// A clock that moves by so much between two looks was set; one that is slewed is not noticed, nor are peers told.
const STEP: Duration = Duration::from_secs(1);
/// Most clocks that one sentence names.
const MAX_NAMED: usize = 5;

/// Whose clock it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Witness {
    Coordinator,
    Peer(NodeName),
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("the coordinator"),
            Self::Peer(name) => write!(f, "peer `{name}`"),
        }
    }
}

/// Compares the clocks for one node.
pub(super) struct ClockComparison {
    notes: Notes,
    /// What peers are told of this host's clock.
    told: Option<BootDate>,
    is_apart: bool,
}

impl ClockComparison {
    /// Nothing is known yet.
    pub(super) fn new(notes: &Notes) -> Self {
        Self { notes: notes.clone(), told: None, is_apart: false }
    }

    /// Compares once, and tells peers what this clock says by now. Says whether it was set since the last look.
    pub(super) fn look(&mut self, link: &ChannelState, plane: &Handle) -> bool {
        let now = now();
        let own = BootDate::of(time_of_day(), now);
        let heard =
            { link.clock.iter().filter(|word| word.is_fresh(now)) }.map(|word| (Witness::Coordinator, word.date));
        let peers = plane.peer_clocks().into_iter().map(|(name, word)| (Witness::Peer(name), word.date));
        let heard: Vec<_> = heard.chain(peers).collect();
        self.say(sentence(own, &heard, now));
        let was_set = self.told.is_some_and(|told| told.apart(own) >= STEP);
        if was_set || self.told.is_none() {
            self.told = Some(own);
            plane.set_date(own);
        }
        was_set
    }

    fn say(&mut self, sentence: Option<String>) {
        if sentence.is_some() != self.is_apart {
            self.is_apart = sentence.is_some();
            match &sentence {
                Some(sentence) => tracing::warn!("{sentence}"),
                None => tracing::info!("the clocks of this host, the coordinator and peers agree"),
            }
        }
        self.notes.set(WarningId::Clock, sentence);
    }
}

/// Says whose clock is wrong, with what both say; none while all agree.
fn sentence(own: BootDate, heard: &[(Witness, BootDate)], now: Timestamp) -> Option<String> {
    let told = |date: BootDate| utc_text(date.unix(now).0);
    let named = |list: &[(Witness, BootDate)]| {
        let each: Vec<String> = { list.iter().take(MAX_NAMED) }
            .map(|(who, date)| format!("that of {who} {} ({} apart)", told(*date), age(date.apart(own).as_secs(), 2)))
            .collect();
        match list.len().saturating_sub(MAX_NAMED) {
            0 => each.join(", "),
            more => format!("{} and {more} more", each.join(", ")),
        }
    };
    match judge(own, heard) {
        ClockVerdict::Agree => None,
        ClockVerdict::OwnWrong { witness, date, agree } => Some(format!(
            "the clock of this host is wrong: it says {}, that of {witness} {}, and {agree} of the {} others that are known agree on that; set the clock of this host (see `timedatectl`)",
            told(own),
            told(date),
            heard.len()
        )),
        ClockVerdict::OthersWrong(list) => Some(format!(
            "most clocks, this host's among them, say {}, but {}: set the clock there (see `timedatectl`)",
            told(own),
            named(&list)
        )),
        ClockVerdict::Undecided(list) => Some(format!(
            "clocks differ, and no majority tells which is right: that of this host says {}, {}; see `timedatectl` on both, and set the one that is wrong",
            told(own),
            named(&list)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(4_000);

    fn says(ours: u64, others: &[u64]) -> Option<String> {
        let date = |seconds| BootDate::of(Duration::from_secs(1_767_225_600 + seconds), NOW);
        let peer = |n: usize| format!("p{n}").parse().map_or(Witness::Coordinator, Witness::Peer);
        let whose = |n| if n == 0 { Witness::Coordinator } else { peer(n) };
        let heard: Vec<_> = others.iter().enumerate().map(|(n, &s)| (whose(n), date(s))).collect();
        sentence(date(ours), &heard, NOW)
    }

    #[test]
    fn both_times_are_told_and_whose_clock_is_wrong_if_the_majority_knows() {
        assert_eq!(says(100, &[70, 130, 101]), None);
        let own = says(400, &[0, 1, 2]).unwrap_or_default();
        assert!(own.starts_with("the clock of this host is wrong: it says 2026-01-01T00:06:40Z, that of"), "{own}");
        assert!(own.contains("2026-01-01T00:00:01Z, and 3 of the 3 others"), "{own}");
        let other = says(0, &[0, 3600]).unwrap_or_default();
        let names = "say 2026-01-01T00:00:00Z, but that of peer `p1` 2026-01-01T01:00:00Z (60 min apart)";
        assert!(other.contains(names) && other.contains("set the clock there"), "{other}");
        let both = says(0, &[31]).unwrap_or_default();
        let names = "this host says 2026-01-01T00:00:00Z, that of the coordinator 2026-01-01T00:00:31Z (31 s apart)";
        assert!(both.contains("no majority") && both.contains(names), "{both}");
    }

    #[test]
    fn a_sentence_names_a_few_and_counts_the_rest() {
        let many = says(0, &[100, 200, 300, 400, 500, 600, 700]).unwrap_or_default();
        assert!(many.contains(" and 2 more; see"), "{many}");
        assert_eq!(many.matches(" apart)").count(), MAX_NAMED, "{many}");
    }
}
