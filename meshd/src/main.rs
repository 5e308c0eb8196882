//! `meshd`: the daemon and its command line.

use std::process::ExitCode;

use clap::Parser;
use meshd::cli::args::Cli;

fn main() -> ExitCode {
    meshd::cli::verbs::main(Cli::parse(), meshd::daemon::run)
}
