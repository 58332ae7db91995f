//! How long requests took, in buckets, each of which reaches twice as far as the one before.
//!
//! An entry costs two additions. The buckets are those of the histograms in the metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets of time; the last has no end.
const BUCKETS: usize = 24;
/// The first bucket's end, as a power of two in nanoseconds: 8.2 µs, which the fastest requests take. The
/// last but one ends at 34 s, beyond the deadlines of upstreams.
const FIRST_BUCKET: u32 = 13;

/// Counters of times.
#[derive(Debug)]
pub(crate) struct LatencyHistogram {
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self {
            nanos: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

/// The bucket for a request that took `nanos`.
fn bucket(nanos: u64) -> usize {
    let doublings = 64 - (nanos >> FIRST_BUCKET).leading_zeros();
    (doublings as usize).min(BUCKETS - 1)
}

impl LatencyHistogram {
    pub(crate) fn add(&self, took: Duration) {
        let nanos = took.as_nanos() as u64;
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds these times to `times`.
    pub(crate) fn add_to(&self, times: &mut RequestTimes) {
        times.total += Duration::from_nanos(self.nanos.load(Ordering::Relaxed));
        times.buckets.resize(BUCKETS, 0);
        for (sum, bucket) in times.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.load(Ordering::Relaxed);
        }
    }

    /// The times now.
    pub(crate) fn now(&self) -> RequestTimes {
        let mut times = RequestTimes::default();
        self.add_to(&mut times);
        times
    }
}

/// How long requests of one kind took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestTimes {
    /// The total.
    pub total: Duration,
    /// How many ended in each bucket.
    pub buckets: Vec<u64>,
}

impl RequestTimes {
    /// The end of the bucket at `index`; none for the last, which has no end.
    pub fn bound(index: usize) -> Option<Duration> {
        (index + 1 < BUCKETS).then(|| Duration::from_nanos(1 << (FIRST_BUCKET + index as u32)))
    }

    /// A time within which `percent` of the requests were answered, too long by a factor of two at
    /// most; nothing if there were none, or if it lies in the last bucket.
    pub fn percentile(&self, percent: u64) -> Option<Duration> {
        let all: u64 = self.buckets.iter().sum();
        let wanted = (all * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let reached = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Self::bound(reached?)
    }
}

/// How long requests or calls of a kind took, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// The total, in microseconds.
    pub total_micros: u64,
    /// The median, in microseconds; known to a factor of two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_micros: Option<u64>,
    /// The 95th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_micros: Option<u64>,
    /// How many took how long: the first bucket up to 8.192 µs, each further one up to twice as
    /// long as the one before, the last longer.
    pub buckets: Vec<u64>,
}

impl From<RequestTimes> for LatencyStatus {
    fn from(times: RequestTimes) -> Self {
        let micros = |time: Duration| time.as_nanos().div_ceil(1000) as u64;
        Self {
            total_micros: micros(times.total),
            median_micros: times.percentile(50).map(micros),
            p95_micros: times.percentile(95).map(micros),
            buckets: times.buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_reaches_twice_as_far() {
        for nanos in [0, 1, 8191, 8192, 16_383, 16_384, 5_000_000, 34_000_000_000] {
            let index = bucket(nanos);
            let time = Duration::from_nanos(nanos);
            assert!(RequestTimes::bound(index).unwrap() > time, "{nanos}");
            assert!(index == 0 || RequestTimes::bound(index - 1).unwrap() <= time);
        }
        assert_eq!(RequestTimes::bound(bucket(u64::MAX)), None);
        let times = RequestTimes {
            total: Duration::ZERO,
            buckets: vec![50, 45, 5],
        };
        let within = |percent| times.percentile(percent).unwrap().as_nanos();
        assert_eq!((within(50), within(95), within(96)), (8192, 16384, 32768));
    }
}
