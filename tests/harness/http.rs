//! As much HTTP/1.1 as the stub application needs: keep-alive, `content-length`, one request at a time.
//!
//! ```text
//! GET /rpc?x=1 HTTP/1.1⏎ host: a⏎⏎   ─▶   HTTP/1.1 200 OK⏎ content-length: 2⏎⏎ {}
//! ```
//! Heads are at most 8 KiB and bodies at most 16 MiB; what is larger is an error and not a wait.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

const MAX_HEAD: usize = 8 * 1024;
const MAX_BODY: usize = 16 * 1024 * 1024;

/// One end of a kept-alive connection.
pub struct Connection<S> {
    stream: BufReader<S>,
}

/// What was asked: the path and its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The path, without the query.
    pub path: String,
    query: String,
}

impl Request {
    /// Returns a value of the query; values are taken as they stand, without percent-decoding.
    pub fn value(&self, key: &str) -> Option<&str> {
        let mut pairs = self.query.split('&').filter_map(|p| p.split_once('='));
        pairs.find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// Returns a number of the query, or what stands for a missing one.
    pub fn number(&self, key: &str, missing: u64) -> u64 {
        self.value(key).and_then(|v| v.parse().ok()).unwrap_or(missing)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Wraps a stream.
    pub fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Returns the stream below, for bodies that are streamed.
    pub fn stream(&mut self) -> &mut BufReader<S> {
        &mut self.stream
    }

    /// Reads the next request; `None` when the other end has closed.
    ///
    /// # Errors
    /// What the stream says, and `InvalidData` for what is no request.
    pub async fn request(&mut self) -> io::Result<Option<Request>> {
        let Some((first, length)) = self.head().await? else {
            return Ok(None);
        };
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        let target = first.split(' ').nth(1).ok_or_else(malformed)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Some(Request { path: path.into(), query: query.into() }))
    }

    /// Answers a request.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn answer(&mut self, status: u16, body: &[u8]) -> io::Result<()> {
        let head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await
    }

    /// Asks and waits for status and body.
    ///
    /// # Errors
    /// What the stream says; `UnexpectedEof` if the other end closed instead of answering.
    pub async fn ask(&mut self, path: &str) -> io::Result<(u16, Vec<u8>)> {
        self.send(path).await?;
        let (status, length) = self.answer_head().await?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status, body))
    }

    /// Sends a request and does not wait.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn send(&mut self, path: &str) -> io::Result<()> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: boutique\r\n\r\n");
        self.stream.write_all(head.as_bytes()).await?;
        self.stream.flush().await
    }

    /// Reads the head of an answer: its status and the length of the body that follows.
    ///
    /// # Errors
    /// What the stream says; `UnexpectedEof` if the other end closed instead of answering.
    pub async fn answer_head(&mut self) -> io::Result<(u16, usize)> {
        let head = self.head().await?;
        let (first, length) = head.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
        Ok((status.ok_or_else(malformed)?, length))
    }

    async fn head(&mut self) -> io::Result<Option<(String, usize)>> {
        let (mut first, mut length, mut read) = (String::new(), 0, 0);
        loop {
            let mut line = String::new();
            let limit = (MAX_HEAD - read) as u64;
            read += (&mut self.stream).take(limit).read_line(&mut line).await?;
            if line.is_empty() && first.is_empty() {
                return Ok(None);
            }
            let Some(line) = line.strip_suffix("\r\n") else {
                return Err(malformed());
            };
            if line.is_empty() {
                return Ok(Some((first, length)));
            }
            if first.is_empty() {
                first = line.into();
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().map_err(|_| malformed())?;
            }
            if length > MAX_BODY && !first.contains(" 206 ") {
                return Err(malformed());
            }
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "this is not the HTTP we speak")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[tokio::test]
    async fn a_connection_carries_several_requests() {
        let (near, far) = tokio::io::duplex(4096);
        let server = tokio::spawn(async move {
            let mut far = Connection::new(far);
            while let Some(request) = far.request().await.unwrap() {
                let text = format!("{}+{}", request.path, request.number("n", 7));
                far.answer(200, text.as_bytes()).await.unwrap();
            }
        });
        let mut near = Connection::new(near);

        assert_eq!(near.ask("/a?n=3").await.unwrap(), (200, b"/a+3".to_vec()));
        assert_eq!(near.ask("/b").await.unwrap(), (200, b"/b+7".to_vec()));

        drop(near);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_http_is_an_error() {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        near.write_all(&[b'x'; 20_000]).await.unwrap();
        drop(near);
        assert!(Connection::new(far).request().await.is_err());
    }
}
