//! The marker: a file beside the store which says that a mesh was kept here. It is written after the first commit, so
//! that a store that is empty or gone is not taken for a new one.

use std::path::Path;

use mesh_host::files;

use crate::base::state_files::FOUNDED;

/// What the file says to who opens it.
const TEXT: &str = "A mesh is kept here. If its store is lost, mesh-coordinator run does not begin another one.\n";

/// Writes the marker into the state directory unless it is there, and says whether it is there now.
pub(crate) fn found(state: &Path) -> bool {
    let path = state.join(FOUNDED);
    let written = files::create(&path, TEXT.as_bytes(), 0o600).and_then(|_| files::sync(state));
    if let Err(error) = &written {
        tracing::warn!(%error, path = %path.display(), "a lost store would be taken for a new one; trying again at the next change");
    }
    written.is_ok()
}
