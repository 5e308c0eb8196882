//! Time as the brain sees it: a number that the hands pass in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Microseconds since the machine booted, suspend included (CLOCK_BOOTTIME), so that what a restarted
/// daemon finds on disk can be compared with what it knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Returns the time that many microseconds after boot.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Returns the time that many milliseconds after boot.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// Returns the microseconds since boot.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Returns the whole milliseconds since boot.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1000
    }

    /// Returns the time since `earlier`, or zero if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// Seconds since 1970-01-01 UTC: for what people read and what outlives a boot, such as a token's expiry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// Returns the time since `earlier`, or zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for UnixTime {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d.as_secs()))
    }
}
