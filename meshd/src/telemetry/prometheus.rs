//! The listener that serves the status to Prometheus.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::api::openmetrics::{CONTENT_TYPE, text};
use crate::api::status;
use crate::node::publisher::Subscriber;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 16;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How often binding is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Serves `/metrics`, `/livez` and `/readyz` until the task is dropped. A port that cannot be bound is a
/// note, and tried again.
pub async fn serve(listen: SocketAddr, subscriber: Subscriber) {
    let listener = loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) => {
                let hint = "set another `metrics` in meshd.toml, or \"off\"";
                let sentence = format!("no metrics: cannot listen on {listen}: {error}; {hint}");
                if !subscriber.notes.all().contains(&sentence) {
                    tracing::warn!("{sentence}");
                }
                subscriber.notes.set("metrics", Some(sentence));
                sleep(RETRY).await;
            }
        }
    };
    subscriber.notes.set("metrics", None);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let subscriber = subscriber.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| {
                std::future::ready(Ok::<_, std::convert::Infallible>(answer(&subscriber, &request)))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "metrics connection ended");
            }
            drop(place);
        });
    }
}

fn answer(subscriber: &Subscriber, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, text) = match request.uri().path() {
        "/metrics" => {
            let snapshot = subscriber.snapshot();
            (StatusCode::OK, CONTENT_TYPE, text(&status::status(&snapshot), snapshot.lane_deaths))
        }
        "/livez" => (StatusCode::OK, "text/plain", "ok\n".into()),
        "/readyz" if subscriber.plane.borrow().is_some() => (StatusCode::OK, "text/plain", "ok\n".into()),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not forwarding: see `meshd status`\n".into()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /metrics, /livez and /readyz\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}
