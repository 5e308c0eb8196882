//! The other end of the control socket: what every verb but `run` speaks through.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_proto::ops::status::Failure;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("meshd is not running (no answer at {}): start it with systemctl start meshd", .0.display())]
    NotRunning(PathBuf),
    /// It ended while it was asked.
    #[error("meshd ended before it answered: see why with journalctl -u meshd, and ask again")]
    Ended,
    /// The socket may not be used.
    #[error("cannot use {}: {error}; run as root", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The daemon said no.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// What came cannot be read.
    #[error("the daemon's answer cannot be read: {0}; restart it, so that it and this command have the same version")]
    Malformed(String),
}

/// Asks one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Names the daemon's socket.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// `ClientError` if the daemon does not answer or says no.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        parse(&self.ask(Method::GET, path).await?)
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// `ClientError` if the daemon does not answer or says no.
    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        parse(&self.ask(Method::POST, path).await?)
    }

    /// Asks for something that takes its time to be done.
    ///
    /// # Errors
    /// `ClientError` if the daemon does not answer in time or says no.
    pub async fn post_within<T: DeserializeOwned>(&self, path: &str, patience: Duration) -> Result<T, ClientError> {
        parse(&self.ask_within(Method::POST, path, patience).await?)
    }

    /// Reads bytes as they are.
    ///
    /// # Errors
    /// `ClientError` if the daemon does not answer or says no.
    pub async fn ask(&self, method: Method, path: &str) -> Result<Bytes, ClientError> {
        self.ask_within(method, path, ANSWER).await
    }

    async fn ask_within(&self, method: Method, path: &str, patience: Duration) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| {
            use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
            let nobody = [NotFound, ConnectionRefused, ConnectionReset];
            let path = self.socket.clone();
            if nobody.contains(&error.kind()) { ClientError::NotRunning(path) } else { ClientError::Io { path, error } }
        })?;
        let asked = timeout(patience, exchange(stream, method, path)).await;
        let late = |_| ClientError::Malformed(format!("no answer in {} s", patience.as_secs()));
        let answered = asked.map_err(late)?;
        let (status, bytes) = answered.map_err(|_| ClientError::Ended)?;
        if status.is_success() {
            return Ok(bytes);
        }
        Err(match serde_json::from_slice(&bytes) {
            Ok(failure) => ClientError::Refused(failure),
            Err(error) => ClientError::Malformed(format!("status {status}: {error}")),
        })
    }
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(stream: UnixStream, method: Method, path: &str) -> Result<(StatusCode, Bytes), Broken> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake?;
    let driver = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "meshd").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let bytes = body?.to_bytes();
    driver.abort();
    Ok((status, bytes))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|e| ClientError::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn a_daemon_that_dies_while_it_is_asked_is_told_from_one_that_answers_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let client = Client::new(path);

        let (asked, ()) = tokio::join!(client.ask(Method::GET, "/v1/status"), async {
            drop(listener.accept().await.unwrap());
        });

        assert!(matches!(asked, Err(ClientError::Ended)), "{asked:?}");
    }
}
