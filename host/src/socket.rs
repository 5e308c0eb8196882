//! The Unix socket that a daemon's verbs speak to.
//!
//! Who may speak is decided by the kernel's word on the peer (`SO_PEERCRED`): root, and the daemon's own
//! user. The file's mode says the same. A file that somebody removed is made again within a second or so, for nobody
//! could speak to the daemon any more. Whoever has used up the process's descriptors, one is left for the operator.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use axum::http::StatusCode;
use axum::serve::Listener;
use axum::{Json, Router};
use mesh_proto::wire::{ErrorBody, ErrorCode};
use rustix::io::Errno;
use tokio::net::UnixListener;
use tokio::net::unix::SocketAddr;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::client::SocketWords;
use crate::http::{Stop, serve};

/// How often is looked whether the file is there.
const LOOK: Duration = Duration::from_secs(1);
/// How long the listener rests when the system gives no more connections.
const REST: Duration = Duration::from_millis(50);

/// Says why the socket cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct SocketError {
    sentence: String,
    is_taken: bool,
}

impl SocketError {
    /// Says whether another process answers there.
    pub fn is_taken(&self) -> bool {
        self.is_taken
    }
}

/// A bound socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    words: &'static SocketWords,
    bound: Bound,
    trouble: watch::Sender<Option<String>>,
}

/// A listener and its file, which is removed when it is dropped, unless another lies there.
#[derive(Debug)]
struct Bound {
    listener: Reserved,
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Bound {
    /// Binds a path, replacing a socket that nobody answers on.
    fn new(path: &Path, words: &SocketWords) -> Result<Self, SocketError> {
        let refused = |sentence: &str| {
            let sentence = sentence.replace("{path}", &path.display().to_string());
            SocketError { sentence, is_taken: false }
        };
        let at = |error: io::Error| refused(&words.unbound.replace("{why}", &error.to_string()));
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(at)?;
        }
        match fs::symlink_metadata(path) {
            Err(_) => {}
            Ok(found) if !found.file_type().is_socket() => return Err(refused(words.occupied)),
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(SocketError { is_taken: true, ..refused(words.taken) });
            }
            Ok(_) => fs::remove_file(path).map_err(at)?,
        }
        let listener = UnixListener::bind(path).map_err(at)?;
        let listener = Reserved { spare: Some(spare().map_err(at)?), listener };
        let found = fs::symlink_metadata(path).map_err(at)?;
        let bound = Self { listener, path: path.into(), file: (found.dev(), found.ino()) };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(at)?;
        Ok(bound)
    }

    /// Says whether its file lies where it was made.
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file)
    }
}

impl Socket {
    /// Binds the socket, replacing one that nobody answers on.
    ///
    /// # Errors
    /// `SocketError` if somebody answers on it, if something else lies there, or if the system refuses.
    pub fn bind(path: &Path, words: &'static SocketWords) -> Result<Self, SocketError> {
        Ok(Self { words, bound: Bound::new(path, words)?, trouble: watch::Sender::default() })
    }

    /// Returns why its file cannot be made again, while that is so.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Answers with what `routes` has for the user who speaks, until told to stop.
    pub async fn serve(self, routes: impl Fn(u32) -> Router, stop: Stop) {
        let own = rustix::process::geteuid().as_raw();
        let answers = |stream: &tokio::net::UnixStream| match stream.peer_cred().map(|peer| peer.uid()) {
            Ok(uid) if uid == 0 || uid == own => routes(uid),
            Ok(_) | Err(_) => Router::new().fallback(strangers),
        };
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        serve(Kept { socket: self, look }, answers, stop).await;
    }

    /// Makes the file again, if somebody removed or replaced it.
    fn look(&mut self) {
        if self.bound.is_there() {
            self.tell(None);
            return;
        }
        match Bound::new(&self.bound.path, self.words) {
            Ok(bound) => {
                tracing::warn!(path = %bound.path.display(), "somebody removed the socket; it is there again");
                self.bound = bound;
                self.tell(None);
            }
            Err(error) => self.tell(Some(format!("no verb reaches this daemon, for its socket is gone: {error}"))),
        }
    }

    fn tell(&self, trouble: Option<String>) {
        self.trouble.send_if_modified(|told| {
            let is_new = *told != trouble;
            if let Some(sentence) = trouble.as_ref().filter(|_| is_new) {
                tracing::warn!("{sentence}");
            }
            *told = trouble;
            is_new
        });
    }
}

/// A socket that looks after its file while it waits.
struct Kept {
    socket: Socket,
    look: Interval,
}

impl Listener for Kept {
    type Io = tokio::net::UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                accepted = Listener::accept(&mut self.socket.bound.listener) => return accepted,
                _ = self.look.tick() => self.socket.look(),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.socket.bound.listener.local_addr()
    }
}

/// A listener that holds a descriptor for the day on which there is no other for a connection.
#[derive(Debug)]
struct Reserved {
    listener: UnixListener,
    spare: Option<File>,
}

impl Listener for Reserved {
    type Io = tokio::net::UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // Not in the loop: what was given up is for the connection.
        if self.spare.is_none() {
            self.spare = spare().ok();
        }
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                // Given up for this connection; got back when another has ended.
                Err(error) if is_out_of_descriptors(&error) && self.spare.take().is_some() => {}
                Err(error) => {
                    tracing::debug!(%error, "no connection of the operator can be taken; trying again");
                    sleep(REST).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

fn spare() -> io::Result<File> {
    File::open("/dev/null")
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

async fn strangers() -> (StatusCode, Json<ErrorBody>) {
    tracing::warn!("a user who is neither root nor ours tried the socket");
    let message = "only root and the user of the daemon may ask; use sudo";
    (StatusCode::FORBIDDEN, Json(ErrorBody::new(ErrorCode::Forbidden, message)))
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
                sleep(Duration::from_millis(200)).await;
                Json(uid)
            };
            Router::new().route("/", get(slowly))
        };
        let server = tokio::spawn(socket.serve(routes, stopping));
        let (told, ()) = tokio::join!(client.get::<u32>("/"), async {
            sleep(Duration::from_millis(100)).await;
            stop.send_replace(true);
        });

        assert_eq!(told.unwrap(), rustix::process::geteuid().as_raw());
        server.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_removed_is_made_again_and_what_lies_in_its_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/m.sock");
        let client = Client::new(&SOCKET, path.clone());
        let socket = Socket::bind(&path, &SOCKET).unwrap();
        let mut trouble = socket.trouble();
        let (stop, stopping) = watch::channel(false);
        let routes = |uid: u32| Router::new().route("/", get(async move || Json(uid)));
        let server = tokio::spawn(socket.serve(routes, stopping));
        let soon = Duration::from_secs(2);
        for folder_too in [false, true] {
            assert!(client.get::<u32>("/").await.is_ok());
            fs::remove_file(&path).unwrap();
            if folder_too {
                fs::remove_dir(dir.path().join("run")).unwrap();
            }
            let back = async {
                while client.get::<u32>("/").await.is_err() {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(soon, back).await.unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }

        fs::remove_file(&path).unwrap();
        fs::write(&path, "a letter").unwrap();
        let told = trouble.wait_for(Option::is_some);
        let told = tokio::time::timeout(soon, told).await.unwrap().unwrap().clone().unwrap();
        assert!(told.ends_with("is no socket"), "{told}");
        stop.send_replace(true);
        server.await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"a letter");
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
