//! The one clock of this process.

use mesh_proto::base::clock::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Returns the time since boot, suspend included.
pub(crate) fn now() -> Timestamp {
    let time = clock_gettime(ClockId::Boottime);
    Timestamp::from_micros(time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000)
}
