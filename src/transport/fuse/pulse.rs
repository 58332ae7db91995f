//! The heartbeat of a mount's workers.
//!
//! A watchdog that sent requests to the mount would hang with it. So each worker counts: odd while
//! it answers a request, even while it waits for one. A worker at the same odd number for long is
//! stuck; and so is a mount with requests in the kernel that no worker reads. A slow endpoint is
//! neither: a request that waits for it is parked, and has no worker.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The heartbeat of one worker.
#[derive(Debug, Default)]
pub(super) struct Stamp {
    /// Odd while it answers a request.
    count: AtomicU64,
}

impl Stamp {
    /// A request begins.
    pub(super) fn begin(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The request is answered.
    pub(super) fn end(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The heartbeats of a mount's workers.
#[derive(Debug, Default)]
pub(super) struct Stamps {
    all: Mutex<HashMap<u64, Arc<Stamp>>>,
    next: AtomicU64,
}

/// A worker's place among them, until it is dropped.
pub(super) struct Enrolled<'a> {
    stamps: &'a Stamps,
    number: u64,
    pub(super) stamp: Arc<Stamp>,
}

impl Stamps {
    /// This thread is a worker from now on.
    pub(super) fn enroll(&self) -> Enrolled<'_> {
        let stamp = Arc::new(Stamp::default());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.all.lock().insert(number, stamp.clone());
        Enrolled {
            stamps: self,
            number,
            stamp,
        }
    }

    fn now(&self) -> HashMap<u64, u64> {
        let all = self.all.lock();
        all.iter()
            .map(|(number, stamp)| (*number, stamp.count.load(Ordering::Relaxed)))
            .collect()
    }
}

impl Drop for Enrolled<'_> {
    fn drop(&mut self) {
        self.stamps.all.lock().remove(&self.number);
    }
}

/// Why a mount is considered stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// So many workers are in the middle of a request.
    Workers(usize),
    /// The kernel has requests that no worker reads.
    NobodyReads,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workers(count) => write!(f, "{count} workers are stuck in a request"),
            Self::NobodyReads => f.write_str("the kernel has requests that no worker takes"),
        }
    }
}

/// The state of a mount's workers at the last check.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Each worker's number, and since when.
    workers: HashMap<u64, (u64, Instant)>,
    /// Since when requests are unread, and how many were read by then.
    untaken: Option<(Instant, u64)>,
}

impl Pulse {
    /// Checks the workers: are any stuck for `bound` or longer? `pending` is whether the kernel has
    /// unread requests, `taken` how many were read.
    pub(super) fn look(
        &mut self,
        stamps: &Stamps,
        pending: bool,
        taken: u64,
        now: Instant,
        bound: Duration,
    ) -> Option<Stuck> {
        let seen = stamps.now();
        self.workers.retain(|number, _| seen.contains_key(number));
        let mut stuck = 0;
        for (number, count) in &seen {
            let since = self.workers.entry(*number).or_insert((*count, now));
            if since.0 != *count {
                *since = (*count, now);
            }
            let busy = count % 2 == 1;
            stuck += usize::from(busy && now.duration_since(since.1) >= bound);
        }
        self.untaken = match self.untaken {
            _ if !pending => None,
            Some((since, before)) if before == taken => Some((since, before)),
            _ => Some((now, taken)),
        };
        let untaken = self
            .untaken
            .is_some_and(|(since, _)| now.duration_since(since) >= bound);
        match (stuck, untaken) {
            (0, false) => None,
            (0, true) => Some(Stuck::NobodyReads),
            (stuck, _) => Some(Stuck::Workers(stuck)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    #[test]
    fn a_worker_that_stays_in_a_request_is_stuck() {
        let stamps = Stamps::default();
        let me = stamps.enroll();
        let mut pulse = Pulse::default();
        let start = Instant::now();
        let at = |seconds, pulse: &mut Pulse| {
            pulse.look(
                &stamps,
                false,
                0,
                start + Duration::from_secs(seconds),
                BOUND,
            )
        };
        assert_eq!(at(0, &mut pulse), None);
        assert_eq!(at(100, &mut pulse), None, "idle is not stuck");
        me.stamp.begin();
        assert_eq!(at(101, &mut pulse), None);
        assert_eq!(at(110, &mut pulse), None);
        assert_eq!(at(111, &mut pulse), Some(Stuck::Workers(1)));
        me.stamp.end();
        assert_eq!(at(112, &mut pulse), None);
        drop(me);
        assert_eq!(at(9999, &mut pulse), None);
    }

    #[test]
    fn unread_requests_show_a_mount_without_workers() {
        let stamps = Stamps::default();
        let mut pulse = Pulse::default();
        let start = Instant::now();
        let mut at = |seconds, taken| {
            pulse.look(
                &stamps,
                true,
                taken,
                start + Duration::from_secs(seconds),
                BOUND,
            )
        };
        assert_eq!(at(0, 5), None);
        assert_eq!(at(9, 6), None);
        assert_eq!(at(18, 6), None);
        assert_eq!(at(19, 6), Some(Stuck::NobodyReads));
    }
}
