//! The epoch, noted beside the store, so that none is begun twice whatever the store goes back to.

use std::path::{Path, PathBuf};
use std::{fs, io};

use mesh_host::files;

use crate::base::state_files::EPOCH;

/// Why an epoch was not noted.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}; check its disk and permissions, and run restore again")]
pub struct NoteError {
    path: PathBuf,
    source: io::Error,
}

/// Notes an epoch in the state directory.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn note(state: &Path, epoch: u64) -> Result<(), NoteError> {
    let path = state.join(EPOCH);
    let draft = path.with_extension("draft");
    let written = fs::write(&draft, format!("{epoch}\n")).and_then(|()| fs::File::open(&draft)?.sync_all());
    let written = written.and_then(|()| fs::rename(&draft, &path)).and_then(|()| files::sync(state));
    written.map_err(|source| NoteError { path, source })
}

/// Returns the last epoch that was noted in the state directory, or 0.
pub(crate) fn noted(state: &Path) -> u64 {
    let noted = fs::read_to_string(state.join(EPOCH)).ok();
    noted.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
