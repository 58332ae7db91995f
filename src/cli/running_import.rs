//! The import that runs now, for a signal that ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::import::ImportProgress;
use parking_lot::Mutex;

/// The running import, and whether it is to stop.
#[derive(Default)]
pub(super) struct RunningImport {
    progress: Mutex<Arc<ImportProgress>>,
    cancelled: AtomicBool,
}

impl RunningImport {
    /// Starts another import.
    pub(super) fn next(&self) -> Arc<ImportProgress> {
        let progress = Arc::new(ImportProgress::new());
        *self.progress.lock() = progress.clone();
        if self.is_cancelled() {
            progress.cancel();
        }
        progress
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.progress.lock().cancel();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}
