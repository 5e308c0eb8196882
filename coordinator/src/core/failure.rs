//! How requests fail on the control channel and the admin socket, and how their bodies are read.

use std::io;
use std::time::Duration;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use mesh_proto::wire::{ErrorBody, ErrorCode};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::registry::Refused;
use crate::store::StoreError;

/// How long a peer may take to send a body.
const BODY: Duration = Duration::from_secs(10);

/// Why a request failed, as a status and a body.
#[derive(Debug)]
pub(crate) struct Rejection(StatusCode, ErrorBody);

impl Rejection {
    /// Makes a failure.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Refused::new(code, message).into()
    }

    /// Refuses with another status than the word alone would have.
    pub(crate) fn with_status(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self(status, ErrorBody::new(code, message))
    }

    /// Returns what the peer is told.
    pub(crate) fn body(&self) -> &ErrorBody {
        &self.1
    }
}

impl From<Refused> for Rejection {
    fn from(refused: Refused) -> Self {
        let status = match &refused.code {
            ErrorCode::Malformed => StatusCode::BAD_REQUEST,
            ErrorCode::Token => StatusCode::UNAUTHORIZED,
            ErrorCode::UnknownNode | ErrorCode::Revoked | ErrorCode::Superseded | ErrorCode::Forbidden => {
                StatusCode::FORBIDDEN
            }
            ErrorCode::UnknownName | ErrorCode::UnknownTrust | ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Claim
            | ErrorCode::Name
            | ErrorCode::Site
            | ErrorCode::Services
            | ErrorCode::Identity
            | ErrorCode::Record
            | ErrorCode::Lock
            | ErrorCode::Key
            | ErrorCode::Public
            | ErrorCode::Exists
            | ErrorCode::NotJoined
            | ErrorCode::NotConnected
            | ErrorCode::Stopping => StatusCode::CONFLICT,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::Busy => StatusCode::TOO_MANY_REQUESTS,
            // Ours, and what only a meshd says.
            ErrorCode::Internal
            | ErrorCode::Pending
            | ErrorCode::Coordinator
            | ErrorCode::NoAnswer
            | ErrorCode::OldPeer
            | ErrorCode::Narrow
            | ErrorCode::Unknown(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut rejection = Self::with_status(status, refused.code, refused.message);
        rejection.1.record = refused.record;
        rejection
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

/// Says why a file that the operator named was not written: by what was named, or by what the disk did.
pub(crate) fn not_written(error: &StoreError) -> Rejection {
    let code = match error {
        StoreError::Exists { .. } => ErrorCode::Exists,
        StoreError::Io { source, .. } => match source.downcast_ref().map(io::Error::kind) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename) => {
                ErrorCode::NotFound
            }
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => ErrorCode::Forbidden,
            _ => ErrorCode::Internal,
        },
        StoreError::Conflict { .. }
        | StoreError::Full { .. }
        | StoreError::Locked { .. }
        | StoreError::Damaged { .. }
        | StoreError::Lost { .. }
        | StoreError::WentBack { .. }
        | StoreError::Etcd { .. }
        | StoreError::TooLarge { .. }
        | StoreError::Unknown { .. } => ErrorCode::Internal,
    };
    Rejection::new(code, error.to_string())
}

/// The word that a route takes from the path, decoded; that is one segment of it.
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let Path(word) = Path::from_request_parts(parts, state).await.map_err(|rejection| {
            let message = format!("{}; write the name in UTF-8", rejection.body_text());
            Rejection::new(ErrorCode::Malformed, message)
        })?;
        Ok(Self(word))
    }
}

/// Returns the words of a query; `example` says how they are written.
pub(crate) fn words<T>(query: Result<Query<T>, QueryRejection>, example: &str) -> Result<T, Rejection> {
    let Query(words) = query.map_err(|rejection| {
        let message = format!("{}; write {example}", rejection.body_text());
        Rejection::new(ErrorCode::Malformed, message)
    })?;
    Ok(words)
}

/// Reads a JSON body of at most `most` bytes, in time.
pub(crate) async fn read<T: DeserializeOwned>(request: Request, most: usize) -> Result<T, Rejection> {
    let malformed = |message| Rejection::new(ErrorCode::Malformed, message);
    let Ok(body) = timeout(BODY, to_bytes(request.into_body(), most)).await else {
        let message = format!("the body did not arrive within {} s; send it again", BODY.as_secs());
        return Err(Rejection::with_status(StatusCode::REQUEST_TIMEOUT, ErrorCode::Malformed, message));
    };
    let body = body.map_err(|error| {
        if is_too_large(&error) {
            let message = format!("the body is larger than {most} bytes; send less");
            Rejection::with_status(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::Malformed, message)
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
pub(crate) async fn no_such_path(request: Request) -> Rejection {
    let message = format!(
        "there is no {}; this is mesh-coordinator {}: are both ends of one version?",
        request.uri().path(),
        env!("CARGO_PKG_VERSION")
    );
    Rejection::with_status(StatusCode::NOT_FOUND, ErrorCode::Malformed, message)
}

/// Answers for a method that a path does not have.
pub(crate) async fn wrong_method(request: Request) -> Rejection {
    let message = format!("{} does not take {}; are both ends of one version?", request.uri().path(), request.method());
    Rejection::with_status(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Malformed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_did_wrong_is_never_our_failure() {
        let too_large = StoreError::TooLarge { detail: "etcdserver: request is too large".into() };
        let Rejection(status, body) = Refused::from(too_large).into();
        assert_eq!((status, body.error), (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge));
        let io = |kind: io::ErrorKind| {
            let error = StoreError::Io { doing: "open", path: "copy".into(), source: io::Error::from(kind).into() };
            not_written(&error).0
        };
        assert_eq!(io(io::ErrorKind::PermissionDenied), StatusCode::FORBIDDEN);
        assert_eq!(io(io::ErrorKind::NotFound), StatusCode::NOT_FOUND);
        assert_eq!(io(io::ErrorKind::StorageFull), StatusCode::INTERNAL_SERVER_ERROR);
        let Rejection(status, _) = Refused::from(StoreError::Unknown { detail: "no answer".into() }).into();
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
