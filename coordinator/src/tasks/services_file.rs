//! services.toml on disk: taken whole or not at all. A file with errors changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_host::files::read_text;
use mesh_host::watched_file::WatchedFile;
use mesh_proto::services;
use mesh_proto::wire::ErrorCode;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::core::Core;
use crate::core::counters::Counters;
use crate::core::documents::FileState;
use crate::core::file_report::Reading;
use crate::core::shared_store::SharedStore;
use crate::core::status_snapshot::StatusSnapshot;
use crate::registry::{Actor, Change};

/// How often a file is read again that was not taken although it is good.
const AGAIN: Duration = Duration::from_secs(2);

/// The file, and where it leads.
#[derive(Clone)]
pub(crate) struct ServicesFile {
    /// The registry, and what it published.
    pub(crate) core: Arc<Core>,
    /// Where the file is.
    pub(crate) path: PathBuf,
    /// Whether another coordinator's file is in force.
    pub(crate) shared: Arc<SharedStore>,
    /// What the status shows.
    pub(crate) shown: watch::Sender<StatusSnapshot>,
    /// Counters.
    pub(crate) counters: Counters,
}

/// Follows the file for ever, and reads it when it is asked for: one after another, so that no older text comes last.
pub(crate) async fn watch_services_file(file: ServicesFile, mut numbers: watch::Receiver<u64>) {
    let mut watched = WatchedFile::new(&file.path);
    loop {
        tokio::select! {
            () = watched.changed() => {}
            () = sleep(AGAIN), if file.shown.borrow().file.is_put_off() => {}
            Ok(()) = numbers.changed() => watched.look(),
        }
        let number = *numbers.borrow_and_update();
        load(&file).await;
        file.shown.send_modify(|shown| shown.file.answer(number));
    }
}

/// Reads the file at the start, and puts it in force unless another coordinator's is.
pub(crate) async fn begin(file: &ServicesFile) {
    let text = read_text(&file.path).unwrap_or_default();
    if !file.shared.is_superseded(&file.core, &text).await {
        return load(file).await;
    }
    tracing::warn!(file = %file.path.display(), "not taken: another coordinator's services.toml is in force; save this one to put it in force");
    file.shown.send_modify(|shown| shown.file.enter(FileState::Superseded, Reading::default()));
}

/// Reads the file and puts it in force, or says why not.
async fn load(file: &ServicesFile) {
    let (state, reading) = take(file).await;
    match state {
        FileState::Accepted => {
            file.counters.reload("accepted");
            for warning in &reading.warnings {
                tracing::warn!("{warning}");
            }
        }
        FileState::Rejected | FileState::Unreadable | FileState::Unread | FileState::Superseded => {
            file.counters.reload("refused");
            tracing::error!("services.toml is not taken; what was in force before still is\n{}", reading.rendered);
        }
    }
    file.shown.send_modify(|shown| shown.file.enter(state, reading));
}

async fn take(ServicesFile { core, path, shared, .. }: &ServicesFile) -> (FileState, Reading) {
    let text = match read_text(path) {
        Ok(text) => text,
        Err(error) => {
            let message = format!("{}: {error}; write it, or restore it", path.display());
            let reading = Reading { rendered: message.clone(), errors: vec![message], ..Reading::default() };
            return (FileState::Unreadable, reading);
        }
    };
    let file = path.display().to_string();
    // What an earlier version took stays in force until it is altered.
    let own = text.clone();
    let is_in_force = core.with(move |registry| registry.accepted().is_some_and(|known| known.text == own)).await;
    let parsed = match is_in_force {
        true => services::parse_accepted(&text, &file),
        false => services::parse_among(&text, &file, core.world().nodes.keys().cloned().collect()),
    };
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(diagnostics) => {
            let reading =
                Reading { errors: diagnostics.lines(), rendered: diagnostics.render(false), ..Reading::default() };
            return (FileState::Rejected, reading);
        }
    };
    let warnings = services::Diagnostics::new(&file, &text, parsed.warnings).lines();
    let taken = text.clone();
    let change = Change::Services { file: file.clone(), text, services: Arc::new(parsed.services) };
    match core.apply(change, Actor::File).await {
        Ok(applied) => {
            shared.note_taken(&taken);
            tracing::info!(%file, revision = %applied.revision, altered = applied.altered, "services.toml is in force");
            for idle in &core.world().services.idle {
                tracing::warn!("{idle}");
            }
            let warnings = warnings.into_iter().chain(applied.refused).collect();
            let reading = Reading { warnings, ..Reading::default() };
            (FileState::Accepted, reading)
        }
        Err(refused) => {
            let errors = refused.message.lines().map(|line| format!("{file}: {line}"));
            let again = matches!(refused.code, ErrorCode::Busy | ErrorCode::Internal | ErrorCode::TooLarge);
            let reading = Reading { errors: errors.collect(), rendered: refused.message, warnings, again };
            (FileState::Rejected, reading)
        }
    }
}
