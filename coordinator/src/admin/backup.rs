//! `backup`: a copy of the store as bytes, for the verb to write where its user may.
//!
//! The copy is made in the state directory, and has no name any more when its first byte goes out: nothing is left of it,
//! whoever ends first.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{AppendHeaders, IntoResponse};
use futures_util::stream::unfold;
use mesh_proto::base::id::Revision;
use tokio::io::AsyncReadExt as _;

use crate::admin::context::AdminState;
use crate::core::documents::{BACKUP_IDENTITY, BACKUP_REVISION};
use crate::core::failure::{Rejection, not_written};
use crate::keys::identity;
use crate::registry::Registry;
use crate::store::StoreError;

/// What the copy is called for a moment; one that a crash left is overwritten.
const DRAFT: &str = "store.redb.copied";
/// How much is read at once, in bytes.
const PIECE: usize = 256 * 1024;

/// Answers with the store as it is now; the headers tell its revision, and where the key is that it does not hold.
pub(crate) async fn copy(State(state): State<AdminState>) -> Result<impl IntoResponse, Rejection> {
    let draft = state.state_dir.join(DRAFT);
    let copied = state.core.with(move |registry| copied(registry, &draft)).await;
    let (revision, file) = copied.map_err(|error| not_written(&error))?;
    let pieces = unfold(tokio::fs::File::from_std(file), |mut file| async move {
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(length) => {
                piece.truncate(length);
                Some((Ok::<_, io::Error>(Bytes::from(piece)), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    let key = identity::path(&state.state_dir).display().to_string();
    let headers = [
        (CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
        (BACKUP_REVISION, revision.to_string()),
        (BACKUP_IDENTITY, key),
    ];
    Ok((AppendHeaders(headers), Body::from_stream(pieces)))
}

/// Copies the store into a file without a name.
fn copied(registry: &Registry, draft: &Path) -> Result<(Revision, File), StoreError> {
    let failed =
        |source: io::Error| StoreError::Io { doing: "copy", path: draft.display().to_string(), source: source.into() };
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let made = registry.backup(draft).and_then(|revision| Ok((revision, File::open(draft).map_err(failed)?)));
    let removed = fs::remove_file(draft).map_err(failed);
    let made = made?;
    removed.map(|()| made)
}
