//! The admin socket: the operator's verbs as HTTP/1.1 and JSON over a Unix socket.
//!
//! Who may speak is decided by the kernel's word on the peer (`SO_PEERCRED`): root, and the coordinator's own
//! user. The file's mode says the same.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mesh_proto::base::id::NodeName;
use mesh_proto::plan;
use mesh_proto::services;
use mesh_proto::trust::join_token::{JoinToken, MAX_LIST, TokenSecret};
use mesh_proto::wire::{ErrorCode, MAX_REQUEST};
use mesh_proto::world::World;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::admin::context::AdminState;
use crate::admin::{coordinators, export, issuers, log, network_lock, rotate_key, status};
use crate::base::clock::now;
use crate::base::stop::{Stop, stopped};
use crate::core::Core;
use crate::core::coordinator_list::CoordinatorList;
use crate::core::documents;
use crate::core::failure::{Failure, Segment, no_such_path, not_written, read, wrong_method};
use crate::registry::{Actor, Change, TokenSpec, free_names};

/// Most connections at the same time.
const MAX_CONNECTIONS: usize = 64;
/// Most names in a warning.
const SHOWN: usize = 3;
/// How long a client may take to send a request's headers.
const HEADERS: Duration = Duration::from_secs(10);

/// Says why the socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("{0} answers already: a mesh-coordinator is running; stop it first, or set another `admin_socket`")]
    Alive(PathBuf),
    /// Something else lies there.
    #[error("{0} exists and is not a socket; move it away, or set another `admin_socket`")]
    Occupied(PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {source}; check `admin_socket` in coordinator.toml")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Binds the socket, replacing one that nobody answers on.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let at = |source| SocketError::Io { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(at)?;
    }
    match fs::symlink_metadata(path) {
        Err(_) => {}
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::Occupied(path.to_owned())),
        Ok(_) if StdUnixStream::connect(path).is_ok() => return Err(SocketError::Alive(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(at)?,
    }
    let listener = UnixListener::bind(path).map_err(at)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(at)?;
    Ok(listener)
}

/// Serves the verbs until told to stop.
pub(crate) async fn serve(listener: UnixListener, state: AdminState, mut stop: Stop) {
    let routes = routes(state);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((stream, _)) => match operator(&stream) {
                Some(by) => {
                    connections.spawn(speak(stream, routes.clone().layer(Extension(by)), stop.clone()));
                }
                None => tracing::warn!("a user who is neither root nor ours tried the admin socket"),
            },
            Err(error) => {
                tracing::warn!(%error, "no admin connection can be taken; trying again");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Returns who speaks, if that user may.
fn operator(stream: &UnixStream) -> Option<Actor> {
    let own = rustix::process::geteuid().as_raw();
    let uid = stream.peer_cred().ok()?.uid();
    (uid == 0 || uid == own).then_some(Actor::Operator { uid })
}

async fn speak(stream: UnixStream, routes: Router, mut stop: Stop) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS);
    let service = TowerToHyperService::new(routes);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection ended");
    }
}

fn routes(state: AdminState) -> Router {
    Router::new()
        .route("/v1/status", get(async |State(state): State<AdminState>| Json(status::status(&state).await)))
        .route("/v1/nodes", get(async |State(core): State<Arc<Core>>| Json(status::nodes(&core).await)))
        .route("/v1/services", get(async |State(core): State<Arc<Core>>| Json(status::services(&core.world()))))
        .route(
            "/v1/tokens",
            get(async |State(core): State<Arc<Core>>| Json(status::tokens(&core).await)).post(token_create),
        )
        .route("/v1/tokens/{id}", delete(token_revoke))
        .route("/v1/nodes/{name}", delete(revoke))
        .route("/v1/coordinators/{key}", delete(coordinators::forget))
        .route("/v1/plan", post(propose))
        .route("/v1/backup", post(backup))
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
    State(AdminState { core, own, .. }): State<AdminState>,
    Extension(by): Extension<Actor>,
    request: Request,
) -> Result<Json<documents::TokenLine>, Failure> {
    let wanted: documents::NewToken = read(request, MAX_REQUEST).await?;
    if own.addresses.is_empty() {
        let message = "nodes would not know where to go: set `public` in coordinator.toml to HOST:PORT and restart";
        return Err(Failure::new(StatusCode::CONFLICT, ErrorCode::Public, message));
    }
    let (mut id, mut secret) = ([0; 8], [0; 32]);
    let entropy = rand::fill(&mut id).and_then(|()| rand::fill(&mut secret));
    entropy.map_err(|_| {
        let message = "the machine gives no random numbers; try again when it has booted";
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal, message)
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
    let warnings = if spec.name.is_some() { Vec::new() } else { unbound(&core.world()) };
    core.apply(Change::TokenCreate(spec), by).await?;
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
    let Some(first) = shown.first() else {
        return Vec::new();
    };
    let more = if awaited.len() > SHOWN { " and others" } else { "" };
    vec![format!(
        "whoever holds this token chooses the node's name, also one that {} refers to ({}{more}); --name {first} makes a token for that node alone",
        world.file,
        shown.join(", "),
    )]
}

async fn token_revoke(
    State(core): State<Arc<Core>>,
    Extension(by): Extension<Actor>,
    Segment(id): Segment,
) -> Result<Json<documents::Done>, Failure> {
    core.apply(Change::TokenRevoke { id: id.clone() }, by).await?;
    Ok(Json(documents::Done::new(format!("token {id} is worthless now"))))
}

async fn revoke(
    State(core): State<Arc<Core>>,
    Extension(by): Extension<Actor>,
    Segment(name): Segment,
) -> Result<Json<documents::Done>, Failure> {
    let node = name.parse();
    let node = node.map_err(|error: mesh_proto::base::id::IdError| {
        Failure::new(StatusCode::BAD_REQUEST, ErrorCode::Malformed, error.to_string())
    })?;
    let applied = core.apply(Change::Revoke { node }, by).await?;
    tracing::info!(node = %name, revision = %applied.revision, "revoked");
    let message = format!("node {name} is expelled since revision {}", applied.revision);
    Ok(Json(documents::Done::new(message)))
}

async fn propose(State(core): State<Arc<Core>>, request: Request) -> Result<Json<documents::Plan>, Failure> {
    let documents::Proposal { file, text } = read(request, MAX_REQUEST).await?;
    let parsed = services::parse(&text, &file).map_err(|diagnostics| {
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::Services, diagnostics.render(false))
    })?;
    let warnings = services::Diagnostics::new(&file, &text, parsed.warnings).lines();
    let change = Change::Services { file, text, services: Arc::new(parsed.services) };
    let (old, new) = core.with(move |registry| (registry.world(), registry.preview(change, now()))).await;
    Ok(Json(documents::Plan {
        schema: documents::PLAN.into(),
        revision: old.revision,
        changes: plan::differences(&old, &*new?),
        warnings,
    }))
}

async fn backup(State(core): State<Arc<Core>>, request: Request) -> Result<Json<documents::Done>, Failure> {
    let documents::Backup { file } = read(request, MAX_REQUEST).await?;
    let shown = file.display().to_string();
    let revision = core.with(move |registry| registry.backup(&file)).await.map_err(|error| not_written(&error))?;
    let message =
        format!("the store at revision {revision} is in {shown}; keep identity.key of the state directory with it");
    Ok(Json(documents::Done::new(message)))
}
