//! `meshd check --fix`: runs the printed commands that touch nothing but what is of the mesh, each after asking.

use std::io::{self, IsTerminal, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mesh_proto::ops::status as doc;
use tokio::time::sleep;

use crate::cli::error::CommandError;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of what a failed command says is shown, in bytes.
const SAID: u64 = 500;

/// Who says that a command may be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// Whoever sits at the terminal, for each.
    Asked,
    /// `--yes`, for all.
    Given,
}

impl Consent {
    /// What the command line says.
    pub(crate) fn of(yes: bool) -> Self {
        if yes { Self::Given } else { Self::Asked }
    }

    /// Refuses to ask where nobody can answer.
    pub(crate) fn check(self) -> Result<(), CommandError> {
        match self {
            Self::Asked if !io::stdin().is_terminal() => Err(CommandError::Unasked),
            Self::Asked | Self::Given => Ok(()),
        }
    }

    /// Asks whoever sits there; who sees nothing agrees to nothing.
    fn to(self, problem: &doc::Problem) -> bool {
        let question = format!("{}: run `{}`? [y/N] ", problem.cause, problem.command);
        match self {
            Self::Given => true,
            Self::Asked if write!(io::stderr(), "{question}").is_err() => false,
            Self::Asked => {
                let mut word = String::new();
                let read = io::stdin().read_line(&mut word);
                read.is_ok() && ["y", "yes"].contains(&word.trim())
            }
        }
    }
}

/// Runs those of the commands that are safe and agreed to, each once; returns what was run.
pub(crate) async fn mend(problems: &[doc::Problem], consent: Consent) -> Vec<doc::Fixed> {
    let mut fixed: Vec<doc::Fixed> = Vec::new();
    for problem in problems.iter().filter(|problem| problem.safe && !problem.command.is_empty()) {
        let known = fixed.iter().any(|fixed| fixed.command == problem.command);
        if known || !consent.to(problem) {
            continue;
        }
        let error = run(&problem.command).await.err();
        fixed.push(doc::Fixed { id: problem.id.clone(), command: problem.command.clone(), error });
    }
    fixed
}

/// Runs a command as a shell would that finds this program first; says why it failed.
async fn run(command: &str) -> Result<(), String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(path) = path() {
        shell.env("PATH", path);
    }
    let mut child = shell.spawn().map_err(|error| format!("no shell: {error}"))?;
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => sleep(Duration::from_millis(20)).await,
            Ok(None) => {
                // What cannot be killed has ended.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(format!("it did not end within {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What it said before is shown.
        let _ = stderr.take(SAID).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    Err(format!("{status}: {}", said.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// The search path, with the folder of this program before all others.
fn path() -> Option<std::ffi::OsString> {
    let own = std::env::current_exe().ok();
    let own = own.as_deref().and_then(Path::parent).map(PathBuf::from);
    let before = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::join_paths(own.into_iter().chain(std::env::split_paths(&before))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(command: &str, safe: bool) -> doc::Problem {
        doc::Problem { id: "x".into(), is_error: false, cause: "it".into(), command: command.into(), safe }
    }

    #[tokio::test]
    async fn only_what_is_safe_is_run_once_and_what_fails_says_why() {
        let problems = [problem("true", true), problem("true", true), problem("exit 3", false), problem("", true)];
        let fixed = mend(&problems, Consent::Given).await;
        assert_eq!(fixed.len(), 1, "{fixed:?}");
        assert_eq!(fixed[0].error, None);
        let failed = mend(&[problem("echo no >&2; exit 3", true)], Consent::Given).await;
        assert_eq!(failed[0].error.as_deref(), Some("exit status: 3: no"));
    }
}
