//! The heartbeat of a mount's workers.
//!
//! A watchdog that sent requests to the mount would hang with it. So each worker counts: odd while
//! it answers a request, even while it waits for one. A worker at the same odd number for long is
//! stuck; and so is a mount with requests in the kernel that no worker reads. A slow endpoint is
//! neither: a request that waits for it is parked, and has no worker.

use crate::quantity::count;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The heartbeat of one worker.
#[derive(Debug, Default)]
pub(super) struct WorkerHeartbeat {
    /// Odd while it answers a request.
    count: AtomicU64,
}

impl WorkerHeartbeat {
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
pub(super) struct WorkerHeartbeats {
    all: Mutex<HashMap<u64, Arc<WorkerHeartbeat>>>,
    next: AtomicU64,
}

/// A worker's place among them, until it is dropped.
pub(super) struct EnrolledWorker<'a> {
    beats: &'a WorkerHeartbeats,
    number: u64,
    pub(super) beat: Arc<WorkerHeartbeat>,
}

impl WorkerHeartbeats {
    /// This thread is a worker from now on.
    pub(super) fn enroll(&self) -> EnrolledWorker<'_> {
        let beat = Arc::new(WorkerHeartbeat::default());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.all.lock().insert(number, beat.clone());
        EnrolledWorker {
            beats: self,
            number,
            beat,
        }
    }

    fn now(&self) -> HashMap<u64, u64> {
        let all = self.all.lock();
        all.iter()
            .map(|(number, beat)| (*number, beat.count.load(Ordering::Relaxed)))
            .collect()
    }
}

impl Drop for EnrolledWorker<'_> {
    fn drop(&mut self) {
        self.beats.all.lock().remove(&self.number);
    }
}

/// Why a mount is considered stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StuckWorker {
    /// So many workers are in the middle of a request.
    Workers(usize),
    /// The kernel has requests that no worker reads.
    NoReader,
}

impl fmt::Display for StuckWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workers(stuck) => {
                let workers = count(*stuck as u64, "worker is", "workers are");
                write!(f, "{workers} stuck in a request")
            }
            Self::NoReader => f.write_str("the kernel has requests that no worker takes"),
        }
    }
}

/// The state of a mount's workers at the last check.
#[derive(Debug, Default)]
pub struct HeartbeatMonitor {
    /// Each worker's number, and since when.
    workers: HashMap<u64, (u64, Instant)>,
    /// Since when requests are unread, and how many were read by then.
    untaken: Option<(Instant, u64)>,
}

impl HeartbeatMonitor {
    /// Checks the workers: are any stuck for `bound` or longer? `pending` is whether the kernel has
    /// unread requests, `taken` how many were read.
    pub(super) fn look(
        &mut self,
        beats: &WorkerHeartbeats,
        pending: bool,
        taken: u64,
        now: Instant,
        bound: Duration,
    ) -> Option<StuckWorker> {
        let seen = beats.now();
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
            (0, true) => Some(StuckWorker::NoReader),
            (stuck, _) => Some(StuckWorker::Workers(stuck)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    #[test]
    fn a_worker_that_stays_in_a_request_is_stuck() {
        let beats = WorkerHeartbeats::default();
        let me = beats.enroll();
        let mut heartbeat = HeartbeatMonitor::default();
        let start = Instant::now();
        let at = |seconds, heartbeat: &mut HeartbeatMonitor| {
            heartbeat.look(
                &beats,
                false,
                0,
                start + Duration::from_secs(seconds),
                BOUND,
            )
        };
        assert_eq!(at(0, &mut heartbeat), None);
        assert_eq!(at(100, &mut heartbeat), None, "idle is not stuck");
        me.beat.begin();
        assert_eq!(at(101, &mut heartbeat), None);
        assert_eq!(at(110, &mut heartbeat), None);
        assert_eq!(at(111, &mut heartbeat), Some(StuckWorker::Workers(1)));
        me.beat.end();
        assert_eq!(at(112, &mut heartbeat), None);
        drop(me);
        assert_eq!(at(9999, &mut heartbeat), None);
    }

    #[test]
    fn unread_requests_show_a_mount_without_workers() {
        let beats = WorkerHeartbeats::default();
        let mut heartbeat = HeartbeatMonitor::default();
        let start = Instant::now();
        let mut at = |seconds, taken| {
            heartbeat.look(
                &beats,
                true,
                taken,
                start + Duration::from_secs(seconds),
                BOUND,
            )
        };
        assert_eq!(at(0, 5), None);
        assert_eq!(at(9, 6), None);
        assert_eq!(at(18, 6), None);
        assert_eq!(at(19, 6), Some(StuckWorker::NoReader));
    }
}
