//! A test binary whose facts share one set-up, which is taken down for certain at the end.
//!
//! libtest drops no statics, so that a shared topology would outlive its tests; this runner owns it. It
//! understands as much of libtest's command line as people use: words that filter, and `--list`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// A fact: its name, and what must not panic.
pub type Fact<T> = (&'static str, fn(&T));

/// What a test binary proves.
#[derive(Default)]
pub struct Run {
    words: Vec<String>,
    list: bool,
    passed: usize,
    failed: Vec<String>,
}

impl Run {
    /// Reads the command line.
    pub fn new() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Self {
            list: arguments.iter().any(|a| a == "--list"),
            words: arguments.into_iter().filter(|a| !a.starts_with('-')).collect(),
            ..Self::default()
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
    pub fn finish(self) -> ExitCode {
        if self.list {
            return ExitCode::SUCCESS;
        }
        for name in &self.failed {
            println!("failed: {name}");
        }
        let word = if self.failed.is_empty() { "ok" } else { "FAILED" };
        let (passed, failed) = (self.passed, self.failed.len());
        println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
        ExitCode::from(u8::from(failed > 0))
    }
}
