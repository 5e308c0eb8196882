//! What a request on the admin socket finds.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::FromRef;
use mesh_host::log::LostLines;
use tokio::sync::watch;

use crate::channel::peer::ConnectionLimits;
use crate::core::Core;
use crate::core::coordinator_list::OwnEntry;
use crate::core::file_requests::FileRequests;
use crate::core::shared_store::SharedStore;
use crate::core::status_snapshot::StatusSnapshot;
use crate::oidc::issuers::Issuers;

/// What every request of the operator finds; most want the core alone.
#[derive(Clone)]
pub(crate) struct AdminState {
    /// The registry, and what it published.
    pub(crate) core: Arc<Core>,
    /// Whether the store answers, and who else uses it.
    pub(crate) shared: Arc<SharedStore>,
    /// The issuers whose word on a machine is taken.
    pub(crate) issuers: Arc<Issuers>,
    /// This coordinator, as nodes are told of it.
    pub(crate) own: Arc<OwnEntry>,
    /// Where the identity key is.
    pub(crate) state_dir: PathBuf,
    /// Who has a connection.
    pub(crate) doors: Arc<ConnectionLimits>,
    /// Lines that the log lost.
    pub(crate) lost_lines: LostLines,
    /// Where services.toml is asked for.
    pub(crate) file: FileRequests,
    /// What only the status shows.
    pub(crate) shown: watch::Receiver<StatusSnapshot>,
}

impl FromRef<AdminState> for Arc<Core> {
    fn from_ref(state: &AdminState) -> Self {
        Self::clone(&state.core)
    }
}
