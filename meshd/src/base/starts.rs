//! How often in a row the daemon ended soon after it started, and why: where it does not stay up, nobody else can say so.
//!
//! ```text
//!   start ─ count 1 more ─▶ well for 10 s, or stopped on purpose ─▶ the file goes
//!                 └─ ends before ─▶ its last words are added ─▶ `meshd status` tells them
//! ```
//! The file stands in the runtime directory: it outlives the process, and not the machine. One that cannot be written
//! tells nothing, and stops nobody.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use mesh_host::files::replace_unsynced;
use mesh_host::table::age;
use serde::{Deserialize, Serialize};

/// How long a daemon has to live for its end to be no failed start.
pub const WELL: Duration = Duration::from_secs(10);
/// What may be so while a start has not ended.
const KILLED: &str = "if it does not answer soon, it was killed: see journalctl -u meshd";
/// The longest cause that is kept, in bytes.
const MAX_CAUSE: usize = 4096;

/// The starts since the daemon was last well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts {
    /// How many.
    count: u64,
    /// When the last began, or ended, in seconds since 1970.
    at: u64,
    /// What the last that ended said, if it said a word.
    cause: Option<String>,
    /// Whether the last has not ended, or without a word.
    is_open: bool,
}

impl Starts {
    /// Returns the file's path in a runtime directory.
    pub fn file(runtime_dir: &Path) -> PathBuf {
        runtime_dir.join("data").join("starts")
    }

    /// Counts a start.
    pub fn begin(path: &Path, now: SystemTime) {
        let before = Self::read(path);
        let cause = before.cause.filter(|_| !before.is_open);
        Self { count: before.count.saturating_add(1), at: seconds(now), cause, is_open: true }.write(path);
    }

    /// Adds why the start that was counted last ended.
    pub fn ended(path: &Path, cause: &str, now: SystemTime) {
        let mut cause = cause.to_owned();
        cause.truncate(cause.floor_char_boundary(MAX_CAUSE));
        Self { at: seconds(now), cause: Some(cause), is_open: false, ..Self::read(path) }.write(path);
    }

    /// Forgets all of them: the daemon is well, or was stopped on purpose.
    pub fn forget(path: &Path) {
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(%error, "starts not forgotten"),
        }
    }

    /// Says that the daemon does not stay up, and why; none where no start failed.
    pub fn sentence(path: &Path, now: SystemTime) -> Option<String> {
        let Self { count, at, cause, is_open } = Self::read(path);
        let since = age(seconds(now).saturating_sub(at), 1);
        let ended = if is_open { count.saturating_sub(1) } else { count };
        let times = if ended == 1 { "once".to_owned() } else { format!("{ended} times in a row") };
        let why = cause
            .map_or_else(|| "without a word, as a process does that is killed".into(), |c| format!("because: {c}"));
        match (is_open, ended) {
            (false, 0) => None,
            (true, 0) => Some(format!("it began {since} ago: {KILLED}")),
            (true, _) => Some(format!("it began {since} ago, and ended {times} soon after a start, {why}\n{KILLED}")),
            (false, _) => {
                Some(format!("it does not stay up: it ended {times} soon after a start, last {since} ago, {why}"))
            }
        }
    }

    fn read(path: &Path) -> Self {
        fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn write(&self, path: &Path) {
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = made.and_then(|()| replace_unsynced(path, &serde_json::to_vec(self)?));
        if let Err(error) = written {
            tracing::debug!(%error, "starts not counted");
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn failed_starts_are_counted_with_the_last_words_until_the_daemon_is_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = Starts::file(dir.path());
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + s);
        assert_eq!(Starts::sentence(&path, at(0)), None);

        for start in 0..3u64 {
            Starts::begin(&path, at(start));
            let silent = Starts::sentence(&path, at(start)).unwrap();
            assert!(silent.starts_with("it began 0 s ago") && silent.contains("is taken") == (start > 0), "{silent}");
            Starts::ended(&path, "port 51820 is taken", at(start));
        }
        let told = Starts::sentence(&path, at(10)).unwrap();
        assert!(
            told.contains("3 times in a row soon after a start, last 8 s ago, because: port 51820 is taken"),
            "{told}"
        );

        for _ in 0..2 {
            Starts::begin(&path, at(10));
        }
        let killed = Starts::sentence(&path, at(10)).unwrap();
        assert!(killed.contains("4 times in a row soon after a start, without a word"), "{killed}");

        Starts::ended(&path, &"ä".repeat(5000), at(3));
        assert!(Starts::sentence(&path, at(3)).unwrap().len() < MAX_CAUSE + 200);
        Starts::forget(&path);
        Starts::forget(&path);
        assert_eq!(Starts::sentence(&path, at(3)), None);
        fs::write(&path, "{").unwrap();
        assert_eq!(Starts::sentence(&path, at(3)), None);
    }
}
