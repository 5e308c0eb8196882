//! `meshd`: the daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshd::cli::verbs::main(meshd::daemon::run)
}
