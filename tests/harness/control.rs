//! Asking a running stub what it saw, and telling it what to do, over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::boutique::{Download, Role, Series, ShopStats};
use crate::http::Connection;

/// Longest a task may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The way to one stub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// Names the socket; nothing is opened yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// Returns the stub's figures.
    ///
    /// # Errors
    /// If the stub does not answer.
    pub async fn stats(&self) -> io::Result<ShopStats> {
        self.ask("/stats").await
    }

    /// Sets the pages per second of the load generator.
    ///
    /// # Errors
    /// If the stub does not answer.
    pub async fn rate(&self, pages: u64) -> io::Result<()> {
        let _: serde_json::Value = self.ask(&format!("/rate?pages={pages}")).await?;
        Ok(())
    }

    /// Opens `n` fresh connections to a service, one after the other.
    ///
    /// # Errors
    /// If the stub does not answer.
    pub async fn connect(&self, callee: Role, n: u64) -> io::Result<Series> {
        self.series(callee.service(), callee.dials(), &format!("n={n}")).await
    }

    /// Opens fresh connections; `how` is the rest of the query: n, parallel, every, patience, path.
    ///
    /// # Errors
    /// If the stub does not answer.
    pub async fn series(&self, host: &str, port: u16, how: &str) -> io::Result<Series> {
        self.ask(&format!("/series?host={host}&port={port}&{how}")).await
    }

    /// Opens `tenths` tenths of a connection a second on each edge of the stub, for some seconds.
    ///
    /// # Errors
    /// If the stub does not answer.
    pub async fn storm(&self, tenths: u64, seconds: u64) -> io::Result<Series> {
        self.ask(&format!("/storm?tenths={tenths}&seconds={seconds}")).await
    }

    /// Downloads megabytes from a service, at most `rate` of them a second.
    ///
    /// # Errors
    /// If the stub does not answer.
    pub async fn download(&self, callee: Role, mb: u64, rate: u64) -> io::Result<Download> {
        let (host, port) = (callee.service(), callee.dials());
        self.ask(&format!("/download?host={host}&port={port}&mb={mb}&rate={rate}")).await
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> io::Result<T> {
        let exchange = async {
            let stream = UnixStream::connect(&self.path).await?;
            let (status, body) = Connection::new(stream).ask(path).await?;
            if status != 200 {
                return Err(io::Error::other(format!("{path}: status {status}")));
            }
            Ok(serde_json::from_slice(&body)?)
        };
        let answer = timeout(PATIENCE, exchange).await;
        answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
