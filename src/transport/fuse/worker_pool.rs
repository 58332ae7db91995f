//! What the workers of a mount share; [`super::workers`] starts them.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::busy_polling::BusyPolling;
use super::heartbeat::WorkerHeartbeats;

/// The workers of a mount.
pub(super) struct WorkerPool {
    /// The heartbeat of each.
    pub(super) beats: WorkerHeartbeats,
    pub(super) busy_polling: BusyPolling,
    /// Notified, under its lock, when a worker ends.
    ended: (Mutex<()>, Condvar),
}

impl WorkerPool {
    /// No workers yet. `latency_guard` is whether processors are kept from sleeping while a program
    /// sends one request after the other.
    pub(super) fn new(latency_guard: bool) -> Self {
        Self {
            beats: WorkerHeartbeats::default(),
            busy_polling: BusyPolling::new(latency_guard),
            ended: (Mutex::new(()), Condvar::new()),
        }
    }

    /// Waits until `has_ended`, which it notices for certain if a worker has; for no longer than
    /// `patience`.
    pub(super) fn wait(&self, patience: Duration, has_ended: impl Fn() -> bool) {
        let (lock, ended) = &self.ended;
        let mut locked = lock.lock();
        if !has_ended() {
            ended.wait_for(&mut locked, patience);
        }
    }

    /// Wakes the threads in [`wait`](Self::wait): a worker has ended.
    pub(super) fn notify_end(&self) {
        let (lock, ended) = &self.ended;
        let _locked = lock.lock();
        ended.notify_all();
    }
}
