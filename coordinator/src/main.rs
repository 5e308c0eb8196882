//! mesh-coordinator: the daemon, and the verbs that speak to it.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use coordinator::cli::args::{Cli, Verb};
use coordinator::cli::outcome::{LOST, Outcome};
use coordinator::cli::verbs::perform;
use coordinator::config::Config;
use coordinator::daemon::{self, StartError};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            return finish(&Outcome::failed(&format!("no threads can be started: {error}; raise the process limit")));
        }
    };
    let outcome = if let Verb::Run { config } = &cli.verb {
        runtime.block_on(run(config))
    } else {
        runtime.block_on(perform(&cli))
    };
    // A change that still waits for the disk must not hold the process up.
    runtime.shutdown_background();
    finish(&outcome)
}

fn finish(outcome: &Outcome) -> ExitCode {
    // A reader that went away (`| head`) is no error of ours.
    let _ = std::io::stdout().write_all(outcome.out.as_bytes());
    let _ = std::io::stderr().write_all(outcome.err.as_bytes());
    ExitCode::from(outcome.code)
}

async fn run(path: &Path) -> Outcome {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match serve(path).await {
        Ok(()) => Outcome::default(),
        Err(error) => {
            let is_lost = error.downcast_ref().is_some_and(StartError::is_lost);
            let failed = Outcome::failed(&error.to_string());
            Outcome { code: if is_lost { LOST } else { failed.code }, ..failed }
        }
    }
}

async fn serve(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let running = daemon::start(Config::load(path)?).await?;
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
