//! What the operator asks of services.toml: what another text would change, and that the one on disk be in force.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use data_encoding::HEXLOWER;
use mesh_host::clock::unix as now;
use mesh_host::sums::sha256;
use mesh_proto::wire::{ErrorCode, MAX_REQUEST};
use mesh_proto::{plan, services};

use crate::admin::context::AdminState;
use crate::core::Core;
use crate::core::documents::{self, FileState, FileStatus};
use crate::core::failure::{Rejection, read};
use crate::registry::{Change, Refused};

/// Says what a text would change, and changes nothing.
pub(crate) async fn propose(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<Json<documents::PlanDocument>, Rejection> {
    let documents::Proposal { file, text } = read(request, MAX_REQUEST).await?;
    let members = core.world().nodes.keys().cloned().collect();
    let parsed =
        services::parse_among(&text, &file, members).map_err(|diagnostics| refused(diagnostics.render(false)))?;
    let warnings = services::Diagnostics::new(&file, &text, parsed.warnings).lines();
    let change = Change::Services { file, text, services: Arc::new(parsed.services) };
    let (old, new) = core.with(move |registry| (registry.world(), registry.preview(change, now()))).await;
    Ok(Json(documents::PlanDocument {
        schema: documents::PLAN.into(),
        revision: old.revision,
        changes: plan::differences(&old, &*new?),
        warnings,
    }))
}

/// Has the file on disk read, and answers when it is in force, or why it is not.
pub(crate) async fn reload(State(state): State<AdminState>) -> Result<Json<documents::InForceDocument>, Rejection> {
    let read = state.file.read_again().await;
    let status =
        read.ok_or_else(|| Rejection::new(ErrorCode::Stopping, "the coordinator ends; ask again when it is back"))?;
    let taken = state.core.with(|registry| registry.accepted().map(|accepted| sha256(&[accepted.text.as_bytes()])));
    let taken = taken.await.unwrap_or_default();
    match status.state {
        FileState::Accepted => Ok(Json(documents::InForceDocument {
            schema: documents::IN_FORCE.into(),
            file: status.path,
            revision: state.core.world().revision,
            digest: HEXLOWER.encode(&taken),
            warnings: status.warnings,
        })),
        FileState::Rejected | FileState::Unreadable | FileState::Unread | FileState::Superseded => {
            Err(refused(format!(
                "{}\n{} is not taken; what was in force before still is",
                status.rendered.trim_end(),
                status.path.display()
            )))
        }
    }
}

/// Refuses a file with its diagnostics, which are drawn over several lines.
fn refused(rendered: String) -> Rejection {
    Rejection::with_status(StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::Services, rendered)
}

/// Adds to what is missing in the file in force that the one on disk was not taken, if that is so.
pub(crate) fn with_cause(refused: Refused, file: &FileStatus) -> Refused {
    if refused.code != ErrorCode::Site {
        return refused;
    }
    let path = file.path.display();
    let cause = match file.state {
        FileState::Accepted | FileState::Unread | FileState::Superseded => return refused,
        FileState::Rejected => "was refused",
        FileState::Unreadable => "cannot be read",
    };
    let first = file.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
    let message = format!(
        "{}. But {path} {cause}{first}, and what it says is not in force: run `mesh-coordinator check {path}`, mend it, and ask again",
        refused.message
    );
    Refused { message, ..refused }
}
