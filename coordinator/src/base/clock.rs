//! The time of day.

use std::time::SystemTime;

use mesh_proto::base::clock::UnixTime;

/// Returns the time of day.
pub(crate) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixTime(since.map_or(0, |d| d.as_secs()))
}
