//! What the machine is, and what a process costs it.

use std::process::Command;

use serde::Serialize;

/// Ticks per second in /proc/PID/stat, on every machine that we run on.
const TICKS: f64 = 100.0;

/// Where and when something was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    date: String,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let model = read("/proc/cpuinfo").lines().find(|line| line.starts_with("model name")).map(str::to_owned);
        let date = Command::new("date").arg("+%F").output().map(|o| o.stdout).unwrap_or_default();
        Self {
            processor: model.and_then(|m| Some(m.split_once(": ")?.1.to_owned())).unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            date: String::from_utf8_lossy(&date).trim().to_owned(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { processor, cores, kernel, date } = self;
        write!(f, "{cores} cores of {processor}, Linux {kernel}, {date}")
    }
}

/// Returns the user and system time of a process and its threads, in seconds.
pub(crate) fn cpu_seconds(process: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name may hold spaces, and ends at the last bracket; utime and stime are the 12th and 13th after it.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || words.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / TICKS)
}

/// Returns the resident memory of a process, in MiB.
pub(crate) fn resident_mib(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}
