//! What is counted for Prometheus while it happens.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// What is counted as it happens; copies count together. All label values come from the code, so that their number is bounded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    /// Requests to join.
    pub(crate) enrolments: Family<Labels, Counter>,
    /// Readings of services.toml.
    pub(crate) reloads: Family<Labels, Counter>,
    /// Reports of nodes.
    pub(crate) reports: Counter,
    /// Connections that were not served.
    pub(crate) turned_away: Counter,
    /// Connections that were ended for others.
    pub(crate) made_room: Counter,
}

/// What became of what is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    result: &'static str,
}

impl Counters {
    /// Counts a join: `accepted`, or the word of the refusal.
    pub(crate) fn enrolment(&self, result: &'static str) {
        self.enrolments.get_or_create(&Labels { result }).inc();
    }

    /// Counts a reading of services.toml.
    pub(crate) fn reload(&self, result: &'static str) {
        self.reloads.get_or_create(&Labels { result }).inc();
    }

    /// Counts a node's report.
    pub(crate) fn report(&self) {
        self.reports.inc();
    }

    /// Counts a connection of a stranger that was ended because another one needed its place.
    pub(crate) fn made_room(&self) {
        self.made_room.inc();
    }

    /// Counts a connection that was not served because there were too many.
    pub(crate) fn turned_away(&self) {
        self.turned_away.inc();
    }
}
