//! The clocks of this process.

use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Returns the time since boot, suspend included.
pub(crate) fn now() -> Timestamp {
    let time = clock_gettime(ClockId::Boottime);
    Timestamp::from_micros(time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000)
}

/// Returns the CPU time that this process has used.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
