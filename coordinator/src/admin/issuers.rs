//! The operator's side: which issuers are trusted, and keys for those that cannot be asked.

use axum::extract::{Request, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use mesh_proto::trust::jwt::MAX_JWKS;

use crate::admin::context::AdminState;
use crate::config::JwksSource;
use crate::core::documents;
use crate::core::failure::{Rejection, Segment, read};
use crate::core::pushed_keys::take_pushed;
use crate::registry::{Actor, Change};
use mesh_proto::wire::ErrorCode;

/// Returns the routes of the admin socket about issuers.
pub(crate) fn routes() -> Router<AdminState> {
    Router::new().route("/v1/trust", get(list)).route("/v1/trust/{name}", post(push))
}

async fn list(State(AdminState { issuers, .. }): State<AdminState>) -> Json<documents::IssuersDocument> {
    let trusts = issuers.standing().map(|(trust, keys)| documents::IssuerDocument {
        name: trust.name.clone(),
        issuer: trust.expected.issuer.clone(),
        audience: trust.expected.audience.clone(),
        site: trust.site.clone(),
        subjects: trust.expected.subjects.clone(),
        jwks: match &trust.jwks {
            JwksSource::Url { url, .. } => url.clone(),
            JwksSource::File(path) => path.display().to_string(),
            JwksSource::Pushed => "push".into(),
        },
        keys: keys.count(),
        keys_age_s: keys.age().map(|age| age.as_secs()),
        error: keys.error().map(str::to_owned),
    });
    Json(documents::IssuersDocument { schema: documents::TRUSTS.into(), trusts: trusts.collect() })
}

async fn push(
    State(AdminState { core, issuers, .. }): State<AdminState>,
    Extension(by): Extension<Actor>,
    Segment(name): Segment,
    request: Request,
) -> Result<Json<documents::DoneDocument>, Rejection> {
    // Escapes make a document in JSON longer than it is.
    let documents::NewKeys { jwks } = read(request, 2 * MAX_JWKS).await?;
    if !issuers.pushed().any(|known| known == name) {
        let message = format!(
            "coordinator.toml has no [[trust]] with name = \"{name}\" and jwks = \"push\"; add one and restart, or see mesh-coordinator trust list"
        );
        return Err(Rejection::new(ErrorCode::UnknownTrust, message));
    }
    core.apply(Change::TrustPush { trust: name.clone(), jwks }, by).await?;
    take_pushed(&core, &issuers).await;
    Ok(Json(documents::DoneDocument::new(format!("the keys of {name} are in force"))))
}
