//! What systems are started with: programs, their command lines, and interfaces with an address.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mesh_tests::daemon::{self, Process, wait_until};
use mesh_tests::netns::Namespace;

use crate::programs::Programs;

/// How long a system may take to be there.
pub(crate) const STARTING: Duration = Duration::from_secs(10);

/// Returns the path of a program.
pub(crate) fn program(programs: &Programs, name: &str) -> io::Result<PathBuf> {
    programs.path(name).ok_or_else(|| io::Error::other(format!("there is no {name}")))
}

/// Makes a command line.
pub(crate) fn command(program: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words);
    command
}

/// Runs `ip` or another tool inside a namespace to its end.
pub(crate) fn tool(namespace: &Namespace, program: &Path, words: &[&str]) -> io::Result<String> {
    let output = daemon::run(namespace, command(program, words))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{} {}: {said}", program.display(), words.join(" "))))
}

/// Waits for an interface that a process makes, gives it an address, and sets it up with an MTU.
pub(crate) fn dress(namespace: &Namespace, interface: &str, address: &str, process: &Process) -> io::Result<()> {
    if !wait_until(STARTING, || namespace.index(interface).is_ok()) {
        return Err(io::Error::other(format!("{interface} does not appear: {}", process.tail(5))));
    }
    let ip = Path::new("ip");
    tool(namespace, ip, &["address", "add", address, "dev", interface])?;
    tool(namespace, ip, &["link", "set", interface, "up", "mtu", "1420"]).map(|_| ())
}
