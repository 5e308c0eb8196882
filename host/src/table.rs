//! Tables and figures for people.

use comfy_table::{Cell, CellAlignment, Table, presets};

/// Begins a table; the columns `right` hold figures.
pub fn table(head: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.iter().map(Cell::new));
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Draws a table, a line for each row.
pub fn drawn(table: &Table) -> String {
    // A cell is padded by one blank on each side; more at the start are empty cells, which keep the columns.
    let lines = table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// Writes a number of things.
pub fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// Writes a time in the largest unit of which it has `least` or more.
pub fn age(seconds: u64, least: u64) -> String {
    let units = [("d", 86_400), ("h", 3600), ("min", 60)];
    let (unit, length) = units.into_iter().find(|(_, length)| seconds >= least * length).unwrap_or(("s", 1));
    format!("{} {unit}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_keeps_its_columns_and_has_no_trailing_blanks() {
        let mut table = table(&["SERVICE", "BACKEND", "N"], &[2]);
        table.add_row(["web", "a", "10"]);
        table.add_row(["", "b", "1"]);

        assert_eq!(drawn(&table), "SERVICE  BACKEND   N\nweb      a        10\n         b         1");
    }

    #[test]
    fn times_have_units() {
        assert_eq!([59, 60, 7200, 200_000].map(|s| age(s, 1)), ["59 s", "1 min", "2 h", "2 d"]);
        assert_eq!([119, 120, 7199, 172_800].map(|s| age(s, 2)), ["119 s", "2 min", "119 min", "2 d"]);
    }
}
