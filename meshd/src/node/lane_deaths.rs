//! The lanes that died: meshd ends with one, and the next start tells of it, for nothing else would.
//!
//! The file stands in the runtime directory: it outlives the process, and not the machine.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh_host::files::replace_unsynced;
use mesh_host::table::age;
use serde::{Deserialize, Serialize};

/// How long the operator is told.
const SHOWN: Duration = Duration::from_secs(3600);

/// How many lanes died since the machine started, and the last of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneDeaths {
    /// How many.
    pub count: u64,
    /// When the last did, in seconds since 1970.
    at: u64,
    /// Which lane it was, and why.
    cause: String,
}

impl LaneDeaths {
    /// Returns the file's path in a runtime directory.
    pub fn file(runtime_dir: &Path) -> PathBuf {
        runtime_dir.join("data").join("lane-deaths")
    }

    /// Reads the file; one that is absent or damaged tells of none.
    pub fn read(path: &Path) -> Self {
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Adds a death and writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(self, cause: String, now: SystemTime, path: &Path) -> io::Result<()> {
        let deaths = Self { count: self.count.saturating_add(1), at: seconds(now), cause };
        replace_unsynced(path, &serde_json::to_vec(&deaths)?)
    }

    /// Returns what the operator is told: of the last one, for an hour.
    pub fn sentence(&self, now: SystemTime) -> Option<String> {
        let since = seconds(now).saturating_sub(self.at);
        (self.count > 0 && since < SHOWN.as_secs()).then(|| {
            let (cause, age) = (&self.cause, age(since, 1));
            format!(
                "meshd ended {age} ago because {cause}; it has started again since. Packets were lost meanwhile: report it with the log from before"
            )
        })
    }
}

/// Has the process end with 1 when a lane panics, after the file tells of it: where a panic aborts, nothing else can.
/// All other panics do what they did.
pub fn end_with_a_lane(thread: &'static str, path: PathBuf) {
    let report = std::panic::take_hook();
    // Read now: in a thread that panics as little is done as can be.
    let before = LaneDeaths::read(&path);
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let current = std::thread::current();
        let Some(lane) = current.name().and_then(|name| name.strip_prefix(thread)) else { return };
        let cause = format!("lane {lane} {}", panic.to_string().replace('\n', " "));
        let _ = before.clone().add(cause, SystemTime::now(), &path);
        std::process::exit(1);
    }));
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::process::Command;

    use super::*;

    /// Says to the process that it has a lane, and where its file is.
    const FILE: &str = "MESH_TEST_LANE_DEATHS";

    #[test]
    fn the_last_death_is_told_for_an_hour_and_all_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lane-deaths");
        let died = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(LaneDeaths::read(&path), LaneDeaths::default());
        assert_eq!(LaneDeaths::default().sentence(SystemTime::UNIX_EPOCH), None);

        LaneDeaths::read(&path).add("lane 1 ended: enough".into(), died, &path).unwrap();
        LaneDeaths::read(&path).add("lane 2 took no mail for 10 s".into(), died, &path).unwrap();

        let read = LaneDeaths::read(&path);
        assert_eq!(read.count, 2);
        let told = read.sentence(died + Duration::from_secs(3599)).unwrap();
        assert!(told.contains("because lane 2 took no mail for 10 s"), "{told}");
        assert_eq!(read.sentence(died + Duration::from_secs(3600)), None);
        // A clock that was set back.
        assert!(read.sentence(died - Duration::from_secs(60)).is_some());
        std::fs::write(&path, "{").unwrap();
        assert_eq!(LaneDeaths::read(&path), LaneDeaths::default());
    }

    #[test]
    #[ignore = "part of another test"]
    fn a_process_with_a_lane() {
        let Some(path) = std::env::var_os(FILE) else { return };
        end_with_a_lane("lane-", path.into());
        let panics = |name: &str| {
            let thread = std::thread::Builder::new().name(name.into());
            thread.spawn(|| panic!("{} is odd", 3)).unwrap().join().unwrap_err()
        };
        panics("somebody else");
        panics("lane-1");
    }

    #[test]
    fn a_lane_that_panics_ends_the_process_with_1_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lane-deaths");
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "node::lane_deaths::tests::a_process_with_a_lane", "--ignored"]).env(FILE, &path);
        let ended = process.output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let read = LaneDeaths::read(&path);
        let told = read.sentence(SystemTime::now()).unwrap();
        assert!(read.count == 1 && told.contains("because lane 1 panicked at"), "{told}");
        assert!(told.contains("3 is odd"), "{told}");
    }
}
