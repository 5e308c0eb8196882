//! What the disk did not take: kept in memory, shown, and tried again until it is stored.
//!
//! ```text
//!   keep ─▶ disk ── takes it ──▶ nothing waits
//!            └─ refuses ─▶ waits: the newest of each file ─▶ tried again after 1 s, 2 s, 4 s, then every 5 s ─┐
//!                            ▲────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! At most one text waits for each file of the state directory; the largest is that of the map.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::base::files::StateFile;

/// The first pause before what was refused is tried again, and how often the directory is looked at.
pub(crate) const TURN: Duration = Duration::from_secs(1);
/// The longest pause.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);

/// What is not on the disk as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unstored {
    /// By the name of the file in the state directory.
    pub files: BTreeMap<&'static str, RefusedFile>,
    /// Why the whole directory takes nothing, whether or not something waits.
    pub directory: Option<String>,
    /// How often the disk refused since the start.
    pub failures: u64,
}

/// A file that the disk did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedFile {
    /// Why, what to do, and what a restart does until then, in a sentence.
    pub sentence: String,
    /// Since when.
    pub since: Instant,
    /// How often it was tried.
    pub attempts: u64,
}

impl Unstored {
    /// Returns what the operator is told: of the directory, if that takes nothing, else of each file.
    pub fn sentences(&self) -> impl Iterator<Item = &String> {
        let each = self.files.values().filter(|_| self.directory.is_none());
        self.directory.iter().chain(each.map(|refused| &refused.sentence))
    }
}

/// What a file should be.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// It holds this, which may be secret.
    Bytes(Zeroizing<Vec<u8>>),
    /// It is not there.
    Absent,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Absent => f.write_str("absent"),
        }
    }
}

/// What waits for the disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelf {
    /// Whoever holds it writes; nobody else does meanwhile.
    waiting: Arc<Mutex<BTreeMap<StateFile, Content>>>,
    /// Where it is told. Telling never waits for a reader.
    shown: watch::Sender<Unstored>,
}

impl Shelf {
    /// Has it told elsewhere.
    pub(crate) fn telling(self, shown: watch::Sender<Unstored>) -> Self {
        Self { shown, ..self }
    }

    /// Takes the right to write, and with it what waits.
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<StateFile, Content>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether something waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.shown.borrow().files.is_empty()
    }

    /// Shows that a file was refused.
    pub(crate) fn refused(&self, file: StateFile, error: &str) {
        self.shown.send_modify(|shown| {
            shown.failures += 1;
            let sentence = format!("{error}. It is tried again until it works; before that {}", file.behind());
            let before = shown.files.get(file.name());
            let since = before.map_or_else(Instant::now, |before| before.since);
            let attempts = before.map_or(0, |before| before.attempts) + 1;
            shown.files.insert(file.name(), RefusedFile { sentence, since, attempts });
        });
    }

    /// Shows that a file is as it should be. Says whether it was refused before.
    pub(crate) fn stored(&self, file: StateFile) -> bool {
        self.shown.send_if_modified(|shown| shown.files.remove(file.name()).is_some())
    }

    /// Shows why the directory takes nothing, or that it does.
    pub(crate) fn directory(&self, sentence: Option<String>) {
        self.shown.send_if_modified(|shown| {
            let is_new = shown.directory != sentence;
            shown.directory = sentence;
            is_new
        });
    }
}
