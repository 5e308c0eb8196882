//! The admin socket: the operator's verbs as HTTP/1.1 and JSON over a Unix socket.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use axum::extract::{Request, State};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use mesh_host::http::Stop;
use mesh_host::socket::Socket;
use mesh_proto::base::id::{NodeName, ServiceKey};
use mesh_proto::services;
use mesh_proto::trust::join_token::{JoinToken, MAX_LIST, TokenSecret};
use mesh_proto::wire::{ErrorCode, MAX_REQUEST};
use mesh_proto::world::World;

use crate::admin::context::AdminState;
use crate::admin::{backup, coordinators, export, issuers, log, network_lock, rotate_key, services_file, status};
use crate::core::coordinator_list::CoordinatorList;
use crate::core::failure::{Rejection, Segment, no_such_path, not_written, read, wrong_method};
use crate::core::{Core, documents};
use crate::registry::{Actor, Change, TokenSpec, free_names};

/// Most names in a warning.
const SHOWN: usize = 3;

/// Serves the verbs until told to stop.
pub(crate) async fn serve(socket: Socket, state: AdminState, stop: Stop) {
    let routes = routes(state);
    socket.serve(move |uid| routes.clone().layer(Extension(Actor::Operator { uid })), stop).await;
}

fn routes(state: AdminState) -> Router {
    Router::new()
        .route("/v1/status", get(async |State(state): State<AdminState>| Json(status::status(&state).await)))
        .route("/v1/nodes", get(async |State(state): State<AdminState>| Json(status::nodes(&state).await)))
        .route("/v1/services", get(async |State(state): State<AdminState>| Json(status::services(&state).await)))
        .route(
            "/v1/tokens",
            get(async |State(core): State<Arc<Core>>| Json(status::tokens(&core).await)).post(token_create),
        )
        .route("/v1/tokens/{id}", delete(token_revoke))
        .route("/v1/nodes/{name}", delete(revoke))
        .route("/v1/coordinators/{key}", delete(coordinators::forget))
        .route("/v1/plan", post(services_file::propose))
        .route("/v1/reload", post(services_file::reload))
        .route("/v1/backup", get(backup::copy).post(backup_into))
        .route("/v1/log", get(log::log))
        .route("/v1/export", get(export::export))
        .route("/v1/rotate-key", post(rotate_key::rotate))
        .route("/v1/lock", get(network_lock::show).post(network_lock::step))
        .merge(issuers::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(state)
}

async fn token_create(
    State(AdminState { core, own, shown, .. }): State<AdminState>,
    Extension(by): Extension<Actor>,
    request: Request,
) -> Result<Json<documents::TokenLine>, Rejection> {
    let wanted: documents::NewToken = read(request, MAX_REQUEST).await?;
    if own.addresses.is_empty() {
        let message = "nodes would not know where to go: set `public` in coordinator.toml to HOST:PORT and restart";
        return Err(Rejection::new(ErrorCode::Public, message));
    }
    let (mut id, mut secret) = ([0; 8], [0; 32]);
    let entropy = rand::fill(&mut id).and_then(|()| rand::fill(&mut secret));
    entropy.map_err(|_| {
        let message = "the machine gives no random numbers; try again when it has booted";
        Rejection::new(ErrorCode::Internal, message)
    })?;
    let mut told = CoordinatorList::new(&own, &core.world());
    told.addresses.truncate(MAX_LIST);
    told.pins.truncate(MAX_LIST);
    let token = JoinToken { coordinators: told.addresses, pins: told.pins, id, secret: TokenSecret(secret) };
    let spec = TokenSpec {
        id,
        secret: token.secret.clone(),
        site: wanted.site,
        name: wanted.name,
        serve: wanted.serve,
        ttl: Duration::from_secs(wanted.ttl_s),
        uses: wanted.uses,
        ephemeral: wanted.ephemeral,
    };
    let mut warnings = if spec.name.is_some() { Vec::new() } else { unbound(&core.world()) };
    warnings.extend(unknown_services(&core.world(), &spec.serve));
    let created = core.apply(Change::TokenCreate(spec), by).await;
    created.map_err(|refused| services_file::with_cause(refused, &shown.borrow().file.status()))?;
    Ok(Json(documents::TokenLine {
        schema: documents::DONE.into(),
        id: token.id_text(),
        token: token.to_line(),
        warnings,
    }))
}

/// Says what a token without a name may take.
fn unbound(world: &World) -> Vec<String> {
    let awaited = free_names::awaited(world);
    let shown: Vec<_> = awaited.iter().take(SHOWN).map(NodeName::as_str).collect();
    let Some(first) = shown.first() else { return Vec::new() };
    let more = if awaited.len() > SHOWN { " and others" } else { "" };
    vec![format!(
        "whoever holds this token chooses the node's name, also one that {} refers to ({}{more}); --name {first} makes a token for that node alone",
        world.file,
        shown.join(", "),
    )]
}

/// Says which services a token grants that the file does not define.
fn unknown_services(world: &World, serve: &[ServiceKey]) -> Option<String> {
    let known = || world.services.services.iter().map(|service| &service.key);
    let unknown: Vec<String> =
        serve.iter().filter(|&key| known().all(|known| known != key)).map(|key| format!("`{key}`")).collect();
    let first = serve.iter().find(|&key| known().all(|known| known != key))?.to_string();
    let names: Vec<String> = known().map(ToString::to_string).collect();
    let near = services::nearest_name(&first, names.iter().map(String::as_str));
    let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    let more = unknown.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let shown = unknown.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
    Some(format!(
        "{} defines no service {shown}{more}: whoever joins with this token may serve it once the file defines it{near}",
        world.file
    ))
}

async fn token_revoke(
    State(core): State<Arc<Core>>,
    Extension(by): Extension<Actor>,
    Segment(id): Segment,
) -> Result<Json<documents::DoneDocument>, Rejection> {
    core.apply(Change::TokenRevoke { id: id.clone() }, by).await?;
    Ok(Json(documents::DoneDocument::new(format!("token {id} is worthless now"))))
}

async fn revoke(
    State(core): State<Arc<Core>>,
    Extension(by): Extension<Actor>,
    Segment(name): Segment,
) -> Result<Json<documents::DoneDocument>, Rejection> {
    let node = name.parse();
    let node =
        node.map_err(|error: mesh_proto::base::id::IdError| Rejection::new(ErrorCode::Malformed, error.to_string()))?;
    let applied = core.apply(Change::Revoke { node }, by).await?;
    tracing::info!(node = %name, revision = %applied.revision, "revoked");
    let message = format!("node {name} is expelled since revision {}", applied.revision);
    Ok(Json(documents::DoneDocument::new(message)))
}

async fn backup_into(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<Json<documents::DoneDocument>, Rejection> {
    let documents::BackupDocument { file } = read(request, MAX_REQUEST).await?;
    let shown = file.display().to_string();
    let revision = core.with(move |registry| registry.backup(&file)).await.map_err(|error| not_written(&error))?;
    let message = format!(
        "the store at revision {revision} is in {shown}; it holds no key: keep identity.key of the state directory with it"
    );
    Ok(Json(documents::DoneDocument::new(message)))
}
