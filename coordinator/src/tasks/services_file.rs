//! services.toml on disk: seen when it is saved, read when it is settled, taken whole or not at all.
//!
//! The *directory* is watched, because editors rename files and ConfigMaps swap symlinks. What lies there is
//! also compared every two seconds, for file systems that tell nobody. A file with errors changes nothing.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::services;
use mesh_proto::wire::ErrorCode;
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::base::read_file::read_file;
use crate::core::Core;
use crate::core::counters::Counters;
use crate::core::documents::FileState;
use crate::core::file_report::Reading;
use crate::core::shared_store::SharedStore;
use crate::core::status_snapshot::StatusSnapshot;
use crate::registry::{Actor, Change};

/// How long nothing may happen before the file is read.
const SETTLE: Duration = Duration::from_millis(100);
/// How long a file that is written without a pause may postpone its reading.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the file is compared although nobody said that it changed.
const POLL: Duration = Duration::from_secs(2);
/// What tells one state of a file from another without reading it.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

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

/// Follows the file for ever.
pub(crate) async fn follow(file: ServicesFile) {
    let path = &file.path;
    let touched = Arc::new(Notify::new());
    let mut watcher = None;
    let mut seen = stamp(path);
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // The directory may appear later than we do, or be replaced.
        if watcher.is_none() {
            watcher = watch_directory(path, &touched);
        }
        tokio::select! {
            () = touched.notified() => {}
            _ = poll.tick() => {
                if stamp(path) == seen && !file.shown.borrow().file.is_put_off() { continue }
            }
        }
        settle(&touched).await;
        let present = stamp(path);
        let due = file.shown.borrow().file.is_due();
        if present != seen || due {
            seen = present;
            load(&file).await;
        }
    }
}

/// Waits until nothing has happened for a moment.
async fn settle(touched: &Notify) {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        tokio::select! {
            () = touched.notified() => {}
            () = sleep(SETTLE) => return,
        }
    }
}

fn watch_directory(path: &Path, touched: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or_else(|| Path::new("."));
    let signal = Arc::clone(touched);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            signal.notify_one();
        }
    });
    let watched = watcher.and_then(|mut watcher| {
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watched
        .inspect_err(|error| tracing::debug!(%error, dir = %dir.display(), "no directory watch; comparing every 2 s"))
        .ok()
}

fn stamp(path: &Path) -> Stamp {
    let at = fs::metadata(path).ok()?;
    Some((at.dev(), at.ino(), at.len(), at.mtime(), at.mtime_nsec()))
}

/// Reads the file at the start, and puts it in force unless another coordinator's is.
pub(crate) async fn begin(file: &ServicesFile) {
    let text = read_file(&file.path).unwrap_or_default();
    if !file.shared.is_superseded(&file.core, &text).await {
        return load(file).await;
    }
    tracing::warn!(file = %file.path.display(), "not taken: another coordinator's services.toml is in force; save this one to put it in force");
    file.shown.send_modify(|shown| shown.file.enter(FileState::Superseded, Reading::default()));
}

/// Reads the file and puts it in force, or says why not.
pub(crate) async fn load(file: &ServicesFile) {
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
    let text = match read_file(path) {
        Ok(text) => text,
        Err(error) => {
            let message = format!("{}: {error}; write it, or restore it", path.display());
            let reading = Reading { rendered: message.clone(), errors: vec![message], ..Reading::default() };
            return (FileState::Unreadable, reading);
        }
    };
    let file = path.display().to_string();
    let parsed = match services::parse(&text, &file) {
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
