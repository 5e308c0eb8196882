//! Calling others: long-lived channels by bare name, as gRPC clients keep them, and fresh connections.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_tests::boutique::Role;
use mesh_tests::http::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::figures::Figures;

/// A client's channel to one service: connections that are kept and used again, one call at a time each.
pub(crate) struct ShopChannel {
    callee: Role,
    idle: Mutex<Vec<Connection<TcpStream>>>,
}

impl ShopChannel {
    pub(crate) fn new(callee: Role) -> Self {
        Self { callee, idle: Mutex::default() }
    }

    /// Calls a method and notes how it went. A connection that broke is a failed call, not a silent retry.
    pub(crate) async fn call(&self, figures: &Figures, path: &str) -> io::Result<Vec<u8>> {
        let began = Instant::now();
        let answer = timeout(self.callee.deadline(), self.exchange(figures, path)).await;
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let failure = answer.as_ref().err().map(|e| {
            let said = format!("{path} of {}: {e}", self.callee.service());
            (is_refusal(e), said)
        });
        figures.note_call(self.callee, began.elapsed(), failure);
        answer
    }

    async fn exchange(&self, figures: &Figures, path: &str) -> io::Result<Vec<u8>> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                let target = (self.callee.service(), self.callee.dials());
                let stream = connect(target).await?;
                figures.note_opened(self.callee);
                Connection::new(stream)
            }
        };
        let body = if self.callee == Role::Redis {
            ping(&mut connection).await?
        } else {
            let (status, body) = connection.ask(path).await?;
            if status != 200 {
                return Err(io::Error::other(format!("status {status}")));
            }
            body
        };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        Ok(body)
    }
}

/// Says whether an error is the quick answer of a mesh that does not permit the call.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied};
    let kinds = [ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied];
    kinds.contains(&error.kind())
}

async fn ping(connection: &mut Connection<TcpStream>) -> io::Result<Vec<u8>> {
    let stream = connection.stream();
    stream.write_all(b"*1\r\n$4\r\nPING\r\n").await?;
    let mut pong = [0; 7];
    stream.read_exact(&mut pong).await?;
    if &pong == b"+PONG\r\n" { Ok(pong.to_vec()) } else { Err(io::Error::other("redis did not say PONG")) }
}

/// Resolves through the system and connects; the kernel's errors come through as they are.
pub(crate) async fn connect(target: (&str, u16)) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request over a fresh connection.
pub(crate) async fn fresh(target: (&str, u16), path: &str, patience: Duration) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut connection = Connection::new(connect(target).await?);
        if target.1 == Role::Redis.dials() {
            return ping(&mut connection).await;
        }
        let (status, body) = connection.ask(path).await?;
        if status == 200 { Ok(body) } else { Err(io::Error::other(format!("status {status}"))) }
    };
    timeout(patience, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
