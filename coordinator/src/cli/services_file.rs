//! The verbs that alter services.toml, or say what would come of it. Each returns when what it says holds.

use std::io;
use std::path::Path;

use data_encoding::HEXLOWER;
use hyper::Method;
use mesh_host::client::{AskError, Client};
use mesh_host::files::{read_text, replace_alike};
use mesh_host::sums::sha256;
use mesh_proto::wire::ErrorCode;

use crate::base::words::SOCKET;
use crate::cli::args::Cli;
use crate::cli::outcome::{FAILED, Outcome, client, printed};
use crate::cli::render;
use crate::config::Config;
use crate::core::documents::{InForceDocument, PlanDocument, Proposal, StatusDocument};

/// Says what a file would change, and changes nothing.
pub(crate) async fn plan(cli: &Cli, file: &Path) -> Result<Outcome, AskError> {
    match read_text(file) {
        Ok(text) => match propose(cli, file, text).await {
            Ok(plan) => Ok(Outcome::ok(printed(cli.output, &plan, render::plan))),
            Err(error) => refused(error),
        },
        Err(error) => Ok(unreadable(file, &error)),
    }
}

/// Puts a file in force in the place of the coordinator's. What is refused leaves that as it is.
pub(crate) async fn apply(cli: &Cli, file: &Path) -> Result<Outcome, AskError> {
    let text = match read_text(file) {
        Ok(text) => text,
        Err(error) => return Ok(unreadable(file, &error)),
    };
    if let Err(error) = propose(cli, file, text.clone()).await {
        return refused(error);
    }
    let place = client(cli).get::<StatusDocument>("/v1/status").await?.services.path;
    let before = match std::fs::read(&place) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Ok(unsaved(&place, &error)),
    };
    if before.as_deref() != Some(text.as_bytes())
        && let Err(error) = replace_alike(&place, text.as_bytes())
    {
        return Ok(unsaved(&place, &error));
    }
    let why = match ask_to_read(&client(cli)).await {
        Ok(held) if held.digest == HEXLOWER.encode(&sha256(&[text.as_bytes()])) => return Ok(in_force(cli, &held)),
        Ok(_) => Outcome::failed(&format!(
            "another text is in force than {}: somebody altered {} meanwhile; look at it, and run this again",
            file.display(),
            place.display()
        )),
        Err(error) => match refused(error) {
            Ok(why) => why,
            // Nobody said what came of it.
            Err(error) => {
                return Ok(Outcome::failed(&format!(
                    "{error}. {} holds the new text all the same; `mesh-coordinator status` says whether it is in force",
                    place.display()
                )));
            }
        },
    };
    // What lies there now may be somebody else's.
    if std::fs::read(&place).is_ok_and(|found| found == text.as_bytes()) {
        let restored = match before {
            Some(before) => replace_alike(&place, &before),
            None => std::fs::remove_file(&place),
        };
        if let Err(error) = restored {
            let more = format!("error: {} is not as it was: {error}; restore it\n", place.display());
            return Ok(Outcome { err: why.err + &more, ..why });
        }
    }
    Ok(why)
}

/// Has the running coordinator read its file, and says what came of it.
pub(crate) async fn reload(cli: &Cli, config: Option<&Path>) -> Result<Outcome, AskError> {
    let client = match config.map(Config::load) {
        None => client(cli),
        Some(Ok(config)) => Client::new(&SOCKET, config.admin_socket),
        Some(Err(error)) => return Ok(Outcome::failed(&error.to_string())),
    };
    match ask_to_read(&client).await {
        Ok(held) => Ok(in_force(cli, &held)),
        Err(error) => refused(error),
    }
}

async fn propose(cli: &Cli, file: &Path, text: String) -> Result<PlanDocument, AskError> {
    let proposal = Proposal { file: file.display().to_string(), text };
    client(cli).ask(Method::POST, "/v1/plan", Some(&proposal)).await
}

async fn ask_to_read(client: &Client) -> Result<InForceDocument, AskError> {
    client.post("/v1/reload").await
}

fn in_force(cli: &Cli, held: &InForceDocument) -> Outcome {
    let table = |held: &InForceDocument| format!("{} is in force at revision {}\n", held.file.display(), held.revision);
    let err = held.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    Outcome { out: printed(cli.output, held, table), err, ..Outcome::default() }
}

/// Shows the diagnostics of a file, which are drawn over several lines and are no sentence of ours.
fn refused(error: AskError) -> Result<Outcome, AskError> {
    match error {
        AskError::Refused(body) if body.error == ErrorCode::Services => {
            Ok(Outcome { err: format!("{}\n", body.message), code: FAILED, ..Outcome::default() })
        }
        error @ (AskError::NotRunning(_)
        | AskError::Closed(_)
        | AskError::Ended(_)
        | AskError::Broken(_)
        | AskError::Refused(_)) => Err(error),
    }
}

/// Says that the file of the operator cannot be read.
pub(crate) fn unreadable(file: &Path, error: &io::Error) -> Outcome {
    let message = format!("cannot read {}: {error}; name a services.toml", file.display());
    Outcome::failed(&message)
}

fn unsaved(place: &Path, error: &io::Error) -> Outcome {
    let message = format!(
        "cannot replace {}: {error}; run this as its owner, or alter that file where it comes from. Nothing is altered",
        place.display()
    );
    Outcome::failed(&message)
}
