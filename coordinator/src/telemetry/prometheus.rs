//! Figures for Prometheus, as OpenMetrics text over HTTP on a loopback address.

use std::fmt;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use mesh_host::http::host_names::{HostNames, called};
use mesh_host::http::{self, Stop};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::admin::context::AdminState;
use crate::admin::status;
use crate::core::counters::Counters;
use crate::core::documents::FileState;

/// Answers those who call a bound address by one of these names until told to stop.
pub(crate) async fn serve(listener: TcpListener, names: HostNames, state: AdminState, counters: Counters, stop: Stop) {
    let routes = Router::new().route("/metrics", get(scrape)).with_state((state, counters));
    let routes = called(routes, names);
    http::serve(listener, move |_| routes.clone(), stop).await;
}

/// Binds the metrics address; a failure is a warning, because the mesh needs no metrics.
pub(crate) async fn bind(address: SocketAddr) -> Option<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(%address, %error, "metrics are not served; set `metrics` in coordinator.toml to a free address");
            None
        }
    }
}

async fn scrape(State((state, counters)): State<(AdminState, Counters)>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], text(&state, &counters).await.unwrap_or_default())
}

/// Writes all figures.
pub(crate) async fn text(state: &AdminState, own: &Counters) -> Result<String, fmt::Error> {
    let status = status::status(state).await;
    let mut registry = Registry::default();
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("coordinator_build", "The version of this program", version);
    let good_file = matches!(status.services.state, FileState::Accepted | FileState::Superseded);
    let gauges = [
        ("coordinator_nodes", "Nodes that have joined", status.live.nodes),
        ("coordinator_nodes_gone", "Nodes whose channel ended or never came since the start", status.live.gone),
        ("coordinator_nodes_connected", "Nodes that listen for changes", status.live.connected),
        ("coordinator_nodes_current", "Connected nodes that have the present revision in force", status.live.current),
        ("coordinator_watchers", "Open watches", state.core.watches().count()),
        ("coordinator_strangers", "Connections of peers that are no members, or not yet known", status.strangers),
        ("coordinator_strangers_max", "Most of these", status.strangers_max),
        (
            "coordinator_services_file_ok",
            "Whether services.toml as it lies on disk is in force",
            usize::from(good_file),
        ),
    ];
    for (name, help, value) in gauges {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        registry.register(name, help, ConstGauge::new(value));
    }
    let connected = Family::<[(&str, String); 1], Gauge>::default();
    registry.register("coordinator_node_connected", "Whether the node listens for changes", connected.clone());
    let world = state.core.world();
    for (name, _) in world.nodes.iter().filter(|(_, node)| node.identity.is_some()) {
        let is_open = state.core.watches().is_open(name);
        connected.get_or_create(&[("node", name.to_string())]).set(i64::from(is_open));
    }
    let revision = i64::try_from(status.revision.0).unwrap_or(i64::MAX);
    registry.register("coordinator_revision", "The revision in force", ConstGauge::new(revision));
    registry.register("coordinator_enrolments", "Requests to join, by what became of them", own.enrolments.clone());
    registry.register(
        "coordinator_services_reloads",
        "Readings of services.toml, by what became of them",
        own.reloads.clone(),
    );
    registry.register("coordinator_reports", "Reports of nodes", own.reports.clone());
    registry.register(
        "coordinator_connections_turned_away",
        "Connections that were not served because there were too many",
        own.turned_away.clone(),
    );
    registry.register(
        "coordinator_connections_made_room",
        "Connections of peers that were not known yet, ended because others needed their places",
        own.made_room.clone(),
    );
    let lines = Counter::<u64>::default();
    lines.inc_by(status.log_lines_dropped);
    registry.register("coordinator_log_lines_dropped", "Lines of the log that standard error did not take", lines);
    let mut out = String::new();
    encode(&mut out, &registry)?;
    Ok(out)
}
