//! HTTP/1.1 for whoever is on this machine: the operator on a Unix socket, Prometheus on a loopback address.

pub mod host_names;

use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Most connections of a listener at the same time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's headers.
const HEADERS: Duration = Duration::from_secs(10);
/// Most bytes of them.
const MAX_HEADERS: usize = 16 * 1024;

/// The end: becomes true, or is dropped, when everything has to end.
pub type Stop = watch::Receiver<bool>;

/// Waits for the end.
pub async fn stopped(stop: &mut Stop) {
    // An error means that the sender is gone, which is an end as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Answers with the routes for each connection until told to stop, then finishes the requests under way.
pub async fn serve<L: Listener>(mut listener: L, routes: impl Fn(&L::Io) -> Router, mut stop: Stop) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            (stream, _) = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(speak(routes(&stream), stream, stop.clone()));
            }
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn speak<S>(routes: Router, stream: S, mut stop: Stop)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(MAX_HEADERS);
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
        tracing::debug!(%error, "connection ended");
    }
}
