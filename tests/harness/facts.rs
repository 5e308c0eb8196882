//! A test binary whose facts share one set-up, which is taken down for certain at the end.
//!
//! libtest drops no statics, so that a shared topology would outlive its tests; this runner owns it. It
//! understands as much of libtest's command line as people use: words that filter, and `--list`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::daemon::Binaries;
use crate::privilege;
use crate::skip::{leave_out, skip_facts};

/// A fact: its name, and what must not panic.
pub type Fact<T> = (&'static str, fn(&T));

/// Proves what a test binary has to prove with the real daemons in namespaces, and returns its exit status.
///
/// Where that needs a privilege that is not there, or something else does (`Run::needs`), the facts are counted and
/// reported as skipped.
///
/// # Panics
/// If the daemons do not build; with `MESH_STRICT=1` in the environment, if a fact is skipped.
pub fn in_namespaces(prove: impl FnOnce(&mut FactsRun, &Binaries)) -> ExitCode {
    as_root(|run| {
        let idle = run.list || run.lacking.is_some();
        let binaries = if idle { Ok(Binaries::of(PathBuf::new())) } else { Binaries::build() };
        prove(run, &binaries.expect("the daemons build"));
    })
}

/// Like `in_namespaces`, for what builds no daemons.
///
/// # Panics
/// With `MESH_STRICT=1` in the environment, if a fact is skipped.
pub fn as_root(prove: impl FnOnce(&mut FactsRun)) -> ExitCode {
    let mut run = FactsRun::new();
    run.needs(privilege::is_root(), privilege::HOW);
    prove(&mut run);
    run.finish()
}

/// Why facts are skipped, and what to do.
enum Lacking {
    /// The machine lacks something.
    Machine(String),
    /// Nobody asked for them.
    Asked(String),
}

/// What a test binary proves.
#[derive(Default)]
pub struct FactsRun {
    words: Vec<String>,
    list: bool,
    lacking: Option<Lacking>,
    passed: usize,
    skipped: usize,
    failed: Vec<String>,
}

impl FactsRun {
    /// Reads the command line.
    fn new() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Self {
            list: arguments.iter().any(|a| a == "--list"),
            words: arguments.into_iter().filter(|a| !a.starts_with('-')).collect(),
            ..Self::default()
        }
    }

    /// Lets all scenes that follow be skipped if something is not there; `how` says what to do. The first that is
    /// missing counts.
    pub fn needs(&mut self, is_there: bool, how: &str) {
        if !is_there && self.lacking.is_none() {
            self.lacking = Some(Lacking::Machine(how.to_owned()));
        }
    }

    /// Lets all scenes that follow be left out, even under `MESH_STRICT=1`, unless they were asked for; `how` says how.
    pub fn asks_for(&mut self, is_asked: bool, how: &str) {
        if !is_asked && self.lacking.is_none() {
            self.lacking = Some(Lacking::Asked(how.to_owned()));
        }
    }

    /// Proves facts on one set-up, which is made only if one of them is wanted. Names are `scene::fact`.
    #[expect(clippy::print_stdout, reason = "what a test binary prints")]
    pub fn scene<T>(&mut self, scene: &str, set_up: impl FnOnce() -> std::io::Result<T>, facts: &[Fact<T>]) {
        let name = |fact: &str| format!("{scene}::{fact}");
        let wanted = |name: &str| self.words.is_empty() || self.words.iter().any(|w| name.contains(w.as_str()));
        let wanted: Vec<_> = facts.iter().filter(|f| wanted(&name(f.0))).collect();
        if self.list {
            wanted.iter().for_each(|f| println!("{}: test", name(f.0)));
            return;
        }
        if wanted.is_empty() {
            return;
        }
        if self.lacking.is_some() {
            self.skipped += wanted.len();
            return;
        }
        let began = Instant::now();
        let made = match set_up() {
            Ok(made) => made,
            Err(e) => {
                println!("test {scene} ... FAILED to set up: {e}");
                self.failed.extend(wanted.iter().map(|f| name(f.0)));
                return;
            }
        };
        println!("scene {scene} set up in {:.1} s", began.elapsed().as_secs_f64());
        for (fact, prove) in wanted {
            let began = Instant::now();
            let held = catch_unwind(AssertUnwindSafe(|| prove(&made))).is_ok();
            let word = if held { "ok" } else { "FAILED" };
            println!("test {} ... {word} ({:.1} s)", name(fact), began.elapsed().as_secs_f64());
            if held {
                self.passed += 1;
            } else {
                self.failed.push(name(fact));
            }
        }
    }

    /// Prints the sum and returns the exit status.
    #[expect(clippy::print_stdout, reason = "what a test binary prints")]
    fn finish(self) -> ExitCode {
        if self.list {
            return ExitCode::SUCCESS;
        }
        for name in &self.failed {
            println!("failed: {name}");
        }
        let word = if self.failed.is_empty() { "ok" } else { "FAILED" };
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped);
        println!("\ntest result: {word}. {passed} passed; {failed} failed; {skipped} skipped");
        match self.lacking {
            Some(Lacking::Machine(how)) if skipped > 0 => skip_facts(skipped, passed + failed + skipped, &how),
            Some(Lacking::Asked(how)) if skipped > 0 => leave_out(skipped, &how),
            Some(_) | None => {}
        }
        ExitCode::from(u8::from(failed > 0))
    }
}
