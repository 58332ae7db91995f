//! How learning and fetching ahead fare, in numbers.
//!
//! They are counted by the thread that learns, and by nobody who answers a request. What makes file
//! systems with the same options one after the other, or side by side (a virtiofs device: one for each
//! session of a guest), has one count of them all: it is [`WarmUp`](super::WarmUp)'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// How learning and fetching ahead fare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WarmUpCount {
    /// Roots whose users are being watched.
    pub learning: u64,
    /// Profiles that are being fetched.
    pub fetching: u64,
    /// Roots whose users were watched, for which there was a profile of their own.
    pub own: u64,
    /// Those for which there was one of a similar root.
    pub similar: u64,
    /// Those for which there was none, or none that can be read.
    pub none: u64,
    /// Stretches of files, of up to 1 MiB, that were learned.
    pub learned: u64,
    /// How often a profile was written.
    pub saves: u64,
    /// Profiles that were fetched as far as was to be, or given up.
    pub fetches: u64,
    /// How long that took, all together, in microseconds.
    pub fetch_micros: u64,
    /// Stretches that were fetched ahead.
    pub stretches: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that were touched once they were there.
    pub hits: u64,
    /// Profiles that could not be read.
    pub failed_finds: u64,
    /// Profiles that were given up because the store did not answer.
    pub failed_fetches: u64,
    /// Profiles that could not be written.
    pub failed_saves: u64,
}

/// The same, while it is being counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    learning: AtomicU64,
    fetching: AtomicU64,
    pub(super) own: Counter,
    pub(super) similar: Counter,
    pub(super) none: Counter,
    pub(super) learned: Counter,
    pub(super) saves: Counter,
    pub(super) fetches: Counter,
    pub(super) fetch_micros: Counter,
    pub(super) stretches: Counter,
    pub(super) bytes: Counter,
    pub(super) hits: Counter,
    pub(super) failed_finds: Counter,
    pub(super) failed_fetches: Counter,
    pub(super) failed_saves: Counter,
}

impl Counters {
    /// The numbers now.
    pub(super) fn now(&self) -> WarmUpCount {
        WarmUpCount {
            learning: self.learning.load(Ordering::Relaxed),
            fetching: self.fetching.load(Ordering::Relaxed),
            own: self.own.get(),
            similar: self.similar.get(),
            none: self.none.get(),
            learned: self.learned.get(),
            saves: self.saves.get(),
            fetches: self.fetches.get(),
            fetch_micros: self.fetch_micros.get(),
            stretches: self.stretches.get(),
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
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one file system has in the numbers that go up and down, until it is dropped.
pub(super) struct Share {
    all: Arc<Counters>,
    learning: AtomicU64,
    fetching: AtomicU64,
}

impl Share {
    pub(super) fn new(all: Arc<Counters>) -> Self {
        Self {
            all,
            learning: AtomicU64::new(0),
            fetching: AtomicU64::new(0),
        }
    }

    pub(super) fn set_learning(&self, now: u64) {
        put(&self.learning, &self.all.learning, now);
    }

    pub(super) fn set_fetching(&self, now: u64) {
        put(&self.fetching, &self.all.fetching, now);
    }
}

/// Has `all` count `now` in the place of what it counts of `share`.
fn put(share: &AtomicU64, all: &AtomicU64, now: u64) {
    let before = share.swap(now, Ordering::Relaxed);
    // The sum wraps, and comes back: less is a very large number more.
    all.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set_learning(0);
        self.set_fetching(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_takes_its_share_along_and_leaves_what_was_counted() {
        let all = Arc::new(Counters::default());
        let (one, other) = (Share::new(all.clone()), Share::new(all.clone()));
        one.set_learning(3);
        other.set_learning(2);
        other.set_fetching(1);
        all.hits.add(5);
        assert_eq!((all.now().learning, all.now().fetching), (5, 1));
        one.set_learning(1);
        assert_eq!(all.now().learning, 3);
        drop(other);
        assert_eq!((all.now().learning, all.now().fetching), (1, 0));
        drop(one);
        assert_eq!((all.now().learning, all.now().hits), (0, 5));
    }
}
