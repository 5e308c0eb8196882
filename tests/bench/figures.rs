//! What was measured, and how it compares with what is promised: ratios within one run.

use serde::Serialize;

use crate::plan::Metric;
use crate::system::System;

/// The row of ours to a node's own address.
pub(crate) const PLAIN_ROW: &str = "meshd";
/// The row of ours through a VIP, node to node.
pub(crate) const VIP_ROW: &str = "meshd, VIP";
/// The row of ours through a VIP, pod to pod.
pub(crate) const PODS_ROW: &str = "meshd, VIP, pod to pod";
/// The rows of ours among few and among many peers.
pub(crate) const FEW_ROW: &str = "meshd, 1 peer";
/// See [`FEW_ROW`].
pub(crate) const MANY_ROW: &str = "meshd, 1,000 peers";
/// The other tunnels.
const TUNNELS: [System; 4] = [System::WireguardGo, System::BoringtunCli, System::Gotatun, System::Nebula];

/// The cells of a row: a column, and its value in each round.
pub(crate) type Cells = Vec<(Metric, Vec<f64>)>;

/// Everything measured: a row for each way, a list of values for each of its columns.
#[derive(Debug, Default)]
pub(crate) struct FiguresTable {
    rows: Vec<(String, Cells)>,
    /// Resident memory of a daemon among many peers, in MiB.
    pub(crate) memory: Vec<f64>,
}

impl FiguresTable {
    /// Adds a value.
    pub(crate) fn add(&mut self, row: &str, metric: Metric, value: f64) {
        let at = self.rows.iter().position(|(name, _)| name == row).unwrap_or_else(|| {
            self.rows.push((row.into(), Vec::new()));
            self.rows.len() - 1
        });
        let columns = &mut self.rows[at].1;
        match columns.iter_mut().find(|(of, _)| *of == metric) {
            Some((_, values)) => values.push(value),
            None => columns.push((metric, vec![value])),
        }
    }

    /// Returns the rows in the order in which they came.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&str, &Cells)> {
        self.rows.iter().map(|(name, columns)| (name.as_str(), columns))
    }

    /// Returns the median of a cell.
    pub(crate) fn median(&self, row: &str, metric: Metric) -> Option<f64> {
        let (_, columns) = self.rows.iter().find(|(name, _)| name == row)?;
        median(&columns.iter().find(|(of, _)| *of == metric)?.1)
    }
}

/// Returns the middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// What is promised of a ratio, or of a value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FiguresTarget {
    AtLeast(f64),
    AtMost(f64),
}

impl FiguresTarget {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl std::fmt::Display for FiguresTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}

/// One promise and how it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// What is compared.
    pub(crate) what: String,
    /// With what.
    pub(crate) against: String,
    /// Ours.
    pub(crate) ours: f64,
    /// The other's; 1 where ours alone counts.
    pub(crate) theirs: f64,
    /// Ours by the other's.
    pub(crate) ratio: f64,
    /// What is promised of the ratio.
    pub(crate) target: FiguresTarget,
    /// Whether it holds.
    pub(crate) ok: bool,
}

/// Compares everything that was measured with what is promised; what was not measured is left out.
pub(crate) fn figures(table: &FiguresTable) -> Vec<Figure> {
    use FiguresTarget::{AtLeast, AtMost};
    use Metric::{Connects, LoadedP99, ReceiverCpu, SenderCpu, Tcp1, Tcp4, TripP50, TripP99, Udp64, Udp1200};
    use System::{BoringtunCli, Ceiling, Haproxy, WireguardGo};

    let mut list = List { table, figures: Vec::new() };
    list.versus(Tcp1, &[(WireguardGo, AtLeast(2.2)), (BoringtunCli, AtLeast(8.0))]);
    list.versus(Tcp1, &[(Ceiling, AtLeast(1.0)), (Haproxy, AtLeast(1.0))]);
    list.versus(Tcp4, &[(WireguardGo, AtLeast(2.2)), (Ceiling, AtLeast(1.0)), (Haproxy, AtLeast(0.95))]);
    for metric in [Tcp1, Tcp4] {
        list.compare(metric, PODS_ROW, PLAIN_ROW, AtLeast(0.95));
    }
    list.best(Udp1200, AtLeast(1.5));
    list.versus(Udp1200, &[(Ceiling, AtLeast(1.0))]);
    list.best(Udp64, AtLeast(1.5));
    list.best(TripP50, AtMost(1.0));
    list.best(TripP99, AtMost(1.0));
    list.versus(TripP50, &[(Haproxy, AtMost(0.7))]);
    list.versus(LoadedP99, &[(WireguardGo, AtMost(0.5))]);
    list.versus(Connects, &[(Ceiling, AtLeast(0.95)), (Haproxy, AtLeast(5.0))]);
    list.compare(Connects, VIP_ROW, PLAIN_ROW, AtLeast(0.9));
    list.compare(Tcp1, MANY_ROW, FEW_ROW, AtLeast(0.95));
    if let Some(mib) = median(&table.memory) {
        list.push("MiB resident among 1,000 peers", "itself", mib, 1.0, AtMost(64.0));
    }
    list.versus(SenderCpu, &[(WireguardGo, AtMost(0.5))]);
    list.versus(ReceiverCpu, &[(WireguardGo, AtMost(0.5))]);
    list.figures
}

