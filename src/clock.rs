//! The wall clock as numbers, for what is stored and compared. A clock before 1970 is taken for one that was
//! never set.

use std::time::{Duration, SystemTime};

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    since_1970().as_secs()
}

/// Milliseconds since 1970.
pub(crate) fn unix_millis() -> u64 {
    since_1970().as_millis() as u64
}

fn since_1970() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}
