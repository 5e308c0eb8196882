//! services.toml on disk: seen when it is saved, read when it is settled, taken whole or not at all.
//!
//! The *directory* is watched, because editors rename files and ConfigMaps swap symlinks. What lies there is
//! also compared every two seconds, for file systems that tell nobody. A file with errors changes nothing.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::services;
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::api::{FileState, FileStatus};
use crate::hub::Hub;
use crate::registry::{Actor, Change};

/// How long nothing may happen before the file is read.
const SETTLE: Duration = Duration::from_millis(100);
/// How long a file that is written without a pause may postpone its reading.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the file is compared although nobody said that it changed.
const POLL: Duration = Duration::from_secs(2);
/// The largest services.toml that is read, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// What is known of services.toml.
#[derive(Debug, Clone)]
pub(crate) struct FileReport {
    path: PathBuf,
    state: FileState,
    since: Instant,
    accepted: Option<Instant>,
    errors: Vec<String>,
    rendered: String,
    warnings: Vec<String>,
    /// Whether a good file was not taken because the store did not answer.
    again: bool,
}

impl FileReport {
    /// Begins before the file was looked at.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            state: FileState::Unread,
            since: Instant::now(),
            accepted: None,
            errors: Vec::new(),
            rendered: String::new(),
            warnings: Vec::new(),
            again: false,
        }
    }

    /// Returns it as the admin socket tells it.
    pub(crate) fn status(&self) -> FileStatus {
        FileStatus {
            path: self.path.clone(),
            state: self.state,
            age_s: self.since.elapsed().as_secs(),
            accepted_age_s: self.accepted.map(|at| at.elapsed().as_secs()),
            errors: self.errors.clone(),
            rendered: self.rendered.clone(),
            warnings: self.warnings.clone(),
        }
    }

    fn enter(&mut self, state: FileState, outcome: Outcome) {
        let Outcome { errors, rendered, warnings, again } = outcome;
        self.again = again;
        if self.state != state || self.errors != errors {
            self.since = Instant::now();
        }
        if state == FileState::Accepted {
            self.since = Instant::now();
            self.accepted = Some(self.since);
        }
        self.state = state;
        self.errors = errors;
        self.rendered = rendered;
        self.warnings = warnings;
    }
}

#[derive(Default)]
struct Outcome {
    errors: Vec<String>,
    rendered: String,
    warnings: Vec<String>,
    again: bool,
}

/// What tells one state of a file from another without reading it.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Follows the file for ever.
pub(crate) async fn follow(hub: Arc<Hub>) {
    let path = hub.config.services.clone();
    let touched = Arc::new(Notify::new());
    let mut watcher = None;
    let mut seen = stamp(&path);
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // The directory may appear later than we do, or be replaced.
        if watcher.is_none() {
            watcher = watch(&path, &touched);
        }
        tokio::select! {
            () = touched.notified() => {}
            _ = poll.tick() => {
                if stamp(&path) == seen && !hub.file().again { continue }
            }
        }
        settle(&touched).await;
        let present = stamp(&path);
        let due = hub.file().again || hub.file().state == FileState::Unread;
        if present != seen || due {
            seen = present;
            load(&hub).await;
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

fn watch(path: &Path, touched: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
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
pub(crate) async fn begin(hub: &Arc<Hub>) {
    let text = read(&hub.config.services).unwrap_or_default();
    if !hub.is_superseded(&text).await {
        return load(hub).await;
    }
    let file = hub.config.services.display();
    tracing::warn!(%file, "not taken: another coordinator's services.toml is in force; save this one to put it in force");
    hub.file().enter(FileState::Superseded, Outcome::default());
}

/// Reads the file and puts it in force, or says why not.
pub(crate) async fn load(hub: &Arc<Hub>) {
    let path = hub.config.services.clone();
    let (state, outcome) = take(hub, &path).await;
    match state {
        FileState::Accepted => {
            hub.metrics.reload("accepted");
            for warning in &outcome.warnings {
                tracing::warn!("{warning}");
            }
        }
        FileState::Rejected | FileState::Unreadable | FileState::Unread | FileState::Superseded => {
            hub.metrics.reload("refused");
            tracing::error!("services.toml is not taken; what was in force before still is\n{}", outcome.rendered);
        }
    }
    hub.file().enter(state, outcome);
}

async fn take(hub: &Arc<Hub>, path: &Path) -> (FileState, Outcome) {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) => {
            let message = format!("{}: {error}; write it, or restore it", path.display());
            let outcome = Outcome { rendered: message.clone(), errors: vec![message], ..Outcome::default() };
            return (FileState::Unreadable, outcome);
        }
    };
    let file = path.display().to_string();
    let parsed = match services::parse(&text, &file) {
        Ok(parsed) => parsed,
        Err(diagnostics) => {
            let outcome =
                Outcome { errors: diagnostics.lines(), rendered: diagnostics.render(false), ..Outcome::default() };
            return (FileState::Rejected, outcome);
        }
    };
    let warnings = services::Diagnostics::new(&file, &text, parsed.warnings).lines();
    let taken = text.clone();
    let change = Change::Services { file: file.clone(), text, services: Arc::new(parsed.services) };
    match hub.apply(change, Actor::File).await {
        Ok(applied) => {
            hub.note_taken(&taken);
            tracing::info!(%file, revision = %applied.revision, altered = applied.altered, "services.toml is in force");
            let warnings = warnings.into_iter().chain(applied.refused).collect();
            let outcome = Outcome { warnings, ..Outcome::default() };
            (FileState::Accepted, outcome)
        }
        Err(refused) => {
            let errors = refused.message.lines().map(|line| format!("{file}: {line}"));
            let again = matches!(refused.word, "busy" | "internal");
            let outcome = Outcome { errors: errors.collect(), rendered: refused.message, warnings, again };
            (FileState::Rejected, outcome)
        }
    }
}

/// Reads a services.toml, up to a bound.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if length as u64 > MAX_FILE {
        let message = format!("the file is larger than {} MiB", MAX_FILE >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}
