//! What a verb leads to: what it prints, and its exit status.

use hyper::Method;
use mesh_host::client::{AskError, Client};
use serde::Serialize;

use crate::base::words::SOCKET;
use crate::cli::args::{Cli, Output};
use crate::core::documents;

/// The exit status of a verb that failed.
pub const FAILED: u8 = 1;
/// The exit status of `status` when services.toml is not in force as it lies on disk.
pub const DEGRADED: u8 = 3;
/// The exit status of a verb that found no coordinator.
pub const NOT_RUNNING: u8 = 4;
/// The exit status of `run` when the store lost the mesh that was kept in it. systemd does not start it again.
pub const LOST: u8 = 78;

/// What a verb leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What goes to standard output.
    pub out: String,
    /// What goes to standard error.
    pub err: String,
    /// The exit status.
    pub code: u8,
}

impl Outcome {
    /// Prints to standard output.
    pub(crate) fn ok(out: impl Into<String>) -> Self {
        Self { out: out.into(), ..Self::default() }
    }

    /// Fails with a message, which ends with what to do.
    pub fn failed(message: &str) -> Self {
        Self { err: format!("error: {message}\n"), code: FAILED, ..Self::default() }
    }
}

impl From<AskError> for Outcome {
    fn from(error: AskError) -> Self {
        let code = match error {
            AskError::NotRunning(_) => NOT_RUNNING,
            AskError::Closed(_) | AskError::Ended(_) | AskError::Refused(_) | AskError::Broken(_) => FAILED,
        };
        Self { code, ..Self::failed(&error.to_string()) }
    }
}

/// Returns whom the verbs ask.
pub(crate) fn client(cli: &Cli) -> Client {
    Client::new(&SOCKET, &cli.socket)
}

/// Asks for a document and prints it.
pub(crate) async fn show<A: serde::de::DeserializeOwned + Serialize>(
    cli: &Cli,
    path: &str,
    table: fn(&A) -> String,
) -> Result<Outcome, AskError> {
    let answer: A = client(cli).get(path).await?;
    Ok(Outcome::ok(printed(cli.output, &answer, table)))
}

/// Writes a document in the form that was asked for.
pub(crate) fn printed<A: Serialize>(output: Output, answer: &A, table: fn(&A) -> String) -> String {
    match output {
        Output::Table => table(answer),
        Output::Json => json(answer),
    }
}

/// Writes a document for programs.
pub(crate) fn json(answer: &impl Serialize) -> String {
    // Documents of `api` are maps with string keys: they always serialise.
    serde_json::to_string_pretty(answer).unwrap_or_default() + "\n"
}

/// Asks that something be done, and says what was.
pub(crate) async fn done(
    cli: &Cli,
    method: Method,
    path: &str,
    body: Option<&(impl Serialize + Sync)>,
) -> Result<Outcome, AskError> {
    let answer: documents::DoneDocument = client(cli).ask(method, path, body).await?;
    let table = |done: &documents::DoneDocument| format!("{}\n", done.message);
    Ok(Outcome::ok(printed(cli.output, &answer, table)))
}
