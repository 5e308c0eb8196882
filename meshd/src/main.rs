//! `meshd`: the daemon and its command line.

use std::process::ExitCode;

use clap::Parser;
use meshd::cli::Cli;

fn main() -> ExitCode {
    meshd::commands::main(Cli::parse(), meshd::daemon::run)
}
