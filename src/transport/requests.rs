//! Counts requests by kind (tests count them to show that warm operations send none), and times
//! each from its reading to the writing of its reply, and those that waited for an upstream.
//!
//! Times go into buckets ([`LatencyHistogram`]). That costs a request two readings of the clock and two
//! additions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fuse_backend_rs::abi::fuse_abi::InHeader;

use crate::latencies::{LatencyHistogram, RequestTimes};

/// Opcodes are numbered from 1; those above share the last place.
const KINDS: usize = 64;

/// Requests since the mount began, by opcode.
#[derive(Debug)]
pub(super) struct RequestCounters([OpcodeCounter; KINDS]);

#[derive(Debug)]
struct OpcodeCounter {
    begun: AtomicU64,
    waited: AtomicU64,
    times: LatencyHistogram,
}

impl Default for RequestCounters {
    fn default() -> Self {
        let counter = || OpcodeCounter {
            begun: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            times: LatencyHistogram::default(),
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
        self.counter.times.add(self.began.elapsed());
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
        let counter = self.of(header);
        counter.begun.fetch_add(1, Ordering::Relaxed);
        CountedRequest {
            counter,
            began: Instant::now(),
        }
    }

    fn of(&self, header: &InHeader) -> &OpcodeCounter {
        &self.0[(header.opcode as usize).min(KINDS - 1)]
    }

    /// Notes that a request, which was counted when it began, has to wait for an upstream.
    pub(super) fn waits_for_upstream(&self, header: &InHeader) {
        self.of(header).waited.fetch_add(1, Ordering::Relaxed);
    }

    /// Times a request that is over now and began at `began`.
    pub(super) fn ended(&self, header: &InHeader, began: Instant) {
        let counter = self.of(header);
        drop(CountedRequest { counter, began });
    }

    /// How long requests took, by kind.
    pub(super) fn times(&self) -> BTreeMap<&'static str, RequestTimes> {
        let mut times = BTreeMap::<_, RequestTimes>::new();
        for (opcode, counter) in self.0.iter().enumerate() {
            if counter.begun.load(Ordering::Relaxed) > 0 {
                counter.times.add_to(times.entry(name(opcode)).or_default());
            }
        }
        times
    }

    /// The counts now.
    pub(super) fn now(&self) -> RequestCounts {
        self.counts(|counter| &counter.begun)
    }

    /// The counts of those that waited for an upstream.
    pub(super) fn waits(&self) -> RequestCounts {
        self.counts(|counter| &counter.waited)
    }

    fn counts(&self, of: impl Fn(&OpcodeCounter) -> &AtomicU64) -> RequestCounts {
        let mut counts = BTreeMap::new();
        for (opcode, counter) in self.0.iter().enumerate() {
            let count = of(counter).load(Ordering::Relaxed);
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
    use std::time::Duration;

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
        assert_eq!(counters.waits().of("READ"), 0);
        counters.waits_for_upstream(&header);
        assert_eq!(counters.waits().of("READ"), 1);
        let times = &counters.times()["READ"];
        assert_eq!(times.buckets.iter().sum::<u64>(), 1);
        assert!(times.total > Duration::ZERO);
        assert!(times.percentile(50) >= Some(times.total / 2), "{times:?}");
    }
}
