//! `meshd`: the daemon and its command line.

use std::process::ExitCode;

use clap::Parser;
use meshd::cli::Cli;

fn main() -> ExitCode {
    let _cli = Cli::parse();
    ExitCode::FAILURE
}
