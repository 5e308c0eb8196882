//! mesh-coordinator: the daemon, and the verbs that speak to it.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use coordinator::cli::args::{Cli, Verb};
use coordinator::cli::outcome::{LOST, Outcome};
use coordinator::cli::verbs::perform;
use coordinator::config::Config;
use coordinator::daemon::{self, StartError};
use mesh_host::identity::hide_memory;
use mesh_host::log::{LostLines, ProcessLog};
use mesh_host::output::{print, printed};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => return finish(&helped(&said), None),
    };
    if let Err(error) = hide_memory() {
        return finish(&Outcome::failed(&format!("the memory of this process cannot be hidden: {error}")), None);
    }
    let Verb::Run { config } = &cli.verb else {
        return finish(&with_threads(perform(&cli)), None);
    };
    match ProcessLog::start("RUST_LOG", "info") {
        Ok(log) => finish(&with_threads(run(config, log.lost())), Some(&log)),
        Err(error) => finish(&no_threads(&error), None),
    }
}

/// Prints what clap says: help, or what is wrong with the command line.
fn helped(said: &clap::Error) -> Outcome {
    let written = said.print().and_then(|()| io::stdout().flush());
    match printed(written) {
        Err(error) if !said.use_stderr() => Outcome::failed(&error.to_string()),
        Ok(()) | Err(_) => Outcome { code: u8::try_from(said.exit_code()).unwrap_or(2), ..Outcome::default() },
    }
}

fn with_threads(work: impl Future<Output = Outcome>) -> Outcome {
    match Runtime::new() {
        Ok(runtime) => {
            let outcome = runtime.block_on(work);
            // A change that still waits for the disk must not hold the process up.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => no_threads(&error),
    }
}

fn no_threads(error: &io::Error) -> Outcome {
    Outcome::failed(&format!("no threads can be started: {error}; raise the process limit"))
}

/// Prints an outcome; what a daemon dies of goes to its log.
fn finish(outcome: &Outcome, log: Option<&ProcessLog>) -> ExitCode {
    let say = |text: &str| match log {
        Some(log) if !text.is_empty() => log.last_words(text.trim_end()),
        // The exit status says it, too.
        Some(_) | None => drop(io::stderr().write_all(text.as_bytes())),
    };
    let code = match print(&outcome.out) {
        Ok(()) => outcome.code,
        Err(error) => {
            let unprinted = Outcome::failed(&error.to_string());
            say(&unprinted.err);
            unprinted.code
        }
    };
    say(&outcome.err);
    ExitCode::from(code)
}

async fn run(path: &Path, lost_lines: LostLines) -> Outcome {
    match serve(path, lost_lines).await {
        Ok(()) => Outcome::default(),
        Err(error) => {
            let is_lost = error.downcast_ref().is_some_and(StartError::is_lost);
            let failed = Outcome::failed(&error.to_string());
            Outcome { code: if is_lost { LOST } else { failed.code }, ..failed }
        }
    }
}

async fn serve(path: &Path, lost_lines: LostLines) -> Result<(), Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let running = daemon::start(Config::load(path)?, lost_lines).await?;
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => running.reload().await,
            failure = running.failed() => return Err(failure.into()),
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    running.stop().await;
    Ok(())
}
