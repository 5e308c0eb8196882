//! The listener that serves the status to Prometheus.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::get;
use mesh_host::http::host_names::{HostNames, called};
use mesh_host::http::{self, Stop};
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::api::openmetrics::{CONTENT_TYPE, text_of};
use crate::base::warning_id::WarningId;
use crate::node::publisher::Subscriber;

/// How often binding is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Serves `/metrics`, `/livez` and `/readyz` until told to stop, to those who call it by an address or one of these
/// names. A port that cannot be bound is a note, and tried again.
pub async fn serve(listen: SocketAddr, names: Vec<String>, subscriber: Subscriber, stop: Stop) {
    let listener = loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) => {
                let hint = "set another `metrics` in meshd.toml, or \"off\"";
                let sentence = format!("no metrics: cannot listen on {listen}: {error}; {hint}");
                if subscriber.notes.all().iter().all(|(_, said)| *said != sentence) {
                    tracing::warn!("{sentence}");
                }
                subscriber.notes.set(WarningId::Metrics, Some(sentence));
                sleep(RETRY).await;
            }
        }
    };
    subscriber.notes.set(WarningId::Metrics, None);
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get("ok\n"))
        .route("/readyz", get(readiness))
        .fallback((StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n"))
        .with_state(subscriber);
    let routes = called(routes, HostNames::new(&names, listen));
    http::serve(listener, move |_| routes.clone(), stop).await;
}

async fn metrics(State(subscriber): State<Subscriber>) -> ([(header::HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text_of(&subscriber.snapshot()))
}

async fn readiness(State(subscriber): State<Subscriber>) -> (StatusCode, &'static str) {
    // Only what stops packets: the lanes, the device, the rule and the route that lead to them.
    match *subscriber.plane.borrow() {
        Some(_) if !subscriber.upkeep.borrow().stopped => (StatusCode::OK, "ok\n"),
        Some(_) | None => (StatusCode::SERVICE_UNAVAILABLE, "not forwarding: see `meshd status`\n"),
    }
}