struct List<'a> {
    table: &'a FiguresTable,
    figures: Vec<Figure>,
}

impl List<'_> {
    fn push(&mut self, what: &str, against: &str, ours: f64, theirs: f64, target: FiguresTarget) {
        let ratio = ours / theirs;
        let ok = target.holds(ratio);
        self.figures.push(Figure { what: what.into(), against: against.into(), ours, theirs, ratio, target, ok });
    }

    fn compare(&mut self, metric: Metric, row: &str, against: &str, target: FiguresTarget) {
        let values = self.table.median(row, metric).zip(self.table.median(against, metric));
        if let Some((ours, theirs)) = values {
            let what = if row == PLAIN_ROW { describe(metric).into() } else { format!("{}: {row}", describe(metric)) };
            self.push(&what, against, ours, theirs, target);
        }
    }

    fn versus(&mut self, metric: Metric, others: &[(System, FiguresTarget)]) {
        for (other, target) in others {
            self.compare(metric, PLAIN_ROW, &other.to_string(), *target);
        }
    }

    /// Compares with the best of the other tunnels: the largest where more is promised, else the smallest.
    fn best(&mut self, metric: Metric, target: FiguresTarget) {
        let of = |system: System| self.table.median(&system.to_string(), metric).map(|value| (value, system));
        let found = TUNNELS.into_iter().filter_map(of);
        let best = match target {
            FiguresTarget::AtLeast(_) => found.max_by(|a, b| a.0.total_cmp(&b.0)),
            FiguresTarget::AtMost(_) => found.min_by(|a, b| a.0.total_cmp(&b.0)),
        };
        if let Some((_, system)) = best {
            self.compare(metric, PLAIN_ROW, &system.to_string(), target);
        }
    }
}

/// Returns what a column is, without its neighbours in the table's head.
pub(crate) fn describe(metric: Metric) -> &'static str {
    match metric {
        Metric::Tcp1 => "TCP 1 stream",
        Metric::Tcp4 => "TCP 4 streams",
        Metric::Udp1200 => "UDP 1,200 B delivered",
        Metric::Udp64 => "UDP 64 B delivered",
        Metric::TripP50 => "round trip p50",
        Metric::TripP99 => "round trip p99",
        Metric::LoadedP99 => "round trip p99 beside a stream",
        Metric::Connects => "connects per second",
        Metric::SenderCpu => "CPU per Gbit, sender",
        Metric::ReceiverCpu => "CPU per Gbit, receiver",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_compares_medians_and_the_best_peer_counts() {
        let mut table = FiguresTable::default();
        for (row, values) in [("meshd", [30.0, 10.0, 20.0]), ("gotatun", [4.0, 5.0, 6.0]), ("nebula", [1.0, 9.0, 8.0])]
        {
            for value in values {
                table.add(row, Metric::Udp64, value);
                table.add(row, Metric::TripP50, value);
            }
        }
        let figures = figures(&table);
        let found: Vec<_> = figures.iter().map(|f| (f.against.as_str(), f.ratio, f.ok)).collect();
        assert_eq!(found, [("nebula", 2.5, true), ("gotatun", 4.0, false)]);
    }

    #[test]
    fn the_median_of_an_even_number_lies_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
    }
}
