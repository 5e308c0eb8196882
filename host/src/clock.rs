//! The clocks of this machine.

use std::time::{Duration, SystemTime};

use mesh_proto::base::clock::{Timestamp, UnixTime};
use rustix::time::{ClockId, clock_gettime};

/// Returns the time since boot, suspend included.
pub fn now() -> Timestamp {
    let time = clock_gettime(ClockId::Boottime);
    Timestamp::from_micros(time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000)
}

/// Returns the time of day.
pub fn unix() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixTime(since.map_or(0, |since| since.as_secs()))
}

/// Returns the CPU time that this process has used.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
