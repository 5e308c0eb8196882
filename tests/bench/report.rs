//! What was measured, as Markdown for people (README takes it as it is) and as JSON for programs.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::figures::{FiguresTable, figures, median};
use crate::machine::Machine;
use crate::plan::{BenchPlan, Metric};

/// Prints the table and the figures; a reader that went away is no reason to stop.
pub(crate) fn print(table: &FiguresTable, plan: &BenchPlan, took: Duration) {
    let mut lines = vec![
        String::new(),
        format!("On {}.", Machine::here()),
        format!(
            "Two namespaces over veth on one machine, medians of {} interleaved rounds of {} s each; {} lanes; {:.0} s in all.",
            plan.rounds,
            plan.secs,
            plan.lanes,
            took.as_secs_f64()
        ),
        String::new(),
    ];
    let columns: Vec<Metric> = plan.columns.clone();
    let heads: Vec<&str> = columns.iter().map(|metric| metric.names().1).collect();
    lines.push(format!("| | {} |", heads.join(" | ")));
    lines.push(format!("|---|{}", "---:|".repeat(heads.len())));
    for (row, _) in table.rows() {
        let cell = |metric: &Metric| match table.median(row, *metric) {
            Some(value) => grouped(value, metric.digits()),
            None => "–".into(),
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        lines.push(format!("| {row} | {} |", cells.join(" | ")));
    }
    lines.push(String::new());
    lines.push("| promised | against | ours | theirs | ratio | target | |".into());
    lines.push("|---|---|---:|---:|---:|---:|---|".into());
    for figure in figures(table) {
        let digits = if figure.ours < 10.0 { 3 } else { 1 };
        lines.push(format!(
            "| {} | {} | {} | {} | {:.2} | {} | {} |",
            figure.what,
            figure.against,
            grouped(figure.ours, digits),
            grouped(figure.theirs, digits),
            figure.ratio,
            figure.target,
            if figure.ok { "ok" } else { "**short**" }
        ));
    }
    lines.push(String::new());
    lines.push("The engine's own figures, without a network: cargo bench --package mesh-proto".into());
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{}", lines.join("\n"));
}

/// Writes everything measured, every round of it.
pub(crate) fn write(path: &Path, table: &FiguresTable, plan: &BenchPlan) -> io::Result<()> {
    let mut rows = Map::new();
    for (row, columns) in table.rows() {
        let cell = |(metric, values): &(Metric, Vec<f64>)| {
            (metric.names().0.to_owned(), json!({ "median": median(values), "rounds": values }))
        };
        rows.insert(row.into(), Value::Object(columns.iter().map(cell).collect()));
    }
    let document = json!({
        "schema": "bench/1",
        "machine": Machine::here(),
        "rounds": plan.rounds,
        "seconds": plan.secs,
        "lanes": plan.lanes,
        "rows": rows,
        "memory_mib_1000_peers": table.memory,
        "figures": figures(table),
    });
    std::fs::write(path, serde_json::to_vec_pretty(&document)?)
}

/// Writes a number with separated thousands.
fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), String::new()), |(w, r)| (w, format!(".{r}")));
    let mut out = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out + &rest
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_separated() {
        let shown = [(7.0, 0), (999.0, 0), (1000.0, 0), (1_234_567.891, 2)].map(|(v, d)| super::grouped(v, d));
        assert_eq!(shown, ["7", "999", "1,000", "1,234,567.89"]);
    }
}
