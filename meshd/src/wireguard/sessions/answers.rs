//! Whether peers answer. All lanes notice what stays unanswered; lane 0 asks, by a probe inside the tunnel and, from the
//! second on, by a handshake with all of the peer's addresses, and judges by what all lanes heard.

use std::collections::HashMap;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;
use mesh_proto::dataplane::liveness::{Inquiry, Liveness, PATIENCE, PLAIN_PATIENCE};

use super::session::Session;
use crate::wireguard::peers::{TunnelPeer, TunnelPeers};
use crate::wireguard::timing::{GREETING, GREETINGS_PER_TURN, NOTICED, TICK};

/// Peers that something went out to, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Watches {
    /// Those that have not answered yet; lane 0's alone. At most as many as the map has.
    watched: HashMap<NodeId, Liveness>,
    /// When to look at them again.
    due: Option<Timestamp>,
    /// Those that another lane than 0 noticed, and since when. At most as many as it has tunnels; noticed again with
    /// each tick.
    noticed: Vec<(NodeId, Timestamp)>,
    /// Who fell silent, and since when, or answers again. Read at the end of the turn that found it.
    found: Vec<(NodeId, Option<Timestamp>)>,
    /// Peers to be asked in this turn.
    asking: Vec<(NodeId, Inquiry)>,
    /// Whether others are active than before, or elsewhere.
    is_news: bool,
}

impl Watches {
    /// Takes note that another peer is active, or where one is.
    pub(super) fn note_news(&mut self) {
        self.is_news = true;
    }

    /// Says whether that was noted since this was asked last.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.is_news)
    }

    /// Returns when peers are to be looked at.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.due
    }

    /// Watches a peer that left unanswered what went out at a time.
    pub(super) fn watch(&mut self, peer: &TunnelPeer, sent: Timestamp) {
        let patience = if peer.is_member { PATIENCE } else { PLAIN_PATIENCE };
        let liveness = self.watched.entry(peer.id).or_insert_with(|| Liveness::new(patience));
        liveness.sent(sent);
        self.due = self.due.into_iter().chain(liveness.poll_timeout()).min();
        peer.cell.set_watched(true);
    }

    /// Notices a lane's tunnel by which something went out that its peer, by any lane, left unanswered.
    pub(super) fn notice(&mut self, lane: usize, session: &mut Session, now: Timestamp) {
        let cell = &session.peer.cell;
        session.asked = session.asked.filter(|&asked| cell.heard().is_none_or(|heard| heard < asked));
        let Some(asked) = session.asked.filter(|&asked| now.since(asked) >= NOTICED && !cell.is_watched()) else {
            return;
        };
        match lane {
            0 => self.watch(&session.peer, asked),
            _ => self.noticed.push((session.peer.id, asked)),
        }
    }

    /// Returns the next peer that lane 0 is to watch, and since when it leaves something unanswered.
    pub(super) fn next_noticed(&mut self) -> Option<(NodeId, Timestamp)> {
        self.noticed.pop()
    }

    /// Returns the next peer that fell silent, and since when, or that answers again.
    pub(super) fn next_found(&mut self) -> Option<(NodeId, Option<Timestamp>)> {
        self.found.pop()
    }

    /// Returns the next peer that is to be asked.
    pub(super) fn next_to_ask(&mut self) -> Option<(NodeId, Inquiry)> {
        self.asking.pop()
    }

    /// Forgets peers that left the map.
    pub(super) fn review(&mut self, peers: &TunnelPeers) {
        self.watched.retain(|&id, _| peers.get(id).is_some());
        self.due = self.due.filter(|_| !self.watched.is_empty());
    }

    /// Finds out who answers, who is silent, and who is to be asked, a few per turn; `heard` says when something genuine
    /// of a peer came last, as far as no cell has it yet.
    pub(super) fn judge(&mut self, peers: &TunnelPeers, heard: impl Fn(NodeId) -> Option<Timestamp>, now: Timestamp) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let Self { watched, found, asking, .. } = self;
        let mut due: Option<Timestamp> = None;
        watched.retain(|&id, liveness| {
            let Some(peer) = peers.get(id) else { return false };
            let was_silent = liveness.silent_since().is_some();
            if heard(id).into_iter().chain(peer.cell.heard()).max().is_some_and(|at| liveness.heard(at)) {
                if was_silent {
                    tracing::info!(peer = %id, "answers again");
                    found.push((id, None));
                }
                peer.cell.set_watched(false);
                return false;
            }
            if asking.len() < GREETINGS_PER_TURN
                && let Some(inquiry) = liveness.poll(now)
            {
                asking.push((id, inquiry));
                // Said again each time, for a view that does not know it.
                found.extend(liveness.silent_since().map(|since| (id, Some(since))));
                if !was_silent && liveness.silent_since().is_some() {
                    tracing::info!(peer = %id, "does not answer");
                }
            }
            due = due.into_iter().chain(liveness.poll_timeout()).min();
            true
        });
        // An answer is seen within a tick; who had no turn has one soon.
        let tick = (!watched.is_empty()).then(|| now + TICK);
        self.due = tick.into_iter().chain(due.map(|due| due.max(now + GREETING))).min();
    }
}
