//! The verbs' side of a daemon's socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_proto::wire::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// What a daemon says of its socket; `{path}` stands for it, `{why}` for what went wrong.
#[derive(Debug)]
pub struct SocketWords {
    /// Another process answers there.
    pub taken: &'static str,
    /// Something else lies there.
    pub occupied: &'static str,
    /// It cannot be bound.
    pub unbound: &'static str,
    /// Nobody answers.
    pub absent: &'static str,
    /// It may not be opened.
    pub closed: &'static str,
    /// The daemon ended while it was asked.
    pub ended: &'static str,
    /// What came is no answer.
    pub broken: &'static str,
    /// How long an answer may take.
    pub patience: Duration,
}

/// Why a daemon did not do what was asked, in a sentence.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers.
    #[error("{0}")]
    NotRunning(String),
    /// The socket may not be opened.
    #[error("{0}")]
    Closed(String),
    /// It ended before it answered.
    #[error("{0}")]
    Ended(String),
    /// The conversation broke.
    #[error("{0}")]
    Broken(String),
    /// The daemon said no.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
}

/// Asks one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    words: &'static SocketWords,
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// Names the daemon and its socket.
    pub fn new(words: &'static SocketWords, socket: impl Into<PathBuf>) -> Self {
        Self { words, socket: socket.into(), patience: words.patience }
    }

    /// Asks for what takes longer than usual.
    #[must_use]
    pub fn within(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// `AskError` if nobody answers, or the answer is no.
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, AskError> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// Asks for something to be done that needs no more words.
    ///
    /// # Errors
    /// `AskError` if nobody answers, or the answer is no.
    pub async fn post<A: DeserializeOwned>(&self, path: &str) -> Result<A, AskError> {
        self.ask(Method::POST, path, None::<&()>).await
    }

    /// Asks one thing and reads the answer.
    ///
    /// # Errors
    /// `AskError` if nobody answers, or the answer is no.
    pub async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<A, AskError> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| self.broken(&error.to_string()))?.unwrap_or_default();
        let answer = self.bytes(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|error| self.broken(&error.to_string()))
    }

    /// Asks one thing, and returns the answer as it came.
    ///
    /// # Errors
    /// `AskError` if nobody answers, or the answer is no.
    pub async fn bytes(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, AskError> {
        let stream = self.connect().await?;
        let request = self.request(method, path, body)?;
        let answered = timeout(self.patience, exchange(stream, request, MAX_ANSWER)).await.map_err(|_| self.late())?;
        let (status, answer) = answered.map_err(|_| AskError::Ended(self.say(self.words.ended, "")))?;
        if status.is_success() { Ok(answer) } else { Err(self.refusal(status, &answer)) }
    }

    /// Reads an answer of any length, and hands over each piece as it comes, until `take` says no. The patience is for
    /// each piece. Returns the headers.
    ///
    /// # Errors
    /// `AskError` if nobody answers, the answer is no, or it breaks off.
    pub async fn pour(&self, path: &str, mut take: impl FnMut(&[u8]) -> bool) -> Result<HeaderMap, AskError> {
        let stream = self.connect().await?;
        let request = self.request(Method::GET, path, Vec::new())?;
        let ended = || AskError::Ended(self.say(self.words.ended, ""));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| ended())?;
        tokio::spawn(connection);
        let answered = timeout(self.patience, sender.send_request(request)).await.map_err(|_| self.late())?;
        let (head, mut body) = answered.map_err(|_| ended())?.into_parts();
        if !head.status.is_success() {
            let answer = timeout(self.patience, Limited::new(body, MAX_ANSWER).collect()).await;
            let answer = answer.map_err(|_| self.late())?.map_err(|error| self.broken(&error.to_string()))?;
            return Err(self.refusal(head.status, &answer.to_bytes()));
        }
        while let Some(frame) = timeout(self.patience, body.frame()).await.map_err(|_| self.late())? {
            let frame = frame.map_err(|_| ended())?;
            if frame.data_ref().is_some_and(|piece| !take(piece)) {
                break;
            }
        }
        Ok(head.headers)
    }

    async fn connect(&self) -> Result<UnixStream, AskError> {
        UnixStream::connect(&self.socket).await.map_err(|error| {
            use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
            if [NotFound, ConnectionRefused, ConnectionReset].contains(&error.kind()) {
                AskError::NotRunning(self.say(self.words.absent, ""))
            } else {
                AskError::Closed(self.say(self.words.closed, &error.to_string()))
            }
        })
    }

    fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, AskError> {
        let request = Request::builder().method(method).uri(path).header("host", "daemon");
        let request = request.header("content-type", "application/json").body(Full::from(body));
        request.map_err(|error| self.broken(&error.to_string()))
    }

    fn refusal(&self, status: StatusCode, answer: &[u8]) -> AskError {
        let refusal = serde_json::from_slice(answer);
        refusal.map_or_else(|error| self.broken(&format!("status {status}: {error}")), AskError::Refused)
    }

    fn late(&self) -> AskError {
        self.broken(&format!("no answer in {} s", self.patience.as_secs()))
    }

    fn broken(&self, why: &str) -> AskError {
        AskError::Broken(self.say(self.words.broken, why))
    }

    fn say(&self, words: &str, why: &str) -> String {
        words.replace("{path}", &self.socket.display().to_string()).replace("{why}", why)
    }
}

/// Sends one request over a connection, and reads an answer of at most `most` bytes.
///
/// # Errors
/// Whatever broke the conversation, or that the answer is longer.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    most: usize,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), most).collect().await?;
    Ok((status, answer.to_bytes()))
}
