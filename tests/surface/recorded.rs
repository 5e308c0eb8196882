//! What was recorded, against what is: sets of lines in `recorded/NAME.txt`.
//!
//! A line that begins with `? ` may be missing: it hangs on when who came first. `MESH_RECORD=1` writes the files anew,
//! and keeps the lines that may be missing; `MESH_RECORD=more` lets every line be missing that is in one of both only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Compares lines with a recording.
///
/// # Panics
/// With all lines that are missing or new.
pub(crate) fn compare(name: &str, lines: &BTreeSet<String>) {
    let recorded = read(name);
    if let Ok(word) = std::env::var("MESH_RECORD") {
        return write(name, &recorded, lines, word == "more");
    }
    let missing = recorded.iter().filter(|(line, must)| **must && !lines.contains(*line)).map(|(line, _)| ('-', line));
    let new = lines.iter().filter(|line| !recorded.contains_key(*line)).map(|line| ('+', line));
    let differing: Vec<String> = missing.chain(new).map(|(sign, line)| format!("{sign} {line}")).collect();
    assert!(
        differing.is_empty(),
        "what a user sees of {name} differs from {} in {} lines; MESH_RECORD=1 records it anew:\n{}",
        file(name).display(),
        differing.len(),
        differing.join("\n")
    );
}

/// The recorded lines, and whether each must be there.
fn read(name: &str) -> BTreeMap<String, bool> {
    let text = fs::read_to_string(file(name)).unwrap_or_default();
    let lines = text.lines().map(|line| match line.strip_prefix("? ") {
        Some(line) => (line.to_owned(), false),
        None => (line.to_owned(), true),
    });
    lines.collect()
}

fn write(name: &str, recorded: &BTreeMap<String, bool>, lines: &BTreeSet<String>, more: bool) {
    let mut all: BTreeMap<&String, bool> = lines.iter().map(|line| (line, true)).collect();
    for (line, must) in recorded {
        if more || !must {
            all.insert(line, *must && lines.contains(line));
        }
    }
    if more {
        for (line, must) in &mut all {
            *must &= recorded.contains_key(*line);
        }
    }
    let text: String = all.iter().map(|(line, must)| format!("{}{line}\n", if *must { "" } else { "? " })).collect();
    fs::write(file(name), text).unwrap();
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("surface/recorded").join(format!("{name}.txt"))
}
