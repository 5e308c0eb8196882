//! `--help` of a program and of all its verbs.

use std::path::Path;
use std::process::Command;

/// What verbs say that no list of verbs shows.
const HIDDEN: [&str; 1] = ["guard"];

/// Returns the help of a program and of every verb, numbered line by line, for order is part of it.
pub(crate) fn of(program: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = vec![Vec::new()];
    if program.ends_with("meshd") {
        open.extend(HIDDEN.map(|verb| vec![verb.to_owned()]));
    }
    while let Some(words) = open.pop() {
        let output = Command::new(program).args(&words).arg("--help").output().unwrap();
        assert!(output.status.success(), "{} {words:?} --help", program.display());
        let text = String::from_utf8(output.stdout).unwrap();
        let verb = words.join(" ");
        lines.extend(text.lines().enumerate().map(|(i, line)| format!("{verb} {:03} {line}", i + 1)));
        for name in verbs(&text) {
            open.push(words.iter().cloned().chain([name]).collect());
        }
    }
    lines
}

fn verbs(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}
