//! How requests fail on the control channel and the admin socket, and how their bodies are read.

use std::time::Duration;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mesh_proto::wire::ErrorBody;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::registry::Refused;

/// How long a peer may take to send a body.
const BODY: Duration = Duration::from_secs(10);

/// Why a request failed, as a status and a body.
#[derive(Debug)]
pub(crate) struct Failure(StatusCode, ErrorBody);

impl Failure {
    /// Makes a failure.
    pub(crate) fn new(status: StatusCode, word: &str, message: impl Into<String>) -> Self {
        let error = word.into();
        let message = message.into();
        Self(status, ErrorBody { error, message })
    }

    /// Returns what the peer is told.
    pub(crate) fn body(&self) -> &ErrorBody {
        &self.1
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let status = match refused.word {
            "token" => StatusCode::UNAUTHORIZED,
            "unknown_node" | "revoked" | "superseded" => StatusCode::FORBIDDEN,
            "claim" | "name" | "site" | "services" | "lock" | "identity" => StatusCode::CONFLICT,
            "malformed" => StatusCode::BAD_REQUEST,
            "busy" => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, refused.word, refused.message)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

/// Reads a JSON body of at most `most` bytes, in time.
pub(crate) async fn read<T: DeserializeOwned>(request: Request, most: usize) -> Result<T, Failure> {
    let malformed = |message| Failure::new(StatusCode::BAD_REQUEST, "malformed", message);
    let Ok(body) = timeout(BODY, to_bytes(request.into_body(), most)).await else {
        let message = format!("the body did not arrive within {} s; send it again", BODY.as_secs());
        return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "malformed", message));
    };
    let body = body.map_err(|error| {
        if is_too_large(&error) {
            let message = format!("the body is larger than {most} bytes; send less");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "malformed", message)
        } else {
            malformed(format!("the body did not arrive: {error}; send it again"))
        }
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        malformed(format!("the body is not what is expected here: {error}; are both ends of one version?"))
    })
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Answers for a path that does not exist.
pub(crate) async fn no_such_path(request: Request) -> Failure {
    let message = format!(
        "there is no {}; this is mesh-coordinator {}: are both ends of one version?",
        request.uri().path(),
        env!("CARGO_PKG_VERSION")
    );
    Failure::new(StatusCode::NOT_FOUND, "malformed", message)
}

/// Answers for a method that a path does not have.
pub(crate) async fn wrong_method(request: Request) -> Failure {
    let message = format!("{} does not take {}; are both ends of one version?", request.uri().path(), request.method());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "malformed", message)
}
