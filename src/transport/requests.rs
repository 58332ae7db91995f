//! Counts requests by kind (tests count them to show that warm operations send none), and times
//! each from its reading to the writing of its reply.
//!
//! Times go into buckets, each of which reaches twice as far as the one before. That costs a
//! request two readings of the clock and two additions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::InHeader;

/// Opcodes are numbered from 1; those above share the last place.
const KINDS: usize = 64;

/// Buckets of time; the last has no end.
const BUCKETS: usize = 21;
/// The first bucket's end, as a power of two in nanoseconds: 8.2 µs, which the fastest requests take.
const FIRST_BUCKET: u32 = 13;

/// Requests since the mount began, by opcode.
#[derive(Debug)]
pub(super) struct RequestCounters([OpcodeCounter; KINDS]);

#[derive(Debug)]
struct OpcodeCounter {
    begun: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for RequestCounters {
    fn default() -> Self {
        let counter = || OpcodeCounter {
            begun: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        };
        Self(std::array::from_fn(|_| counter()))
    }
}

/// A request that is being answered; it is over when this is dropped.
pub(super) struct CountedRequest<'a> {
    counter: &'a OpcodeCounter,
    began: Instant,
}

impl CountedRequest<'_> {
    /// When a request began that ends later: to be passed to [`RequestCounters::ended`].
    pub(super) fn pause(self) -> Instant {
        std::mem::ManuallyDrop::new(self).began
    }
}

impl Drop for CountedRequest<'_> {
    fn drop(&mut self) {
        let nanos = self.began.elapsed().as_nanos() as u64;
        self.counter.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.counter.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    }
}

/// The bucket for a request that took `nanos`.
fn bucket(nanos: u64) -> usize {
    let doublings = 64 - (nanos >> FIRST_BUCKET).leading_zeros();
    (doublings as usize).min(BUCKETS - 1)
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

    fn add(&mut self, counter: &OpcodeCounter) {
        self.total += Duration::from_nanos(counter.nanos.load(Ordering::Relaxed));
        self.buckets.resize(BUCKETS, 0);
        for (sum, bucket) in self.buckets.iter_mut().zip(&counter.buckets) {
            *sum += bucket.load(Ordering::Relaxed);
        }
    }
}

/// Requests by kind, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts(pub BTreeMap<&'static str, u64>);

impl RequestCounts {
    /// Requests of this kind, by its name in the kernel's `fuse.h`.
    pub fn of(&self, kind: &str) -> u64 {
        self.0.get(kind).copied().unwrap_or(0)
    }

    /// Requests that a program waited for: all but the kernel's own housekeeping.
    pub fn total(&self) -> u64 {
        let tidying = ["FORGET", "BATCH_FORGET", "INTERRUPT", "INIT", "DESTROY"];
        let waited_for = self.0.iter().filter(|(kind, _)| !tidying.contains(*kind));
        waited_for.map(|(_, count)| count).sum()
    }

    /// The requests since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let new = self
            .0
            .iter()
            .map(|(kind, count)| (*kind, count - earlier.of(kind)));
        Self(new.filter(|(_, count)| *count > 0).collect())
    }
}

impl RequestCounters {
    /// Counts a request, which ends when the returned value is dropped.
    pub(super) fn begin(&self, header: &InHeader) -> CountedRequest<'_> {
        let counter = &self.0[(header.opcode as usize).min(KINDS - 1)];
        counter.begun.fetch_add(1, Ordering::Relaxed);
        CountedRequest {
            counter,
            began: Instant::now(),
        }
    }

    /// Times a request that is over now and began at `began`.
    pub(super) fn ended(&self, header: &InHeader, began: Instant) {
        let counter = &self.0[(header.opcode as usize).min(KINDS - 1)];
        drop(CountedRequest { counter, began });
    }

    /// How long requests took, by kind.
    pub(super) fn times(&self) -> BTreeMap<&'static str, RequestTimes> {
        let mut times = BTreeMap::<_, RequestTimes>::new();
        for (opcode, counter) in self.0.iter().enumerate() {
            if counter.begun.load(Ordering::Relaxed) > 0 {
                times.entry(name(opcode)).or_default().add(counter);
            }
        }
        times
    }

    /// The counts now.
    pub(super) fn now(&self) -> RequestCounts {
        let mut counts = BTreeMap::new();
        for (opcode, count) in self.0.iter().enumerate() {
            let count = count.begun.load(Ordering::Relaxed);
            if count > 0 {
                *counts.entry(name(opcode)).or_insert(0) += count;
            }
        }
        RequestCounts(counts)
    }
}

/// The name of requests of this kind in the kernel's `fuse.h`.
pub(super) fn name(opcode: usize) -> &'static str {
    match opcode {
        1 => "LOOKUP",
        2 => "FORGET",
        3 => "GETATTR",
        4 => "SETATTR",
        5 => "READLINK",
        14 => "OPEN",
        15 => "READ",
        16 => "WRITE",
        17 => "STATFS",
        18 => "RELEASE",
        20 => "FSYNC",
        22 => "GETXATTR",
        23 => "LISTXATTR",
        25 => "FLUSH",
        26 => "INIT",
        27 => "OPENDIR",
        28 => "READDIR",
        29 => "RELEASEDIR",
        30 => "FSYNCDIR",
        34 => "ACCESS",
        36 => "INTERRUPT",
        38 => "DESTROY",
        39 => "IOCTL",
        40 => "POLL",
        42 => "BATCH_FORGET",
        44 => "READDIRPLUS",
        46 => "LSEEK",
        50 => "SYNCFS",
        52 => "STATX",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_when_it_begins_and_timed_when_it_ends() {
        let counters = RequestCounters::default();
        let header = InHeader {
            opcode: 15,
            ..InHeader::default()
        };
        let answering = counters.begin(&header);
        assert_eq!(counters.now().of("READ"), 1);
        assert_eq!(counters.times()["READ"].percentile(50), None);
        counters.ended(&header, answering.pause());
        let times = &counters.times()["READ"];
        assert_eq!(times.buckets.iter().sum::<u64>(), 1);
        assert!(times.total > Duration::ZERO);
        assert!(times.percentile(50) >= Some(times.total / 2), "{times:?}");
    }

    #[test]
    fn each_bucket_reaches_twice_as_far() {
        for nanos in [0, 1, 8191, 8192, 16_383, 16_384, 5_000_000, 4_000_000_000] {
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
