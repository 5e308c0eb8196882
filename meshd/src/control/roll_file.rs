//! How far the log of operations was followed, and who was admitted and expelled, kept over restarts.

use mesh_host::sums::{seal, unseal};
use mesh_proto::trust::audit_log::Roll;

use crate::base::files::ROLL;
use crate::base::state_dir::{State, StateError};

/// Returns how far the log was followed; none if it was not, or that is damaged.
pub(crate) fn read(state: &State) -> Option<Roll> {
    let bytes = state.secret(ROLL).unwrap_or_else(|error| {
        tracing::warn!(%error, "what is known of the log is not read; it begins anew with what the coordinator says");
        None
    })?;
    // One of an older version is not sealed.
    let body = if bytes.starts_with(b"{") { Some(&bytes[..]) } else { unseal(&bytes) };
    let roll = body.and_then(|body| serde_json::from_slice(body).ok());
    if roll.is_none() {
        tracing::warn!(
            "what is known of the log is damaged; it begins anew with what the coordinator says, of revocations too"
        );
    }
    roll
}

/// Stores how far the log was followed, as soon as the disk takes it.
pub(crate) fn write(state: &State, roll: &[u8]) -> Result<(), StateError> {
    state.keep(ROLL, &seal(roll))
}
