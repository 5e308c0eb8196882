//! A file that an operator edits: seen when it is saved, told when it is settled.
//!
//! The *directory* is watched, because editors rename files and ConfigMaps swap symlinks. What lies there is
//! also compared every two seconds, for file systems that tell nobody.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

/// How long the file stays as it is before it is read.
const SETTLE: Duration = Duration::from_millis(100);
/// How long a file that is written without a pause may postpone its reading.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the file is compared although nobody said that it changed.
const POLL: Duration = Duration::from_secs(2);
/// What tells one state of a file from another without reading it; `ctime` also tells that it may be read now.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// A file that is followed.
#[derive(Debug)]
pub struct WatchedFile {
    path: PathBuf,
    touched: Arc<Notify>,
    /// None while the directory cannot be watched: it may appear later than we do.
    watcher: Option<RecommendedWatcher>,
    seen: Stamp,
    poll: Interval,
}

impl WatchedFile {
    /// Follows a file from its present state on.
    pub fn new(path: &Path) -> Self {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { path: path.into(), touched: Arc::default(), watcher: None, seen: stamp(path), poll }
    }

    /// Waits until the file is another than at the last return, and has stayed so for a moment. What was dropped
    /// half-way goes on with the next call.
    pub async fn changed(&mut self) {
        while stamp(&self.path) == self.seen {
            if self.watcher.is_none() {
                self.watcher = self.watch();
            }
            tokio::select! {
                () = self.touched.notified() => {}
                _ = self.poll.tick() => {}
            }
        }
        let began = Instant::now();
        let (mut found, mut since) = (stamp(&self.path), began);
        // Other files of the directory tell of themselves as well, some without a pause.
        while since.elapsed() < SETTLE && began.elapsed() < PATIENCE {
            tokio::select! {
                () = self.touched.notified() => {}
                () = sleep(SETTLE.saturating_sub(since.elapsed())) => {}
            }
            let now = stamp(&self.path);
            if now != found {
                (found, since) = (now, Instant::now());
            }
        }
        self.seen = found;
    }

    /// Takes the file as it is now for seen: whoever reads it next needs not be told of it.
    pub fn look(&mut self) {
        self.seen = stamp(&self.path);
    }

    fn watch(&self) -> Option<RecommendedWatcher> {
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let touched = Arc::clone(&self.touched);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                touched.notify_one();
            }
        });
        let watched = watcher.and_then(|mut watcher| {
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        watched
            .inspect_err(
                |error| tracing::debug!(%error, dir = %dir.display(), "no directory watch; comparing every 2 s"),
            )
            .ok()
    }
}

fn stamp(path: &Path) -> Stamp {
    let at = std::fs::metadata(path).ok()?;
    Some((at.dev(), at.ino(), at.len(), at.ctime(), at.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_is_saved_renamed_or_appears_is_told_once_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.toml");
        let mut file = WatchedFile::new(&path);
        let soon = Duration::from_secs(10);
        let tells_nothing = async |file: &mut WatchedFile| timeout(Duration::from_millis(300), file.changed()).await;

        fs::write(&path, "1").unwrap();
        timeout(soon, file.changed()).await.unwrap();
        assert!(tells_nothing(&mut file).await.is_err());
        fs::write(dir.path().join("other"), "1").unwrap();
        assert!(tells_nothing(&mut file).await.is_err());

        fs::rename(dir.path().join("other"), &path).unwrap();
        assert!(timeout(Duration::from_millis(1), file.changed()).await.is_err(), "it is not settled");
        timeout(soon, file.changed()).await.unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        timeout(soon, file.changed()).await.unwrap();
        fs::remove_file(&path).unwrap();
        timeout(soon, file.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_neighbour_that_is_written_without_a_pause_delays_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.toml");
        let mut file = WatchedFile::new(&path);
        // The watch begins with the first call.
        assert!(timeout(Duration::from_millis(1), file.changed()).await.is_err());
        let neighbour = dir.path().join("other");
        let busy = tokio::spawn(async move {
            loop {
                fs::write(&neighbour, "1").unwrap();
                sleep(SETTLE / 10).await;
            }
        });

        let began = Instant::now();
        fs::write(&path, "1").unwrap();
        file.changed().await;

        let took = began.elapsed();
        assert!(took >= SETTLE && took < PATIENCE / 2, "{took:?}");
        busy.abort();
    }
}
