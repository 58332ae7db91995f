//! Counters of recording and prefetching.
//!
//! The warm-up thread counts, and requests do not. File systems with the same options share one
//! count, whether they exist one after the other or side by side (a virtiofs device has one for
//! each session of a guest): it is [`WarmUp`](super::WarmUpOptions)'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WarmUpCount {
    /// Roots that are being recorded.
    pub recording: u64,
    /// Profiles that are being fetched.
    pub fetching: u64,
    /// Recorded roots that had a profile of their own.
    pub own: u64,
    /// Recorded roots that had a profile of a similar root.
    pub similar: u64,
    /// Recorded roots that had no profile, or an unreadable one.
    pub none: u64,
    /// Extents of files, of up to 1 MiB, that were recorded.
    pub recorded: u64,
    /// How often a profile was written.
    pub saves: u64,
    /// Prefetches that ended, complete or given up.
    pub fetches: u64,
    /// Their total time, in microseconds.
    pub fetch_micros: u64,
    /// Extents that were prefetched.
    pub extents: u64,
    /// The bytes of the prefetched extents.
    pub bytes: u64,
    /// Prefetched extents that were read after their arrival.
    pub hits: u64,
    /// Profiles that could not be read.
    pub failed_finds: u64,
    /// Prefetches that were given up because the store did not answer.
    pub failed_fetches: u64,
    /// Profiles that could not be written.
    pub failed_saves: u64,
}

/// The live counters.
#[derive(Debug, Default)]
pub(super) struct WarmUpCounters {
    recording: AtomicU64,
    fetching: AtomicU64,
    pub(super) own: GrowingNumber,
    pub(super) similar: GrowingNumber,
    pub(super) none: GrowingNumber,
    pub(super) recorded: GrowingNumber,
    pub(super) saves: GrowingNumber,
    pub(super) fetches: GrowingNumber,
    pub(super) fetch_micros: GrowingNumber,
    pub(super) extents: GrowingNumber,
    pub(super) bytes: GrowingNumber,
    pub(super) hits: GrowingNumber,
    pub(super) failed_finds: GrowingNumber,
    pub(super) failed_fetches: GrowingNumber,
    pub(super) failed_saves: GrowingNumber,
}

impl WarmUpCounters {
    /// The numbers now.
    pub(super) fn now(&self) -> WarmUpCount {
        WarmUpCount {
            recording: self.recording.load(Ordering::Relaxed),
            fetching: self.fetching.load(Ordering::Relaxed),
            own: self.own.get(),
            similar: self.similar.get(),
            none: self.none.get(),
            recorded: self.recorded.get(),
            saves: self.saves.get(),
            fetches: self.fetches.get(),
            fetch_micros: self.fetch_micros.get(),
            extents: self.extents.get(),
            bytes: self.bytes.get(),
            hits: self.hits.get(),
            failed_finds: self.failed_finds.get(),
            failed_fetches: self.failed_fetches.get(),
            failed_saves: self.failed_saves.get(),
        }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct GrowingNumber(AtomicU64);

impl GrowingNumber {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The contribution of one file system to the gauges, until it is dropped.
pub(super) struct GaugeShare {
    all: Arc<WarmUpCounters>,
    recording: AtomicU64,
    fetching: AtomicU64,
}

impl GaugeShare {
    pub(super) fn new(all: Arc<WarmUpCounters>) -> Self {
        Self {
            all,
            recording: AtomicU64::new(0),
            fetching: AtomicU64::new(0),
        }
    }

    pub(super) fn set_recording(&self, now: u64) {
        put(&self.recording, &self.all.recording, now);
    }

    pub(super) fn set_fetching(&self, now: u64) {
        put(&self.fetching, &self.all.fetching, now);
    }
}

/// Replaces the contribution `share` in `all` by `now`.
fn put(share: &AtomicU64, all: &AtomicU64, now: u64) {
    let before = share.swap(now, Ordering::Relaxed);
    // The sum wraps: a decrease is a very large increment.
    all.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
}

impl Drop for GaugeShare {
    fn drop(&mut self) {
        self.set_recording(0);
        self.set_fetching(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_system_leaves_the_counters_and_lowers_the_gauges() {
        let all = Arc::new(WarmUpCounters::default());
        let (one, other) = (GaugeShare::new(all.clone()), GaugeShare::new(all.clone()));
        one.set_recording(3);
        other.set_recording(2);
        other.set_fetching(1);
        all.hits.add(5);
        assert_eq!((all.now().recording, all.now().fetching), (5, 1));
        one.set_recording(1);
        assert_eq!(all.now().recording, 3);
        drop(other);
        assert_eq!((all.now().recording, all.now().fetching), (1, 0));
        drop(one);
        assert_eq!((all.now().recording, all.now().hits), (0, 5));
    }
}
