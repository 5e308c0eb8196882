//! The Unix socket that a daemon's verbs speak to.
//!
//! Who may speak is decided by the kernel's word on the peer (`SO_PEERCRED`): root, and the daemon's own
//! user. The file's mode says the same.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{fs, io};

use axum::http::StatusCode;
use axum::{Json, Router};
use mesh_proto::wire::{ErrorBody, ErrorCode};
use tokio::net::UnixListener;

use crate::client::SocketWords;
use crate::http::{Stop, serve};

/// Says why the socket cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SocketError(String);

/// A bound socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: Removed,
}

/// Removes a file when it is dropped.
#[derive(Debug)]
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Socket {
    /// Binds the socket, replacing one that nobody answers on.
    ///
    /// # Errors
    /// `SocketError` if somebody answers on it, if something else lies there, or if the system refuses.
    pub fn bind(path: &Path, words: &SocketWords) -> Result<Self, SocketError> {
        let refused = |sentence: &str| SocketError(sentence.replace("{path}", &path.display().to_string()));
        let at = |error: io::Error| refused(&words.unbound.replace("{why}", &error.to_string()));
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(at)?;
        }
        match fs::symlink_metadata(path) {
            Err(_) => {}
            Ok(found) if !found.file_type().is_socket() => return Err(refused(words.occupied)),
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(refused(words.taken)),
            Ok(_) => fs::remove_file(path).map_err(at)?,
        }
        let listener = UnixListener::bind(path).map_err(at)?;
        let file = Removed(path.into());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(at)?;
        Ok(Self { listener, file })
    }

    /// Answers with what `routes` has for the user who speaks, until told to stop.
    pub async fn serve(self, routes: impl Fn(u32) -> Router, stop: Stop) {
        let Self { listener, file } = self;
        let own = rustix::process::geteuid().as_raw();
        let answers = |stream: &tokio::net::UnixStream| match stream.peer_cred().map(|peer| peer.uid()) {
            Ok(uid) if uid == 0 || uid == own => routes(uid),
            Ok(_) | Err(_) => Router::new().fallback(strangers),
        };
        serve(listener, answers, stop).await;
        drop(file);
    }
}

async fn strangers() -> (StatusCode, Json<ErrorBody>) {
    tracing::warn!("a user who is neither root nor ours tried the socket");
    let message = "only root and the user of the daemon may ask; use sudo".into();
    (StatusCode::FORBIDDEN, Json(ErrorBody { error: ErrorCode::Forbidden, message }))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use axum::routing::get;
    use tokio::sync::watch;

    use super::*;
    use crate::client::{AskError, Client};

    const SOCKET: SocketWords = SocketWords {
        taken: "{path} is taken",
        occupied: "{path} is no socket",
        unbound: "{path}: {why}",
        absent: "nobody at {path}",
        closed: "{path} is closed: {why}",
        ended: "ended",
        broken: "broken: {why}",
        patience: Duration::from_secs(5),
    };

    #[tokio::test]
    async fn a_dead_socket_file_is_replaced_and_what_lives_or_is_no_socket_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/m.sock");
        fs::create_dir(dir.path().join("run")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

        let socket = Socket::bind(&path, &SOCKET).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let taken = Socket::bind(&path, &SOCKET).unwrap_err().to_string();
        assert_eq!(taken, format!("{} is taken", path.display()));
        drop(socket);
        assert!(!path.exists());

        fs::write(&path, "a letter").unwrap();
        assert!(Socket::bind(&path, &SOCKET).unwrap_err().to_string().ends_with("is no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"a letter");
    }

    #[tokio::test]
    async fn whoever_asks_is_told_who_he_is_and_what_is_under_way_at_the_end_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        let client = Client::new(&SOCKET, path.clone());
        assert!(matches!(client.get::<u32>("/").await, Err(AskError::NotRunning(_))));

        let socket = Socket::bind(&path, &SOCKET).unwrap();
        let (stop, stopping) = watch::channel(false);
        let routes = |uid: u32| {
            let slowly = async move || {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Json(uid)
            };
            Router::new().route("/", get(slowly))
        };
        let server = tokio::spawn(socket.serve(routes, stopping));
        let (told, ()) = tokio::join!(client.get::<u32>("/"), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stop.send_replace(true);
        });

        assert_eq!(told.unwrap(), rustix::process::geteuid().as_raw());
        server.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_daemon_that_dies_while_it_is_asked_is_told_from_one_that_answers_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(&SOCKET, path);

        let (asked, ()) = tokio::join!(client.get::<u32>("/"), async {
            drop(listener.accept().await.unwrap());
        });

        assert!(matches!(asked, Err(AskError::Ended(_))), "{asked:?}");
    }
}
