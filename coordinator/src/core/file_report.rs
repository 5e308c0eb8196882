//! What is known of services.toml, as the status shows it.

use std::path::PathBuf;
use std::time::Instant;

use crate::core::documents::{FileState, FileStatus};

/// What is known of services.toml.
#[derive(Debug, Clone)]
pub(crate) struct FileReport {
    path: PathBuf,
    state: FileState,
    since: Instant,
    accepted: Option<Instant>,
    reading: Reading,
    answered: u64,
}

impl FileReport {
    /// Begins before the file was looked at.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            state: FileState::Unread,
            since: Instant::now(),
            accepted: None,
            reading: Reading::default(),
            answered: 0,
        }
    }

    /// Returns the number of the latest request that this reading came after.
    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    /// Notes up to which request what is known is an answer.
    pub(crate) fn answer(&mut self, number: u64) {
        self.answered = number;
    }

    /// Says whether a good file was not taken because the store did not answer.
    pub(crate) fn is_put_off(&self) -> bool {
        self.reading.again
    }

    /// Returns it as the admin socket tells it.
    pub(crate) fn status(&self) -> FileStatus {
        FileStatus {
            path: self.path.clone(),
            state: self.state,
            age_s: self.since.elapsed().as_secs(),
            accepted_age_s: self.accepted.map(|at| at.elapsed().as_secs()),
            errors: self.reading.errors.clone(),
            rendered: self.reading.rendered.clone(),
            warnings: self.reading.warnings.clone(),
        }
    }

    /// Notes what became of the file.
    pub(crate) fn enter(&mut self, state: FileState, reading: Reading) {
        if self.state != state || self.reading.errors != reading.errors {
            self.since = Instant::now();
        }
        if state == FileState::Accepted {
            self.since = Instant::now();
            self.accepted = Some(self.since);
        }
        self.state = state;
        self.reading = reading;
    }
}

/// What a reading of the file found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    /// What is wrong with it, one line each.
    pub(crate) errors: Vec<String>,
    /// The same, drawn with the lines of the file.
    pub(crate) rendered: String,
    /// What the operator should know all the same.
    pub(crate) warnings: Vec<String>,
    /// Whether a good file was not taken because the store did not answer.
    pub(crate) again: bool,
}
