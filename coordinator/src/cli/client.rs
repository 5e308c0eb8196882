//! The verbs' side of the admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_proto::wire::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Says why the coordinator did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers.
    #[error(
        "no coordinator answers on {0}; start it with `systemctl start mesh-coordinator`, or name its socket with --socket PATH"
    )]
    NotRunning(PathBuf),
    /// The socket may not be opened.
    #[error("{0} may not be opened by this user; run as root, or as the user of mesh-coordinator")]
    Forbidden(PathBuf),
    /// The coordinator refused.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// The conversation broke.
    #[error("the coordinator on {path} gave no proper answer: {detail}; see its log")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        detail: String,
    },
}

/// Asks one thing and reads the answer.
///
/// # Errors
/// `AskError` if nobody answers, or the answer is no.
pub async fn ask<A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&(impl Serialize + Sync)>,
) -> Result<A, AskError> {
    match timeout(ANSWER, exchange(socket, method, path, body)).await {
        Ok(answer) => answer,
        Err(_) => Err(AskError::Broken {
            path: socket.to_owned(),
            detail: format!("nothing came within {} s", ANSWER.as_secs()),
        }),
    }
}

/// Reads one document.
///
/// # Errors
/// `AskError` if nobody answers, or the answer is no.
pub async fn fetch<A: DeserializeOwned>(socket: &Path, path: &str) -> Result<A, AskError> {
    ask(socket, Method::GET, path, None::<&()>).await
}

async fn exchange<A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&(impl Serialize + Sync)>,
) -> Result<A, AskError> {
    let broken = |detail: String| AskError::Broken { path: socket.to_owned(), detail };
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        if error.kind() == io::ErrorKind::PermissionDenied {
            AskError::Forbidden(socket.to_owned())
        } else {
            AskError::NotRunning(socket.to_owned())
        }
    })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
    tokio::spawn(connection);
    let body = body.map(serde_json::to_vec).transpose();
    let body = body.map_err(|error| broken(error.to_string()))?.unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "coordinator")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(error.to_string()))?;
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| match error.is_canceled() || error.is_incomplete_message() {
        // The kernel took the connection, but the server hung up: it serves root and its own user only.
        true => AskError::Forbidden(socket.to_owned()),
        false => broken(error.to_string()),
    })?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let answer = answer.map_err(|error| broken(error.to_string()))?.to_bytes();
    if status != StatusCode::OK {
        let refusal = serde_json::from_slice(&answer);
        return Err(refusal.map_or_else(|_| broken(format!("status {status}")), AskError::Refused));
    }
    serde_json::from_slice(&answer).map_err(|error| broken(error.to_string()))
}
