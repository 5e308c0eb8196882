//! What a node may ask over the control channel, and what it is answered (`mesh_proto::wire`).
//!
//! Who asks is known from the channel's key alone, and looked up on each request and each event: a revoked
//! node is a stranger at once.

use axum::Router;
use axum::routing::{get, post};

use crate::channel::context::Context;
use crate::channel::{copied, identity, join, log, lookup, network_lock, report, watch};
use crate::core::failure::{no_such_path, wrong_method};

/// Returns the routes of the control channel.
pub(crate) fn routes(context: Context) -> Router {
    Router::new()
        .route("/v1/join", post(join::join))
        .route("/v1/watch", get(watch::watch))
        .route("/v1/report", post(report::report))
        .route("/v1/identity", post(identity::renew))
        .route("/v1/copied", post(copied::copied))
        .route("/v1/about", get(lookup::about))
        .route("/v1/log", get(log::log))
        .route("/v1/roll", get(log::roll))
        .route("/v1/lock", get(network_lock::standing).post(network_lock::countersign))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(context)
}
