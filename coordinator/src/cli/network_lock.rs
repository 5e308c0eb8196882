//! `mesh-coordinator lock`: the verbs that hold the lock's key for a moment.

use std::path::Path;

use hyper::Method;
use mesh_host::client::AskError;
use mesh_host::identity::Identity;
use mesh_host::table::table;
use mesh_proto::base::id::MeshName;
use mesh_proto::trust::network_lock::{LockChange, LockedMember};
use mesh_proto::wire::ErrorCode;

use crate::cli::args::{Cli, LockVerb};
use crate::cli::outcome::{Outcome, client, done, show as print};
use crate::cli::render::shown;
use crate::core::documents;
use crate::keys::identity;
use crate::registry::{LockStep, Signatures};

/// How often a verb signs again because a node joined meanwhile.
const ATTEMPTS: usize = 5;

/// Does what `lock` says.
pub(crate) async fn perform(cli: &Cli, words: &LockVerb) -> Result<Outcome, AskError> {
    match words {
        LockVerb::Status => print(cli, "/v1/lock", render).await,
        LockVerb::Init { key: file } => {
            let (key, fresh) = match identity::load_or_make(file) {
                Ok(found) => found,
                Err(error) => return Ok(Outcome::failed(&error.to_string())),
            };
            let step = |lock: &documents::LockDocument| LockStep::Begin {
                key: key.public(),
                signatures: signatures(&key, &lock.mesh, &lock.members),
            };
            let told = send(cli, step).await;
            if fresh && is_surely_unused(&told) {
                let _ = std::fs::remove_file(file);
            }
            told.map(|told| with_advice(told, file))
        }
        LockVerb::Replace { key: file, new } => {
            let keys = identity::load_file(file).and_then(|key| Ok((key, identity::load_or_make(new)?)));
            let (key, (next, fresh)) = match keys {
                Ok(found) => found,
                Err(error) => return Ok(Outcome::failed(&error.to_string())),
            };
            let step = |lock: &documents::LockDocument| LockStep::Change {
                change: change(&key, &lock.mesh, Some(&next)),
                signatures: signatures(&next, &lock.mesh, &lock.members),
            };
            let told = send(cli, step).await;
            if fresh && is_surely_unused(&told) {
                let _ = std::fs::remove_file(new);
            }
            told.map(|told| with_advice(told, new))
        }
        LockVerb::Disable { key: None, .. } => send(cli, |_| LockStep::Abandon).await,
        LockVerb::Disable { key: Some(file), .. } => match identity::load_file(file) {
            Ok(key) => {
                let step = |lock: &documents::LockDocument| LockStep::Change {
                    change: change(&key, &lock.mesh, None),
                    signatures: Signatures::new(),
                };
                send(cli, step).await
            }
            Err(error) => Ok(Outcome::failed(&error.to_string())),
        },
    }
}

/// Says whether the lock has certainly not become that of the key that was made for it: nobody else has that key. A
/// refusal as `internal` may be one of which the store never said whether it was written.
fn is_surely_unused(told: &Result<Outcome, AskError>) -> bool {
    match told {
        Err(AskError::Refused(body)) => body.error != ErrorCode::Internal,
        Err(AskError::NotRunning(_) | AskError::Closed(_)) => true,
        Ok(_) | Err(AskError::Ended(_) | AskError::Broken(_)) => false,
    }
}

/// Signs for what is there, and again if that changed meanwhile.
async fn send(cli: &Cli, step: impl Fn(&documents::LockDocument) -> LockStep) -> Result<Outcome, AskError> {
    let mut attempt = 1;
    loop {
        let lock: documents::LockDocument = client(cli).get("/v1/lock").await?;
        match done(cli, Method::POST, "/v1/lock", Some(&step(&lock))).await {
            Err(AskError::Refused(body)) if body.error == ErrorCode::Busy && attempt < ATTEMPTS => attempt += 1,
            told => return told,
        }
    }
}

fn signatures(key: &Identity, mesh: &MeshName, members: &[LockedMember]) -> Signatures {
    members.iter().map(|member| (member.name.clone(), key.sign(&member.message(mesh)))).collect()
}

fn change(key: &Identity, mesh: &MeshName, to: Option<&Identity>) -> LockChange {
    let (from, to) = (key.public(), to.map(Identity::public));
    let signature = key.sign(&LockChange::message(mesh, &from, to.as_ref()));
    LockChange { from, to, signature }
}

fn with_advice(mut told: Outcome, file: &Path) -> Outcome {
    told.err = format!(
        "next: move {} to a node that admits others (/var/lib/meshd/lock.key, mode 600), keep a copy offline, and delete it here: whoever has it and this coordinator can add nodes unseen\n",
        file.display()
    );
    told
}

fn render(lock: &documents::LockDocument) -> String {
    let Some(key) = lock.lock.as_ref().and_then(|lock| lock.key) else {
        return "the mesh is not locked; `mesh-coordinator lock init --key FILE` locks it\n".into();
    };
    let mut table = table(&["WAITS", "SITE", "KEY"], &[]);
    for member in &lock.waiting {
        table.add_row([member.name.to_string(), member.site.to_string(), member.subject.to_string()]);
    }
    let rows = shown(&table, lock.waiting.len(), "nobody waits for a signature");
    format!("locked by {key}, {} nodes admitted\n{rows}", lock.members.len())
}
