//! What was proved: a line for each check with its measured figure, and lab-report.json.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// What a check says: its figure, and whether it holds.
pub(crate) type CheckOutcome = Result<String, String>;

/// Every check, in the order of the issue; one that did not run has failed.
pub(crate) const CHECKS: [&str; 14] = [
    "demo1-identical",
    "demo1-distinct",
    "overlap",
    "demo3-vm",
    "encrypted",
    "policy",
    "evil-node",
    "coordinator-dead",
    "node-restart",
    "edit",
    "one-port",
    "foreign-rules",
    "cleanup",
    "duration",
];
/// The longest that the whole lab may take after the build.
const LIMIT: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: String,
    passed: bool,
    figure: String,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: &'a str,
    checks: &'a [Check],
}

/// The checks so far.
pub(crate) struct LabReport {
    began: Instant,
    checks: Mutex<Vec<Check>>,
    only: Vec<String>,
    live: bool,
    aborted: Mutex<Option<String>>,
}

impl LabReport {
    pub(crate) fn new(only: Vec<String>, live: bool) -> Self {
        Self { began: Instant::now(), checks: Mutex::default(), only, live, aborted: Mutex::default() }
    }

    /// Says whether a live table is shown.
    pub(crate) fn live(&self) -> bool {
        self.live
    }

    /// Says whether a check is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| name.contains(word.as_str()))
    }

    /// Notes and prints what a check says.
    pub(crate) fn note(&self, name: &str, outcome: CheckOutcome) {
        let (passed, figure) = match outcome {
            Ok(figure) => (true, figure),
            Err(figure) => (false, figure),
        };
        let check = Check { name: name.into(), passed, figure };
        print(&check, self.began.elapsed());
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).push(check);
    }

    /// Notes that the lab could not go on.
    pub(crate) fn abort(&self, why: &str) {
        *self.aborted.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.into());
    }

    /// Writes the report; success only if every wanted check ran and holds.
    pub(crate) fn finish(&self, path: &Path, took: Duration) -> ExitCode {
        let seconds = format!("{:.1} s after the build (at most 90)", took.as_secs_f64());
        if self.only.is_empty() {
            let in_time = took <= LIMIT;
            self.note("duration", if in_time { Ok(seconds) } else { Err(seconds) });
        }
        let aborted = self.aborted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        for name in CHECKS.iter().filter(|n| self.wants(n)) {
            if checks.iter().all(|c| c.name != *name) {
                let why = aborted.as_deref().unwrap_or("it did not come to it");
                let check = Check { name: (*name).into(), passed: false, figure: format!("not run: {why}") };
                print(&check, took);
                checks.push(check);
            }
        }
        let document = Document { schema: "lab/1", checks: &checks };
        let written = serde_json::to_vec_pretty(&document)
            .map_err(std::io::Error::other)
            .and_then(|bytes| std::fs::write(path, bytes));
        let failed = checks.iter().filter(|c| !c.passed).count();
        say(&format!("{} of {} checks hold; report in {}", checks.len() - failed, checks.len(), path.display()));
        if failed == 0 && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn print(check: &Check, at: Duration) {
    let word = if check.passed { "ok  " } else { "FAIL" };
    let at = at.as_secs_f64();
    say(&format!("{at:5.1} s  {word} {:<17} {}", check.name, check.figure));
}

/// Prints a line; a reader that went away is no reason to stop.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
