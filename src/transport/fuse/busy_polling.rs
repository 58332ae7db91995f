//! Busy polling for the next request of a program that sends one after the other.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::device;
use super::latency_guard::LatencyGuard;

/// How long a worker polls for the next request after a reply. Going to sleep and being woken costs more
/// than nearly every answer. A tenth of this would do for a program that makes one small request after the
/// other; the next request of a walk comes later, because the kernel first makes the inodes of a listing
/// (docs/performance.md, "Reasons"). A thread that comes back again and again is served by the
/// [`LatencyGuard`].
const BUSY_POLL: Duration = Duration::from_micros(200);

/// The polling of a mount's workers.
pub(super) struct BusyPolling {
    /// Whether a polling worker leaves another core to the thread it waits for.
    many_cores: bool,
    latency_guard: Option<LatencyGuard>,
    /// Whether a worker is polling.
    taken: AtomicBool,
    /// The thread whose request was answered last.
    last_asked: AtomicU32,
}

impl BusyPolling {
    /// No worker is polling yet. `latency_guard` is whether processors are kept from sleeping meanwhile.
    pub(super) fn new(latency_guard: bool) -> Self {
        Self {
            many_cores: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            latency_guard: latency_guard.then(LatencyGuard::new),
            taken: AtomicBool::new(false),
            last_asked: AtomicU32::new(0),
        }
    }

    /// Polls for the next request of `thread`, which has just had an answer, if it is the only one
    /// that sends requests: a program that sends one after the other. If several do there is always
    /// a request to be read.
    pub(super) fn stay_for(&self, thread: u32, device: &OwnedFd) {
        if !self.many_cores
            || self.last_asked.swap(thread, Ordering::Relaxed) != thread
            || self
                .latency_guard
                .as_ref()
                .is_some_and(LatencyGuard::is_held)
            || self.taken.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let begin = Instant::now();
        let soon = loop {
            if device::has_request(device) {
                break true;
            } else if begin.elapsed() >= BUSY_POLL {
                break false;
            }
        };
        self.taken.store(false, Ordering::Relaxed);
        if let Some(latency_guard) = &self.latency_guard {
            latency_guard.saw(soon);
        }
    }
}
