//! Changes of the roots of several stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Store;

/// How late a change in one store may be noticed while another is waited for.
const LATE: Duration = Duration::from_millis(250);

/// The last known versions of several stores' roots.
#[derive(Debug)]
pub(super) struct RootVersions(Vec<AtomicU64>);

impl RootVersions {
    /// For so many stores.
    pub(super) fn new(stores: usize) -> Self {
        Self((0..stores).map(|_| AtomicU64::new(0)).collect())
    }

    /// One number for all. Versions only grow, so that their sum changes when any does. A store
    /// that fails counts with its last version.
    pub(super) fn now<'a>(&self, stores: impl Iterator<Item = &'a Arc<dyn Store>>) -> u64 {
        let versions = self.0.iter().zip(stores).map(|(last, store)| {
            if let Ok(version) = store.roots_version() {
                last.store(version, Ordering::Relaxed);
            }
            last.load(Ordering::Relaxed)
        });
        versions.fold(0, u64::wrapping_add)
    }

    /// Blocks until `now` returns another number than `seen`, or `timeout` has passed; returns the
    /// number of that moment.
    pub(super) fn wait(
        &self,
        stores: &[&Arc<dyn Store>],
        seen: u64,
        timeout: Duration,
        now: impl Fn() -> u64,
    ) -> u64 {
        let deadline = Instant::now() + timeout;
        let slice = LATE / stores.len().max(1) as u32;
        let mut turns = self.0.iter().zip(stores).cycle();
        loop {
            let version = now();
            let remaining = deadline.saturating_duration_since(Instant::now());
            if version != seen || remaining.is_zero() {
                return version;
            }
            let slice = slice.min(remaining);
            let waited = turns
                .next()
                .map(|(last, store)| store.wait_for_roots(last.load(Ordering::Relaxed), slice));
            if !matches!(waited, Some(Ok(_))) {
                std::thread::sleep(slice);
            }
        }
    }
}
