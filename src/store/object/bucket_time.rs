//! Times by a bucket's clock.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// A time by the bucket's clock, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BucketTime(pub(super) u64);

impl BucketTime {
    pub(super) fn after(self, time: Duration) -> Self {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// Whole seconds since 1970, rounded up.
    pub(super) fn seconds(self) -> u64 {
        self.0.div_ceil(1000)
    }
}

impl From<DateTime<Utc>> for BucketTime {
    fn from(time: DateTime<Utc>) -> Self {
        Self(u64::try_from(time.timestamp_millis()).unwrap_or_default())
    }
}
